//! Set Features and Get Features (Base 2.1, 5.1.25 and 5.1.11; NVM Command Set 1.1, 4.1.3). What a host sets has an
//! effect, or is refused.

mod protection;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use nvme_proto::aen::AsyncEventConfiguration;
use nvme_proto::feature::{
    ErrorRecovery, FeatureCapabilities, FeatureId, FeatureSelect, GetFeaturesCdw10, HostBehavior,
    HostIdentifier, InterruptCoalescing, InterruptVectorConfiguration, NumberOfQueues, PowerManagement,
    SetFeaturesCdw10, TemperatureThreshold, Timestamp, VolatileWriteCache,
};
use nvme_proto::identify::NSID_ALL;
use nvme_proto::log::CriticalWarning;
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::Controller;
use super::log::TEMPERATURE;
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};
use crate::subsystem::HostId;

pub(super) use protection::Protecting;

/// ORIGIN of a timestamp that the host set.
const SET_BY_HOST: u8 = 1;
/// Temperature thresholds after reset: over, WCTEMP; under, none.
const OVER: u16 = 343;
/// KATO before a host sets it, in milliseconds, where the transport demands the timer (Base 2.1, 5.1.25.1.8).
const FABRICS_KATO: u32 = 120_000;
/// Bits of Arbitration that are reserved.
const ARBITRATION_RESERVED: u32 = 0xf8;

/// What the host has set.
#[derive(Debug)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    /// Over and under thresholds of the composite temperature, in kelvins.
    temperature: [u16; 2],
    /// By NSID.
    error_recovery: BTreeMap<u32, u32>,
    coalescing: u32,
    /// Vectors that are not coalesced (CD); the admin queue's never is.
    prompt: BTreeSet<u16>,
    write_atomicity: u32,
    /// When these were as they began, on this shard's clock in nanoseconds.
    since: u64,
    /// The host's clock when it was set, in milliseconds, and this shard's at that moment in nanoseconds.
    timestamp: Option<(u64, u64)>,
    behavior: HostBehavior,
    host_id: [u8; 16],
}

impl Features {
    pub(super) fn new(host_id: Option<[u8; 16]>, now: u64) -> Self {
        Features {
            arbitration: 0,
            power: 0,
            temperature: [OVER, 0],
            error_recovery: BTreeMap::new(),
            coalescing: 0,
            prompt: BTreeSet::from([0]),
            write_atomicity: 0,
            since: now,
            timestamp: None,
            behavior: HostBehavior::new_zeroed(),
            host_id: host_id.unwrap_or_default(),
        }
    }
}

/// Features of discovery controllers.
fn of_discovery(fid: FeatureId) -> bool {
    matches!(fid, FeatureId::AsyncEventConfiguration | FeatureId::KeepAliveTimer | FeatureId::HostIdentifier)
}

/// Whether the value comes in a buffer.
fn data_len(fid: FeatureId, cdw11: u32) -> usize {
    match fid {
        FeatureId::Timestamp => size_of::<Timestamp>(),
        FeatureId::HostBehavior => size_of::<HostBehavior>(),
        FeatureId::HostIdentifier if HostIdentifier::from_bits(cdw11).exhid() => 16,
        FeatureId::HostIdentifier => 8,
        _ => 0,
    }
}

impl Controller {
    /// After a reset nothing is as the host set it.
    pub(super) fn forget_features(self: &Rc<Self>) {
        let now = self.local.shard().now();
        self.features.replace(Features::new(self.shared.host().map(|h| h.id), now));
        if !self.config.fabrics {
            self.shared.set_host_id(None);
            self.set_kato(self.config.kato);
        }
        self.forget_notices();
        self.shared.set_io_queues(self.config.max_io_queues, self.config.max_io_queues);
        self.heed_delays(false);
    }

    /// Whether a feature is one of this controller's.
    pub(super) fn has_feature(&self, fid: FeatureId) -> bool {
        if self.config.discovery {
            return of_discovery(fid);
        }
        let pcie = !self.config.fabrics;
        match fid {
            FeatureId::Arbitration
            | FeatureId::PowerManagement
            | FeatureId::TemperatureThreshold
            | FeatureId::ErrorRecovery
            | FeatureId::NumberOfQueues
            | FeatureId::WriteAtomicity
            | FeatureId::AsyncEventConfiguration
            | FeatureId::KeepAliveTimer
            | FeatureId::Timestamp
            | FeatureId::HostBehavior
            | FeatureId::HostIdentifier
            | FeatureId::NamespaceWriteProtection
            | FeatureId::ReservationNotificationMask
            | FeatureId::ReservationPersistence
            | FeatureId::VolatileWriteCache => true,
            FeatureId::InterruptCoalescing | FeatureId::InterruptVectorConfiguration => pcie,
            _ => false,
        }
    }

    /// WCE: a medium behind it has a cache at the moment.
    fn has_cache(&self) -> bool {
        self.local.namespaces().iter().any(|n| n.limits.volatile_cache)
    }

    /// Set Features.
    pub(super) fn set_features(
        self: &Rc<Self>,
        queue: Rc<dyn AdminQueue>,
        ticket: Ticket,
        sqe: &Sqe,
    ) -> Result<Outcome, Status> {
        let cdw10 = SetFeaturesCdw10::from_bits(sqe.cdw10);
        let fid = cdw10.fid();
        if !self.has_feature(fid) {
            return Err(Status::INVALID_FIELD);
        }
        if cdw10.sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        if is_of_namespaces(fid) {
            if sqe.nsid != NSID_ALL {
                self.attached(sqe.nsid)?;
            }
        } else if sqe.nsid != 0 && sqe.nsid != NSID_ALL {
            self.known(sqe.nsid)?;
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
        }
        if is_fixed(fid) {
            return Err(Status::FEATURE_NOT_CHANGEABLE);
        }
        let len = data_len(fid, sqe.cdw11);
        if len > 0 {
            // On fabrics the host identifier came with Connect.
            let fixed = fid == FeatureId::HostIdentifier && self.config.fabrics;
            return if fixed { Err(Status::COMMAND_SEQUENCE_ERROR) } else { Ok(Outcome::FromHost(len)) };
        }
        if fid == FeatureId::NamespaceWriteProtection {
            return self.set_protection(queue, ticket, sqe);
        }
        self.set_value(fid, sqe.nsid, sqe.cdw11).map(|dw0| Reply::value(dw0).into())
    }

    /// The namespace that a command on a namespace's feature names.
    fn attached(&self, nsid: u32) -> Result<(), Status> {
        self.known(nsid)?.map(|_| ()).ok_or(Status::INVALID_FIELD)
    }

    fn set_value(self: &Rc<Self>, fid: FeatureId, nsid: u32, value: u32) -> Result<u32, Status> {
        let mut features = self.features.borrow_mut();
        match fid {
            FeatureId::Arbitration => features.arbitration = value & !ARBITRATION_RESERVED,
            FeatureId::PowerManagement if PowerManagement::from_bits(value).ps() != 0 => {
                return Err(Status::INVALID_FIELD);
            }
            // There is one power state; the workload hint is remembered.
            FeatureId::PowerManagement => features.power = value & 0xff,
            FeatureId::TemperatureThreshold => {
                let t = TemperatureThreshold::from_bits(value);
                // The composite temperature, or all; there are no sensors.
                if !matches!(t.tmpsel(), 0 | 0xf) {
                    return Err(Status::INVALID_FIELD);
                }
                let which = features.temperature.get_mut(usize::from(t.thsel()));
                *which.ok_or(Status::INVALID_FIELD)? = t.tmpth();
                drop(features);
                self.check_temperature();
            }
            FeatureId::ErrorRecovery => {
                // No namespace reports deallocated blocks (NSFEAT.DAE). TLER bounds retries, and none are made here.
                if ErrorRecovery::from_bits(value).dulbe() {
                    return Err(Status::INVALID_FIELD);
                }
                let value = u32::from(ErrorRecovery::from_bits(value).tler());
                let all = self.local.namespaces();
                for attachment in all.iter().filter(|a| nsid == NSID_ALL || a.namespace.nsid == nsid) {
                    features.error_recovery.insert(attachment.namespace.nsid, value);
                }
            }
            FeatureId::NumberOfQueues => {
                drop(features);
                return self.set_queues(NumberOfQueues::from_bits(value));
            }
            FeatureId::InterruptCoalescing => {
                features.coalescing = value & 0xffff;
                drop(features);
                self.port.set_coalescing(InterruptCoalescing::from_bits(value));
            }
            FeatureId::InterruptVectorConfiguration => {
                let set = InterruptVectorConfiguration::from_bits(value);
                if set.iv() >= self.port.vectors() {
                    return Err(Status::INVALID_FIELD);
                }
                match set.cd() {
                    true => features.prompt.insert(set.iv()),
                    false => features.prompt.remove(&set.iv()),
                };
                drop(features);
                self.port.set_prompt(set.iv(), set.cd());
            }
            FeatureId::WriteAtomicity => features.write_atomicity = value & 1,
            FeatureId::AsyncEventConfiguration => {
                let value = value & self.events_that_come().into_bits();
                self.events.borrow_mut().configuration = AsyncEventConfiguration::from_bits(value);
                drop(features);
                self.check_temperature();
            }
            FeatureId::KeepAliveTimer => {
                drop(features);
                self.set_kato(value);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// The events that a host may ask for: what OAES and SMART / Health have.
    fn events_that_come(&self) -> AsyncEventConfiguration {
        match self.config.discovery {
            true => AsyncEventConfiguration::new().with_dlpcn(true),
            false => {
                let warnings = CriticalWarning::from_bits(0x3f);
                AsyncEventConfiguration::new().with_shcw(warnings).with_nan(true).with_anacn(true)
            }
        }
    }

    /// Number of Queues: what is asked for, and no more than there are. On fabrics a queue is a pair.
    fn set_queues(&self, asked: NumberOfQueues) -> Result<u32, Status> {
        if asked.nsq_z() == u16::MAX || asked.ncq_z() == u16::MAX {
            return Err(Status::INVALID_FIELD);
        }
        if self.shared.queue_count() > 1 || self.port.has_completion_queues() {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        let pairs_z = asked.nsq_z().min(asked.ncq_z());
        let [nsq_z, ncq_z] = [asked.nsq_z(), asked.ncq_z()].map(|asked_z| {
            let granted_z = if self.config.fabrics { pairs_z } else { asked_z };
            granted_z.min(self.config.max_io_queues.saturating_sub(1))
        });
        self.shared.set_io_queues(nsq_z.saturating_add(1), ncq_z.saturating_add(1));
        Ok(NumberOfQueues::new().with_nsq_z(nsq_z).with_ncq_z(ncq_z).into_bits())
    }

    /// Set Features whose value came in a buffer.
    pub(super) fn set_features_data(self: &Rc<Self>, sqe: &Sqe, data: &[u8]) -> Result<(), Status> {
        let mut features = self.features.borrow_mut();
        match SetFeaturesCdw10::from_bits(sqe.cdw10).fid() {
            FeatureId::Timestamp => {
                let set = Timestamp::read_from_bytes(data).map_err(|_| Status::INVALID_FIELD)?;
                features.timestamp = Some((set.milliseconds(), self.local.shard().now()));
            }
            FeatureId::HostBehavior => {
                let set = HostBehavior::read_from_bytes(data).map_err(|_| Status::INVALID_FIELD)?;
                // Of these only ACRE means anything here; of telemetry and dispersed namespaces there are none, whatever
                // the host knows of them.
                let known = [set.acre, set.etdas, set.hdisns].iter().all(|known| *known <= 1);
                if !known || set.lbafee != 0 || set.cdfe != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                self.heed_delays(set.acre == 1);
                features.behavior = set;
            }
            FeatureId::HostIdentifier => {
                let mut id = [0; 16];
                id.get_mut(..data.len()).ok_or(Status::INVALID_FIELD)?.copy_from_slice(data);
                features.host_id = id;
                self.shared.set_host_id(HostId::new(id, data.len() == id.len()));
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(())
    }

    /// Get Features.
    pub(super) fn get_features(&self, sqe: &Sqe) -> Result<Outcome, Status> {
        let cdw10 = GetFeaturesCdw10::from_bits(sqe.cdw10);
        let fid = cdw10.fid();
        if !self.has_feature(fid) {
            return Err(Status::INVALID_FIELD);
        }
        if is_of_namespaces(fid) && cdw10.sel() != FeatureSelect::SupportedCapabilities {
            self.attached(sqe.nsid)?;
        }
        let default = match cdw10.sel() {
            FeatureSelect::Current => false,
            // Nothing is saved: what would be restored are the defaults.
            FeatureSelect::Default | FeatureSelect::Saved => true,
            FeatureSelect::SupportedCapabilities => {
                return Ok(Reply::value(self.capabilities(fid).into_bits()).into());
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        let current = self.features.borrow();
        let fresh = Features::new(self.shared.host().map(|h| h.id), current.since);
        let features = if default { &fresh } else { &*current };
        let value = match fid {
            FeatureId::Arbitration => features.arbitration,
            FeatureId::TemperatureThreshold => {
                let asked = TemperatureThreshold::from_bits(sqe.cdw11);
                let which = features.temperature.get(usize::from(asked.thsel()));
                u32::from(*which.filter(|_| asked.tmpsel() == 0).ok_or(Status::INVALID_FIELD)?)
            }
            FeatureId::PowerManagement => features.power,
            FeatureId::ErrorRecovery => features.error_recovery.get(&sqe.nsid).copied().unwrap_or(0),
            FeatureId::NamespaceWriteProtection if default => 0,
            FeatureId::NamespaceWriteProtection => self.protection(sqe.nsid),
            FeatureId::InterruptCoalescing => features.coalescing,
            FeatureId::VolatileWriteCache => VolatileWriteCache::new().with_wce(self.has_cache()).into_bits(),
            FeatureId::NumberOfQueues => {
                let most = self.config.max_io_queues;
                let (sqs, cqs) = match default {
                    true => (most, most),
                    false => (self.shared.io_queues(), self.shared.completion_queues()),
                };
                let (nsq_z, ncq_z) = (sqs.saturating_sub(1), cqs.saturating_sub(1));
                NumberOfQueues::new().with_nsq_z(nsq_z).with_ncq_z(ncq_z).into_bits()
            }
            FeatureId::InterruptVectorConfiguration => {
                let iv = InterruptVectorConfiguration::from_bits(sqe.cdw11).iv();
                if iv >= self.port.vectors() {
                    return Err(Status::INVALID_FIELD);
                }
                let cd = features.prompt.contains(&iv);
                InterruptVectorConfiguration::new().with_iv(iv).with_cd(cd).into_bits()
            }
            FeatureId::WriteAtomicity => features.write_atomicity,
            FeatureId::AsyncEventConfiguration if default => 0,
            FeatureId::AsyncEventConfiguration => self.events.borrow().configuration.into_bits(),
            FeatureId::KeepAliveTimer if default && self.config.fabrics => FABRICS_KATO,
            FeatureId::KeepAliveTimer if default => self.config.kato,
            FeatureId::KeepAliveTimer => self.kato(),
            FeatureId::Timestamp => return Ok(Outcome::ToHost(self.timestamp(features).as_bytes().to_vec())),
            FeatureId::HostBehavior => return Ok(Outcome::ToHost(features.behavior.as_bytes().to_vec())),
            FeatureId::HostIdentifier => {
                let len = data_len(fid, sqe.cdw11);
                if self.config.fabrics && len != 16 {
                    return Err(Status::INVALID_FIELD);
                }
                return Ok(Outcome::ToHost(features.host_id[..len].to_vec()));
            }
            _ => 0,
        };
        Ok(Reply::value(value).into())
    }

    fn capabilities(&self, fid: FeatureId) -> FeatureCapabilities {
        let given = fid == FeatureId::HostIdentifier && self.config.fabrics;
        FeatureCapabilities::new()
            .with_changeable(!is_fixed(fid) && !given)
            .with_namespace_specific(is_of_namespaces(fid))
    }

    /// Whether the temperature, which never changes, is outside the thresholds that the host has set.
    pub(super) fn is_outside_thresholds(&self) -> bool {
        let [over, under] = self.features.borrow().temperature;
        TEMPERATURE >= over || TEMPERATURE <= under
    }

    fn check_temperature(self: &Rc<Self>) {
        if self.is_outside_thresholds() {
            self.temperature_event();
        }
    }

    /// The time since the last reset, or the host's since it has set it.
    fn timestamp(&self, features: &Features) -> Timestamp {
        let since = |at| self.local.shard().now().saturating_sub(at) / 1_000_000;
        let (milliseconds, origin) = match features.timestamp {
            Some((set, at)) => (set.saturating_add(since(at)), SET_BY_HOST),
            None => (since(features.since), 0),
        };
        Timestamp::new().with_milliseconds(milliseconds & 0xffff_ffff_ffff).with_origin(origin)
    }
}

/// Features whose value is per namespace; the others are the controller's.
pub(super) fn is_of_namespaces(fid: FeatureId) -> bool {
    use FeatureId as F;
    matches!(
        fid,
        F::ErrorRecovery
            | F::NamespaceWriteProtection
            | F::ReservationNotificationMask
            | F::ReservationPersistence
    )
}

/// The cache is the medium's own, and always on.
fn is_fixed(fid: FeatureId) -> bool {
    fid == FeatureId::VolatileWriteCache
}
