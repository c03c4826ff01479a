//! Status values (Base 2.1, 4.2.3; NVM Command Set 1.1, 3.1.2.5).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A status without the phase tag: SC in bits 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
///
/// Two statuses of the same meaning may differ in CRD, M and DNR; compare [`Status::code`] when only the meaning counts.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Status(pub u16);

/// Status code types (SCT).
pub mod sct {
    /// Generic Command Status.
    pub const GENERIC: u8 = 0;
    /// Command Specific Status.
    pub const COMMAND_SPECIFIC: u8 = 1;
    /// Media and Data Integrity Errors.
    pub const MEDIA: u8 = 2;
    /// Path Related Status.
    pub const PATH: u8 = 3;
    /// Vendor Specific.
    pub const VENDOR: u8 = 7;
}

const DNR: u16 = 1 << 14;
const MORE: u16 = 1 << 13;
const CODE: u16 = 0x7ff;

impl Status {
    /// A status of the given type and code, with DNR, M and CRD clear. `sct` above 7 is cut to its low three bits.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(u16::from_le_bytes([sc, sct & 7]))
    }

    /// Status Code.
    pub const fn sc(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Status Code Type: one of [`sct`].
    pub const fn sct(self) -> u8 {
        self.0.to_le_bytes()[1] & 7
    }

    /// Command Retry Delay: 0 for none, else which of Identify Controller's CRDT1 to CRDT3 tells it.
    pub const fn crd(self) -> u8 {
        self.0.to_le_bytes()[1] >> 3 & 3
    }

    /// Whether the Error Information log has more on this (M).
    pub const fn is_more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Whether the same command would fail again (DNR).
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.0 & CODE == 0
    }

    /// Whether SCT says that the path, not the device, failed, so that another path may do.
    pub const fn is_path_error(self) -> bool {
        self.sct() == sct::PATH
    }

    /// This status with Do Not Retry set.
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// This status with More set.
    #[must_use]
    pub const fn more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// This status with the given Command Retry Delay (0 to 3).
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self(self.0 & !(3 << 11) | ((crd & 3) as u16) << 11)
    }

    /// SCT and SC alone, to compare meanings.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & CODE)
    }

    /// The status field of a completion queue entry: this status and the phase tag.
    pub const fn with_phase(self, phase: bool) -> StatusField {
        StatusField(self.0 << 1 | phase as u16)
    }
}

/// The upper half of a CQE's DW3: the phase tag in bit 0, a [`Status`] above it.
///
/// On Fabrics there is no phase tag and bit 0 is zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct StatusField(pub u16);

impl StatusField {
    /// The status.
    pub const fn status(self) -> Status {
        Status(self.0 >> 1)
    }

    /// The phase tag.
    pub const fn phase(self) -> bool {
        self.0 & 1 != 0
    }
}

impl From<Status> for StatusField {
    /// The field as a Fabrics transport carries it: no phase tag.
    fn from(status: Status) -> Self {
        status.with_phase(false)
    }
}

impl fmt::Debug for StatusField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} p={}", self.status(), u8::from(self.phase()))
    }
}

macro_rules! statuses {
    ($($sct:ident { $($name:ident = $sc:literal $text:literal)+ })+) => {
        impl Status {
            $($(
                #[doc = concat!($text, ".")]
                pub const $name: Self = Self::new(sct::$sct, $sc);
            )+)+
        }

        /// Every status named here, with the specification's text.
        const NAMES: &[(Status, &str)] = &[$($((Status::$name, $text),)+)+];
    };
}

statuses! {
    GENERIC {
        SUCCESS = 0x00 "Successful Completion"
        INVALID_OPCODE = 0x01 "Invalid Command Opcode"
        INVALID_FIELD = 0x02 "Invalid Field in Command"
        COMMAND_ID_CONFLICT = 0x03 "Command ID Conflict"
        DATA_TRANSFER_ERROR = 0x04 "Data Transfer Error"
        ABORTED_POWER_LOSS = 0x05 "Commands Aborted due to Power Loss Notification"
        INTERNAL_ERROR = 0x06 "Internal Error"
        ABORT_REQUESTED = 0x07 "Command Abort Requested"
        ABORTED_SQ_DELETION = 0x08 "Command Aborted due to SQ Deletion"
        ABORTED_FAILED_FUSED = 0x09 "Command Aborted due to Failed Fused Command"
        ABORTED_MISSING_FUSED = 0x0a "Command Aborted due to Missing Fused Command"
        INVALID_NAMESPACE_OR_FORMAT = 0x0b "Invalid Namespace or Format"
        COMMAND_SEQUENCE_ERROR = 0x0c "Command Sequence Error"
        INVALID_SGL_SEGMENT_DESCRIPTOR = 0x0d "Invalid SGL Segment Descriptor"
        INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x0e "Invalid Number of SGL Descriptors"
        DATA_SGL_LENGTH_INVALID = 0x0f "Data SGL Length Invalid"
        METADATA_SGL_LENGTH_INVALID = 0x10 "Metadata SGL Length Invalid"
        SGL_DESCRIPTOR_TYPE_INVALID = 0x11 "SGL Descriptor Type Invalid"
        INVALID_USE_OF_CMB = 0x12 "Invalid Use of Controller Memory Buffer"
        PRP_OFFSET_INVALID = 0x13 "PRP Offset Invalid"
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14 "Atomic Write Unit Exceeded"
        OPERATION_DENIED = 0x15 "Operation Denied"
        SGL_OFFSET_INVALID = 0x16 "SGL Offset Invalid"
        HOST_ID_INCONSISTENT_FORMAT = 0x18 "Host Identifier Inconsistent Format"
        KEEP_ALIVE_TIMER_EXPIRED = 0x19 "Keep Alive Timer Expired"
        KEEP_ALIVE_TIMEOUT_INVALID = 0x1a "Keep Alive Timeout Invalid"
        ABORTED_PREEMPT_AND_ABORT = 0x1b "Command Aborted due to Preempt and Abort"
        SANITIZE_FAILED = 0x1c "Sanitize Failed"
        SANITIZE_IN_PROGRESS = 0x1d "Sanitize In Progress"
        SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x1e "SGL Data Block Granularity Invalid"
        NOT_SUPPORTED_FOR_QUEUE_IN_CMB = 0x1f "Command Not Supported for Queue in CMB"
        NAMESPACE_WRITE_PROTECTED = 0x20 "Namespace is Write Protected"
        COMMAND_INTERRUPTED = 0x21 "Command Interrupted"
        TRANSIENT_TRANSPORT_ERROR = 0x22 "Transient Transport Error"
        PROHIBITED_BY_LOCKDOWN = 0x23 "Command Prohibited by Command and Feature Lockdown"
        ADMIN_COMMAND_MEDIA_NOT_READY = 0x24 "Admin Command Media Not Ready"
        INVALID_KEY_TAG = 0x25 "Invalid Key Tag"
        HOST_DISPERSED_NAMESPACE_NOT_ENABLED = 0x26 "Host Dispersed Namespace Support Not Enabled"
        HOST_ID_NOT_INITIALIZED = 0x27 "Host Identifier Not Initialized"
        INCORRECT_KEY = 0x28 "Incorrect Key"
        FDP_DISABLED = 0x29 "FDP Disabled"
        INVALID_PLACEMENT_HANDLE_LIST = 0x2a "Invalid Placement Handle List"
        LBA_OUT_OF_RANGE = 0x80 "LBA Out of Range"
        CAPACITY_EXCEEDED = 0x81 "Capacity Exceeded"
        NAMESPACE_NOT_READY = 0x82 "Namespace Not Ready"
        RESERVATION_CONFLICT = 0x83 "Reservation Conflict"
        FORMAT_IN_PROGRESS = 0x84 "Format In Progress"
    }
    COMMAND_SPECIFIC {
        COMPLETION_QUEUE_INVALID = 0x00 "Completion Queue Invalid"
        INVALID_QUEUE_IDENTIFIER = 0x01 "Invalid Queue Identifier"
        INVALID_QUEUE_SIZE = 0x02 "Invalid Queue Size"
        ABORT_COMMAND_LIMIT_EXCEEDED = 0x03 "Abort Command Limit Exceeded"
        ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED = 0x05 "Asynchronous Event Request Limit Exceeded"
        INVALID_FIRMWARE_SLOT = 0x06 "Invalid Firmware Slot"
        INVALID_FIRMWARE_IMAGE = 0x07 "Invalid Firmware Image"
        INVALID_INTERRUPT_VECTOR = 0x08 "Invalid Interrupt Vector"
        INVALID_LOG_PAGE = 0x09 "Invalid Log Page"
        INVALID_FORMAT = 0x0a "Invalid Format"
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0b "Firmware Activation Requires Conventional Reset"
        INVALID_QUEUE_DELETION = 0x0c "Invalid Queue Deletion"
        FEATURE_NOT_SAVEABLE = 0x0d "Feature Identifier Not Saveable"
        FEATURE_NOT_CHANGEABLE = 0x0e "Feature Not Changeable"
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f "Feature Not Namespace Specific"
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10 "Firmware Activation Requires NVM Subsystem Reset"
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11 "Firmware Activation Requires Controller Level Reset"
        FIRMWARE_MAX_TIME_VIOLATION = 0x12 "Firmware Activation Requires Maximum Time Violation"
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13 "Firmware Activation Prohibited"
        OVERLAPPING_RANGE = 0x14 "Overlapping Range"
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15 "Namespace Insufficient Capacity"
        NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x16 "Namespace Identifier Unavailable"
        NAMESPACE_ALREADY_ATTACHED = 0x18 "Namespace Already Attached"
        NAMESPACE_IS_PRIVATE = 0x19 "Namespace Is Private"
        NAMESPACE_NOT_ATTACHED = 0x1a "Namespace Not Attached"
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1b "Thin Provisioning Not Supported"
        CONTROLLER_LIST_INVALID = 0x1c "Controller List Invalid"
        DEVICE_SELF_TEST_IN_PROGRESS = 0x1d "Device Self-test In Progress"
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1e "Boot Partition Write Prohibited"
        INVALID_CONTROLLER_IDENTIFIER = 0x1f "Invalid Controller Identifier"
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20 "Invalid Secondary Controller State"
        INVALID_NUMBER_OF_CONTROLLER_RESOURCES = 0x21 "Invalid Number of Controller Resources"
        INVALID_RESOURCE_IDENTIFIER = 0x22 "Invalid Resource Identifier"
        SANITIZE_PROHIBITED_PMR_ENABLED = 0x23 "Sanitize Prohibited While Persistent Memory Region is Enabled"
        ANA_GROUP_IDENTIFIER_INVALID = 0x24 "ANA Group Identifier Invalid"
        ANA_ATTACH_FAILED = 0x25 "ANA Attach Failed"
        INSUFFICIENT_CAPACITY = 0x26 "Insufficient Capacity"
        NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x27 "Namespace Attachment Limit Exceeded"
        PROHIBITION_NOT_SUPPORTED = 0x28 "Prohibition of Command Execution Not Supported"
        IO_COMMAND_SET_NOT_SUPPORTED = 0x29 "I/O Command Set Not Supported"
        IO_COMMAND_SET_NOT_ENABLED = 0x2a "I/O Command Set Not Enabled"
        IO_COMMAND_SET_COMBINATION_REJECTED = 0x2b "I/O Command Set Combination Rejected"
        INVALID_IO_COMMAND_SET = 0x2c "Invalid I/O Command Set"
        IDENTIFIER_UNAVAILABLE = 0x2d "Identifier Unavailable"
        NAMESPACE_IS_DISPERSED = 0x2e "Namespace Is Dispersed"
        INVALID_DISCOVERY_INFORMATION = 0x2f "Invalid Discovery Information"
        ZONING_DATA_STRUCTURE_LOCKED = 0x30 "Zoning Data Structure Locked"
        ZONING_DATA_STRUCTURE_NOT_FOUND = 0x31 "Zoning Data Structure Not Found"
        INSUFFICIENT_DISCOVERY_RESOURCES = 0x32 "Insufficient Discovery Resources"
        REQUESTED_FUNCTION_DISABLED = 0x33 "Requested Function Disabled"
        ZONEGROUP_ORIGINATOR_INVALID = 0x34 "ZoneGroup Originator Invalid"
        INVALID_HOST = 0x35 "Invalid Host"
        INVALID_NVM_SUBSYSTEM = 0x36 "Invalid NVM Subsystem"
        INVALID_CONTROLLER_DATA_QUEUE = 0x37 "Invalid Controller Data Queue"
        NOT_ENOUGH_RESOURCES = 0x38 "Not Enough Resources"
        CONTROLLER_SUSPENDED = 0x39 "Controller Suspended"
        CONTROLLER_NOT_SUSPENDED = 0x3a "Controller Not Suspended"
        CONTROLLER_DATA_QUEUE_FULL = 0x3b "Controller Data Queue Full"
        CONFLICTING_ATTRIBUTES = 0x80 "Conflicting Attributes"
        INVALID_PROTECTION_INFORMATION = 0x81 "Invalid Protection Information"
        WRITE_TO_READ_ONLY_RANGE = 0x82 "Attempted Write to Read Only Range"
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83 "Command Size Limit Exceeded"
        INVALID_COMMAND_ID = 0x84 "Invalid Command ID"
        INCOMPATIBLE_NAMESPACE_OR_FORMAT = 0x85 "Incompatible Namespace or Format"
        FAST_COPY_NOT_POSSIBLE = 0x86 "Fast Copy Not Possible"
        OVERLAPPING_IO_RANGE = 0x87 "Overlapping I/O Range"
        NAMESPACE_NOT_REACHABLE = 0x88 "Namespace Not Reachable"
        INSUFFICIENT_RESOURCES = 0x89 "Insufficient Resources"
        // The Fabrics commands use codes of their own, some of which mean something else for I/O commands.
        CONNECT_INCOMPATIBLE_FORMAT = 0x80 "Connect Incompatible Format"
        CONNECT_CONTROLLER_BUSY = 0x81 "Connect Controller Busy"
        CONNECT_INVALID_PARAMETERS = 0x82 "Connect Invalid Parameters"
        CONNECT_RESTART_DISCOVERY = 0x83 "Connect Restart Discovery"
        CONNECT_INVALID_HOST = 0x84 "Connect Invalid Host"
        INVALID_QUEUE_TYPE = 0x85 "Invalid Queue Type"
        DISCOVER_RESTART = 0x90 "Discover Restart"
        AUTHENTICATION_REQUIRED = 0x91 "Authentication Required"
    }
    MEDIA {
        WRITE_FAULT = 0x80 "Write Fault"
        UNRECOVERED_READ_ERROR = 0x81 "Unrecovered Read Error"
        GUARD_CHECK_ERROR = 0x82 "End-to-end Guard Check Error"
        APPLICATION_TAG_CHECK_ERROR = 0x83 "End-to-end Application Tag Check Error"
        REFERENCE_TAG_CHECK_ERROR = 0x84 "End-to-end Reference Tag Check Error"
        COMPARE_FAILURE = 0x85 "Compare Failure"
        ACCESS_DENIED = 0x86 "Access Denied"
        DEALLOCATED_OR_UNWRITTEN = 0x87 "Deallocated or Unwritten Logical Block"
        STORAGE_TAG_CHECK_ERROR = 0x88 "End-to-End Storage Tag Check Error"
    }
    PATH {
        INTERNAL_PATH_ERROR = 0x00 "Internal Path Error"
        ASYMMETRIC_ACCESS_PERSISTENT_LOSS = 0x01 "Asymmetric Access Persistent Loss"
        ASYMMETRIC_ACCESS_INACCESSIBLE = 0x02 "Asymmetric Access Inaccessible"
        ASYMMETRIC_ACCESS_TRANSITION = 0x03 "Asymmetric Access Transition"
        CONTROLLER_PATHING_ERROR = 0x60 "Controller Pathing Error"
        HOST_PATHING_ERROR = 0x70 "Host Pathing Error"
        ABORTED_BY_HOST = 0x71 "Command Aborted By Host"
    }
}

impl fmt::Display for Status {
    /// The specification's name and the two codes: `Invalid Field in Command (0h/02h), do not retry`.
    ///
    /// A code that I/O and Fabrics commands use differently shows both names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = NAMES.iter().filter(|(s, _)| *s == self.code()).map(|(_, name)| *name);
        f.write_str(names.next().unwrap_or("unknown status"))?;
        for name in names {
            write!(f, " / {name}")?;
        }
        write!(f, " ({:X}h/{:02X}h)", self.sct(), self.sc())?;
        if self.is_dnr() {
            f.write_str(", do not retry")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Status {}

sizes!(Status = 2, StatusField = 2);

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn fields_lie_where_dw3_has_them() {
        let field = Status::INVALID_FIELD.dnr().more().with_crd(2).with_phase(true);
        // DW3 31:17 is DNR, M, CRD, SCT, SC; bit 16 is the phase tag.
        assert_eq!(field.0, 1 << 15 | 1 << 14 | 2 << 12 | 0x02 << 1 | 1);
        assert!(field.phase());
        let status = field.status();
        assert!(status.is_dnr() && status.is_more() && !status.is_success());
        assert_eq!((status.crd(), status.sct(), status.sc()), (2, 0, 2));
        assert_eq!(status.code(), Status::INVALID_FIELD);
        assert_eq!(Status::COMPARE_FAILURE.0, 0x285);
        assert_eq!(Status::ASYMMETRIC_ACCESS_INACCESSIBLE.0, 0x302);
    }

    #[test]
    fn every_field_value_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let field = StatusField(bits);
            assert_eq!(field.status().with_phase(field.phase()), field);
        }
    }

    #[test]
    fn the_display_is_the_specifications() {
        assert_eq!(Status::LBA_OUT_OF_RANGE.dnr().to_string(), "LBA Out of Range (0h/80h), do not retry");
        assert_eq!(
            Status::CONNECT_INVALID_PARAMETERS.to_string(),
            "Attempted Write to Read Only Range / Connect Invalid Parameters (1h/82h)"
        );
        assert_eq!(Status::new(7, 0x12).to_string(), "unknown status (7h/12h)");
    }

    #[test]
    fn only_the_fabrics_codes_overlap() {
        for (i, (a, name)) in NAMES.iter().enumerate() {
            let twins = NAMES.iter().skip(i + 1).filter(|(b, _)| a == b).count();
            assert!(twins == 0 || (a.sct() == sct::COMMAND_SPECIFIC && a.sc() >= 0x80), "{name}");
        }
    }
}
