//! What a job took.

use std::time::Duration;

use super::Histogram;
use crate::Kind;

/// What a job took.
#[derive(Clone, Default)]
pub struct Report {
    /// From the first submission, or the end of the ramp, to the last completion.
    pub elapsed: Duration,
    /// Time of that in which the load only waited for answers. Next to none: the load itself was the limit.
    pub waited: Duration,
    /// Latencies of reads.
    pub reads: Histogram,
    /// Latencies of writes.
    pub writes: Histogram,
    /// Latencies of Deallocate.
    pub trims: Histogram,
    /// Bytes of each I/O.
    pub io_size: usize,
    /// Bytes that were read back and held against what was written.
    pub verified: u64,
    /// Commands that ended with an error status.
    pub errors: u64,
    /// Commands in flight on a queue when one more had been submitted.
    pub depths: Depths,
    /// Commands in each half second.
    pub samples: Samples,
}

impl Report {
    /// Commands that succeeded.
    pub fn commands(&self) -> u64 {
        self.reads.count() + self.writes.count() + self.trims.count()
    }

    /// Commands a second.
    pub fn iops(&self) -> f64 {
        self.commands() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.iops() * self.io_size as f64
    }

    /// Adds what another took at the same time.
    pub fn merge(&mut self, other: &Report) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.waited = self.waited.min(other.waited);
        self.reads.merge(&other.reads);
        self.writes.merge(&other.writes);
        self.trims.merge(&other.trims);
        self.verified += other.verified;
        self.errors += other.errors;
        self.depths.merge(&other.depths);
        self.samples.merge(&other.samples);
    }
}

/// How many commands were submitted at which depth, by powers of two: 1, 2, 4, 8, 16, 32, 64 and above.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depths(pub [u64; 7]);

impl Depths {
    pub(super) fn count(&mut self, in_flight: usize) {
        self.0[(in_flight.max(1).ilog2() as usize).min(6)] += 1;
    }

    fn merge(&mut self, other: &Depths) {
        self.0.iter_mut().zip(other.0).for_each(|(to, from)| *to += from);
    }
}

/// Commands in each slice of the time: of reads, writes and trims.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<[u64; 3]>);

impl Samples {
    /// The length of a slice.
    pub const SLICE: Duration = Duration::from_millis(500);
    /// Slices that are kept: a day.
    const MOST: usize = 172_800;

    pub(super) fn count(&mut self, kind: Kind, at: Duration) {
        let slice = (at.as_nanos() / Self::SLICE.as_nanos()) as usize;
        let side = match kind {
            Kind::Read => 0,
            Kind::Deallocate => 2,
            _ => 1,
        };
        if slice >= self.0.len() && slice < Self::MOST {
            self.0.resize(slice + 1, [0; 3]);
        }
        if let Some(slice) = self.0.get_mut(slice) {
            slice[side] += 1;
        }
    }

    fn merge(&mut self, other: &Samples) {
        self.0.resize(self.0.len().max(other.0.len()), [0; 3]);
        for (to, from) in self.0.iter_mut().zip(&other.0) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}
