//! Command opcodes (Base 2.1 figures 87, 138 and 548; NVM Command Set 1.1 figure 20).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcodes of the Admin queue.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum AdminOpcode {
    /// Delete I/O Submission Queue.
    DeleteIoSq = 0x00,
    /// Create I/O Submission Queue.
    CreateIoSq = 0x01,
    /// Get Log Page.
    GetLogPage = 0x02,
    /// Delete I/O Completion Queue.
    DeleteIoCq = 0x04,
    /// Create I/O Completion Queue.
    CreateIoCq = 0x05,
    /// Identify.
    Identify = 0x06,
    /// Abort.
    Abort = 0x08,
    /// Set Features.
    SetFeatures = 0x09,
    /// Get Features.
    GetFeatures = 0x0a,
    /// Asynchronous Event Request.
    AsyncEventRequest = 0x0c,
    /// Namespace Management.
    NamespaceManagement = 0x0d,
    /// Firmware Commit.
    FirmwareCommit = 0x10,
    /// Firmware Image Download.
    FirmwareImageDownload = 0x11,
    /// Device Self-test.
    DeviceSelfTest = 0x14,
    /// Namespace Attachment.
    NamespaceAttachment = 0x15,
    /// Keep Alive.
    KeepAlive = 0x18,
    /// Directive Send.
    DirectiveSend = 0x19,
    /// Directive Receive.
    DirectiveReceive = 0x1a,
    /// Virtualization Management.
    VirtualizationManagement = 0x1c,
    /// NVMe-MI Send.
    MiSend = 0x1d,
    /// NVMe-MI Receive.
    MiReceive = 0x1e,
    /// Capacity Management.
    CapacityManagement = 0x20,
    /// Discovery Information Management.
    DiscoveryInformationManagement = 0x21,
    /// Fabric Zoning Receive.
    FabricZoningReceive = 0x22,
    /// Lockdown.
    Lockdown = 0x24,
    /// Fabric Zoning Lookup.
    FabricZoningLookup = 0x25,
    /// Clear Exported NVM Resource Configuration.
    ClearExportedNvmResourceConfiguration = 0x28,
    /// Fabric Zoning Send.
    FabricZoningSend = 0x29,
    /// Create Exported NVM Subsystem.
    CreateExportedNvmSubsystem = 0x2a,
    /// Manage Exported NVM Subsystem.
    ManageExportedNvmSubsystem = 0x2d,
    /// Manage Exported Namespace.
    ManageExportedNamespace = 0x31,
    /// Manage Exported Port.
    ManageExportedPort = 0x35,
    /// Send Discovery Log Page.
    SendDiscoveryLogPage = 0x39,
    /// Track Send.
    TrackSend = 0x3d,
    /// Track Receive.
    TrackReceive = 0x3e,
    /// Migration Send.
    MigrationSend = 0x41,
    /// Migration Receive.
    MigrationReceive = 0x42,
    /// Controller Data Queue.
    ControllerDataQueue = 0x45,
    /// Doorbell Buffer Config.
    DoorbellBufferConfig = 0x7c,
    /// Fabrics: [`FabricsType`] tells which command.
    Fabrics = 0x7f,
    /// Format NVM.
    FormatNvm = 0x80,
    /// Security Send.
    SecuritySend = 0x81,
    /// Security Receive.
    SecurityReceive = 0x82,
    /// Sanitize.
    Sanitize = 0x84,
    /// Get LBA Status.
    GetLbaStatus = 0x86,
}

/// Opcodes of an I/O queue: the NVM command set and those that every I/O command set shares.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum NvmOpcode {
    /// Flush.
    Flush = 0x00,
    /// Write.
    Write = 0x01,
    /// Read.
    Read = 0x02,
    /// Write Uncorrectable.
    WriteUncorrectable = 0x04,
    /// Compare.
    Compare = 0x05,
    /// Write Zeroes.
    WriteZeroes = 0x08,
    /// Dataset Management.
    DatasetManagement = 0x09,
    /// Verify.
    Verify = 0x0c,
    /// Reservation Register.
    ReservationRegister = 0x0d,
    /// Reservation Report.
    ReservationReport = 0x0e,
    /// Reservation Acquire.
    ReservationAcquire = 0x11,
    /// I/O Management Receive.
    IoManagementReceive = 0x12,
    /// Reservation Release.
    ReservationRelease = 0x15,
    /// Cancel.
    Cancel = 0x18,
    /// Copy.
    Copy = 0x19,
    /// I/O Management Send.
    IoManagementSend = 0x1d,
    /// Fabrics: [`FabricsType`] tells which command.
    Fabrics = 0x7f,
}

/// FCTYPE: which Fabrics command an SQE with the Fabrics opcode is.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum FabricsType {
    /// Property Set.
    PropertySet = 0x00,
    /// Connect.
    Connect = 0x01,
    /// Property Get.
    PropertyGet = 0x04,
    /// Authentication Send.
    AuthenticationSend = 0x05,
    /// Authentication Receive.
    AuthenticationReceive = 0x06,
    /// Disconnect.
    Disconnect = 0x08,
}

/// Bits 1:0 of an opcode: which way its data goes (Base 2.1, 3.1.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataTransfer {
    /// No data (for Fabrics and some Admin commands the command itself decides).
    None,
    /// From host to controller.
    HostToController,
    /// From controller to host.
    ControllerToHost,
    /// Both ways.
    Bidirectional,
}

impl DataTransfer {
    /// The direction that an opcode's low two bits tell. The Fabrics opcode is an exception: use [`Self::of_fctype`].
    pub const fn of_opcode(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }

    /// The direction that a FCTYPE's low two bits tell.
    pub const fn of_fctype(fctype: FabricsType) -> Self {
        Self::of_opcode(fctype.0)
    }
}

sizes!(AdminOpcode = 1, NvmOpcode = 1, FabricsType = 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_codes_are_values() {
        let unknown = AdminOpcode::read_from_bytes(&[0xff]).unwrap();
        assert_eq!(unknown.0, 0xff);
        assert_ne!(unknown, AdminOpcode::Identify);
    }

    #[test]
    fn direction_follows_the_opcode() {
        assert_eq!(DataTransfer::of_opcode(NvmOpcode::Write.0), DataTransfer::HostToController);
        assert_eq!(DataTransfer::of_opcode(NvmOpcode::Compare.0), DataTransfer::HostToController);
        assert_eq!(DataTransfer::of_opcode(NvmOpcode::Read.0), DataTransfer::ControllerToHost);
        assert_eq!(DataTransfer::of_opcode(AdminOpcode::Identify.0), DataTransfer::ControllerToHost);
        assert_eq!(DataTransfer::of_opcode(NvmOpcode::Flush.0), DataTransfer::None);
        assert_eq!(DataTransfer::of_fctype(FabricsType::Connect), DataTransfer::HostToController);
    }
}
