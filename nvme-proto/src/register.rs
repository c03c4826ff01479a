//! Controller registers and properties (Base 2.1, 3.1.4; PCIe Transport 1.1, 3.1.2).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Byte offsets of the registers in BAR0, and of the properties on Fabrics.
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version.
    pub const VS: u32 = 0x08;
    /// Interrupt Mask Set (PCIe).
    pub const INTMS: u32 = 0x0c;
    /// Interrupt Mask Clear (PCIe).
    pub const INTMC: u32 = 0x10;
    /// Controller Configuration.
    pub const CC: u32 = 0x14;
    /// Controller Status.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset.
    pub const NSSR: u32 = 0x20;
    /// Admin Queue Attributes (PCIe).
    pub const AQA: u32 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes (PCIe).
    pub const ASQ: u32 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes (PCIe).
    pub const ACQ: u32 = 0x30;
    /// Controller Memory Buffer Location (PCIe).
    pub const CMBLOC: u32 = 0x38;
    /// Controller Memory Buffer Size (PCIe).
    pub const CMBSZ: u32 = 0x3c;
    /// Boot Partition Information.
    pub const BPINFO: u32 = 0x40;
    /// NVM Subsystem Shutdown.
    pub const NSSD: u32 = 0x64;
    /// Controller Ready Timeouts.
    pub const CRTO: u32 = 0x68;
    /// The first doorbell (PCIe).
    pub const DOORBELLS: u32 = 0x1000;
}

/// CAP: Controller Capabilities.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cap {
    /// MQES: entries of the largest queue, zero-based.
    pub mqes_z: u16,
    /// CQR: queues must be contiguous.
    pub cqr: bool,
    /// AMS: arbitration mechanisms.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// TO: the longest wait for CSTS.RDY, in 500 ms.
    pub to: u8,
    /// DSTRD: doorbells lie 4 << DSTRD bytes apart.
    #[bits(4)]
    pub dstrd: u8,
    /// NSSRS: subsystem reset.
    pub nssrs: bool,
    /// CSS bit 0: the NVM command set.
    pub css_nvm: bool,
    #[bits(5)]
    __: u8,
    /// CSS bit 6: I/O command sets by Identify 1Ch.
    pub css_iocs: bool,
    /// CSS bit 7: no I/O command set.
    pub css_none: bool,
    /// BPS: boot partitions.
    pub bps: bool,
    /// CPS: controller power scope.
    #[bits(2)]
    pub cps: u8,
    /// MPSMIN: the smallest page, 4096 << MPSMIN bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// MPSMAX: the largest page.
    #[bits(4)]
    pub mpsmax: u8,
    /// PMRS: persistent memory region.
    pub pmrs: bool,
    /// CMBS: controller memory buffer.
    pub cmbs: bool,
    /// NSSS: subsystem shutdown.
    pub nsss: bool,
    /// CRMS bit 0: Controller Ready With Media.
    pub crwms: bool,
    /// CRMS bit 1: Controller Ready Independent of Media.
    pub crims: bool,
    /// NSSES: subsystem shutdown enhancements.
    pub nsses: bool,
    #[bits(2)]
    __: u8,
}

/// VS: the version, 2.1 by default.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vs {
    /// TER.
    #[bits(default = 0)]
    pub ter: u8,
    /// MNR.
    #[bits(default = 1)]
    pub mnr: u8,
    /// MJR.
    #[bits(default = 2)]
    pub mjr: u16,
}

/// CC: Controller Configuration.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cc {
    /// EN: enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// CSS: 0 NVM, 6 all supported sets, 7 Admin only.
    #[bits(3)]
    pub css: u8,
    /// MPS: page size, 4096 << MPS bytes.
    #[bits(4)]
    pub mps: u8,
    /// AMS: arbitration mechanism.
    #[bits(3)]
    pub ams: u8,
    /// SHN: 0 none, 1 normal shutdown, 2 abrupt.
    #[bits(2)]
    pub shn: u8,
    /// IOSQES: SQ entry size as a power of two.
    #[bits(4)]
    pub iosqes: u8,
    /// IOCQES: CQ entry size as a power of two.
    #[bits(4)]
    pub iocqes: u8,
    /// CRIME: ready independent of media.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// CSTS: Controller Status.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Csts {
    /// RDY.
    pub rdy: bool,
    /// CFS: the controller failed for good.
    pub cfs: bool,
    /// SHST: 0 none, 1 shutting down, 2 complete.
    #[bits(2)]
    pub shst: u8,
    /// NSSRO: a subsystem reset happened.
    pub nssro: bool,
    /// PP: commands are not processed at the moment.
    pub pp: bool,
    /// ST: the shutdown is the subsystem's.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// AQA: Admin Queue Attributes.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Aqa {
    /// ASQS: entries of the Admin SQ, zero-based.
    #[bits(12)]
    pub asqs_z: u16,
    #[bits(4)]
    __: u8,
    /// ACQS: entries of the Admin CQ, zero-based.
    #[bits(12)]
    pub acqs_z: u16,
    #[bits(4)]
    __: u8,
}

/// CRTO: Controller Ready Timeouts, in 500 ms.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Crto {
    /// CRWMT: with media.
    pub crwmt: u16,
    /// CRIMT: independent of media.
    pub crimt: u16,
}

/// What is written to NSSR to reset the subsystem: "NVMe".
pub const NSSR_KEY: u32 = 0x4e56_4d65;

/// Which doorbell lies `at` bytes into the doorbells, at stride 4: the queue, and whether it is its CQ head.
/// `None` off a doorbell's first byte.
pub const fn doorbell(at: u32) -> Option<(u16, bool)> {
    if !at.is_multiple_of(4) || at / 8 > u16::MAX as u32 {
        return None;
    }
    let b = (at / 8).to_le_bytes();
    Some((u16::from_le_bytes([b[0], b[1]]), at / 4 % 2 == 1))
}

/// Where a queue's doorbell lies in BAR0, at stride 4.
pub const fn doorbell_offset(qid: u16, completion: bool) -> u32 {
    // At most 0x1000 + 8 * 65535 + 4.
    offset::DOORBELLS.wrapping_add((qid as u32).wrapping_mul(8)).wrapping_add(if completion { 4 } else { 0 })
}

sizes!(Cap = 8, Vs = 4, Cc = 4, Csts = 4, Aqa = 4, Crto = 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let cap = Cap::new().with_mqes_z(127).with_cqr(true).with_to(30).with_css_nvm(true).with_crwms(true);
        assert_eq!(cap.into_bits(), 127 | 1 << 16 | 30 << 24 | 1 << 37 | 1 << 59);
        assert_eq!(
            Cap::from_bits(1 << 43 | 1 << 44 | 1 << 36 | 0xf << 32).with_dstrd(0).into_bits(),
            1 << 43 | 1 << 44 | 1 << 36
        );
        assert!(Cap::from_bits(1 << 43).css_iocs() && Cap::from_bits(1 << 44).css_none());
        assert_eq!(Vs::new().into_bits(), 0x2_0100);
        // Linux enables with 4 KiB pages, 64 and 16-byte entries.
        let cc = Cc::from_bits(0x46_0001);
        assert_eq!((cc.en(), cc.iosqes(), cc.iocqes(), cc.mps(), cc.shn()), (true, 6, 4, 0, 0));
        assert_eq!(Csts::new().with_rdy(true).with_shst(2).into_bits(), 0x9);
        assert_eq!(Aqa::from_bits(0x1f_001f).acqs_z(), 31);
    }

    #[test]
    fn doorbells() {
        assert_eq!(doorbell(0), Some((0, false)));
        assert_eq!(doorbell(12), Some((1, true)));
        assert_eq!(doorbell(2), None);
        assert_eq!(doorbell(u32::MAX - 3), None);
        assert_eq!(doorbell_offset(1, true), 0x100c);
    }
}
