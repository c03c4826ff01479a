//! Submission and completion queue entries (Base 2.1, 4.1 and 4.2).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::dptr::{Prp, SglDescriptor};
use crate::opcode::{AdminOpcode, FabricsType, NvmOpcode};
use crate::status::{Status, StatusField};

/// Byte 1 of an SQE: how it is fused, and how DPTR is read.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SqeFlags {
    /// FUSE: 0 normal, 1 first of a fused pair, 2 second, 3 reserved.
    #[bits(2)]
    pub fuse: u8,
    #[bits(4)]
    __: u8,
    /// PSDT: 0 PRPs; 1 SGL, metadata contiguous; 2 SGL, metadata by SGL; 3 reserved.
    #[bits(2)]
    pub psdt: u8,
}

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sqe {
    /// Opcode; its meaning depends on the queue.
    pub opc: u8,
    /// FUSE and PSDT.
    pub flags: SqeFlags,
    /// Command identifier.
    pub cid: u16,
    /// Namespace identifier; in a Fabrics command byte 0 is FCTYPE.
    pub nsid: u32,
    /// Command Dword 2.
    pub cdw2: u32,
    /// Command Dword 3.
    pub cdw3: u32,
    /// Metadata pointer.
    pub mptr: u64,
    /// Data pointer: two PRP entries or one SGL descriptor.
    pub dptr: [u64; 2],
    /// Command Dword 10.
    pub cdw10: u32,
    /// Command Dword 11.
    pub cdw11: u32,
    /// Command Dword 12.
    pub cdw12: u32,
    /// Command Dword 13.
    pub cdw13: u32,
    /// Command Dword 14.
    pub cdw14: u32,
    /// Command Dword 15.
    pub cdw15: u32,
}

impl Sqe {
    /// The opcode as of the Admin queue.
    pub const fn admin(&self) -> AdminOpcode {
        AdminOpcode(self.opc)
    }

    /// The opcode as of an I/O queue of the NVM command set.
    pub const fn nvm(&self) -> NvmOpcode {
        NvmOpcode(self.opc)
    }

    /// FCTYPE of a Fabrics command.
    pub const fn fctype(&self) -> FabricsType {
        FabricsType(self.nsid.to_le_bytes()[0])
    }

    /// DPTR as PRP entries.
    pub const fn prp(&self) -> Prp {
        Prp { prp1: self.dptr[0], prp2: self.dptr[1] }
    }

    /// DPTR as an SGL descriptor.
    pub const fn sgl(&self) -> SglDescriptor {
        SglDescriptor::from_words(self.dptr)
    }

    /// Puts an SGL descriptor into DPTR and PSDT to 1, as Fabrics asks.
    pub const fn set_sgl(&mut self, sgl: SglDescriptor) {
        self.dptr = sgl.to_words();
        self.flags = self.flags.with_psdt(1);
    }

    /// SLBA of the NVM commands: CDW10 and CDW11.
    pub const fn slba(&self) -> u64 {
        (self.cdw11 as u64) << 32 | self.cdw10 as u64
    }

    /// Puts SLBA into CDW10 and CDW11.
    pub const fn set_slba(&mut self, slba: u64) {
        let b = slba.to_le_bytes();
        self.cdw10 = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        self.cdw11 = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    }

    /// NLB of the NVM commands, zero-based: CDW12 15:00.
    pub const fn nlb_z(&self) -> u16 {
        let b = self.cdw12.to_le_bytes();
        u16::from_le_bytes([b[0], b[1]])
    }

    /// Blocks that an NVM command names: 1 to 65536.
    pub const fn nlb(&self) -> u32 {
        // At most 65535 + 1.
        (self.nlb_z() as u32).wrapping_add(1)
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cqe {
    /// Command specific.
    pub dw0: u32,
    /// Command specific.
    pub dw1: u32,
    /// SQ head pointer.
    pub sqhd: u16,
    /// SQ identifier; reserved on Fabrics.
    pub sqid: u16,
    /// The command's identifier.
    pub cid: u16,
    /// Phase tag (PCIe) and status.
    pub status: StatusField,
}

impl Cqe {
    /// A completion without phase tag, as Fabrics carries it.
    pub fn new(cid: u16, status: Status) -> Self {
        Cqe { cid, status: status.into(), ..Cqe::default() }
    }

    /// The status.
    pub const fn status(&self) -> Status {
        self.status.status()
    }

    /// Its dwords.
    pub fn words(&self) -> [u32; 4] {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        [self.dw0, self.dw1, pair(self.sqhd, self.sqid), pair(self.cid, self.status.0)]
    }

    /// Dwords 0 and 1 as one value: what Property Get answers.
    pub const fn result64(&self) -> u64 {
        (self.dw1 as u64) << 32 | self.dw0 as u64
    }
}

sizes!(Sqe = 64, Cqe = 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_as_linux_sends_it() {
        let mut bytes = [0u8; 64];
        bytes[0] = 2;
        bytes[2..4].copy_from_slice(&0x1234u16.to_le_bytes());
        bytes[4] = 1;
        bytes[40..48].copy_from_slice(&0x1_0000_0008u64.to_le_bytes());
        bytes[48] = 7;
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        assert_eq!(sqe.nvm(), NvmOpcode::Read);
        assert_eq!((sqe.cid, sqe.nsid, sqe.slba(), sqe.nlb()), (0x1234, 1, 0x1_0000_0008, 8));
        let mut other = Sqe { opc: 2, cid: 0x1234, nsid: 1, cdw12: 7, ..Sqe::default() };
        other.set_slba(0x1_0000_0008);
        assert_eq!(other.as_bytes(), bytes);
    }

    #[test]
    fn the_largest_nlb_does_not_wrap() {
        assert_eq!(Sqe { cdw12: 0xffff, ..Sqe::default() }.nlb(), 65536);
    }

    #[test]
    fn a_completion_lies_as_the_specification_has_it() {
        let cqe = Cqe { sqhd: 3, ..Cqe::new(9, Status::LBA_OUT_OF_RANGE.dnr()) };
        assert_eq!(cqe.as_bytes()[8..], [3, 0, 0, 0, 9, 0, 0x00, 0x81]);
    }
}
