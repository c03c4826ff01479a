//! Fields of the NVM commands (NVM Command Set 1.1, 3.3); SLBA and NLB are [`Sqe`](crate::Sqe)'s own.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CDW12 of Read, Write, Compare, Verify and Write Zeroes. A bit that a command does not have is reserved there.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RwCdw12 {
    /// NLB: blocks, zero-based.
    pub nlb_z: u16,
    /// CETYPE: command extension type.
    #[bits(4)]
    pub cetype: u8,
    /// DTYPE: directive type (Write). Its high bit is NSZ, the whole namespace, in Write Zeroes.
    #[bits(4)]
    pub dtype: u8,
    /// STC: check the storage tag.
    pub stc: bool,
    /// DEAC: deallocate the blocks (Write Zeroes).
    pub deac: bool,
    /// PRCHK bit 0: check the reference tag.
    pub prchk_ref: bool,
    /// PRCHK bit 1: check the application tag.
    pub prchk_app: bool,
    /// PRCHK bit 2: check the guard.
    pub prchk_guard: bool,
    /// PRACT: the controller makes or strips the protection information.
    pub pract: bool,
    /// FUA: Force Unit Access.
    pub fua: bool,
    /// LR: limited retry.
    pub lr: bool,
}

/// CDW13 of Read and Write: hints about the data, and what the directive says.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RwCdw13 {
    /// AF: access frequency.
    #[bits(4)]
    pub af: u8,
    /// AL: access latency.
    #[bits(2)]
    pub al: u8,
    /// SR: sequential request.
    pub sr: bool,
    /// INCPRS: not compressible.
    pub incprs: bool,
    __: u8,
    /// DSPEC: directive specific (Write).
    pub dspec: u16,
}

/// Ranges of a Dataset Management command at most.
pub const DSM_RANGES_MAX: usize = 256;

/// CDW10 of Dataset Management.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DsmCdw10 {
    /// NR: ranges, zero-based.
    pub nr_z: u8,
    #[bits(24)]
    __: u32,
}

/// CDW11 of Dataset Management.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DsmCdw11 {
    /// IDR: the ranges are soon read as a whole.
    pub idr: bool,
    /// IDW: the ranges are soon written as a whole.
    pub idw: bool,
    /// AD: deallocate the ranges.
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// A range of Dataset Management.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    /// CATTR: context attributes, hints.
    pub cattr: u32,
    /// LLB: blocks; unlike elsewhere not zero-based.
    pub llb: u32,
    /// SLBA: the first block.
    pub slba: u64,
}

sizes!(DsmRange = 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_as_linux_sends_them() {
        assert_eq!(RwCdw12::new().with_nlb_z(7).with_fua(true).into_bits(), 0x4000_0007);
        assert_eq!(RwCdw12::new().with_deac(true).into_bits(), 1 << 25);
        assert_eq!(RwCdw12::new().with_pract(true).with_prchk_guard(true).into_bits(), 1 << 29 | 1 << 28);
        assert_eq!(RwCdw12::new().with_lr(true).with_stc(true).into_bits(), 1 << 31 | 1 << 24);
        assert_eq!(RwCdw13::new().with_sr(true).with_dspec(2).into_bits(), 0x2_0040);
        assert!(DsmCdw11::from_bits(4).ad());
        assert_eq!(DsmCdw10::from_bits(0xff).nr_z(), 255);
    }

    #[test]
    fn a_range() {
        let range = DsmRange { cattr: 0, llb: 8, slba: 0x1_0000_0000 };
        assert_eq!(range.as_bytes(), [0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
