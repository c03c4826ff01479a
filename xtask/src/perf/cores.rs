//! How near to each other the target's CPU and the load's are. A hypervisor has two virtual CPUs share a cache or not, and
//! moves them as it likes: whatever both touch, the buffers of a socket first of all, costs several times as much while
//! they do not.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::wake;

/// Times that a line of memory goes there and back in one measurement, and measurements whose median counts.
const ROUNDS: u32 = 500;
const MEASURED: usize = 21;
/// They are apart when a line takes so many times as long as it ever took.
pub const APART: f64 = 2.0;
/// So long CPUs that are apart are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who waits longer than this for the other's answer has been left alone.
const ALONE: Duration = Duration::from_millis(100);
/// A thread that does nothing stands still when the machine does: so much is a stall, and so long it is watched.
const STALL: Duration = Duration::from_micros(10);
const WATCHED: Duration = Duration::from_secs(1);
/// What ends the one who answers.
const END: u32 = u32::MAX;

/// Two CPUs, and what is known of the way between them.
pub struct Cores {
    cpus: [usize; 2],
    /// The least that a line took from one to the other, in nanoseconds.
    least: Cell<f64>,
    /// Runs that were repeated since they were apart.
    repeated: Cell<u32>,
}

impl Cores {
    pub fn new(target: &str, load: usize) -> Result<Self> {
        let first = target.split([',', '-']).next().unwrap_or_default();
        let first = first.parse().with_context(|| format!("--target-cpus {target}"))?;
        Ok(Cores { cpus: [first, load], least: Cell::new(f64::INFINITY), repeated: Cell::new(0) })
    }

    /// The nanoseconds that a line takes from one to the other now, if that can be known.
    pub fn between(&self) -> Option<f64> {
        let took = handover(self.cpus)?;
        self.least.set(self.least.get().min(took));
        Some(took)
    }

    /// Whether they were as near as they ever were, by [`Cores::between`]; also where that is not known.
    pub fn is_near(&self, between: Option<f64>) -> bool {
        between.is_none_or(|took| took <= APART * self.least.get())
    }

    /// Waits until they are, for a while.
    pub fn wait(&self) {
        let begin = Instant::now();
        while !self.is_near(self.between()) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn repeats(&self) {
        self.repeated.set(self.repeated.get() + 1);
    }

    /// For the page: what a program sees of each CPU that only looks at the clock.
    pub fn stalls(&self) -> String {
        let each = |cpu| match stalls(cpu) {
            Some((count, share)) => {
                format!("CPU {cpu} {count:.0} times a second, {:.2} % of the time", share * 100.0)
            }
            None => format!("CPU {cpu} unknown"),
        };
        self.cpus.map(each).join("; ")
    }

    /// For the page: what a bare thread of the target's CPU needs to be woken, without any target.
    pub fn wakes(&self) -> String {
        let each = |gap: Duration| match wake::cost(self.cpus, gap) {
            Some(micros) => format!("{micros:.0} µs after {:.1} ms", gap.as_secs_f64() * 1e3),
            None => "unknown".into(),
        };
        wake::GAPS.map(each).join(", ")
    }

    /// For the page.
    pub fn describe(&self) -> String {
        if self.least.get().is_infinite() {
            return "unknown: they are one, or others run there".into();
        }
        format!(
            "a line goes from one to the other in {:.0} ns; {} runs repeated in which it took over {:.0}",
            self.least.get(),
            self.repeated.get(),
            APART * self.least.get()
        )
    }
}

/// How often a second a thread that only looks at the clock stands still for more than [`STALL`], and which share of the
/// time that is.
fn stalls(cpu: usize) -> Option<(f64, f64)> {
    let run = move || {
        pin(cpu)?;
        let begin = Instant::now();
        let (mut before, mut count, mut still) = (begin, 0u32, Duration::ZERO);
        while before - begin < WATCHED {
            let now = Instant::now();
            let gap = now - before;
            before = now;
            if gap > STALL {
                (count, still) = (count + 1, still + gap);
            }
        }
        let all = (before - begin).as_secs_f64();
        Some((f64::from(count) / all, still.as_secs_f64() / all))
    };
    std::thread::spawn(run).join().ok().flatten()
}

pub(super) fn pin(cpu: usize) -> Option<()> {
    let mut set = CpuSet::new();
    set.set(cpu).ok()?;
    sched_setaffinity(Pid::from_raw(0), &set).ok()
}

/// The median of the times, in nanoseconds, that a line takes from one CPU to the other. `None` where they are one, where
/// threads cannot be pinned, and where others run on them.
fn handover(cpus: [usize; 2]) -> Option<f64> {
    if cpus[0] == cpus[1] {
        return None;
    }
    let line = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if pin(cpus[1]).is_none() {
                return;
            }
            loop {
                match line.load(Ordering::Acquire) {
                    END => break,
                    turn if turn % 2 == 1 => line.store(turn + 1, Ordering::Release),
                    _ => std::hint::spin_loop(),
                }
            }
        });
        let asks = scope.spawn(|| {
            let took = ask(cpus[0], &line);
            line.store(END, Ordering::Release);
            took
        });
        asks.join().ok().flatten()
    })
}

fn ask(cpu: usize, line: &AtomicU32) -> Option<f64> {
    pin(cpu)?;
    let mut took = Vec::new();
    for measured in 0..MEASURED as u32 {
        let begin = Instant::now();
        for round in 0..ROUNDS {
            let turn = 2 * (measured * ROUNDS + round) + 1;
            line.store(turn, Ordering::Release);
            let mut looks = 0u32;
            while line.load(Ordering::Acquire) == turn {
                looks += 1;
                if looks.is_multiple_of(1 << 16) && begin.elapsed() > ALONE {
                    return None;
                }
            }
        }
        took.push(begin.elapsed().as_nanos() as f64 / f64::from(2 * ROUNDS));
    }
    took.sort_by(f64::total_cmp);
    took.get(MEASURED / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_some_time() {
        assert!(handover([0, 0]).is_none());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if cpus > 1
            && let Some(took) = handover([0, 1])
        {
            assert!(took > 1.0, "{took}");
        }
        assert!(handover([0, 100_000]).is_none());
        let one = Cores::new("0", 0).unwrap();
        assert!(one.is_near(one.between()) && one.describe().contains("unknown"));
        one.least.set(27.0);
        assert!(one.is_near(Some(50.0)) && !one.is_near(Some(150.0)));
        assert!(stalls(0).is_none_or(|(_, share)| share < 1.0) && stalls(100_000).is_none());
    }
}
