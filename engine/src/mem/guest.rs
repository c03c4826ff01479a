//! A guest's memory: regions of its physical address space, as the client declared them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Mapping, Seg, Sgl};

/// Names one region for as long as this process lives; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(u64);

/// What is about to be done to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads it.
    Read,
    /// The device writes it.
    Write,
}

/// Why guest memory cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// No region covers the address.
    #[error("no memory at guest address {0:#x}")]
    Unmapped(u64),
    /// The region does not allow this access.
    #[error("guest memory at {0:#x} does not allow this access")]
    Denied(u64),
    /// The region has no file descriptor: `len` bytes at `gpa` are reached by messages only.
    #[error("guest memory at {gpa:#x} is reached by messages only")]
    ByMessage {
        /// Guest physical address.
        gpa: u64,
        /// Bytes, all in one region.
        len: usize,
    },
}

/// A run of guest physical memory.
#[derive(Debug)]
pub struct Region {
    id: RegionId,
    gpa: u64,
    len: u64,
    readable: bool,
    writable: bool,
    map: Option<Mapping>,
}

impl Region {
    /// A region of `len` bytes at guest address `gpa`; without a mapping it is reached by messages only.
    /// `None` if it is empty, wraps the address space, or the mapping is shorter.
    pub fn new(
        gpa: u64,
        len: u64,
        readable: bool,
        writable: bool,
        map: Option<Mapping>,
    ) -> Option<Arc<Self>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        gpa.checked_add(len).filter(|_| len != 0)?;
        if map.as_ref().is_some_and(|m| (m.len() as u64) < len) {
            return None;
        }
        let id = RegionId(NEXT.fetch_add(1, Ordering::Relaxed));
        Some(Arc::new(Region { id, gpa, len, readable, writable, map }))
    }

    /// The region's name.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// First guest address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the region has no bytes (never).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the file behind it was truncated under us.
    pub fn is_condemned(&self) -> bool {
        self.map.as_ref().is_some_and(Mapping::is_condemned)
    }

    fn end(&self) -> u64 {
        self.gpa + self.len
    }
}

/// An immutable picture of a guest's memory. A map or an unmap makes a new one; I/O in flight keeps the regions it
/// touches, and no others.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory(Arc<Vec<Arc<Region>>>);

impl GuestMemory {
    /// The regions, by ascending address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.0
    }

    /// This memory and `region`; `None` if it overlaps one that is there.
    pub fn with(&self, region: Arc<Region>) -> Option<Self> {
        let at = self.0.partition_point(|r| r.gpa < region.gpa);
        let clear = at.checked_sub(1).is_none_or(|i| self.0[i].end() <= region.gpa)
            && self.0.get(at).is_none_or(|next| region.end() <= next.gpa);
        clear.then(|| {
            let mut regions = Vec::clone(&self.0);
            regions.insert(at, region);
            GuestMemory(Arc::new(regions))
        })
    }

    /// This memory without region `id`.
    pub fn without(&self, id: RegionId) -> Self {
        GuestMemory(Arc::new(self.0.iter().filter(|r| r.id != id).cloned().collect()))
    }

    /// The region that covers `gpa`.
    #[inline]
    pub fn region_at(&self, gpa: u64) -> Option<&Arc<Region>> {
        let at = self.0.partition_point(|r| r.gpa <= gpa).checked_sub(1)?;
        Some(&self.0[at]).filter(|r| gpa < r.end())
    }

    /// The longest run at `gpa` of at most `len` bytes that lies in one region.
    #[inline]
    fn run(&self, gpa: u64, len: usize, access: Access) -> Result<(&Arc<Region>, Seg), MemError> {
        let region = self.region_at(gpa).ok_or(MemError::Unmapped(gpa))?;
        let allowed = match access {
            Access::Read => region.readable,
            Access::Write => region.writable,
        };
        if !allowed {
            return Err(MemError::Denied(gpa));
        }
        let len = (region.end() - gpa).min(len as u64) as usize;
        let Some(map) = &region.map else { return Err(MemError::ByMessage { gpa, len }) };
        let seg = map.seg((gpa - region.gpa) as usize, len).ok_or(MemError::Unmapped(gpa))?;
        Ok((region, seg))
    }

    /// Reads `bytes.len()` bytes at `gpa`, each once.
    ///
    /// # Errors
    /// [`MemError`]; `bytes` may then be filled in part.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), MemError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemError::Unmapped(gpa))?;
            let (_, seg) = self.run(at, bytes.len() - done, Access::Read)?;
            let to = &mut bytes[done..done + seg.len()];
            // SAFETY: `self` keeps the region mapped; bytes have no invalid value; `to` is private.
            unsafe { seg.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
            done += seg.len();
        }
        Ok(())
    }

    /// Writes `bytes` at `gpa`.
    ///
    /// # Errors
    /// [`MemError`]; some of the bytes may then have been written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), MemError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemError::Unmapped(gpa))?;
            let (_, seg) = self.run(at, bytes.len() - done, Access::Write)?;
            let from = &bytes[done..done + seg.len()];
            // SAFETY: as in `read`.
            unsafe { seg.as_ptr().copy_from_nonoverlapping(from.as_ptr(), from.len()) };
            done += seg.len();
        }
        Ok(())
    }

    /// Reads the 32-bit word at `gpa` (a multiple of 4) in one access: a shadow doorbell.
    ///
    /// # Errors
    /// [`MemError`]; `Unmapped` also for an odd address.
    pub fn load_u32(&self, gpa: u64) -> Result<u32, MemError> {
        Ok(self.word(gpa, Access::Read)?.load(Ordering::Acquire))
    }

    /// Writes the 32-bit word at `gpa` (a multiple of 4) in one access, after every earlier write: an event index, or
    /// the last word of a completion queue entry.
    ///
    /// # Errors
    /// As [`GuestMemory::load_u32`].
    pub fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemError> {
        self.word(gpa, Access::Write)?.store(value, Ordering::Release);
        Ok(())
    }

    fn word(&self, gpa: u64, access: Access) -> Result<&std::sync::atomic::AtomicU32, MemError> {
        let (_, seg) = self.run(gpa, 4, access)?;
        if seg.len() != 4 || seg.addr() % 4 != 0 {
            return Err(MemError::Unmapped(gpa));
        }
        // SAFETY: four mapped, aligned bytes that `self` keeps alive; atomics allow for the guest's writes.
        Ok(unsafe { std::sync::atomic::AtomicU32::from_ptr(seg.as_ptr().cast()) })
    }
}

impl Sgl {
    /// Adds `len` bytes at guest address `gpa`, for a device that does `access` to them; runs that touch are joined. The
    /// list is of guest memory alone.
    ///
    /// # Errors
    /// [`MemError`]; the list then holds what came before.
    ///
    /// # Panics
    /// If the list has memory of another kind.
    pub fn push_guest(
        &mut self,
        memory: &GuestMemory,
        gpa: u64,
        len: usize,
        access: Access,
    ) -> Result<(), MemError> {
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done as u64).ok_or(MemError::Unmapped(gpa))?;
            let (region, seg) = memory.run(at, len - done, access)?;
            self.push_of(region, seg);
            done += seg.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        let region = |gpa, len: u64, writable| {
            Region::new(gpa, len, true, writable, Some(Mapping::anonymous(len as usize).unwrap())).unwrap()
        };
        GuestMemory::default()
            .with(region(0x1000, 0x1000, true))
            .and_then(|m| m.with(region(0x4000, 0x1000, false)))
            .and_then(|m| m.with(region(0x2000, 0x1000, true)))
            .unwrap()
    }

    #[test]
    fn reads_and_writes_cross_regions() {
        let m = memory();
        m.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 4];
        m.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        assert_eq!(m.write(0x2ffe, &[0; 4]), Err(MemError::Unmapped(0x3000)));
        assert_eq!(m.write(0x4000, &[0]), Err(MemError::Denied(0x4000)));
        assert_eq!(m.read(u64::MAX, &mut back), Err(MemError::Unmapped(u64::MAX)));
    }

    #[test]
    fn overlaps_and_wraps_are_refused() {
        let m = memory();
        let message = |gpa, len| Region::new(gpa, len, true, true, None);
        assert!(m.with(message(0x1fff, 2).unwrap()).is_none());
        assert!(m.with(message(0, 0x1001).unwrap()).is_none());
        assert!(m.with(message(0x3000, 0x1000).unwrap()).is_some());
        assert!(message(u64::MAX, 2).is_none());
        assert!(message(0, 0).is_none());
    }

    #[test]
    fn a_list_keeps_only_the_regions_it_touches() {
        let m = memory();
        let first = m.regions()[0].clone();
        let mut one = Sgl::empty();
        one.push_guest(&m, 0x1000, 16, Access::Read).unwrap();
        one.push_guest(&m, 0x1010, 16, Access::Read).unwrap();
        assert_eq!((one.segs().len(), one.len()), (1, 32), "runs that touch are joined");
        assert!(one.touches(first.id()) && !one.touches(m.regions()[1].id()));
        let mut two = Sgl::empty();
        two.push_guest(&m, 0x1ff0, 32, Access::Write).unwrap();
        assert!(two.touches(first.id()) && two.touches(m.regions()[1].id()) && two.segs().len() == 2);
        let rest = m.without(first.id());
        drop(m);
        let m = rest;
        assert_eq!(m.load_u32(0x1000), Err(MemError::Unmapped(0x1000)));
        assert_eq!(Arc::strong_count(&first), 3, "this test and two lists");
        two.clear();
        assert_eq!((Arc::strong_count(&first), two.len()), (2, 0), "a list that was cleared keeps nothing");
    }

    #[test]
    fn memory_without_a_descriptor_says_so() {
        let m = memory().with(Region::new(0x3000, 0x1000, true, true, None).unwrap()).unwrap();
        let mut back = [0; 32];
        assert_eq!(m.read(0x2ff0, &mut back), Err(MemError::ByMessage { gpa: 0x3000, len: 16 }));
    }
}
