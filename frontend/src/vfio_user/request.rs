//! What a client asks: the bodies of its commands, parsed. No I/O.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::message::{Command, DeviceInfo, IrqInfo, RawVersion, RegionInfo, irq, region};
use super::version::Capabilities;

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
    use super::super::message::{HEADER, SparseMmap};
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
