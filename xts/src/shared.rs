//! Copies between ordinary memory and memory that somebody else may be changing.

/// Reads `to.len()` bytes at `from`, each exactly once.
///
/// # Safety
///
/// `from` can be read for `to.len()` bytes.
#[inline]
pub(crate) unsafe fn load(from: *const u8, to: &mut [u8]) {
    let mut from = from;
    let wide = from.cast::<u64>().is_aligned();
    let (words, bytes) = if wide { to.as_chunks_mut::<8>() } else { (Default::default(), to) };
    for word in words {
        // SAFETY: the caller's promise; `from` is aligned. A volatile read is neither repeated nor split.
        *word = unsafe { from.cast::<u64>().read_volatile() }.to_ne_bytes();
        // SAFETY: at most one past the end of what may be read.
        from = unsafe { from.add(8) };
    }
    for byte in bytes {
        // SAFETY: the caller's promise.
        *byte = unsafe { from.read_volatile() };
        // SAFETY: at most one past the end of what may be read.
        from = unsafe { from.add(1) };
    }
}

/// Writes `from` to `to`, each byte exactly once.
///
/// # Safety
///
/// `to` can be written for `from.len()` bytes.
#[inline]
pub(crate) unsafe fn store(from: &[u8], to: *mut u8) {
    let mut to = to;
    let wide = to.cast::<u64>().is_aligned();
    let (words, bytes) = if wide { from.as_chunks::<8>() } else { (Default::default(), from) };
    for word in words {
        // SAFETY: the caller's promise; `to` is aligned.
        unsafe { to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
        // SAFETY: at most one past the end of what may be written.
        to = unsafe { to.add(8) };
    }
    for byte in bytes {
        // SAFETY: the caller's promise.
        unsafe { to.write_volatile(*byte) };
        // SAFETY: at most one past the end of what may be written.
        to = unsafe { to.add(1) };
    }
}
