//! What the shards of a controller's queues share of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::{ShardHandle, VolumeStats};
use nvme_proto::{Nqn, Status};

use super::busy::Busy;
use super::errors::ErrorLog;
use super::{AbortAnswer, Controller, Way};
use crate::subsystem::{HostId, Identity, Subsystem, Viewer};
use nvme_proto::log::ReservationNotificationType;

/// Who is at the other end of a fabrics controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// HOSTNQN.
    pub nqn: Nqn,
    /// HOSTID.
    pub id: [u8; 16],
}

/// How a controller reaches one of its queues, on whichever shard it is.
pub trait QueueLink: Send {
    /// Takes everything back and ends the queue; its [`QueueToken`] is dropped when the last command has ended.
    fn close(&self);

    /// Takes one command back, if it is there and can be, and answers.
    fn abort(&self, cid: u16, answer: AbortAnswer);

    /// Gives commands back that have been with a volume for so long, and the volume is out of reach.
    fn give_back(&self, patience: Duration);

    /// Looks whether its peer is gone; `done` is dropped when that is known.
    fn probe(&self, done: Arc<()>);
}

/// Why a queue cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The controller is not enabled, or is being reset or shut down.
    NotEnabled,
    /// QID is beyond what was negotiated.
    QidRange,
    /// The controller has a queue with that QID.
    QidInUse,
}

#[derive(Default)]
struct Queues {
    /// Whether I/O queues are taken.
    enabled: bool,
    links: BTreeMap<u16, Box<dyn QueueLink>>,
    /// Those of them that take their commands back.
    closing: BTreeSet<u16>,
    /// Somebody waits for all queues to end; `Some(true)`: the admin queue too.
    waiting: Option<bool>,
}

/// The part of a controller that any thread may use.
pub struct Shared {
    cntlid: u16,
    subsystem: Arc<Subsystem>,
    host: Option<Host>,
    /// Whom reservations know the host as.
    identity: Identity,
    home: ShardHandle,
    /// I/O submission and completion queues that the host may have.
    io_queues: AtomicU16,
    completion_queues: AtomicU16,
    /// A command came since the keep-alive timer looked.
    traffic: AtomicBool,
    ending: AtomicBool,
    /// Host Behavior Support: ACRE.
    retry_delay: AtomicBool,
    /// Its namespaces are inaccessible.
    inaccessible: AtomicBool,
    way: Arc<Way>,
    errors: ErrorLog,
    busy: Busy,
    stats: Arc<VolumeStats>,
    queues: Mutex<Queues>,
}

impl Shared {
    pub(super) fn new(
        cntlid: u16,
        subsystem: Arc<Subsystem>,
        host: Option<Host>,
        home: ShardHandle,
        io_queues: u16,
        stats: Arc<VolumeStats>,
        way: Arc<Way>,
    ) -> Self {
        let identity = Identity::default();
        identity.set(host.and_then(|host| HostId::new(host.id, true)));
        Shared {
            cntlid,
            subsystem,
            host,
            identity,
            home,
            io_queues: AtomicU16::new(io_queues),
            completion_queues: AtomicU16::new(io_queues),
            traffic: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            retry_delay: AtomicBool::new(false),
            inaccessible: AtomicBool::new(false),
            way,
            errors: ErrorLog::default(),
            busy: Busy::default(),
            stats,
            queues: Mutex::default(),
        }
    }

    /// CNTLID.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// The subsystem that it belongs to.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }

    /// The host, on fabrics.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Its Host Identifier, unless that is zero.
    pub(crate) fn host_id(&self) -> Option<HostId> {
        self.identity.get()
    }

    /// The host has set its Host Identifier; on fabrics it came with Connect.
    pub(super) fn set_host_id(&self, host: Option<HostId>) {
        self.identity.set(host);
    }

    /// Something happened to a reservation that the host is to hear of.
    pub(crate) fn reservation_notice(self: &Arc<Self>, nsid: u32, notice: ReservationNotificationType) {
        self.at_home(move |controller| controller.reservation_notice(nsid, notice));
    }

    /// Whose view of the subsystem it has.
    pub fn viewer(&self) -> Viewer {
        self.host.map_or(Viewer::Controller(self.cntlid), |host| Viewer::Host(host.nqn))
    }

    /// What its hosts asked of its namespaces.
    pub fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    /// `status` as its host heeds it: one that may pass tells when (CRD), if the host knows of that (ACRE). One that does
    /// not know of that is not told Command Interrupted (Base 2.1, 5.1.25.1.14).
    pub(crate) fn timed(&self, status: Status) -> Status {
        let heeds = self.retry_delay.load(Ordering::Relaxed);
        match status.code() {
            Status::COMMAND_INTERRUPTED if heeds => status.with_crd(1),
            Status::COMMAND_INTERRUPTED => Status::NAMESPACE_NOT_READY,
            Status::NAMESPACE_NOT_READY if heeds => status.with_crd(2),
            _ => status,
        }
    }

    pub(super) fn set_retry_delay(&self, on: bool) {
        self.retry_delay.store(on, Ordering::Relaxed);
    }

    /// The way by which it is.
    pub fn way(&self) -> &Arc<Way> {
        &self.way
    }

    /// Whether commands on its namespaces are refused.
    #[inline]
    pub(crate) fn is_inaccessible(&self) -> bool {
        self.inaccessible.load(Ordering::Relaxed)
    }

    pub(super) fn set_inaccessible(&self, is: bool) {
        self.inaccessible.store(is, Ordering::Relaxed);
    }

    /// Commands that failed.
    pub(crate) fn errors(&self) -> &ErrorLog {
        &self.errors
    }

    /// How long it had commands on its I/O queues.
    pub(crate) fn busy(&self) -> &Busy {
        &self.busy
    }

    /// How long it had commands on its I/O queues until `now`, on its shards' clock.
    pub fn busy_time(&self, now: u64) -> Duration {
        self.busy.time(now)
    }

    /// The shard of its admin queue.
    pub fn home(&self) -> &ShardHandle {
        &self.home
    }

    /// I/O submission queues that the host may have.
    pub fn io_queues(&self) -> u16 {
        self.io_queues.load(Ordering::Relaxed)
    }

    /// I/O completion queues that the host may have: submission queues may share them over PCIe.
    pub fn completion_queues(&self) -> u16 {
        self.completion_queues.load(Ordering::Relaxed)
    }

    pub(super) fn set_io_queues(&self, submission: u16, completion: u16) {
        self.io_queues.store(submission, Ordering::Relaxed);
        self.completion_queues.store(completion, Ordering::Relaxed);
    }

    /// Queues at the moment, with the admin queue.
    pub fn queue_count(&self) -> usize {
        self.queues().links.len()
    }

    /// Notes that the host is alive.
    pub fn saw_traffic(&self) {
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_traffic(&self) -> bool {
        self.traffic.swap(false, Ordering::Relaxed)
    }

    /// Whether the controller is on its way out: its commands are being taken back.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// A queue takes its commands back.
    pub(crate) fn queue_closes(&self, qid: u16) {
        self.queues().closing.insert(qid);
    }

    /// Whether commands are being taken back that may still land: of the controller, or of one of its queues.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_ending() || !self.queues().closing.is_empty()
    }

    pub(super) fn set_ending(&self) {
        self.ending.store(true, Ordering::Release);
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which its home keeps the [`Controller`]: an address that is its own while it lives.
    pub(super) fn key(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    /// Adds a queue: the one place behind Create I/O Submission Queue and Connect. The queue keeps the token until its
    /// last command has ended.
    ///
    /// # Errors
    /// [`AttachError`]
    pub fn attach(self: &Arc<Self>, qid: u16, link: Box<dyn QueueLink>) -> Result<QueueToken, AttachError> {
        let mut queues = self.queues();
        if qid > self.io_queues() {
            return Err(AttachError::QidRange);
        }
        if qid != 0 && !queues.enabled || queues.waiting == Some(true) {
            return Err(AttachError::NotEnabled);
        }
        if queues.links.contains_key(&qid) {
            return Err(AttachError::QidInUse);
        }
        queues.links.insert(qid, link);
        Ok(QueueToken { shared: self.clone(), qid })
    }

    pub(super) fn enable(&self) {
        self.queues().enabled = true;
    }

    /// Takes no more I/O queues, and ends those that are there (the admin queue too if `all`). The controller is told
    /// by [`Controller::drained`] when none is left; the answer is whether that is so now.
    pub(super) fn close_queues(&self, all: bool) -> bool {
        let mut queues = self.queues();
        queues.enabled = false;
        for (_, link) in queues.links.iter().filter(|(qid, _)| all || **qid != 0) {
            link.close();
        }
        if queues.is_drained(all) {
            return true;
        }
        queues.waiting = Some(all || queues.waiting == Some(true));
        false
    }

    /// Whether no queue is left (the admin queue may be, unless `all`).
    pub(super) fn is_drained(&self, all: bool) -> bool {
        self.queues().is_drained(all)
    }

    /// Asks a queue to take a command back.
    pub(super) fn abort(&self, sqid: u16, cid: u16, answer: AbortAnswer) {
        if let Some(link) = self.queues().links.get(&sqid) {
            link.abort(cid, answer);
        }
    }

    /// Has all queues give commands back that have been with a volume for so long, and the volume is out of reach.
    pub(super) fn give_back(&self, patience: Duration) {
        for link in self.queues().links.values() {
            link.give_back(patience);
        }
    }

    /// Has all queues look whether their peer is gone; `done` is dropped when that is known.
    pub(crate) fn probe(&self, done: &Arc<()>) {
        for link in self.queues().links.values() {
            link.probe(done.clone());
        }
    }

    fn detached(self: &Arc<Self>, qid: u16) {
        let drained = {
            let mut queues = self.queues();
            queues.links.remove(&qid);
            queues.closing.remove(&qid);
            let drained = queues.waiting.is_some_and(|all| queues.is_drained(all));
            if drained {
                queues.waiting = None;
            }
            drained
        };
        if drained {
            self.at_home(Controller::drained);
        }
    }

    /// Runs `f` with the controller on its home shard, if it is still there.
    pub(crate) fn at_home(self: &Arc<Self>, f: impl FnOnce(&std::rc::Rc<Controller>) + Send + 'static) {
        let me = self.clone();
        self.home.run(move |shard| {
            if let Some(controller) = shard.local::<Controller>(me.key()) {
                f(&controller);
            }
        });
    }

    pub(crate) fn namespace_changed(self: &Arc<Self>, nsid: u32) {
        self.at_home(move |controller| controller.namespace_changed(nsid));
    }

    /// The discovery log is another now.
    pub(crate) fn discovery_changed(self: &Arc<Self>) {
        self.at_home(Controller::discovery_changed);
    }

    /// Resets the controller with its subsystem.
    pub(crate) fn subsystem_reset(self: &Arc<Self>) {
        self.at_home(Controller::subsystem_reset);
    }

    /// Ends the controller and its connections.
    pub fn terminate(self: &Arc<Self>) {
        self.at_home(Controller::terminate);
    }
}

impl Queues {
    fn is_drained(&self, all: bool) -> bool {
        self.links.keys().all(|qid| *qid == 0 && !all)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Controller({} {})", self.subsystem.nqn(), self.cntlid)
    }
}

/// A queue's place in its controller; dropped when the queue's last command has ended.
#[derive(Debug)]
pub struct QueueToken {
    shared: Arc<Shared>,
    qid: u16,
}

impl QueueToken {
    /// The controller.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for QueueToken {
    fn drop(&mut self) {
        self.shared.detached(self.qid);
    }
}
