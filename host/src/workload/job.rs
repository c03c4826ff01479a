//! What a load asks for.

use std::str::FromStr;
use std::time::Duration;

/// Order and direction of the I/O, by fio's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    /// At random offsets, or one after the other.
    pub random: bool,
    /// Percentage of reads.
    pub reads: u8,
    /// Nothing but Deallocate, in place of reads and writes.
    pub trims: bool,
}

impl Pattern {
    /// From fio's `rw=`: read, write, randread, randwrite, rw, randrw, trim, randtrim; `mix` is the percentage of reads in
    /// rw and randrw.
    ///
    /// # Errors
    /// A sentence with the names that there are.
    pub fn parse(name: &str, mix: u8) -> Result<Self, String> {
        let trims = matches!(name, "trim" | "randtrim");
        let (random, reads) = match name {
            "read" => (false, 100),
            "write" => (false, 0),
            "rw" | "readwrite" => (false, mix),
            "randread" => (true, 100),
            "randwrite" => (true, 0),
            "randrw" => (true, mix),
            "trim" => (false, 0),
            "randtrim" => (true, 0),
            _ => {
                return Err(format!(
                    "`{name}` is no pattern: read, write, rw, randread, randwrite, randrw, trim and randtrim are"
                ));
            }
        };
        Ok(Pattern { random, reads: reads.min(100), trims })
    }
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// For so long.
    Time(Duration),
    /// So many commands in all.
    Commands(u64),
    /// The whole range once, in order (sequential patterns).
    Once,
}

/// A load.
#[derive(Clone, Debug)]
pub struct Job {
    /// Order and direction.
    pub pattern: Pattern,
    /// Bytes of each I/O: a multiple of the block size.
    pub io_size: usize,
    /// Where in the namespace the bytes that are used begin: a multiple of the block size.
    pub offset: u64,
    /// How many bytes of the namespace are used; `None` for all from there on.
    pub range: Option<u64>,
    /// How much.
    pub amount: Amount,
    /// Commands in flight on each queue; at most the queue's depth.
    pub depth: u16,
    /// Seed of everything random.
    pub seed: u64,
    /// Random places come each once before any comes again.
    pub each_once: bool,
    /// Commands a second, at most.
    pub rate: Option<u64>,
    /// At first so long goes by of which the report knows nothing; [`Amount::Time`] begins after it.
    pub ramp: Duration,
}

impl Default for Job {
    /// 4 KiB random reads for five seconds, one at a time.
    fn default() -> Self {
        Job {
            pattern: Pattern { random: true, reads: 100, trims: false },
            io_size: 4096,
            offset: 0,
            range: None,
            amount: Amount::Time(Duration::from_secs(5)),
            depth: 1,
            seed: 1,
            each_once: false,
            rate: None,
            ramp: Duration::ZERO,
        }
    }
}

/// A size such as `4096`, `4k`, `1m`, `2g`, in powers of 1024.
///
/// # Errors
/// A sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches("ib").trim_end_matches(['k', 'm', 'g', 't']);
    let shift = match lower[digits.len()..].chars().next() {
        Some('k') => 10,
        Some('m') => 20,
        Some('g') => 30,
        Some('t') => 40,
        _ => 0,
    };
    u64::from_str(digits)
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("`{text}` is no size: such as 4096, 4k or 1m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("512"), Ok(512));
        assert!(
            parse_size("").is_err()
                && parse_size("x").is_err()
                && parse_size("99999999999999999999").is_err()
        );
        assert!(parse_size("99999999999t").is_err());
    }

    #[test]
    fn patterns() {
        assert_eq!(Pattern::parse("randrw", 70), Ok(Pattern { random: true, reads: 70, trims: false }));
        assert_eq!(Pattern::parse("write", 70), Ok(Pattern::default()));
        assert_eq!(Pattern::parse("trim", 70), Ok(Pattern { trims: true, ..Pattern::default() }));
        assert!(Pattern::parse("trimwrite", 0).is_err());
    }
}
