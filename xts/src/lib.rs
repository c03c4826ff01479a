//! AES-XTS (IEEE Std 1619-2018) over runs of equal data units: what an encrypted volume does to its blocks.
//!
//! # Format
//!
//! A data unit is one block of a volume: a multiple of 16 bytes, so ciphertext stealing never happens. Its
//! tweak is the block's number (LBA) as a 64-bit little-endian integer, zero-extended to 16 bytes. The key is
//! the data key followed by the tweak key: 32 bytes for XTS-AES-128, 64 bytes for XTS-AES-256. dm-crypt calls
//! this `aes-xts-plain64` when blocks are 512 bytes (with `iv_large_sectors` when they are larger).
//!
//! # Engines
//!
//! The portable engine is the RustCrypto `aes` crate, which finds the processor's AES instructions by itself.
//! Where the processor has VAES with AVX-512 or AVX2, an engine of this crate takes over the data units that are
//! multiples of 512 bytes. It serves a key only after it has agreed with the portable engine under that key.
//!
//! # Shared memory
//!
//! [`Xts::encrypt`] reads and [`Xts::decrypt`] writes memory that somebody else, a guest for example, may
//! change at any moment. Every byte of such a source is read exactly once, so that what is encrypted is one
//! value; only final plaintext is ever written to such a destination.
#![allow(unsafe_code)]

mod portable;
mod shared;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vaes;

use std::fmt;
use std::sync::atomic::AtomicU8;

use portable::Portable;

/// Size of an AES block in bytes; every data unit is a multiple of it.
const BLOCK: usize = 16;

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// The key has this many bytes instead of 32 (XTS-AES-128) or 64 (XTS-AES-256).
    Length(usize),
    /// Data key and tweak key are equal, which voids the mode's security (FIPS 140-3 IG C.I).
    EqualHalves,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(n) => write!(f, "an AES-XTS key has 32 or 64 bytes, not {n}"),
            Self::EqualHalves => f.write_str("the two halves of an AES-XTS key must differ"),
        }
    }
}

impl std::error::Error for KeyError {}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// A run of whole data units from `src` to `dst`.
#[derive(Clone, Copy)]
struct Run {
    direction: Direction,
    /// Bytes of a data unit, a positive multiple of [`BLOCK`].
    unit: usize,
    /// Number of the first data unit.
    first: u64,
    src: *const u8,
    dst: *mut u8,
    /// Bytes of the run, a multiple of `unit`.
    len: usize,
}

/// An AES-XTS key, ready for use from any thread.
///
/// The expanded keys are wiped from memory when it is dropped, and are never printed.
///
/// # Panics
///
/// Every method that takes data panics unless `unit` is a positive multiple of 16 and the source is as long as
/// the destination and a multiple of `unit`: half a run left as it was would be plaintext on a medium. Block
/// numbers wrap around after `u64::MAX`.
pub struct Xts {
    portable: Box<Portable>,
    #[cfg(target_arch = "x86_64")]
    vector: Option<vaes::Engine>,
}

impl Xts {
    /// Expands `key`: the data key and then the tweak key, 16 or 32 bytes each.
    ///
    /// # Errors
    ///
    /// [`KeyError`] for any other length, and for two equal halves.
    pub fn new(key: &[u8]) -> Result<Self, KeyError> {
        if key.len() != 32 && key.len() != 64 {
            return Err(KeyError::Length(key.len()));
        }
        let (data, tweak) = key.split_at(key.len() / 2);
        if data.iter().zip(tweak).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0 {
            return Err(KeyError::EqualHalves);
        }
        let portable = Box::new(Portable::new(data, tweak));
        Ok(Self {
            #[cfg(target_arch = "x86_64")]
            vector: [vaes::Width::Wide, vaes::Width::Narrow].into_iter().find_map(|width| {
                vaes::Engine::new(data, tweak, width).filter(|engine| engine.agrees_with(&portable))
            }),
            portable,
        })
    }

    /// Every engine that this processor has for `key`, the one that [`Xts::new`] takes first, to compare them.
    ///
    /// # Errors
    ///
    /// As there.
    #[doc(hidden)]
    pub fn engines(key: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut engines = Vec::new();
        #[cfg(target_arch = "x86_64")]
        for width in [vaes::Width::Wide, vaes::Width::Narrow] {
            let mut xts = Self::new(key)?;
            let (data, tweak) = key.split_at(key.len() / 2);
            xts.vector = vaes::Engine::new(data, tweak, width);
            engines.extend(xts.vector.is_some().then_some(xts));
        }
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "it has nothing else"))]
        let mut portable = Self::new(key)?;
        #[cfg(target_arch = "x86_64")]
        {
            portable.vector = None;
        }
        engines.push(portable);
        Ok(engines)
    }

    /// The engine that serves whole multiples of 512 bytes: `"vaes-512"`, `"vaes-256"` or `"portable"`.
    pub fn engine(&self) -> &'static str {
        #[cfg(target_arch = "x86_64")]
        if let Some(vector) = &self.vector {
            return vector.name();
        }
        "portable"
    }

    /// Encrypts the data units `first..` of `unit` bytes each from shared memory, reading each byte once.
    pub fn encrypt(&self, unit: usize, first: u64, src: &[AtomicU8], dst: &mut [u8]) {
        let len = dst.len();
        assert!(src.len() == len, "source and destination differ in length");
        let run = Run {
            direction: Direction::Encrypt,
            unit,
            first,
            src: src.as_ptr().cast(),
            dst: dst.as_mut_ptr(),
            len,
        };
        // SAFETY: both slices are `len` bytes long and live; `dst` is exclusively ours.
        unsafe { self.run(run) }
    }

    /// Encrypts the data units `first..` of `unit` bytes each where they are.
    pub fn encrypt_in_place(&self, unit: usize, first: u64, buf: &mut [u8]) {
        self.in_place(Direction::Encrypt, unit, first, buf);
    }

    /// Decrypts the data units `first..` of `unit` bytes each into shared memory, writing only plaintext there.
    pub fn decrypt(&self, unit: usize, first: u64, src: &[u8], dst: &[AtomicU8]) {
        let len = src.len();
        assert!(dst.len() == len, "source and destination differ in length");
        let run = Run {
            direction: Direction::Decrypt,
            unit,
            first,
            src: src.as_ptr(),
            // `AtomicU8` has interior mutability, so writing through a shared reference's pointer is allowed.
            dst: dst.as_ptr().cast_mut().cast(),
            len,
        };
        // SAFETY: both slices are `len` bytes long and live, and `dst` may be written through.
        unsafe { self.run(run) }
    }

    /// Decrypts the data units `first..` of `unit` bytes each where they are.
    pub fn decrypt_in_place(&self, unit: usize, first: u64, buf: &mut [u8]) {
        self.in_place(Direction::Decrypt, unit, first, buf);
    }

    fn in_place(&self, direction: Direction, unit: usize, first: u64, buf: &mut [u8]) {
        let dst = buf.as_mut_ptr();
        // SAFETY: the slice is `len` bytes long, live and exclusively ours.
        unsafe { self.run(Run { direction, unit, first, src: dst, dst, len: buf.len() }) }
    }

    /// # Safety
    ///
    /// `run.src` can be read and `run.dst` written for `run.len` bytes; they are the same memory or do not
    /// overlap. Others may access them meanwhile only if they are shared memory, made of atomics.
    unsafe fn run(&self, run: Run) {
        assert!(
            run.unit != 0 && run.unit.is_multiple_of(BLOCK),
            "a data unit is a positive multiple of 16 bytes"
        );
        assert!(run.len.is_multiple_of(run.unit), "a run is made of whole data units");
        #[cfg(target_arch = "x86_64")]
        if let Some(vector) = &self.vector
            && run.unit.is_multiple_of(vaes::STRIDE)
        {
            // SAFETY: the caller's promise and the checks above are what the engine asks for.
            return unsafe { vector.run(run) };
        }
        // SAFETY: the caller's promise and the checks above are what the engine asks for.
        unsafe { self.portable.run(run) }
    }
}

impl fmt::Debug for Xts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xts").field("engine", &self.engine()).finish_non_exhaustive()
    }
}
