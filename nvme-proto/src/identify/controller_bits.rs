//! The bit fields of Identify Controller (Base 2.1, 5.1.13.2.1).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CMIC: Controller Multi-Path I/O and Namespace Sharing Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmic {
    /// MPORTS: the subsystem may have several ports.
    pub mports: bool,
    /// MCTRS: the subsystem may have several controllers.
    pub mctrs: bool,
    /// FT: the controller is an SR-IOV virtual function's.
    pub ft: bool,
    /// ANARS: asymmetric namespace access reporting.
    pub anars: bool,
    #[bits(4)]
    __: u8,
}

/// OAES: Optional Asynchronous Events Supported.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oaes {
    __: u8,
    /// NSAN: Attached Namespace Attribute Notices.
    pub nsan: bool,
    /// FAN: Firmware Activation Notices.
    pub fan: bool,
    #[bits(1)]
    __: bool,
    /// ANACN: Asymmetric Namespace Access Change Notices.
    pub anacn: bool,
    /// PLEAN: Predictable Latency Event Aggregate Log Change Notices.
    pub plean: bool,
    /// LSIAN: LBA Status Information Alert Notices.
    pub lsian: bool,
    /// EGEAN: Endurance Group Event Aggregate Log Page Change Notices.
    pub egean: bool,
    /// NNSS: Normal NVM Subsystem Shutdown.
    pub nnss: bool,
    /// TTHR: Temperature Threshold Hysteresis Recovery.
    pub tthr: bool,
    /// RGCNS: Reachability Groups Change Notices.
    pub rgcns: bool,
    #[bits(1)]
    __: bool,
    /// ANSAN: Allocated Namespace Attribute Notices.
    pub ansan: bool,
    #[bits(7)]
    __: u8,
    /// ZDCN: Zone Descriptor Change Notices.
    pub zdcn: bool,
    #[bits(3)]
    __: u8,
    /// DLPCN: Discovery Log Page Change Notification.
    pub dlpcn: bool,
}

/// CTRATT: Controller Attributes.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ctratt {
    /// HIDS: a host identifier may be 128 bits.
    pub hids: bool,
    /// NOPSPM: Non-Operational Power State Permissive Mode.
    pub nopspm: bool,
    /// NSETS: NVM Sets.
    pub nsets: bool,
    /// RRLVLS: Read Recovery Levels.
    pub rrlvls: bool,
    /// EGS: Endurance Groups.
    pub egs: bool,
    /// PLM: Predictable Latency Mode.
    pub plm: bool,
    /// TBKAS: Traffic Based Keep Alive.
    pub tbkas: bool,
    /// NG: Namespace Granularity.
    pub ng: bool,
    /// SQA: SQ Associations.
    pub sqa: bool,
    /// ULIST: UUID List.
    pub ulist: bool,
    /// MDS: the subsystem has several domains.
    pub mds: bool,
    /// FCM: Fixed Capacity Management.
    pub fcm: bool,
    /// VCM: Variable Capacity Management.
    pub vcm: bool,
    /// DEG: Delete Endurance Group.
    pub deg: bool,
    /// DNVMS: Delete NVM Set.
    pub dnvms: bool,
    /// ELBAS: Extended LBA Formats.
    pub elbas: bool,
    /// MEM: MDTS and the size limits exclude metadata.
    pub mem: bool,
    /// HMBR: HMB Restrict Non-Operational Power State Access.
    pub hmbr: bool,
    /// RHII: Reservations and Host Identifier Interaction.
    pub rhii: bool,
    /// FDPS: Flexible Data Placement.
    pub fdps: bool,
    #[bits(12)]
    __: u16,
}

/// OACS: Optional Admin Command Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oacs {
    /// SSRS: Security Send and Receive.
    pub ssrs: bool,
    /// FNVMS: Format NVM.
    pub fnvms: bool,
    /// FWDS: Firmware Commit and Image Download.
    pub fwds: bool,
    /// NMS: Namespace Management and Attachment.
    pub nms: bool,
    /// DSTS: Device Self-test.
    pub dsts: bool,
    /// DIRS: Directives.
    pub dirs: bool,
    /// NSRS: NVMe-MI Send and Receive.
    pub nsrs: bool,
    /// VMS: Virtualization Management.
    pub vms: bool,
    /// DBCS: Doorbell Buffer Config.
    pub dbcs: bool,
    /// GLSS: Get LBA Status.
    pub glss: bool,
    /// CFLS: Command and Feature Lockdown.
    pub cfls: bool,
    /// HMLMS: Host Managed Live Migration.
    pub hmlms: bool,
    #[bits(4)]
    __: u8,
}

/// FRMW: Firmware Updates.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frmw {
    /// FFSRO: slot 1 is read only.
    pub ffsro: bool,
    /// NOFS: firmware slots, 1 to 7.
    #[bits(3)]
    pub nofs: u8,
    /// FAWR: firmware activates without a reset.
    pub fawr: bool,
    /// SMUD: overlapping updates are detected.
    pub smud: bool,
    #[bits(2)]
    __: u8,
}

/// LPA: Log Page Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lpa {
    /// SMARTS: the SMART log page is there per namespace.
    pub smarts: bool,
    /// CSES: the Commands Supported and Effects log page is there.
    pub cses: bool,
    /// LPEDS: extended data, so NUMDU and the offset of Get Log Page.
    pub lpeds: bool,
    /// TS: telemetry log pages.
    pub ts: bool,
    /// PES: the Persistent Event log page.
    pub pes: bool,
    /// MLPS: the log pages of supported log pages, commands and features are there.
    pub mlps: bool,
    /// DA4S: Telemetry data area 4.
    pub da4s: bool,
    #[bits(1)]
    __: bool,
}

/// ANACAP: Asymmetric Namespace Access Capabilities.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Anacap {
    /// The Optimized state is reported.
    pub optimized: bool,
    /// The Non-Optimized state is reported.
    pub non_optimized: bool,
    /// The Inaccessible state is reported.
    pub inaccessible: bool,
    /// The Persistent Loss state is reported.
    pub persistent_loss: bool,
    /// The Change state is reported.
    pub change: bool,
    #[bits(1)]
    __: bool,
    /// ANAGRPID does not change while the namespace is attached.
    pub group_fixed: bool,
    /// Namespace Management takes a non-zero ANAGRPID.
    pub group_settable: bool,
}

/// SQES and CQES: entry sizes as powers of two.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntrySizes {
    /// The size required, and the smallest.
    #[bits(4)]
    pub min: u8,
    /// The largest size.
    #[bits(4)]
    pub max: u8,
}

/// ONCS: Optional NVM Command Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oncs {
    /// NVMCMPS: Compare.
    pub nvmcmps: bool,
    /// NVMWUSV: Write Uncorrectable.
    pub nvmwusv: bool,
    /// NVMDSMSV: Dataset Management.
    pub nvmdsmsv: bool,
    /// NVMWZSV: Write Zeroes.
    pub nvmwzsv: bool,
    /// SSFS: Save in Set Features and Select in Get Features.
    pub ssfs: bool,
    /// RESERVS: reservations.
    pub reservs: bool,
    /// TSS: the Timestamp feature.
    pub tss: bool,
    /// NVMVFYS: Verify.
    pub nvmvfys: bool,
    /// NVMCPYS: Copy.
    pub nvmcpys: bool,
    /// NVMCSA: Copy within one namespace is single atomic.
    pub nvmcsa: bool,
    /// NVMAFC: all Copy operations are fast.
    pub nvmafc: bool,
    /// MAXWZD: Write Zeroes with Deallocate has a limit of its own.
    pub maxwzd: bool,
    /// NSZS: Write Zeroes can clear a whole namespace.
    pub nszs: bool,
    #[bits(3)]
    __: u8,
}

/// FUSES: Fused Operation Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fuses {
    /// FCWS: Compare and Write.
    pub fcws: bool,
    #[bits(15)]
    __: u16,
}

/// FNA: Format NVM Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fna {
    /// FNS: a format is of all namespaces.
    pub fns: bool,
    /// SENS: a secure erase is of all namespaces.
    pub sens: bool,
    /// CRYES: cryptographic erase.
    pub cryes: bool,
    /// FNVMBS: an NSID of FFFFFFFFh is not supported.
    pub fnvmbs: bool,
    #[bits(4)]
    __: u8,
}

/// VWC: Volatile Write Cache.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vwc {
    /// VWCP: there is one.
    pub vwcp: bool,
    /// FB: Flush with NSID FFFFFFFFh: 0 not told, 2 not supported, 3 supported.
    #[bits(2)]
    pub fb: u8,
    #[bits(5)]
    __: u8,
}

/// SGLS: SGL Support.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sgls {
    /// SGLs: 0 none, 1 any alignment and granularity, 2 dword alignment and granularity.
    #[bits(2)]
    pub support: u8,
    /// Keyed SGL Data Block descriptors.
    pub keyed: bool,
    #[bits(5)]
    __: u8,
    /// SDT: the advised number of descriptors; 0 for none.
    pub sdt: u8,
    /// SGL Bit Bucket descriptors.
    pub bit_bucket: bool,
    /// A metadata pointer to a contiguous buffer of any alignment.
    pub mptr_contiguous: bool,
    /// A length larger than the data.
    pub longer: bool,
    /// A metadata pointer to one SGL descriptor.
    pub mptr_sgl: bool,
    /// An address that is an offset, for data in the capsule.
    pub offset: bool,
    /// Transport SGL Data Block descriptors.
    pub transport: bool,
    #[bits(10)]
    __: u16,
}

/// FCATT: Fabrics Controller Attributes.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fcatt {
    /// The controllers are of the static model, not the dynamic one.
    pub static_controllers: bool,
    #[bits(7)]
    __: u8,
}

/// OFCS: Optional Fabrics Commands Support.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ofcs {
    /// Disconnect.
    pub disconnect: bool,
    #[bits(15)]
    __: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_has_them() {
        assert_eq!(Oaes::new().with_nsan(true).with_anacn(true).into_bits(), 1 << 8 | 1 << 11);
        assert_eq!(Oaes::new().with_ansan(true).with_dlpcn(true).into_bits(), 1 << 19 | 1 << 31);
        assert_eq!(Oaes::new().with_zdcn(true).into_bits(), 1 << 27);
        assert_eq!(Ctratt::new().with_hids(true).with_tbkas(true).into_bits(), 1 | 1 << 6);
        assert_eq!(Ctratt::new().with_elbas(true).with_fdps(true).into_bits(), 1 << 15 | 1 << 19);
        assert_eq!(Oacs::new().with_nms(true).with_dbcs(true).into_bits(), 1 << 3 | 1 << 8);
        assert_eq!(Frmw::new().with_ffsro(true).with_nofs(1).into_bits(), 0x3);
        assert_eq!(Lpa::new().with_cses(true).with_lpeds(true).with_mlps(true).into_bits(), 0x26);
        assert_eq!(Anacap::new().with_change(true).with_group_fixed(true).into_bits(), 0x50);
        assert_eq!(EntrySizes::new().with_min(6).with_max(6).into_bits(), 0x66);
        assert_eq!(Oncs::new().with_nvmcmps(true).with_reservs(true).with_nvmcpys(true).into_bits(), 0x121);
        assert_eq!(Vwc::new().with_vwcp(true).with_fb(3).into_bits(), 7);
        // What Linux asks of a controller on Fabrics: SGLs, and in-capsule data by offset.
        assert_eq!(Sgls::new().with_support(1).with_offset(true).into_bits(), 1 | 1 << 20);
        assert_eq!(Sgls::new().with_bit_bucket(true).with_transport(true).into_bits(), 1 << 16 | 1 << 21);
    }
}
