//! The messages of vfio-user as they lie on the wire, and how they are answered. No I/O.
//!
//! Source: "vfio-user Protocol Specification", version 0.9.1 of the document, and the `linux/vfio.h` structures that it
//! carries. All fields are little-endian on the machines this runs on.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Command(pub u16);

#[allow(missing_docs)] // the specification's names
impl Command {
    pub const VERSION: Self = Self(1);
    pub const DMA_MAP: Self = Self(2);
    pub const DMA_UNMAP: Self = Self(3);
    pub const DEVICE_GET_INFO: Self = Self(4);
    pub const DEVICE_GET_REGION_INFO: Self = Self(5);
    pub const DEVICE_GET_IRQ_INFO: Self = Self(7);
    pub const DEVICE_SET_IRQS: Self = Self(8);
    pub const REGION_READ: Self = Self(9);
    pub const REGION_WRITE: Self = Self(10);
    pub const DMA_READ: Self = Self(11);
    pub const DMA_WRITE: Self = Self(12);
    pub const DEVICE_RESET: Self = Self(13);
}

/// The header that every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The sender's name for the message; its reply bears the same.
    pub id: u16,
    /// What it is about.
    pub command: Command,
    /// Bytes in the message, this header among them.
    pub size: u32,
    /// Type in bits 3:0 (0 command, 1 reply), No_reply in bit 4, Error in bit 5.
    pub flags: u32,
    /// In a reply with the Error flag, the errno.
    pub error: u32,
}

/// Bytes in a header.
pub const HEADER: usize = size_of::<Header>();
const TYPE: u32 = 0xf;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

impl Header {
    /// Whether it answers a message of ours.
    pub fn is_reply(&self) -> bool {
        self.flags & TYPE == REPLY
    }

    /// Whether it is a command. Types other than command and reply do not exist.
    pub fn is_command(&self) -> bool {
        self.flags & TYPE == 0
    }

    /// Whether the sender wants no reply.
    pub fn no_reply(&self) -> bool {
        self.flags & NO_REPLY != 0
    }

    /// Whether it is a reply that tells of an error.
    pub fn is_error(&self) -> bool {
        self.is_reply() && self.flags & ERROR != 0
    }

    /// Bytes after the header, if the size is possible and at most `max`.
    pub fn body(&self, max: usize) -> Option<usize> {
        let size = usize::try_from(self.size).ok()?;
        size.checked_sub(HEADER).filter(|body| *body <= max)
    }

    /// A whole message: the header of a command of ours, and its body.
    pub fn command(id: u16, command: Command, body: &[&[u8]]) -> Vec<u8> {
        encode(Header { id, command, size: 0, flags: 0, error: 0 }, body)
    }

    /// The reply to this message, with `body`.
    pub fn reply(&self, body: &[&[u8]]) -> Vec<u8> {
        encode(Header { id: self.id, command: self.command, size: 0, flags: REPLY, error: 0 }, body)
    }

    /// The reply to this message that refuses it. Clients take an errno of zero for success, so it never is.
    pub fn refusal(&self, errno: Errno) -> Vec<u8> {
        let error = u32::try_from(errno as i32).ok().filter(|e| *e != 0).unwrap_or(Errno::EINVAL as u32);
        encode(Header { id: self.id, command: self.command, size: 0, flags: REPLY | ERROR, error }, &[])
    }
}

fn encode(header: Header, body: &[&[u8]]) -> Vec<u8> {
    let size = body.iter().fold(HEADER, |n, part| n.saturating_add(part.len()));
    let mut bytes = Vec::with_capacity(size);
    let header = Header { size: u32::try_from(size).unwrap_or(u32::MAX), ..header };
    bytes.extend_from_slice(header.as_bytes());
    body.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Region numbers of a PCI device (`VFIO_PCI_*_REGION_INDEX`).
pub mod region {
    /// Base address register 0; those up to 5 follow.
    pub const BAR0: u32 = 0;
    /// Base address register 4.
    pub const BAR4: u32 = 4;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// How many there are.
    pub const COUNT: u32 = 9;
}

/// Interrupt numbers of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
pub mod irq {
    /// The interrupt pin.
    pub const INTX: u32 = 0;
    /// Message signalled interrupts, the extended kind.
    pub const MSIX: u32 = 2;
    /// Errors.
    pub const ERR: u32 = 3;
    /// How many there are; the others are plain MSI and the request to let the device go.
    pub const COUNT: u32 = 5;
}

/// VERSION's fixed part.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawVersion {
    pub(super) major: u16,
    pub(super) minor: u16,
}

/// `struct vfio_device_info` without its capabilities.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) num_regions: u32,
    pub(super) num_irqs: u32,
}

/// `struct vfio_region_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RegionInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) cap_offset: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

/// `struct vfio_region_info_cap_sparse_mmap` with one area.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SparseMmap {
    pub(super) id: u16,
    pub(super) version: u16,
    pub(super) next: u32,
    pub(super) nr_areas: u32,
    pub(super) reserved: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// `struct vfio_irq_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IrqInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) count: u32,
}

/// The fixed part of DMA_READ, DMA_WRITE and their replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DmaAccess {
    pub(super) gpa: u64,
    pub(super) count: u64,
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    #[test]
    fn f63_sizes_that_cannot_be() {
        let header = |size| Header { id: 1, command: Command::VERSION, size, flags: 0, error: 0 };
        assert_eq!(header(16).body(100), Some(0));
        assert_eq!(header(116).body(100), Some(100));
        for bad in [0, 15, 117, u32::MAX] {
            assert_eq!(header(bad).body(100), None, "{bad}");
        }
    }

    #[test]
    fn replies_bear_the_commands_name() {
        let h = Header { id: 7, command: Command::REGION_READ, size: 32, flags: 0, error: 0 };
        let bytes = h.reply(&[&[1, 2], &[3]]);
        let (back, body) = Header::read_from_prefix(&bytes).unwrap();
        assert!(back.is_reply() && !back.is_error());
        assert_eq!((back.id, back.command, back.size, body), (7, h.command, 19, &[1u8, 2, 3][..]));
        let refusal = Header::read_from_bytes(&h.refusal(Errno::ENOTSUP)).unwrap();
        assert!(refusal.is_error());
        assert_eq!(refusal.error, Errno::ENOTSUP as u32);
        let never_zero = Header::read_from_bytes(&h.refusal(Errno::from_raw(0))).unwrap();
        assert_ne!(never_zero.error, 0);
    }
}
