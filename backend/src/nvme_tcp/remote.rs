//! The control half of a remote controller.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::ShardHandle;

use super::config::Config;
use super::lane::Lane;
use super::namespace::{Pin, RemoteNamespace};
use super::reason::Reason;
use super::session::Session;

/// Where a remote stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first attempts to connect; why the last one failed.
    Connecting(Option<Reason>),
    /// The controller is ready and its namespaces are known.
    Live,
    /// It was connected; why it is not any more.
    Reconnecting(Reason),
    /// [`Remote::close`] was called.
    Closed,
}

/// What the session on the home shard is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A shard has a lane that wants a queue.
    Lane(ShardHandle),
    /// A lane of an association lost its connection, or could not make one.
    LaneDown(u64, Reason),
    /// [`Remote::reset`].
    Reset,
    /// [`Remote::close`].
    Close,
    /// The controller noticed a change.
    Notice,
}

struct Shared {
    state: State,
    namespaces: BTreeMap<u32, Arc<RemoteNamespace>>,
    watchers: Vec<Arc<dyn Fn() + Send + Sync>>,
}

/// A remote controller: connects, keeps the connection, and connects again, until [`Remote::close`].
///
/// Its admin queue lives on a home shard; every shard where one of its namespaces is open has an I/O queue of its own.
pub struct Remote {
    config: Config,
    shards: Vec<ShardHandle>,
    home: ShardHandle,
    closed: AtomicBool,
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Remote {
    /// Starts to connect. `pins` are namespaces that were promised before: they are volumes at once.
    ///
    /// `shards` are all shards of the process, at least one; each gets an I/O queue if the remote grants so many.
    pub fn start(config: Config, pins: Vec<Pin>, shards: &[ShardHandle]) -> Option<Arc<Self>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let home = shards.get(NEXT.fetch_add(1, Ordering::Relaxed) % shards.len().max(1))?.clone();
        let shared =
            Shared { state: State::Connecting(None), namespaces: BTreeMap::new(), watchers: Vec::new() };
        let remote = Arc::new(Remote {
            config,
            shards: shards.to_vec(),
            home,
            closed: AtomicBool::new(false),
            shared: Mutex::new(shared),
            changed: Condvar::new(),
        });
        for pin in pins {
            remote.promise(pin);
        }
        let theirs = remote.clone();
        remote.home.run(move |shard| Session::start(theirs, shard));
        Some(remote)
    }

    /// What it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(super) fn is_live(&self) -> bool {
        self.lock().state == State::Live
    }

    /// Its namespaces that were ever seen or pinned, by NSID.
    pub fn namespaces(&self) -> Vec<Arc<RemoteNamespace>> {
        self.lock().namespaces.values().cloned().collect()
    }

    /// The namespace of an NSID.
    pub fn namespace(&self, nsid: u32) -> Option<Arc<RemoteNamespace>> {
        self.lock().namespaces.get(&nsid).cloned()
    }

    /// A namespace as it was promised to hosts before, as [`Remote::start`] takes them: a volume at once. If the
    /// controller is known to show another one, or one that can do less, it is refused, and its I/O parked.
    pub fn promise(self: &Arc<Self>, pin: Pin) -> Arc<RemoteNamespace> {
        let mut shared = self.lock();
        let known = shared.namespaces.get(&pin.nsid).cloned();
        let seen = known.as_ref().map(|known| known.pin());
        if let (Some(known), Some(seen)) = (&known, &seen)
            && seen.identity.is_still(&pin.identity)
            && seen.limits.covers(&pin.limits).is_ok()
        {
            known.set_promised();
            return known.clone();
        }
        let promised = Arc::new(RemoteNamespace::new(self.clone(), pin, true));
        shared.namespaces.insert(promised.nsid(), promised.clone());
        if let (Some(known), Some(seen)) = (known, seen)
            && known.is_usable()
        {
            let _ = promised.seen(&seen.identity, &seen.limits, known.spans());
        }
        self.announce(shared);
        promised
    }

    /// Blocks until it is live or closed, at most for `timeout`. Never called on a shard.
    ///
    /// # Errors
    /// Where it stands instead of live.
    pub fn wait_live(&self, timeout: Duration) -> Result<(), State> {
        let end = Instant::now() + timeout;
        let mut shared = self.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match shared.state {
                State::Live => return Ok(()),
                State::Closed => return Err(State::Closed),
                _ if left.is_zero() => return Err(shared.state.clone()),
                _ => {}
            }
            shared = match self.changed.wait_timeout(shared, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Calls `f` after every change of the state or the namespaces: on a shard, so it never blocks.
    pub fn watch(&self, f: impl Fn() + Send + Sync + 'static) {
        self.lock().watchers.push(Arc::new(f));
    }

    /// Ends the association and makes a new one.
    pub fn reset(&self) {
        self.tell(Event::Reset);
    }

    /// Disconnects for good; I/O that is out or parked fails, and the remote knows its namespaces no more.
    pub fn close(self: &Arc<Self>) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.tell(Event::Close);
        for shard in &self.shards {
            // The closure keeps the remote, and so its keys, until it has run.
            let remote = self.clone();
            shard.run(move |shard| {
                if let Some(lane) = shard.local::<Lane>(remote.lane_key()) {
                    lane.close();
                    shard.take_local(remote.lane_key());
                }
            });
        }
        self.set_state(State::Closed);
        let (namespaces, watchers) = {
            let mut shared = self.lock();
            (std::mem::take(&mut shared.namespaces), std::mem::take(&mut shared.watchers))
        };
        drop((namespaces, watchers));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which the home shard keeps the session: an address of this object, which no other object has.
    pub(super) fn session_key(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    /// Under which every shard keeps its lane.
    pub(super) fn lane_key(&self) -> u64 {
        self.session_key() + 1
    }

    /// The queue of a shard, from 1.
    pub(super) fn queue_of(&self, shard: usize) -> u16 {
        let at = self.shards.iter().position(|s| s.id() == shard).unwrap_or(0);
        u16::try_from(at + 1).unwrap_or(u16::MAX)
    }

    /// The shard of a queue.
    pub(super) fn shard_of_queue(&self, qid: u16) -> ShardHandle {
        let at = usize::from(qid.saturating_sub(1));
        self.shards.get(at).unwrap_or(&self.home).clone()
    }

    /// I/O queues that are asked for.
    pub(super) fn queues(&self) -> u16 {
        let all = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
        if self.config.io_queues == 0 { all } else { self.config.io_queues.min(all) }
    }

    /// A namespace that stands or falls: everyone hears of it.
    pub(super) fn announce_namespaces(&self) {
        self.announce(self.lock());
    }

    /// Tells the session.
    pub(super) fn tell(&self, event: Event) {
        let key = self.session_key();
        self.home.run(move |shard| {
            if let Some(session) = shard.local::<Session>(key) {
                session.tell(event);
            }
        });
    }

    pub(super) fn set_state(&self, state: State) {
        let mut shared = self.lock();
        if shared.state == State::Closed || shared.state == state {
            return;
        }
        shared.state = state;
        self.announce(shared);
    }

    /// Forgets those namespaces that `gone` chooses, unless they were promised or somebody holds them: so a remote that
    /// shows others again and again fills nothing.
    pub(super) fn drop_namespaces(&self, gone: impl Fn(u32) -> bool) {
        let kept = |n: &Arc<RemoteNamespace>| n.was_promised() || Arc::strong_count(n) > 1;
        self.lock().namespaces.retain(|nsid, n| !gone(*nsid) || kept(n));
    }

    /// The namespace under an NSID, which is added if there is none.
    pub(super) fn known_or(self: &Arc<Self>, pin: Pin) -> Arc<RemoteNamespace> {
        let mut shared = self.lock();
        let entry = shared.namespaces.entry(pin.nsid);
        entry.or_insert_with(|| Arc::new(RemoteNamespace::new(self.clone(), pin, false))).clone()
    }

    /// Tells everyone who waits.
    fn announce(&self, shared: MutexGuard<'_, Shared>) {
        let watchers = shared.watchers.clone();
        drop(shared);
        self.changed.notify_all();
        watchers.iter().for_each(|f| f());
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.config.name)
    }
}
