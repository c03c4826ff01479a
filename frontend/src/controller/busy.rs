//! Controller Busy Time (Base 2.1, 5.1.12.1.3): how long a controller had commands outstanding on any of its I/O queues.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A clock that runs while any I/O queue has a command. Its queues tell of their first command and their last end alone,
/// so that one with many commands in flight pays nothing.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    /// Queues with commands.
    queues: AtomicUsize,
    /// When the first of them got one, in nanoseconds of the shards' clock.
    since: AtomicU64,
    /// Nanoseconds before that.
    total: AtomicU64,
}

impl Busy {
    /// A queue has a command, and had none.
    pub fn begin(&self, now: u64) {
        if self.queues.fetch_add(1, Ordering::AcqRel) == 0 {
            self.since.store(now, Ordering::Release);
        }
    }

    /// A queue has no command any more.
    pub fn end(&self, now: u64) {
        let since = self.since.load(Ordering::Acquire);
        if self.queues.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.total.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// How long it ran.
    pub fn time(&self, now: u64) -> Duration {
        let since = self.since.load(Ordering::Acquire);
        let running = self.queues.load(Ordering::Acquire) > 0;
        let current = if running { now.saturating_sub(since) } else { 0 };
        Duration::from_nanos(self.total.load(Ordering::Relaxed).saturating_add(current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_while_any_queue_has_commands() {
        let busy = Busy::default();
        let is = |now, nanos| assert_eq!(busy.time(now), Duration::from_nanos(nanos));
        is(100, 0);
        busy.begin(100);
        is(150, 50);
        // Two at once are no busier than one.
        busy.begin(160);
        busy.end(180);
        is(190, 90);
        busy.end(200);
        is(1000, 100);
        busy.begin(2000);
        busy.end(2007);
        is(9000, 107);
        // Shards read their clocks a little apart.
        busy.begin(5000);
        busy.end(4999);
        is(9000, 107);
    }
}
