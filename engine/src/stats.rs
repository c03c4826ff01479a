//! Counters of a volume, kept per shard so that the data path shares nothing, and read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::io::{IoResult, Op, Request};

/// Kinds of operations that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Unmaps and write zeroes.
    Unmap,
    /// Flushes.
    Flush,
    /// Compares.
    Compare,
    /// Reads whose data goes nowhere.
    Verify,
}

const KINDS: usize = 6;

impl Kind {
    /// How an operation of a volume counts.
    pub fn of(op: Op) -> Self {
        match op {
            Op::Read => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Unmap | Op::WriteZeroes { .. } => Kind::Unmap,
            Op::Flush => Kind::Flush,
            Op::Compare => Kind::Compare,
        }
    }
}

/// Buckets of a latency histogram: four to an octave, from 1 µs to 2^31 µs.
pub const BUCKETS: usize = 4 * 32;

/// The bucket of a latency in nanoseconds.
fn bucket(ns: u64) -> usize {
    let us = ns / 1000;
    if us < 4 {
        return us as usize;
    }
    let octave = us.ilog2() as usize;
    let quarter = (us >> (octave - 2)) as usize & 3;
    (octave * 4 - 4 + quarter).min(BUCKETS - 1)
}

/// The largest latency, in microseconds, that counts in a bucket.
pub fn bucket_limit_us(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let (octave, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    ((5 + quarter) << (octave - 2)) - 1
}

#[derive(Debug, Default)]
struct Counters {
    ops: AtomicU64,
    bytes: AtomicU64,
    latency_ns: AtomicU64,
    errors: AtomicU64,
}

/// Counters of one channel. One shard writes them; anyone reads them.
#[derive(Debug)]
pub struct ChannelStats {
    kinds: [Counters; KINDS],
    histograms: [Box<[AtomicU64]>; 2],
}

/// Adds without a locked instruction: there is one writer.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Default for ChannelStats {
    fn default() -> Self {
        let empty = || (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        ChannelStats { kinds: Default::default(), histograms: [empty(), empty()] }
    }
}

impl ChannelStats {
    /// Counts an operation that took `ns` nanoseconds. Only one thread calls this.
    pub fn record(&self, request: &Request, block_size: u32, ns: u64, result: &IoResult) {
        let bytes = u64::from(request.blocks) * u64::from(block_size);
        self.count(Kind::of(request.op), bytes, ns, result.is_ok());
    }

    /// The same of something that is more, or less, than one operation of a volume.
    pub fn count(&self, kind: Kind, bytes: u64, ns: u64, succeeded: bool) {
        let c = &self.kinds[kind as usize];
        if !succeeded {
            return add(&c.errors, 1);
        }
        add(&c.ops, 1);
        add(&c.bytes, bytes);
        add(&c.latency_ns, ns);
        if let Some(h) = self.histograms.get(kind as usize) {
            add(&h[bucket(ns)], 1);
        }
    }
}

/// The counters of one thing, by shard.
#[derive(Debug, Default)]
struct Channels(Mutex<Vec<(usize, Arc<ChannelStats>)>>);

impl Channels {
    fn add_to(&self, sum: &mut Snapshot) {
        for (_, stats) in lock(&self.0).iter() {
            for (to, from) in sum.kinds.iter_mut().zip(&stats.kinds) {
                to.ops += from.ops.load(Ordering::Relaxed);
                to.bytes += from.bytes.load(Ordering::Relaxed);
                to.latency_ns += from.latency_ns.load(Ordering::Relaxed);
                to.errors += from.errors.load(Ordering::Relaxed);
            }
            for (to, from) in sum.histograms.iter_mut().zip(&stats.histograms) {
                for (to, from) in to.iter_mut().zip(from.iter()) {
                    *to += from.load(Ordering::Relaxed);
                }
            }
        }
    }
}

/// The parts of a sum: those that are there, and what those that are gone have counted.
#[derive(Debug, Default)]
struct Parts {
    there: Vec<Arc<Channels>>,
    gone: Option<Box<Snapshot>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counters of a volume over all its channels, past and present, or of what hosts asked of a controller.
#[derive(Debug, Default)]
pub struct VolumeStats {
    channels: Arc<Channels>,
    parts: Mutex<Parts>,
    whole: Option<Arc<VolumeStats>>,
}

impl VolumeStats {
    /// Counters that `whole` counts too, and goes on to count when they are gone.
    pub fn part_of(whole: &Arc<VolumeStats>) -> Arc<VolumeStats> {
        let channels = Arc::<Channels>::default();
        lock(&whole.parts).there.push(channels.clone());
        Arc::new(VolumeStats { channels, parts: Mutex::default(), whole: Some(whole.clone()) })
    }

    /// The counters for `shard`: the same for every channel that the volume ever has there.
    pub fn open(&self, shard: usize) -> Arc<ChannelStats> {
        let mut all = lock(&self.channels.0);
        if let Some((_, stats)) = all.iter().find(|(s, _)| *s == shard) {
            return stats.clone();
        }
        let stats = Arc::<ChannelStats>::default();
        all.push((shard, stats.clone()));
        stats
    }

    /// A sum over all shards and parts, without visiting any shard. It never goes backwards.
    pub fn snapshot(&self) -> Snapshot {
        let parts = lock(&self.parts);
        let mut sum = parts.gone.as_deref().cloned().unwrap_or_default();
        self.channels.add_to(&mut sum);
        parts.there.iter().for_each(|part| part.add_to(&mut sum));
        sum
    }
}

impl Drop for VolumeStats {
    fn drop(&mut self) {
        let Some(whole) = &self.whole else { return };
        let mut parts = lock(&whole.parts);
        parts.there.retain(|part| !Arc::ptr_eq(part, &self.channels));
        self.channels.add_to(parts.gone.get_or_insert_default());
    }
}

/// Sums of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Operations that succeeded.
    pub ops: u64,
    /// Bytes they covered.
    pub bytes: u64,
    /// Nanoseconds from submission to completion, summed over them.
    pub latency_ns: u64,
    /// Operations that failed.
    pub errors: u64,
}

/// Counters of a volume at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    kinds: [Sums; KINDS],
    histograms: [Vec<u64>; 2],
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { kinds: Default::default(), histograms: [vec![0; BUCKETS], vec![0; BUCKETS]] }
    }
}

impl Snapshot {
    /// The sums of one kind.
    pub fn of(&self, kind: Kind) -> Sums {
        self.kinds[kind as usize]
    }

    /// Latencies of reads: operations in each bucket (see [`bucket_limit_us`]).
    pub fn read_histogram(&self) -> &[u64] {
        &self.histograms[0]
    }

    /// Latencies of writes.
    pub fn write_histogram(&self) -> &[u64] {
        &self.histograms[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_their_limits_true() {
        for us in (0..5000).chain([1 << 20, (1 << 31) - 1]) {
            let b = bucket(us * 1000);
            assert!(us <= bucket_limit_us(b), "{us} in {b}");
            assert!(b == 0 || us > bucket_limit_us(b - 1), "{us} in {b}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_recorded_is_summed_over_shards() {
        let v = VolumeStats::default();
        let read = Request { op: Op::Read, blocks: 8, ..Request::default() };
        v.open(0).record(&read, 512, 5000, &Ok(()));
        v.open(1).record(&read, 512, 7000, &Ok(()));
        v.open(1).record(&read, 512, 7000, &Err(crate::io::IoError::ReadFault));
        let s = v.snapshot();
        assert_eq!(s.of(Kind::Read), Sums { ops: 2, bytes: 8192, latency_ns: 12000, errors: 1 });
        assert_eq!(s.read_histogram().iter().sum::<u64>(), 2);
        assert_eq!(s.of(Kind::Write), Sums::default());
    }

    #[test]
    fn a_part_that_is_gone_still_counts() {
        let whole = Arc::new(VolumeStats::default());
        let [one, two] = [(); 2].map(|()| VolumeStats::part_of(&whole));
        let ops = |of: &VolumeStats| of.snapshot().of(Kind::Verify).ops;
        one.open(0).count(Kind::Verify, 512, 1000, true);
        two.open(0).count(Kind::Verify, 512, 1000, true);
        two.open(1).count(Kind::Verify, 512, 1000, true);
        assert_eq!([ops(&one), ops(&two), ops(&whole)], [1, 2, 3]);
        drop(two);
        assert_eq!([ops(&one), ops(&whole)], [1, 3]);
        drop(one);
        assert_eq!(ops(&whole), 3);
        assert_eq!(
            whole.snapshot().of(Kind::Verify),
            Sums { ops: 3, bytes: 1536, latency_ns: 3000, errors: 0 }
        );
        assert!(lock(&whole.parts).there.is_empty());
    }
}
