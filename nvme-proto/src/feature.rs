//! Set Features, Get Features and the features' values (Base 2.1, 5.1.11, 5.1.25).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// FID: feature identifiers.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum FeatureId {
    /// Arbitration: [`Arbitration`].
    Arbitration = 0x01,
    /// Power Management: [`PowerManagement`].
    PowerManagement = 0x02,
    /// LBA Range Type.
    LbaRangeType = 0x03,
    /// Temperature Threshold: [`TemperatureThreshold`].
    TemperatureThreshold = 0x04,
    /// Error Recovery: [`ErrorRecovery`].
    ErrorRecovery = 0x05,
    /// Volatile Write Cache: [`VolatileWriteCache`].
    VolatileWriteCache = 0x06,
    /// Number of Queues: [`NumberOfQueues`].
    NumberOfQueues = 0x07,
    /// Interrupt Coalescing: [`InterruptCoalescing`].
    InterruptCoalescing = 0x08,
    /// Interrupt Vector Configuration: [`InterruptVectorConfiguration`].
    InterruptVectorConfiguration = 0x09,
    /// Write Atomicity Normal: [`WriteAtomicity`].
    WriteAtomicity = 0x0a,
    /// Asynchronous Event Configuration: [`AsyncEventConfiguration`](crate::aen::AsyncEventConfiguration).
    AsyncEventConfiguration = 0x0b,
    /// Autonomous Power State Transition.
    AutonomousPowerStateTransition = 0x0c,
    /// Host Memory Buffer.
    HostMemoryBuffer = 0x0d,
    /// Timestamp: [`Timestamp`].
    Timestamp = 0x0e,
    /// Keep Alive Timer: KATO in milliseconds.
    KeepAliveTimer = 0x0f,
    /// Host Controlled Thermal Management.
    HostControlledThermalManagement = 0x10,
    /// Non-Operational Power State Config.
    NonOperationalPowerStateConfig = 0x11,
    /// Read Recovery Level Config.
    ReadRecoveryLevel = 0x12,
    /// Predictable Latency Mode Config.
    PredictableLatencyModeConfig = 0x13,
    /// Predictable Latency Mode Window.
    PredictableLatencyModeWindow = 0x14,
    /// LBA Status Information Report Interval.
    LbaStatusReportInterval = 0x15,
    /// Host Behavior Support: [`HostBehavior`].
    HostBehavior = 0x16,
    /// Sanitize Config.
    SanitizeConfig = 0x17,
    /// Endurance Group Event Configuration.
    EnduranceGroupEventConfiguration = 0x18,
    /// I/O Command Set Profile: [`CommandSetProfile`].
    CommandSetProfile = 0x19,
    /// Spinup Control.
    SpinupControl = 0x1a,
    /// Enhanced Controller Metadata.
    EnhancedControllerMetadata = 0x7d,
    /// Controller Metadata.
    ControllerMetadata = 0x7e,
    /// Namespace Metadata.
    NamespaceMetadata = 0x7f,
    /// Software Progress Marker.
    SoftwareProgressMarker = 0x80,
    /// Host Identifier: 8 or 16 bytes, as [`HostIdentifier`] says.
    HostIdentifier = 0x81,
    /// Reservation Notification Mask: [`ReservationNotificationMask`].
    ReservationNotificationMask = 0x82,
    /// Reservation Persistence: [`ReservationPersistence`].
    ReservationPersistence = 0x83,
    /// Namespace Write Protection Config: [`WriteProtection`].
    NamespaceWriteProtection = 0x84,
}

/// SEL of Get Features: which value.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum FeatureSelect {
    /// The value in force.
    Current = 0,
    /// The value of the factory.
    Default = 1,
    /// The value that survives a reset.
    Saved = 2,
    /// What can be done with the feature: [`FeatureCapabilities`] in DW0.
    SupportedCapabilities = 3,
}

bits!(FeatureId: u8, FeatureSelect: u8);

/// CDW10 of Get Features.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetFeaturesCdw10 {
    /// FID.
    #[bits(8)]
    pub fid: FeatureId,
    /// SEL.
    #[bits(3)]
    pub sel: FeatureSelect,
    #[bits(21)]
    __: u32,
}

/// CDW10 of Set Features.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetFeaturesCdw10 {
    /// FID.
    #[bits(8)]
    pub fid: FeatureId,
    #[bits(23)]
    __: u32,
    /// SV: the value is to survive a reset.
    pub sv: bool,
}

/// DW0 of Get Features when the supported capabilities are asked for.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureCapabilities {
    /// The value can be saved.
    pub saveable: bool,
    /// The value is per namespace.
    pub namespace_specific: bool,
    /// The value can be changed.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Arbitration (01h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Arbitration {
    /// AB: commands from one queue at a time, as a power of two; 7 for no limit.
    #[bits(3)]
    pub ab: u8,
    #[bits(5)]
    __: u8,
    /// LPW: weight of low priority, zero-based.
    pub lpw_z: u8,
    /// MPW: weight of medium priority, zero-based.
    pub mpw_z: u8,
    /// HPW: weight of high priority, zero-based.
    pub hpw_z: u8,
}

/// Power Management (02h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerManagement {
    /// PS: power state.
    #[bits(5)]
    pub ps: u8,
    /// WH: workload hint.
    #[bits(3)]
    pub wh: u8,
    #[bits(24)]
    __: u32,
}

/// Temperature Threshold (04h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TemperatureThreshold {
    /// TMPTH: threshold in kelvin.
    pub tmpth: u16,
    /// TMPSEL: 0 the composite temperature, 1 to 8 a sensor, Fh all (Set Features).
    #[bits(4)]
    pub tmpsel: u8,
    /// THSEL: 0 over, 1 under.
    #[bits(2)]
    pub thsel: u8,
    /// TMPTHH: hysteresis in kelvin.
    #[bits(3)]
    pub tmpthh: u8,
    #[bits(7)]
    __: u8,
}

/// Error Recovery (05h; NVM Command Set 1.1, 4.1.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ErrorRecovery {
    /// TLER: time for retries in 100 ms; 0 for no limit.
    pub tler: u16,
    /// DULBE: reading a deallocated or unwritten block is an error.
    pub dulbe: bool,
    #[bits(15)]
    __: u16,
}

/// Volatile Write Cache (06h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VolatileWriteCache {
    /// WCE: the cache is on.
    pub wce: bool,
    #[bits(31)]
    __: u32,
}

/// Number of Queues (07h): asked for in CDW11, granted in DW0. FFFFh is not a valid request.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NumberOfQueues {
    /// NSQR or NSQA: I/O submission queues, zero-based.
    pub nsq_z: u16,
    /// NCQR or NCQA: I/O completion queues, zero-based.
    pub ncq_z: u16,
}

/// Interrupt Coalescing (08h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptCoalescing {
    /// THR: completions before an interrupt, zero-based.
    pub thr_z: u8,
    /// TIME: the longest wait in 100 µs; 0 for no wait.
    pub time: u8,
    __: u16,
}

/// Interrupt Vector Configuration (09h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptVectorConfiguration {
    /// IV: interrupt vector.
    pub iv: u16,
    /// CD: no coalescing on this vector.
    pub cd: bool,
    #[bits(15)]
    __: u16,
}

/// Write Atomicity Normal (0Ah; NVM Command Set 1.1, 4.1.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WriteAtomicity {
    /// DN: the host needs atomicity no larger than AWUPF.
    pub dn: bool,
    #[bits(31)]
    __: u32,
}

/// The data of Timestamp (0Eh).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Timestamp {
    /// Milliseconds since 1970, UTC.
    #[bits(48)]
    pub milliseconds: u64,
    /// Synch: the clock may have stopped meanwhile.
    pub synch: bool,
    /// TO: 0 counted since a reset, 1 set by the host.
    #[bits(3)]
    pub origin: u8,
    #[bits(12)]
    __: u16,
}

/// The data of Host Behavior Support (16h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostBehavior {
    /// ACRE: 1 when the host heeds Command Retry Delay.
    pub acre: u8,
    /// ETDAS: 1 when the host knows Telemetry data area 4.
    pub etdas: u8,
    /// LBAFEE: 1 when the host knows extended LBA formats.
    pub lbafee: u8,
    /// HDISNS: 1 when the host knows dispersed namespaces.
    pub hdisns: u8,
    /// CDFE: copy descriptor formats 2h and above that the host enables, a bit each.
    pub cdfe: u16,
    /// Reserved.
    pub reserved6: [u8; 506],
}

/// I/O Command Set Profile (19h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandSetProfile {
    /// IOCSCI: index into the I/O Command Set data structure.
    #[bits(9)]
    pub iocsci: u16,
    #[bits(23)]
    __: u32,
}

/// Host Identifier (81h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HostIdentifier {
    /// EXHID: the identifier has 16 bytes, not 8.
    pub exhid: bool,
    #[bits(31)]
    __: u32,
}

/// Reservation Notification Mask (82h): notifications that are not to be sent.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReservationNotificationMask {
    #[bits(1)]
    __: bool,
    /// REGPRE: Registration Preempted.
    pub regpre: bool,
    /// RESREL: Reservation Released.
    pub resrel: bool,
    /// RESPRE: Reservation Preempted.
    pub respre: bool,
    #[bits(28)]
    __: u32,
}

/// Reservation Persistence (83h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReservationPersistence {
    /// PTPL: reservations persist through power loss.
    pub ptpl: bool,
    #[bits(31)]
    __: u32,
}

/// Namespace Write Protection Config (84h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WriteProtection {
    /// WPS: 0 no write protect, 1 write protect, 2 write protect until power cycle, 3 permanent write protect.
    #[bits(3)]
    pub wps: u8,
    #[bits(29)]
    __: u32,
}

sizes!(Timestamp = 8, HostBehavior = 512);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_as_linux_sends_them() {
        let cdw10 = SetFeaturesCdw10::from_bits(0x07);
        assert_eq!((cdw10.fid(), cdw10.sv()), (FeatureId::NumberOfQueues, false));
        assert_eq!(NumberOfQueues::from_bits(0x0007_0003).nsq_z(), 3);
        assert_eq!(NumberOfQueues::from_bits(0x0007_0003).ncq_z(), 7);
        let get = GetFeaturesCdw10::from_bits(0x0000_0306);
        assert_eq!(get.fid(), FeatureId::VolatileWriteCache);
        assert_eq!(get.sel(), FeatureSelect::SupportedCapabilities);
        assert_eq!(GetFeaturesCdw10::from_bits(0x7ff).sel(), FeatureSelect(7));
    }

    #[test]
    fn bits_lie_where_the_specification_has_them() {
        assert!(SetFeaturesCdw10::from_bits(1 << 31).sv());
        assert_eq!(FeatureCapabilities::new().with_changeable(true).into_bits(), 4);
        assert_eq!(Arbitration::new().with_ab(7).with_hpw_z(1).into_bits(), 0x0100_0007);
        assert_eq!(TemperatureThreshold::new().with_tmpsel(0xf).with_thsel(1).into_bits(), 0x1f_0000);
        assert!(ErrorRecovery::from_bits(1 << 16).dulbe());
        assert_eq!(InterruptVectorConfiguration::new().with_iv(3).with_cd(true).into_bits(), 0x1_0003);
        assert_eq!(ReservationNotificationMask::new().with_respre(true).into_bits(), 8);
        assert_eq!(Timestamp::new().with_milliseconds(1).with_origin(1).into_bits(), 1 | 1 << 49);
        offsets!(HostBehavior: acre = 0, etdas = 1, lbafee = 2, hdisns = 3, cdfe = 4);
    }
}
