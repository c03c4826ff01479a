//! NVM subsystems: the control half, called from any thread.

mod controllers;
mod local;
mod persist;
mod protection;
mod range_lock;
mod reservation;
mod seen;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use engine::ShardHandle;
use nvme_proto::Nqn;

use crate::controller::Shared;
use crate::namespace::{Drain, Namespace, Protection};

use controllers::FIRST_DYNAMIC;
pub(crate) use local::Member;
pub(crate) use reservation::{Answer, Ask, Command, Fence, Hold, Identity, Reservations};

pub use local::Local;
pub use persist::{Kept, Persist, Stored};
use protection::Protecting;
pub(crate) use range_lock::RangeGuard;
use range_lock::RangeLocks;
pub use reservation::HostId;
pub(crate) use seen::Seen;
use seen::shows;
pub use seen::{Mask, Viewer};

/// The largest NSID that a subsystem may be configured for.
pub const MAX_NAMESPACES: u32 = 4096;

/// What a subsystem is.
#[derive(Clone, Debug)]
pub struct SubsystemConfig {
    /// SUBNQN.
    pub nqn: Nqn,
    /// SN: at most 20 ASCII characters.
    pub serial: String,
    /// MN: at most 40 ASCII characters.
    pub model: String,
    /// NN: NSIDs go from 1 to this; at most [`MAX_NAMESPACES`].
    pub max_namespaces: u32,
    /// Host NQNs that may connect over fabrics; empty for any.
    pub allowed_hosts: Vec<Nqn>,
}

/// What happened to the machine that a subsystem is in: starts of the process, and ends that it did not see coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// PWRC: power cycles, this one among them.
    pub cycles: u64,
    /// UPL: unexpected power losses.
    pub losses: u64,
}

impl Default for Power {
    fn default() -> Self {
        Power { cycles: 1, losses: 0 }
    }
}

/// Why the control plane's wish cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubsystemError {
    /// The NQN is not one.
    #[error("nqn is not a valid NVMe qualified name")]
    Nqn,
    /// More than 20 characters, or not printable ASCII.
    #[error("serial number must be at most 20 printable ASCII characters")]
    Serial,
    /// More than 40 characters, or not printable ASCII.
    #[error("model number must be at most 40 printable ASCII characters")]
    Model,
    /// Zero, or more than [`MAX_NAMESPACES`].
    #[error("max_namespaces must be 1 to {MAX_NAMESPACES}")]
    MaxNamespaces,
    /// Zero or above `max_namespaces`.
    #[error("nsid is outside 1 to max_namespaces")]
    NsidRange,
    /// Another namespace has it.
    #[error("nsid is in use")]
    NsidInUse,
    /// No namespace has it.
    #[error("no such namespace")]
    NoNamespace,
    /// The host is not, or no more, among those that may connect.
    #[error("the host may not connect")]
    Host,
    /// Another controller has it, or it is above FFEFh.
    #[error("the controller identifier is in use or out of range")]
    CntlidInUse,
    /// No controller identifier is left, or the subsystem closes.
    #[error("no controller identifier is left")]
    NoController,
    /// What is kept of a namespace's reservations or its write protection cannot be read.
    #[error("{0}")]
    Kept(String),
}

/// What hosts see of a subsystem at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Counts changes.
    pub version: u64,
    /// By ascending NSID.
    pub namespaces: Vec<Arc<Namespace>>,
    /// How each is write protected, by NSID.
    protected: BTreeMap<u32, Protection>,
    /// Of each namespace, by NSID.
    reservations: BTreeMap<u32, Arc<Reservations>>,
    /// Who sees those that not everybody sees, by NSID.
    masks: BTreeMap<u32, Arc<[Viewer]>>,
}

impl View {
    fn has(&self, nsid: u32) -> Result<(), SubsystemError> {
        let found = self.namespaces.binary_search_by_key(&nsid, |n| n.nsid);
        found.map(drop).map_err(|_| SubsystemError::NoNamespace)
    }

    /// Who sees a namespace.
    pub fn mask(&self, nsid: u32) -> Mask {
        self.masks.get(&nsid).cloned()
    }

    /// Whether somebody sees a namespace of that NSID.
    pub fn shows(&self, nsid: u32, viewer: &Viewer) -> bool {
        self.has(nsid).is_ok() && shows(&self.mask(nsid), viewer)
    }

    /// Whether a namespace takes writes.
    pub fn protection(&self, nsid: u32) -> Protection {
        self.protected.get(&nsid).copied().unwrap_or_default()
    }

    /// A namespace's reservations.
    pub fn reservations(&self, nsid: u32) -> Option<&Arc<Reservations>> {
        self.reservations.get(&nsid)
    }

    /// What keeps what hosts set of a namespace, if that outlives the process.
    fn persist(&self, nsid: u32) -> Option<&Arc<dyn Persist>> {
        self.reservations(nsid)?.persist()
    }
}

/// Who may connect.
fn allowed(hosts: &[Nqn], host: &Nqn) -> bool {
    hosts.is_empty() || hosts.contains(host)
}

/// Who waits for a change.
#[derive(Default)]
struct News {
    /// Let go with the last command on a namespace that goes.
    gone: Option<std::sync::mpsc::Sender<std::convert::Infallible>>,
    /// Let go when every shard knows.
    done: Option<Arc<dyn Any + Send + Sync>>,
}

#[derive(Default)]
struct State {
    view: Arc<View>,
    allowed_hosts: Vec<Nqn>,
    controllers: BTreeMap<u16, Arc<Shared>>,
    /// Identifiers of static controllers, whether they have an association or not.
    statics: BTreeSet<u16>,
    next_cntlid: u16,
    closed: bool,
}

/// An NVM subsystem.
pub struct Subsystem {
    nqn: Nqn,
    serial: String,
    model: String,
    max_namespaces: u32,
    shards: Vec<ShardHandle>,
    /// MDIE: data that the media did not take or give back.
    media_errors: AtomicU64,
    power: OnceLock<Power>,
    range_locks: RangeLocks,
    protecting: Protecting,
    state: Mutex<State>,
}

fn printable(s: &str, max: usize) -> bool {
    s.len() <= max && s.bytes().all(|b| (0x20..0x7f).contains(&b))
}

impl Subsystem {
    /// A subsystem without namespaces, whose queues will live on `shards`.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn new(config: SubsystemConfig, shards: &[ShardHandle]) -> Result<Arc<Self>, SubsystemError> {
        if !printable(&config.serial, 20) {
            return Err(SubsystemError::Serial);
        }
        if !printable(&config.model, 40) {
            return Err(SubsystemError::Model);
        }
        if config.max_namespaces == 0 || config.max_namespaces > MAX_NAMESPACES {
            return Err(SubsystemError::MaxNamespaces);
        }
        let state =
            State { allowed_hosts: config.allowed_hosts, next_cntlid: FIRST_DYNAMIC, ..State::default() };
        Ok(Arc::new(Subsystem {
            nqn: config.nqn,
            serial: config.serial,
            model: config.model,
            max_namespaces: config.max_namespaces,
            shards: shards.to_vec(),
            media_errors: AtomicU64::new(0),
            power: OnceLock::new(),
            range_locks: RangeLocks::default(),
            protecting: Protecting::default(),
            state: Mutex::new(state),
        }))
    }

    /// SUBNQN.
    pub fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    /// SN.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// MN.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// NN.
    pub fn max_namespaces(&self) -> u32 {
        self.max_namespaces
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which the shards keep its [`Local`]: an address that is its own while it lives.
    pub(crate) fn key(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.state().view.clone()
    }

    /// Its namespaces, by ascending NSID.
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.state().view.namespaces.clone()
    }

    /// Its controllers, by ascending CNTLID.
    pub fn controllers(&self) -> Vec<Arc<Shared>> {
        self.state().controllers.values().cloned().collect()
    }

    /// Tells, before the first host comes, how often it was started before.
    pub fn set_power(&self, power: Power) {
        let _ = self.power.set(power);
    }

    pub(crate) fn power(&self) -> Power {
        self.power.get().copied().unwrap_or_default()
    }

    /// Commands that failed since data could not be read from or written to the media.
    pub(crate) fn media_errors(&self) -> u64 {
        self.media_errors.load(Ordering::Relaxed)
    }

    pub(crate) fn note_media_error(&self) {
        self.media_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Replaces the list of hosts that may connect over fabrics; empty for any. Who is not on it is disconnected. A
    /// subsystem that a target shows has this done by [`crate::tcp::Target::set_allowed_hosts`], so that discovery
    /// tells of it.
    pub fn set_allowed_hosts(&self, hosts: Vec<Nqn>) {
        let out: Vec<_> = {
            let mut state = self.state();
            state.allowed_hosts = hosts;
            let out = |c: &&Arc<Shared>| c.host().is_some_and(|h| !allowed(&state.allowed_hosts, &h.nqn));
            state.controllers.values().filter(out).cloned().collect()
        };
        for controller in out {
            controller.terminate();
        }
    }

    /// The hosts that may connect over fabrics; empty for any.
    pub fn allowed_hosts(&self) -> Vec<Nqn> {
        self.state().allowed_hosts.clone()
    }

    /// Whether a host may connect over fabrics.
    pub fn allows(&self, hostnqn: &Nqn) -> bool {
        allowed(&self.state().allowed_hosts, hostnqn)
    }

    /// Adds a namespace whose reservations and write protection end with the process. Hosts are told when every shard has it.
    ///
    /// # Errors
    /// The NSID is in use or out of range.
    pub fn add_namespace(self: &Arc<Self>, namespace: Namespace) -> Result<(), SubsystemError> {
        self.add(namespace, None, None)
    }

    /// As [`Subsystem::add_namespace`], for a namespace that only some see. They are told when every shard has it.
    /// What hosts set of it is kept by `persist`, if there is one.
    ///
    /// # Errors
    /// As there.
    pub fn add_masked_namespace(
        self: &Arc<Self>,
        namespace: Namespace,
        persist: Option<Arc<dyn Persist>>,
        mask: Mask,
    ) -> Result<(), SubsystemError> {
        self.add(namespace, persist, mask)
    }

    /// As [`Subsystem::add_namespace`], with what `persist` has kept of it, and keeps from now on.
    ///
    /// # Errors
    /// As there, and what is kept cannot be read.
    pub fn add_persistent_namespace(
        self: &Arc<Self>,
        namespace: Namespace,
        persist: Arc<dyn Persist>,
    ) -> Result<(), SubsystemError> {
        self.add(namespace, Some(persist), None)
    }

    fn add(
        self: &Arc<Self>,
        namespace: Namespace,
        persist: Option<Arc<dyn Persist>>,
        mask: Mask,
    ) -> Result<(), SubsystemError> {
        let nsid = namespace.nsid;
        if nsid == 0 || nsid > self.max_namespaces {
            return Err(SubsystemError::NsidRange);
        }
        let protection = protection::load(persist.as_ref()).map_err(SubsystemError::Kept)?;
        let kept = Reservations::open(nsid, self, persist).map_err(SubsystemError::Kept)?;
        let mut namespace = Some(Arc::new(namespace));
        self.change(
            nsid,
            News::default(),
            |View { namespaces: all, reservations, protected, masks, .. }| match all
                .binary_search_by_key(&nsid, |n| n.nsid)
            {
                Ok(_) => Err(SubsystemError::NsidInUse),
                Err(at) => {
                    all.extend(namespace.take());
                    all[at..].rotate_right(1);
                    reservations.insert(nsid, kept);
                    protected.insert(nsid, protection);
                    masks.extend(mask.map(|mask| (nsid, mask)));
                    Ok(())
                }
            },
        )
    }

    /// Says who sees a namespace from now on; `None` for everybody. Those whose view changes are told; commands of
    /// those who lose it are taken back.
    ///
    /// # Errors
    /// There is none with that NSID.
    pub fn mask_namespace(self: &Arc<Self>, nsid: u32, mask: Mask) -> Result<(), SubsystemError> {
        self.change(nsid, News::default(), |view| {
            view.has(nsid)?;
            view.masks.remove(&nsid);
            view.masks.extend(mask.map(|mask| (nsid, mask)));
            Ok(())
        })
    }

    /// Removes a namespace. New commands on it fail at once, those in flight are taken back; the answer tells when the
    /// last has ended, after which nothing here uses the volume.
    ///
    /// # Errors
    /// There is none with that NSID.
    pub fn remove_namespace(self: &Arc<Self>, nsid: u32) -> Result<Drain, SubsystemError> {
        let (hold, drain) = Drain::new();
        let news = News { gone: Some(hold), ..News::default() };
        self.change(nsid, news, |View { namespaces: all, protected, reservations, masks, .. }| {
            let at = all.binary_search_by_key(&nsid, |n| n.nsid).map_err(|_| SubsystemError::NoNamespace)?;
            reservations.remove(&nsid);
            all.remove(at);
            protected.remove(&nsid);
            masks.remove(&nsid);
            Ok(())
        })?;
        Ok(drain)
    }

    /// Tells hosts that a namespace's volume changed its capacity or its limits.
    ///
    /// # Errors
    /// There is none with that NSID.
    pub fn refresh_namespace(self: &Arc<Self>, nsid: u32) -> Result<(), SubsystemError> {
        self.change(nsid, News::default(), |view| view.has(nsid))
    }

    fn change(
        self: &Arc<Self>,
        nsid: u32,
        News { gone, done }: News,
        edit: impl FnOnce(&mut View) -> Result<(), SubsystemError>,
    ) -> Result<(), SubsystemError> {
        let mut state = self.state();
        let before = state.view.clone();
        let mut view = View { version: before.version + 1, ..before.as_ref().clone() };
        edit(&mut view)?;
        let view = Arc::new(view);
        state.view = view.clone();
        // Sent under the lock: shards hear of changes in their order.
        let key = self.key();
        let news = Arc::new(Told { subsystem: self.clone(), nsid, before, after: view.clone(), _done: done });
        for shard in &self.shards {
            let (view, gone, news) = (view.clone(), gone.clone(), news.clone());
            shard.run(move |shard| {
                if let Some(local) = shard.local::<Local>(key) {
                    local.update(view, gone);
                }
                drop(news);
            });
        }
        drop(state);
        Ok(())
    }

    /// Ends all controllers and lets go of all namespaces; the answer tells when the last command has ended.
    pub fn close(self: &Arc<Self>) -> Drain {
        let (hold, drain) = Drain::new();
        let (controllers, view) = {
            let mut state = self.state();
            state.closed = true;
            state.view = Arc::new(View { version: state.view.version + 1, ..View::default() });
            (state.controllers.values().cloned().collect::<Vec<_>>(), state.view.clone())
        };
        for controller in controllers {
            controller.terminate();
        }
        let key = self.key();
        for shard in &self.shards {
            let (view, hold) = (view.clone(), hold.clone());
            shard.run(move |shard| {
                if let Some(local) = shard.local::<Local>(key) {
                    local.update(view, Some(hold));
                    shard.take_local(key);
                }
            });
        }
        drain
    }
}

/// Word of a namespace that came, went or changed: when the last shard has let go of it, all know, and so may hosts.
struct Told {
    subsystem: Arc<Subsystem>,
    nsid: u32,
    before: Arc<View>,
    after: Arc<View>,
    _done: Option<Arc<dyn Any + Send + Sync>>,
}

impl Told {
    /// Whether it is news to somebody: not to who sees the namespace neither before nor after, nor where only others
    /// began or ceased to see it.
    fn concerns(&self, viewer: &Viewer) -> bool {
        let (before, after) = (self.before.shows(self.nsid, viewer), self.after.shows(self.nsid, viewer));
        let masked = self.before.mask(self.nsid) != self.after.mask(self.nsid);
        before != after || after && !masked
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        for controller in self.subsystem.controllers().iter().filter(|c| self.concerns(&c.viewer())) {
            controller.namespace_changed(self.nsid);
        }
    }
}

impl fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subsystem({})", self.nqn)
    }
}
