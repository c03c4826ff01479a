//! Memory of all shapes: pool buffers, one run of guest memory, many runs that begin anywhere on four bytes.

use std::sync::Arc;

use super::rng::Rng;
use crate::mem::{Access, Buf, GuestMemory, Mapping, Region, RegionId, Sgl};

/// Most runs in a list, and most bytes between two of them.
const RUNS: usize = 12;
const GAP: u64 = 256;

/// Two regions of guest memory, divided among I/Os in flight.
pub(super) struct Memory {
    guest: GuestMemory,
    regions: [Arc<Region>; 2],
    /// References to each region when no I/O has any.
    idle: usize,
    arena: u64,
}

impl Memory {
    /// Room for `slots` I/Os of at most `len` bytes each; `None` if the process has none.
    pub(super) fn new(slots: usize, len: usize) -> Option<Self> {
        let arena = (len as u64 + RUNS as u64 * GAP).next_multiple_of(4096);
        let bytes = arena * slots.div_ceil(2) as u64;
        let region = |gpa| {
            let map = Mapping::anonymous(usize::try_from(bytes).ok()?).ok()?;
            Region::new(gpa, bytes, true, true, Some(map))
        };
        let regions = [region(1 << 30)?, region(1 << 40)?];
        let guest = GuestMemory::default().with(regions[0].clone())?.with(regions[1].clone())?;
        let idle = Arc::strong_count(&regions[0]);
        Some(Memory { guest, regions, idle, arena })
    }

    pub(super) fn region(&self, which: usize) -> RegionId {
        self.regions[which].id()
    }

    /// Whether nobody but us holds region `which`.
    pub(super) fn is_idle(&self, which: usize) -> bool {
        Arc::strong_count(&self.regions[which]) == self.idle
    }

    /// `len` bytes (a multiple of 4) for the I/O in slot `slot`, and the pool buffer if it is one.
    pub(super) fn take(&self, rng: &mut Rng, slot: usize, len: usize) -> (Sgl, Option<Buf>) {
        let shape = rng.below(4);
        if shape == 0 {
            let at = 4 * rng.index(64);
            let buf = Buf::new(at + len);
            return (buf.sgl(at, len), Some(buf));
        }
        let runs = if shape == 1 { 1 } else { 1 + rng.index(RUNS) };
        let mut gpa = self.regions[slot % 2].gpa() + (slot / 2) as u64 * self.arena;
        let mut list = Sgl::empty();
        let mut left = len;
        for run in 1..=runs {
            // A list of one run begins on a page, as most of a real host's do.
            gpa += if runs == 1 { 0 } else { 4 * rng.below(GAP / 4) };
            let n = if run == runs { left } else { (4 * rng.index(left / 2 + 1)).min(left) };
            if n > 0 && list.push_guest(&self.guest, gpa, n, Access::Write).is_err() {
                break;
            }
            gpa += n as u64;
            left -= n;
        }
        (list, None)
    }
}
