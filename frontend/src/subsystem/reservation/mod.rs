//! Reservations (Base 2.1, 7.5 to 7.8 and 8.1.22): who of a namespace's hosts may do what, the same by whichever
//! controller and transport they come.
//!
//! One [`Reservations`] belongs to each namespace. Commands that change it are executed one after the other, wherever
//! the last one ended: the new state is stored first where PTPL asks for it, then sent to all shards. A command
//! completes when every shard has it, and for Preempt and Abort when the commands of the preempted hosts have ended.
//! Shards check I/O against the [`Fence`] that they were sent last.

mod fence;
mod host_id;
mod kept;
mod report;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nvme_proto::Status;
use nvme_proto::identify::Rescap;

use super::{Kept, Local, Persist, Stored, Subsystem};
use state::{Effects, State};

pub(crate) use fence::Fence;
pub(crate) use host_id::Identity;
pub(crate) use state::Command;

pub use host_id::HostId;

/// What is asked of a namespace's reservations.
pub(crate) enum Ask {
    /// A command of a host.
    Command(HostId, Command),
    /// Feature 83h.
    Ptpl(bool),
}

/// Takes the status that a command completes with, without DNR.
pub(crate) type Answer = Box<dyn FnOnce(Status) + Send>;

struct Inner {
    state: State,
    /// Counts the fences, so that no shard goes back to an older one.
    version: u64,
    fence: Option<Arc<Fence>>,
    /// Somebody executes; who comes meanwhile waits.
    busy: bool,
    waiting: VecDeque<(Ask, Answer)>,
}

/// The registrants of a namespace and its reservation.
pub(crate) struct Reservations {
    nsid: u32,
    subsystem: Weak<Subsystem>,
    persist: Option<Arc<dyn Persist>>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Reservations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservations({})", self.nsid)
    }
}

/// Answers a command when the last shard, and the last command that it aborts, lets go.
pub(crate) struct Hold(Mutex<Option<Answer>>);

impl Hold {
    pub fn new(answer: Answer) -> Self {
        Hold(Mutex::new(Some(answer)))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(answer) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            answer(Status::SUCCESS);
        }
    }
}

impl Reservations {
    /// Those of a new namespace, with what `persist` has kept of them.
    ///
    /// # Errors
    /// That cannot be read, in words for a person.
    pub fn open(
        nsid: u32,
        subsystem: &Arc<Subsystem>,
        persist: Option<Arc<dyn Persist>>,
    ) -> Result<Arc<Self>, String> {
        let kept = persist.as_ref().map_or(Ok(None), |persist| persist.load(Kept::Reservations))?;
        let state = match kept {
            Some(bytes) => kept::decode(&bytes).ok_or("what is kept of its reservations is damaged")?,
            None => State::default(),
        };
        let fence = Fence::of(&state).map(Arc::new);
        let inner = Inner { state, version: 0, fence, busy: false, waiting: VecDeque::new() };
        let subsystem = Arc::downgrade(subsystem);
        Ok(Arc::new(Reservations { nsid, subsystem, persist, inner: Mutex::new(inner) }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps what hosts set of the namespace.
    pub fn persist(&self) -> Option<&Arc<dyn Persist>> {
        self.persist.as_ref()
    }

    /// RESCAP.
    pub fn rescap(&self) -> Rescap {
        Rescap::new()
            .with_ptpls(self.persist.is_some())
            .with_wes(true)
            .with_eas(true)
            .with_weros(true)
            .with_earos(true)
            .with_wears(true)
            .with_eaars(true)
            .with_iekr(true)
    }

    /// Whether PTPL is set.
    pub fn ptpl(&self) -> bool {
        self.inner().state.ptpl
    }

    /// What shards check I/O against now, and its number.
    pub fn fence(&self) -> (u64, Option<Arc<Fence>>) {
        let inner = self.inner();
        (inner.version, inner.fence.clone())
    }

    /// The data of a Reservation Report that `host` asks for.
    ///
    /// # Errors
    /// The status that it completes with, without DNR.
    pub fn report(&self, host: HostId, extended: bool) -> Result<Vec<u8>, Status> {
        let mut statics = BTreeMap::new();
        if let Some(subsystem) = self.subsystem.upgrade() {
            for controller in subsystem.controllers().iter().filter(|c| subsystem.is_static(c)) {
                if let Some(host) = controller.host_id() {
                    statics.entry(host).or_insert(controller.cntlid());
                }
            }
        }
        report::report(&self.inner().state, host, extended, &statics)
    }

    /// Executes a command; `answer` is called once, from any thread, perhaps inside this call.
    pub fn ask(self: &Arc<Self>, ask: Ask, answer: Answer) {
        {
            let mut inner = self.inner();
            inner.waiting.push_back((ask, answer));
            if std::mem::replace(&mut inner.busy, true) {
                return;
            }
        }
        self.run();
    }

    /// Executes what waits, until one waits to be stored.
    fn run(self: &Arc<Self>) {
        loop {
            let (ask, answer) = {
                let mut inner = self.inner();
                match inner.waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        inner.busy = false;
                        return;
                    }
                }
            };
            if !self.execute(&ask, answer) {
                return;
            }
        }
    }

    /// Whether the next one may go on; if not, [`Reservations::run`] is called later.
    fn execute(self: &Arc<Self>, ask: &Ask, answer: Answer) -> bool {
        let before = self.inner().state.clone();
        let applied = match ask {
            Ask::Command(host, command) => before.apply(*host, command, self.persist.is_some()),
            Ask::Ptpl(true) if self.persist.is_none() => Err(Status::INVALID_FIELD),
            Ask::Ptpl(ptpl) => Ok((State { ptpl: *ptpl, ..before.clone() }, Effects::default())),
        };
        let (next, effects) = match applied {
            Ok(applied) => applied,
            Err(status) => {
                answer(status);
                return true;
            }
        };
        let stores = next != before && (next.ptpl || before.ptpl);
        let Some(persist) = self.persist.as_ref().filter(|_| stores) else {
            self.commit(next, effects, answer);
            return true;
        };
        let (me, kept) = (self.clone(), next.ptpl.then(|| kept::encode(&next)));
        let stored = Stored::new(move |durable| {
            match durable {
                true => me.commit(next, effects, answer),
                false => answer(Status::INTERNAL_ERROR),
            }
            me.run();
        });
        persist.store(Kept::Reservations, kept, stored);
        false
    }

    /// Makes a state the namespace's, and tells all shards.
    fn commit(self: &Arc<Self>, next: State, effects: Effects, answer: Answer) {
        let (version, fence) = {
            let mut inner = self.inner();
            inner.state = next;
            inner.version = inner.version.wrapping_add(1);
            inner.fence = Fence::of(&inner.state).map(Arc::new);
            (inner.version, inner.fence.clone())
        };
        let Some(subsystem) = self.subsystem.upgrade() else { return answer(Status::INTERNAL_ERROR) };
        if !effects.notices.is_empty() {
            for controller in subsystem.controllers() {
                let host = controller.host_id();
                for (_, notice) in effects.notices.iter().filter(|(told, _)| Some(*told) == host) {
                    controller.reservation_notice(self.nsid, *notice);
                }
            }
        }
        let hold = Arc::new(Hold::new(answer));
        let (key, abort) = (subsystem.key(), Arc::new(effects.abort));
        for shard in &subsystem.shards {
            let (me, fence, abort, hold) = (self.clone(), fence.clone(), abort.clone(), hold.clone());
            shard.run(move |shard| {
                if let Some(local) = shard.local::<Local>(key) {
                    local.reserved(me.nsid, &me, (version, fence), &abort, &hold);
                }
            });
        }
    }
}
