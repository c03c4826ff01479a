//! Identify Namespace (NVM Command Set 1.1, 4.1.5; Base 2.1, 5.1.13.2.8).

use bitfield_struct::bitfield;
use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// NSFEAT of Identify Namespace: Namespace Features.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nsfeat {
    /// THINP: thin provisioning.
    pub thinp: bool,
    /// NSABP: NAWUN, NAWUPF and NACWU hold, not the controller's atomicity.
    pub nsabp: bool,
    /// DAE: reading a deallocated block may be an error.
    pub dae: bool,
    /// UIDREUSE: NGUID and EUI64 are never used again.
    pub uidreuse: bool,
    /// OPTPERF: 1 or above: NPWG, NPWA, NPDG, NPDA and NOWS are there.
    #[bits(2)]
    pub optperf: u8,
    /// MAM: multiple atomicity mode.
    pub mam: bool,
    /// OPTRPERF: the optimal read sizes are there.
    pub optrperf: bool,
}

/// FLBAS: Formatted LBA Size.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flbas {
    /// FIDXL: the low bits of the format's index.
    #[bits(4)]
    pub fidxl: u8,
    /// MTELBA: metadata lies at the end of each block, not apart.
    pub mtelba: bool,
    /// FIDXU: the high bits of the format's index.
    #[bits(2)]
    pub fidxu: u8,
    #[bits(1)]
    __: bool,
}

impl Flbas {
    /// The index of the format in [`IdentifyNamespace::lbaf`], 0 to 63.
    pub const fn index(self) -> u8 {
        self.fidxu() << 4 | self.fidxl()
    }
}

/// MC: Metadata Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mc {
    /// MTELBAS: metadata at the end of each block.
    pub mtelbas: bool,
    /// MSBS: metadata in a buffer apart.
    pub msbs: bool,
    #[bits(6)]
    __: u8,
}

/// DPC: End-to-end Data Protection Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dpc {
    /// PIT1S: protection information type 1.
    pub pit1s: bool,
    /// PIT2S: type 2.
    pub pit2s: bool,
    /// PIT3S: type 3.
    pub pit3s: bool,
    /// PIIFB: in the first bytes of the metadata.
    pub piifb: bool,
    /// PIILB: in the last bytes of the metadata.
    pub piilb: bool,
    #[bits(3)]
    __: u8,
}

/// DPS: End-to-end Data Protection Type Settings.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dps {
    /// PIT: the type of the protection information; 0 for none.
    #[bits(3)]
    pub pit: u8,
    /// PIP: it lies in the first bytes of the metadata, not the last.
    pub pip: bool,
    #[bits(4)]
    __: u8,
}

/// NMIC: Namespace Multi-path I/O and Namespace Sharing Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nmic {
    /// SHRNS: several controllers may share the namespace.
    pub shrns: bool,
    /// DISNS: several subsystems may share the namespace.
    pub disns: bool,
    #[bits(6)]
    __: u8,
}

/// RESCAP: Reservation Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rescap {
    /// PTPLS: Persist Through Power Loss.
    pub ptpls: bool,
    /// WES: Write Exclusive.
    pub wes: bool,
    /// EAS: Exclusive Access.
    pub eas: bool,
    /// WEROS: Write Exclusive, Registrants Only.
    pub weros: bool,
    /// EAROS: Exclusive Access, Registrants Only.
    pub earos: bool,
    /// WEARS: Write Exclusive, All Registrants.
    pub wears: bool,
    /// EAARS: Exclusive Access, All Registrants.
    pub eaars: bool,
    /// IEKR: Ignore Existing Key is as of 1.3 and later.
    pub iekr: bool,
}

/// FPI: Format Progress Indicator.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fpi {
    /// PFR: per cent that remain to be formatted.
    #[bits(7)]
    pub pfr: u8,
    /// FPS: progress is told.
    pub fps: bool,
}

/// DLFEAT: Deallocate Logical Block Features.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dlfeat {
    /// RB: what a deallocated block reads as: 0 not told, 1 zeroes, 2 FFh.
    #[bits(3)]
    pub rb: u8,
    /// WZDS: Write Zeroes may deallocate.
    pub wzds: bool,
    /// GDS: the guard of a deallocated block is the CRC of what it reads as, not FFFFh.
    pub gds: bool,
    #[bits(3)]
    __: u8,
}

/// NSATTR: Namespace Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nsattr {
    /// CWP: the namespace is write protected.
    pub cwp: bool,
    #[bits(7)]
    __: u8,
}

/// LBAF: an LBA format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LbaFormat {
    /// MS: bytes of metadata per block.
    pub ms: u16,
    /// LBADS: bytes of a block as a power of two, 9 or above; 0 where the format is not available.
    pub lbads: u8,
    /// RP in bits 1:0: relative performance, 0 the best.
    pub rp: u8,
}

impl LbaFormat {
    /// A format of `1 << lbads` bytes without metadata.
    pub const fn of_lbads(lbads: u8) -> Self {
        LbaFormat { ms: 0, lbads, rp: 0 }
    }
}

/// Identify Namespace of the NVM command set (CNS 00h).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// NSZE: size in blocks.
    pub nsze: u64,
    /// NCAP: capacity in blocks.
    pub ncap: u64,
    /// NUSE: blocks in use.
    pub nuse: u64,
    /// NSFEAT: features.
    pub nsfeat: Nsfeat,
    /// NLBAF: LBA formats, zero-based.
    pub nlbaf_z: u8,
    /// FLBAS: the format in use.
    pub flbas: Flbas,
    /// MC: metadata capabilities.
    pub mc: Mc,
    /// DPC: data protection capabilities.
    pub dpc: Dpc,
    /// DPS: data protection in use.
    pub dps: Dps,
    /// NMIC: sharing.
    pub nmic: Nmic,
    /// RESCAP: reservations.
    pub rescap: Rescap,
    /// FPI: format progress.
    pub fpi: Fpi,
    /// DLFEAT: what deallocation does.
    pub dlfeat: Dlfeat,
    /// NAWUN: atomic write unit normal, blocks, zero-based.
    pub nawun_z: u16,
    /// NAWUPF: atomic write unit power fail, blocks, zero-based.
    pub nawupf_z: u16,
    /// NACWU: atomic compare and write unit, blocks, zero-based.
    pub nacwu_z: u16,
    /// NABSN: atomic boundary size normal, blocks, zero-based; 0 for no boundary.
    pub nabsn_z: u16,
    /// NABO: the first block that an atomic boundary begins at.
    pub nabo: u16,
    /// NABSPF: atomic boundary size power fail, blocks, zero-based.
    pub nabspf_z: u16,
    /// NOIOB: optimal I/O boundary in blocks; 0 for none.
    pub noiob: u16,
    /// NVMCAP: capacity in bytes.
    pub nvmcap: U128,
    /// NPWG: preferred write granularity, blocks, zero-based.
    pub npwg_z: u16,
    /// NPWA: preferred write alignment, blocks, zero-based.
    pub npwa_z: u16,
    /// NPDG: preferred deallocate granularity, blocks, zero-based.
    pub npdg_z: u16,
    /// NPDA: preferred deallocate alignment, blocks, zero-based.
    pub npda_z: u16,
    /// NOWS: optimal write size, blocks, zero-based.
    pub nows_z: u16,
    /// MSSRL: the longest source range of Copy, blocks.
    pub mssrl: u16,
    /// MCL: the longest Copy, blocks.
    pub mcl: u32,
    /// MSRC: source ranges of a Copy, zero-based.
    pub msrc_z: u8,
    /// KPIOS: key per I/O status.
    pub kpios: u8,
    /// NULBAF: formats of unique attributes.
    pub nulbaf: u8,
    /// Reserved.
    pub reserved83: u8,
    /// KPIODAAG: key per I/O access alignment and granularity.
    pub kpiodaag: u32,
    /// Reserved.
    pub reserved88: [u8; 4],
    /// ANAGRPID: ANA group; 0 for none.
    pub anagrpid: u32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// NSATTR: attributes.
    pub nsattr: Nsattr,
    /// NVMSETID: NVM Set; 0 for none.
    pub nvmsetid: u16,
    /// ENDGID: Endurance Group; 0 for none.
    pub endgid: u16,
    /// NGUID, the most significant byte first; zero for none.
    pub nguid: [u8; 16],
    /// EUI64, the most significant byte first; zero for none.
    pub eui64: [u8; 8],
    /// LBAF: the formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vendor: [u8; 3712],
}

/// Identify Namespace of the NVM command set, further fields (CNS 05h).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NvmIdentifyNamespace {
    /// LBSTM: logical block storage tag mask.
    pub lbstm: u64,
    /// PIC: protection information capabilities.
    pub pic: u8,
    /// PIFA: protection information format attributes.
    pub pifa: u8,
    /// Reserved.
    pub reserved10: [u8; 2],
    /// ELBAF: per format, STS in bits 6:0 and PIF in bits 8:7.
    pub elbaf: [u32; 64],
    /// Further sizes, and reserved bytes.
    pub reserved268: [u8; 3828],
}

/// NSFEAT of the I/O command set independent Identify Namespace.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IndependentNsfeat {
    #[bits(3)]
    __: u8,
    /// UIDREUSE: NGUID and EUI64 are never used again.
    pub uidreuse: bool,
    /// RMEDIA: the media rotates.
    pub rmedia: bool,
    /// VWCNP: there is no volatile write cache for this namespace.
    pub vwcnp: bool,
    #[bits(2)]
    __: u8,
}

/// NSTAT: Namespace Status.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nstat {
    /// NRDY: the namespace is ready.
    pub nrdy: bool,
    #[bits(7)]
    __: u8,
}

/// I/O command set independent Identify Namespace (CNS 08h).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IndependentNamespace {
    /// NSFEAT: features.
    pub nsfeat: IndependentNsfeat,
    /// NMIC: sharing.
    pub nmic: Nmic,
    /// RESCAP: reservations.
    pub rescap: Rescap,
    /// FPI: format progress.
    pub fpi: Fpi,
    /// ANAGRPID: ANA group; 0 for none.
    pub anagrpid: u32,
    /// NSATTR: attributes.
    pub nsattr: Nsattr,
    /// Reserved.
    pub reserved9: u8,
    /// NVMSETID: NVM Set; 0 for none.
    pub nvmsetid: u16,
    /// ENDGID: Endurance Group; 0 for none.
    pub endgid: u16,
    /// NSTAT: status.
    pub nstat: Nstat,
    /// Key per I/O, reachability, and reserved bytes.
    pub reserved15: [u8; 4081],
}

sizes!(LbaFormat = 4, IdentifyNamespace = 4096, NvmIdentifyNamespace = 4096, IndependentNamespace = 4096);

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn every_field_lies_where_the_specification_has_it() {
        offsets!(IdentifyNamespace:
            nsze = 0, ncap = 8, nuse = 16, nsfeat = 24, nlbaf_z = 25, flbas = 26, mc = 27, dpc = 28, dps = 29,
            nmic = 30, rescap = 31, fpi = 32, dlfeat = 33, nawun_z = 34, nawupf_z = 36, nacwu_z = 38, nabsn_z = 40,
            nabo = 42, nabspf_z = 44, noiob = 46, nvmcap = 48, npwg_z = 64, npwa_z = 66, npdg_z = 68, npda_z = 70,
            nows_z = 72, mssrl = 74, mcl = 76, msrc_z = 80, kpios = 81, nulbaf = 82, kpiodaag = 84, anagrpid = 92,
            nsattr = 99, nvmsetid = 100, endgid = 102, nguid = 104, eui64 = 120, lbaf = 128, vendor = 384,
        );
        offsets!(NvmIdentifyNamespace: lbstm = 0, pic = 8, pifa = 9, elbaf = 12, reserved268 = 268);
        offsets!(IndependentNamespace:
            nsfeat = 0, nmic = 1, rescap = 2, fpi = 3, anagrpid = 4, nsattr = 8, nvmsetid = 10, endgid = 12, nstat = 14,
        );
    }

    #[test]
    fn bits_lie_where_the_specification_has_them() {
        assert_eq!(Nsfeat::new().with_thinp(true).with_uidreuse(true).with_optperf(1).into_bits(), 0x19);
        assert_eq!(Flbas::from_bits(0x75).index(), 0x35);
        assert!(Flbas::from_bits(0x10).mtelba());
        assert_eq!(Dlfeat::new().with_rb(1).with_wzds(true).into_bits(), 9);
        assert_eq!(Rescap::new().with_wes(true).with_iekr(true).into_bits(), 0x82);
        assert_eq!(IndependentNsfeat::new().with_uidreuse(true).with_vwcnp(true).into_bits(), 0x28);
    }

    #[test]
    fn bytes_of_a_namespace() {
        let mut ns = IdentifyNamespace::new_zeroed();
        ns.nsze = 0x100;
        ns.lbaf[1] = LbaFormat::of_lbads(12);
        let b = ns.as_bytes();
        assert_eq!((b[1], b[134]), (1, 12));
    }
}
