//! What a file asks of direct I/O.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Alignment of direct I/O, in bytes: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of addresses in memory.
    pub memory: u32,
    /// Of offsets in the file, and of lengths.
    pub offset: u32,
}

/// The alignment of direct I/O on `file` (statx(2), STATX_DIOALIGN). `None` if the file does not do direct I/O; where
/// the kernel (before Linux 6.1) or the filesystem does not say, 4096, which hardware and filesystems accept.
pub fn direct_alignment(file: BorrowedFd<'_>) -> Option<DirectAlignment> {
    // SAFETY: all-zero is a valid statx structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor itself; the kernel fills `found`.
    let result = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut found)
    };
    if result != 0 || found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Some(DirectAlignment { memory: 4096, offset: 4096 });
    }
    let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
    (memory.is_power_of_two() && offset.is_power_of_two()).then_some(DirectAlignment { memory, offset })
}
