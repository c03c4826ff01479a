//! Reference-counted pool buffers. Each thread keeps its own free lists, so taking and giving back is a push or a
//! pop; a buffer that was filled on one shard and dropped on another simply moves house.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use super::{Seg, Sgl};

/// Smallest class, in bytes (a power of two). Also the alignment that `O_DIRECT` asks of the largest classes.
const MIN_CLASS: usize = 512;
/// Classes: 512 B … 2 MiB, each twice the one before.
const CLASSES: usize = 13;
/// What a thread keeps of each class before it returns memory to the allocator, in bytes.
const KEEP: usize = 4 << 20;
const ALIGN: usize = 4096;

struct Header {
    refs: AtomicUsize,
    data: NonNull<u8>,
    cap: usize,
    class: usize,
}

impl Header {
    fn layout(cap: usize) -> Layout {
        // SAFETY: ALIGN is a power of two, and `cap` (at most isize::MAX / 2, asserted in `Buf::new`) rounded up to it
        // does not overflow isize.
        unsafe { Layout::from_size_align_unchecked(cap, ALIGN.min(cap.next_power_of_two())) }
    }
}

#[derive(Default)]
struct Free([Vec<NonNull<Header>>; CLASSES]);

impl Drop for Free {
    fn drop(&mut self) {
        for list in &mut self.0 {
            for header in list.drain(..) {
                release(header);
            }
        }
    }
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// A buffer from the pool: shared by clones, given back when the last one is dropped.
///
/// Its bytes are *not* zeroed when it is taken again: whoever takes it writes all of it before anyone else sees it, or
/// calls [`Buf::zeroed`].
pub struct Buf(NonNull<Header>);

// SAFETY: the count is atomic; the bytes are reached by `&mut` when the count is one, else only by raw copies, or, in parts that
// nobody else is given, through a `Chunk` and its room.
unsafe impl Send for Buf {}
// SAFETY: as above; `&Buf` gives no reference to the bytes.
unsafe impl Sync for Buf {}

impl Buf {
    /// A buffer of at least `len` bytes, aligned to 4 KiB when it is that large. Aborts when memory is exhausted,
    /// as every Rust allocation does: callers bound what they ask for.
    pub fn new(len: usize) -> Self {
        assert!(len <= isize::MAX as usize / 2, "buffer size out of range");
        let cap = len.max(MIN_CLASS).next_power_of_two();
        let class = (cap / MIN_CLASS).trailing_zeros() as usize;
        let kept = if class < CLASSES {
            FREE.try_with(|f| f.borrow_mut().0[class].pop()).ok().flatten()
        } else {
            None
        };
        let header = kept.unwrap_or_else(|| {
            let layout = Header::layout(cap);
            // SAFETY: the layout has a non-zero size.
            let Some(data) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
                handle_alloc_error(layout)
            };
            let header = Header { refs: AtomicUsize::new(1), data, cap, class };
            NonNull::from(Box::leak(Box::new(header)))
        });
        // SAFETY: a header from a free list or a new one is ours alone.
        unsafe { header.as_ref() }.refs.store(1, Ordering::Relaxed);
        Buf(header)
    }

    /// As [`Buf::new`], every byte zero.
    pub fn zeroed(len: usize) -> Self {
        let buf = Self::new(len);
        // SAFETY: the buffer is ours alone and `cap` bytes long.
        unsafe { buf.header().data.as_ptr().write_bytes(0, buf.capacity()) };
        buf
    }

    fn header(&self) -> &Header {
        // SAFETY: the header lives as long as a `Buf` refers to it.
        unsafe { self.0.as_ref() }
    }

    /// Bytes in the buffer; at least what was asked for.
    pub fn capacity(&self) -> usize {
        self.header().cap
    }

    /// Whether this is the only reference to the buffer.
    pub fn is_unique(&self) -> bool {
        self.header().refs.load(Ordering::Acquire) == 1
    }

    /// The bytes, when nobody else holds the buffer. Their values are whatever was last stored there.
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() {
            return None;
        }
        let h = self.header();
        // SAFETY: no other reference exists, and none can come to be while `self` is borrowed mutably; the memory is
        // initialised, since it was allocated zeroed.
        Some(unsafe { std::slice::from_raw_parts_mut(h.data.as_ptr(), h.cap) })
    }

    /// Whether both are of the same buffer.
    pub(super) fn is(&self, other: &Buf) -> bool {
        self.0 == other.0
    }

    /// A list of one segment over bytes `at .. at + len`; the list keeps the buffer alive.
    ///
    /// # Panics
    /// If the range is not within the buffer.
    pub fn sgl(&self, at: usize, len: usize) -> Sgl {
        Sgl::of_buf(self.clone(), self.seg(at, len))
    }

    /// The first `len` bytes as a list, for one that needs the buffer for nothing else.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn into_sgl(self, len: usize) -> Sgl {
        let seg = self.seg(0, len);
        Sgl::of_buf(self, seg)
    }

    /// Writes `bytes` into the buffer from byte `at` on, as [`Sgl::copy_in`] does.
    ///
    /// # Panics
    /// If they do not fit.
    #[inline]
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        let to = self.seg(at, bytes.len()).as_ptr();
        // SAFETY: within the buffer, whose bytes are borrowed only by `&mut`, or by a `Chunk`, which gives nobody the buffer; others
        // may copy at the same time, and bytes have no invalid value.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Reads `bytes.len()` bytes from byte `at` on, as [`Sgl::copy_out`] does.
    ///
    /// # Panics
    /// If the range is not within the buffer.
    #[inline]
    pub fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        let from = self.seg(at, bytes.len()).as_ptr();
        // SAFETY: as in `copy_in`; `bytes` is a private slice.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    #[inline]
    pub(super) fn seg(&self, at: usize, len: usize) -> Seg {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.capacity()), "range outside the buffer");
        // SAFETY: `at` is within the allocation.
        Seg::new(unsafe { self.header().data.add(at) }, len)
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        self.header().refs.fetch_add(1, Ordering::Relaxed);
        Buf(self.0)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if self.header().refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        let (class, cap) = (self.header().class, self.header().cap);
        let header = self.0;
        let kept = class < CLASSES
            && FREE
                .try_with(|f| {
                    let list = &mut f.borrow_mut().0[class];
                    let room = list.len() * cap < KEEP;
                    if room {
                        list.push(header);
                    }
                    room
                })
                .unwrap_or(false);
        if !kept {
            release(header);
        }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} bytes)", self.capacity())
    }
}

fn release(header: NonNull<Header>) {
    // SAFETY: the header came from `Box::leak` in `Buf::new`, its count is zero, and it is in no free list.
    let header = unsafe { Box::from_raw(header.as_ptr()) };
    // SAFETY: `data` was allocated with this very layout.
    unsafe { dealloc(header.data.as_ptr(), Header::layout(header.cap)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_and_aligned() {
        let a = Buf::new(4096);
        let at = a.header().data;
        assert_eq!(at.as_ptr() as usize % 4096, 0);
        drop(a);
        assert_eq!(Buf::new(3000).header().data, at);
    }

    #[test]
    fn unique_access_ends_with_a_clone() {
        let mut a = Buf::zeroed(512);
        a.get_mut().unwrap()[3] = 7;
        let b = a.clone();
        assert!(a.get_mut().is_none());
        drop(b);
        assert_eq!(a.get_mut().unwrap()[3], 7);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_range_outside_is_refused() {
        Buf::new(512).sgl(500, 20);
    }
}
