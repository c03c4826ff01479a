//! A small generator of random numbers: fast, and repeatable from its seed.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`; 0 for 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // The high half of a product: uniform enough for offsets, and no division.
        ((u128::from(self.number()) * u128::from(n)) >> 64) as u64
    }
}

/// The numbers below `n` in an order that looks random: each once, then each once again.
#[derive(Clone, Debug)]
pub struct Shuffle {
    n: u64,
    bits: u32,
    key: u64,
    next: u64,
}

impl Shuffle {
    /// Of `n` numbers, at least one; equal seeds give equal orders.
    pub fn new(n: u64, seed: u64) -> Self {
        let bits = (u64::BITS - n.max(2).saturating_sub(1).leading_zeros()).max(2);
        Shuffle { n: n.max(1), bits, key: Random::new(seed).number(), next: 0 }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        // Each step maps the numbers of so many bits onto themselves, one to one; what is not below n is passed over.
        let mask = u64::MAX >> (u64::BITS - self.bits);
        loop {
            let mut x = self.next.wrapping_add(self.key) & mask;
            self.next = self.next.wrapping_add(1) & mask;
            for odd in [0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
                x ^= x >> (self.bits / 2);
                x = x.wrapping_mul(odd) & mask;
            }
            x ^= x >> (self.bits / 2);
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_has_every_number_once_and_in_no_order() {
        for n in [1, 2, 3, 1000, 4096, 5000] {
            let mut shuffle = Shuffle::new(n, 7);
            let once: Vec<u64> = (0..n).map(|_| shuffle.number()).collect();
            let mut sorted = once.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let again: Vec<u64> = (0..n).map(|_| shuffle.number()).collect();
            assert_eq!(once, again);
            let neighbours = once.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() as u64;
            assert!(n < 1000 || neighbours < n / 20, "{neighbours} of {n} in order");
        }
    }
}
