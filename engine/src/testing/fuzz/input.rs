//! What a fuzzer's inputs are made of, and how new ones are made of old ones.

use std::path::Path;
use std::{fs, io};

use crate::conformance::rng::Rng;

/// Bytes of an action. All have the same length, so that inputs can be cut and joined between them.
pub const RECORD: usize = 16;
/// Actions of an input at most.
const LONGEST: usize = 20;
/// Actions of every second input at most.
const SHORT: usize = 6;

pub(super) type Raw = [u8; RECORD];

/// One action, read field by field. After its end there are zeroes.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    raw: Raw,
    at: usize,
}

impl Record {
    pub(super) fn new(raw: Raw) -> Self {
        Record { raw, at: 0 }
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let byte = self.raw.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    /// Two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number below `n`, from one byte; 0 if there is none.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    /// One of these, by one byte.
    pub fn pick<T: Copy + Default>(&mut self, from: &[T]) -> T {
        from.get(self.below(from.len())).copied().unwrap_or_default()
    }

    /// True once in `n` times: for zero it is false.
    pub fn rarely(&mut self, n: u8) -> bool {
        let byte = self.byte();
        n > 0 && byte % n == n - 1
    }

    /// A number at which things break: small, near a power of two, near the end, or anything. From three bytes.
    pub fn odd(&mut self) -> u64 {
        let (kind, n) = (self.byte(), u64::from(self.word()));
        match kind % 8 {
            0 => n & 0xf,
            1 => n,
            2 => (1u64 << (n & 63)).wrapping_add(n >> 6 & 3).wrapping_sub(1),
            3 => n << 12,
            4 => u64::MAX - (n & 0xff),
            5 => u64::from(u32::MAX) - (n & 0xff),
            6 => n << 9,
            _ => n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// The bytes that are left.
    pub fn rest(&self) -> &[u8] {
        self.raw.get(self.at..).unwrap_or_default()
    }
}

/// A sequence of actions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input(pub(super) Vec<Raw>);

impl Input {
    /// Its actions, one after the other.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.0.iter().map(|raw| Record::new(*raw))
    }

    /// An action on each line, in hexadecimal; what follows `#` is for people.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let raw = |line: &str| {
            let mut raw = Raw::default();
            for (to, at) in raw.iter_mut().zip((0..).step_by(2)) {
                *to = u8::from_str_radix(line.get(at..at + 2)?, 16).ok()?;
            }
            (line.len() == 2 * RECORD).then_some(raw)
        };
        lines.filter(|line| !line.is_empty()).map(raw).collect::<Option<_>>().map(Input)
    }

    pub(super) fn text(&self) -> String {
        let hex = |raw: &Raw| raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        self.0.iter().map(hex).collect()
    }

    /// As a file holds it.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(path)?).ok_or_else(|| {
            io::Error::other(format!("{}: not lines of 32 hexadecimal digits", path.display()))
        })
    }

    /// Anything.
    pub(super) fn random(rng: &mut Rng) -> Self {
        Input((0..=rng.index(10)).map(|_| record(rng)).collect())
    }

    /// One of the pool, changed in a few places.
    pub(super) fn mutated(rng: &mut Rng, pool: &[Input]) -> Self {
        let none = Input::default();
        let mut one = pool.get(rng.index(pool.len())).unwrap_or(&none).clone();
        let other = pool.get(rng.index(pool.len())).unwrap_or(&none);
        for _ in 0..=rng.index(5) {
            one.mutate(rng, other);
        }
        // What is short costs little, and a part may do what the whole does.
        let most = if rng.one_in(2) { SHORT } else { LONGEST };
        if one.0.len() > most {
            let from = rng.index(one.0.len() - most + 1);
            one.0.drain(..from);
            one.0.truncate(most);
        }
        one
    }

    fn mutate(&mut self, rng: &mut Rng, other: &Input) {
        let all = &mut self.0;
        let (i, j) = (rng.index(all.len()), rng.index(all.len()));
        match rng.below(12) {
            _ if all.is_empty() => all.push(record(rng)),
            0 => all.insert(i, record(rng)),
            1 => drop(all.remove(i)),
            2 => all.insert(i, all[j]),
            3 => all.swap(i, j),
            4 => {
                all.truncate(i + 1);
                all.extend(other.0.get(rng.index(other.0.len())..).unwrap_or_default());
            }
            5 => {
                if let Some(theirs) = other.0.get(rng.index(other.0.len())) {
                    all.insert(i, *theirs);
                }
            }
            6 => all[i] = record(rng),
            _ => {
                let byte = &mut all[i][rng.index(RECORD)];
                *byte = match rng.below(4) {
                    0 => *byte ^ 1 << rng.below(8),
                    1 => byte.wrapping_add(rng.pick(&[1, 0xff])),
                    2 => rng.pick(&[0, 1, 2, 4, 0x7f, 0x80, 0xff]),
                    _ => rng.next() as u8,
                };
            }
        }
    }
}

/// A quarter of the bytes is zero: what an action leaves out.
fn record(rng: &mut Rng) -> Raw {
    std::array::from_fn(|_| if rng.one_in(4) { 0 } else { rng.next() as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_text_and_back() {
        let input = Input::random(&mut Rng::new(1));
        assert_eq!(Input::parse(&format!("# a comment\n\n{}", input.text())), Some(input));
        assert_eq!(Input::parse("0011"), None);
        assert_eq!(Input::parse(&"g".repeat(32)), None);
    }

    #[test]
    fn mutants_are_bounded_and_repeat() {
        let pool: Vec<_> = (0..9).map(|seed| Input::random(&mut Rng::new(seed))).collect();
        let mutants = |seed| {
            let mut rng = Rng::new(seed);
            (0..1000).map(|_| Input::mutated(&mut rng, &pool)).collect::<Vec<_>>()
        };
        let first = mutants(1);
        assert!(first.iter().all(|input| input.0.len() <= LONGEST));
        assert!(first == mutants(1) && first != mutants(2));
    }
}
