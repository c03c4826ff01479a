//! Counters of a volume, kept per shard so that the data path shares nothing, and read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
}

const KINDS: usize = 5;

impl Kind {
    fn of(op: Op) -> Self {
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
        let kind = Kind::of(request.op);
        let c = &self.kinds[kind as usize];
        if result.is_err() {
            return add(&c.errors, 1);
        }
        add(&c.ops, 1);
        add(&c.bytes, u64::from(request.blocks) * u64::from(block_size));
        add(&c.latency_ns, ns);
        if let Some(h) = self.histograms.get(kind as usize) {
            add(&h[bucket(ns)], 1);
        }
    }
}

/// Counters of a volume over all its channels, past and present.
#[derive(Debug, Default)]
pub struct VolumeStats(Mutex<Vec<(usize, Arc<ChannelStats>)>>);

impl VolumeStats {
    /// The counters for `shard`: the same for every channel that the volume ever has there.
    pub fn open(&self, shard: usize) -> Arc<ChannelStats> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, stats)) = all.iter().find(|(s, _)| *s == shard) {
            return stats.clone();
        }
        let stats = Arc::<ChannelStats>::default();
        all.push((shard, stats.clone()));
        stats
    }

    /// A sum over all shards, without visiting any.
    pub fn snapshot(&self) -> Snapshot {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Snapshot::default();
        for (_, stats) in all.iter() {
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
        sum
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
}
