//! Fields of Admin commands that make, delete and abort (Base 2.1, 5.1.1, 5.2.1 to 5.2.4).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CDW10 of Create I/O Completion Queue and Create I/O Submission Queue; PRP1 holds the queue's address.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateQueueCdw10 {
    /// QID.
    pub qid: u16,
    /// QSIZE: entries, zero-based.
    pub qsize_z: u16,
}

/// CDW11 of Create I/O Completion Queue.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateCqCdw11 {
    /// PC: the queue is contiguous.
    pub pc: bool,
    /// IEN: interrupts are on.
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// IV: interrupt vector.
    pub iv: u16,
}

/// CDW11 of Create I/O Submission Queue.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateSqCdw11 {
    /// PC: the queue is contiguous.
    pub pc: bool,
    /// QPRIO: 0 urgent, 1 high, 2 medium, 3 low.
    #[bits(2)]
    pub qprio: u8,
    #[bits(13)]
    __: u16,
    /// CQID: the completion queue.
    pub cqid: u16,
}

/// CDW10 of Delete I/O Completion Queue and Delete I/O Submission Queue.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeleteQueueCdw10 {
    /// QID.
    pub qid: u16,
    __: u16,
}

/// CDW10 of Abort. DW0 bit 0 of its completion is 0 when the command was aborted, [`NOT_ABORTED`] when not.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AbortCdw10 {
    /// SQID: submission queue of the command to abort.
    pub sqid: u16,
    /// CID: the command to abort.
    pub cid: u16,
}

/// IANP in DW0 of Abort's completion: the command was not aborted.
pub const NOT_ABORTED: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_as_linux_sends_them() {
        let cdw10 = CreateQueueCdw10::from_bits(0x03ff_0001);
        assert_eq!((cdw10.qid(), cdw10.qsize_z()), (1, 1023));
        let cq = CreateCqCdw11::from_bits(0x0002_0003);
        assert_eq!((cq.pc(), cq.ien(), cq.iv()), (true, true, 2));
        let sq = CreateSqCdw11::from_bits(0x0001_0005);
        assert_eq!((sq.pc(), sq.qprio(), sq.cqid()), (true, 2, 1));
        assert_eq!(DeleteQueueCdw10::new().with_qid(7).into_bits(), 7);
        assert_eq!(AbortCdw10::new().with_sqid(1).with_cid(2).into_bits(), 0x2_0001);
    }
}
