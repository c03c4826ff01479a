//! What clients do wrong: a counter for each kind, and logs that a client cannot flood.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A message with a size below the header's, or above what is taken: the client is let go.
    Size,
    /// A message that is neither command nor reply: the client is let go.
    Type,
    /// More descriptors than a message may bring: the client is let go.
    Descriptors,
    /// No version in common, or another message before it: the client is let go.
    Version,
    /// No version within 10 s: the client is let go, since others wait.
    Silent,
    /// A request that was refused; the client stays.
    Request,
    /// Unmapped memory that I/O did not let go of in time: the controller failed.
    Unmap,
}

impl Reject {
    /// Every kind.
    pub const ALL: [Reject; 7] = [
        Reject::Size,
        Reject::Type,
        Reject::Descriptors,
        Reject::Version,
        Reject::Silent,
        Reject::Request,
        Reject::Unmap,
    ];

    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Reject::Size => "impossible message size",
            Reject::Type => "neither command nor reply",
            Reject::Descriptors => "too many descriptors",
            Reject::Version => "no version in common",
            Reject::Silent => "no version in time",
            Reject::Request => "request refused",
            Reject::Unmap => "I/O does not let go of unmapped memory",
        }
    }
}

/// Counters of one controller.
#[derive(Debug, Default)]
pub struct Rejections([AtomicU64; Reject::ALL.len()]);

impl Rejections {
    /// How often that happened.
    pub fn count(&self, reject: Reject) -> u64 {
        self.0[reject as usize].load(Ordering::Relaxed)
    }

    /// Counts one. Whether it is to be logged: the first few of a kind, and then ever fewer.
    pub(super) fn note(&self, reject: Reject) -> bool {
        let before = self.0[reject as usize].fetch_add(1, Ordering::Relaxed);
        before < 16 || before.is_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_counter_and_logs_thin_out() {
        let rejections = Rejections::default();
        let logged = (0..1000).filter(|_| rejections.note(Reject::Size)).count();
        assert!(logged < 30);
        for kind in Reject::ALL {
            assert_eq!(rejections.count(kind), if kind == Reject::Size { 1000 } else { 0 });
        }
    }
}
