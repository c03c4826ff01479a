//! The kit that every volume, and every stack of volumes, must pass.
//!
//! It sends random I/O from two simulated shards, many at a time, and holds each answer against a model of what the
//! blocks may read as. It asserts that an I/O comes back exactly once and never inside its submission; that
//! overlapping I/O never tears a block; that the limits are true; that memory is let go before an I/O comes back; that
//! a revoke brings back what it covers and nothing else, whereupon no write of it lands over a later one; that the
//! volume works on after that, and after its channels were closed; and that the counters say what was done.
//!
//! It ends by panicking, with the seed that repeats the run. `ISTHMUS_SEED` sets the seed; `ISTHMUS_SOAK=1` does fifty
//! times the rounds.

mod memory;
mod model;
pub(crate) mod rng;
mod round;
mod state;

use std::sync::Arc;

use crate::shard::Sim;
use crate::volume::Volume;

/// What is asked of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where the random numbers begin.
    pub seed: u64,
    /// Runs, each with a volume of its own.
    pub rounds: u64,
    /// I/Os of a run, besides those that verify it.
    pub steps: u64,
    /// I/O in flight may overlap: every block is then read whole, as some write left it.
    pub overlap: bool,
    /// Writes leave nothing, and all blocks read as zeroes.
    pub vanishes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { seed: 1, rounds: 4, steps: 400, overlap: true, vanishes: false }
    }
}

/// Asks all of it of the volumes that `make` makes, for the simulation that it is given.
///
/// # Panics
/// If a volume fails, with the reason and the seed.
pub fn run(name: &str, make: impl Fn(&Sim) -> Arc<dyn Volume>, options: Options) {
    let seed = std::env::var("ISTHMUS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(options.seed);
    let soak = std::env::var("ISTHMUS_SOAK").is_ok_and(|s| s == "1");
    for round in 0..options.rounds * if soak { 50 } else { 1 } {
        let seed = seed.wrapping_add(round);
        let name = format!("{name}, ISTHMUS_SEED={seed}");
        round::run(&name, &make, Options { seed, ..options });
    }
}

#[cfg(test)]
mod tests;
