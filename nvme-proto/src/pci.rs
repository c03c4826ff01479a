//! Configuration space of an NVMe function (NVMe over PCIe Transport 1.1, 3.8; PCI Express Base Specification).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CC: class code of an NVMe I/O controller: programming interface, sub class, base class.
pub const CLASS_CODE: [u8; 3] = [0x02, 0x08, 0x01];

/// Bytes of the configuration space of a PCI Express function.
pub const CONFIG_LEN: usize = 4096;

/// CID: capability identifiers.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum CapabilityId {
    /// Power Management: [`PowerManagement`].
    PowerManagement = 0x01,
    /// MSI.
    Msi = 0x05,
    /// Vendor specific.
    Vendor = 0x09,
    /// PCI Express: [`PciExpress`].
    PciExpress = 0x10,
    /// MSI-X: [`MsiX`].
    MsiX = 0x11,
}

/// CMD: the command register.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Command {
    /// IOSE: I/O space is on.
    pub iose: bool,
    /// MSE: memory space is on.
    pub mse: bool,
    /// BME: the function may be a bus master.
    pub bme: bool,
    #[bits(3)]
    __: u8,
    /// PEE: parity error response.
    pub pee: bool,
    #[bits(1)]
    __: bool,
    /// SEE: SERR#.
    pub see: bool,
    #[bits(1)]
    __: bool,
    /// ID: no interrupts by pin.
    pub id: bool,
    #[bits(5)]
    __: u8,
}

/// The header, type 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// VID: Vendor ID.
    pub vid: u16,
    /// DID: Device ID.
    pub did: u16,
    /// CMD: command.
    pub cmd: Command,
    /// STS: status; bit 4 says that there are capabilities.
    pub sts: u16,
    /// RID: Revision ID.
    pub rid: u8,
    /// CC: class code, [`CLASS_CODE`].
    pub cc: [u8; 3],
    /// CLS: cache line size.
    pub cls: u8,
    /// MLT: master latency timer.
    pub mlt: u8,
    /// HTYPE: header type, 0.
    pub htype: u8,
    /// BIST: built-in self test.
    pub bist: u8,
    /// BAR0 to BAR5.
    pub bar: [u32; 6],
    /// CCPTR: CardBus CIS pointer.
    pub ccptr: u32,
    /// SSVID: Subsystem Vendor ID.
    pub ssvid: u16,
    /// SSID: Subsystem ID.
    pub ssid: u16,
    /// EROM: expansion ROM.
    pub erom: u32,
    /// CAP: where the first capability lies.
    pub cap: u8,
    /// Reserved.
    pub reserved35: [u8; 7],
    /// ILINE: interrupt line, a note of the host's.
    pub iline: u8,
    /// IPIN: interrupt pin: 0 none, 1 INTA#.
    pub ipin: u8,
    /// MGNT: minimum grant.
    pub mgnt: u8,
    /// MLAT: maximum latency.
    pub mlat: u8,
}

/// STS bit 4: there are capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// The low bits of a BAR: memory of 64-bit address, not prefetchable.
pub const BAR_MEMORY_64: u32 = 0b100;

/// What every capability begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapabilityHeader {
    /// CID.
    pub cid: CapabilityId,
    /// NEXT: where the next capability lies; 0 for none.
    pub next: u8,
}

/// PMCS: power management control and status.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmcs {
    /// PS: power state: 0 for D0, 3 for D3hot.
    #[bits(2)]
    pub ps: u8,
    #[bits(1)]
    __: bool,
    /// NSFRST: D3hot to D0 is no reset.
    pub nsfrst: bool,
    #[bits(4)]
    __: u8,
    /// PMEE: PME enable.
    pub pmee: bool,
    #[bits(6)]
    __: u8,
    /// PMES: PME status.
    pub pmes: bool,
}

/// The Power Management capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerManagement {
    /// Identifier and next.
    pub header: CapabilityHeader,
    /// PC: capabilities; bits 2:0 are the version, 3.
    pub pc: u16,
    /// PMCS: control and status.
    pub pmcs: Pmcs,
    /// PMCSR_BSE.
    pub bse: u8,
    /// Data.
    pub data: u8,
}

/// MXC: MSI-X message control.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mxc {
    /// TS: entries of the table, zero-based.
    #[bits(11)]
    pub ts_z: u16,
    #[bits(3)]
    __: u8,
    /// FM: all vectors are masked.
    pub fm: bool,
    /// MXE: MSI-X is on.
    pub mxe: bool,
}

/// Where the MSI-X table or the pending bits lie.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsiXPlace {
    /// BIR: the BAR.
    #[bits(3)]
    pub bir: u8,
    /// Offset into the BAR in units of 8 bytes.
    #[bits(29)]
    pub offset8: u32,
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsiX {
    /// Identifier and next.
    pub header: CapabilityHeader,
    /// MXC: message control.
    pub mxc: Mxc,
    /// MTAB: where the table lies.
    pub mtab: MsiXPlace,
    /// MPBA: where the pending bits lie, one per entry, in words of 8 bytes.
    pub mpba: MsiXPlace,
}

/// An entry of the MSI-X table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsiXEntry {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control: bit 0 masks the vector.
    pub control: u32,
}

/// Vector control: the vector is masked.
pub const MSIX_MASKED: u32 = 1 << 0;

/// PXDCAP: device capabilities.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pxdcap {
    /// MPS: largest payload, 128 << MPS bytes.
    #[bits(3)]
    pub mps: u8,
    #[bits(2)]
    __: u8,
    /// ETFS: extended tags.
    pub etfs: bool,
    /// L0SL: acceptable latency of L0s.
    #[bits(3)]
    pub l0sl: u8,
    /// L1L: acceptable latency of L1.
    #[bits(3)]
    pub l1l: u8,
    #[bits(3)]
    __: u8,
    /// RER: role-based error reporting.
    pub rer: bool,
    #[bits(12)]
    __: u16,
    /// FLRC: function level reset.
    pub flrc: bool,
    #[bits(3)]
    __: u8,
}

/// PXDC bit 15: initiate a function level reset.
pub const PXDC_IFLR: u16 = 1 << 15;

/// The PCI Express capability, version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PciExpress {
    /// Identifier and next.
    pub header: CapabilityHeader,
    /// PXCAP: version in bits 3:0, device type in bits 7:4 (0 for an endpoint, 9 for a root complex's own).
    pub pxcap: u16,
    /// PXDCAP: device capabilities.
    pub pxdcap: Pxdcap,
    /// PXDC: device control.
    pub pxdc: u16,
    /// PXDS: device status.
    pub pxds: u16,
    /// PXLCAP: link capabilities.
    pub pxlcap: u32,
    /// PXLC: link control.
    pub pxlc: u16,
    /// PXLS: link status.
    pub pxls: u16,
    /// Slot and root registers, not an endpoint's.
    pub reserved20: [u8; 16],
    /// PXDCAP2: device capabilities 2.
    pub pxdcap2: u32,
    /// PXDC2: device control 2.
    pub pxdc2: u16,
    /// Device status 2.
    pub pxds2: u16,
    /// Link capabilities 2.
    pub pxlcap2: u32,
    /// Link control 2.
    pub pxlc2: u16,
    /// Link status 2.
    pub pxls2: u16,
    /// Slot registers, not an endpoint's.
    pub reserved52: [u8; 8],
}

sizes!(Header = 64, PowerManagement = 8, MsiX = 12, MsiXEntry = 16, PciExpress = 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_lie_where_the_specification_has_them() {
        offsets!(Header:
            vid = 0x00, did = 0x02, cmd = 0x04, sts = 0x06, rid = 0x08, cc = 0x09, cls = 0x0c, mlt = 0x0d, htype = 0x0e,
            bist = 0x0f, bar = 0x10, ccptr = 0x28, ssvid = 0x2c, ssid = 0x2e, erom = 0x30, cap = 0x34, iline = 0x3c,
            ipin = 0x3d, mgnt = 0x3e, mlat = 0x3f,
        );
        offsets!(PowerManagement: header = 0, pc = 2, pmcs = 4, bse = 6, data = 7);
        offsets!(MsiX: header = 0, mxc = 2, mtab = 4, mpba = 8);
        offsets!(MsiXEntry: address = 0, data = 8, control = 12);
        offsets!(PciExpress:
            pxcap = 0x02, pxdcap = 0x04, pxdc = 0x08, pxds = 0x0a, pxlcap = 0x0c, pxlc = 0x10, pxls = 0x12,
            pxdcap2 = 0x24, pxdc2 = 0x28, pxlcap2 = 0x2c, pxlc2 = 0x30, pxls2 = 0x32,
        );
    }

    #[test]
    fn bits_lie_where_the_specification_has_them() {
        assert_eq!(Command::new().with_mse(true).with_bme(true).with_id(true).into_bits(), 0x406);
        assert_eq!(Mxc::new().with_ts_z(64).with_fm(true).with_mxe(true).into_bits(), 0xc040);
        assert_eq!(MsiXPlace::new().with_bir(4).with_offset8(0x3000 / 8).into_bits(), 0x3004);
        assert_eq!(Pxdcap::new().with_rer(true).with_flrc(true).into_bits(), 1 << 15 | 1 << 28);
        assert_eq!(Pmcs::new().with_ps(3).with_nsfrst(true).with_pmes(true).into_bits(), 0x800b);
    }
}
