//! Fabrics commands and the names of the discovery log (Base 2.1, 6 and 5.1.12.3.1).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::command::{Sqe, SqeFlags};
use crate::opcode::{AdminOpcode, FabricsType};

/// CNTLID in Connect: the controller is to be made (dynamic model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// CNTLID in Connect: any controller that is there (static model).
pub const CNTLID_ANY_STATIC: u16 = 0xfffe;
/// The largest CNTLID that a controller may have.
pub const CNTLID_MAX: u16 = 0xffef;

/// CATTR of Connect.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cattr {
    /// Priority class.
    #[bits(2)]
    pub priority: u8,
    /// SQ flow control is not used.
    pub disable_sqfc: bool,
    /// Individual I/O queue deletion is supported.
    pub queue_deletion: bool,
    #[bits(4)]
    __: u8,
}

/// A view of a Connect command's SQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// RECFMT.
    pub recfmt: u16,
    /// QID.
    pub qid: u16,
    /// SQSIZE: entries, zero-based.
    pub sqsize_z: u16,
    /// CATTR.
    pub cattr: Cattr,
    /// KATO in milliseconds; 0 for none.
    pub kato: u32,
}

/// An SQE of a Fabrics command.
fn fabrics(fctype: FabricsType, cid: u16) -> Sqe {
    let flags = SqeFlags::new().with_psdt(1);
    Sqe { opc: AdminOpcode::Fabrics.0, flags, cid, nsid: u32::from(fctype.0), ..Sqe::default() }
}

fn halves(dword: u32) -> (u16, u16) {
    let b = dword.to_le_bytes();
    (u16::from_le_bytes([b[0], b[1]]), u16::from_le_bytes([b[2], b[3]]))
}

impl Connect {
    /// Reads the fields from a command.
    pub fn of(sqe: &Sqe) -> Self {
        let ((recfmt, qid), (sqsize_z, high)) = (halves(sqe.cdw10), halves(sqe.cdw11));
        Connect { recfmt, qid, sqsize_z, cattr: Cattr::from_bits(high.to_le_bytes()[0]), kato: sqe.cdw12 }
    }

    /// The command; its data pointer is the caller's to set.
    pub fn to_sqe(self, cid: u16) -> Sqe {
        Sqe {
            cdw10: u32::from(self.recfmt) | u32::from(self.qid) << 16,
            cdw11: u32::from(self.sqsize_z) | u32::from(self.cattr.into_bits()) << 16,
            cdw12: self.kato,
            ..fabrics(FabricsType::Connect, cid)
        }
    }
}

/// The data of a Connect command.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConnectData {
    /// HOSTID.
    pub hostid: [u8; 16],
    /// CNTLID.
    pub cntlid: u16,
    /// Reserved.
    pub reserved18: [u8; 238],
    /// SUBNQN, ended by a NUL.
    pub subnqn: [u8; 256],
    /// HOSTNQN, ended by a NUL.
    pub hostnqn: [u8; 256],
    /// Reserved.
    pub reserved768: [u8; 256],
}

/// DW0 of a Connect response that failed with Connect Invalid Parameters: which parameter (IPO, IATTR).
pub const fn invalid_parameter(in_data: bool, offset: u16) -> u32 {
    offset as u32 | (in_data as u32) << 16
}

/// Which property, and how wide it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property {
    /// OFST: byte offset.
    pub offset: u32,
    /// ATTRIB 2:0: 0 for 4 bytes, 1 for 8; others are reserved.
    pub size: u8,
    /// The value to set.
    pub value: u64,
}

impl Property {
    /// Reads the fields from a Property Get or Set command.
    pub fn of(sqe: &Sqe) -> Self {
        let value = u64::from(sqe.cdw13) << 32 | u64::from(sqe.cdw12);
        Property { offset: sqe.cdw11, size: sqe.cdw10.to_le_bytes()[0] & 7, value }
    }

    /// A Property Get command.
    pub fn get(self, cid: u16) -> Sqe {
        Sqe { cdw10: u32::from(self.size), cdw11: self.offset, ..fabrics(FabricsType::PropertyGet, cid) }
    }

    /// A Property Set command.
    pub fn set(self, cid: u16) -> Sqe {
        let b = self.value.to_le_bytes();
        Sqe {
            cdw10: u32::from(self.size),
            cdw11: self.offset,
            cdw12: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            cdw13: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            ..fabrics(FabricsType::PropertySet, cid)
        }
    }
}

/// A Disconnect command, record format 0.
pub fn disconnect(cid: u16) -> Sqe {
    fabrics(FabricsType::Disconnect, cid)
}

/// TRTYPE.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum TransportType {
    /// RDMA.
    Rdma = 1,
    /// Fibre Channel.
    Fc = 2,
    /// TCP.
    Tcp = 3,
    /// Within one host.
    IntraHost = 254,
}

/// ADRFAM.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum AddressFamily {
    /// IPv4.
    Ipv4 = 1,
    /// IPv6.
    Ipv6 = 2,
    /// InfiniBand.
    InfiniBand = 3,
    /// Fibre Channel.
    Fc = 4,
    /// Within one host.
    IntraHost = 254,
}

/// SUBTYPE.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum SubsystemType {
    /// A referral to another discovery service.
    Referral = 1,
    /// A subsystem with namespaces.
    Nvm = 2,
    /// This discovery subsystem.
    CurrentDiscovery = 3,
}

/// TREQ: what the transport asks for.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Treq {
    /// TSC: secure channel: 0 not specified, 1 required, 2 not required.
    #[bits(2)]
    pub secure_channel: u8,
    /// The controller can do without SQ flow control.
    pub sqfc_disable: bool,
    #[bits(5)]
    __: u8,
}

sizes!(ConnectData = 1024);

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn connect_lies_as_the_specification_has_it() {
        let connect = Connect {
            recfmt: 0,
            qid: 2,
            sqsize_z: 127,
            cattr: Cattr::new().with_disable_sqfc(true),
            kato: 5000,
        };
        let sqe = connect.to_sqe(7);
        let b = sqe.as_bytes();
        assert_eq!((b[0], b[1], b[4]), (0x7f, 0x40, 0x01));
        assert_eq!(b[40..52], [0, 0, 2, 0, 127, 0, 4, 0, 0x88, 0x13, 0, 0]);
        assert_eq!(Connect::of(&sqe), connect);
        assert_eq!(offset_of!(ConnectData, subnqn), 256);
        assert_eq!(offset_of!(ConnectData, hostnqn), 512);
        assert_eq!(invalid_parameter(true, 16), 0x1_0010);
    }

    #[test]
    fn properties() {
        let p = Property { offset: 0x14, size: 0, value: 0x46_0001 };
        let sqe = p.set(1);
        assert_eq!(sqe.as_bytes()[40..52], [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0]);
        assert_eq!(Property::of(&sqe), p);
        assert_eq!(Property { offset: 0, size: 1, value: 0 }.get(2).fctype(), FabricsType::PropertyGet);
    }
}
