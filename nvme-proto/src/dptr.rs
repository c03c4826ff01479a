//! Data pointers: PRP entries and SGL descriptors (Base 2.1, 4.3).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Two PRP entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Prp {
    /// The first page; its offset is any multiple of 4.
    pub prp1: u64,
    /// Nothing, the second page, or a list of pages.
    pub prp2: u64,
}

/// SGL descriptor types (Base 2.1 figure 115): the upper half of the identifier byte.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SglType {
    /// SGL Data Block.
    DataBlock = 0,
    /// SGL Bit Bucket: bytes of a read that the host does not want.
    BitBucket = 1,
    /// SGL Segment: more descriptors, of which the last is a segment again.
    Segment = 2,
    /// SGL Last Segment.
    LastSegment = 3,
    /// Keyed SGL Data Block (RDMA).
    KeyedDataBlock = 4,
    /// Transport SGL Data Block: the transport carries the data.
    TransportDataBlock = 5,
}

/// SGL descriptor sub types: the lower half of the identifier byte.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SglSubtype {
    /// The address is one in memory.
    Address = 0,
    /// The address is an offset into the capsule's data.
    Offset = 1,
    /// NVMe transport specific (Ah): what Transport SGL Data Blocks have.
    Transport = 0xa,
}

/// An SGL descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address or offset.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    reserved: [u8; 3],
    /// SGL identifier: type in 7:4, sub type in 3:0.
    pub identifier: u8,
}

impl SglDescriptor {
    /// A descriptor.
    pub const fn new(kind: SglType, subtype: SglSubtype, address: u64, length: u32) -> Self {
        SglDescriptor { address, length, reserved: [0; 3], identifier: kind.0 << 4 | subtype.0 & 0xf }
    }

    /// Data that follows the command in its capsule.
    pub const fn in_capsule(length: u32) -> Self {
        Self::new(SglType::DataBlock, SglSubtype::Offset, 0, length)
    }

    /// Data that the transport carries in PDUs of its own.
    pub const fn transport(length: u32) -> Self {
        Self::new(SglType::TransportDataBlock, SglSubtype::Transport, 0, length)
    }

    /// The type.
    pub const fn kind(&self) -> SglType {
        SglType(self.identifier >> 4)
    }

    /// The sub type.
    pub const fn subtype(&self) -> SglSubtype {
        SglSubtype(self.identifier & 0xf)
    }

    pub(crate) const fn from_words(words: [u64; 2]) -> Self {
        let b = words[1].to_le_bytes();
        SglDescriptor {
            address: words[0],
            length: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            reserved: [b[4], b[5], b[6]],
            identifier: b[7],
        }
    }

    pub(crate) const fn to_words(self) -> [u64; 2] {
        let (l, r) = (self.length.to_le_bytes(), self.reserved);
        [self.address, u64::from_le_bytes([l[0], l[1], l[2], l[3], r[0], r[1], r[2], self.identifier])]
    }
}

sizes!(Prp = 16, SglDescriptor = 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_lie_as_the_specification_has_them() {
        let d = SglDescriptor::transport(0x1000);
        assert_eq!(d.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x5a]);
        let d = SglDescriptor::in_capsule(512);
        assert_eq!((d.kind(), d.subtype(), d.identifier), (SglType::DataBlock, SglSubtype::Offset, 1));
        let words = [0x1122_3344_5566_7788, 0xa1b2_c3d4_e5f6_0718];
        assert_eq!(SglDescriptor::from_words(words).to_words(), words);
    }
}
