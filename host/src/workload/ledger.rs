//! What every block must hold: each write stamps its blocks, each read is held against what was written.
//!
//! A block's bytes follow from the seed, its address and how often it was written, so that a lost, torn, misplaced or
//! stale block is told from the right one. A write that was not acknowledged may or may not have happened: then either
//! version is right, until the next acknowledged write.

use std::collections::HashMap;

use engine::mem::Sgl;

use super::Random;

/// Expected contents of the first blocks of a namespace.
#[derive(Clone, Debug)]
pub struct Ledger {
    seed: u64,
    block_size: usize,
    /// Of each block, how often it was written; 0 for never: then anything is right.
    versions: Vec<u32>,
    /// Writes whose end is not known: the version they would have made.
    unsure: HashMap<u64, Vec<u32>>,
    busy: Vec<bool>,
    scratch: Vec<u8>,
}

/// A block that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {lba} does not hold what was written to it: expected version {expected}, {found}")]
pub struct Mismatch {
    /// Which block.
    pub lba: u64,
    /// Its version.
    pub expected: u32,
    /// What is there instead.
    pub found: String,
}

fn stamp(seed: u64, lba: u64, version: u32, bytes: &mut [u8]) {
    let mut random = Random::new(seed ^ lba.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ u64::from(version) << 40);
    let (head, body) = bytes.split_at_mut(16);
    head[..8].copy_from_slice(&lba.to_le_bytes());
    head[8..12].copy_from_slice(&version.to_le_bytes());
    head[12..].copy_from_slice(b"ISTH");
    for word in body.chunks_exact_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes());
    }
}

impl Ledger {
    /// For `blocks` blocks of `block_size` bytes, none of which was written yet.
    pub fn new(seed: u64, blocks: u64, block_size: u32) -> Self {
        let n = blocks as usize;
        let scratch = vec![0; 2 * block_size as usize];
        let busy = vec![false; n];
        Ledger {
            seed,
            block_size: block_size as usize,
            versions: vec![0; n],
            unsure: HashMap::new(),
            busy,
            scratch,
        }
    }

    fn range(lba: u64, blocks: u32) -> std::ops::Range<usize> {
        lba as usize..lba as usize + blocks as usize
    }

    /// Takes blocks for one command; `false` if a command in flight has one of them.
    pub fn take(&mut self, lba: u64, blocks: u32) -> bool {
        let Some(range) = self.busy.get_mut(Self::range(lba, blocks)) else { return false };
        let free = range.iter().all(|busy| !busy);
        if free {
            range.fill(true);
        }
        free
    }

    /// Gives blocks back.
    pub fn give(&mut self, lba: u64, blocks: u32) {
        self.busy[Self::range(lba, blocks)].fill(false);
    }

    /// Fills `data` with the next version of these blocks.
    pub fn fill(&mut self, lba: u64, blocks: u32, data: &Sgl) {
        for i in 0..u64::from(blocks) {
            let block = &mut self.scratch[..self.block_size];
            let next = next_version(&self.versions, &self.unsure, lba + i);
            stamp(self.seed, lba + i, next, block);
            data.copy_in(i as usize * self.block_size, block);
        }
    }

    /// The write that [`Ledger::fill`] prepared ended: acknowledged, or nobody knows.
    pub fn written(&mut self, lba: u64, blocks: u32, acknowledged: bool) {
        for lba in lba..lba + u64::from(blocks) {
            let next = next_version(&self.versions, &self.unsure, lba);
            if acknowledged {
                self.versions[lba as usize] = next;
                self.unsure.remove(&lba);
            } else {
                self.unsure.entry(lba).or_default().push(next);
            }
        }
    }

    /// Holds what was read against what must be there. Bytes that could be checked.
    ///
    /// # Errors
    /// The first block that is wrong.
    pub fn check(&mut self, lba: u64, blocks: u32, data: &Sgl) -> Result<usize, Mismatch> {
        let mut checked = 0;
        for i in 0..u64::from(blocks) {
            let lba = lba + i;
            let version = self.versions[lba as usize];
            if version == 0 {
                continue;
            }
            let (expected, found) = self.scratch.split_at_mut(self.block_size);
            data.copy_out(i as usize * self.block_size, found);
            let maybe = self.unsure.get(&lba).map(Vec::as_slice).unwrap_or_default();
            let right = std::iter::once(&version).chain(maybe).any(|&v| {
                stamp(self.seed, lba, v, expected);
                expected == found
            });
            if !right {
                return Err(Mismatch { lba, expected: version, found: describe(found) });
            }
            checked += self.block_size;
        }
        Ok(checked)
    }
}

fn next_version(versions: &[u32], unsure: &HashMap<u64, Vec<u32>>, lba: u64) -> u32 {
    let last = unsure.get(&lba).and_then(|v| v.iter().max()).copied().unwrap_or(0);
    versions[lba as usize].max(last) + 1
}

fn describe(found: &[u8]) -> String {
    if found.iter().all(|&b| b == 0) {
        return "zeroes are there".into();
    }
    if &found[12..16] != b"ISTH" {
        return "no stamp is there".into();
    }
    let lba = found.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    format!("the stamp of block {lba} version {version} is there")
}

#[cfg(test)]
mod tests {
    use engine::mem::Buf;

    use super::*;

    #[test]
    fn wrong_blocks_are_told_from_right_ones() {
        let mut ledger = Ledger::new(1, 100, 512);
        let data = Buf::zeroed(1024).into_sgl(1024);
        assert_eq!(ledger.check(10, 2, &data), Ok(0), "never written: anything is right");
        ledger.fill(10, 2, &data);
        ledger.written(10, 2, true);
        assert_eq!(ledger.check(10, 2, &data), Ok(1024));
        data.copy_in(1000, &[data_byte(&data, 1000) ^ 1]);
        assert_eq!(ledger.check(10, 2, &data).unwrap_err().lba, 11);
        // The old version where a newer one was acknowledged.
        let old = Buf::zeroed(1024).into_sgl(1024);
        ledger.fill(10, 2, &old);
        ledger.written(10, 2, true);
        ledger.fill(10, 2, &data);
        ledger.written(10, 2, true);
        assert_eq!(ledger.check(10, 2, &data), Ok(1024));
        assert!(ledger.check(10, 2, &old).unwrap_err().found.contains("version 2"));
    }

    #[test]
    fn a_write_that_nobody_acknowledged_may_have_happened() {
        let mut ledger = Ledger::new(1, 4, 512);
        let (first, second) = (Buf::zeroed(512).into_sgl(512), Buf::zeroed(512).into_sgl(512));
        ledger.fill(0, 1, &first);
        ledger.written(0, 1, true);
        ledger.fill(0, 1, &second);
        ledger.written(0, 1, false);
        assert!(ledger.check(0, 1, &first).is_ok() && ledger.check(0, 1, &second).is_ok());
        let third = Buf::zeroed(512).into_sgl(512);
        ledger.fill(0, 1, &third);
        ledger.written(0, 1, true);
        assert!(ledger.check(0, 1, &second).is_err(), "a ghost over a newer write");
        assert!(ledger.check(0, 1, &third).is_ok());
    }

    #[test]
    fn blocks_in_flight_are_not_taken_twice() {
        let mut ledger = Ledger::new(1, 8, 512);
        assert!(ledger.take(2, 3));
        assert!(!ledger.take(4, 1) && !ledger.take(7, 2), "taken, and beyond the end");
        ledger.give(2, 3);
        assert!(ledger.take(4, 1));
    }

    fn data_byte(data: &Sgl, at: usize) -> u8 {
        let mut byte = [0];
        data.copy_out(at, &mut byte);
        byte[0]
    }
}
