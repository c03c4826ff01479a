//! The engine for every processor, on the `aes` crate: batches of blocks, so that its parallel code is used.

use aes::cipher::array::Array;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, Key, KeyInit};
use aes::{Aes128, Aes128Enc, Aes256, Aes256Enc};

use crate::{BLOCK, Direction, Run, shared};

/// Blocks that go through the cipher together: the most that the `aes` crate takes in one step.
const BATCH: usize = 64;

/// The expanded keys; the `aes` crate wipes them when they are dropped.
pub(crate) enum Portable {
    Aes128 { data: Aes128, tweak: Aes128Enc },
    Aes256 { data: Aes256, tweak: Aes256Enc },
}

impl Portable {
    /// Expands two keys of equal length, 16 or 32 bytes (anything longer is cut, anything else is refused by
    /// [`Xts::new`](crate::Xts::new)).
    pub(crate) fn new(data: &[u8], tweak: &[u8]) -> Self {
        fn key<C: KeyInit>(bytes: &[u8]) -> C {
            let mut key = Key::<C>::default();
            for (to, from) in key.iter_mut().zip(bytes) {
                *to = *from;
            }
            let cipher = C::new(&key);
            zeroize::Zeroize::zeroize(key.as_mut_slice());
            cipher
        }
        if data.len() < 32 {
            Self::Aes128 { data: key(data), tweak: key(tweak) }
        } else {
            Self::Aes256 { data: key(data), tweak: key(tweak) }
        }
    }

    /// # Safety
    ///
    /// As [`Xts::run`](crate::Xts), and the run is made of whole data units of whole blocks.
    pub(crate) unsafe fn run(&self, run: Run) {
        match self {
            // SAFETY: the caller's promise.
            Self::Aes128 { data, tweak } => unsafe { transform(data, tweak, run) },
            // SAFETY: the caller's promise.
            Self::Aes256 { data, tweak } => unsafe { transform(data, tweak, run) },
        }
    }
}

/// # Safety
///
/// As [`Portable::run`].
unsafe fn transform<C, T>(cipher: &C, tweak_cipher: &T, run: Run)
where
    C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>
        + BlockCipherDecrypt<BlockSize = aes::cipher::consts::U16>,
    T: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>,
{
    let mut tweaks = Tweaks::new(tweak_cipher, run.unit, run.first);
    let mut masks = [0u128; BATCH];
    let mut blocks = [[0u8; BLOCK]; BATCH];
    let mut at = 0;
    while at < run.len {
        let bytes = (run.len - at).min(BATCH * BLOCK);
        let blocks = &mut blocks[..bytes / BLOCK];
        // SAFETY: `at + bytes` is within the run.
        unsafe { shared::load(run.src.add(at), blocks.as_flattened_mut()) };
        for (block, mask) in blocks.iter_mut().zip(&mut masks) {
            *mask = tweaks.next();
            whiten(block, *mask);
        }
        match run.direction {
            Direction::Encrypt => cipher.encrypt_blocks(Array::cast_slice_from_core_mut(blocks)),
            Direction::Decrypt => cipher.decrypt_blocks(Array::cast_slice_from_core_mut(blocks)),
        }
        for (block, mask) in blocks.iter_mut().zip(&masks) {
            whiten(block, *mask);
        }
        // SAFETY: `at + bytes` is within the run.
        unsafe { shared::store(blocks.as_flattened(), run.dst.add(at)) };
        at += bytes;
    }
}

fn whiten(block: &mut [u8; BLOCK], mask: u128) {
    *block = (u128::from_le_bytes(*block) ^ mask).to_le_bytes();
}

/// The tweaks of a run's blocks, one after another: E(K2, LBA) · αʲ for block j of each data unit.
struct Tweaks<'a, C> {
    cipher: &'a C,
    blocks_per_unit: usize,
    lba: u64,
    left: usize,
    tweak: u128,
}

impl<'a, C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>> Tweaks<'a, C> {
    fn new(cipher: &'a C, unit: usize, first: u64) -> Self {
        Self { cipher, blocks_per_unit: unit / BLOCK, lba: first, left: 0, tweak: 0 }
    }

    fn next(&mut self) -> u128 {
        if self.left == 0 {
            let mut block = Array(u128::from(self.lba).to_le_bytes());
            self.cipher.encrypt_block(&mut block);
            self.tweak = u128::from_le_bytes(block.0);
            self.lba = self.lba.wrapping_add(1);
            self.left = self.blocks_per_unit;
        } else {
            self.tweak = double(self.tweak);
        }
        self.left -= 1;
        self.tweak
    }
}

/// Multiplies by α in GF(2¹²⁸) modulo x¹²⁸ + x⁷ + x² + x + 1 (IEEE Std 1619, 5.2).
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ (0x87 * (tweak >> 127))
}
