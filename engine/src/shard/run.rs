//! How shards run: each on a thread of its own, in real time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// How long a shard looks for work before it sleeps.
    pub spin: Duration,
    /// The longest that a sleeping shard goes without looking at pollers that no event announces; four times as long
    /// when they have had nothing for some seconds.
    pub look: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { cpus: vec![None], spin: Duration::from_micros(50), look: Duration::from_millis(2) }
    }
}

/// Time a shard spent at work and asleep, in nanoseconds.
#[derive(Debug, Default)]
struct Usage {
    busy: AtomicU64,
    total: AtomicU64,
}

/// The shards of this process.
#[derive(Debug)]
pub struct Shards {
    handles: Vec<ShardHandle>,
    threads: Vec<JoinHandle<()>>,
    usage: Vec<Arc<Usage>>,
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
        let mut shards = Shards { handles: Vec::new(), threads: Vec::new(), usage: Vec::new() };
        // One zero for all clocks, so that times may cross shards.
        let zero = Instant::now();
        for (id, cpu) in config.cpus.iter().copied().enumerate() {
            let (tx, rx) = std::sync::mpsc::sync_channel(1);
            let usage = Arc::<Usage>::default();
            let (config, theirs) = (config.clone(), usage.clone());
            let run = move || {
                let shard = match make(id, cpu, zero, entries) {
                    Ok(shard) => shard,
                    Err(e) => return drop(tx.send(Err(e))),
                };
                let _ = tx.send(Ok(shard.handle()));
                // Also when it panics: nobody is to wait for a shard that has ended.
                let shard = Closing(shard);
                work(&shard.0, &config, &theirs);
            };
            let thread = std::thread::Builder::new().name(format!("shard{id}")).spawn(run)?;
            let handle = rx.recv().map_err(|_| io::Error::other("the shard ended at once"))??;
            shards.handles.push(handle);
            shards.threads.push(thread);
            shards.usage.push(usage);
        }
        Ok(shards)
    }

    /// How to reach each of them.
    pub fn handles(&self) -> &[ShardHandle] {
        &self.handles
    }

    /// Share of the time that each shard was awake since it started, 0 to 1.
    pub fn busy(&self) -> Vec<f64> {
        let share = |u: &Arc<Usage>| {
            u.busy.load(Ordering::Relaxed) as f64 / u.total.load(Ordering::Relaxed).max(1) as f64
        };
        self.usage.iter().map(share).collect()
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
fn work(shard: &Shard, config: &Config, usage: &Usage) {
    let (spin, look) = (config.spin.as_nanos() as u64, config.look.as_nanos() as u64);
    shard.0.ring.watch(shard.0.inbox.event());
    shard.enter(|| {
        let mut idle_since = shard.now();
        while !shard.0.stopping.get() {
            let before = shard.now();
            if shard.turn() {
                idle_since = shard.now();
                account(usage, idle_since - before, idle_since - before);
                continue;
            }
            let now = shard.now();
            account(usage, now - before, now - before);
            if now - idle_since < spin {
                std::hint::spin_loop();
                continue;
            }
            let polled = shard.0.polled.get();
            sleep(shard, |now| interval(now - idle_since, now - polled, spin, look));
            let looked = shard.now();
            account(usage, 0, looked - now);
            if looked - now < 1000 {
                // The sleep was no sleep: something had come.
                idle_since = looked;
            }
        }
        shard.0.ring.drain();
    });
}

/// How long a shard sleeps before it looks at its pollers again, in nanoseconds as all the rest: it has been `idle` for
/// so long, and its pollers have been `quiet`. Soon after work it looks often, and a few dozen looks later every `look`;
/// each costs some 10 to 20 µs, so that after seconds without a doorbell it takes four times as long, whatever else
/// happens on the shard.
fn interval(idle: u64, quiet: u64, spin: u64, look: u64) -> u64 {
    let soon = (idle / 4).max(spin).min(look);
    let late = (quiet / 512).min(look.saturating_mul(4));
    soon.max(late)
}

fn account(usage: &Usage, busy: u64, total: u64) {
    let add = |to: &AtomicU64, n| to.store(to.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    add(&usage.busy, busy);
    add(&usage.total, total);
}

/// Waits in the ring until an event, a timer, or a poller that no event announces has work; `look` says at what time of
/// the clock how long to wait before looking. A look that finds nothing is no turn: what a turn touches has left the
/// caches by then, and costs more than the wake-up.
fn sleep(shard: &Shard, look: impl Fn(u64) -> u64) {
    let inner = &shard.0;
    inner.inbox.arm();
    let mut idle = !shard.has_work();
    let timer = inner.timers.first();
    while idle {
        let wake = inner.pollers.sleep();
        if wake == Wake::Busy || shard.has_local_work() {
            break;
        }
        let now = inner.clock.read();
        let due = timer.map(|at| at.saturating_sub(now));
        let look = (wake == Wake::Look).then(|| look(now));
        let wait = due.into_iter().chain(look).min();
        inner.ring.wait(wait.map(Duration::from_nanos));
        idle = look.is_some() && look == wait && look != due && !inner.ring.has_completions();
    }
    inner.inbox.disarm();
    shard.tick();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_grow_rare_with_idleness_and_rarer_with_quiet() {
        const US: u64 = 1000;
        const MS: u64 = 1000 * US;
        let look = |idle, quiet| interval(idle, quiet, 50 * US, 2 * MS);
        assert_eq!([0, 400 * US, MS, 60 * MS].map(|t| look(t, t)), [50 * US, 100 * US, 250 * US, 2 * MS]);
        assert_eq!(
            look(100 * US, 900 * MS),
            900 * MS / 512,
            "other work on the shard brings the looks no nearer"
        );
        assert_eq!([2048, 4096, 100_000].map(|ms| look(100 * US, ms * MS)), [4 * MS, 8 * MS, 8 * MS]);
        // The first two seconds cost little more than the interval's share.
        let (mut now, mut looks) = (50 * US, 0);
        while now < 2000 * MS {
            (now, looks) = (now + look(now, now), looks + 1);
        }
        assert!(looks < 1100, "{looks}");
    }
}
