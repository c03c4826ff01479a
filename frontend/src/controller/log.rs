//! Get Log Page (Base 2.1, 5.1.12).

use std::collections::{BTreeSet, VecDeque};

use engine::stats::Kind;
use nvme_proto::identify::{IDENTIFY_LEN, NSID_ALL, ascii};
use nvme_proto::log::{
    CommandEffects, CommandsEffects, ErrorEntry, FirmwareSlot, GetLogPage, LogId, Smart, SupportedLogPage,
};
use nvme_proto::opcode::{AdminOpcode, NvmOpcode};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::identify::ERRORS_Z;
use super::{Controller, MAX_TRANSFER};

/// NSIDs that the changed-namespace list names before it says "more than these".
const CHANGED_MAX: usize = 1024;
/// Bytes of a data unit in the SMART log: a thousand blocks of 512.
const DATA_UNIT: u64 = 512_000;
/// 20 °C, in kelvins.
const TEMPERATURE: u16 = 293;

/// What the log pages remember.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// The latest errors, newest first.
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    changed: BTreeSet<u32>,
}

impl Logs {
    /// A namespace came, went, or changed.
    pub fn namespace_changed(&mut self, nsid: u32) {
        if self.changed.len() <= CHANGED_MAX {
            self.changed.insert(nsid);
        }
    }

    fn changed_list(&self) -> Vec<u8> {
        let mut list: Vec<u8> = match self.changed.len() > CHANGED_MAX {
            true => NSID_ALL.to_le_bytes().to_vec(),
            false => self.changed.iter().flat_map(|nsid| nsid.to_le_bytes()).collect(),
        };
        list.resize(CHANGED_MAX * 4, 0);
        list
    }
}

impl Controller {
    /// The bytes that a Get Log Page command asks for.
    ///
    /// # Errors
    /// The status that it completes with, without DNR.
    pub(super) fn log_page(&self, get: &GetLogPage, nsid: u32) -> Result<Vec<u8>, Status> {
        if get.bytes() > MAX_TRANSFER || get.index || !get.lpo.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        // All pages here are the controller's.
        if nsid != 0 && nsid != NSID_ALL && get.lid == LogId::Smart {
            return Err(Status::INVALID_FIELD);
        }
        let page = match (get.lid, self.port.discovery_log()) {
            (LogId::Discovery, Some(page)) => page,
            (LogId::SupportedLogPages, discovery) => supported(discovery.is_some()),
            (LogId::ErrorInformation, _) => self.error_log(),
            (_, Some(_)) => return Err(Status::INVALID_LOG_PAGE),
            (LogId::Smart, None) => self.smart().as_bytes().to_vec(),
            (LogId::FirmwareSlot, None) => {
                let mut slots = FirmwareSlot::new_zeroed();
                slots.afi = 1;
                slots.frs[0] = ascii(env!("CARGO_PKG_VERSION"));
                slots.as_bytes().to_vec()
            }
            (LogId::ChangedNamespaces, None) => self.logs.borrow().changed_list(),
            (LogId::CommandsEffects, None) => effects(!self.config.fabrics).as_bytes().to_vec(),
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        let offset =
            usize::try_from(get.lpo).ok().filter(|o| *o <= page.len()).ok_or(Status::INVALID_FIELD)?;
        let len = usize::try_from(get.bytes()).map_err(|_| Status::INVALID_FIELD)?;
        let mut bytes: Vec<u8> = page.into_iter().skip(offset).take(len).collect();
        bytes.resize(len, 0);
        if !get.rae {
            if get.lid == LogId::ChangedNamespaces {
                self.logs.borrow_mut().changed.clear();
            }
            self.event_seen(get.lid);
        }
        Ok(bytes)
    }

    /// A namespace came, went, or changed: the list that AENs point to.
    pub(super) fn note_namespace(&self, nsid: u32) {
        self.logs.borrow_mut().namespace_changed(nsid);
    }

    /// Remembers a command that failed, for the error log.
    pub(super) fn note_error(&self, sqid: u16, sqe: &Sqe, status: Status) {
        let mut logs = self.logs.borrow_mut();
        logs.error_count += 1;
        let mut entry = ErrorEntry::new_zeroed();
        entry.ecnt = logs.error_count;
        (entry.sqid, entry.cid, entry.nsid, entry.opc) = (sqid, sqe.cid, sqe.nsid, sqe.opc);
        entry.sts = status.dnr().with_phase(false);
        // PEL: no parameter in particular.
        entry.pel = 0xffff;
        logs.errors.truncate(usize::from(ERRORS_Z));
        logs.errors.push_front(entry);
    }

    fn error_log(&self) -> Vec<u8> {
        let mut page: Vec<u8> =
            self.logs.borrow().errors.iter().flat_map(|e| e.as_bytes().to_vec()).collect();
        page.resize((usize::from(ERRORS_Z) + 1) * size_of::<ErrorEntry>(), 0);
        page
    }

    fn smart(&self) -> Smart {
        let mut smart = Smart::new_zeroed();
        smart.ctemp.set(TEMPERATURE);
        smart.avsp = 100;
        smart.avspt = 10;
        let mut units = [0u64; 2];
        let mut commands = [0u64; 2];
        for attachment in self.local.namespaces() {
            let counted = attachment.namespace.volume.stats().snapshot();
            for (i, kind) in [Kind::Read, Kind::Write].into_iter().enumerate() {
                let sums = counted.of(kind);
                units[i] = units[i].saturating_add(sums.bytes);
                commands[i] = commands[i].saturating_add(sums.ops);
            }
            commands[0] = commands[0].saturating_add(counted.of(Kind::Compare).ops);
        }
        smart.dur = u128::from(units[0].div_ceil(DATA_UNIT)).into();
        smart.duw = u128::from(units[1].div_ceil(DATA_UNIT)).into();
        smart.hrc = u128::from(commands[0]).into();
        smart.hwc = u128::from(commands[1]).into();
        // Milliseconds of the controller's clock into hours.
        smart.poh = u128::from(self.local.shard().now() / 3_600_000_000_000).into();
        smart.pwrc = 1.into();
        smart.neile = u128::from(self.logs.borrow().error_count).into();
        smart
    }
}

fn supported(discovery: bool) -> Vec<u8> {
    let mut page = vec![0; 1024];
    let ids: &[LogId] = match discovery {
        true => &[LogId::SupportedLogPages, LogId::ErrorInformation, LogId::Discovery],
        false => &[
            LogId::SupportedLogPages,
            LogId::ErrorInformation,
            LogId::Smart,
            LogId::FirmwareSlot,
            LogId::ChangedNamespaces,
            LogId::CommandsEffects,
        ],
    };
    for id in ids {
        let at = usize::from(id.0) * 4;
        page[at..at + 4].copy_from_slice(SupportedLogPage::new().with_lsupp(true).as_bytes());
    }
    page
}

fn effects(pcie: bool) -> CommandsEffects {
    let mut page = CommandsEffects::new_zeroed();
    let supported = CommandEffects::new().with_csupp(true);
    let mut admin = vec![
        AdminOpcode::GetLogPage,
        AdminOpcode::Identify,
        AdminOpcode::Abort,
        AdminOpcode::SetFeatures,
        AdminOpcode::GetFeatures,
        AdminOpcode::AsyncEventRequest,
        AdminOpcode::KeepAlive,
    ];
    if pcie {
        admin.extend([
            AdminOpcode::DeleteIoSq,
            AdminOpcode::CreateIoSq,
            AdminOpcode::DeleteIoCq,
            AdminOpcode::CreateIoCq,
            AdminOpcode::DoorbellBufferConfig,
        ]);
    }
    for opcode in admin {
        page.acs[usize::from(opcode.0)] = supported;
    }
    for opcode in [NvmOpcode::Flush, NvmOpcode::Read, NvmOpcode::Compare] {
        page.iocs[usize::from(opcode.0)] = supported;
    }
    for opcode in [NvmOpcode::Write, NvmOpcode::WriteZeroes, NvmOpcode::DatasetManagement] {
        page.iocs[usize::from(opcode.0)] = supported.with_lbcc(true);
    }
    page
}

const _: () = assert!(CHANGED_MAX * 4 == IDENTIFY_LEN);
