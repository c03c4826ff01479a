//! Memory mapped into this process: guest RAM by file descriptor, shared doorbell pages, RAM volumes.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use smallvec::SmallVec;

use super::sgl::Owner;
use super::share::Counted;
use super::{MapShare, Seg, Sgl, sigbus};

/// A mapping of whole pages, unmapped when dropped.
///
/// When the file behind it turns out shorter than the mapping, an access that would raise SIGBUS reads zeroes
/// instead and [`Mapping::is_condemned`] becomes true: who owns the mapping stops using it.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    /// Bytes mapped, from `base`.
    mapped: usize,
    /// Where the caller's range begins within them (files are mapped from a page boundary).
    skip: usize,
    len: usize,
    watch: Option<sigbus::Watch>,
    /// Whose share it is of.
    _counted: Option<Counted>,
}

// SAFETY: the mapping is plain memory, reached by raw copies and atomics only, and unmapped once.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

const PAGE: u64 = 4096;

/// Bytes of the pages that a file is mapped by: those of hugetlbfs by huge ones alone.
fn page_size(file: &OwnedFd) -> u64 {
    use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
    match fstatfs(file) {
        Ok(of) if of.filesystem_type() == HUGETLBFS_MAGIC => (of.block_size() as u64).max(PAGE),
        _ => PAGE,
    }
}

impl Mapping {
    /// `len` bytes of zeroes, private to this process, allocated page by page as they are touched.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` for no bytes.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Mapping { base: base.cast(), mapped: len, skip: 0, len, watch: None, _counted: None })
    }

    /// Asks the kernel for huge pages, where it gives them to who asks (transparent ones, nothing is reserved): a large
    /// mapping that is touched at random costs fewer misses of the translation buffer.
    pub fn prefer_huge(&self) {
        // SAFETY: advice about a mapping of ours; its contents stay.
        let advised = unsafe { madvise(self.base.cast(), self.mapped, MmapAdvise::MADV_HUGEPAGE) };
        if let Err(error) = advised {
            tracing::debug!(%error, "no transparent huge pages");
        }
    }

    /// Bytes `offset .. offset + len` of `file`, shared with whoever else maps them, writable or not.
    ///
    /// # Errors
    /// Those of mmap(2) (EACCES when the descriptor's mode does not allow it, ENODEV for what is no memory);
    /// `InvalidInput` for an empty range or one that wraps; ENOSPC when no more maps can be watched.
    pub fn shared(file: &OwnedFd, offset: u64, len: usize, writable: bool) -> io::Result<Self> {
        Self::watched(file, offset, len, writable, None)
    }

    /// As [`Mapping::shared`], for a client that may ask for as many as it likes.
    ///
    /// # Errors
    /// As there; ENOSPC also when the client has its share.
    pub fn of_client(
        client: &MapShare,
        file: &OwnedFd,
        offset: u64,
        len: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let counted = client.take().ok_or(Errno::ENOSPC)?;
        Self::watched(file, offset, len, writable, Some(counted))
    }

    fn watched(
        file: &OwnedFd,
        offset: u64,
        len: usize,
        writable: bool,
        counted: Option<Counted>,
    ) -> io::Result<Self> {
        let page = page_size(file);
        let skip = offset % page;
        let start = i64::try_from(offset - skip).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Whole pages, since huge ones are unmapped by no less.
        let whole = |len: usize| len.checked_add(skip as usize)?.checked_next_multiple_of(page as usize);
        let mapped = whole(len).filter(|_| len != 0).ok_or(io::ErrorKind::InvalidInput)?;
        start.checked_add_unsigned(mapped as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let size = NonZeroUsize::new(mapped).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, file.as_fd(), start) }?.cast();
        let Some(watch) = sigbus::Watch::new(base, mapped) else {
            // SAFETY: mapped just above, and nothing refers to it.
            let _ = unsafe { munmap(base.cast(), mapped) };
            return Err(Errno::ENOSPC.into());
        };
        Ok(Mapping { base, mapped, skip: skip as usize, len, watch: Some(watch), _counted: counted })
    }

    /// A new memory file of `len` bytes (`memfd_create`), to be shared with a peer, and our mapping of it.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn memfd(name: &str, len: usize) -> io::Result<(Self, OwnedFd)> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(len as u64)?;
        let fd = OwnedFd::from(file);
        // The peer holds the same file: without the seal it could shrink it under us.
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_SHRINK))?;
        Ok((Self::shared(&fd, 0, len, true)?, fd))
    }

    /// Bytes in the mapping.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes (never: such a mapping cannot be made).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether an access found the file behind the mapping gone.
    pub fn is_condemned(&self) -> bool {
        self.watch.as_ref().is_some_and(sigbus::Watch::is_condemned)
    }

    pub(super) fn seg(&self, at: usize, len: usize) -> Option<Seg> {
        let end = at.checked_add(len)?;
        // SAFETY: the range is within the mapping.
        (end <= self.len).then(|| Seg::new(unsafe { self.base.add(self.skip + at) }, len))
    }

    /// Bytes `at .. at + len` as a list that keeps the mapping alive; `None` if they are not within it.
    pub fn sgl(self: &Arc<Self>, at: usize, len: usize) -> Option<Sgl> {
        let seg = self.seg(at, len)?;
        Some(Sgl::of_parts(SmallVec::from_slice(&[seg]), Owner::Mapping(self.clone())))
    }

    /// The 32-bit word at byte `at` (a multiple of 4): a doorbell, an event index.
    pub fn word(&self, at: usize) -> Option<&AtomicU32> {
        let seg = self.seg(at, 4)?;
        if seg.addr() % 4 != 0 {
            return None;
        }
        // SAFETY: within the mapping, aligned, and atomics allow for the peer's writes.
        Some(unsafe { AtomicU32::from_ptr(seg.as_ptr().cast()) })
    }

    /// Gives the memory of the whole pages within `at .. at + len` back to the kernel; they read as zeroes afterwards
    /// (anonymous mappings only). What is not a whole page is zeroed. Nothing happens outside the mapping.
    pub fn discard(&self, at: usize, len: usize) {
        let Some(seg) = self.seg(at, len).filter(|_| self.watch.is_none()) else { return };
        let page = PAGE as usize;
        let (start, end) = (seg.addr(), seg.addr() + len);
        let (first, last) = (start.next_multiple_of(page), end / page * page);
        let zero = |from: usize, to: usize| {
            if to > from {
                // SAFETY: `from .. to` is within `seg`.
                unsafe { seg.as_ptr().add(from - start).write_bytes(0, to - from) };
            }
        };
        if last <= first {
            return zero(start, end);
        }
        zero(start, first);
        zero(last, end);
        // SAFETY: whole pages within a private anonymous mapping; they become zeroes.
        let whole = unsafe { NonNull::new_unchecked(seg.as_ptr().add(first - start)) };
        // SAFETY: as above.
        if unsafe { madvise(whole.cast(), last - first, MmapAdvise::MADV_DONTNEED) }.is_err() {
            zero(first, last);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: nobody refers to the mapping any more: every list over it holds its owner.
        let _ = unsafe { munmap(self.base.cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_maps_of_one_file_share_bytes() {
        let (a, fd) = Mapping::memfd("test", 8192).unwrap();
        let b = Arc::new(Mapping::shared(&fd, 4096 + 8, 100, false).unwrap());
        Arc::new(a).sgl(4096, 108).unwrap().copy_in(0, &[5; 108]);
        let mut back = [0; 100];
        b.sgl(0, 100).unwrap().copy_out(0, &mut back);
        assert_eq!(back, [5; 100]);
        assert!(b.sgl(1, 100).is_none());
    }

    #[test]
    fn parts_of_huge_pages_are_mapped_by_whole_ones() {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let fd = memfd_create("huge", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB).unwrap();
        let huge = page_size(&fd);
        assert!(huge > PAGE);
        File::from(fd.try_clone().unwrap()).set_len(2 * huge).unwrap();
        // As a guest's memory is cut up: not on huge pages' boundaries. A machine without such pages refuses the map.
        let Ok(map) = Mapping::shared(&fd, huge - 4096, 8192, true) else { return };
        assert_eq!((map.len(), map.mapped as u64), (8192, 2 * huge));
        let map = Arc::new(map);
        map.sgl(0, 8192).unwrap().copy_in(0, &[7; 8192]);
        let other = Arc::new(Mapping::shared(&fd, huge, 4096, false).unwrap());
        let mut back = [0; 4096];
        other.sgl(0, 4096).unwrap().copy_out(0, &mut back);
        assert_eq!(back, [7; 4096]);
    }

    #[test]
    fn a_truncated_file_condemns_its_mapping_and_kills_nobody() {
        let map = truncated();
        let mut back = [1; 64];
        map.sgl(8192, 64).unwrap().copy_out(0, &mut back);
        assert_eq!(back, [0; 64]);
        assert!(map.is_condemned());
        map.sgl(8192, 64).unwrap().copy_in(0, &[1; 64]);
    }

    /// A mapping of four pages, of which the file has one.
    fn truncated() -> Arc<Mapping> {
        let fd = nix::sys::memfd::memfd_create("short", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(16384).unwrap();
        let map = Mapping::shared(&file.try_clone().unwrap().into(), 0, 16384, true).unwrap();
        file.set_len(4096).unwrap();
        Arc::new(map)
    }

    #[test]
    fn each_mapping_is_condemned_for_itself_alone_while_others_come_and_go() {
        let turn = || {
            for _ in 0..500 {
                let (short, other) = (truncated(), Mapping::memfd("other", 8192).unwrap().0);
                assert!(!short.is_condemned(), "nothing is left of who was watched here before");
                short.sgl(8192, 64).unwrap().zero(0, 64);
                assert!(short.is_condemned() && !other.is_condemned());
            }
        };
        std::thread::scope(|scope| [(); 3].map(|()| scope.spawn(turn)).map(|t| t.join().unwrap()));
    }

    #[test]
    fn a_truncated_file_of_huge_pages_kills_nobody_either() {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        const HUGE: usize = 2 << 20;
        let Ok(fd) = memfd_create("huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB) else { return };
        let file = File::from(fd);
        file.set_len(HUGE as u64).unwrap();
        // Only where the machine has such pages.
        let Ok(map) = Mapping::shared(&file.try_clone().unwrap().into(), 0, HUGE, true) else { return };
        file.set_len(0).unwrap();
        let map = Arc::new(map);
        map.sgl(4096, 64).unwrap().copy_in(0, &[1; 64]);
        assert!(map.is_condemned());
    }

    #[test]
    fn discarded_bytes_read_zero() {
        let map = Arc::new(Mapping::anonymous(16384).unwrap());
        let all = map.sgl(0, 16384).unwrap();
        all.copy_in(0, &[7; 16384]);
        map.discard(100, 9000);
        let mut back = [0; 16384];
        all.copy_out(0, &mut back);
        assert!(back[100..9100].iter().all(|&b| b == 0));
        assert!(back[..100].iter().chain(&back[9100..]).all(|&b| b == 7));
    }
}
