//! Shards without threads, in virtual time.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::inbox::Inbox;
use super::{Clock, Shard, ShardHandle};
use crate::ring::{self, Ring};

/// Shards on the calling thread, in virtual time: deterministic, and hours pass in no time. For tests.
pub struct Sim {
    shards: Vec<Shard>,
    now: Rc<Cell<u64>>,
    stirred: Cell<u64>,
}

impl Sim {
    /// `n` shards.
    ///
    /// # Errors
    /// Those of io_uring_setup(2).
    pub fn new(n: usize) -> io::Result<Self> {
        let now = Rc::new(Cell::new(0));
        let shard = |id, entries| {
            Ok(Shard::new(id, Clock::Virtual(now.clone()), Ring::new(entries)?, Inbox::new(id)?))
        };
        let shards = ring::of_fitting_size(|entries| (0..n).map(|id| shard(id, entries)).collect())?;
        Ok(Sim { shards, now, stirred: Cell::new(0) })
    }

    /// How to reach each of them.
    pub fn handles(&self) -> Vec<ShardHandle> {
        self.shards.iter().map(Shard::handle).collect()
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now.get())
    }

    /// How often [`Sim::settle`] found something to do: as long as this stays as it is, nobody outside was told
    /// anything.
    pub fn stirred(&self) -> u64 {
        self.stirred.get()
    }

    /// Runs `f` as shard `id`, between turns.
    pub fn on<R>(&self, id: usize, f: impl FnOnce(&Shard) -> R) -> R {
        let shard = &self.shards[id];
        shard.tick();
        shard.enter(|| f(shard))
    }

    /// A turn of each shard, in which no time passes. Whether anything happened, or is left for the next.
    pub fn turn(&self) -> bool {
        let turn = |busy, shard: &Shard| busy | shard.enter(|| shard.turn() || shard.has_work());
        self.shards.iter().fold(false, turn)
    }

    /// Takes turns until `done`, or until nothing can happen any more. Whether it is done.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if self.turn() {
                continue;
            }
            // Real I/O first: it takes no virtual time.
            if self.wait_for_kernel() {
                continue;
            }
            let Some(next) = self.shards.iter().filter_map(|s| s.0.timers.first()).min() else {
                return done();
            };
            self.now.set(self.now.get().max(next));
        }
    }

    /// Waits until an operation of any shard ends; false if there is none, or none ends in a good while.
    fn wait_for_kernel(&self) -> bool {
        let timers = self.shards.iter().any(|s| s.0.timers.first().is_some());
        // With timers pending the kernel's part may be one that waits for a peer: look briefly, then go on.
        let patience = Duration::from_millis(if timers { 1 } else { 20_000 });
        let slice = Duration::from_micros(100);
        let start = Instant::now();
        while start.elapsed() < patience {
            let mut waited = false;
            for shard in self.shards.iter().filter(|s| s.0.ring.in_flight() > 0) {
                waited = true;
                let before = Instant::now();
                shard.enter(|| shard.0.ring.wait(Some(slice)));
                if before.elapsed() < slice {
                    return true;
                }
            }
            if !waited {
                return false;
            }
        }
        false
    }

    /// Takes turns while there is work, and lets `time` pass in between; what the kernel has ended by then is seen, and
    /// nobody outside is waited for. Whether all came to rest within so many `turns`: with more, something spins.
    pub fn settle(&self, time: Duration, turns: usize) -> bool {
        let until = self.now.get().saturating_add(time.as_nanos() as u64);
        for _ in 0..turns {
            let mut busy = false;
            for shard in &self.shards {
                busy |= shard.enter(|| shard.turn() || shard.has_work() || shard.0.ring.has_completions());
            }
            if busy {
                self.stirred.set(self.stirred.get() + 1);
                continue;
            }
            match self.shards.iter().filter_map(|s| s.0.timers.first()).min().filter(|at| *at <= until) {
                Some(next) => self.now.set(self.now.get().max(next)),
                None => {
                    self.now.set(until);
                    return true;
                }
            }
        }
        false
    }

    /// Lets `time` pass.
    pub fn advance(&self, time: Duration) {
        let until = self.now.get() + time.as_nanos() as u64;
        struct Never;
        impl super::OnTimer for Never {
            fn on_timer(self: Rc<Self>, _cookie: u64) {}
        }
        if let Some(first) = self.shards.first() {
            first.enter(|| {
                first.tick();
                first.timer(time, Rc::new(Never), 0)
            });
        }
        self.run_until(|| self.now.get() >= until);
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        for shard in &self.shards {
            shard.enter(|| shard.drain());
        }
        self.shards.iter().for_each(Shard::close);
    }
}
