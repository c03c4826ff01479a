//! Identify Controller (Base 2.1, 5.1.13.2.1; NVM Command Set 1.1, 4.1.5.4).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::controller_bits::{
    Anacap, Cmic, Ctratt, EntrySizes, Fcatt, Fna, Frmw, Fuses, Lpa, Oacs, Oaes, Ofcs, Oncs, Sgls, Vwc,
};
use crate::register::Vs;

/// CNTRLTYPE.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum ControllerType {
    /// Not reported, as controllers before 1.4 do.
    NotReported = 0,
    /// I/O controller.
    Io = 1,
    /// Discovery controller.
    Discovery = 2,
    /// Administrative controller.
    Administrative = 3,
}

/// Byte 3 of a power state descriptor.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerStateFlags {
    /// MXPS: the maximum power is in 0.0001 W, not 0.01 W.
    pub mxps: bool,
    /// NOPS: the state processes no I/O.
    pub nops: bool,
    #[bits(6)]
    __: u8,
}

/// A power state descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerStateDescriptor {
    /// MP: maximum power, in the unit that MXPS tells.
    pub mp: u16,
    /// Reserved.
    pub reserved2: u8,
    /// MXPS and NOPS.
    pub flags: PowerStateFlags,
    /// ENLAT: entry latency in microseconds.
    pub enlat: u32,
    /// EXLAT: exit latency in microseconds.
    pub exlat: u32,
    /// RRT: relative read throughput, 0 the best.
    pub rrt: u8,
    /// RRL: relative read latency.
    pub rrl: u8,
    /// RWT: relative write throughput.
    pub rwt: u8,
    /// RWL: relative write latency.
    pub rwl: u8,
    /// IDLP: idle power.
    pub idlp: u16,
    /// IPS: unit of the idle power, in bits 7:6.
    pub ips: u8,
    /// Reserved.
    pub reserved19: u8,
    /// ACTP: active power.
    pub actp: u16,
    /// APW in bits 2:0 and APS in bits 7:6: workload and unit of the active power.
    pub apw_aps: u8,
    /// Emergency power fail times, and reserved bytes.
    pub reserved23: [u8; 9],
}

/// Identify Controller (CNS 01h).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// VID: PCI Vendor ID.
    pub vid: u16,
    /// SSVID: PCI Subsystem Vendor ID.
    pub ssvid: u16,
    /// SN: serial number, ASCII.
    pub sn: [u8; 20],
    /// MN: model number, ASCII.
    pub mn: [u8; 40],
    /// FR: firmware revision, ASCII.
    pub fr: [u8; 8],
    /// RAB: recommended arbitration burst, commands as a power of two.
    pub rab: u8,
    /// IEEE: OUI, the least byte first.
    pub ieee: [u8; 3],
    /// CMIC: multi-path and sharing capabilities.
    pub cmic: Cmic,
    /// MDTS: the longest transfer, CAP.MPSMIN pages as a power of two; 0 for no limit.
    pub mdts: u8,
    /// CNTLID: controller identifier.
    pub cntlid: u16,
    /// VER: version.
    pub ver: Vs,
    /// RTD3R: RTD3 resume latency in microseconds.
    pub rtd3r: u32,
    /// RTD3E: RTD3 entry latency in microseconds.
    pub rtd3e: u32,
    /// OAES: optional asynchronous events.
    pub oaes: Oaes,
    /// CTRATT: controller attributes.
    pub ctratt: Ctratt,
    /// RRLS: read recovery levels, a bit each.
    pub rrls: u16,
    /// BPCAP: boot partition capabilities.
    pub bpcap: u8,
    /// Reserved.
    pub reserved103: u8,
    /// NSSL: NVM subsystem shutdown latency in microseconds.
    pub nssl: u32,
    /// Reserved.
    pub reserved108: [u8; 2],
    /// PLSI: power loss signaling.
    pub plsi: u8,
    /// CNTRLTYPE: controller type.
    pub cntrltype: ControllerType,
    /// FGUID: FRU globally unique identifier.
    pub fguid: [u8; 16],
    /// CRDT1: command retry delay time 1, in 100 ms.
    pub crdt1: u16,
    /// CRDT2: command retry delay time 2, in 100 ms.
    pub crdt2: u16,
    /// CRDT3: command retry delay time 3, in 100 ms.
    pub crdt3: u16,
    /// CRCAP: controller reachability capabilities.
    pub crcap: u8,
    /// Reserved.
    pub reserved135: [u8; 118],
    /// NVMSR: whether the subsystem is a device, an enclosure, or both.
    pub nvmsr: u8,
    /// VWCI: VPD write cycles.
    pub vwci: u8,
    /// MEC: management endpoints.
    pub mec: u8,
    /// OACS: optional Admin commands.
    pub oacs: Oacs,
    /// ACL: Abort commands at once, zero-based.
    pub acl_z: u8,
    /// AERL: Asynchronous Event Requests at once, zero-based.
    pub aerl_z: u8,
    /// FRMW: firmware updates.
    pub frmw: Frmw,
    /// LPA: log page attributes.
    pub lpa: Lpa,
    /// ELPE: error log entries, zero-based.
    pub elpe_z: u8,
    /// NPSS: power states, zero-based.
    pub npss_z: u8,
    /// AVSCC: Admin vendor specific command configuration.
    pub avscc: u8,
    /// APSTA: autonomous power state transition attributes.
    pub apsta: u8,
    /// WCTEMP: warning composite temperature in kelvin.
    pub wctemp: u16,
    /// CCTEMP: critical composite temperature in kelvin.
    pub cctemp: u16,
    /// MTFA: the longest stop for firmware activation, in 100 ms.
    pub mtfa: u16,
    /// HMPRE: preferred host memory buffer, in 4 KiB.
    pub hmpre: u32,
    /// HMMIN: least host memory buffer, in 4 KiB.
    pub hmmin: u32,
    /// TNVMCAP: capacity in bytes.
    pub tnvmcap: U128,
    /// UNVMCAP: unallocated capacity in bytes.
    pub unvmcap: U128,
    /// RPMBS: replay protected memory block support.
    pub rpmbs: u32,
    /// EDSTT: extended self-test time in minutes.
    pub edstt: u16,
    /// DSTO: self-test options.
    pub dsto: u8,
    /// FWUG: firmware update granularity in 4 KiB; 0 not told, FFh none.
    pub fwug: u8,
    /// KAS: granularity of the keep alive timer in 100 ms; 0 for no keep alive.
    pub kas: u16,
    /// HCTMA: host controlled thermal management attributes.
    pub hctma: u16,
    /// MNTMT: least thermal management temperature in kelvin.
    pub mntmt: u16,
    /// MXTMT: largest thermal management temperature in kelvin.
    pub mxtmt: u16,
    /// SANICAP: sanitize capabilities.
    pub sanicap: u32,
    /// HMMINDS: least descriptor entry of the host memory buffer, in 4 KiB.
    pub hmminds: u32,
    /// HMMAXD: descriptor entries of the host memory buffer.
    pub hmmaxd: u16,
    /// NSETIDMAX: the largest NVM Set identifier.
    pub nsetidmax: u16,
    /// ENDGIDMAX: the largest Endurance Group identifier.
    pub endgidmax: u16,
    /// ANATT: the longest ANA transition in seconds.
    pub anatt: u8,
    /// ANACAP: ANA capabilities.
    pub anacap: Anacap,
    /// ANAGRPMAX: the largest ANA group identifier.
    pub anagrpmax: u32,
    /// NANAGRPID: ANA groups.
    pub nanagrpid: u32,
    /// PELS: size of the persistent event log in 64 KiB.
    pub pels: u32,
    /// Domain identifier.
    pub domain_id: u16,
    /// KPIOC: key per I/O capabilities.
    pub kpioc: u8,
    /// Reserved.
    pub reserved359: u8,
    /// MPTFAWR: the longest processing of firmware activation without reset, in 100 ms.
    pub mptfawr: u16,
    /// Reserved.
    pub reserved362: [u8; 6],
    /// MEGCAP: the largest Endurance Group in bytes.
    pub megcap: U128,
    /// TMPTHHA: temperature threshold hysteresis attributes.
    pub tmpthha: u8,
    /// Reserved.
    pub reserved385: u8,
    /// CQT: command quiesce time in milliseconds.
    pub cqt: u16,
    /// Reserved.
    pub reserved388: [u8; 124],
    /// SQES: SQ entry sizes.
    pub sqes: EntrySizes,
    /// CQES: CQ entry sizes.
    pub cqes: EntrySizes,
    /// MAXCMD: commands at once per queue; 0 not told (PCIe only).
    pub maxcmd: u16,
    /// NN: the largest NSID.
    pub nn: u32,
    /// ONCS: optional NVM commands.
    pub oncs: Oncs,
    /// FUSES: fused operations.
    pub fuses: Fuses,
    /// FNA: format attributes.
    pub fna: Fna,
    /// VWC: volatile write cache.
    pub vwc: Vwc,
    /// AWUN: atomic write unit normal, blocks, zero-based.
    pub awun_z: u16,
    /// AWUPF: atomic write unit power fail, blocks, zero-based.
    pub awupf_z: u16,
    /// ICSVSCC: I/O command set vendor specific command configuration.
    pub icsvscc: u8,
    /// NWPC: namespace write protection capabilities.
    pub nwpc: u8,
    /// ACWU: atomic compare and write unit, blocks, zero-based.
    pub acwu_z: u16,
    /// OCDFS: copy descriptor formats, a bit each.
    pub cdfs: u16,
    /// SGLS: SGL support.
    pub sgls: Sgls,
    /// MNAN: the most namespaces; 0 for NN.
    pub mnan: u32,
    /// MAXDNA: the most namespace attachments of the domain.
    pub maxdna: U128,
    /// MAXCNA: the most namespace attachments of an I/O controller.
    pub maxcna: u32,
    /// Aggregated queue depth, reachability, migration and tracking, and reserved bytes.
    pub reserved564: [u8; 204],
    /// SUBNQN: name of the subsystem, ended by a NUL.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// IOCCSZ: I/O command capsule size in 16 bytes (Fabrics).
    pub ioccsz: u32,
    /// IORCSZ: I/O response capsule size in 16 bytes (Fabrics).
    pub iorcsz: u32,
    /// ICDOFF: where data in a capsule begins, in 16 bytes after the SQE (Fabrics).
    pub icdoff: u16,
    /// FCATT: Fabrics controller attributes.
    pub fcatt: Fcatt,
    /// MSDBD: SGL descriptors per command; 0 for no limit (Fabrics).
    pub msdbd: u8,
    /// OFCS: optional Fabrics commands.
    pub ofcs: Ofcs,
    /// DCTYPE: discovery controller type.
    pub dctype: u8,
    /// Reserved.
    pub reserved1807: [u8; 241],
    /// PSD: power state descriptors.
    pub psd: [PowerStateDescriptor; 32],
    /// Vendor specific.
    pub vendor: [u8; 1024],
}

/// Identify Controller of the NVM command set (CNS 06h). A size limit of 0 is none.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NvmIdentifyController {
    /// VSL: Verify size limit, CAP.MPSMIN pages as a power of two.
    pub vsl: u8,
    /// WZSL: Write Zeroes size limit, likewise.
    pub wzsl: u8,
    /// WUSL: Write Uncorrectable size limit, likewise.
    pub wusl: u8,
    /// DMRL: Dataset Management ranges limit.
    pub dmrl: u8,
    /// DMRSL: Dataset Management range size limit in blocks.
    pub dmrsl: u32,
    /// DMSL: Dataset Management size limit in blocks.
    pub dmsl: u64,
    /// Key per I/O, further limits, and reserved bytes.
    pub reserved16: [u8; 4080],
}

sizes!(PowerStateDescriptor = 32, IdentifyController = 4096, NvmIdentifyController = 4096);

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn every_field_lies_where_the_specification_has_it() {
        offsets!(IdentifyController:
            vid = 0, ssvid = 2, sn = 4, mn = 24, fr = 64, rab = 72, ieee = 73, cmic = 76, mdts = 77, cntlid = 78,
            ver = 80, rtd3r = 84, rtd3e = 88, oaes = 92, ctratt = 96, rrls = 100, bpcap = 102, nssl = 104, plsi = 110,
            cntrltype = 111, fguid = 112, crdt1 = 128, crdt2 = 130, crdt3 = 132, crcap = 134, nvmsr = 253, vwci = 254,
            mec = 255, oacs = 256, acl_z = 258, aerl_z = 259, frmw = 260, lpa = 261, elpe_z = 262, npss_z = 263,
            avscc = 264, apsta = 265, wctemp = 266, cctemp = 268, mtfa = 270, hmpre = 272, hmmin = 276, tnvmcap = 280,
            unvmcap = 296, rpmbs = 312, edstt = 316, dsto = 318, fwug = 319, kas = 320, hctma = 322, mntmt = 324,
            mxtmt = 326, sanicap = 328, hmminds = 332, hmmaxd = 336, nsetidmax = 338, endgidmax = 340, anatt = 342,
            anacap = 343, anagrpmax = 344, nanagrpid = 348, pels = 352, domain_id = 356, kpioc = 358, mptfawr = 360,
            megcap = 368, tmpthha = 384, cqt = 386, sqes = 512, cqes = 513, maxcmd = 514, nn = 516, oncs = 520,
            fuses = 522, fna = 524, vwc = 525, awun_z = 526, awupf_z = 528, icsvscc = 530, nwpc = 531, acwu_z = 532,
            cdfs = 534, sgls = 536, mnan = 540, maxdna = 544, maxcna = 560, subnqn = 768, ioccsz = 1792,
            iorcsz = 1796, icdoff = 1800, fcatt = 1802, msdbd = 1803, ofcs = 1804, dctype = 1806, psd = 2048,
            vendor = 3072,
        );
        offsets!(PowerStateDescriptor:
            mp = 0, flags = 3, enlat = 4, exlat = 8, rrt = 12, rwl = 15, idlp = 16, ips = 18, actp = 20, apw_aps = 22,
        );
        offsets!(NvmIdentifyController: vsl = 0, wzsl = 1, wusl = 2, dmrl = 3, dmrsl = 4, dmsl = 8);
    }

    #[test]
    fn bytes_of_a_controller() {
        let mut c = IdentifyController::new_zeroed();
        c.ver = Vs::new();
        c.tnvmcap = U128::new(1 << 64);
        c.cntrltype = ControllerType::Io;
        let b = c.as_bytes();
        assert_eq!(b[80..84], [0, 1, 2, 0]);
        assert_eq!((b[111], b[287], b[288], b[289]), (1, 0, 1, 0));
    }
}
