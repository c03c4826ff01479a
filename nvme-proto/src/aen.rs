//! Asynchronous events (Base 2.1, 5.1.2 and 5.1.25.1.5).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::log::{CriticalWarning, LogId};

/// AET: Asynchronous Event Type.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum EventType {
    /// Error status: an [`ErrorInfo`].
    Error = 0,
    /// SMART / Health status: a [`HealthInfo`].
    Health = 1,
    /// Notice: a [`NoticeInfo`].
    Notice = 2,
    /// Immediate: an [`ImmediateInfo`]. It needs no log page and is never masked.
    Immediate = 3,
    /// I/O command specific status: an [`IoCommandInfo`].
    IoCommand = 6,
    /// Vendor specific.
    Vendor = 7,
}

bits!(EventType: u8);

/// Event information of an error.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ErrorInfo {
    /// Write to Invalid Doorbell Register.
    InvalidDoorbellRegister = 0,
    /// Invalid Doorbell Write Value.
    InvalidDoorbellValue = 1,
    /// Diagnostic Failure.
    DiagnosticFailure = 2,
    /// Persistent Internal Error.
    PersistentInternalError = 3,
    /// Transient Internal Error.
    TransientInternalError = 4,
    /// Firmware Image Load Error.
    FirmwareImageLoadError = 5,
}

/// Event information of health.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum HealthInfo {
    /// The subsystem's reliability is degraded.
    Reliability = 0,
    /// A temperature is over or under a threshold.
    TemperatureThreshold = 1,
    /// The spare is below its threshold.
    SpareBelowThreshold = 2,
}

/// Event information of a notice.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum NoticeInfo {
    /// Attached Namespace Attribute Changed.
    NamespaceAttributeChanged = 0x00,
    /// Firmware Activation Starting.
    FirmwareActivationStarting = 0x01,
    /// Telemetry Log Changed.
    TelemetryLogChanged = 0x02,
    /// Asymmetric Namespace Access Change.
    AnaChange = 0x03,
    /// Predictable Latency Event Aggregate Log Change.
    PredictableLatencyEventChange = 0x04,
    /// LBA Status Information Alert.
    LbaStatusAlert = 0x05,
    /// Endurance Group Event Aggregate Log Page Change.
    EnduranceGroupEventChange = 0x06,
    /// Zone Descriptor Changed.
    ZoneDescriptorChanged = 0xef,
    /// Discovery Log Page Change.
    DiscoveryLogChange = 0xf0,
}

/// Event information of an immediate event.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ImmediateInfo {
    /// Normal NVM Subsystem Shutdown.
    NormalShutdown = 0,
    /// Temperature Threshold Hysteresis Recovery.
    TemperatureHysteresisRecovery = 1,
}

/// Event information of an I/O command set.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum IoCommandInfo {
    /// Reservation Log Page Available.
    ReservationLogAvailable = 0,
    /// Sanitize Operation Completed.
    SanitizeCompleted = 1,
    /// Sanitize Operation Completed With Unexpected Deallocation.
    SanitizeCompletedDeallocated = 2,
}

/// An event, as DW0 of the Asynchronous Event Request's completion tells it.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// AET: type.
    #[bits(3)]
    pub event_type: EventType,
    #[bits(5)]
    __: u8,
    /// AEI: information; its meaning depends on the type.
    pub info: u8,
    /// LID: the log page that tells more; to read it clears the event.
    #[bits(8)]
    pub lid: LogId,
    __: u8,
}

impl Event {
    /// An error, told by the Error Information log page.
    pub const fn error(info: ErrorInfo) -> Self {
        Self::of(EventType::Error, info.0, LogId::ErrorInformation)
    }

    /// A matter of health, told by the SMART log page.
    pub const fn health(info: HealthInfo) -> Self {
        Self::of(EventType::Health, info.0, LogId::Smart)
    }

    /// A notice, told by the given log page.
    pub const fn notice(info: NoticeInfo, lid: LogId) -> Self {
        Self::of(EventType::Notice, info.0, lid)
    }

    /// Namespaces came, went or changed: the Changed Attached Namespace List tells which.
    pub const NAMESPACES_CHANGED: Self =
        Self::notice(NoticeInfo::NamespaceAttributeChanged, LogId::ChangedNamespaces);

    /// ANA states changed: the ANA log page tells them.
    pub const ANA_CHANGED: Self = Self::notice(NoticeInfo::AnaChange, LogId::Ana);

    /// The discovery log page changed.
    pub const DISCOVERY_CHANGED: Self = Self::notice(NoticeInfo::DiscoveryLogChange, LogId::Discovery);

    /// A reservation notification is there.
    pub const RESERVATION: Self = Self::of(
        EventType::IoCommand,
        IoCommandInfo::ReservationLogAvailable.0,
        LogId::ReservationNotification,
    );

    const fn of(event_type: EventType, info: u8, lid: LogId) -> Self {
        Self::new().with_event_type(event_type).with_info(info).with_lid(lid)
    }
}

/// Asynchronous Event Configuration (feature 0Bh): the events that the host wants.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AsyncEventConfiguration {
    /// SHCW: critical warnings of SMART / Health.
    #[bits(8)]
    pub shcw: CriticalWarning,
    /// NAN: Attached Namespace Attribute Notices.
    pub nan: bool,
    /// FAN: Firmware Activation Notices.
    pub fan: bool,
    /// TLN: Telemetry Log Notices.
    pub tln: bool,
    /// ANACN: Asymmetric Namespace Access Change Notices.
    pub anacn: bool,
    /// PLEALCN: Predictable Latency Event Aggregate Log Change Notices.
    pub plealcn: bool,
    /// LSIAN: LBA Status Information Alert Notices.
    pub lsian: bool,
    /// EGEALPCN: Endurance Group Event Aggregate Log Page Change Notices.
    pub egealpcn: bool,
    /// NNSSHDN: Normal NVM Subsystem Shutdown.
    pub nnsshdn: bool,
    /// TTHR: Temperature Threshold Hysteresis Recovery.
    pub tthr: bool,
    /// RGCNS: Reachability Groups Change Notices.
    pub rgcns: bool,
    #[bits(1)]
    __: bool,
    /// ANSAN: Allocated Namespace Attribute Notices.
    pub ansan: bool,
    #[bits(7)]
    __: u8,
    /// ZDCN: Zone Descriptor Change Notices.
    pub zdcn: bool,
    #[bits(3)]
    __: u8,
    /// DLPCN: Discovery Log Page Change Notification.
    pub dlpcn: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_as_linux_reads_them() {
        // Type in 2:0, information in 15:8, log page in 23:16.
        assert_eq!(Event::NAMESPACES_CHANGED.into_bits(), 0x04_0002);
        assert_eq!(Event::ANA_CHANGED.into_bits(), 0x0c_0302);
        assert_eq!(Event::DISCOVERY_CHANGED.into_bits(), 0x70_f002);
        assert_eq!(Event::RESERVATION.into_bits(), 0x80_0006);
        assert_eq!(Event::error(ErrorInfo::InvalidDoorbellValue).into_bits(), 0x01_0100);
        assert_eq!(Event::health(HealthInfo::SpareBelowThreshold).into_bits(), 0x02_0201);
    }

    #[test]
    fn the_configuration_matches_oaes() {
        use crate::identify::Oaes;
        let oaes = Oaes::new().with_nsan(true).with_fan(true).with_anacn(true).with_dlpcn(true);
        let config =
            AsyncEventConfiguration::new().with_nan(true).with_fan(true).with_anacn(true).with_dlpcn(true);
        assert_eq!(oaes.into_bits(), config.into_bits());
        // What Linux enables on a controller with ANA.
        assert!(AsyncEventConfiguration::from_bits(0x900).anacn());
        assert!(AsyncEventConfiguration::from_bits(0x02).shcw().ttc());
    }
}
