//! The rules: what each command makes of a namespace's registrants and of its reservation (Base 2.1, 8.1.22).

use nvme_proto::Status;
use nvme_proto::log::ReservationNotificationType as Notice;
use nvme_proto::reservation::{
    AcquireAction, AcquireCdw10, AcquireData, ChangePtpl, RegisterAction, RegisterCdw10, RegisterData,
    ReleaseAction, ReleaseCdw10, ReleaseData, ReservationType,
};

use super::HostId;

/// Hosts that may be registered with one namespace.
pub const MAX_REGISTRANTS: usize = 128;

/// A host that is registered, with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    pub host: HostId,
    pub key: u64,
}

/// What is known of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// GEN.
    pub generation: u32,
    /// PTPL: whether all this outlives the process.
    pub ptpl: bool,
    /// RTYPE; [`ReservationType::None`] without a reservation.
    pub rtype: ReservationType,
    /// Who holds it, unless every registrant does.
    pub holder: Option<HostId>,
    /// In the order in which they came; at most [`MAX_REGISTRANTS`], all with identifiers of one format.
    pub registrants: Vec<Registrant>,
}

impl Default for State {
    fn default() -> Self {
        State {
            generation: 0,
            ptpl: false,
            rtype: ReservationType::None,
            holder: None,
            registrants: Vec::new(),
        }
    }
}

/// A command that may change a namespace's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reservation Register.
    Register(RegisterCdw10, RegisterData),
    /// Reservation Acquire.
    Acquire(AcquireCdw10, AcquireData),
    /// Reservation Release.
    Release(ReleaseCdw10, ReleaseData),
}

/// What follows from a command, beyond the new state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Who is to be told what.
    pub notices: Vec<(HostId, Notice)>,
    /// Hosts whose commands are to be aborted before this one completes.
    pub abort: Vec<HostId>,
}

fn is_type(rtype: ReservationType) -> bool {
    (ReservationType::WriteExclusive.0..=ReservationType::ExclusiveAccessAllRegistrants.0).contains(&rtype.0)
}

/// Whether every registrant holds a reservation of this type.
pub fn is_for_all(rtype: ReservationType) -> bool {
    use ReservationType as T;
    matches!(rtype, T::WriteExclusiveAllRegistrants | T::ExclusiveAccessAllRegistrants)
}

/// Whether all registrants may do everything under a reservation of this type, and hear when it is released.
pub fn is_shared(rtype: ReservationType) -> bool {
    use ReservationType as T;
    is_for_all(rtype) || matches!(rtype, T::WriteExclusiveRegistrantsOnly | T::ExclusiveAccessRegistrantsOnly)
}

impl State {
    /// What the state is after `command` of `host`, and what follows; `persists`: whether PTPL can be set.
    ///
    /// # Errors
    /// The status that the command completes with, without DNR; then nothing is changed.
    pub fn apply(&self, host: HostId, command: &Command, persists: bool) -> Result<(State, Effects), Status> {
        let mut next = self.clone();
        let effects = match command {
            Command::Register(cdw10, data) => next.register(host, *cdw10, data, persists),
            Command::Acquire(cdw10, data) => next.acquire(host, *cdw10, data),
            Command::Release(cdw10, data) => next.release(host, *cdw10, data),
        }?;
        Ok((next, effects))
    }

    /// The key that a host has registered.
    fn key(&self, host: HostId) -> Option<u64> {
        self.registrants.iter().find(|r| r.host == host).map(|r| r.key)
    }

    /// Whether a host holds the reservation.
    pub fn holds(&self, host: HostId) -> bool {
        match is_for_all(self.rtype) {
            true => self.key(host).is_some(),
            false => self.holder == Some(host),
        }
    }

    fn authorize(&self, host: HostId, crkey: u64) -> Result<(), Status> {
        (self.key(host) == Some(crkey)).then_some(()).ok_or(Status::RESERVATION_CONFLICT)
    }

    /// Everyone who is registered but `host`, and is told of `notice`.
    fn others(&self, host: HostId, notice: Notice) -> impl Iterator<Item = (HostId, Notice)> {
        self.registrants.iter().map(|r| r.host).filter(move |other| *other != host).map(move |h| (h, notice))
    }

    fn add(&mut self, host: HostId, key: u64) -> Result<(), Status> {
        if self.registrants.first().is_some_and(|other| other.host.is_extended() != host.is_extended()) {
            return Err(Status::HOST_ID_INCONSISTENT_FORMAT);
        }
        if self.registrants.len() >= MAX_REGISTRANTS {
            return Err(Status::INTERNAL_ERROR);
        }
        self.registrants.push(Registrant { host, key });
        Ok(())
    }

    /// Forgets a registrant, and the reservation that goes with it. The type of that, if so.
    fn remove(&mut self, host: HostId) -> Option<ReservationType> {
        self.registrants.retain(|r| r.host != host);
        let last = is_for_all(self.rtype) && self.registrants.is_empty();
        (last || self.holder == Some(host)).then(|| self.vacate())
    }

    fn vacate(&mut self) -> ReservationType {
        self.holder = None;
        std::mem::replace(&mut self.rtype, ReservationType::None)
    }

    fn occupy(&mut self, host: HostId, rtype: ReservationType) {
        self.rtype = rtype;
        self.holder = (!is_for_all(rtype)).then_some(host);
    }

    fn step(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn register(
        &mut self,
        host: HostId,
        cdw10: RegisterCdw10,
        data: &RegisterData,
        persists: bool,
    ) -> Result<Effects, Status> {
        let ptpl = match cdw10.cptpl() {
            ChangePtpl::Keep => self.ptpl,
            ChangePtpl::Clear => false,
            ChangePtpl::Set if persists => true,
            _ => return Err(Status::INVALID_FIELD),
        };
        let (crkey, nrkey, registered) = (data.crkey, data.nrkey, self.key(host));
        let known = registered.is_some_and(|key| cdw10.iekey() || key == crkey);
        let mut effects = Effects::default();
        match cdw10.rrega() {
            RegisterAction::Register | RegisterAction::Replace if nrkey == 0 => {
                return Err(Status::INVALID_FIELD);
            }
            RegisterAction::Register if registered.is_none() => self.add(host, nrkey)?,
            RegisterAction::Register if registered == Some(nrkey) => {}
            RegisterAction::Replace if known => {
                if let Some(registrant) = self.registrants.iter_mut().find(|r| r.host == host) {
                    registrant.key = nrkey;
                }
            }
            // With IEKEY a host needs not to know whether it is registered.
            RegisterAction::Replace if registered.is_none() && cdw10.iekey() => self.add(host, nrkey)?,
            RegisterAction::Unregister if known => {
                if self.remove(host).is_some_and(is_shared) {
                    effects.notices.extend(self.others(host, Notice::ReservationReleased));
                }
            }
            RegisterAction::Register | RegisterAction::Replace | RegisterAction::Unregister => {
                return Err(Status::RESERVATION_CONFLICT);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        self.ptpl = ptpl;
        self.step();
        Ok(effects)
    }

    fn acquire(&mut self, host: HostId, cdw10: AcquireCdw10, data: &AcquireData) -> Result<Effects, Status> {
        let (action, rtype) = (cdw10.racqa(), cdw10.rtype());
        if cdw10.iekey() || !is_type(rtype) || action.0 > AcquireAction::PreemptAndAbort.0 {
            return Err(Status::INVALID_FIELD);
        }
        self.authorize(host, data.crkey)?;
        if action == AcquireAction::Acquire {
            return match self.rtype {
                ReservationType::None => {
                    self.occupy(host, rtype);
                    Ok(Effects::default())
                }
                held if held == rtype && self.holds(host) => Ok(Effects::default()),
                _ => Err(Status::RESERVATION_CONFLICT),
            };
        }
        let mut effects = self.preempt(host, rtype, data.prkey)?;
        self.step();
        if action == AcquireAction::Preempt {
            effects.abort.clear();
        }
        Ok(effects)
    }

    /// Takes the registrations with that key away, and the reservation if one of them held it.
    fn preempt(&mut self, host: HostId, rtype: ReservationType, prkey: u64) -> Result<Effects, Status> {
        let (before, for_all) = (self.rtype, is_for_all(self.rtype));
        if prkey == 0 && !for_all {
            return Err(Status::INVALID_FIELD);
        }
        let takes_over = match self.holder {
            Some(holder) => self.key(holder) == Some(prkey),
            None => for_all && prkey == 0,
        };
        // Who takes the reservation over stays registered; who only takes registrations away may hit itself.
        let hit =
            |r: &&Registrant| (r.key == prkey || for_all && prkey == 0) && !(takes_over && r.host == host);
        let preempted: Vec<HostId> = self.registrants.iter().filter(hit).map(|r| r.host).collect();
        if preempted.is_empty() && !takes_over {
            return Err(Status::RESERVATION_CONFLICT);
        }
        for gone in &preempted {
            self.remove(*gone);
        }
        let others = preempted.iter().filter(|gone| **gone != host);
        let mut notices: Vec<_> = others.map(|gone| (*gone, Notice::RegistrationPreempted)).collect();
        if takes_over {
            self.occupy(host, rtype);
            if before != rtype {
                notices.extend(self.others(host, Notice::ReservationReleased));
            }
        }
        Ok(Effects { notices, abort: preempted })
    }

    fn release(&mut self, host: HostId, cdw10: ReleaseCdw10, data: &ReleaseData) -> Result<Effects, Status> {
        if cdw10.iekey() || cdw10.rrela().0 > ReleaseAction::Clear.0 {
            return Err(Status::INVALID_FIELD);
        }
        self.authorize(host, data.crkey)?;
        let mut effects = Effects::default();
        if cdw10.rrela() == ReleaseAction::Clear {
            effects.notices.extend(self.others(host, Notice::ReservationPreempted));
            self.vacate();
            self.registrants.clear();
            self.step();
        } else if self.holds(host) {
            if cdw10.rtype() != self.rtype {
                return Err(Status::INVALID_FIELD);
            }
            if is_shared(self.vacate()) {
                effects.notices.extend(self.others(host, Notice::ReservationReleased));
            }
        }
        Ok(effects)
    }
}
