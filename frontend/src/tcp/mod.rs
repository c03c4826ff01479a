//! The NVMe/TCP target: listeners, connections, and the discovery service (NVMe/TCP Transport 1.1).
//!
//! A listening socket lives on one shard, which hands each connection to the next shard in turn; from then on a
//! connection, its queue and all its commands live there.

mod budget;
mod connect;
mod connection;
mod discovery;
mod inflow;
mod listener;
mod pdu;
mod receive;
mod reject;
mod send;
mod shard;
mod transfer;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::stats::Snapshot;
use engine::{ShardHandle, VolumeStats};
use nvme_proto::Nqn;
use nvme_proto::fabrics::{CNTLID_ANY_STATIC, CNTLID_DYNAMIC};
use nvme_proto::nqn::DISCOVERY_NQN;

use crate::controller::{AccessState, Way};
use crate::subsystem::{Subsystem, SubsystemConfig, SubsystemError};
use listener::Listener;
use shard::ShardTarget;

pub use reject::{Reason, Rejections};

/// Bytes of data that a capsule of an I/O queue may carry.
const IN_CAPSULE: usize = 16 << 10;
/// Bytes of data that a capsule may carry on the admin queue, and before Connect (NVMe/TCP 1.1, 3.3.1.1).
const ADMIN_IN_CAPSULE: usize = 8 << 10;
/// IOCCSZ: bytes of a capsule of an I/O queue, in 16.
const IOCCSZ: u32 = (64 + IN_CAPSULE as u32) / 16;
/// MAXH2CDATA.
const MAXH2CDATA: u32 = 128 << 10;
/// Entries of a queue at most.
const MAX_QUEUE_ENTRIES: u16 = 1024;
/// I/O queues of a controller at most.
pub const MAX_IO_QUEUES: u16 = 128;

/// A length of data as the wire has it: MDTS bounds it far below.
fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// What a target spends on its hosts.
#[derive(Clone, Copy, Debug)]
pub struct TargetConfig {
    /// A connection that is no queue of a controller by then is closed.
    pub connect_timeout: Duration,
    /// Connections on a shard that are not yet queues; the oldest is closed for a new one.
    pub max_half_open: usize,
    /// Connections on a shard; further ones are closed at once. Each takes some 40 KiB, and the kernel's memory for what it
    /// has sent and nobody has read: a few MiB at most.
    pub max_connections: usize,
    /// How long a host may take to send the next of the data that it was asked for; then its connection is closed.
    pub data_timeout: Duration,
    /// Bytes of data that commands hold on a shard at once, a quarter of it at most for one connection; more of them
    /// wait. A command that needs more than all of it still runs, alone. Data that came in capsules has as much again;
    /// a connection with too much of it is not read from.
    pub shard_budget: usize,
    /// CPDA: where data begins in the PDUs of hosts, in dwords, zero-based; at most 31. Linux hosts take 0 alone.
    pub cpda_z: u8,
}

impl Default for TargetConfig {
    fn default() -> Self {
        TargetConfig {
            connect_timeout: Duration::from_secs(10),
            max_half_open: 64,
            max_connections: 8192,
            data_timeout: Duration::from_secs(30),
            shard_budget: 128 << 20,
            cpda_z: 0,
        }
    }
}

/// A subsystem at a listener, or one of its static controllers.
#[derive(Clone, Debug)]
struct Shown {
    subsystem: Arc<Subsystem>,
    /// The static controller; without it each association makes a dynamic one (Base 2.1, 3.1.1).
    cntlid: Option<u16>,
    /// I/O queues that a controller has there at most.
    max_io_queues: u16,
    /// What all controllers there have in common.
    way: Arc<Way>,
    /// What hosts asked of it.
    stats: Arc<VolumeStats>,
}

impl Shown {
    fn is(&self, nqn: &Nqn, cntlid: Option<u16>) -> bool {
        self.subsystem.nqn() == nqn && self.cntlid == cntlid
    }
}

/// What a listener shows to hosts.
#[derive(Debug)]
struct Listening {
    addr: SocketAddr,
    /// PORTID of the discovery log: its own as long as it listens.
    portid: u16,
    subsystems: Mutex<Vec<Shown>>,
}

impl Listening {
    fn subsystems(&self) -> MutexGuard<'_, Vec<Shown>> {
        self.subsystems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subsystem of that name, or the discovery service.
    fn find(&self, nqn: &Nqn, target: &Inner) -> Option<Arc<Subsystem>> {
        if nqn.as_str() == DISCOVERY_NQN {
            return Some(target.discovery.clone());
        }
        self.subsystems().iter().find(|s| s.subsystem.nqn() == nqn).map(|s| s.subsystem.clone())
    }

    /// What the CNTLID of a Connect means in that subsystem (Base 2.1, 6.3): a new dynamic controller, any static one
    /// or that one; nothing where the subsystem's model is the other.
    fn meant(&self, nqn: &Nqn, cntlid: u16, target: &Inner) -> Vec<Shown> {
        let mut all = match nqn.as_str() {
            DISCOVERY_NQN => vec![Shown {
                subsystem: target.discovery.clone(),
                cntlid: None,
                max_io_queues: 0,
                way: Arc::default(),
                stats: Arc::default(),
            }],
            _ => self.subsystems().clone(),
        };
        all.retain(|shown| {
            let meant = match shown.cntlid {
                Some(this) => cntlid == this || cntlid == CNTLID_ANY_STATIC,
                None => cntlid == CNTLID_DYNAMIC,
            };
            meant && shown.subsystem.nqn() == nqn
        });
        all
    }
}

struct Inner {
    config: TargetConfig,
    shards: Vec<ShardHandle>,
    rejections: Rejections,
    discovery: Arc<Subsystem>,
    /// GENCTR of the discovery log.
    generation: AtomicU64,
    /// What the discovery log tells of. Whatever changes it happens under this lock, and so does [`Inner::changed`].
    listeners: Mutex<BTreeMap<SocketAddr, Listener>>,
    /// Other discovery services.
    referrals: Mutex<Vec<SocketAddr>>,
}

impl Inner {
    fn listeners(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn referrals(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.referrals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The discovery log is another now for these hosts: those that asked are told.
    fn changed(&self, concerns: impl Fn(&Nqn) -> bool) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        for controller in self.discovery.controllers() {
            if controller.host().is_some_and(|host| concerns(&host.nqn)) {
                controller.discovery_changed();
            }
        }
    }
}

/// An NVMe/TCP target. Any thread may call it.
#[derive(Clone)]
pub struct Target(Arc<Inner>);

impl Target {
    /// A target whose connections live on `shards`.
    ///
    /// # Errors
    /// None in practice: the discovery subsystem is always valid.
    pub fn new(shards: &[ShardHandle], config: TargetConfig) -> Result<Self, SubsystemError> {
        let nqn = Nqn::new(DISCOVERY_NQN).map_err(|_| SubsystemError::Nqn)?;
        let discovery = Subsystem::new(
            SubsystemConfig {
                nqn,
                serial: "discovery".into(),
                model: "Isthmus discovery".into(),
                max_namespaces: 1,
                allowed_hosts: Vec::new(),
            },
            shards,
        )?;
        Ok(Target(Arc::new(Inner {
            config,
            shards: shards.to_vec(),
            rejections: Rejections::default(),
            discovery,
            generation: AtomicU64::new(1),
            listeners: Mutex::default(),
            referrals: Mutex::default(),
        })))
    }

    /// Shows a subsystem at an address, beside those that are shown there already. Port 0 takes a free one. The answer
    /// is the address as it is.
    ///
    /// # Errors
    /// Those of bind(2) and listen(2).
    pub fn listen(&self, addr: SocketAddr, subsystem: &Arc<Subsystem>) -> io::Result<SocketAddr> {
        self.listen_with(addr, subsystem, MAX_IO_QUEUES)
    }

    /// As [`Target::listen`], for controllers with at most so many I/O queues: 1 to [`MAX_IO_QUEUES`].
    ///
    /// # Errors
    /// Those of bind(2) and listen(2).
    pub fn listen_with(
        &self,
        addr: SocketAddr,
        subsystem: &Arc<Subsystem>,
        max_io_queues: u16,
    ) -> io::Result<SocketAddr> {
        self.show(addr, subsystem, None, max_io_queues)
    }

    /// Shows a static controller at an address, with this identifier or the lowest free one: a host gets it that asks
    /// for it or for any, one at a time. All controllers of a subsystem that are shown are static, or none: the caller
    /// sees to it. The answer is the address as it is, and the identifier.
    ///
    /// # Errors
    /// Those of bind(2) and listen(2), and a [`SubsystemError`] where the identifier is another controller's.
    pub fn listen_static(
        &self,
        addr: SocketAddr,
        subsystem: &Arc<Subsystem>,
        cntlid: Option<u16>,
        max_io_queues: u16,
    ) -> io::Result<(SocketAddr, u16)> {
        let cntlid = subsystem.reserve(cntlid).map_err(io::Error::other)?;
        let shown = self.show(addr, subsystem, Some(cntlid), max_io_queues);
        if shown.is_err() {
            subsystem.release(cntlid);
        }
        Ok((shown?, cntlid))
    }

    fn show(
        &self,
        addr: SocketAddr,
        subsystem: &Arc<Subsystem>,
        cntlid: Option<u16>,
        max_io_queues: u16,
    ) -> io::Result<SocketAddr> {
        let mut listeners = self.0.listeners();
        let addr = match listeners.contains_key(&addr) {
            true => addr,
            false => {
                let is_free = |id: &u16| listeners.values().all(|l| l.listening.portid != *id);
                let portid = (1..=u16::MAX).find(is_free).unwrap_or_default();
                let listener = Listener::open(addr, portid, &self.0)?;
                let bound = listener.listening.addr;
                listeners.insert(bound, listener);
                bound
            }
        };
        if let Some(listener) = listeners.get(&addr) {
            let mut subsystems = listener.listening.subsystems();
            let before = subsystems.iter().position(|s| s.is(subsystem.nqn(), cntlid));
            let before = before.map(|at| subsystems.remove(at));
            let (way, stats) = before.map(|before| (before.way, before.stats)).unwrap_or_default();
            let max_io_queues = max_io_queues.clamp(1, MAX_IO_QUEUES);
            subsystems.push(Shown { subsystem: subsystem.clone(), cntlid, max_io_queues, way, stats });
        }
        self.0.changed(|host| subsystem.allows(host));
        Ok(addr)
    }

    /// Serves a stream that somebody else accepted, or that never was TCP, as though `peer` had come by the listener at
    /// `addr`; its port says on which shard. Whether there is such a listener.
    pub fn admit(&self, addr: SocketAddr, peer: SocketAddr, socket: OwnedFd) -> bool {
        let listening = self.0.listeners().get(&addr).map(|listener| listener.listening.clone());
        let shard = self.0.shards.get(usize::from(peer.port()) % self.0.shards.len().max(1));
        let (Some(listening), Some(shard)) = (listening, shard) else { return false };
        let target = self.0.clone();
        shard.run(move |shard| ShardTarget::of(&target, shard).serve(socket, listening, peer, addr));
        true
    }

    /// Shows a subsystem, or a static controller of it, at an address no more, and disconnects who came to it there. The
    /// last one takes the listener along, and everyone who came by it. Whether it was shown there.
    pub fn unlisten(&self, addr: SocketAddr, nqn: &Nqn, cntlid: Option<u16>) -> bool {
        let mut listeners = self.0.listeners();
        let Some(listener) = listeners.get(&addr) else { return false };
        let (gone, empty) = {
            let mut subsystems = listener.listening.subsystems();
            let at = subsystems.iter().position(|s| s.is(nqn, cntlid));
            let gone = at.map(|at| subsystems.remove(at).subsystem);
            (gone, subsystems.is_empty())
        };
        let (listening, only) = (listener.listening.clone(), (!empty).then_some((*nqn, cntlid)));
        if empty && let Some(listener) = listeners.remove(&addr) {
            listener.close();
        }
        self.on_shards(move |target| target.disconnect(&listening, only));
        if let Some(subsystem) = &gone {
            if let Some(cntlid) = cntlid {
                subsystem.release(cntlid);
            }
            self.0.changed(|host| subsystem.allows(host));
        }
        gone.is_some()
    }

    /// Replaces the list of hosts that may connect to a subsystem; empty for any. Who is not on it is disconnected,
    /// and hosts that find another discovery log now are told.
    pub fn set_allowed_hosts(&self, subsystem: &Arc<Subsystem>, hosts: Vec<Nqn>) {
        let _discovery = self.0.listeners();
        let before = subsystem.allowed_hosts();
        let may = |list: &[Nqn], host: &Nqn| list.is_empty() || list.contains(host);
        subsystem.set_allowed_hosts(hosts.clone());
        self.0.changed(|host| may(&before, host) != may(&hosts, host));
    }

    /// Tells hosts of these other discovery services (referrals), in the place of those told of before.
    pub fn set_referrals(&self, referrals: Vec<SocketAddr>) {
        let _discovery = self.0.listeners();
        let mut now = self.0.referrals();
        if *now != referrals {
            *now = referrals;
            self.0.changed(|_| true);
        }
    }

    /// Shows a subsystem nowhere any more.
    pub fn remove_subsystem(&self, nqn: &Nqn) {
        let mut shown = Vec::new();
        for (addr, listener) in self.0.listeners().iter() {
            let all = listener.listening.subsystems();
            shown.extend(all.iter().filter(|s| s.subsystem.nqn() == nqn).map(|s| (*addr, s.cntlid)));
        }
        for (addr, cntlid) in shown {
            self.unlisten(addr, nqn, cntlid);
        }
    }

    /// What hosts that came by an address asked of a subsystem, or a static controller of it, there; `None` if it is not
    /// shown there.
    pub fn stats(&self, addr: SocketAddr, nqn: &Nqn, cntlid: Option<u16>) -> Option<Snapshot> {
        Some(self.shown(addr, nqn, cntlid)?.stats.snapshot())
    }

    fn shown(&self, addr: SocketAddr, nqn: &Nqn, cntlid: Option<u16>) -> Option<Shown> {
        let listeners = self.0.listeners();
        let subsystems = listeners.get(&addr)?.listening.subsystems();
        subsystems.iter().find(|s| s.is(nqn, cntlid)).cloned()
    }

    /// Sets how well hosts that come to a subsystem, or a static controller of it, by an address reach its namespaces.
    /// Whether it is shown there.
    pub fn set_access(&self, addr: SocketAddr, nqn: &Nqn, cntlid: Option<u16>, state: AccessState) -> bool {
        let shown = self.shown(addr, nqn, cntlid);
        if let Some(shown) = &shown {
            shown.way.set(&shown.subsystem, state);
        }
        shown.is_some()
    }

    /// Why hosts were turned away, and how often.
    pub fn rejections(&self) -> &Rejections {
        &self.0.rejections
    }

    /// Closes all listeners and all connections; the subsystems stay.
    pub fn close(&self) {
        let listeners = std::mem::take(&mut *self.0.listeners());
        for listener in listeners.into_values() {
            listener.close();
        }
        self.on_shards(ShardTarget::close_all);
    }

    fn on_shards(&self, f: impl Fn(&ShardTarget) + Clone + Send + 'static) {
        for shard in &self.0.shards {
            let (target, f) = (self.0.clone(), f.clone());
            shard.run(move |shard| f(&ShardTarget::of(&target, shard)));
        }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("listeners", &self.0.listeners().keys()).finish()
    }
}
