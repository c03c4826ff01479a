//! Identify (Base 2.1, 5.1.13; NVM Command Set 1.1, 4.1.5). Everything a namespace promises comes from its volume's
//! limits.

use nvme_proto::identify::{
    Anacap, Cmic, Cns, CommandSet, CommandSetVector, ControllerList, ControllerType, Ctratt, Dlfeat,
    EntrySizes, Fcatt, Frmw, Fuses, IDENTIFY_LEN, IdentifyCdw10, IdentifyCdw11, IdentifyController,
    IdentifyNamespace, IndependentNamespace, LbaFormat, Lpa, NSID_ALL, NSID_MAX, NamespaceIdDescriptor,
    NamespaceIdType, Nmic, Nsfeat, NvmIdentifyController, NvmIdentifyNamespace, Oacs, Oaes, Ofcs, Oncs, Sgls,
    Vwc, ascii,
};
use nvme_proto::register::Vs;
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::ana::GROUP;
use super::away;
use super::keep_alive::KAS;
use super::{Controller, MAX_TRANSFER};
use crate::namespace::{Attachment, Protection};
use crate::nvm::VERIFY_MAX;
use crate::subsystem::Viewer;

/// ACL and AERL, zero-based; ELPE, zero-based: entries that the error log keeps.
pub(super) const ABORTS_Z: u8 = 3;
pub(super) const EVENTS_Z: u8 = 3;
pub(super) const ERRORS_Z: u8 = 63;
/// WCTEMP and CCTEMP, in kelvins. Nothing here gets warm, but a controller must have thresholds.
const WARNING: u16 = 343;
const CRITICAL: u16 = 353;
/// RTD3E: the longest shutdown to wait for, in microseconds.
const SHUTDOWN_US: u32 = 20_000_000;
/// CRDT1, in 100 ms: when a command that was interrupted may succeed.
const RETRY_DELAY: u16 = 1;
/// NWPC: write protect, and write protect until power cycle.
const WRITE_PROTECTION: u8 = 3;
/// CNTID that names the controller that is asked.
const THIS_CONTROLLER: u16 = 0xffff;
/// UIDX of CDW14.
const UUID_INDEX: u32 = 0x7f;
/// FB of VWC: Flush takes NSID FFFFFFFFh.
const FLUSH_ALL: u8 = 3;

/// ONCS: what the controller can do. Hosts look once, and namespaces come later: one that cannot do it refuses by
/// itself.
pub(super) fn abilities() -> Oncs {
    Oncs::new()
        .with_nvmcmps(true)
        .with_nvmdsmsv(true)
        .with_nvmwzsv(true)
        .with_ssfs(true)
        .with_nvmvfys(true)
        .with_tss(true)
        .with_reservs(true)
}

impl Controller {
    /// The 4096 bytes that an Identify command asks for.
    ///
    /// # Errors
    /// The status that it completes with, without DNR.
    pub(super) fn identify(&self, sqe: &Sqe) -> Result<Vec<u8>, Status> {
        let (cdw10, cdw11) = (IdentifyCdw10::from_bits(sqe.cdw10), IdentifyCdw11::from_bits(sqe.cdw11));
        let nvm = || (cdw11.csi() == CommandSet::Nvm).then_some(()).ok_or(Status::INVALID_FIELD);
        if self.config.discovery && cdw10.cns() != Cns::Controller {
            return Err(Status::INVALID_FIELD);
        }
        // There is no UUID list (CTRATT.ULIST).
        if sqe.cdw14 & UUID_INDEX != 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(match cdw10.cns() {
            Cns::Controller => self.identify_controller().as_bytes().to_vec(),
            // Every namespace that is allocated is attached to every controller that may know of it.
            Cns::Namespace | Cns::AllocatedNamespace => match self.known(sqe.nsid)? {
                Some(attachment) => self.identify_namespace(&attachment).as_bytes().to_vec(),
                None => vec![0; IDENTIFY_LEN],
            },
            Cns::ActiveNamespaces | Cns::AllocatedNamespaces => self.active_namespaces(sqe.nsid)?,
            Cns::NamespaceIdDescriptors => descriptors(&*self.known(sqe.nsid)?.ok_or(Status::INVALID_FIELD)?),
            Cns::CommandSetNamespace | Cns::CommandSetAllocatedNamespace => {
                nvm()?;
                self.known(sqe.nsid)?;
                NvmIdentifyNamespace::new_zeroed().as_bytes().to_vec()
            }
            Cns::CommandSetController => {
                nvm()?;
                let mut id = NvmIdentifyController::new_zeroed();
                id.vsl = pages_shift(VERIFY_MAX);
                id.as_bytes().to_vec()
            }
            Cns::CommandSetActiveNamespaces | Cns::CommandSetAllocatedNamespaces => {
                nvm()?;
                self.active_namespaces(sqe.nsid)?
            }
            Cns::IndependentNamespace => match self.known(sqe.nsid)? {
                Some(attachment) => independent(&attachment).as_bytes().to_vec(),
                None => vec![0; IDENTIFY_LEN],
            },
            Cns::AttachedControllers if sqe.nsid == NSID_ALL => return Err(Status::INVALID_FIELD),
            Cns::AttachedControllers => match self.known(sqe.nsid)? {
                Some(_) => {
                    let view = self.local.subsystem().view();
                    self.controllers(cdw10.cntid(), |viewer| match viewer {
                        Some(viewer) => view.shows(sqe.nsid, &viewer),
                        None => view.mask(sqe.nsid).is_none(),
                    })
                }
                None => vec![0; IDENTIFY_LEN],
            },
            Cns::CommandSets => self.command_sets(cdw10.cntid())?,
            Cns::Controllers => self.controllers(cdw10.cntid(), |_| true),
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// The namespace with an NSID that may exist: `None` where there is none at the moment.
    pub(super) fn known(&self, nsid: u32) -> Result<Option<std::rc::Rc<Attachment>>, Status> {
        // FFFFFFFFh asks for what all namespaces have in common: only with Namespace Management.
        if nsid == 0 || nsid > self.local.subsystem().max_namespaces() {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT);
        }
        Ok(self.local.namespace(nsid))
    }

    fn active_namespaces(&self, above: u32) -> Result<Vec<u8>, Status> {
        if above == NSID_MAX || above == NSID_ALL {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT);
        }
        let mut list = Vec::with_capacity(IDENTIFY_LEN);
        let all = self.local.namespaces();
        for attachment in all.iter().filter(|a| a.namespace.nsid > above).take(IDENTIFY_LEN / 4) {
            list.extend_from_slice(&attachment.namespace.nsid.to_le_bytes());
        }
        list.resize(IDENTIFY_LEN, 0);
        Ok(list)
    }

    /// The combinations of I/O command sets of a controller: NVM alone.
    fn command_sets(&self, cntid: u16) -> Result<Vec<u8>, Status> {
        let known = cntid == THIS_CONTROLLER || self.local.subsystem().cntlids(|_| true).contains(&cntid);
        if !known {
            return Err(Status::INVALID_FIELD);
        }
        let mut list = CommandSetVector::new().with_nvm(true).as_bytes().to_vec();
        list.resize(IDENTIFY_LEN, 0);
        Ok(list)
    }

    /// The controllers from that identifier on that have one of these views.
    fn controllers(&self, from: u16, which: impl Fn(Option<Viewer>) -> bool) -> Vec<u8> {
        let mut list = ControllerList::new_zeroed();
        let mut all = self.local.subsystem().cntlids(which);
        all.retain(|cntlid| *cntlid >= from);
        for (to, cntlid) in list.cntlids.iter_mut().zip(&all) {
            *to = *cntlid;
            list.numid = list.numid.saturating_add(1);
        }
        list.as_bytes().to_vec()
    }

    fn identify_controller(&self) -> IdentifyController {
        let subsystem = self.local.subsystem();
        let namespaces = self.local.namespaces();
        let (fabrics, discovery) = (self.config.fabrics, self.config.discovery);
        let atomic = namespaces.iter().map(|n| n.limits.atomic_blocks).min().unwrap_or(1);
        let atomic_z = u16::try_from(atomic.saturating_sub(1)).unwrap_or(u16::MAX);
        let mut id = IdentifyController::new_zeroed();
        (id.vid, id.ssvid) = if fabrics { (0, 0) } else { self.port.pci_ids() };
        id.sn = ascii(subsystem.serial());
        id.mn = ascii(subsystem.model());
        id.fr = ascii(env!("CARGO_PKG_VERSION"));
        id.cmic = Cmic::new().with_mports(true).with_mctrs(true);
        id.mdts = pages_shift(MAX_TRANSFER);
        id.cntlid = self.shared.cntlid();
        id.ver = Vs::new();
        id.rtd3e = SHUTDOWN_US;
        id.oaes = if discovery {
            Oaes::new().with_dlpcn(true)
        } else {
            Oaes::new().with_nsan(true).with_anacn(true)
        };
        id.ctratt = Ctratt::new().with_hids(true).with_rhii(true).with_tbkas(true);
        id.cntrltype = if discovery { ControllerType::Discovery } else { ControllerType::Io };
        id.aerl_z = EVENTS_Z;
        id.lpa = Lpa::new().with_lpeds(true);
        id.elpe_z = ERRORS_Z;
        id.maxcmd = self.config.max_queue_entries;
        id.subnqn = subsystem.nqn().to_field();
        id.sgls =
            Sgls::new().with_support(1).with_offset(fabrics).with_transport(fabrics).with_longer(fabrics);
        // Guests' lists may have them; over TCP there is one descriptor, of the data.
        id.sgls = id.sgls.with_bit_bucket(!fabrics);
        id.kas = KAS;
        if fabrics {
            id.ioccsz = self.config.ioccsz;
            id.iorcsz = 1;
            id.msdbd = 1;
            id.fcatt = Fcatt::new().with_static_controllers(self.config.cntlid.is_some());
            id.ofcs = Ofcs::new().with_disconnect(!discovery);
        }
        if discovery {
            return id;
        }
        id.cmic = id.cmic.with_anars(true);
        id.anacap = Anacap::new()
            .with_optimized(true)
            .with_non_optimized(true)
            .with_inaccessible(true)
            .with_group_fixed(true);
        (id.anagrpmax, id.nanagrpid) = (GROUP, 1);
        // A change is at once, which is no longer than a second.
        id.anatt = 1;
        (id.crdt1, id.crdt2) = (RETRY_DELAY, away::DELAY);
        id.nwpc = WRITE_PROTECTION;
        id.oacs = Oacs::new().with_dbcs(!fabrics);
        id.acl_z = ABORTS_Z;
        id.frmw = Frmw::new().with_ffsro(true).with_nofs(1);
        id.lpa = id.lpa.with_cses(true).with_mlps(true);
        (id.wctemp, id.cctemp) = (WARNING, CRITICAL);
        id.sqes = EntrySizes::new().with_min(6).with_max(6);
        id.cqes = EntrySizes::new().with_min(4).with_max(4);
        id.nn = subsystem.max_namespaces();
        id.mnan = subsystem.max_namespaces();
        id.oncs = abilities();
        // Whether or not a namespace with a cache is there yet: who sees none here never flushes one that comes.
        id.vwc = Vwc::new().with_vwcp(true).with_fb(FLUSH_ALL);
        (id.awun_z, id.awupf_z, id.acwu_z) = (atomic_z, atomic_z, atomic_z);
        id.fuses = Fuses::new().with_fcws(true);
        // A power state must have a power: 25 W, in 10 mW.
        id.psd[0].mp = 2500;
        id
    }

    fn identify_namespace(&self, attachment: &Attachment) -> IdentifyNamespace {
        let mut id = identify_namespace(attachment);
        if self.shared.is_inaccessible() {
            // What is used is not known by this way (8.1.1.6). The size is, and hosts drop a namespace without one.
            (id.nuse, id.nvmcap) = (0, 0.into());
        }
        id
    }
}

/// log2 of so many bytes in pages of 4 KiB: how MDTS and VSL tell sizes.
fn pages_shift(bytes: u64) -> u8 {
    u8::try_from((bytes / 4096).ilog2()).unwrap_or(0)
}

fn identify_namespace(attachment: &Attachment) -> IdentifyNamespace {
    let (namespace, limits) = (&attachment.namespace, &attachment.limits);
    let zero_based = |n: u32| u16::try_from(n.saturating_sub(1)).unwrap_or(u16::MAX);
    let mut id = IdentifyNamespace::new_zeroed();
    (id.nsze, id.ncap, id.nuse) = (limits.blocks, limits.blocks, limits.blocks);
    let granular = limits.write_granularity > 1;
    id.nsfeat = Nsfeat::new().with_nsabp(true).with_optperf(u8::from(granular));
    id.nmic = Nmic::new().with_shrns(true);
    id.rescap = attachment.reservations.rescap();
    id.dlfeat = Dlfeat::new()
        .with_rb(u8::from(limits.unmap && limits.unmapped_reads_zero))
        .with_wzds(limits.write_zeroes && limits.unmap);
    let atomic_z = zero_based(limits.atomic_blocks);
    (id.nawun_z, id.nawupf_z) = (atomic_z, atomic_z);
    id.nacwu_z = if limits.compare { atomic_z } else { 0 };
    id.noiob = u16::try_from(limits.optimal_boundary).unwrap_or(0);
    id.nvmcap = u128::from(limits.bytes()).into();
    if granular {
        let z = zero_based(limits.write_granularity);
        (id.npwg_z, id.npwa_z, id.npdg_z, id.npda_z, id.nows_z) = (z, z, z, z, z);
    }
    id.anagrpid = GROUP;
    id.nsattr = id.nsattr.with_cwp(attachment.protection != Protection::None);
    id.nguid = namespace.nguid;
    id.eui64 = namespace.eui64;
    id.lbaf[0] = LbaFormat::of_lbads(u8::try_from(attachment.block_shift).unwrap_or(9));
    id
}

fn independent(attachment: &Attachment) -> IndependentNamespace {
    let mut id = IndependentNamespace::new_zeroed();
    id.nmic = Nmic::new().with_shrns(true);
    id.rescap = attachment.reservations.rescap();
    // VWCNP says that this namespace has no volatile cache though the controller has one.
    id.nsfeat = id.nsfeat.with_vwcnp(!attachment.limits.volatile_cache);
    id.anagrpid = GROUP;
    id.nsattr = id.nsattr.with_cwp(attachment.protection != Protection::None);
    id.nstat = id.nstat.with_nrdy(true);
    id
}

/// The list of a namespace's identifiers (CNS 03h).
fn descriptors(attachment: &Attachment) -> Vec<u8> {
    let namespace = &attachment.namespace;
    let mut list = Vec::with_capacity(IDENTIFY_LEN);
    let mut add = |nidt: NamespaceIdType, id: &[u8]| {
        if id.iter().any(|&b| b != 0) || nidt == NamespaceIdType::Csi {
            let nidl = u8::try_from(id.len()).unwrap_or(0);
            list.extend_from_slice(NamespaceIdDescriptor { nidt, nidl, reserved2: [0; 2] }.as_bytes());
            list.extend_from_slice(id);
        }
    };
    add(NamespaceIdType::Eui64, &namespace.eui64);
    add(NamespaceIdType::Nguid, &namespace.nguid);
    add(NamespaceIdType::Uuid, &namespace.uuid);
    add(NamespaceIdType::Csi, &[0]);
    list.resize(IDENTIFY_LEN, 0);
    list
}
