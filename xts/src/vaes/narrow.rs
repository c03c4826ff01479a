//! Sixteen blocks in flight, two in each register of 32 bytes.
//!
//! There are sixteen registers: eight for data, so that round keys and tweaks come from the first-level cache.

use std::arch::asm;
use std::arch::x86_64::*;

use super::STRIDE;
use super::keys::RoundKeys;
use crate::Run;

/// Registers in flight.
const LANES: usize = 8;
/// Bytes in flight.
const STEP: usize = LANES * 32;
const _: () = assert!(STRIDE.is_multiple_of(STEP));

/// # Safety
///
/// As [`Engine::run`](super::Engine::run), on a processor with the instructions.
#[target_feature(enable = "aes,avx2,vaes,vpclmulqdq")]
pub(super) unsafe fn transform<const KEYS: usize, const DECRYPT: bool>(
    round_keys: &RoundKeys,
    tweak_keys: &RoundKeys,
    run: Run,
) {
    let mut keys = [_mm256_setzero_si256(); KEYS];
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
            for _ in 0..run.unit / STEP {
                let mut blocks = [_mm256_setzero_si256(); LANES];
                for i in 0..LANES {
                    // SAFETY: the step is within the run.
                    let data = unsafe { load(src.add(32 * i)) };
                    blocks[i] = _mm256_xor_si256(_mm256_xor_si256(data, tweaks[i]), keys[0]);
                }
                for key in &keys[1..KEYS - 1] {
                    for block in &mut blocks {
                        *block = if DECRYPT {
                            _mm256_aesdec_epi128(*block, *key)
                        } else {
                            _mm256_aesenc_epi128(*block, *key)
                        };
                    }
                }
                for i in 0..LANES {
                    let last = _mm256_xor_si256(keys[KEYS - 1], tweaks[i]);
                    let data = if DECRYPT {
                        _mm256_aesdeclast_epi128(blocks[i], last)
                    } else {
                        _mm256_aesenclast_epi128(blocks[i], last)
                    };
                    // SAFETY: the step is within the run.
                    unsafe { store(data, dst.add(32 * i)) };
                }
                for tweak in &mut tweaks {
                    *tweak = times_bytes::<2, 14>(*tweak);
                }
                // SAFETY: at most one past the end of the run.
                (src, dst) = unsafe { (src.add(STEP), dst.add(STEP)) };
            }
        }
        units -= group;
        lba = lba.wrapping_add(seeds.len() as u64);
    }
}

/// E(K2, LBA) of four data units.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn encrypt_tweaks<const KEYS: usize>(keys: &RoundKeys, lba: u64) -> [u128; 4] {
    let lbas = [0, 1, 2, 3].map(|i| lba.wrapping_add(i) as i64);
    let mut blocks = [_mm256_set_epi64x(0, lbas[1], 0, lbas[0]), _mm256_set_epi64x(0, lbas[3], 0, lbas[2])];
    for block in &mut blocks {
        *block = _mm256_xor_si256(*block, broadcast(keys[0]));
    }
    for key in &keys[1..KEYS - 1] {
        for block in &mut blocks {
            *block = _mm256_aesenc_epi128(*block, broadcast(*key));
        }
    }
    let mut seeds = [0u128; 4];
    for (block, to) in blocks.into_iter().zip(seeds.chunks_exact_mut(2)) {
        let block = _mm256_aesenclast_epi128(block, broadcast(keys[KEYS - 1]));
        // SAFETY: two integers are 32 bytes long.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), block) };
    }
    seeds
}

/// The tweaks of a data unit's first step: seed · αʲ for blocks j = 0..16.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn first_tweaks(seed: u128) -> [__m256i; LANES] {
    let seed = broadcast(seed);
    let low = [(0, 1), (2, 3), (4, 5), (6, 7)].map(|(a, b)| times_bits(seed, a, b));
    let high = low.map(|tweak| times_bytes::<1, 15>(tweak));
    std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] })
}

/// Multiplies the lower lane by αᵃ and the upper one by αᵇ, both below 8.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_bits(t: __m256i, a: i64, b: i64) -> __m256i {
    let n = _mm256_set_epi64x(b, b, a, a);
    // What each half loses; a shift by 64 leaves nothing, which is what n = 0 needs.
    let carry = _mm256_srlv_epi64(t, _mm256_sub_epi64(_mm256_set1_epi64x(64), n));
    let shifted = _mm256_or_si256(_mm256_sllv_epi64(t, n), _mm256_bslli_epi128::<8>(carry));
    _mm256_xor_si256(shifted, _mm256_clmulepi64_epi128::<0x01>(carry, reduction()))
}

/// Multiplies each 128-bit lane by α to the power of 8 · `N`; `M` is 16 - `N`.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_bytes<const N: i32, const M: i32>(t: __m256i) -> __m256i {
    let carry = _mm256_bsrli_epi128::<M>(t);
    _mm256_xor_si256(_mm256_bslli_epi128::<N>(t), _mm256_clmulepi64_epi128::<0x00>(carry, reduction()))
}

/// α¹²⁸ = α⁷ + α² + α + 1 in the low half of each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn reduction() -> __m256i {
    _mm256_set_epi64x(0, 0x87, 0, 0x87)
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(block: u128) -> __m256i {
    // SAFETY: a `u128` is 16 bytes long.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128((&raw const block).cast()) })
}

/// Reads 32 bytes, each exactly once: the instruction is written out since others may change the memory, which
/// the compiler must neither assume away nor repeat.
///
/// # Safety
///
/// `from` can be read for 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(from: *const u8) -> __m256i {
    let data;
    // SAFETY: one unaligned load from memory that the caller vouches for.
    unsafe {
        asm!("vmovdqu {data}, [{from}]", data = out(ymm_reg) data, from = in(reg) from,
            options(nostack, preserves_flags, readonly));
    }
    data
}

/// Writes 32 bytes, each exactly once.
///
/// # Safety
///
/// `to` can be written for 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(data: __m256i, to: *mut u8) {
    // SAFETY: one unaligned store to memory that the caller vouches for.
    unsafe {
        asm!("vmovdqu [{to}], {data}", data = in(ymm_reg) data, to = in(reg) to,
            options(nostack, preserves_flags));
    }
}
