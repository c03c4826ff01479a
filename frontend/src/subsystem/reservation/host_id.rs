//! Host identifiers: whom a reservation admits.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A Host Identifier (feature 81h, or HOSTID of Connect) that is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId {
    bytes: [u8; 16],
    extended: bool,
}

impl HostId {
    /// An identifier of 16 bytes, or of the first 8 unless `extended`; `None` for zero, which names nobody.
    pub fn new(bytes: [u8; 16], extended: bool) -> Option<Self> {
        (bytes != [0; 16]).then_some(HostId { bytes, extended })
    }

    /// The identifier; one of 8 bytes is filled up with zeroes.
    pub fn bytes(&self) -> [u8; 16] {
        self.bytes
    }

    /// Whether it has 16 bytes.
    pub fn is_extended(&self) -> bool {
        self.extended
    }
}

/// Where a controller's shards find whose controller it is, without a lock. A host that changes its identifier while
/// its commands run may be taken for a third one: for nobody that is registered.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    low: AtomicU64,
    high: AtomicU64,
    /// 0 for nobody, 1 for 8 bytes, 2 for 16.
    format: AtomicU8,
}

impl Identity {
    pub fn set(&self, host: Option<HostId>) {
        let id = host.map_or(0, |host| u128::from_le_bytes(host.bytes));
        self.format.store(0, Ordering::Release);
        self.low.store(id as u64, Ordering::Release);
        self.high.store((id >> 64) as u64, Ordering::Release);
        self.format.store(host.map_or(0, |host| 1 + u8::from(host.extended)), Ordering::Release);
    }

    pub fn get(&self) -> Option<HostId> {
        let format = self.format.load(Ordering::Acquire);
        let id = u128::from(self.high.load(Ordering::Acquire)) << 64
            | u128::from(self.low.load(Ordering::Acquire));
        HostId::new(id.to_le_bytes(), format == 2).filter(|_| format != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_what_was_set() {
        let identity = Identity::default();
        assert_eq!(identity.get(), None);
        let long = HostId::new(std::array::from_fn(|i| i as u8), true);
        let short = HostId::new([1, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0], false);
        for host in [long, short, None, HostId::new([0; 16], true)] {
            identity.set(host);
            assert_eq!(identity.get(), host);
        }
    }
}
