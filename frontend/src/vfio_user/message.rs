//! The messages of vfio-user: what a client asks, parsed; what it is answered, encoded. No I/O.
//!
//! Source: "vfio-user Protocol Specification", version 0.9.1 of the document, and the `linux/vfio.h` structures that it
//! carries. All fields are little-endian on the machines this runs on.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::version::Capabilities;

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

/// A message of a client, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first message: versions and capabilities.
    Version {
        /// Major version; another one is another protocol.
        major: u16,
        /// Minor version.
        minor: u16,
        /// What the client can do.
        capabilities: Capabilities,
    },
    /// Guest memory appears.
    DmaMap(DmaMap),
    /// Guest memory goes.
    DmaUnmap(DmaUnmap),
    /// What the device has.
    GetInfo,
    /// What a region has.
    GetRegionInfo {
        /// Bytes that the client has room for.
        argsz: u32,
        /// The region.
        index: u32,
    },
    /// What an interrupt has.
    GetIrqInfo {
        /// The interrupt.
        index: u32,
    },
    /// Interrupts are set up, masked, or triggered.
    SetIrqs(SetIrqs<'a>),
    /// Reads `count` bytes of a region.
    RegionRead(Access),
    /// Writes bytes of a region.
    RegionWrite(Access, &'a [u8]),
    /// The device is reset.
    Reset,
}

/// DMA_MAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// The device may read it.
    pub readable: bool,
    /// The device may write it.
    pub writable: bool,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Guest address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
}

/// DMA_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    /// One region, as it was mapped.
    One {
        /// Guest address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// All of them.
    All,
}

/// What is read or written of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Access {
    /// Bytes from the region's start.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// DEVICE_SET_IRQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs<'a> {
    /// Which kind of interrupt.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Vectors.
    pub count: u32,
    /// What to do.
    pub action: Action,
    /// With what.
    pub data: IrqData<'a>,
}

/// What SET_IRQS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No interrupt is sent until it is unmasked.
    Mask,
    /// Interrupts are sent; one that is pending is sent now.
    Unmask,
    /// With descriptors: these are signalled from now on. Without: signal now.
    Trigger,
}

/// What SET_IRQS carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData<'a> {
    /// Nothing: all vectors of the range are meant; with [`Action::Trigger`] and no vectors, all are taken away.
    None,
    /// One byte per vector, not zero where it is meant.
    Bool(&'a [u8]),
    /// Event descriptors come along, one for each vector or none at all.
    Eventfd,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawDmaMap {
    argsz: u32,
    flags: u32,
    offset: u64,
    gpa: u64,
    size: u64,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawDmaUnmap {
    argsz: u32,
    flags: u32,
    gpa: u64,
    size: u64,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSetIrqs {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
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

fn split<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::EINVAL)
}

/// Parses the body of a command.
///
/// # Errors
/// The errno to answer: EINVAL for a malformed message, ENOTSUP for one that this device does not do.
pub fn parse<'a>(command: Command, body: &'a [u8]) -> Result<Request<'a>, Errno> {
    match command {
        Command::VERSION => {
            let (raw, json) = split::<RawVersion>(body)?;
            let capabilities = Capabilities::parse(json).ok_or(Errno::EINVAL)?;
            Ok(Request::Version { major: raw.major, minor: raw.minor, capabilities })
        }
        Command::DMA_MAP => dma_map(body),
        Command::DMA_UNMAP => dma_unmap(body),
        Command::DEVICE_GET_INFO => {
            let (argsz, _) = split::<u32>(body)?;
            if (argsz as usize) < size_of::<DeviceInfo>() {
                return Err(Errno::EINVAL);
            }
            Ok(Request::GetInfo)
        }
        Command::DEVICE_GET_REGION_INFO => {
            let (raw, _) = split::<RegionInfo>(body)?;
            if (raw.argsz as usize) < size_of::<RegionInfo>() || raw.index >= region::COUNT {
                return Err(Errno::EINVAL);
            }
            Ok(Request::GetRegionInfo { argsz: raw.argsz, index: raw.index })
        }
        Command::DEVICE_GET_IRQ_INFO => {
            let (raw, _) = split::<IrqInfo>(body)?;
            if (raw.argsz as usize) < size_of::<IrqInfo>() || raw.index >= irq::COUNT {
                return Err(Errno::EINVAL);
            }
            Ok(Request::GetIrqInfo { index: raw.index })
        }
        Command::DEVICE_SET_IRQS => set_irqs(body),
        Command::REGION_READ => {
            let (access, _) = split::<Access>(body)?;
            Ok(Request::RegionRead(access))
        }
        Command::REGION_WRITE => {
            let (access, data) = split::<Access>(body)?;
            let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
            if data.len() != count {
                return Err(Errno::EINVAL);
            }
            Ok(Request::RegionWrite(access, data))
        }
        Command::DEVICE_RESET => Ok(Request::Reset),
        _ => Err(Errno::ENOTSUP),
    }
}

fn dma_map(body: &[u8]) -> Result<Request<'_>, Errno> {
    let (raw, _) = split::<RawDmaMap>(body)?;
    if (raw.argsz as usize) < size_of::<RawDmaMap>() || raw.flags & !3 != 0 || raw.flags == 0 {
        return Err(Errno::EINVAL);
    }
    let wraps = |at: u64| at.checked_add(raw.size).is_none();
    if raw.size == 0 || wraps(raw.gpa) || wraps(raw.offset) {
        return Err(Errno::EINVAL);
    }
    Ok(Request::DmaMap(DmaMap {
        readable: raw.flags & 1 != 0,
        writable: raw.flags & 2 != 0,
        offset: raw.offset,
        gpa: raw.gpa,
        size: raw.size,
    }))
}

fn dma_unmap(body: &[u8]) -> Result<Request<'_>, Errno> {
    const GET_DIRTY_BITMAP: u32 = 1;
    const ALL: u32 = 2;
    let (raw, _) = split::<RawDmaUnmap>(body)?;
    if (raw.argsz as usize) < size_of::<RawDmaUnmap>() {
        return Err(Errno::EINVAL);
    }
    match raw.flags {
        0 if raw.size != 0 && raw.gpa.checked_add(raw.size).is_some() => {
            Ok(Request::DmaUnmap(DmaUnmap::One { gpa: raw.gpa, size: raw.size }))
        }
        ALL if raw.gpa == 0 && raw.size == 0 => Ok(Request::DmaUnmap(DmaUnmap::All)),
        GET_DIRTY_BITMAP => Err(Errno::ENOTSUP),
        _ => Err(Errno::EINVAL),
    }
}

fn set_irqs(body: &[u8]) -> Result<Request<'_>, Errno> {
    let (raw, rest) = split::<RawSetIrqs>(body)?;
    if (raw.argsz as usize) < size_of::<RawSetIrqs>() || raw.index >= irq::COUNT {
        return Err(Errno::EINVAL);
    }
    raw.start.checked_add(raw.count).ok_or(Errno::EINVAL)?;
    let action = match raw.flags & !7 {
        8 => Action::Mask,
        16 => Action::Unmask,
        32 => Action::Trigger,
        _ => return Err(Errno::EINVAL),
    };
    let data = match raw.flags & 7 {
        1 => IrqData::None,
        2 => {
            let count = usize::try_from(raw.count).map_err(|_| Errno::EINVAL)?;
            IrqData::Bool(rest.get(..count).ok_or(Errno::EINVAL)?)
        }
        4 => IrqData::Eventfd,
        _ => return Err(Errno::EINVAL),
    };
    Ok(Request::SetIrqs(SetIrqs { index: raw.index, start: raw.start, count: raw.count, action, data }))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn sizes_are_the_specifications() {
        assert_eq!(HEADER, 16);
        assert_eq!(size_of::<RawDmaMap>(), 32);
        assert_eq!(size_of::<RawDmaUnmap>(), 24);
        assert_eq!(size_of::<RegionInfo>() + size_of::<SparseMmap>(), 64);
        assert_eq!((size_of::<DeviceInfo>(), size_of::<IrqInfo>(), size_of::<RawSetIrqs>()), (16, 16, 20));
    }

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

    #[test]
    fn f66_maps_that_cannot_be() {
        let map = |flags, offset: u64, gpa: u64, size: u64| {
            let mut body = words(&[32, flags]);
            [offset, gpa, size].iter().for_each(|w| body.extend(w.to_le_bytes()));
            parse(Command::DMA_MAP, &body).map(|_| ())
        };
        assert_eq!(map(3, 0, 0x1000, 0x1000), Ok(()));
        assert_eq!(map(1, 100, 0x1001, 3), Ok(()));
        assert_eq!(map(3, 0, 0, 0), Err(Errno::EINVAL));
        assert_eq!(map(3, 0, u64::MAX, 2), Err(Errno::EINVAL));
        assert_eq!(map(3, u64::MAX, 0, 2), Err(Errno::EINVAL));
        assert_eq!(map(0, 0, 0, 4096), Err(Errno::EINVAL));
        assert_eq!(map(7, 0, 0, 4096), Err(Errno::EINVAL));
    }

    #[test]
    fn f67_unmaps() {
        let unmap = |argsz, flags, gpa: u64, size: u64| {
            let mut body = words(&[argsz, flags]);
            [gpa, size].iter().for_each(|w| body.extend(w.to_le_bytes()));
            parse(Command::DMA_UNMAP, &body).map(|r| matches!(r, Request::DmaUnmap(DmaUnmap::All)))
        };
        assert_eq!(unmap(24, 0, 0, 4096), Ok(false));
        assert_eq!(unmap(u32::MAX, 2, 0, 0), Ok(true), "argsz is no size to allocate");
        assert_eq!(unmap(24, 2, 0, 1), Err(Errno::EINVAL));
        assert_eq!(unmap(24, 1, 0, 4096), Err(Errno::ENOTSUP));
        assert_eq!(unmap(23, 0, 0, 4096), Err(Errno::EINVAL));
        assert_eq!(unmap(24, 0, u64::MAX, 2), Err(Errno::EINVAL));
    }

    #[test]
    fn f68_region_accesses() {
        let mut body = Access { offset: 8, region: 0, count: 4 }.as_bytes().to_vec();
        assert!(parse(Command::REGION_READ, &body).is_ok());
        assert_eq!(parse(Command::REGION_WRITE, &body), Err(Errno::EINVAL));
        body.extend([1, 2, 3, 4]);
        let want = Request::RegionWrite(Access { offset: 8, region: 0, count: 4 }, &[1, 2, 3, 4]);
        assert_eq!(parse(Command::REGION_WRITE, &body), Ok(want));
        body.push(0);
        assert_eq!(parse(Command::REGION_WRITE, &body), Err(Errno::EINVAL));
    }

    #[test]
    fn f69_interrupt_sets() {
        let set = |w: &[u32]| parse(Command::DEVICE_SET_IRQS, &words(w)).map(|_| ());
        assert_eq!(set(&[20, 4 | 32, 2, 0, 1]), Ok(()));
        assert_eq!(set(&[20, 1 | 16, 0, 0, 1]), Ok(()));
        assert_eq!(set(&[24, 2 | 32, 2, 0, 4, 0]), Ok(()));
        assert_eq!(set(&[20, 2 | 32, 2, 0, 4]), Err(Errno::EINVAL), "bytes missing");
        assert_eq!(set(&[20, 4 | 32, 5, 0, 1]), Err(Errno::EINVAL), "no such interrupt");
        assert_eq!(set(&[20, 4 | 32, 2, u32::MAX, 1]), Err(Errno::EINVAL), "wraps");
        assert_eq!(set(&[20, 5 | 32, 2, 0, 1]), Err(Errno::EINVAL), "two kinds of data");
        assert_eq!(set(&[20, 4 | 24, 2, 0, 1]), Err(Errno::EINVAL), "two actions");
    }

    #[test]
    fn every_prefix_of_every_message_is_an_answer() {
        let body: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(7)).collect();
        for command in 0..20 {
            for n in 0..body.len() {
                let _ = parse(Command(command), &body[..n]);
            }
        }
        for refused in [6, 11, 12, 14, 15, 16, 17, 18, 0, 0xffff] {
            assert_eq!(parse(Command(refused), &body), Err(Errno::ENOTSUP), "{refused}");
        }
    }
}
