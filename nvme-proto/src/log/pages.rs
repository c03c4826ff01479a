//! Log pages of errors, health, firmware, access and reservations (Base 2.1, 5.1.12.1).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::little_endian::{U16, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fabrics::TransportType;
use crate::status::StatusField;

/// An entry of the Error Information log page. One whose count is 0 is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// ECNT: a number that each error gets, from 1.
    pub ecnt: u64,
    /// SQID: queue of the command; FFFFh for none.
    pub sqid: u16,
    /// CID: the command; FFFFh for none.
    pub cid: u16,
    /// STS: status of the command, and its phase tag.
    pub sts: StatusField,
    /// PEL: the byte (7:0) and bit (10:8) of the command that is wrong; FFFFh for none.
    pub pel: u16,
    /// LBA: the first block that went wrong.
    pub lba: u64,
    /// NSID: namespace of the error.
    pub nsid: u32,
    /// VSIA: the log page with vendor specific information; 0 for none.
    pub vsia: u8,
    /// TRTYPE: transport; 0 for PCIe.
    pub trtype: TransportType,
    /// CSI: I/O command set, from LPVER 1.
    pub csi: u8,
    /// OPC: opcode, from LPVER 1.
    pub opc: u8,
    /// CSINFO: command specific information.
    pub csinfo: u64,
    /// TTSI: transport specific information.
    pub ttsi: u16,
    /// Reserved.
    pub reserved42: [u8; 21],
    /// LPVER: version of this entry.
    pub lpver: u8,
}

/// CW of SMART: Critical Warning.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CriticalWarning {
    /// ASCBT: the spare is below its threshold.
    pub ascbt: bool,
    /// TTC: a temperature is over or under a threshold.
    pub ttc: bool,
    /// NDR: reliability is degraded.
    pub ndr: bool,
    /// AMRO: all media is read only.
    pub amro: bool,
    /// VMBF: the backup of volatile memory failed.
    pub vmbf: bool,
    /// PMRRO: the persistent memory region is read only or unreliable.
    pub pmrro: bool,
    #[bits(2)]
    __: u8,
}

/// The SMART / Health Information log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Smart {
    /// CW: critical warnings.
    pub cw: CriticalWarning,
    /// CTEMP: composite temperature in kelvin.
    pub ctemp: U16,
    /// AVSP: available spare in per cent.
    pub avsp: u8,
    /// AVSPT: threshold of the available spare in per cent.
    pub avspt: u8,
    /// PUSED: life used in per cent, up to 255.
    pub pused: u8,
    /// EGCWS: Endurance Group critical warnings.
    pub egcws: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// DUR: data read, in 1000 units of 512 bytes, rounded up.
    pub dur: U128,
    /// DUW: data written, in 1000 units of 512 bytes, rounded up.
    pub duw: U128,
    /// HRC: read commands.
    pub hrc: U128,
    /// HWC: write commands.
    pub hwc: U128,
    /// CBT: busy time in minutes.
    pub cbt: U128,
    /// PWRC: power cycles.
    pub pwrc: U128,
    /// POH: hours powered on.
    pub poh: U128,
    /// UPL: unexpected power losses.
    pub upl: U128,
    /// MDIE: media and data integrity errors.
    pub mdie: U128,
    /// NEILE: entries of the error log over the controller's life.
    pub neile: U128,
    /// WCTT: minutes over the warning temperature.
    pub wctt: u32,
    /// CCTT: minutes over the critical temperature.
    pub cctt: u32,
    /// TSEN: temperature sensors in kelvin; 0 for none.
    pub tsen: [u16; 8],
    /// TMT1TC and TMT2TC: thermal management transitions.
    pub tmt_tc: [u32; 2],
    /// TTTMT1 and TTTMT2: seconds in thermal management.
    pub tt_tmt: [u32; 2],
    /// Reserved.
    pub reserved232: [u8; 280],
}

/// The Firmware Slot Information log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlot {
    /// AFI: the active slot in bits 2:0, the one after the next reset in bits 6:4 (0 for the same).
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// FRS1 to FRS7: revision in each slot, ASCII; zero for none.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

/// The header of the ANA log page; NANAGRPD descriptors follow, each with its namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnaHeader {
    /// CHGCNT: changes of this page; it wraps to 0.
    pub chgcnt: u64,
    /// NANAGRPD: descriptors that follow.
    pub nanagrpd: u16,
    /// Reserved.
    pub reserved10: [u8; 6],
}

/// ANAS: how well a group's namespaces can be reached through this controller.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum AnaState {
    /// Optimized.
    Optimized = 0x1,
    /// Non-Optimized.
    NonOptimized = 0x2,
    /// Inaccessible.
    Inaccessible = 0x3,
    /// Persistent Loss.
    PersistentLoss = 0x4,
    /// Change: between two states.
    Change = 0xf,
}

/// A group of the ANA log page; NNV namespace identifiers of 4 bytes follow, in increasing order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnaGroupDescriptor {
    /// AGID: ANA group identifier, from 1.
    pub anagrpid: u32,
    /// NNV: namespace identifiers that follow; 0 when groups only are asked for.
    pub nnv: u32,
    /// CHGCNT: the change count when this group last changed; 0 where it is not told.
    pub chgcnt: u64,
    /// ANAS in bits 3:0; the rest is reserved.
    pub state: AnaState,
    /// Reserved.
    pub reserved17: [u8; 15],
}

/// RNLPT: what happened to a reservation.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ReservationNotificationType {
    /// The page is empty.
    Empty = 0,
    /// A registration was preempted.
    RegistrationPreempted = 1,
    /// The reservation was released.
    ReservationReleased = 2,
    /// The reservation was preempted.
    ReservationPreempted = 3,
}

/// The Reservation Notification log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReservationNotification {
    /// LPC: a number that each notification gets, from 1; 0 when the page is empty.
    pub lpc: u64,
    /// RNLPT: what happened.
    pub rnlpt: ReservationNotificationType,
    /// NALP: further pages that wait, at most 255.
    pub nalp: u8,
    /// Reserved.
    pub reserved10: [u8; 2],
    /// NSID: namespace of the reservation.
    pub nsid: u32,
    /// Reserved.
    pub reserved16: [u8; 48],
}

sizes!(
    ErrorEntry = 64,
    Smart = 512,
    FirmwareSlot = 512,
    AnaHeader = 16,
    AnaGroupDescriptor = 32,
    ReservationNotification = 64,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        offsets!(ErrorEntry:
            ecnt = 0, sqid = 8, cid = 10, sts = 12, pel = 14, lba = 16, nsid = 24, vsia = 28, trtype = 29, csi = 30,
            opc = 31, csinfo = 32, ttsi = 40, lpver = 63,
        );
        offsets!(Smart:
            cw = 0, ctemp = 1, avsp = 3, avspt = 4, pused = 5, egcws = 6, dur = 32, duw = 48, hrc = 64, hwc = 80,
            cbt = 96, pwrc = 112, poh = 128, upl = 144, mdie = 160, neile = 176, wctt = 192, cctt = 196, tsen = 200,
            tmt_tc = 216, tt_tmt = 224, reserved232 = 232,
        );
        offsets!(FirmwareSlot: afi = 0, frs = 8, reserved64 = 64);
        offsets!(ReservationNotification: lpc = 0, rnlpt = 8, nalp = 9, nsid = 12);
    }

    #[test]
    fn an_ana_group_as_linux_reads_it() {
        let group = AnaGroupDescriptor {
            anagrpid: 1,
            nnv: 2,
            chgcnt: 3,
            state: AnaState::Inaccessible,
            reserved17: [0; 15],
        };
        assert_eq!(group.as_bytes()[..17], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 3]);
        let header = AnaHeader { chgcnt: 1, nanagrpd: 2, reserved10: [0; 6] };
        assert_eq!(header.as_bytes()[..10], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    }
}
