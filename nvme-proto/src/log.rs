//! Get Log Page and the log pages (Base 2.1, 5.1.12).

mod discovery;
mod effects;
mod pages;

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use discovery::{DiscoveryEntry, DiscoveryHeader, Eflags, SecurityType};
pub use effects::{CommandEffects, CommandsEffects, FeatureEffects, SupportedLogPage};
pub use pages::{
    AnaGroupDescriptor, AnaHeader, AnaState, CriticalWarning, ErrorEntry, FirmwareSlot,
    ReservationNotification, ReservationNotificationType, Smart,
};

use crate::command::Sqe;

/// LID: log page identifiers.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum LogId {
    /// Supported Log Pages: 256 of [`SupportedLogPage`].
    SupportedLogPages = 0x00,
    /// Error Information: [`ErrorEntry`]s, the newest first.
    ErrorInformation = 0x01,
    /// SMART / Health Information: [`Smart`].
    Smart = 0x02,
    /// Firmware Slot Information: [`FirmwareSlot`].
    FirmwareSlot = 0x03,
    /// Changed Attached Namespace List: a [`NamespaceList`](crate::identify::NamespaceList); when more than 1024
    /// changed, its first identifier is FFFFFFFFh and the others are 0.
    ChangedNamespaces = 0x04,
    /// Commands Supported and Effects: [`CommandsEffects`].
    CommandsEffects = 0x05,
    /// Device Self-test.
    DeviceSelfTest = 0x06,
    /// Telemetry Host-Initiated.
    TelemetryHost = 0x07,
    /// Telemetry Controller-Initiated.
    TelemetryController = 0x08,
    /// Endurance Group Information.
    EnduranceGroup = 0x09,
    /// Predictable Latency Per NVM Set.
    PredictableLatency = 0x0a,
    /// Predictable Latency Event Aggregate.
    PredictableLatencyEvents = 0x0b,
    /// Asymmetric Namespace Access: [`AnaHeader`] and its groups.
    Ana = 0x0c,
    /// Persistent Event.
    PersistentEvent = 0x0d,
    /// LBA Status Information.
    LbaStatus = 0x0e,
    /// Endurance Group Event Aggregate.
    EnduranceGroupEvents = 0x0f,
    /// Media Unit Status.
    MediaUnitStatus = 0x10,
    /// Supported Capacity Configuration List.
    CapacityConfigurations = 0x11,
    /// Feature Identifiers Supported and Effects: 256 of [`FeatureEffects`].
    FeaturesEffects = 0x12,
    /// NVMe-MI Commands Supported and Effects.
    MiCommandsEffects = 0x13,
    /// Command and Feature Lockdown.
    Lockdown = 0x14,
    /// Boot Partition.
    BootPartition = 0x15,
    /// Rotational Media Information.
    RotationalMedia = 0x16,
    /// Discovery: [`DiscoveryHeader`] and [`DiscoveryEntry`]s.
    Discovery = 0x70,
    /// Reservation Notification: [`ReservationNotification`].
    ReservationNotification = 0x80,
    /// Sanitize Status.
    SanitizeStatus = 0x81,
}

bits!(LogId: u8);

/// LSP of the ANA log page: groups only, no namespace identifiers.
pub const LSP_ANA_GROUPS_ONLY: u8 = 1 << 0;

/// A view of a Get Log Page command's SQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// LID.
    pub lid: LogId,
    /// LSP, 7 bits: log specific parameter.
    pub lsp: u8,
    /// RAE: the event that the page belongs to stays retained.
    pub rae: bool,
    /// NUMDU and NUMDL: dwords to return, zero-based.
    pub numd_z: u32,
    /// LSI: log specific identifier.
    pub lsi: u16,
    /// LPOU and LPOL: where in the page to begin: a byte offset, or an index when [`Self::index`] says so.
    pub lpo: u64,
    /// OT: the offset is an index of data structures.
    pub index: bool,
    /// UIDX, 7 bits: UUID index.
    pub uidx: u8,
    /// CSI: I/O command set.
    pub csi: u8,
}

impl GetLogPage {
    /// A command for `bytes` bytes of a page, from byte `offset` of it. `bytes` is a multiple of 4, from 4 to 2³² − 4.
    pub const fn new(lid: LogId, offset: u64, bytes: u32) -> Self {
        let numd_z = (bytes / 4).wrapping_sub(1);
        GetLogPage { lid, lsp: 0, rae: false, numd_z, lsi: 0, lpo: offset, index: false, uidx: 0, csi: 0 }
    }

    /// Reads the fields from a command.
    pub const fn of(sqe: &Sqe) -> Self {
        let [lid, lsp, numd0, numd1] = sqe.cdw10.to_le_bytes();
        let [numd2, numd3, lsi0, lsi1] = sqe.cdw11.to_le_bytes();
        let [uidx, _, ot, csi] = sqe.cdw14.to_le_bytes();
        GetLogPage {
            lid: LogId(lid),
            lsp: lsp & 0x7f,
            rae: lsp & 0x80 != 0,
            numd_z: u32::from_le_bytes([numd0, numd1, numd2, numd3]),
            lsi: u16::from_le_bytes([lsi0, lsi1]),
            lpo: (sqe.cdw13 as u64) << 32 | sqe.cdw12 as u64,
            index: ot & 0x80 != 0,
            uidx: uidx & 0x7f,
            csi,
        }
    }

    /// Puts the fields into CDW10 to CDW14 of a command.
    pub const fn put(self, sqe: &mut Sqe) {
        let [n0, n1, n2, n3] = self.numd_z.to_le_bytes();
        let [l0, l1] = self.lsi.to_le_bytes();
        let [p0, p1, p2, p3, p4, p5, p6, p7] = self.lpo.to_le_bytes();
        sqe.cdw10 = u32::from_le_bytes([self.lid.0, self.lsp & 0x7f | (self.rae as u8) << 7, n0, n1]);
        sqe.cdw11 = u32::from_le_bytes([n2, n3, l0, l1]);
        sqe.cdw12 = u32::from_le_bytes([p0, p1, p2, p3]);
        sqe.cdw13 = u32::from_le_bytes([p4, p5, p6, p7]);
        sqe.cdw14 = u32::from_le_bytes([self.uidx & 0x7f, 0, (self.index as u8) << 7, self.csi]);
    }

    /// Bytes to return: 4 to 2³⁴.
    pub const fn bytes(&self) -> u64 {
        // At most 2³² times 4.
        (self.numd_z as u64).wrapping_add(1).wrapping_mul(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_log_page_as_nvme_cli_sends_it() {
        let mut sqe = Sqe::default();
        GetLogPage {
            lsp: LSP_ANA_GROUPS_ONLY,
            rae: true,
            ..GetLogPage::new(LogId::Ana, 0x1_0000_0010, 4096)
        }
        .put(&mut sqe);
        assert_eq!((sqe.cdw10, sqe.cdw11), (0x03ff_810c, 0));
        assert_eq!((sqe.cdw12, sqe.cdw13, sqe.cdw14), (0x10, 1, 0));
        assert_eq!(GetLogPage::of(&sqe).bytes(), 4096);
    }

    #[test]
    fn every_field_survives_the_round_trip() {
        let page = GetLogPage {
            lid: LogId(0xc1),
            lsp: 0x55,
            rae: true,
            numd_z: u32::MAX,
            lsi: 0x1234,
            lpo: 0x0102_0304_0506_0708,
            index: true,
            uidx: 0x7f,
            csi: 2,
        };
        let mut sqe = Sqe::default();
        page.put(&mut sqe);
        assert_eq!(GetLogPage::of(&sqe), page);
        assert_eq!(page.bytes(), 1 << 34);
        assert_eq!(sqe.cdw14, 0x0280_007f);
    }
}
