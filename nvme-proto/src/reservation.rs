//! Reservations (Base 2.1, 7.5 to 7.8 and 8.1.22).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// RTYPE: reservation types.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ReservationType {
    /// No reservation (in the report).
    None = 0,
    /// Write Exclusive.
    WriteExclusive = 1,
    /// Exclusive Access.
    ExclusiveAccess = 2,
    /// Write Exclusive, Registrants Only.
    WriteExclusiveRegistrantsOnly = 3,
    /// Exclusive Access, Registrants Only.
    ExclusiveAccessRegistrantsOnly = 4,
    /// Write Exclusive, All Registrants.
    WriteExclusiveAllRegistrants = 5,
    /// Exclusive Access, All Registrants.
    ExclusiveAccessAllRegistrants = 6,
}

/// RREGA: what Reservation Register does.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum RegisterAction {
    /// Register a key.
    Register = 0,
    /// Unregister a key.
    Unregister = 1,
    /// Replace a key.
    Replace = 2,
}

/// CPTPL: what becomes of Persist Through Power Loss.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ChangePtpl {
    /// No change.
    Keep = 0,
    /// Reservations are released on power on.
    Clear = 2,
    /// Reservations persist.
    Set = 3,
}

/// RACQA: what Reservation Acquire does.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum AcquireAction {
    /// Acquire.
    Acquire = 0,
    /// Preempt.
    Preempt = 1,
    /// Preempt and abort.
    PreemptAndAbort = 2,
}

/// RRELA: what Reservation Release does.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ReleaseAction {
    /// Release.
    Release = 0,
    /// Clear.
    Clear = 1,
}

bits!(ReservationType: u8, RegisterAction: u8, ChangePtpl: u8, AcquireAction: u8, ReleaseAction: u8);

/// CDW10 of Reservation Register.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterCdw10 {
    /// RREGA.
    #[bits(3)]
    pub rrega: RegisterAction,
    /// IEKEY: the current key is not checked.
    pub iekey: bool,
    #[bits(26)]
    __: u32,
    /// CPTPL.
    #[bits(2)]
    pub cptpl: ChangePtpl,
}

/// CDW10 of Reservation Acquire.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AcquireCdw10 {
    /// RACQA.
    #[bits(3)]
    pub racqa: AcquireAction,
    /// IEKEY: to be 0.
    pub iekey: bool,
    #[bits(4)]
    __: u8,
    /// RTYPE.
    #[bits(8)]
    pub rtype: ReservationType,
    __: u16,
}

/// CDW10 of Reservation Release.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReleaseCdw10 {
    /// RRELA.
    #[bits(3)]
    pub rrela: ReleaseAction,
    /// IEKEY: to be 0.
    pub iekey: bool,
    #[bits(4)]
    __: u8,
    /// RTYPE.
    #[bits(8)]
    pub rtype: ReservationType,
    __: u16,
}

/// CDW11 of Reservation Report; CDW10 holds the dwords to return, zero-based.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReportCdw11 {
    /// EDS: the extended data structure, for host identifiers of 16 bytes.
    pub eds: bool,
    #[bits(31)]
    __: u32,
}

/// The data of Reservation Register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterData {
    /// CRKEY: current key.
    pub crkey: u64,
    /// NRKEY: new key.
    pub nrkey: u64,
}

/// The data of Reservation Acquire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AcquireData {
    /// CRKEY: current key.
    pub crkey: u64,
    /// PRKEY: key to preempt.
    pub prkey: u64,
}

/// The data of Reservation Release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReleaseData {
    /// CRKEY: current key.
    pub crkey: u64,
}

/// The header of Reservation Report's data; REGSTRNT of [`Registrant`] follow. The extended structure has 40 reserved
/// bytes between, and then [`ExtendedRegistrant`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReportHeader {
    /// GEN: generation, which moves with each registration, clearing and preemption.
    pub generation: u32,
    /// RTYPE.
    pub rtype: ReservationType,
    /// REGSTRNT: registrants.
    pub regstrnt: U16,
    /// Reserved.
    pub reserved7: [u8; 2],
    /// PTPLS: 1 when reservations persist through power loss.
    pub ptpls: u8,
    /// Reserved.
    pub reserved10: [u8; 14],
}

/// Bytes of the extended report's header: a [`ReportHeader`] and reserved bytes.
pub const EXTENDED_HEADER_LEN: usize = 64;

/// RCSTS bit 0: the registrant's host holds the reservation.
pub const RCSTS_HOLDER: u8 = 1 << 0;

/// A registrant, of a host identifier of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Registrant {
    /// CNTLID: controller; FFFFh when the host has none at the moment (dynamic model).
    pub cntlid: u16,
    /// RCSTS: status.
    pub rcsts: u8,
    /// Reserved.
    pub reserved3: [u8; 5],
    /// HOSTID.
    pub hostid: u64,
    /// RKEY: key.
    pub rkey: u64,
}

/// A registrant, of a host identifier of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtendedRegistrant {
    /// CNTLID: controller, as in [`Registrant`].
    pub cntlid: u16,
    /// RCSTS: status.
    pub rcsts: u8,
    /// Reserved.
    pub reserved3: [u8; 5],
    /// RKEY: key.
    pub rkey: u64,
    /// HOSTID.
    pub hostid: [u8; 16],
    /// Reserved.
    pub reserved32: [u8; 32],
}

sizes!(
    RegisterData = 16,
    AcquireData = 16,
    ReleaseData = 8,
    ReportHeader = 24,
    Registrant = 24,
    ExtendedRegistrant = 64,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_as_linux_sends_them() {
        // Linux registers with CPTPL 3 and IEKEY.
        let register = RegisterCdw10::from_bits(0xc000_0008);
        assert_eq!(register.rrega(), RegisterAction::Register);
        assert_eq!((register.cptpl(), register.iekey()), (ChangePtpl::Set, true));
        let acquire = AcquireCdw10::from_bits(0x0501);
        assert_eq!(acquire.racqa(), AcquireAction::Preempt);
        assert_eq!(acquire.rtype(), ReservationType::WriteExclusiveAllRegistrants);
        assert_eq!(ReleaseCdw10::new().with_rrela(ReleaseAction::Clear).into_bits(), 1);
        assert!(ReportCdw11::from_bits(1).eds());
    }

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        offsets!(ReportHeader: generation = 0, rtype = 4, regstrnt = 5, ptpls = 9);
        offsets!(Registrant: cntlid = 0, rcsts = 2, hostid = 8, rkey = 16);
        offsets!(ExtendedRegistrant: cntlid = 0, rcsts = 2, rkey = 8, hostid = 16);
        offsets!(RegisterData: crkey = 0, nrkey = 8);
        offsets!(AcquireData: crkey = 0, prkey = 8);
    }
}
