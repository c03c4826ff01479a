//! What a transport does for a queue: where a command's data is, and how it is answered.

use std::rc::Rc;

use engine::mem::Sgl;
use nvme_proto::{Sqe, Status};

use super::Queue;

/// Names a command in flight: a slot of its queue, and which of the slot's commands it is. Stale ones are harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The slot: 0 up to the queue's depth.
    pub slot: u16,
    pub(super) seq: u32,
}

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A write.
    FromHost,
    /// A read.
    ToHost,
}

/// A transport's answer to "where is the data?".
#[derive(Debug)]
pub enum Data {
    /// In the list that was given. From the host: the bytes are there. To the host: memory that the transport delivers
    /// with the completion.
    Ready,
    /// [`Queue::data`] will tell, later.
    Later,
    /// There is none: the command ends with this status.
    Failed(Status),
}

/// How a command ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: Status,
    /// DW0 of the completion.
    pub dw0: u32,
    /// DW1 of the completion.
    pub dw1: u32,
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Reply { status, dw0: 0, dw1: 0 }
    }
}

impl Reply {
    /// Success with a value in DW0.
    pub fn value(dw0: u32) -> Self {
        Reply { dw0, ..Reply::default() }
    }
}

/// What becomes of a command that is not I/O.
#[derive(Debug)]
pub enum Outcome {
    /// It has ended.
    Done(Reply),
    /// It succeeded, and these bytes go to the host.
    ToHost(Vec<u8>),
    /// It needs that many bytes from the host first.
    FromHost(usize),
    /// [`Queue::finish`] will be called.
    Later,
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        Outcome::Done(status.into())
    }
}

/// The completion of a command.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The command; its slot is free again after [`Transport::complete`] has returned.
    pub ticket: Ticket,
    /// The command's identifier.
    pub cid: u16,
    /// Status and values.
    pub reply: Reply,
}

/// One queue's half of a transport. It is called by its queue, and calls the queue back only from outside these calls
/// (but for [`Queue::cid`] and the like, and not even those from [`Transport::data`]).
pub trait Transport: Sized + 'static {
    /// What it keeps of a command from [`Queue::execute`] to [`Transport::complete`].
    type Command;

    /// Whether [`Transport::intercept`] has anything to say about commands of I/O queues.
    const INTERCEPTS_IO: bool;

    /// Whether what a read brings may be a volume's own memory ([`Io::forward_to_borrow`](engine::Io::forward_to_borrow)):
    /// then the transport lets go of it by the end of the turn.
    const BORROWS: bool = false;

    /// Takes a command that only this transport knows: Create I/O Submission Queue, Property Get. `None` leaves it to
    /// the controller and the namespaces.
    fn intercept(
        &self,
        queue: &Rc<Queue<Self>>,
        ticket: Ticket,
        sqe: &Sqe,
        command: &mut Self::Command,
    ) -> Option<Outcome>;

    /// Where `len` bytes (never zero, at most MDTS or 4 KiB) of a command's data are or go: in `to`, which is empty, if it
    /// is known now. Called at most once for each command.
    fn data(
        &self,
        ticket: Ticket,
        sqe: &Sqe,
        command: &mut Self::Command,
        direction: Direction,
        len: usize,
        to: &mut Sgl,
    ) -> Data;

    /// Whether a command that waits for its data may end now: not while the peer has been asked for the data and will
    /// send it.
    fn may_end(&self, ticket: Ticket) -> bool {
        let _ = ticket;
        true
    }

    /// Answers a command. It notes the answer and sends it at the end of the turn, with others. `data` is for the host,
    /// and may be taken; it is empty unless the command succeeded and reads.
    fn complete(&self, command: Self::Command, completion: &Completion, data: &mut Sgl);

    /// The queue closes: nothing is fetched any more, commands that wait for data have ended.
    fn closing(&self);

    /// Whether a queue that closes may end, as far as this transport is concerned: [`Queue::check_closed`] asks.
    fn is_settled(&self) -> bool {
        true
    }

    /// Looks whether the peer is gone, and closes the queue if so.
    fn probe(&self) {}

    /// The queue has closed: its last command has ended. Its place in the controller is free when this returns.
    fn closed(&self, queue: &Rc<Queue<Self>>);
}
