//! Thirty-two blocks in flight, four in each register of 64 bytes.
//!
//! Eight data registers and eight tweak registers fill the pipeline; the round keys fill most of the rest.

use std::arch::asm;
use std::arch::x86_64::*;

use super::STRIDE;
use super::keys::RoundKeys;
use crate::Run;

/// Registers in flight.
const LANES: usize = STRIDE / 64;

/// # Safety
///
/// As [`Engine::run`](super::Engine::run), on a processor with the instructions.
#[target_feature(enable = "aes,avx512f,avx512bw,vaes,vpclmulqdq")]
pub(super) unsafe fn transform<const KEYS: usize, const DECRYPT: bool>(
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
