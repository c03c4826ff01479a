//! One maximum, shared by every shard without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Time in steps of 1/16 ns, so that the cost of a small I/O under a high maximum is not rounded away.
const STEPS: u64 = 16;
/// What may pass at once after idleness: the tokens of this time, in steps.
const BURST: u64 = 10_000_000 * STEPS;
/// A token's cost is kept in steps · 2⁻¹⁶.
const FRACTION: u32 = 16;

/// A token bucket, told by the clock: instead of counting tokens it keeps the time at which every token taken so far
/// has been earned. Taking is one atomic addition; whoever takes when that time has not come yet is told when it will
/// be, and owns the tokens already. Takers are therefore served in the order in which they came, on whatever shard,
/// and one that asks for more than there can ever be passes in its turn and leaves the debt to those after it.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Cost of a token; zero for no maximum.
    cost: AtomicU64,
    earned: AtomicU64,
}

impl Bucket {
    /// From now on `rate` tokens each second, zero for no maximum; debts are forgiven.
    pub(super) fn set(&self, rate: u64) {
        let second = u128::from(1_000_000_000 * STEPS) << FRACTION;
        let cost =
            second.checked_div(u128::from(rate)).map_or(0, |c| u64::try_from(c).unwrap_or(u64::MAX).max(1));
        self.cost.store(cost, Relaxed);
        self.earned.store(0, Relaxed);
    }

    /// Takes `tokens` at `now` nanoseconds; the answer is when they are there: at `now` or before, or later.
    pub(super) fn take(&self, tokens: u64, now: u64) -> u64 {
        let cost = self.cost_of(tokens);
        if cost == 0 {
            return now;
        }
        let oldest = (now * STEPS).saturating_sub(BURST);
        let mut earned = self.earned.load(Relaxed);
        loop {
            let start = earned.max(oldest);
            match self.earned.compare_exchange_weak(earned, start.saturating_add(cost), Relaxed, Relaxed) {
                Ok(_) => return start.div_ceil(STEPS),
                Err(other) => earned = other,
            }
        }
    }

    /// Gives back `tokens` that were taken and not used.
    pub(super) fn give_back(&self, tokens: u64) {
        let cost = self.cost_of(tokens);
        if cost > 0 {
            let _ = self.earned.fetch_update(Relaxed, Relaxed, |earned| Some(earned.saturating_sub(cost)));
        }
    }

    fn cost_of(&self, tokens: u64) -> u64 {
        let cost = (u128::from(tokens) * u128::from(self.cost.load(Relaxed))) >> FRACTION;
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn bucket(rate: u64) -> Bucket {
        let bucket = Bucket::default();
        bucket.set(rate);
        bucket
    }

    #[test]
    fn without_a_maximum_everything_passes() {
        let bucket = bucket(0);
        assert!((0..1000).all(|_| bucket.take(u64::MAX, 5) == 5));
    }

    #[test]
    fn the_rate_is_kept_over_time_and_the_burst_is_bounded() {
        for rate in [1, 1000, 333_333, 50_000_000] {
            let bucket = bucket(rate);
            let now = 100 * SECOND;
            let at_once = (0..rate / 50 + 2).take_while(|_| bucket.take(1, now) <= now).count() as u64;
            assert!(at_once.abs_diff(rate / 100) <= 1, "{at_once} of {rate}");
            let last = (0..1000).map(|_| bucket.take(1, now)).last().unwrap() - now;
            let expected = 1000 * SECOND / rate;
            assert!(
                last.abs_diff(expected) <= expected / 100 + SECOND / rate,
                "{last} instead of {expected}"
            );
        }
    }

    #[test]
    fn more_than_a_second_holds_passes_and_leaves_its_debt() {
        let bucket = bucket(1 << 20);
        let now = 100 * SECOND;
        assert!(bucket.take(4 << 20, now) <= now);
        let next = bucket.take(1, now) - now;
        assert!(next.abs_diff(4 * SECOND) <= SECOND / 50, "{next}");
        bucket.give_back(1);
        assert_eq!(bucket.take(1, now) - now, next);
    }

    #[test]
    fn absurd_amounts_wrap_nothing() {
        let bucket = bucket(1);
        bucket.take(u64::MAX, SECOND);
        assert!(bucket.take(u64::MAX, SECOND) > 1000 * SECOND);
        bucket.set(u64::MAX);
        assert!(bucket.take(1, SECOND) <= SECOND);
    }
}
