//! The discovery log page (Base 2.1, 5.1.12.3.1).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fabrics::{AddressFamily, SubsystemType, TransportType, Treq};

/// The header of the discovery log page; NUMREC entries follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// GENCTR: generation counter, which moves whenever the page changes.
    pub genctr: u64,
    /// NUMREC: entries.
    pub numrec: u64,
    /// RECFMT: record format, 0.
    pub recfmt: u16,
    /// Reserved.
    pub reserved18: [u8; 1006],
}

/// EFLAGS: Entry Flags.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Eflags {
    /// DUPRETINFO: every address of this subsystem returns the same information.
    pub dupretinfo: bool,
    /// EPCSD: explicit persistent connections to the discovery controller.
    pub epcsd: bool,
    /// NCC: no connectivity to a centralized discovery controller.
    pub ncc: bool,
    #[bits(13)]
    __: u16,
}

/// An entry of the discovery log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// TRTYPE: transport.
    pub trtype: TransportType,
    /// ADRFAM: address family.
    pub adrfam: AddressFamily,
    /// SUBTYPE: kind of subsystem.
    pub subtype: SubsystemType,
    /// TREQ: transport requirements.
    pub treq: Treq,
    /// PORTID: port of the subsystem.
    pub portid: u16,
    /// CNTLID: the controller to connect to, or how one is made.
    pub cntlid: u16,
    /// ASQSZ: entries of the Admin SQ at most.
    pub asqsz: u16,
    /// EFLAGS: flags.
    pub eflags: Eflags,
    /// Reserved.
    pub reserved12: [u8; 20],
    /// TRSVCID: transport service, ASCII, padded with spaces: for TCP the port number.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub reserved64: [u8; 192],
    /// SUBNQN: name of the subsystem, ended by a NUL.
    pub subnqn: [u8; 256],
    /// TRADDR: transport address, ASCII, padded with spaces.
    pub traddr: [u8; 256],
    /// TSAS: transport specific; for TCP byte 0 is a [`SecurityType`].
    pub tsas: [u8; 256],
}

/// SECTYPE in TSAS of TCP (NVMe/TCP Transport 1.1, 3.1).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum SecurityType {
    /// No security.
    None = 0,
    /// TLS 1.2.
    Tls12 = 1,
    /// TLS 1.3.
    Tls13 = 2,
}

sizes!(DiscoveryHeader = 1024, DiscoveryEntry = 1024);

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn entries_lie_as_the_specification_has_them() {
        offsets!(DiscoveryHeader: genctr = 0, numrec = 8, recfmt = 16);
        offsets!(DiscoveryEntry:
            trtype = 0, adrfam = 1, subtype = 2, treq = 3, portid = 4, cntlid = 6, asqsz = 8, eflags = 10, trsvcid = 32,
            subnqn = 256, traddr = 512, tsas = 768,
        );
        let mut entry = DiscoveryEntry::new_zeroed();
        entry.trtype = TransportType::Tcp;
        entry.adrfam = AddressFamily::Ipv6;
        entry.subtype = SubsystemType::CurrentDiscovery;
        entry.eflags = Eflags::new().with_dupretinfo(true).with_epcsd(true);
        assert_eq!(entry.as_bytes()[..12], [3, 2, 3, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    }
}
