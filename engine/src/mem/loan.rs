//! Memory that is lent: a volume in memory gives a reader its own bytes, and copies nothing.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use smallvec::SmallVec;

use super::sgl::Owner;
use super::{Mapping, Sgl, stream};

/// What every list that is out holds a part of.
#[derive(Debug)]
pub(super) struct Lent {
    _map: Arc<Mapping>,
}

/// Zeroed memory of its own that several shards may hold, and that lends its bytes to the one shard that does. Where several
/// do they would wait for each other: nothing is lent.
///
/// Nobody else reaches the memory, and it is written only by a [`Writing`], of which there is none while a list is out. So
/// what is lent does not change, and may be borrowed as `&[u8]` ([`Sgl::lent`]).
#[derive(Debug)]
pub struct Lender {
    map: Arc<Mapping>,
    lent: Arc<Lent>,
    holders: AtomicUsize,
}

impl Lender {
    /// `len` bytes, in huge pages where the kernel gives them.
    ///
    /// # Errors
    /// Those of mmap(2) when the address space has no such room.
    pub fn new(len: usize) -> io::Result<Arc<Self>> {
        let map = Arc::new(Mapping::anonymous(len)?);
        map.prefer_huge();
        let lent = Arc::new(Lent { _map: map.clone() });
        Ok(Arc::new(Lender { map, lent, holders: AtomicUsize::new(0) }))
    }

    /// A shard's hold of the memory.
    pub fn hold(self: &Arc<Self>) -> Holder {
        self.holders.fetch_add(1, Ordering::SeqCst);
        let bytes = self.map.sgl(0, self.map.len()).unwrap_or_default();
        Holder { lender: self.clone(), bytes, writing: Cell::new(false) }
    }
}

/// A shard's hold of a [`Lender`]'s memory.
#[derive(Debug)]
pub struct Holder {
    lender: Arc<Lender>,
    /// All of it: a hold of the shard's own, so that an I/O counts no references that shards share.
    bytes: Sgl,
    /// A [`Writing`] of this shard's is there.
    writing: Cell<bool>,
}

impl Holder {
    /// Bytes in the memory.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// As [`Sgl::prefetch`].
    ///
    /// # Panics
    /// If the first of the bytes are not within the memory.
    #[inline]
    pub fn prefetch(&self, at: usize, len: usize) {
        self.bytes.prefetch(at, len);
    }

    /// Copies bytes `at .. at + len` of the memory to byte `to_at` of `to` and on.
    ///
    /// # Panics
    /// If a range is not within its memory.
    #[inline]
    pub fn read(&self, at: usize, len: usize, to: &Sgl, to_at: usize) {
        to.copy_part(to_at, &self.bytes, at, len);
    }

    /// Whether bytes `at .. at + len` equal as many of `other` from `other_at` on.
    ///
    /// # Panics
    /// If a range is not within its memory.
    pub fn same(&self, at: usize, len: usize, other: &Sgl, other_at: usize) -> bool {
        self.bytes.same_part(at, other, other_at, len)
    }

    /// Bytes `at .. at + len`, out for as long as the list or a part of it is held. `None` if they are not within the
    /// memory, or another shard holds it too.
    pub fn lend(&self, at: usize, len: usize) -> Option<Sgl> {
        let alone = || self.lender.holders.load(Ordering::SeqCst) == 1;
        if self.writing.get() || !alone() {
            return None;
        }
        let seg = self.lender.map.seg(at, len)?;
        let sgl = Sgl::of_parts(SmallVec::from_slice(&[seg]), Owner::Loan(self.lender.lent.clone()));
        // Whoever holds it later finds the loan out, and whoever held it is seen: the fence stands in both.
        fence(Ordering::SeqCst);
        alone().then_some(sgl)
    }

    /// Leave to write, while no list is out; none is lent for as long as there is one.
    pub fn write(&self) -> Option<Writing<'_>> {
        fence(Ordering::SeqCst);
        if self.writing.get() || Arc::strong_count(&self.lender.lent) > 1 {
            return None;
        }
        // What was read from lists that came back was read before what is written now.
        fence(Ordering::Acquire);
        self.writing.set(true);
        Some(Writing(self))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.lender.holders.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Leave to write to a [`Lender`]'s memory. Other shards may have it too: that they do not write to the same bytes at once
/// is for those who care what becomes of them.
#[derive(Debug)]
pub struct Writing<'a>(&'a Holder);

impl Writing<'_> {
    /// Copies bytes `from_at .. from_at + len` of `from` to byte `at` of the memory and on.
    ///
    /// # Panics
    /// If a range is not within its memory.
    #[inline]
    pub fn copy(&self, at: usize, len: usize, from: &Sgl, from_at: usize) {
        self.0.bytes.copy_part(at, from, from_at, len);
    }

    /// As [`Writing::copy`], past the caches: for what is not read again soon.
    ///
    /// # Panics
    /// If a range is not within its memory.
    #[inline]
    pub fn copy_past_caches(&self, at: usize, len: usize, from: &Sgl, from_at: usize) {
        // SAFETY: both owners keep the bytes alive. They do not overlap: whoever else has a list of this memory has it by a
        // loan, and none is out.
        let copy = |to, from, len| unsafe { stream::copy(to, from, len) };
        self.0.bytes.each_pair(at, from, from_at, len, copy);
        stream::fence();
    }

    /// Zeroes bytes `at .. at + len`, and gives their whole pages back to the kernel. Nothing happens outside the memory.
    pub fn discard(&self, at: usize, len: usize) {
        self.0.lender.map.discard(at, len);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, filled};

    #[test]
    fn a_loan_is_out_while_a_part_of_it_is_held_and_nothing_assert_writable() {
        let holder = Lender::new(8192).unwrap().hold();
        holder.write().unwrap().copy(4096, 512, &filled(512, 7), 0);
        assert!(holder.lend(4096, 4097).is_none());
        let all = holder.lend(0, 8192).unwrap();
        let part = all.slice(4096, 512);
        drop(all);
        assert!(holder.write().is_none() && part.is_lent());
        assert!(part.lent().unwrap().eq([[7; 512]]), "and it can be borrowed");
        assert!(filled(512, 7).lent().is_none());
        drop(part);
        let writing = holder.write().unwrap();
        assert!(holder.lend(0, 8192).is_none() && holder.write().is_none(), "nor the other way round");
        writing.discard(4096, 4096);
        let copy = filled(512, 1);
        holder.read(4096, 512, &copy, 0);
        assert_eq!(bytes(&copy), [0; 512]);
    }

    #[test]
    fn several_shards_lend_each_other_nothing() {
        let lender = Lender::new(4096).unwrap();
        let (one, before) = (lender.hold(), lender.hold());
        assert!(one.lend(0, 512).is_none());
        drop(before);
        let before = one.lend(0, 512).unwrap();
        let other = lender.hold();
        assert!(other.write().is_none(), "who comes waits for what was lent before");
        assert!(one.lend(0, 512).is_none());
        drop(before);
        assert!(other.write().is_some());
        drop(other);
        assert!(one.lend(0, 512).is_some());
    }

    #[test]
    fn what_is_lent_is_not_written() {
        let holder = Lender::new(4096).unwrap().hold();
        let lent = holder.lend(0, 512).unwrap();
        let ways: [&dyn Fn(); 5] = [
            &|| lent.copy_in(0, &[1]),
            &|| lent.zero(0, 1),
            &|| lent.copy_from(&filled(512, 1)),
            &|| lent.publish(0, [1; 4]),
            &|| drop(lent.atomics()),
        ];
        for way in ways {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(way)).unwrap_err();
        }
    }
}
