//! Identify: the command's dwords and its data structures (Base 2.1, 5.1.13; NVM Command Set 1.1, 4.1.5).

mod controller;
mod controller_bits;
mod namespace;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use controller::{ControllerType, IdentifyController, NvmIdentifyController, PowerStateDescriptor};
pub use controller_bits::{
    Anacap, Cmic, Ctratt, EntrySizes, Fcatt, Fna, Frmw, Fuses, Lpa, Oacs, Oaes, Ofcs, Oncs, Sgls, Vwc,
};
pub use namespace::{
    Dlfeat, Dpc, Dps, Flbas, Fpi, IdentifyNamespace, IndependentNamespace, IndependentNsfeat, LbaFormat, Mc,
    Nmic, Nsattr, Nsfeat, Nstat, NvmIdentifyNamespace, Rescap,
};

/// Bytes that every Identify command moves.
pub const IDENTIFY_LEN: usize = 4096;

/// NSID that stands for all namespaces.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// The largest NSID that a namespace may have.
pub const NSID_MAX: u32 = 0xffff_fffe;

/// CNS: which data structure Identify asks for.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum Cns {
    /// Identify Namespace of the NVM command set: [`IdentifyNamespace`].
    Namespace = 0x00,
    /// Identify Controller: [`IdentifyController`].
    Controller = 0x01,
    /// Active Namespace ID list: [`NamespaceList`].
    ActiveNamespaces = 0x02,
    /// Namespace Identification Descriptor list: [`NamespaceIdDescriptor`]s.
    NamespaceIdDescriptors = 0x03,
    /// NVM Set list.
    NvmSets = 0x04,
    /// I/O command set specific Identify Namespace: [`NvmIdentifyNamespace`] for the NVM command set.
    CommandSetNamespace = 0x05,
    /// I/O command set specific Identify Controller: [`NvmIdentifyController`] for the NVM command set.
    CommandSetController = 0x06,
    /// Active Namespace ID list of one I/O command set.
    CommandSetActiveNamespaces = 0x07,
    /// I/O command set independent Identify Namespace: [`IndependentNamespace`].
    IndependentNamespace = 0x08,
    /// Identify Namespace for a user data format.
    NamespaceUserDataFormat = 0x09,
    /// I/O command set specific Identify Namespace for a user data format.
    CommandSetNamespaceUserDataFormat = 0x0a,
    /// Allocated Namespace ID list.
    AllocatedNamespaces = 0x10,
    /// Identify Namespace of an allocated namespace.
    AllocatedNamespace = 0x11,
    /// Controllers that a namespace is attached to: [`ControllerList`].
    AttachedControllers = 0x12,
    /// Controllers of the subsystem: [`ControllerList`].
    Controllers = 0x13,
    /// Primary Controller Capabilities.
    PrimaryControllerCapabilities = 0x14,
    /// Secondary Controller list.
    SecondaryControllers = 0x15,
    /// Namespace Granularity list.
    NamespaceGranularity = 0x16,
    /// UUID list.
    Uuids = 0x17,
    /// Domain list.
    Domains = 0x18,
    /// Endurance Group list.
    EnduranceGroups = 0x19,
    /// Allocated Namespace ID list of one I/O command set.
    CommandSetAllocatedNamespaces = 0x1a,
    /// I/O command set specific Identify Namespace of an allocated namespace.
    CommandSetAllocatedNamespace = 0x1b,
    /// I/O Command Set data structure: [`CommandSetVector`]s.
    CommandSets = 0x1c,
}

bits!(Cns: u8, CommandSet: u8);

/// CSI: an I/O command set.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum CommandSet {
    /// NVM.
    Nvm = 0,
    /// Key Value.
    KeyValue = 1,
    /// Zoned Namespace.
    Zoned = 2,
    /// Subsystem Local Memory.
    SubsystemLocalMemory = 3,
    /// Computational Programs.
    ComputationalPrograms = 4,
}

/// CDW10 of Identify.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyCdw10 {
    /// CNS.
    #[bits(8)]
    pub cns: Cns,
    __: u8,
    /// CNTID: a controller, for the lists of controllers.
    pub cntid: u16,
}

/// CDW11 of Identify.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyCdw11 {
    /// CNSSID: CNS specific identifier.
    pub cnssid: u16,
    __: u8,
    /// CSI.
    #[bits(8)]
    pub csi: CommandSet,
}

/// NIDT: what a namespace identification descriptor holds.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum NamespaceIdType {
    /// IEEE Extended Unique Identifier, 8 bytes.
    Eui64 = 1,
    /// Namespace Globally Unique Identifier, 16 bytes.
    Nguid = 2,
    /// Namespace UUID, 16 bytes.
    Uuid = 3,
    /// Command Set Identifier, 1 byte.
    Csi = 4,
}

/// The header of a namespace identification descriptor; NIDL bytes of identifier follow. A NIDL of 0 ends the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceIdDescriptor {
    /// NIDT.
    pub nidt: NamespaceIdType,
    /// NIDL: bytes of the identifier.
    pub nidl: u8,
    /// Reserved.
    pub reserved2: [u8; 2],
}

/// A list of namespace identifiers in increasing order, the rest zero.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceList {
    /// The identifiers.
    pub nsids: [u32; 1024],
}

/// A list of controller identifiers in increasing order, the rest zero.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControllerList {
    /// NUMID: how many of the identifiers count.
    pub numid: u16,
    /// The identifiers.
    pub cntlids: [u16; 2047],
}

/// One combination of I/O command sets that a controller supports together (CNS 1Ch); 512 make the structure.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandSetVector {
    /// NVM.
    pub nvm: bool,
    /// Key Value.
    pub key_value: bool,
    /// Zoned Namespace.
    pub zoned: bool,
    /// Subsystem Local Memory.
    pub subsystem_local_memory: bool,
    /// Computational Programs.
    pub computational_programs: bool,
    #[bits(59)]
    __: u64,
}

/// An ASCII field: left justified, padded with spaces, cut to `N` bytes; what is not printable ASCII becomes `?`.
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, c) in field.iter_mut().zip(text.chars()) {
        let b = u8::try_from(c).unwrap_or(b'?');
        *to = if matches!(b, b' '..=b'~') { b } else { b'?' };
    }
    field
}

sizes!(
    IdentifyCdw10 = 4,
    IdentifyCdw11 = 4,
    NamespaceIdDescriptor = 4,
    NamespaceList = IDENTIFY_LEN,
    ControllerList = IDENTIFY_LEN,
    CommandSetVector = 8,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords() {
        let cdw10 = IdentifyCdw10::new().with_cns(Cns::CommandSets).with_cntid(0x1234);
        assert_eq!(cdw10.into_bits(), 0x1234_001c);
        assert_eq!(IdentifyCdw10::from_bits(0xee).cns(), Cns(0xee));
        let cdw11 = IdentifyCdw11::new().with_csi(CommandSet::Zoned).with_cnssid(7);
        assert_eq!(cdw11.into_bits(), 0x0200_0007);
    }

    #[test]
    fn a_descriptor_as_linux_reads_it() {
        let uuid = NamespaceIdDescriptor { nidt: NamespaceIdType::Uuid, nidl: 16, reserved2: [0; 2] };
        assert_eq!(uuid.as_bytes(), [3, 16, 0, 0]);
    }

    #[test]
    fn text_is_padded_cut_and_clean() {
        assert_eq!(&ascii::<6>("ab"), b"ab    ");
        assert_eq!(&ascii::<3>("abcd"), b"abc");
        assert_eq!(&ascii::<6>("aé\n\u{7f}\u{2603}z"), b"a????z");
    }
}
