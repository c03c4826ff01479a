//! Listening sockets: each accepts on one shard, and hands its connections to all of them in turn.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::ring::{Completion, Fd, OpId, RingClient, RingOp};
use engine::{OnTimer, Shard, ShardHandle};
use nix::libc::{ECANCELED, EINVAL};
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{Domain, Protocol, Socket, Type};

use super::shard::ShardTarget;
use super::{Inner, Listening};

/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 512;
/// How long to wait when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// The control half of a listener.
pub(super) struct Listener {
    pub listening: Arc<Listening>,
    home: ShardHandle,
    fd: Fd,
}

impl Listener {
    /// Binds a socket and starts to accept, as the port with that PORTID.
    pub fn open(addr: SocketAddr, portid: u16, target: &Arc<Inner>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            // Each family has its own listener; a name that stands for both is two listeners.
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let home = target.shards.first().ok_or(io::ErrorKind::NotConnected)?.clone();
        let listening = Arc::new(Listening { addr: bound, portid, subsystems: Default::default() });
        let fd = Arc::new(OwnedFd::from(socket));
        let (theirs, target, socket) = (listening.clone(), target.clone(), fd.clone());
        home.run(move |shard| {
            let key = Arc::as_ptr(&theirs) as u64;
            let acceptor = Rc::new(Acceptor {
                shard: shard.clone(),
                target,
                listening: theirs,
                fd: socket,
                op: Cell::new(None),
                next: Cell::new(0),
                closed: Cell::new(false),
            });
            shard.put_local(key, acceptor.clone());
            acceptor.accept();
        });
        Ok(Listener { listening, home, fd })
    }

    /// Accepts no more, and closes the socket.
    pub fn close(self) {
        // From now on the address is free, whenever the shard lets go of the socket.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        self.home.run(move |shard| {
            let key = Arc::as_ptr(&self.listening) as u64;
            if let Some(acceptor) = shard.local::<Acceptor>(key) {
                acceptor.closed.set(true);
                if let Some(op) = acceptor.op.take() {
                    shard.ring().cancel(op);
                }
            }
            shard.take_local(key);
        });
    }
}

struct Acceptor {
    shard: Shard,
    target: Arc<Inner>,
    listening: Arc<Listening>,
    fd: Fd,
    op: Cell<Option<OpId>>,
    next: Cell<usize>,
    closed: Cell<bool>,
}

impl Acceptor {
    fn accept(self: &Rc<Self>) {
        if !self.closed.get() {
            let op = self.shard.ring().start(RingOp::Accept { fd: self.fd.clone() }, self.clone(), 0);
            self.op.set(Some(op));
        }
    }

    /// Gives a connection to the next shard.
    fn deal(&self, socket: OwnedFd) {
        let at = self.next.get();
        self.next.set(at.wrapping_add(1));
        let Some(shard) = self.target.shards.get(at % self.target.shards.len().max(1)) else { return };
        let (target, listening) = (self.target.clone(), self.listening.clone());
        shard.run(move |shard| ShardTarget::of(&target, shard).adopt(socket, listening));
    }
}

impl RingClient for Acceptor {
    fn done(self: Rc<Self>, completion: Completion, _cookie: u64) {
        self.op.set(None);
        match completion.accepted() {
            Ok(socket) if !self.closed.get() => {
                self.deal(socket);
                self.accept();
            }
            Ok(_) => {}
            // It is shut down, a moment before this shard hears of its end; or the shard itself ends.
            Err(e) if self.closed.get() || matches!(e.raw_os_error(), Some(EINVAL | ECANCELED)) => {}
            Err(error) => {
                tracing::warn!(addr = %self.listening.addr, %error, "nvme/tcp: accept");
                self.shard.timer(PAUSE, self.clone(), 0);
            }
        }
    }
}

impl OnTimer for Acceptor {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.accept();
    }
}
