//! Scatter-gather lists: a few segments, and the owner that keeps their bytes alive.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use smallvec::SmallVec;

use super::guest::{Region, RegionId};
use super::loan::Lent;
use super::{Buf, Mapping};

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
pub(super) const LINE: usize = 64;
/// Bytes that [`Sgl::prefetch`] asks for at most. A processor has room for some tens of lines that are on their way, and
/// forgets what is asked for beyond that: of 64 lines asked for at once some never come.
pub const PREFETCH: usize = 40 * 64;

/// A run of bytes. Only meaningful beside the [`Sgl`] that keeps it alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seg {
    ptr: NonNull<u8>,
    len: usize,
}

impl Seg {
    pub(super) fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Seg { ptr, len }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes in the run.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the run has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The run's address in this process: what alignment is judged by.
    pub fn addr(&self) -> usize {
        self.ptr.as_ptr() as usize
    }

    pub(crate) fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.as_ptr().cast(), iov_len: self.len }
    }

    fn part(&self, at: usize, len: usize) -> Seg {
        debug_assert!(at <= self.len && len <= self.len - at);
        // SAFETY: `at` is within the run (checked by the callers, asserted above).
        Seg { ptr: unsafe { self.ptr.add(at) }, len }
    }
}

/// Who keeps the segments' bytes alive.
#[derive(Clone, Debug, Default)]
pub(super) enum Owner {
    #[default]
    None,
    Buf(Buf),
    Region(Arc<Region>),
    Regions(Arc<Vec<Arc<Region>>>),
    #[expect(dead_code, reason = "held to keep the mapping alive")]
    Mapping(Arc<Mapping>),
    #[expect(dead_code, reason = "held to keep the mapping alive, and unwritten")]
    Loan(Arc<Lent>),
}

/// A scatter-gather list: memory of one I/O, in order.
///
/// Cloning or slicing it shares the bytes and keeps them alive. The bytes may change under a reader at any time, so
/// they are copied, handed to the kernel, or transformed; never borrowed as `&[u8]` (but see [`Sgl::bytes_mut`] and
/// [`Sgl::lent`]).
#[derive(Clone, Debug, Default)]
pub struct Sgl {
    segs: SmallVec<[Seg; 3]>,
    len: usize,
    owner: Owner,
}

// SAFETY: the segments point into memory that `owner` keeps alive, whichever thread drops it; all owners are Send + Sync.
unsafe impl Send for Sgl {}

impl Sgl {
    /// A list of no bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    pub(super) fn of_buf(buf: Buf, seg: Seg) -> Self {
        Sgl { len: seg.len, segs: SmallVec::from_slice(&[seg]), owner: Owner::Buf(buf) }
    }

    pub(super) fn of_parts(segs: SmallVec<[Seg; 3]>, owner: Owner) -> Self {
        Sgl { len: segs.iter().map(Seg::len).sum(), segs, owner }
    }

    /// Adds a run of a guest's region.
    pub(super) fn push_of(&mut self, region: &Arc<Region>, seg: Seg) {
        let joins = match &mut self.owner {
            Owner::Region(only) if Arc::ptr_eq(only, region) => true,
            Owner::Region(first) => {
                self.owner = Owner::Regions(Arc::new(vec![first.clone(), region.clone()]));
                false
            }
            Owner::Regions(all) => {
                if !all.iter().any(|r| Arc::ptr_eq(r, region)) {
                    Arc::make_mut(all).push(region.clone());
                }
                false
            }
            Owner::None => {
                self.owner = Owner::Region(region.clone());
                false
            }
            Owner::Buf(_) | Owner::Mapping(_) | Owner::Loan(_) => {
                unreachable!("a list of guest memory alone")
            }
        };
        self.len += seg.len;
        match self.segs.last_mut() {
            Some(last) if joins && last.addr() + last.len == seg.addr() => last.len += seg.len,
            _ => self.segs.push(seg),
        }
    }

    /// Lets go of the memory: a list of no bytes again.
    pub fn clear(&mut self) {
        self.segs.clear();
        self.len = 0;
        self.owner = Owner::None;
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments, in order.
    pub fn segs(&self) -> &[Seg] {
        &self.segs
    }

    /// Bytes `at .. at + len` as a list of its own, which keeps the same memory alive.
    ///
    /// # Panics
    /// If the range is not within the list.
    pub fn slice(&self, at: usize, len: usize) -> Sgl {
        let mut segs = SmallVec::new();
        self.each(at, len, |seg| segs.push(seg));
        Sgl { segs, len, owner: self.owner.clone() }
    }

    /// Calls `f` with each run of bytes `at .. at + len`.
    #[inline]
    fn each(&self, at: usize, len: usize, mut f: impl FnMut(Seg)) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "range outside the list");
        if let [only] = self.segs[..]
            && len > 0
        {
            return f(only.part(at, len));
        }
        let (mut skip, mut left) = (at, len);
        for seg in &self.segs {
            if left == 0 {
                break;
            }
            if skip >= seg.len {
                skip -= seg.len;
                continue;
            }
            let n = (seg.len - skip).min(left);
            f(seg.part(skip, n));
            skip = 0;
            left -= n;
        }
    }

    /// Has the processor fetch bytes `at .. at + len`, the first [`PREFETCH`] of them at most, while other work goes on: into
    /// the second level of its caches, which has room for as many as come in a turn.
    ///
    /// # Panics
    /// If the first of them are not within the list.
    #[inline]
    pub fn prefetch(&self, at: usize, len: usize) {
        #[cfg(target_arch = "x86_64")]
        self.each(at, len.min(PREFETCH), |seg| {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            for line in (0..seg.len).step_by(LINE) {
                // SAFETY: within the run; a prefetch changes nothing but what is in the caches.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(seg.ptr.as_ptr().add(line).cast()) };
            }
        });
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, len);
    }

    /// Writes `bytes` into the memory from offset `at` on.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        self.assert_writable();
        let mut from = bytes;
        self.each(at, bytes.len(), |seg| {
            let (now, rest) = from.split_at(seg.len);
            // SAFETY: the owner keeps `seg.len` bytes alive at `seg.ptr`, and they are not borrowed as a reference (those
            // that are lent are refused), so `now` cannot overlap them. Another party may write them at the same time; bytes
            // have no invalid value.
            unsafe { seg.ptr.as_ptr().copy_from_nonoverlapping(now.as_ptr(), seg.len) };
            from = rest;
        });
    }

    /// Reads `bytes.len()` bytes from offset `at` on; each byte is read once.
    ///
    /// # Panics
    /// If the range is not within the list.
    pub fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        let mut done = 0;
        self.each(at, bytes.len(), |seg| {
            let to = &mut bytes[done..done + seg.len];
            // SAFETY: as in `copy_in`; `to` is a private slice.
            unsafe { seg.ptr.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), seg.len) };
            done += seg.len;
        });
    }

    /// Writes four words, little-endian, at byte `at` such that who sees the last sees the others: a completion queue entry,
    /// whose phase tag is there.
    ///
    /// # Panics
    /// If they are not within one run, at an address that is a multiple of 4.
    pub fn publish(&self, at: usize, words: [u32; 4]) {
        self.assert_writable();
        self.each(at, size_of_val(&words), |seg| {
            assert!(
                seg.len == size_of_val(&words) && seg.addr().is_multiple_of(4),
                "an entry lies in one run"
            );
            let to: *mut u32 = seg.ptr.as_ptr().cast();
            for (i, word) in words.into_iter().enumerate() {
                // SAFETY: within the run, as was asserted, and aligned; atomics allow for the guest's accesses.
                let to = unsafe { AtomicU32::from_ptr(to.add(i)) };
                to.store(word.to_le(), if i == 3 { Ordering::Release } else { Ordering::Relaxed });
            }
        });
    }

    /// Writes zeroes over bytes `at .. at + len`.
    pub fn zero(&self, at: usize, len: usize) {
        self.assert_writable();
        // SAFETY: as in `copy_in`.
        self.each(at, len, |seg| unsafe { seg.ptr.as_ptr().write_bytes(0, seg.len) });
    }

    /// Copies all of `from` to the start of this list.
    ///
    /// # Panics
    /// If `from` is longer.
    pub fn copy_from(&self, from: &Sgl) {
        self.copy_part(0, from, 0, from.len);
    }

    /// Copies bytes `from_at .. from_at + len` of `from` to byte `at` of this list and on.
    ///
    /// # Panics
    /// If a range is not within its list.
    pub fn copy_part(&self, at: usize, from: &Sgl, from_at: usize, len: usize) {
        // SAFETY: both owners keep the bytes alive; `copy_from` allows them to overlap.
        self.each_pair(at, from, from_at, len, |to, from, len| unsafe { to.copy_from(from, len) });
    }

    /// Has `copy` do what [`Sgl::copy_part`] does, run by run: where to, where from, and how many bytes.
    ///
    /// # Panics
    /// If a range is not within its list.
    #[inline]
    pub(super) fn each_pair(
        &self,
        at: usize,
        from: &Sgl,
        from_at: usize,
        len: usize,
        copy: impl Fn(*mut u8, *const u8, usize),
    ) {
        self.assert_writable();
        let mut at = at;
        from.each(from_at, len, |mut source| {
            self.each(at, source.len, |to| {
                copy(to.as_ptr(), source.as_ptr(), to.len);
                source = source.part(to.len, source.len - to.len);
                at += to.len;
            });
        });
    }

    /// Whether the bytes equal `other`'s. Each side is read once.
    pub fn same_bytes(&self, other: &Sgl) -> bool {
        self.len == other.len && self.same_part(0, other, 0, self.len)
    }

    /// Whether bytes `at .. at + len` equal as many of `other` from `other_at` on. Each side is read once.
    ///
    /// # Panics
    /// If a range is not within its list.
    pub fn same_part(&self, at: usize, other: &Sgl, other_at: usize, len: usize) -> bool {
        let (mut a, mut b) = ([0u8; 1024], [0u8; 1024]);
        let mut done = 0;
        while done < len {
            let n = (len - done).min(a.len());
            self.copy_out(at + done, &mut a[..n]);
            other.copy_out(other_at + done, &mut b[..n]);
            if a[..n] != b[..n] {
                return false;
            }
            done += n;
        }
        true
    }

    /// Calls `f` with a private copy of bytes `at .. at + len`, in pieces of at most 4 KiB: for checksums.
    pub fn each_copy(&self, at: usize, len: usize, mut f: impl FnMut(&[u8])) {
        let mut page = [const { MaybeUninit::<u8>::uninit() }; 4096];
        let end = at + len;
        let mut at = at;
        while at < end {
            let n = (end - at).min(page.len());
            let mut done = 0;
            self.each(at, n, |seg| {
                let to = page[done..done + seg.len].as_mut_ptr().cast();
                // SAFETY: as in `copy_in`; `to` is within the private page.
                unsafe { seg.ptr.as_ptr().copy_to_nonoverlapping(to, seg.len) };
                done += seg.len;
            });
            // SAFETY: `each` has gone over all `n` bytes, or panicked.
            f(unsafe { std::slice::from_raw_parts(page.as_ptr().cast(), n) });
            at += n;
        }
    }

    /// The bytes as runs that anyone may change at any time: what a transform reads from or writes to.
    ///
    /// # Panics
    /// If they are lent.
    pub fn atomics(&self) -> impl Iterator<Item = &[AtomicU8]> {
        self.assert_writable();
        // SAFETY: the owner keeps the bytes alive while `self` is borrowed; `AtomicU8` has the layout of `u8` and
        // allows for other writers.
        self.segs
            .iter()
            .map(|seg| unsafe { std::slice::from_raw_parts(seg.ptr.as_ptr().cast::<AtomicU8>(), seg.len) })
    }

    /// The bytes as an ordinary slice, if they are one run of a pool buffer that nothing else holds.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let [seg] = self.segs[..] else { return None };
        match &mut self.owner {
            Owner::Buf(buf) if buf.is_unique() => {
                // SAFETY: the only reference to the buffer is ours, borrowed mutably; the run is within it.
                Some(unsafe { std::slice::from_raw_parts_mut(seg.ptr.as_ptr(), seg.len) })
            }
            _ => None,
        }
    }

    /// Whether the memory is lent (see [`super::Lender`]): to be read, never written, and given back soon.
    pub fn is_lent(&self) -> bool {
        matches!(self.owner, Owner::Loan(_))
    }

    /// The bytes, if they are lent: nobody writes to them meanwhile.
    pub fn lent(&self) -> Option<impl Iterator<Item = &[u8]>> {
        // SAFETY: the loan keeps the bytes alive while `self` is borrowed. While it is out no `Writing` is there, by which
        // alone they change (see `Lender`); lists of them are refused by all that writes to lists (`assert_writable`).
        let run = |seg: &Seg| unsafe { std::slice::from_raw_parts(seg.ptr.as_ptr(), seg.len) };
        self.is_lent().then(|| self.segs.iter().map(run))
    }

    /// Stands before everything that writes to the memory, or has others write.
    ///
    /// # Panics
    /// If it is lent.
    #[inline]
    pub(crate) fn assert_writable(&self) {
        assert!(!self.is_lent(), "what is lent is not written");
    }

    /// Whether any of the memory belongs to guest region `id`.
    pub fn touches(&self, id: RegionId) -> bool {
        self.regions().iter().any(|r| r.id() == id)
    }

    /// Whether all of the memory is a guest's own.
    pub fn is_guests(&self) -> bool {
        !self.regions().is_empty()
    }

    /// The guest regions that the memory belongs to.
    pub(crate) fn regions(&self) -> &[Arc<Region>] {
        match &self.owner {
            Owner::Region(r) => std::slice::from_ref(r),
            Owner::Regions(rs) => rs.as_slice(),
            _ => &[],
        }
    }

    /// Whether every segment's address and length are multiples of `align` bytes (a power of two).
    pub fn is_aligned(&self, align: usize) -> bool {
        self.segs.iter().all(|s| (s.addr() | s.len) & (align - 1) == 0)
    }

    pub(crate) fn iovecs(&self, skip: usize, max: usize, to: &mut Vec<libc::iovec>) {
        self.each(skip, self.len - skip, |seg| {
            if to.len() < max {
                to.push(seg.iovec());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (Vec<Buf>, Sgl) {
        let bufs: Vec<Buf> = (0..3).map(|_| Buf::zeroed(512)).collect();
        let segs = bufs.iter().map(|b| b.sgl(10, 100).segs[0]).collect();
        (bufs, Sgl::of_parts(segs, Owner::None))
    }

    #[test]
    fn copies_cross_segments() {
        let (_bufs, sgl) = three();
        let bytes: Vec<u8> = (0..200).map(|i| i as u8).collect();
        sgl.copy_in(50, &bytes);
        let mut back = vec![0; 300];
        sgl.copy_out(0, &mut back);
        assert_eq!(back[50..250], bytes);
        assert!(back[..50].iter().chain(&back[250..]).all(|&b| b == 0));
        let part = sgl.slice(90, 20);
        assert_eq!(part.segs().len(), 2);
        let mut few = [0; 20];
        part.copy_out(0, &mut few);
        assert_eq!(few, bytes[40..60]);
    }

    #[test]
    fn list_to_list() {
        let (_a, from) = three();
        let (_b, to) = three();
        from.copy_in(0, &[9; 300]);
        assert!(!from.same_bytes(&to));
        to.copy_from(&from);
        assert!(from.same_bytes(&to));
        to.zero(299, 1);
        assert!(!from.same_bytes(&to));
        let (_c, part) = three();
        part.copy_part(95, &from, 150, 110);
        assert!(part.same_part(95, &from, 190, 110) && part.same_part(0, &part, 205, 95));
        assert!(!part.same_part(94, &from, 0, 2));
    }

    #[test]
    fn a_private_buffer_is_a_slice() {
        let buf = Buf::zeroed(512);
        let mut sgl = buf.sgl(0, 512);
        assert!(sgl.bytes_mut().is_none(), "`buf` still shares it");
        drop(buf);
        sgl.bytes_mut().unwrap()[0] = 1;
        let other = sgl.clone();
        assert!(sgl.bytes_mut().is_none());
        drop(other);
        assert_eq!(sgl.bytes_mut().unwrap()[0], 1);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_range_outside_is_refused() {
        let (_b, sgl) = three();
        sgl.copy_in(290, &[0; 20]);
    }
}
