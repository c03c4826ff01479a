//! Runs jobs on queues, by polling.

use std::time::{Duration, Instant};

use nvme_proto::Status;

use super::{Amount, Job, Ledger, Mismatch, Random, Report, Shuffle};
use crate::{Command, Done, Error, Kind, Namespace, Queue};

/// How far jobs are.
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

/// A job and the queues that it has for itself. With a ledger every write is stamped and every read checked; it must
/// cover the job's range.
pub struct Load<'a> {
    /// What is asked for.
    pub job: Job,
    /// Of whom; all have the same namespace.
    pub queues: Vec<&'a mut dyn Queue>,
    /// What the blocks hold.
    pub ledger: Option<&'a mut Ledger>,
}

/// [`run_all`] with one job.
///
/// # Errors
/// As there.
pub fn run(
    queues: &mut [&mut dyn Queue],
    job: &Job,
    ledger: Option<&mut Ledger>,
    progress: impl FnMut(Progress) -> bool,
) -> Result<Report, Failure> {
    if queues.is_empty() {
        return Ok(Report::default());
    }
    let queues = queues.iter_mut().map(|queue| &mut **queue as &mut dyn Queue).collect();
    let mut reports = run_all(vec![Load { job: job.clone(), queues, ledger }], progress)?;
    Ok(reports.pop().unwrap_or_default())
}

/// Runs jobs side by side from this thread; their reports, in their order. `progress` is called about ten times a second,
/// and ends them by returning `false`.
///
/// # Errors
/// [`Failure`]; writes that were in flight are noted in the ledgers as unsure.
pub fn run_all(
    loads: Vec<Load<'_>>,
    mut progress: impl FnMut(Progress) -> bool,
) -> Result<Vec<Report>, Failure> {
    let mut runs = loads.into_iter().map(Run::new).collect::<Result<Vec<_>, _>>()?;
    let result = drive(&mut runs, &mut progress);
    let reports = runs.into_iter().map(Run::end).collect();
    result.map(|()| reports)
}

fn drive(runs: &mut [Run<'_>], progress: &mut impl FnMut(Progress) -> bool) -> Result<(), Failure> {
    let begin = Instant::now();
    for run in runs.iter_mut() {
        run.start(begin);
    }
    let (mut looked, mut before, mut busy) = (begin, begin, true);
    let mut done = Vec::new();
    loop {
        let now = Instant::now();
        if !busy {
            // In the turn before nothing came and nothing could be sent: the load has only waited.
            runs.iter_mut().for_each(|run| run.report.waited += now - before);
        }
        (before, busy) = (now, false);
        for run in runs.iter_mut() {
            busy |= run.turn(now, &mut done)?;
        }
        if runs.iter().all(|run| run.is_over(now)) {
            return Ok(());
        }
        if now - looked > Duration::from_millis(100) {
            looked = now;
            let share = runs.iter().map(|run| run.share(now)).fold(1.0, f64::min);
            let commands = runs.iter().map(|run| run.report.commands()).sum();
            if !progress(Progress { share, commands }) {
                return Err(Failure::Interrupted);
            }
        }
    }
}

struct Slot {
    command: Command,
    since: Instant,
}

struct Lane<'a> {
    queue: &'a mut dyn Queue,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    random: Random,
}

/// A job that is running.
struct Run<'a> {
    job: Job,
    lanes: Vec<Lane<'a>>,
    /// Whose turn it is: what a rate lets through goes to one after the other.
    first: usize,
    ledger: Option<&'a mut Ledger>,
    report: Report,
    namespace: Namespace,
    /// Blocks of each I/O, and how many I/Os the range holds.
    blocks: u32,
    places: u64,
    /// The next place of a sequential order, over all queues.
    next: u64,
    shuffle: Option<Shuffle>,
    limit: u64,
    submitted: u64,
    ended: u64,
    begin: Instant,
    /// When the figures begin: after the ramp.
    counted: Instant,
    last: Instant,
}

impl<'a> Run<'a> {
    fn new(load: Load<'a>) -> Result<Self, Failure> {
        let Load { job, queues, ledger } = load;
        let first = queues.first().ok_or_else(|| Error::Protocol("a job without a queue".into()))?;
        let namespace = first.namespace().clone();
        let block = u64::from(namespace.block_size);
        let (io_size, max) = (job.io_size as u64, first.max_transfer() as u64);
        let fits = io_size.is_multiple_of(block) && io_size > 0 && io_size / block <= 1 << 16;
        if !fits || !job.pattern.trims && io_size > max {
            return Err(Error::Protocol(format!(
                "I/O of {io_size} bytes: the namespace takes multiples of {block} up to {max}"
            ))
            .into());
        }
        let blocks = (io_size / block) as u32;
        let left = namespace.blocks.saturating_sub(job.offset / block);
        let places = job.range.map_or(u64::MAX, |range| range / block).min(left) / u64::from(blocks);
        if places == 0 || !job.offset.is_multiple_of(block) {
            return Err(Error::Protocol("the range holds no I/O of this size".into()).into());
        }
        let limit = match job.amount {
            Amount::Time(_) => u64::MAX,
            Amount::Commands(n) => n,
            Amount::Once => places,
        };
        let lane = |(i, queue): (usize, &'a mut dyn Queue)| {
            let depth = job.depth.min(queue.depth());
            Lane {
                slots: (0..depth).map(|_| None).collect(),
                free: (0..depth).rev().collect(),
                random: Random::new(job.seed.wrapping_add(i as u64 * 0x1234_5678_9abc)),
                queue,
            }
        };
        let lanes = queues.into_iter().enumerate().map(lane).collect();
        let report = Report { io_size: job.io_size, ..Report::default() };
        let now = Instant::now();
        Ok(Run {
            lanes,
            first: 0,
            ledger,
            report,
            namespace,
            blocks,
            places,
            next: 0,
            shuffle: job.each_once.then(|| Shuffle::new(places, job.seed)),
            limit,
            submitted: 0,
            ended: 0,
            begin: now,
            counted: now,
            last: now,
            job,
        })
    }

    fn start(&mut self, now: Instant) {
        (self.begin, self.counted, self.last) = (now, now, now);
    }

    fn time_up(&self, now: Instant) -> bool {
        matches!(self.job.amount, Amount::Time(t) if now - self.begin >= t + self.job.ramp)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.ended == self.submitted && (self.submitted >= self.limit || self.time_up(now))
    }

    fn share(&self, now: Instant) -> f64 {
        let share = match self.job.amount {
            Amount::Time(t) => (now - self.begin).as_secs_f64() / (t + self.job.ramp).as_secs_f64().max(1e-9),
            _ => self.ended as f64 / self.limit as f64,
        };
        share.min(1.0)
    }

    /// How many commands may have been sent by now.
    fn allowed(&self, now: Instant) -> u64 {
        let Some(rate) = self.job.rate else { return self.limit };
        let due = ((now - self.begin).as_secs_f64() * rate as f64) as u64 + 1;
        due.min(self.limit)
    }

    /// Sends what may be sent and takes what has come. Whether there was anything.
    fn turn(&mut self, now: Instant, done: &mut Vec<Done>) -> Result<bool, Failure> {
        if !self.job.ramp.is_zero() && self.counted == self.begin && now - self.begin >= self.job.ramp {
            self.report = Report { io_size: self.job.io_size, ..Report::default() };
            (self.counted, self.last) = (now, now);
        }
        let allowed = if self.time_up(now) { 0 } else { self.allowed(now) };
        let mut busy = false;
        let first = self.first;
        for i in (first..self.lanes.len()).chain(0..first) {
            if self.submit(i, allowed)? {
                (self.first, busy) = ((i + 1) % self.lanes.len(), true);
            }
            self.lanes[i].queue.poll(done)?;
            if done.is_empty() {
                continue;
            }
            busy = true;
            let now = Instant::now();
            self.last = now;
            for Done { tag, status } in done.drain(..) {
                self.finish(i, tag, status, now)?;
            }
        }
        Ok(busy)
    }

    fn submit(&mut self, lane: usize, allowed: u64) -> Result<bool, Failure> {
        let mut any = false;
        while self.submitted < allowed {
            let Some(&tag) = self.lanes[lane].free.last() else { break };
            let Some(command) = self.choose(lane) else { break };
            let lane = &mut self.lanes[lane];
            lane.free.pop();
            if let (Some(ledger), true) = (self.ledger.as_deref_mut(), command.sends()) {
                ledger.fill(command.lba, self.blocks, lane.queue.buffer(tag));
            }
            lane.slots[usize::from(tag)] = Some(Slot { command, since: Instant::now() });
            let in_flight = lane.slots.len() - lane.free.len();
            lane.queue.submit(tag, command)?;
            self.report.depths.count(in_flight);
            self.submitted += 1;
            any = true;
        }
        Ok(any)
    }

    fn choose(&mut self, lane: usize) -> Option<Command> {
        let (pattern, blocks, places) = (self.job.pattern, self.blocks, self.places);
        let first = self.job.offset / u64::from(self.namespace.block_size);
        let random = &mut self.lanes[lane].random;
        let read = pattern.reads == 100 || random.below(100) < u64::from(pattern.reads);
        let kind = match (pattern.trims, read) {
            (true, _) => Kind::Deallocate,
            (false, true) => Kind::Read,
            (false, false) => Kind::Write { fua: false },
        };
        let (next, shuffle) = (&mut self.next, &mut self.shuffle);
        let mut lba = || {
            if let (true, Some(shuffle)) = (pattern.random, shuffle.as_mut()) {
                return first + shuffle.number() * u64::from(blocks);
            }
            if pattern.random {
                return first + random.below(places) * u64::from(blocks);
            }
            let place = *next;
            *next = (place + 1) % places;
            first + place * u64::from(blocks)
        };
        let Some(ledger) = self.ledger.as_deref_mut() else {
            return Some(Command { kind, lba: lba(), blocks });
        };
        // Two commands in flight on one block have no order: verified loads keep them apart.
        let lba = (0..16).map(|_| lba()).find(|&lba| ledger.take(lba, blocks))?;
        Some(Command { kind, lba, blocks })
    }

    fn finish(&mut self, lane: usize, tag: u16, status: Status, now: Instant) -> Result<(), Failure> {
        let lane = &mut self.lanes[lane];
        let Some(Slot { command, since }) = lane.slots[usize::from(tag)].take() else { return Ok(()) };
        lane.free.push(tag);
        self.ended += 1;
        if let Some(ledger) = self.ledger.as_deref_mut() {
            if command.sends() {
                ledger.written(command.lba, self.blocks, status.is_success());
            }
            ledger.give(command.lba, self.blocks);
            if !command.sends() && status.is_success() {
                let right = ledger.check(command.lba, self.blocks, lane.queue.buffer(tag))?;
                self.report.verified += right as u64;
            }
        }
        if !status.is_success() {
            self.report.errors += 1;
            return Err(Failure::Status { command, status });
        }
        let report = &mut self.report;
        let side = match command.kind {
            Kind::Read => &mut report.reads,
            Kind::Deallocate => &mut report.trims,
            _ => &mut report.writes,
        };
        side.record(now - since);
        report.samples.count(command.kind, now - self.counted);
        Ok(())
    }

    fn end(mut self) -> Report {
        if let Some(ledger) = self.ledger {
            for slot in self.lanes.iter_mut().flat_map(|l| &mut l.slots).filter_map(Option::take) {
                if slot.command.sends() {
                    ledger.written(slot.command.lba, self.blocks, false);
                }
                ledger.give(slot.command.lba, self.blocks);
            }
        }
        self.report.elapsed = self.last - self.counted;
        self.report
    }
}
