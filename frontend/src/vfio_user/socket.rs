//! A client's socket on its shard: messages in, messages out, in their order and without waiting.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use engine::Shard;
use engine::ring::{Completion, Fd, RingClient, RingOp, receive_with_fds, send_with_fds};
use nix::poll::PollFlags;
use nix::sys::socket::{Shutdown, shutdown};

use super::frame::{Message, Receiver};
use super::reject::Reject;

/// Messages that may wait to be sent before no more are read.
const BACKLOG: usize = 64;

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<Fd>,
}

/// A connected client.
pub(super) struct Socket {
    fd: Fd,
    shard: Shard,
    out: RefCell<VecDeque<Outgoing>>,
    /// The socket is full: its end is awaited.
    full: Cell<bool>,
    dead: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Socket {
    pub fn new(shard: &Shard, fd: OwnedFd) -> Rc<Self> {
        Rc::new(Socket {
            fd: Arc::new(fd),
            shard: shard.clone(),
            out: RefCell::default(),
            full: Cell::new(false),
            dead: Cell::new(false),
            waiter: RefCell::default(),
        })
    }

    /// The next message; `None` when the client is gone.
    ///
    /// # Errors
    /// The client does not speak the protocol.
    pub async fn receive(&self, receiver: &mut Receiver) -> Result<Option<Message>, Reject> {
        let mut fds = Vec::new();
        while !self.dead.get() {
            match receive_with_fds(self.fd.as_fd(), receiver.space(), &mut fds) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    if let Some(message) = receiver.filled(n, fds.drain(..))? {
                        return Ok(Some(message));
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let events = PollFlags::POLLIN.bits() as u32;
                    let ready = self.shard.ring().run(RingOp::Poll { fd: self.fd.clone(), events }).await;
                    if ready.result.is_err() {
                        return Ok(None);
                    }
                }
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Sends a message after those before it.
    pub fn send(self: &Rc<Self>, bytes: Vec<u8>, fds: Vec<Fd>) {
        self.out.borrow_mut().push_back(Outgoing { bytes, sent: 0, fds });
        if !self.full.get() {
            self.flush();
        }
    }

    fn flush(self: &Rc<Self>) {
        loop {
            let mut out = self.out.borrow_mut();
            let Some(first) = out.front_mut().filter(|_| !self.dead.get()) else { break };
            let fds: Vec<BorrowedFd<'_>> =
                if first.sent == 0 { first.fds.iter().map(|fd| fd.as_fd()).collect() } else { Vec::new() };
            match send_with_fds(self.fd.as_fd(), &first.bytes[first.sent..], &fds) {
                Ok(n) if first.sent + n < first.bytes.len() => first.sent += n,
                Ok(_) => drop(out.pop_front()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    drop(out);
                    self.full.set(true);
                    let events = PollFlags::POLLOUT.bits() as u32;
                    let op = RingOp::Poll { fd: self.fd.clone(), events };
                    self.shard.ring().start(op, self.clone(), 0);
                    return;
                }
                Err(_) => {
                    drop(out);
                    self.shut();
                }
            }
        }
        if let Some(waker) = self.waiter.take() {
            waker.wake();
        }
    }

    /// Whether too many messages are left to be sent.
    pub fn is_full(&self) -> bool {
        !self.dead.get() && self.out.borrow().len() >= BACKLOG
    }

    /// Waits until few enough messages are left to be sent: a client that does not read is not read.
    pub async fn has_room(&self) {
        std::future::poll_fn(|cx| {
            if !self.is_full() {
                return Poll::Ready(());
            }
            self.waiter.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Ends the connection; [`Socket::receive`] gives `None` from now on.
    pub fn shut(&self) {
        self.dead.set(true);
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        self.out.borrow_mut().clear();
        if let Some(waker) = self.waiter.take() {
            waker.wake();
        }
    }
}

impl RingClient for Socket {
    fn done(self: Rc<Self>, _: Completion, _: u64) {
        self.full.set(false);
        self.flush();
    }
}
