//! Physical Region Pages (Base 2.1, 4.3.1): two entries, of which the second is nothing, a page, or a list of pages.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nvme_proto::Status;
use nvme_proto::dptr::Prp;

use super::runs::{CHUNK, Runs, Walk};

const ENTRY: u64 = size_of::<u64>() as u64;

/// A walk over PRP lists.
///
/// Every list but the first starts at a page's beginning and so names at least one page of data: the walk is bounded
/// by the transfer's length, whatever the lists say.
#[derive(Debug)]
pub(crate) struct PrpWalk {
    page: u64,
    /// Where the next entry lies.
    at: u64,
    /// Bytes of data that no entry has named yet.
    left: usize,
}

/// Where `len` bytes of data are that lie in the page of the first entry: what most commands have.
#[inline]
pub(crate) fn in_one_page(prp: Prp, len: usize, page: u64) -> Option<u64> {
    let offset = prp.prp1 & page.saturating_sub(1);
    let fits = (len as u64) <= page.saturating_sub(offset) && prp.prp1.is_multiple_of(4);
    fits.then_some(prp.prp1)
}

impl PrpWalk {
    /// Begins a walk over `len` bytes in pages of `page` bytes (a power of two).
    pub fn new(prp: Prp, len: usize, page: u64, to: &mut Runs) -> Result<Self, Status> {
        let mut walk = PrpWalk { page, at: 0, left: len };
        if len == 0 {
            return Ok(walk);
        }
        if !prp.prp1.is_multiple_of(4) {
            return Err(Status::PRP_OFFSET_INVALID.dnr());
        }
        let in_first = page.saturating_sub(walk.offset(prp.prp1));
        walk.data(prp.prp1, in_first, to)?;
        match walk.left {
            0 => {}
            left if left as u64 <= page => walk.whole_page(prp.prp2, to)?,
            _ if !prp.prp2.is_multiple_of(ENTRY) => return Err(Status::PRP_OFFSET_INVALID.dnr()),
            _ => walk.at = prp.prp2,
        }
        Ok(walk)
    }

    fn offset(&self, gpa: u64) -> u64 {
        gpa & self.page.saturating_sub(1)
    }

    /// Entries of the list from `at` to the end of its page.
    fn room(&self) -> u64 {
        self.page.saturating_sub(self.offset(self.at)) / ENTRY
    }

    /// Pages of data that are still to be named.
    fn pages(&self) -> u64 {
        (self.left as u64).div_ceil(self.page)
    }

    fn data(&mut self, gpa: u64, max: u64, to: &mut Runs) -> Result<(), Status> {
        let n = self.left.min(usize::try_from(max).unwrap_or(usize::MAX));
        to.push(gpa, n)?;
        self.left = self.left.saturating_sub(n);
        Ok(())
    }

    fn whole_page(&mut self, gpa: u64, to: &mut Runs) -> Result<(), Status> {
        if self.offset(gpa) != 0 {
            return Err(Status::PRP_OFFSET_INVALID.dnr());
        }
        self.data(gpa, self.page, to)
    }
}

impl Walk for PrpWalk {
    fn wants(&self) -> Option<(u64, usize)> {
        if self.left == 0 {
            return None;
        }
        let entries = self.room().min(self.pages()).min(CHUNK as u64 / ENTRY);
        let bytes = usize::try_from(entries.saturating_mul(ENTRY)).unwrap_or(CHUNK);
        Some((self.at, bytes))
    }

    fn take(&mut self, bytes: &[u8], to: &mut Runs) -> Result<(), Status> {
        for entry in bytes.as_chunks::<8>().0 {
            let entry = u64::from_le_bytes(*entry);
            if self.room() == 1 && self.pages() > 1 {
                // The last entry of a page, and more to come than it could name: the next list.
                if self.offset(entry) != 0 {
                    return Err(Status::PRP_OFFSET_INVALID.dnr());
                }
                self.at = entry;
                return Ok(());
            }
            self.whole_page(entry, to)?;
            self.at = self.at.wrapping_add(ENTRY);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::super::runs::testing::*;
    use super::super::runs::{Run, Step};
    use super::*;
    use engine::mem::GuestMemory;

    fn walk(m: &GuestMemory, prp1: u64, prp2: u64, len: usize) -> Result<Vec<Run>, Status> {
        let mut runs = Runs::default();
        let mut walk = PrpWalk::new(Prp { prp1, prp2 }, len, 4096, &mut runs)?;
        assert_eq!(walk.advance(m, &mut runs)?, Step::Done);
        Ok(runs.as_slice().to_vec())
    }

    const OFFSET: Status = Status::PRP_OFFSET_INVALID;

    #[test]
    fn one_and_two_entries() {
        let m = memory(0x10000);
        assert_eq!(walk(&m, 0x1004, 1, 512).unwrap(), [run(0x1004, 512)], "PRP2 is not looked at");
        assert_eq!(walk(&m, 0x1f00, 0x5000, 512).unwrap(), [run(0x1f00, 256), run(0x5000, 256)]);
        assert_eq!(walk(&m, 0x1f00, 0x2000, 0x1100).unwrap(), [run(0x1f00, 0x1100)], "pages that touch");
        assert_eq!(walk(&m, 0, 0, 0).unwrap(), []);
    }

    #[test]
    fn g79_offsets_that_may_not_be() {
        let m = memory(0x10000);
        assert_eq!(walk(&m, 0x1002, 0, 512).unwrap_err().code(), OFFSET);
        assert_eq!(walk(&m, 0x1000, 0x5004, 8192).unwrap_err().code(), OFFSET, "PRP2 as a page");
        assert_eq!(walk(&m, 0x1000, 0x5004, 12288).unwrap_err().code(), OFFSET, "PRP2 as a list");
        store(&m, 0x5000, &[0x2000, 0x3008]);
        assert_eq!(walk(&m, 0x1000, 0x5000, 12288).unwrap_err().code(), OFFSET, "an entry");
    }

    #[test]
    fn a_list_that_starts_mid_page_and_goes_on_in_another() {
        let m = memory(0x100000);
        // Four data pages in lists: three entries are left in the first page, the last of which is the chain.
        store(&m, 0x5fe8, &[0x20000, 0x22000, 0x7000]);
        store(&m, 0x7000, &[0x24000, 0x26000]);
        let want = [0x10000, 0x20000, 0x22000, 0x24000, 0x26000].map(|gpa| run(gpa, 4096));
        assert_eq!(walk(&m, 0x10000, 0x5fe8, 5 * 4096).unwrap(), want);
        // With exactly as many entries as pages, the last one is a page.
        store(&m, 0x5fe8, &[0x20000, 0x22000, 0x28000]);
        let want = [0x10000, 0x20000, 0x22000, 0x28000].map(|gpa| run(gpa, 4096));
        assert_eq!(walk(&m, 0x10000, 0x5fe8, 4 * 4096).unwrap(), want);
        // A list that begins with its page's last entry is but a chain.
        store(&m, 0x5ff8, &[0x7000]);
        let want = [0x10000, 0x24000, 0x26000].map(|gpa| run(gpa, 4096));
        assert_eq!(walk(&m, 0x10000, 0x5ff8, 3 * 4096).unwrap(), want);
        store(&m, 0x5ff8, &[0x7010]);
        assert_eq!(walk(&m, 0x10000, 0x5ff8, 3 * 4096).unwrap_err().code(), OFFSET);
    }

    #[test]
    fn g79_a_list_that_names_itself_ends() {
        let m = memory(0x100000);
        let mut list = [0x8000u64; 512];
        list[511] = 0x5000;
        store(&m, 0x5000, &list);
        let runs = walk(&m, 0x1000, 0x5000, 4 << 20).unwrap_or_default();
        assert!(runs.len() <= super::super::runs::MAX_RUNS);
        let runs = walk(&m, 0x1000, 0x5000, 600 * 4096).unwrap();
        assert_eq!(runs.iter().map(|r| r.len).sum::<usize>(), 600 * 4096);
    }

    #[test]
    fn g79_lists_outside_memory() {
        let m = memory(0x10000);
        store(&m, 0xfff8, &[0x10000]);
        assert_eq!(walk(&m, 0x1000, 0xfff8, 12288), Err(Status::DATA_TRANSFER_ERROR.dnr()));
        assert_eq!(walk(&m, 0x1000, 0x20000, 12288), Err(Status::DATA_TRANSFER_ERROR.dnr()));
        assert_eq!(walk(&m, 0x1000, u64::MAX - 7, 12288), Err(Status::DATA_TRANSFER_ERROR.dnr()));
    }

    #[test]
    fn a_list_behind_messages_is_asked_for() {
        let m = memory(0x10000);
        let mut runs = Runs::default();
        let prp = Prp { prp1: 0x1000, prp2: 1 << 30 };
        let mut walk = PrpWalk::new(prp, 12288, 4096, &mut runs).unwrap();
        assert_eq!(walk.advance(&m, &mut runs), Ok(Step::Need { gpa: 1 << 30, len: 16 }));
        let list: Vec<u8> = [0x4000u64, 0x8000].iter().flat_map(|e| e.to_le_bytes()).collect();
        walk.take(&list, &mut runs).unwrap();
        assert_eq!(walk.advance(&m, &mut runs), Ok(Step::Done));
        assert_eq!(runs.as_slice(), [run(0x1000, 4096), run(0x4000, 4096), run(0x8000, 4096)]);
    }

    #[test]
    fn g79_whatever_lists_say_the_walk_ends_with_the_bytes_asked_or_a_status() {
        let m = memory(0x20000);
        let mut next = random(79);
        let mut good = 0;
        for _ in 0..20_000 {
            // Few pages, so that lists name themselves, each other, and data.
            let mut address = || match next() % 8 {
                0 => next(),
                1 => (next() % 0x20000) & !7,
                2 => (next() % 0x20 * 0x1000) | 0xff8,
                _ => next() % 0x20 * 0x1000,
            };
            let (at, entry, prp1, prp2) = (address() % 0x1fff8, address(), address(), address());
            store(&m, at, &[entry]);
            let len = (next() % (600 * 4096)) as usize;
            if let Ok(runs) = walk(&m, prp1, prp2, len) {
                assert_eq!(runs.iter().map(|r| r.len).sum::<usize>(), len);
                good += 1;
            }
        }
        assert!(good > 100, "{good}");
    }
}
