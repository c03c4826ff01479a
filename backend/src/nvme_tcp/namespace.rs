//! A namespace of a remote controller, as a volume.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Limits, VolumeStats};

use super::ghosts::Ghosts;
use super::identity::Identity;
use super::issued::Spans;
use super::reason::Reason;
use super::remote::Remote;

/// What was promised of a namespace when it was first seen; a control plane keeps it over restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// NSID.
    pub nsid: u32,
    /// Who it is.
    pub identity: Identity,
    /// What hosts were told.
    pub limits: Limits,
}

/// A namespace of a [`Remote`]: a [`engine::Volume`]. It lives on when the remote is gone, with its I/O parked.
pub struct RemoteNamespace {
    remote: Arc<Remote>,
    pin: Mutex<Pin>,
    block_size: u32,
    /// A control plane keeps its pin.
    promised: AtomicBool,
    /// What stands against it at the moment.
    state: Mutex<Option<Reason>>,
    usable: AtomicBool,
    write_zeroes: AtomicU32,
    deallocate: AtomicU32,
    ghosts: Ghosts,
    stats: VolumeStats,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RemoteNamespace {
    /// One that was seen before, or is seen now; not usable until [`RemoteNamespace::seen`].
    pub(super) fn new(remote: Arc<Remote>, pin: Pin, promised: bool) -> Self {
        RemoteNamespace {
            remote,
            block_size: pin.limits.block_size,
            promised: AtomicBool::new(promised),
            pin: Mutex::new(pin),
            state: Mutex::new(None),
            usable: AtomicBool::new(false),
            write_zeroes: AtomicU32::new(1),
            deallocate: AtomicU32::new(1),
            ghosts: Ghosts::default(),
            stats: VolumeStats::default(),
        }
    }

    /// NSID.
    pub fn nsid(&self) -> u32 {
        lock(&self.pin).nsid
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        lock(&self.pin).identity
    }

    /// What a control plane keeps.
    pub fn pin(&self) -> Pin {
        lock(&self.pin).clone()
    }

    /// Why it is not usable although its remote may be connected: it is gone, it is another, it can do less. `None` when
    /// nothing stands against it. Its I/O is parked as long as something does.
    pub fn refused(&self) -> Option<Reason> {
        lock(&self.state).clone()
    }

    /// Whether commands may be sent to it.
    pub(super) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    pub(super) fn was_promised(&self) -> bool {
        self.promised.load(Ordering::Relaxed)
    }

    pub(super) fn set_promised(&self) {
        self.promised.store(true, Ordering::Relaxed);
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn spans(&self) -> Spans {
        Spans {
            write_zeroes: self.write_zeroes.load(Ordering::Relaxed),
            deallocate: self.deallocate.load(Ordering::Relaxed),
        }
    }

    pub(super) fn pinned_limits(&self) -> Limits {
        lock(&self.pin).limits.clone()
    }

    pub(super) fn volume_stats(&self) -> &VolumeStats {
        &self.stats
    }

    pub(super) fn ghosts(&self) -> &Ghosts {
        &self.ghosts
    }

    pub(super) fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// The controller shows a namespace under this NSID: takes it if it is the one that was promised.
    pub(super) fn seen(&self, identity: &Identity, limits: &Limits, spans: Spans) -> Result<(), Reason> {
        {
            let mut pin = lock(&self.pin);
            if !identity.is_still(&pin.identity) {
                return self.refuse(Reason::Changed("its UUID, NGUID or EUI64 is another"));
            }
            if let Err(limit) = limits.covers(&pin.limits) {
                return self.refuse(Reason::Changed(limit));
            }
            // It may have grown. What else it can do more than before stays unsaid: hosts were told the rest.
            pin.limits.blocks = limits.blocks;
        }
        self.write_zeroes.store(spans.write_zeroes, Ordering::Relaxed);
        self.deallocate.store(spans.deallocate, Ordering::Relaxed);
        *lock(&self.state) = None;
        self.usable.store(true, Ordering::Release);
        Ok(())
    }

    /// Something stands against it.
    pub(super) fn refuse(&self, reason: Reason) -> Result<(), Reason> {
        self.usable.store(false, Ordering::Release);
        *lock(&self.state) = Some(reason.clone());
        Err(reason)
    }
}

impl std::fmt::Debug for RemoteNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteNamespace({} of {})", self.nsid(), self.remote.config().name)
    }
}
