//! The target on one shard: its connections, its budget, and the clock that ends those that stall.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::{OnTimer, Shard};
use nix::sys::socket::{setsockopt, sockopt};
use nvme_proto::Nqn;
use socket2::{SockRef, TcpKeepalive};

use super::budget::Budget;
use super::connection::{Connection, Phase};
use super::inflow::Inflow;
use super::reject::{Reason, Rejections};
use super::{Inner, Listening};

/// How often stalled connections are looked for.
const TICK: Duration = Duration::from_secs(1);
/// After how long the kernel asks a silent peer whether it is there, and how often.
const SILENCE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(10);
/// How long what was sent may stay unacknowledged, in milliseconds: the kernel asks no peer that owes it that.
const UNACKNOWLEDGED: u32 = 60_000;

pub(super) struct ShardTarget {
    pub shard: Shard,
    pub target: Arc<Inner>,
    pub budget: Rc<Budget>,
    pub inflow: Rc<Inflow>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    ticking: Cell<bool>,
}

impl ShardTarget {
    /// The target's half on `shard`, made when it is first needed.
    pub fn of(target: &Arc<Inner>, shard: &Shard) -> Rc<Self> {
        let key = Arc::as_ptr(target) as u64;
        if let Some(there) = shard.local::<ShardTarget>(key) {
            return there;
        }
        let new = Rc::new(ShardTarget {
            shard: shard.clone(),
            target: target.clone(),
            budget: Budget::new(shard, target.config.shard_budget),
            inflow: Inflow::new(shard, target.config.shard_budget),
            connections: RefCell::default(),
            next: Cell::new(0),
            ticking: Cell::new(false),
        });
        shard.put_local(key, new.clone());
        new
    }

    pub fn rejections(&self) -> &Rejections {
        &self.target.rejections
    }

    /// Takes over a connection that was accepted.
    pub fn adopt(self: &Rc<Self>, socket: OwnedFd, listening: Arc<Listening>) {
        let stream = TcpStream::from(socket);
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
        // Answers leave at once: they are gathered here already.
        let _ = stream.set_nodelay(true);
        // A host that is gone without a word is noticed, keep-alive or not.
        let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE).with_retries(3);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED);
        self.serve(stream.into(), listening, canonical(peer), canonical(local));
    }

    /// Serves a connected stream from now on.
    pub fn serve(
        self: &Rc<Self>,
        socket: OwnedFd,
        listening: Arc<Listening>,
        peer: SocketAddr,
        local: SocketAddr,
    ) {
        if self.connections.borrow().len() >= self.target.config.max_connections {
            return self.rejections().note(Reason::TooManyConnections, peer);
        }
        let id = self.next.get();
        self.next.set(id + 1);
        self.make_room(peer);
        let connection = Connection::new(id, self, listening, Arc::new(socket), peer, local);
        self.connections.borrow_mut().insert(id, connection.clone());
        connection.expire_in(self.target.config.connect_timeout);
        connection.pump();
        self.tick();
    }

    /// Closes the oldest connection that has not connected to a controller when there are too many of these.
    fn make_room(self: &Rc<Self>, peer: SocketAddr) {
        let oldest = {
            let connections = self.connections.borrow();
            let mut half_open =
                connections.values().filter(|c| !matches!(c.phase.get(), Phase::Live | Phase::Closed));
            let oldest = half_open.next().cloned();
            let many = 1 + half_open.count() >= self.target.config.max_half_open;
            oldest.filter(|_| many)
        };
        if let Some(oldest) = oldest {
            self.rejections().note(Reason::TooManyConnections, peer);
            oldest.close();
        }
    }

    pub fn forget(&self, id: u64) {
        self.connections.borrow_mut().remove(&id);
    }

    /// Closes everything.
    pub fn close_all(&self) {
        self.close_where(|_| true);
    }

    /// Closes what came by a listener, or only what came by it to one subsystem, or to one static controller of it.
    pub fn disconnect(&self, listening: &Arc<Listening>, only: Option<(Nqn, Option<u16>)>) {
        let meant = |to: Option<(Nqn, u16)>, (nqn, cntlid): (Nqn, Option<u16>)| {
            to.is_some_and(|(subsystem, id)| subsystem == nqn && cntlid.is_none_or(|cntlid| cntlid == id))
        };
        self.close_where(|c| {
            Arc::ptr_eq(&c.listening, listening) && only.is_none_or(|only| meant(c.controller(), only))
        });
    }

    fn close_where(&self, which: impl Fn(&Rc<Connection>) -> bool) {
        let all: Vec<_> = self.connections.borrow().values().filter(|c| which(c)).cloned().collect();
        for connection in all {
            connection.close();
        }
    }

    fn tick(self: &Rc<Self>) {
        if !self.ticking.replace(true) {
            self.shard.timer(TICK, self.clone(), 0);
        }
    }
}

impl OnTimer for ShardTarget {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.ticking.set(false);
        let now = self.shard.now();
        let all: Vec<_> = self.connections.borrow().values().cloned().collect();
        for connection in &all {
            let deadline = connection.deadline.get();
            if deadline != 0 && now >= deadline {
                if !matches!(connection.phase.get(), Phase::Farewell | Phase::Lingering) {
                    self.rejections().note(Reason::HalfOpen, connection.peer);
                }
                connection.close();
                continue;
            }
            let owed = connection.slots.borrow().iter().filter_map(|s| s.owed_since()).min();
            let patience = self.target.config.data_timeout.as_nanos();
            if owed.is_some_and(|since| u128::from(now.saturating_sub(since)) > patience) {
                self.rejections().note(Reason::DataTimeout, connection.peer);
                connection.close();
            }
        }
        if !all.is_empty() {
            self.tick();
        }
    }
}

/// An IPv4 peer of a listener for both families as IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
