//! Runs a job on queues, by polling.

use std::time::{Duration, Instant};

use nvme_proto::Status;

use super::{Amount, Histogram, Job, Ledger, Mismatch, Random};
use crate::{Command, Done, Error, Kind, Queue};

/// What a job took.
#[derive(Clone, Default)]
pub struct Report {
    /// From the first submission to the last completion.
    pub elapsed: Duration,
    /// Latencies of reads.
    pub reads: Histogram,
    /// Latencies of writes.
    pub writes: Histogram,
    /// Bytes of each I/O.
    pub io_size: usize,
    /// Bytes that were read back and held against what was written.
    pub verified: u64,
    /// Commands that ended with an error status.
    pub errors: u64,
}

impl Report {
    /// Commands that succeeded.
    pub fn commands(&self) -> u64 {
        self.reads.count() + self.writes.count()
    }

    /// Commands a second.
    pub fn iops(&self) -> f64 {
        self.commands() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.iops() * self.io_size as f64
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Share of the whole, 0 to 1.
    pub share: f64,
    /// Commands that succeeded.
    pub commands: u64,
}

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection, or the job does not fit the queue.
    #[error(transparent)]
    Queue(#[from] Error),
    /// A command failed.
    #[error("{command:?}: {status}")]
    Status {
        /// Which.
        command: Command,
        /// How.
        status: Status,
    },
    /// A block holds what it must not.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The caller's progress function said so.
    #[error("interrupted")]
    Interrupted,
}

struct Slot {
    command: Command,
    since: Instant,
}

struct Lane<'q> {
    queue: &'q mut dyn Queue,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    random: Random,
}

/// Runs `job` on `queues` from this thread. With a ledger every write is stamped and every read checked; then `ledger`
/// must cover the job's range. `progress` is called about ten times a second, and ends the job by returning `false`.
///
/// # Errors
/// [`Failure`]; writes that were in flight are noted in the ledger as unsure.
pub fn run(
    queues: &mut [&mut dyn Queue],
    job: &Job,
    mut ledger: Option<&mut Ledger>,
    mut progress: impl FnMut(Progress) -> bool,
) -> Result<Report, Failure> {
    let Some(first) = queues.first() else { return Ok(Report::default()) };
    let namespace = first.namespace().clone();
    let blocks = (job.io_size / namespace.block_size as usize) as u32;
    if !job.io_size.is_multiple_of(namespace.block_size as usize)
        || blocks == 0
        || job.io_size > first.max_transfer()
    {
        let (size, block, max) = (job.io_size, namespace.block_size, first.max_transfer());
        return Err(Error::Protocol(format!(
            "I/O of {size} bytes: the namespace takes multiples of {block} up to {max}"
        ))
        .into());
    }
    let bytes = job.range.map_or(u64::MAX, |r| r / u64::from(namespace.block_size)).min(namespace.blocks);
    let places = bytes / u64::from(blocks);
    if places == 0 {
        return Err(Error::Protocol("the range holds no I/O of this size".into()).into());
    }
    let mut lanes: Vec<Lane<'_>> = queues
        .iter_mut()
        .enumerate()
        .map(|(i, queue)| {
            let depth = job.depth.min(queue.depth());
            Lane {
                slots: (0..depth).map(|_| None).collect(),
                free: (0..depth).rev().collect(),
                random: Random::new(job.seed.wrapping_add(i as u64 * 0x1234_5678_9abc)),
                queue: &mut **queue,
            }
        })
        .collect();
    let limit = match job.amount {
        Amount::Time(_) => u64::MAX,
        Amount::Commands(n) => n,
        Amount::Once => places,
    };
    // The next place of a sequential order, over all queues.
    let mut next = 0;
    let begin = Instant::now();
    let mut report = Report { io_size: job.io_size, ..Report::default() };
    let (mut submitted, mut ended, mut looked) = (0u64, 0u64, begin);
    let mut done: Vec<Done> = Vec::new();
    let mut result = Ok(());
    let mut last = begin;
    'run: loop {
        let now = Instant::now();
        let time_up = matches!(job.amount, Amount::Time(t) if now - begin >= t);
        let mut idle = true;
        for lane in &mut lanes {
            while submitted < limit && !time_up {
                let Some(&tag) = lane.free.last() else { break };
                let Some(command) = choose(lane, &mut next, job, places, blocks, ledger.as_deref_mut())
                else {
                    break;
                };
                lane.free.pop();
                if let (Some(ledger), true) = (ledger.as_deref_mut(), command.sends()) {
                    ledger.fill(command.lba, blocks, lane.queue.buffer(tag));
                }
                lane.slots[usize::from(tag)] = Some(Slot { command, since: Instant::now() });
                submitted += 1;
                if let Err(e) = lane.queue.submit(tag, command) {
                    result = Err(e.into());
                    break 'run;
                }
            }
            if let Err(e) = lane.queue.poll(&mut done) {
                result = Err(e.into());
                break 'run;
            }
            if done.is_empty() {
                continue;
            }
            idle = false;
            let now = Instant::now();
            for Done { tag, status } in done.drain(..) {
                let Some(slot) = lane.slots[usize::from(tag)].take() else { continue };
                lane.free.push(tag);
                ended += 1;
                last = now;
                let r = finish(&mut report, lane, tag, &slot, status, now, blocks, ledger.as_deref_mut());
                if let Err(e) = r {
                    result = Err(e);
                    break 'run;
                }
            }
        }
        if ended == submitted && (time_up || submitted >= limit) {
            break;
        }
        if now - looked > Duration::from_millis(100) {
            looked = now;
            let share = match job.amount {
                Amount::Time(t) => (now - begin).as_secs_f64() / t.as_secs_f64().max(1e-9),
                _ => ended as f64 / limit as f64,
            };
            if !progress(Progress { share: share.min(1.0), commands: report.commands() }) {
                result = Err(Failure::Interrupted);
                break;
            }
        }
        if idle {
            std::hint::spin_loop();
        }
    }
    if let Some(ledger) = ledger {
        for slot in lanes.iter_mut().flat_map(|l| &mut l.slots).filter_map(Option::take) {
            if slot.command.sends() {
                ledger.written(slot.command.lba, blocks, false);
            }
            ledger.give(slot.command.lba, blocks);
        }
    }
    report.elapsed = last - begin;
    result.map(|()| report)
}

fn choose(
    lane: &mut Lane<'_>,
    next: &mut u64,
    job: &Job,
    places: u64,
    blocks: u32,
    ledger: Option<&mut Ledger>,
) -> Option<Command> {
    let read = job.pattern.reads == 100 || lane.random.below(100) < u64::from(job.pattern.reads);
    let kind = if read { Kind::Read } else { Kind::Write { fua: false } };
    let mut place = || {
        if job.pattern.random {
            return lane.random.below(places);
        }
        let place = *next;
        *next = (place + 1) % places;
        place
    };
    let Some(ledger) = ledger else {
        return Some(Command { kind, lba: place() * u64::from(blocks), blocks });
    };
    // Two commands in flight on one block have no order: verified loads keep them apart.
    let lba = (0..16).map(|_| place() * u64::from(blocks)).find(|&lba| ledger.take(lba, blocks))?;
    Some(Command { kind, lba, blocks })
}

#[expect(clippy::too_many_arguments, reason = "the loop's own state, passed on once")]
fn finish(
    report: &mut Report,
    lane: &Lane<'_>,
    tag: u16,
    slot: &Slot,
    status: Status,
    now: Instant,
    blocks: u32,
    ledger: Option<&mut Ledger>,
) -> Result<(), Failure> {
    let command = slot.command;
    let writes = command.sends();
    if let Some(ledger) = ledger {
        if writes {
            ledger.written(command.lba, blocks, status.is_success());
        }
        ledger.give(command.lba, blocks);
        if !writes && status.is_success() {
            report.verified += ledger.check(command.lba, blocks, lane.queue.buffer(tag))? as u64;
        }
    }
    if !status.is_success() {
        report.errors += 1;
        return Err(Failure::Status { command, status });
    }
    let latency = now - slot.since;
    if writes {
        report.writes.record(latency)
    } else {
        report.reads.record(latency)
    }
    Ok(())
}
