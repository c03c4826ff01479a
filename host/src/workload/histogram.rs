//! Latencies, counted with a relative error under 2 %.

use std::time::Duration;

/// Buckets to an octave.
const STEPS: usize = 64;
const OCTAVES: usize = 40;

/// A histogram of latencies from 1 ns to 18 minutes.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u128,
    /// Of the squares, for the deviation.
    squares: f64,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: vec![0; STEPS * (OCTAVES - 5)],
            total: 0,
            sum: 0,
            squares: 0.0,
            min: u64::MAX,
            max: 0,
        }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let octave = ns.ilog2() as usize;
    let step = (ns >> (octave - 6)) as usize & (STEPS - 1);
    ((octave - 5) * STEPS + step).min(STEPS * (OCTAVES - 5) - 1)
}

fn value(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (octave, step) = (bucket / STEPS + 5, bucket % STEPS);
    ((STEPS + step) as u64) << (octave - 6)
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let ns = latency.as_nanos() as u64;
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.sum += u128::from(ns);
        self.squares += ns as f64 * ns as f64;
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Histogram) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.squares += other.squares;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The mean; zero of none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos((self.sum / u128::from(self.total.max(1))) as u64)
    }

    /// The standard deviation, in nanoseconds; zero of none.
    pub fn deviation(&self) -> f64 {
        let n = self.total.max(1) as f64;
        let mean = self.sum as f64 / n;
        (self.squares / n - mean * mean).max(0.0).sqrt()
    }

    /// The smallest; zero of none.
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.total == 0 { 0 } else { self.min })
    }

    /// How many were below `bound`.
    pub fn below(&self, bound: Duration) -> u64 {
        let bound = bound.as_nanos() as u64;
        self.counts.iter().enumerate().take_while(|(i, _)| value(*i) < bound).map(|(_, n)| n).sum()
    }

    /// The largest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The latency that `share` (0 to 1) of all do not exceed; zero of none.
    pub fn percentile(&self, share: f64) -> Duration {
        let rank = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(value(i).min(self.max));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_percent() {
        let mut h = Histogram::default();
        for us in 1..=10_000 {
            h.record(Duration::from_micros(us));
        }
        for (share, us) in [(0.5, 5000.0), (0.99, 9900.0), (0.999, 9990.0)] {
            let got = h.percentile(share).as_secs_f64() * 1e6;
            assert!((got / us - 1.0).abs() < 0.02, "{share}: {got} µs");
        }
        assert_eq!((h.min(), h.max()), (Duration::from_micros(1), Duration::from_micros(10_000)));
        let below = h.below(Duration::from_micros(2500)) as f64;
        assert!((below / 2500.0 - 1.0).abs() < 0.02, "{below}");
        // Of equally spread numbers it is their range by the root of twelve.
        assert!((h.deviation() / (10e6 / 12f64.sqrt()) - 1.0).abs() < 0.01, "{}", h.deviation());
        assert_eq!(Histogram::default().percentile(0.5), Duration::ZERO);
        h.record(Duration::from_secs(100_000));
    }
}
