//! Where a queue lies in this process: looked up once for as long as the guest's memory is the same.

use std::cell::{OnceCell, Ref, RefCell};

use engine::mem::{Access, GuestMemory, Sgl};

/// Entries' alignment: what no queue that is used has less of in the guest.
const ALIGN: usize = 16;

/// The memory of a queue that lies in one region of the guest's, as nearly all do.
#[derive(Default)]
pub(crate) struct QueueMemory(RefCell<OnceCell<Option<Sgl>>>);

impl QueueMemory {
    /// The `len` bytes at `gpa`, for `access` by us; `None` where they are not one run of mapped memory.
    #[inline]
    pub fn get(&self, memory: &GuestMemory, gpa: u64, len: u64, access: Access) -> Option<Ref<'_, Sgl>> {
        let find = || {
            let mut all = Sgl::empty();
            let found = all.push_guest(memory, gpa, usize::try_from(len).ok()?, access);
            (found.is_ok() && all.segs().len() == 1 && all.is_aligned(ALIGN)).then_some(all)
        };
        Ref::filter_map(self.0.borrow(), |found| found.get_or_init(find).as_ref()).ok()
    }

    /// The guest's memory has changed, and what is kept of it must go.
    pub fn forget(&self) {
        self.0.take();
    }
}

#[cfg(test)]
mod tests {
    use super::super::runs::testing::memory;
    use super::*;

    #[test]
    fn a_queue_is_found_once_and_let_go() {
        let (m, other) = (memory(0x10000), memory(0x10000));
        let queue = QueueMemory::default();
        let len = |m: &GuestMemory, gpa, len| queue.get(m, gpa, len, Access::Write).map(|sgl| sgl.len());
        assert_eq!(len(&m, 0x1000, 0x1000), Some(0x1000));
        let region = &m.regions()[0];
        assert_eq!(std::sync::Arc::strong_count(region), 2, "it is kept");
        assert_eq!(len(&other, 0x2000, 0x2000), Some(0x1000), "as it was found");
        queue.forget();
        assert_eq!(std::sync::Arc::strong_count(region), 1);
        assert_eq!(len(&m, 0xf000, 0x2000), None, "not all of it is memory");
        queue.forget();
        assert_eq!(len(&m, 1 << 30, 0x1000), None, "reached by messages");
    }
}
