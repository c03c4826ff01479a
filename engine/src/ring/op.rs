//! Operations, and the slots that own what the kernel uses.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, squeue, types};

use super::{OpId, RingClient};
use crate::mem::{Room, Sgl};

/// A file or socket that operations share.
pub type Fd = Arc<OwnedFd>;

/// What the kernel takes at once, in iovecs.
pub(super) const MAX_IOVECS: usize = 1024;

/// What a shard asks of the kernel.
#[derive(Debug)]
pub enum RingOp {
    /// Reads from a file at a byte offset into `sgl` from its byte `skip` on.
    Read {
        /// The file.
        fd: Fd,
        /// Byte offset in it.
        offset: u64,
        /// Memory.
        sgl: Sgl,
        /// Bytes of `sgl` to pass over.
        skip: usize,
    },
    /// Writes to a file at a byte offset.
    Write {
        /// The file.
        fd: Fd,
        /// Byte offset in it.
        offset: u64,
        /// Memory.
        sgl: Sgl,
        /// Bytes of `sgl` to pass over.
        skip: usize,
        /// Completes when the medium has it (RWF_DSYNC).
        dsync: bool,
    },
    /// fdatasync(2).
    Fdatasync {
        /// The file.
        fd: Fd,
    },
    /// fallocate(2).
    Fallocate {
        /// The file.
        fd: Fd,
        /// FALLOC_FL_*.
        mode: i32,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Receives what a stream socket has, into `sgl` from its byte `skip` on. A result of 0 is the peer's end.
    Receive {
        /// The socket.
        fd: Fd,
        /// Memory.
        sgl: Sgl,
        /// Bytes of `sgl` to pass over.
        skip: usize,
    },
    /// Receives what a stream socket has into the room of a [`crate::mem::Chunk`]. A result of 0 is the peer's end.
    Fill {
        /// The socket.
        fd: Fd,
        /// Memory.
        room: Room,
    },
    /// Sends lists in order on a stream socket, passing over the first `skip` bytes. May send less than all. The kernel
    /// has copied what it sends when the operation ends.
    Send {
        /// The socket.
        fd: Fd,
        /// Memory.
        sgls: Vec<Sgl>,
        /// Bytes to pass over.
        skip: usize,
        /// Ends at once, with EAGAIN, where it would wait for room.
        now: bool,
    },
    /// Accepts one connection; see [`Completion::accepted`].
    Accept {
        /// The listening socket.
        fd: Fd,
    },
    /// Connects a socket.
    Connect {
        /// The socket.
        fd: Fd,
        /// To where.
        addr: SocketAddr,
    },
    /// Waits until a descriptor is ready: POLLIN, POLLOUT. The result is the events that are.
    Poll {
        /// The descriptor.
        fd: Fd,
        /// POLL* bits.
        events: u32,
    },
}

/// An operation that ended.
#[derive(Debug)]
pub struct Completion {
    /// What had moved into the ring.
    pub op: RingOp,
    /// The kernel's result: bytes, a descriptor, events.
    pub result: io::Result<u32>,
}

impl Completion {
    /// The connection that an `Accept` gave.
    ///
    /// # Errors
    /// The operation's.
    pub fn accepted(self) -> io::Result<OwnedFd> {
        let fd = self.result?;
        match self.op {
            // SAFETY: the kernel has just made this descriptor for us, and this consumes the only word of it.
            RingOp::Accept { .. } => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// The runs of lists, one after the other, from byte `skip` of them all on: as many as the kernel takes.
pub(super) fn gather(sgls: &[Sgl], mut skip: usize, to: &mut Vec<libc::iovec>) {
    for sgl in sgls {
        if skip >= sgl.len() {
            skip -= sgl.len();
            continue;
        }
        if to.len() == MAX_IOVECS {
            break;
        }
        sgl.iovecs(skip, MAX_IOVECS, to);
        skip = 0;
    }
}

/// An operation in flight and everything that it points to. Boxed by the ring: it does not move while the kernel
/// looks at it.
pub(super) struct Slot {
    op: Option<RingOp>,
    client: Option<Rc<dyn RingClient>>,
    cookie: u64,
    seq: u64,
    iovecs: Vec<libc::iovec>,
    /// The kernel writes it while the slot may be looked at.
    msghdr: UnsafeCell<libc::msghdr>,
    addr: Option<socket2::SockAddr>,
}

impl Default for Slot {
    fn default() -> Self {
        Slot {
            op: None,
            client: None,
            cookie: 0,
            seq: 0,
            iovecs: Vec::new(),
            // SAFETY: an all-zero msghdr is valid: no name, no buffers, no control data.
            msghdr: UnsafeCell::new(unsafe { std::mem::zeroed() }),
            addr: None,
        }
    }
}

impl Slot {
    pub(super) fn fill(&mut self, op: RingOp, client: Rc<dyn RingClient>, cookie: u64, seq: u64) {
        (self.op, self.client, self.cookie, self.seq) = (Some(op), Some(client), cookie, seq);
        self.iovecs.clear();
        if let Some(RingOp::Read { sgl, .. } | RingOp::Receive { sgl, .. }) = &self.op {
            sgl.assert_writable();
        }
        match &self.op {
            Some(
                RingOp::Read { sgl, skip, .. }
                | RingOp::Write { sgl, skip, .. }
                | RingOp::Receive { sgl, skip, .. },
            ) => {
                sgl.iovecs(*skip, MAX_IOVECS, &mut self.iovecs);
            }
            Some(RingOp::Fill { room, .. }) => self.iovecs.push(room.seg().iovec()),
            Some(RingOp::Send { sgls, skip, .. }) => gather(sgls, *skip, &mut self.iovecs),
            Some(RingOp::Connect { addr, .. }) => self.addr = Some((*addr).into()),
            _ => {}
        }
        let msghdr = self.msghdr.get_mut();
        msghdr.msg_iov = self.iovecs.as_mut_ptr();
        msghdr.msg_iovlen = self.iovecs.len();
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// The entry for the kernel; it points into this slot.
    pub(super) fn entry(&self) -> squeue::Entry {
        let fd = |fd: &Fd| types::Fd(fd.as_raw_fd());
        let (iov, n) = (self.iovecs.as_ptr(), self.iovecs.len() as u32);
        // A single run needs no list, which the kernel would copy.
        let one = match self.iovecs[..] {
            [run] => u32::try_from(run.iov_len).ok().map(|len| (run.iov_base.cast::<u8>(), len)),
            _ => None,
        };
        match &self.op {
            Some(RingOp::Read { fd: f, offset, .. }) => match one {
                Some((base, len)) => opcode::Read::new(fd(f), base, len).offset(*offset).build(),
                None => opcode::Readv::new(fd(f), iov, n).offset(*offset).build(),
            },
            Some(RingOp::Write { fd: f, offset, dsync, .. }) => {
                let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
                match one {
                    Some((base, len)) => {
                        opcode::Write::new(fd(f), base, len).offset(*offset).rw_flags(flags).build()
                    }
                    None => opcode::Writev::new(fd(f), iov, n).offset(*offset).rw_flags(flags).build(),
                }
            }
            Some(RingOp::Fdatasync { fd: f }) => {
                opcode::Fsync::new(fd(f)).flags(types::FsyncFlags::DATASYNC).build()
            }
            Some(RingOp::Fallocate { fd: f, mode, offset, len }) => {
                opcode::Fallocate::new(fd(f), *len).mode(*mode).offset(*offset).build()
            }
            Some(RingOp::Receive { fd: f, .. } | RingOp::Fill { fd: f, .. }) => match one {
                Some((base, len)) => opcode::Recv::new(fd(f), base, len).build(),
                None => opcode::RecvMsg::new(fd(f), self.msghdr.get()).build(),
            },
            Some(RingOp::Send { fd: f, now, .. }) => {
                let flags = (libc::MSG_NOSIGNAL | if *now { libc::MSG_DONTWAIT } else { 0 }) as u32;
                opcode::SendMsg::new(fd(f), self.msghdr.get()).flags(flags).build()
            }
            Some(RingOp::Accept { fd: f }) => {
                let flags = libc::SOCK_CLOEXEC;
                opcode::Accept::new(fd(f), std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
            }
            Some(RingOp::Connect { fd: f, .. }) => {
                let (at, len) = self.addr.as_ref().map_or((std::ptr::null(), 0), |a| (a.as_ptr(), a.len()));
                opcode::Connect::new(fd(f), at.cast(), len).build()
            }
            Some(RingOp::Poll { fd: f, events }) => opcode::PollAdd::new(fd(f), *events).build(),
            None => opcode::Nop::new().build(),
        }
    }

    pub(super) fn end(&mut self, result: i32) -> Option<(Rc<dyn RingClient>, Completion, u64)> {
        let (op, client) = (self.op.take()?, self.client.take()?);
        let result = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some((client, Completion { op, result }, self.cookie))
    }
}

/// The client behind [`super::Ring::run`].
#[derive(Default)]
pub(super) struct Waiter {
    got: Cell<Option<Completion>>,
    waker: RefCell<Option<Waker>>,
}

impl RingClient for Waiter {
    fn done(self: Rc<Self>, completion: Completion, _cookie: u64) {
        self.got.set(Some(completion));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Nobody waits any more: a connection that was accepted meanwhile is closed.
impl Drop for Waiter {
    fn drop(&mut self) {
        drop(self.got.take().map(Completion::accepted));
    }
}

pub(super) struct Wait {
    pub(super) waiter: Rc<Waiter>,
    pub(super) id: OpId,
    pub(super) cancels: Rc<RefCell<Vec<OpId>>>,
}

impl Future for Wait {
    type Output = Completion;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        match self.waiter.got.take() {
            Some(completion) => Poll::Ready(completion),
            None => {
                self.waiter.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // The ring holds the other reference for as long as the operation lasts.
        if Rc::strong_count(&self.waiter) > 1 {
            self.cancels.borrow_mut().push(self.id);
        }
    }
}
