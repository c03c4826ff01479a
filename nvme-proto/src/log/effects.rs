//! The log pages that tell what is supported, and with what effects (Base 2.1, 5.1.12.1.1, 5.1.12.1.6 and 5.1.12.1.18).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the Supported Log Pages log page tells of one page; there are 256, by LID.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SupportedLogPage {
    /// LSUPP: the page is supported.
    pub lsupp: bool,
    /// IOS: the offset may be an index.
    pub ios: bool,
    #[bits(14)]
    __: u16,
    /// LIDSP: LID specific parameter.
    pub lidsp: u16,
}

/// Whether a command is supported, and its effects.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandEffects {
    /// CSUPP: the command is supported.
    pub csupp: bool,
    /// LBCC: it may change user data.
    pub lbcc: bool,
    /// NCC: it may change a namespace's capabilities.
    pub ncc: bool,
    /// NIC: it may change the number of namespaces, or several of them.
    pub nic: bool,
    /// CCC: it may change the controller's capabilities.
    pub ccc: bool,
    #[bits(9)]
    __: u16,
    /// CSER: relaxations of the rules that CSE sets.
    #[bits(2)]
    pub cser: u8,
    /// CSE: 0 anything may run beside it, 1 nothing to the same namespace, 2 nothing at all.
    #[bits(3)]
    pub cse: u8,
    /// USS: a UUID index may be given.
    pub uss: bool,
    /// CSP: command scope, a bit each: namespace, controller, NVM Set, Endurance Group, domain, subsystem.
    #[bits(12)]
    pub csp: u16,
}

/// The Commands Supported and Effects log page.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandsEffects {
    /// Admin commands, by opcode.
    pub acs: [CommandEffects; 256],
    /// I/O commands, by opcode.
    pub iocs: [CommandEffects; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}

/// What the Feature Identifiers Supported and Effects log page tells of one feature; there are 256, by FID.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureEffects {
    /// FSUPP: the feature is supported.
    pub fsupp: bool,
    /// UDCC: setting it may change user data.
    pub udcc: bool,
    /// NCC: it may change a namespace's capabilities.
    pub ncc: bool,
    /// NIC: it may change the number of namespaces, or several of them.
    pub nic: bool,
    /// CCC: it may change the controller's capabilities.
    pub ccc: bool,
    #[bits(14)]
    __: u16,
    /// USS: a UUID index may be given.
    pub uss: bool,
    /// FSP: feature scope, a bit each: namespace, controller, NVM Set, Endurance Group, domain, subsystem.
    #[bits(12)]
    pub fsp: u16,
}

sizes!(SupportedLogPage = 4, CommandEffects = 4, CommandsEffects = 4096, FeatureEffects = 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_has_them() {
        assert_eq!(SupportedLogPage::new().with_lsupp(true).with_lidsp(1).into_bits(), 0x1_0001);
        let write = CommandEffects::new().with_csupp(true).with_lbcc(true).with_cse(1).with_csp(1);
        assert_eq!(write.into_bits(), 0x0011_0003);
        assert_eq!(CommandEffects::new().with_ccc(true).with_uss(true).with_cser(1).into_bits(), 0x8_4010);
        assert_eq!(FeatureEffects::new().with_fsupp(true).with_ccc(true).with_fsp(2).into_bits(), 0x20_0011);
        offsets!(CommandsEffects: acs = 0, iocs = 1024, reserved2048 = 2048);
    }
}
