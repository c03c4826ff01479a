//! Copies past the caches.

/// Copies `len` bytes, those that fill whole lines of the caches past these: the lines are not fetched to be overwritten,
/// and push nothing out. [`fence`] comes after it.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`], but others may write the bytes at `from` meanwhile.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    use super::sgl::LINE;

    const STEP: usize = size_of::<__m128i>();
    let head = to.align_offset(LINE).min(len);
    let tail = head + (len - head) / LINE * LINE;
    // SAFETY: all of it is within the two ranges, which are the caller's; from `head` on `to` is aligned to a line, and so to
    // a step.
    unsafe {
        to.copy_from_nonoverlapping(from, head);
        for line in (head..tail).step_by(LINE) {
            for at in (line..line + LINE).step_by(STEP) {
                _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
            }
        }
        to.add(tail).copy_from_nonoverlapping(from.add(tail), len - tail);
    }
}

/// Copies `len` bytes.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`], but others may write the bytes at `from` meanwhile.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's.
    unsafe { to.copy_from_nonoverlapping(from, len) };
}

/// Whoever sees a later store of this thread sees what it has copied.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it touches no memory, and every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_range_is_copied_and_nothing_else() {
        let from: Vec<u8> = (0..400).map(|i| i as u8 | 1).collect();
        for at in 0..130 {
            for len in [0, 1, 15, 16, 63, 64, 65, 127, 128, 200] {
                let mut to = [0; 400];
                // SAFETY: both ranges are within their arrays.
                unsafe { super::copy(to.as_mut_ptr().add(at), from.as_ptr().add(at / 2), len) };
                super::fence();
                assert_eq!(to[at..at + len], from[at / 2..at / 2 + len]);
                assert!(to[..at].iter().chain(&to[at + len..]).all(|&byte| byte == 0));
            }
        }
    }
}
