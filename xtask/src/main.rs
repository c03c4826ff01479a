//! `cargo xtask`: fetches the real peers that Isthmus is tested against, and runs the tests.
#![forbid(unsafe_code)]

mod figures;
mod instructions;
mod peers;
mod perf;
mod process;
mod report;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fetches Isthmus's real peers and runs its tests.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    after_help = "\
The peers (QEMU with vfio-user, a Debian kernel, fio, nvme-cli, valgrind, OPI's Python stubs) come from the Debian archive \
this machine's apt is configured for, and from this machine's pip. They are unpacked beside the system, never \
installed into it, and kept in $ISTHMUS_CACHE, else $XDG_CACHE_HOME/isthmus, else ~/.cache/isthmus.

A peer that cannot be had is a SKIPPED row with its reason. With CI=true a SKIPPED row is a failure.

One test alone, with the peers:
  ISTHMUS_PEERS=$(cargo xtask peers) cargo test --test guest_peers"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lints, unit tests and end-to-end tests with real peers; ends with a table of what ran.
    Test,
    /// The same tests with larger counts and a printed seed, which ISTHMUS_SEED sets again.
    Soak {
        /// The seed of everything random; by default from the clock.
        #[arg(long, env = "ISTHMUS_SEED")]
        seed: Option<u64>,
    },
    /// Only rustfmt and clippy, as `test` runs them first.
    Lint,
    /// Takes first figures of the release build on this machine and prints docs/performance.md's table.
    Figures(figures::Options),
    /// Measures this build, and a peer in turns with it, and writes a page with the ratios and the plots.
    Perf(perf::Options),
    /// Counts the instructions that a command costs on each path, and compares them with benches/instructions.toml.
    Instructions(instructions::Options),
    /// Only fetches the peers; prints the directory that ISTHMUS_PEERS has to name.
    Peers,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test => suite::test(suite::Extent::Test),
        Command::Soak { seed } => suite::test(suite::Extent::Soak { seed: seed.unwrap_or_else(clock) }),
        Command::Lint => suite::lint(),
        Command::Figures(options) => suite::figures(&options),
        Command::Perf(options) => suite::perf(&options),
        Command::Instructions(options) => suite::instructions(&options),
        Command::Peers => suite::peers(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A seed that differs between runs.
fn clock() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64)
}
