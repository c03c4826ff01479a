//! Memory that is lent: a volume in memory gives a reader its own bytes, and copies nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use smallvec::SmallVec;

use super::sgl::Owner;
use super::{Mapping, Sgl};

/// What every list that is out holds a part of.
#[derive(Debug)]
pub(super) struct Lent {
    _map: Arc<Mapping>,
}

/// Lends the bytes of a mapping to the one shard that uses it, and knows whether some are out. Where several use it they
/// would wait for each other: nothing is lent.
///
/// Who writes to the mapping, on whichever shard, has entered, and writes only while [`Lender::is_out`] says no.
#[derive(Debug)]
pub struct Lender {
    map: Arc<Mapping>,
    lent: Arc<Lent>,
    users: AtomicUsize,
}

impl Lender {
    /// Lends from `map`.
    pub fn new(map: &Arc<Mapping>) -> Self {
        let lent = Arc::new(Lent { _map: map.clone() });
        Lender { map: map.clone(), lent, users: AtomicUsize::new(0) }
    }

    /// A shard begins to use the mapping.
    pub fn enter(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    /// It does so no more.
    pub fn leave(&self) {
        self.users.fetch_sub(1, Ordering::SeqCst);
    }

    /// Bytes `at .. at + len` of the mapping, out for as long as the list or a part of it is held. `None` if they are not
    /// within it, or another shard uses it too.
    pub fn lend(&self, at: usize, len: usize) -> Option<Sgl> {
        let alone = || self.users.load(Ordering::SeqCst) == 1;
        if !alone() {
            return None;
        }
        let seg = self.map.seg(at, len)?;
        let sgl = Sgl::of_parts(SmallVec::from_slice(&[seg]), Owner::Loan(self.lent.clone()));
        // Whoever enters later finds the loan out, and whoever has entered is seen: the fence stands in both.
        fence(Ordering::SeqCst);
        alone().then_some(sgl)
    }

    /// Whether a list is out.
    pub fn is_out(&self) -> bool {
        fence(Ordering::SeqCst);
        let out = Arc::strong_count(&self.lent) > 1;
        // What was read from lists that came back was read before what is written now.
        fence(Ordering::Acquire);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_is_out_while_a_part_of_it_is_held() {
        let map = Arc::new(Mapping::anonymous(8192).unwrap());
        let lender = Lender::new(&map);
        lender.enter();
        assert!(lender.lend(4096, 4097).is_none() && !lender.is_out());
        let all = lender.lend(0, 8192).unwrap();
        let part = all.slice(4096, 512);
        drop(all);
        assert!(lender.is_out() && part.is_lent());
        assert!(!map.sgl(0, 1).unwrap().is_lent(), "what the lender itself has is not lent");
        map.sgl(4096, 4096).unwrap().copy_in(0, &[7; 512]);
        let mut bytes = [0; 512];
        part.copy_out(0, &mut bytes);
        assert_eq!(bytes, [7; 512]);
        drop(part);
        assert!(!lender.is_out());
    }

    #[test]
    fn several_shards_lend_each_other_nothing() {
        let lender = Lender::new(&Arc::new(Mapping::anonymous(4096).unwrap()));
        lender.enter();
        let before = lender.lend(0, 512).unwrap();
        lender.enter();
        assert!(lender.is_out(), "who comes waits for what was lent before");
        assert!(lender.lend(0, 512).is_none());
        drop(before);
        assert!(!lender.is_out());
        lender.leave();
        assert!(lender.lend(0, 512).is_some());
    }
}
