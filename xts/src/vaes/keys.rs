//! Key expansion, with the processor's instructions.

use std::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Round keys of AES-128 and AES-256 (FIPS 197).
pub(super) const KEYS_128: usize = 11;
pub(super) const KEYS_256: usize = 15;

/// Round keys in the order of use, each the 16 bytes of a block in memory order.
pub(super) type RoundKeys = [u128; KEYS_256];

#[derive(Default, Zeroize, ZeroizeOnDrop)]
pub(super) struct Schedule {
    /// Round keys in use: [`KEYS_128`] or [`KEYS_256`].
    pub keys: usize,
    pub encrypt: RoundKeys,
    pub decrypt: RoundKeys,
    pub tweak: RoundKeys,
}

impl Schedule {
    #[target_feature(enable = "aes")]
    pub fn expand(&mut self, data: &[u8], tweak: &[u8]) {
        self.keys = data.len() / 4 + 7;
        expand_key(data, &mut self.encrypt);
        expand_key(tweak, &mut self.tweak);
        // The equivalent inverse cipher (FIPS 197, 5.3.5): the same keys backwards, the inner ones unmixed.
        let last = self.keys - 1;
        for i in 0..self.keys {
            let key = self.encrypt[last - i];
            self.decrypt[i] = if i == 0 || i == last { key } else { inverse_mix_columns(key) };
        }
    }
}

/// Key expansion (FIPS 197, 5.2) for keys of 16 or 32 bytes. A word is four bytes in memory order.
#[target_feature(enable = "aes")]
fn expand_key(key: &[u8], round_keys: &mut RoundKeys) {
    let nk = key.len() / 4;
    let mut words = [0u32; 4 * KEYS_256];
    for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let mut rcon = 1;
    for i in nk..4 * (nk + 7) {
        let mut word = words[i - 1];
        if i % nk == 0 {
            word = sub_word(word).rotate_right(8) ^ rcon;
            rcon = (rcon << 1) ^ (0x11b * (rcon >> 7));
        } else if nk == 8 && i % nk == 4 {
            word = sub_word(word);
        }
        words[i] = words[i - nk] ^ word;
    }
    for (key, [a, b, c, d]) in round_keys.iter_mut().zip(words.as_chunks::<4>().0) {
        *key = u128::from(*a) | u128::from(*b) << 32 | u128::from(*c) << 64 | u128::from(*d) << 96;
    }
    words.zeroize();
}

/// The S-box on each byte of a word, without a table and so without a trace in the cache.
#[target_feature(enable = "aes")]
fn sub_word(word: u32) -> u32 {
    _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(_mm_set1_epi32(word as i32))) as u32
}

#[target_feature(enable = "aes")]
fn inverse_mix_columns(key: u128) -> u128 {
    let mut unmixed = 0u128;
    // SAFETY: both integers are 16 bytes long.
    unsafe {
        let key = _mm_loadu_si128((&raw const key).cast());
        _mm_storeu_si128((&raw mut unmixed).cast(), _mm_aesimc_si128(key));
    }
    unmixed
}
