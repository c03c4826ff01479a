//! How shards run: each on a thread of its own, in real time.

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::inbox::Inbox;
use super::{Clock, Shard, ShardHandle, Wake};
use crate::ring::{self, Ring};

/// How shards are started.
#[derive(Clone, Debug)]
pub struct Config {
    /// One shard for each entry, pinned to that CPU if one is named.
    pub cpus: Vec<Option<usize>>,
    /// How long a shard that has none looks for work before it sleeps.
    pub spin: Duration,
    /// The longest that a sleeping shard goes without looking at pollers that no event announces. When they have had
    /// nothing for half a second or more it goes longer, at most sixteen times as long, where looks cost more than a third
    /// of a percent of a core.
    pub look: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { cpus: vec![None], spin: Duration::from_micros(50), look: Duration::from_millis(2) }
    }
}

/// The share of a core that looking may cost a shard whose pollers have been quiet for long: one in so many.
const SHARE: u64 = 300;
/// Of a shard's ordinary interval, what it may grow to for that.
const LONGEST: u64 = 16;
/// Looks whose cost is measured together.
const MEASURED: u64 = 16;

/// The shards of this process.
#[derive(Debug)]
pub struct Shards {
    handles: Vec<ShardHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Shards {
    /// Starts them.
    ///
    /// # Errors
    /// Those of io_uring_setup(2) with what to do about them (see [`crate::ring::Ring::new`]), of thread creation, and
    /// of pinning.
    pub fn start(config: &Config) -> io::Result<Self> {
        ring::of_fitting_size(|entries| Self::start_with_rings(config, entries))
    }

    fn start_with_rings(config: &Config, entries: u32) -> io::Result<Self> {
        let mut shards = Shards { handles: Vec::new(), threads: Vec::new() };
        // One zero for all clocks, so that times may cross shards.
        let zero = Instant::now();
        for (id, cpu) in config.cpus.iter().copied().enumerate() {
            let (tx, rx) = std::sync::mpsc::sync_channel(1);
            let config = config.clone();
            let run = move || {
                let shard = match make(id, cpu, zero, entries) {
                    Ok(shard) => shard,
                    Err(e) => return drop(tx.send(Err(e))),
                };
                let _ = tx.send(Ok(shard.handle()));
                // Also when it panics: nobody is to wait for a shard that has ended.
                let shard = Closing(shard);
                work(&shard.0, &config);
            };
            let thread = std::thread::Builder::new().name(format!("shard{id}")).spawn(run)?;
            let handle = rx.recv().map_err(|_| io::Error::other("the shard ended at once"))??;
            shards.handles.push(handle);
            shards.threads.push(thread);
        }
        Ok(shards)
    }

    /// How to reach each of them.
    pub fn handles(&self) -> &[ShardHandle] {
        &self.handles
    }

    /// Stops them after their present turn and waits: the caller has drained them before. Dropping them is the same.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.run(|shard| shard.0.stopping.set(true));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A shard that is closed when its thread ends.
struct Closing(Shard);

impl Drop for Closing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(shard = self.0.id(), "a shard has panicked: its I/O has stopped for good");
        }
        self.0.close();
    }
}

fn make(id: usize, cpu: Option<usize>, zero: Instant, entries: u32) -> io::Result<Shard> {
    if let Some(cpu) = cpu {
        let mut set = nix::sched::CpuSet::new();
        set.set(cpu)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
            .map_err(|e| io::Error::other(format!("cannot pin shard {id} to CPU {cpu}: {e}")))?;
    }
    Ok(Shard::new(id, Clock::Real(zero), Ring::new(entries)?, Inbox::new(id)?))
}

/// The life of a shard's thread.
fn work(shard: &Shard, config: &Config) {
    let spin = config.spin.as_nanos() as u64;
    let mut looks = Looks { spin, look: config.look.as_nanos() as u64, cost: 0, looked: 0, cpu: 0 };
    shard.0.ring.watch(shard.0.inbox.event());
    shard.enter(|| {
        let mut idle_since = shard.now();
        while !shard.0.stopping.get() {
            if shard.turn() {
                idle_since = shard.now();
                continue;
            }
            let now = shard.now();
            if now - idle_since < spin {
                std::hint::spin_loop();
                continue;
            }
            sleep(shard, &mut looks, idle_since);
            if shard.now() - now < 1000 {
                // The sleep was no sleep: something had come.
                idle_since = shard.now();
            }
        }
        shard.drain();
    });
}

/// When a sleeping shard looks at its pollers. All in nanoseconds.
struct Looks {
    spin: u64,
    look: u64,
    /// What a look costs, with the sleep before it, in time of a CPU; zero before that was measured. It is a few
    /// microseconds on a machine of its own and ten times that on some virtual ones.
    cost: u64,
    /// Looks whose cost is not in it yet, and the CPU time that they took.
    looked: u64,
    cpu: u64,
}

impl Looks {
    /// How long a shard sleeps before it looks again: it has been `idle` for so long, and its pollers have been `quiet`.
    /// Soon after work it looks often, and a few dozen looks later every `look`; after half a second without a doorbell as
    /// seldom as the share of a core that idleness may cost wants it, whatever else happens on the shard.
    fn interval(&self, idle: u64, quiet: u64) -> u64 {
        let soon = (idle / 4).max(self.spin).min(self.look);
        let affordable = self.cost.saturating_mul(SHARE).min(self.look.saturating_mul(LONGEST));
        soon.max((quiet / 256).min(affordable))
    }

    /// So many looks took so much CPU time. They are gathered, since a shard that is woken often has few in a row.
    fn measured(&mut self, looked: u64, cpu: u64) {
        (self.looked, self.cpu) = (self.looked + looked, self.cpu + cpu);
        if self.looked < MEASURED {
            return;
        }
        let cost = self.cpu / self.looked;
        (self.looked, self.cpu) = (0, 0);
        // One that took long, by chance, is not to say for how long the next dozens are put off.
        self.cost = if self.cost == 0 { cost } else { (self.cost * 3 + cost) / 4 };
    }
}

/// CPU time of this thread, in nanoseconds.
fn cpu_time() -> u64 {
    let time = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from);
    time.map_or(0, |time| time.as_nanos() as u64)
}

/// Waits in the ring until an event, a timer, or a poller that no event announces has work. A look that finds nothing is
/// no turn: what a turn touches has left the caches by then, and costs more than the wake-up.
fn sleep(shard: &Shard, looks: &mut Looks, idle_since: u64) {
    let inner = &shard.0;
    inner.inbox.arm();
    let mut idle = !shard.has_work();
    let timer = inner.timers.first();
    let polled = inner.polled.get();
    // Sleeps since CPU time was read last: not the first of them, after which caches are warm from work.
    let (mut sleeps, mut since) = (0, None);
    while idle {
        let wake = inner.pollers.sleep();
        if wake == Wake::Busy || shard.has_local_work() {
            break;
        }
        let now = inner.clock.read();
        let due = timer.map(|at| at.saturating_sub(now));
        let look = (wake == Wake::Look).then(|| looks.interval(now - idle_since, now - polled));
        let wait = due.into_iter().chain(look).min();
        inner.ring.wait(wait.map(Duration::from_nanos));
        sleeps += u64::from(since.is_some());
        idle = look.is_some() && look == wait && look != due && !inner.ring.has_completions();
        if idle && (since.is_none() || sleeps == MEASURED) {
            let now = cpu_time();
            looks.measured(sleeps, now.saturating_sub(since.unwrap_or(now)));
            (sleeps, since) = (0, Some(now));
        }
    }
    if let Some(since) = since {
        looks.measured(sleeps, cpu_time().saturating_sub(since));
    }
    inner.inbox.disarm();
    shard.tick();
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;
    const MS: u64 = 1000 * US;

    fn looks(cost: u64) -> Looks {
        Looks { spin: 50 * US, look: 2 * MS, cost, looked: 0, cpu: 0 }
    }

    #[test]
    fn looks_grow_rare_with_idleness() {
        let looks = looks(4 * US);
        let times = [0, 400 * US, MS, 60 * MS, 100_000 * MS];
        let want = [50 * US, 100 * US, 250 * US, 2 * MS, 2 * MS];
        assert_eq!(times.map(|t| looks.interval(t, t)), want);
    }

    #[test]
    fn looks_that_cost_much_grow_rarer_with_quiet() {
        let mut looks = looks(0);
        assert_eq!(looks.interval(9000 * MS, 9000 * MS), 2 * MS, "nothing is known yet");
        looks.measured(10, 10 * 40 * US);
        assert_eq!(looks.cost, 0);
        looks.measured(6, 6 * 40 * US);
        assert_eq!(
            looks.interval(100 * US, 900 * MS),
            900 * MS / 256,
            "other work brings the looks no nearer"
        );
        assert_eq!(looks.interval(9000 * MS, 9000 * MS), 12 * MS, "a three hundredth of a core");
        looks.measured(16, 16 * 80 * US);
        assert_eq!(looks.cost, 50 * US);
        looks.measured(16, 16 * 4000 * US);
        assert_eq!(looks.interval(9000 * MS, 9000 * MS), 32 * MS, "never more rarely");
        // The first seconds cost little more than the interval's share.
        let (mut now, mut count) = (50 * US, 0);
        while now < 2000 * MS {
            (now, count) = (now + looks.interval(now, now), count + 1);
        }
        assert!(count < 800, "{count}");
    }
}
