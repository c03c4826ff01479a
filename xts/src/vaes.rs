//! The engine for processors with AVX-512 and VAES: thirty-two blocks in flight, four in each register.
//!
//! Eight data registers and eight tweak registers fill the pipeline; the round keys fill most of the rest.
//! A stride of 512 bytes never crosses a data unit, so units of 512 bytes run as fast as larger ones but for
//! the encryption of their tweaks, which is done for four units at once.

use std::arch::asm;
use std::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::portable::Portable;
use crate::{Direction, Run};

/// Bytes in flight: data units must be multiples of this.
pub(crate) const STRIDE: usize = LANES * 64;
/// Registers in flight.
const LANES: usize = 8;
/// Round keys of AES-128 and AES-256 (FIPS 197).
const KEYS_128: usize = 11;
const KEYS_256: usize = 15;

/// Round keys in the order of use, each the 16 bytes of a block in memory order.
type RoundKeys = [u128; KEYS_256];

/// The expanded keys, in a place that never moves and is wiped in the end.
///
/// A value exists only where the processor has what [`available`] asks for.
pub(crate) struct Engine(Box<Schedule>);

#[derive(Default, Zeroize, ZeroizeOnDrop)]
struct Schedule {
    /// Round keys in use: [`KEYS_128`] or [`KEYS_256`].
    keys: usize,
    encrypt: RoundKeys,
    decrypt: RoundKeys,
    tweak: RoundKeys,
}

fn available() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

impl Engine {
    /// Expands two keys of 16 or 32 bytes each; `None` where the processor lacks an instruction.
    pub(crate) fn new(data: &[u8], tweak: &[u8]) -> Option<Self> {
        if !available() {
            return None;
        }
        let mut schedule = Box::<Schedule>::default();
        // SAFETY: the processor has the instructions.
        unsafe { schedule.expand(data, tweak) };
        Some(Self(schedule))
    }

    /// Whether both engines turn the same bytes into the same bytes and back, under the same key.
    pub(crate) fn agrees_with(&self, portable: &Portable) -> bool {
        const UNIT: usize = 2 * STRIDE;
        const LEN: usize = 5 * UNIT;
        let sample: [u8; LEN] = std::array::from_fn(|i| (i * 167 + i / 251) as u8);
        [Direction::Encrypt, Direction::Decrypt].into_iter().all(|direction| {
            let (mut one, mut other) = ([0; LEN], [0; LEN]);
            let run = Run {
                direction,
                unit: UNIT,
                first: u64::from(u32::MAX) - 1,
                src: sample.as_ptr(),
                dst: one.as_mut_ptr(),
                len: LEN,
            };
            // SAFETY: both arrays are `LEN` bytes long, which is whole data units.
            unsafe { self.run(run) };
            // SAFETY: as above.
            unsafe { portable.run(Run { dst: other.as_mut_ptr(), ..run }) };
            one == other
        })
    }

    /// # Safety
    ///
    /// As [`Xts::run`](crate::Xts), and the run is made of whole data units of whole strides.
    pub(crate) unsafe fn run(&self, run: Run) {
        let schedule = &*self.0;
        let keys = match run.direction {
            Direction::Encrypt => &schedule.encrypt,
            Direction::Decrypt => &schedule.decrypt,
        };
        // SAFETY: the caller's promise; an engine exists only where the processor has the instructions.
        unsafe {
            match (schedule.keys, run.direction) {
                (KEYS_128, Direction::Encrypt) => transform::<KEYS_128, false>(keys, &schedule.tweak, run),
                (KEYS_128, Direction::Decrypt) => transform::<KEYS_128, true>(keys, &schedule.tweak, run),
                (_, Direction::Encrypt) => transform::<KEYS_256, false>(keys, &schedule.tweak, run),
                (_, Direction::Decrypt) => transform::<KEYS_256, true>(keys, &schedule.tweak, run),
            }
        }
    }
}

/// # Safety
///
/// As [`Engine::run`].
#[target_feature(enable = "aes,avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn transform<const KEYS: usize, const DECRYPT: bool>(
    round_keys: &RoundKeys,
    tweak_keys: &RoundKeys,
    run: Run,
) {
    let mut keys = [_mm512_setzero_si512(); KEYS];
    for (key, round_key) in keys.iter_mut().zip(round_keys) {
        *key = broadcast(*round_key);
    }
    let (mut src, mut dst, mut lba) = (run.src, run.dst, run.first);
    let mut units = run.len / run.unit;
    while units > 0 {
        let seeds = encrypt_tweaks::<KEYS>(tweak_keys, lba);
        let group = units.min(seeds.len());
        for seed in &seeds[..group] {
            let mut tweaks = first_tweaks(*seed);
            for _ in 0..run.unit / STRIDE {
                let mut blocks = [_mm512_setzero_si512(); LANES];
                for i in 0..LANES {
                    // SAFETY: the stride is within the run.
                    let data = unsafe { load(src.add(64 * i)) };
                    blocks[i] = _mm512_xor_si512(_mm512_xor_si512(data, tweaks[i]), keys[0]);
                }
                for key in &keys[1..KEYS - 1] {
                    for block in &mut blocks {
                        *block = if DECRYPT {
                            _mm512_aesdec_epi128(*block, *key)
                        } else {
                            _mm512_aesenc_epi128(*block, *key)
                        };
                    }
                }
                for i in 0..LANES {
                    let last = _mm512_xor_si512(keys[KEYS - 1], tweaks[i]);
                    let data = if DECRYPT {
                        _mm512_aesdeclast_epi128(blocks[i], last)
                    } else {
                        _mm512_aesenclast_epi128(blocks[i], last)
                    };
                    // SAFETY: the stride is within the run.
                    unsafe { store(data, dst.add(64 * i)) };
                }
                for tweak in &mut tweaks {
                    *tweak = times_bytes::<4, 12>(*tweak);
                }
                // SAFETY: at most one past the end of the run.
                (src, dst) = unsafe { (src.add(STRIDE), dst.add(STRIDE)) };
            }
        }
        units -= group;
        lba = lba.wrapping_add(seeds.len() as u64);
    }
}

/// E(K2, LBA) of four data units.
#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn encrypt_tweaks<const KEYS: usize>(keys: &RoundKeys, lba: u64) -> [u128; 4] {
    let lbas = [0, 1, 2, 3].map(|i| lba.wrapping_add(i) as i64);
    let mut block = _mm512_set_epi64(0, lbas[3], 0, lbas[2], 0, lbas[1], 0, lbas[0]);
    block = _mm512_xor_si512(block, broadcast(keys[0]));
    for key in &keys[1..KEYS - 1] {
        block = _mm512_aesenc_epi128(block, broadcast(*key));
    }
    block = _mm512_aesenclast_epi128(block, broadcast(keys[KEYS - 1]));
    let mut seeds = [0; 4];
    // SAFETY: the array is 64 bytes long.
    unsafe { _mm512_storeu_si512(seeds.as_mut_ptr().cast(), block) };
    seeds
}

/// The tweaks of a data unit's first stride: seed · αʲ for blocks j = 0..32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn first_tweaks(seed: u128) -> [__m512i; LANES] {
    let seed = broadcast(seed);
    let a = times_bits(seed, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
    let b = times_bits(seed, _mm512_set_epi64(7, 7, 6, 6, 5, 5, 4, 4));
    [
        a,
        b,
        times_bytes::<1, 15>(a),
        times_bytes::<1, 15>(b),
        times_bytes::<2, 14>(a),
        times_bytes::<2, 14>(b),
        times_bytes::<3, 13>(a),
        times_bytes::<3, 13>(b),
    ]
}

/// Multiplies each 128-bit lane by αⁿ, n < 8 being given twice for each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_bits(t: __m512i, n: __m512i) -> __m512i {
    // What each half loses; a shift by 64 leaves nothing, which is what n = 0 needs.
    let carry = _mm512_srlv_epi64(t, _mm512_sub_epi64(_mm512_set1_epi64(64), n));
    let shifted = _mm512_or_si512(_mm512_sllv_epi64(t, n), _mm512_bslli_epi128::<8>(carry));
    _mm512_xor_si512(shifted, _mm512_clmulepi64_epi128::<0x01>(carry, reduction()))
}

/// Multiplies each 128-bit lane by α to the power of 8 · `N`; `M` is 16 - `N`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_bytes<const N: i32, const M: i32>(t: __m512i) -> __m512i {
    let carry = _mm512_bsrli_epi128::<M>(t);
    _mm512_xor_si512(_mm512_bslli_epi128::<N>(t), _mm512_clmulepi64_epi128::<0x00>(carry, reduction()))
}

/// α¹²⁸ = α⁷ + α² + α + 1 in the low half of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduction() -> __m512i {
    _mm512_set_epi64(0, 0x87, 0, 0x87, 0, 0x87, 0, 0x87)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(block: u128) -> __m512i {
    // SAFETY: a `u128` is 16 bytes long.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128((&raw const block).cast()) })
}

/// Reads 64 bytes, each exactly once: the instruction is written out since others may change the memory, which
/// the compiler must neither assume away nor repeat.
///
/// # Safety
///
/// `from` can be read for 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(from: *const u8) -> __m512i {
    let data;
    // SAFETY: one unaligned load from memory that the caller vouches for.
    unsafe {
        asm!("vmovdqu64 {data}, [{from}]", data = out(zmm_reg) data, from = in(reg) from,
            options(nostack, preserves_flags, readonly));
    }
    data
}

/// Writes 64 bytes, each exactly once.
///
/// # Safety
///
/// `to` can be written for 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(data: __m512i, to: *mut u8) {
    // SAFETY: one unaligned store to memory that the caller vouches for.
    unsafe {
        asm!("vmovdqu64 [{to}], {data}", data = in(zmm_reg) data, to = in(reg) to,
            options(nostack, preserves_flags));
    }
}

impl Schedule {
    #[target_feature(enable = "aes")]
    fn expand(&mut self, data: &[u8], tweak: &[u8]) {
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
