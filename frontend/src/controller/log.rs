//! Get Log Page (Base 2.1, 5.1.12).

use std::collections::BTreeSet;

use engine::stats::Kind;
use nvme_proto::Status;
use nvme_proto::fabrics::TransportType;
use nvme_proto::identify::{CommandSet, IDENTIFY_LEN, NSID_ALL, ascii};
use nvme_proto::log::{
    CommandsEffects, CriticalWarning, ErrorEntry, FirmwareSlot, GetLogPage, LogId, Smart, SupportedLogPage,
};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::identify::ERRORS_Z;
use super::{Controller, MAX_TRANSFER};

/// NSIDs that the changed-namespace list names before it says "more than these".
const CHANGED_MAX: usize = 1024;
/// Bytes of a data unit in the SMART log: a thousand blocks of 512.
const DATA_UNIT: u64 = 512_000;
/// 20 °C, in kelvins.
pub(super) const TEMPERATURE: u16 = 293;

/// What the log pages remember.
#[derive(Debug, Default)]
pub(super) struct Logs {
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
            (LogId::ReservationNotification, None) => self.notice_page(),
            (LogId::ChangedNamespaces, None) => self.logs.borrow().changed_list(),
            (LogId::Ana, None) => self.ana_log(get.lsp),
            // CSI names the command set whose commands are told.
            (LogId::CommandsEffects, None) if get.csi != CommandSet::Nvm.0 => {
                return Err(Status::INVALID_FIELD);
            }
            (LogId::CommandsEffects, None) => self.command_effects().as_bytes().to_vec(),
            (LogId::FeaturesEffects, None) => self.feature_effects(),
            // There are no management endpoints, and no commands of theirs.
            (LogId::MiCommandsEffects, None) => vec![0; size_of::<CommandsEffects>()],
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        // All pages here are the controller's or the subsystem's, none has an index, and there is no UUID list.
        let wrong = get.index || get.uidx != 0 || nsid != 0 && nsid != NSID_ALL;
        if wrong || get.bytes() > MAX_TRANSFER || !get.lpo.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let offset =
            usize::try_from(get.lpo).ok().filter(|o| *o <= page.len()).ok_or(Status::INVALID_FIELD)?;
        let len = usize::try_from(get.bytes()).map_err(|_| Status::INVALID_FIELD)?;
        let mut bytes: Vec<u8> = page.into_iter().skip(offset).take(len).collect();
        bytes.resize(len, 0);
        Ok(bytes)
    }

    /// The same once the host's memory is there, where it has them for certain: what they tell is told (RAE).
    pub(super) fn told_log_page(&self, get: &GetLogPage, nsid: u32) -> Result<Vec<u8>, Status> {
        let bytes = self.log_page(get, nsid)?;
        if !get.rae {
            if get.lid == LogId::ChangedNamespaces {
                self.logs.borrow_mut().changed.clear();
            }
            self.event_seen(get.lid);
            if get.lid == LogId::ReservationNotification {
                self.notice_seen();
            }
        }
        Ok(bytes)
    }

    /// A namespace came, went, or changed: the list that AENs point to.
    pub(super) fn note_namespace(&self, nsid: u32) {
        self.logs.borrow_mut().namespace_changed(nsid);
    }

    fn error_log(&self) -> Vec<u8> {
        let trtype = if self.config.fabrics { TransportType::Tcp } else { TransportType(0) };
        let entries = self.shared.errors().entries().into_iter().map(|entry| ErrorEntry { trtype, ..entry });
        let mut page: Vec<u8> = entries.flat_map(|e| e.as_bytes().to_vec()).collect();
        page.resize((usize::from(ERRORS_Z) + 1) * size_of::<ErrorEntry>(), 0);
        page
    }

    fn smart(&self) -> Smart {
        let mut smart = Smart::new_zeroed();
        smart.cw = CriticalWarning::new().with_ttc(self.is_outside_thresholds());
        smart.ctemp.set(TEMPERATURE);
        smart.avsp = 100;
        smart.avspt = 10;
        // What hosts asked of this controller. A Verify reads data units, and is no read command.
        let counted = self.shared.stats().snapshot();
        let [read, compare, verify, write] =
            [Kind::Read, Kind::Compare, Kind::Verify, Kind::Write].map(|kind| counted.of(kind));
        let read_bytes = read.bytes.saturating_add(compare.bytes).saturating_add(verify.bytes);
        smart.dur = u128::from(read_bytes.div_ceil(DATA_UNIT)).into();
        smart.duw = u128::from(write.bytes.div_ceil(DATA_UNIT)).into();
        smart.hrc = u128::from(read.ops.saturating_add(compare.ops)).into();
        smart.hwc = u128::from(write.ops).into();
        // Milliseconds of the controller's clock into hours.
        smart.poh = u128::from(self.local.shard().now() / 3_600_000_000_000).into();
        let busy = self.shared.busy_time(self.local.shard().now());
        smart.cbt = u128::from(busy.as_secs() / 60).into();
        let power = self.local.subsystem().power();
        smart.pwrc = u128::from(power.cycles).into();
        smart.upl = u128::from(power.losses).into();
        smart.mdie = u128::from(self.local.subsystem().media_errors()).into();
        smart.neile = u128::from(self.shared.errors().count()).into();
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
            LogId::Ana,
            LogId::FeaturesEffects,
            LogId::MiCommandsEffects,
            LogId::ReservationNotification,
        ],
    };
    for id in ids {
        let at = usize::from(id.0) * 4;
        page[at..at + 4].copy_from_slice(SupportedLogPage::new().with_lsupp(true).as_bytes());
    }
    page
}

const _: () = assert!(CHANGED_MAX * 4 == IDENTIFY_LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e53_more_changes_than_the_list_holds() {
        let mut logs = Logs::default();
        (1..=1024).for_each(|nsid| logs.namespace_changed(nsid));
        assert_eq!(logs.changed_list()[4092..], 1024u32.to_le_bytes());
        (1025..5000).for_each(|nsid| logs.namespace_changed(nsid));
        let mut want = vec![0; 4096];
        want[..4].fill(0xff);
        assert_eq!(logs.changed_list(), want);
        assert!(logs.changed.len() <= CHANGED_MAX + 1, "and no more are kept");
    }
}
