//! Quality of service: maxima of operations and bytes per second, for all users of a volume together.
//!
//! The buckets are shared by the volume's channels on every shard and are taken from without a lock; only I/O that
//! must wait costs more. It waits in the channel that it came through, in its order, until the time that the buckets
//! gave it.

mod bucket;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{
    Channel, ChannelRef, Io, IoError, IoResult, Issuer, Limits, OnTimer, Op, Scope, Shard, TimerId, Volume,
    VolumeStats,
};

use bucket::Bucket;

/// How soon waiting I/O learns of new maxima.
const LOOK: u64 = 100_000_000;

/// The maxima of a volume, in the units of OPI's `QosLimit`; zero for none.
///
/// A Compare counts as a read. WriteZeroes counts as a write of its bytes, since a layer below may have to write them;
/// Unmap as a write of no bytes. Flush is never held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maxima {
    /// Thousands of read operations per second.
    pub rd_iops_kiops: u64,
    /// Thousands of write operations per second.
    pub wr_iops_kiops: u64,
    /// Thousands of operations per second.
    pub rw_iops_kiops: u64,
    /// MiB (1048576 bytes) read per second.
    pub rd_bandwidth_mbs: u64,
    /// MiB written per second.
    pub wr_bandwidth_mbs: u64,
    /// MiB read and written per second.
    pub rw_bandwidth_mbs: u64,
}

/// A volume that passes I/O to the one below no faster than its maxima.
///
/// After idleness the tokens of 10 ms may pass at once. I/O larger than what a second allows passes in its turn, and
/// what comes after it waits the longer.
pub struct QosVolume {
    below: Arc<dyn Volume>,
    maxima: Mutex<Maxima>,
    buckets: Arc<Buckets>,
    stats: VolumeStats,
}

impl QosVolume {
    /// Limits the use of `below`. Every user of the volume is to go through this one.
    pub fn new(below: Arc<dyn Volume>, maxima: Maxima) -> Self {
        let volume =
            Self { below, maxima: Mutex::default(), buckets: Arc::default(), stats: VolumeStats::default() };
        volume.set_maxima(maxima);
        volume
    }

    /// The maxima in force.
    pub fn maxima(&self) -> Maxima {
        *self.maxima.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the maxima, also for I/O that is waiting already (within 100 ms). Called from any thread.
    pub fn set_maxima(&self, maxima: Maxima) {
        let mut current = self.maxima.lock().unwrap_or_else(PoisonError::into_inner);
        *current = maxima;
        self.buckets.set(&maxima);
    }
}

impl std::fmt::Debug for QosVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QosVolume").field("maxima", &self.maxima()).finish_non_exhaustive()
    }
}

impl Volume for QosVolume {
    fn limits(&self) -> Limits {
        self.below.limits()
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn is_away(&self) -> bool {
        self.below.is_away()
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        let generation = Cell::new(self.buckets.generation());
        Rc::new(QosChannel {
            below: ChannelRef::open(&self.below, shard),
            block_size: u64::from(self.below.limits().block_size),
            buckets: self.buckets.clone(),
            shard: shard.clone(),
            generation,
            waiting: RefCell::default(),
            timer: Cell::default(),
        })
    }
}

/// What an I/O takes tokens as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Read,
    Write,
}

/// What an I/O costs: one operation, and so many bytes.
fn cost(io: &Io, block_size: u64) -> Option<(Class, u64)> {
    let bytes = u64::from(io.blocks()) * block_size;
    match io.op() {
        Op::Flush => None,
        Op::Read | Op::Compare => Some((Class::Read, bytes)),
        Op::Write { .. } | Op::WriteZeroes { .. } => Some((Class::Write, bytes)),
        Op::Unmap => Some((Class::Write, 0)),
    }
}

/// Operations and bytes.
#[derive(Default)]
struct Pair {
    operations: Bucket,
    bytes: Bucket,
}

impl Pair {
    fn set(&self, kiops: u64, mbs: u64) {
        self.operations.set(kiops.saturating_mul(1000));
        self.bytes.set(mbs.saturating_mul(1 << 20));
    }

    fn take(&self, bytes: u64, now: u64) -> u64 {
        self.operations.take(1, now).max(self.bytes.take(bytes, now))
    }

    fn give_back(&self, bytes: u64) {
        self.operations.give_back(1);
        self.bytes.give_back(bytes);
    }
}

#[derive(Default)]
struct Buckets {
    rd: Pair,
    wr: Pair,
    rw: Pair,
    /// Counts changes of the maxima.
    generation: AtomicU64,
}

impl Buckets {
    fn set(&self, m: &Maxima) {
        self.rd.set(m.rd_iops_kiops, m.rd_bandwidth_mbs);
        self.wr.set(m.wr_iops_kiops, m.wr_bandwidth_mbs);
        self.rw.set(m.rw_iops_kiops, m.rw_bandwidth_mbs);
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn of(&self, class: Class) -> &Pair {
        match class {
            Class::Read => &self.rd,
            Class::Write => &self.wr,
        }
    }

    /// When an I/O that comes `now` may pass.
    fn take(&self, class: Class, bytes: u64, now: u64) -> u64 {
        self.of(class).take(bytes, now).max(self.rw.take(bytes, now))
    }

    fn give_back(&self, class: Class, bytes: u64) {
        self.of(class).give_back(bytes);
        self.rw.give_back(bytes);
    }
}

/// I/O that waits, with the time at which it may pass.
type Fifo = VecDeque<(u64, Io)>;

/// Reads never wait behind writes, nor writes behind reads, unless a maximum of both makes them.
#[derive(Default)]
struct Waiting {
    reads: Fifo,
    writes: Fifo,
}

impl Waiting {
    fn of(&mut self, class: Class) -> &mut Fifo {
        match class {
            Class::Read => &mut self.reads,
            Class::Write => &mut self.writes,
        }
    }

    fn both(&mut self) -> [&mut Fifo; 2] {
        [&mut self.reads, &mut self.writes]
    }

    fn take_due(&mut self, class: Class, now: u64) -> Option<Io> {
        let fifo = self.of(class);
        if fifo.front()?.0 > now {
            return None;
        }
        fifo.pop_front().map(|(_, io)| io)
    }

    fn first(&self) -> Option<u64> {
        let heads = [self.reads.front(), self.writes.front()];
        heads.into_iter().flatten().map(|(due, _)| *due).min()
    }
}

struct QosChannel {
    below: ChannelRef,
    block_size: u64,
    buckets: Arc<Buckets>,
    shard: Shard,
    /// The change of the maxima that the waiting I/O's times are from.
    generation: Cell<u64>,
    waiting: RefCell<Waiting>,
    /// The timer that looks after the waiting I/O, and when it fires.
    timer: Cell<Option<(u64, TimerId)>>,
}

impl Channel for QosChannel {
    fn submit(self: Rc<Self>, io: Io) {
        let Some((class, bytes)) = cost(&io, self.block_size) else { return self.pass(io) };
        self.replan();
        let now = self.shard.now();
        let due = self.buckets.take(class, bytes, now);
        let mut waiting = self.waiting.borrow_mut();
        let fifo = waiting.of(class);
        if due <= now && fifo.is_empty() {
            drop(waiting);
            return self.pass(io);
        }
        fifo.push_back((due, io));
        drop(waiting);
        self.arm();
    }

    fn revoke(&self, scope: Scope) {
        let mut revoked = Vec::new();
        for fifo in self.waiting.borrow_mut().both() {
            if fifo.iter().any(|(_, io)| scope.covers(io)) {
                let (gone, rest): (Fifo, Fifo) = fifo.drain(..).partition(|(_, io)| scope.covers(io));
                *fifo = rest;
                revoked.extend(gone);
            }
        }
        for (_, io) in revoked {
            if let Some((class, bytes)) = cost(&io, self.block_size) {
                self.buckets.give_back(class, bytes);
            }
            io.complete(Err(IoError::Aborted));
        }
        // A timer keeps its channel, and that all below: one with nothing to do would hold a file for a moment more.
        if self.waiting.borrow().first().is_none()
            && let Some((_, timer)) = self.timer.take()
        {
            self.shard.cancel_timer(timer);
        }
        self.below.revoke(scope);
    }
}

impl Issuer for QosChannel {
    fn resume(self: Rc<Self>, io: Io, _cookie: u64, result: IoResult) {
        io.complete(result);
    }
}

impl OnTimer for QosChannel {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.timer.set(None);
        self.replan();
        let now = self.shard.now();
        for class in [Class::Read, Class::Write] {
            loop {
                let due = self.waiting.borrow_mut().take_due(class, now);
                let Some(io) = due else { break };
                self.clone().pass(io);
            }
        }
        self.arm();
    }
}

impl QosChannel {
    fn pass(self: Rc<Self>, io: Io) {
        let below = self.below.clone();
        io.pass(&below, self, 0);
    }

    /// Sets the timer to the first time at which something may pass.
    fn arm(self: &Rc<Self>) {
        let Some(due) = self.waiting.borrow().first() else { return };
        let now = self.shard.now();
        let due = due.min(now + LOOK);
        match self.timer.get() {
            Some((at, _)) if at <= due => return,
            Some((_, id)) => self.shard.cancel_timer(id),
            None => (),
        }
        let delay = Duration::from_nanos(due.saturating_sub(now));
        self.timer.set(Some((due, self.shard.timer(delay, self.clone(), 0))));
    }

    /// Gives the waiting I/O new times when the maxima have changed.
    fn replan(&self) {
        let generation = self.buckets.generation();
        if self.generation.replace(generation) == generation {
            return;
        }
        let now = self.shard.now();
        for fifo in self.waiting.borrow_mut().both() {
            for (due, io) in fifo {
                if let Some((class, bytes)) = cost(io, self.block_size) {
                    *due = self.buckets.take(class, bytes, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
