//! Queues: commands in fixed slots, from their fetch to their completion. One type for all transports and for admin
//! and I/O queues.

mod abort;
mod fused;
mod reserve;
mod run;
mod slot;
mod transport;
mod verify;

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::mem::Sgl;
use engine::stats::ChannelStats;
use engine::{Origin, Scope, ShardHandle};
use nvme_proto::{Sqe, Status};

use crate::controller::{AbortAnswer, AttachError, Controller, QueueLink, QueueToken, Shared};
use crate::subsystem::{Local, Seen};
use slot::Slots;
use verify::Verifies;

pub use transport::{Completion, Data, Direction, Outcome, Reply, Ticket, Transport};

/// What a queue is made of.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// QID; 0 is the admin queue.
    pub qid: u16,
    /// Slots: commands in flight at most.
    pub depth: u16,
}

/// A submission queue and the way its completions go.
pub struct Queue<T: Transport> {
    qid: u16,
    origin: Origin,
    local: Seen,
    shared: Arc<Shared>,
    /// On the admin queue: who executes.
    controller: Option<Rc<Controller>>,
    slots: RefCell<Slots<T::Command>>,
    verifies: RefCell<Verifies>,
    /// The first of a fused pair, whose second is to come next.
    first: Cell<Option<Ticket>>,
    /// The controller's counters on this shard.
    stats: Arc<ChannelStats>,
    transport: T,
    closing: Cell<bool>,
    token: RefCell<Option<QueueToken>>,
}

/// The admin queue, as its controller answers commands that took their time.
pub trait AdminQueue {
    /// Ends a command whose outcome was [`Outcome::Later`].
    fn finish(self: Rc<Self>, ticket: Ticket, reply: Reply);

    /// The identifier of a command that is still in flight.
    fn cid(&self, ticket: Ticket) -> Option<u16>;
}

impl<T: Transport> Queue<T> {
    /// A queue on this shard, attached to its controller; the admin queue brings the controller itself.
    ///
    /// # Errors
    /// Why the controller does not take it.
    pub fn attach(
        config: QueueConfig,
        local: &Rc<Local>,
        shared: &Arc<Shared>,
        controller: Option<Rc<Controller>>,
        transport: T,
    ) -> Result<Rc<Self>, AttachError> {
        let shard = local.shard();
        let origin = Origin::new();
        let queue = Rc::new(Queue {
            qid: config.qid,
            origin,
            local: Seen::new(local, shared.viewer()),
            shared: shared.clone(),
            controller,
            slots: RefCell::new(Slots::new(config.depth)),
            verifies: RefCell::default(),
            first: Cell::new(None),
            stats: shared.stats().open(shard.id()),
            transport,
            closing: Cell::new(false),
            token: RefCell::default(),
        });
        let key = queue.key();
        let link = Link::<T> { shard: shard.handle(), key, origin, queue: PhantomData };
        let token = shared.attach(config.qid, Box::new(link))?;
        queue.token.replace(Some(token));
        shard.put_local(key, queue.clone());
        local.enter(&queue);
        Ok(queue)
    }

    /// Under which its shard keeps it.
    fn key(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    /// QID.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Names its I/O to the volumes.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The controller's shared part.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The controller itself, on the admin queue.
    pub fn controller(&self) -> Option<&Rc<Controller>> {
        self.controller.as_ref()
    }

    /// The subsystem on this shard.
    pub fn local(&self) -> &Rc<Local> {
        self.local.local()
    }

    /// The transport's half.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Whether another command may be fetched: a slot is free, and the queue is not closing.
    pub fn has_room(&self) -> bool {
        !self.closing.get() && self.slots.borrow().has_room()
    }

    /// Commands in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.borrow().in_flight()
    }

    /// Whether the queue takes no more commands.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Executes a command. Its completion may come before this returns.
    ///
    /// # Errors
    /// There is no room (see [`Queue::has_room`]): the command comes back.
    pub fn execute(self: &Rc<Self>, sqe: &Sqe, command: T::Command) -> Result<Ticket, T::Command> {
        if self.closing.get() {
            return Err(command);
        }
        let (ticket, first) = {
            let mut slots = self.slots.borrow_mut();
            let ticket = slots.take(sqe, command)?;
            (ticket, slots.in_flight() == 1)
        };
        if first && self.qid != 0 {
            self.shared.busy().begin(self.local().shard().now());
        }
        self.shared.saw_traffic();
        self.dispatch(ticket, sqe);
        Ok(ticket)
    }

    /// The data that the transport said would come later, or why it will not.
    pub fn data(self: &Rc<Self>, ticket: Ticket, data: Result<Sgl, Status>) {
        match data {
            Ok(sgl) => self.data_is_there(ticket, sgl),
            Err(status) => self.end(ticket, status.into()),
        }
    }

    /// The identifier of a command that is still in flight.
    pub fn cid(&self, ticket: Ticket) -> Option<u16> {
        self.slots.borrow_mut().get(ticket).map(|slot| slot.sqe.cid)
    }

    /// Ends a command whose outcome was [`Outcome::Later`].
    pub fn finish(self: &Rc<Self>, ticket: Ticket, reply: Reply) {
        self.end(ticket, reply);
    }

    /// Takes back I/O of this shard, such as that which holds a guest region (see [`engine::Channel::revoke`]).
    pub fn revoke(&self, scope: Scope) {
        self.local.revoke(scope);
    }

    /// Takes everything back and ends the queue; [`Transport::closed`] is called when the last command has ended,
    /// perhaps before this returns.
    pub fn close(self: &Rc<Self>) {
        if self.closing.replace(true) {
            return;
        }
        self.shared.queue_closes(self.qid);
        self.transport.closing();
        self.local.revoke(Scope::Origin(self.origin));
        let waiting = self.slots.borrow().waiting();
        for ticket in waiting {
            self.end(ticket, Status::ABORTED_SQ_DELETION.into());
        }
        if let Some(controller) = self.controller.as_ref() {
            controller.forget_events();
        }
        self.check_closed();
    }

    /// Ends a queue that closes, if nothing of it is left.
    pub fn check_closed(self: &Rc<Self>) {
        if !self.closing.get() || self.slots.borrow().in_flight() > 0 || !self.transport.is_settled() {
            return;
        }
        let Some(token) = self.token.take() else { return };
        self.local.leave(self.origin);
        self.local.shard().take_local(self.key());
        drop(token);
        self.transport.closed(self);
    }
}

impl<T: Transport> AdminQueue for Queue<T> {
    fn finish(self: Rc<Self>, ticket: Ticket, reply: Reply) {
        self.end(ticket, reply);
    }

    fn cid(&self, ticket: Ticket) -> Option<u16> {
        Queue::cid(self, ticket)
    }
}

/// Reaches a queue on its shard.
struct Link<T> {
    shard: ShardHandle,
    key: u64,
    /// Whose it is: another queue may come to lie at the same address.
    origin: Origin,
    queue: PhantomData<fn() -> T>,
}

impl<T: Transport> Link<T> {
    fn run(&self, f: impl FnOnce(&Rc<Queue<T>>) + Send + 'static) {
        let (key, origin) = (self.key, self.origin);
        self.shard.run(move |shard| {
            if let Some(queue) = shard.local::<Queue<T>>(key).filter(|queue| queue.origin == origin) {
                f(&queue);
            }
        });
    }
}

impl<T: Transport> QueueLink for Link<T> {
    fn close(&self) {
        self.run(Queue::close);
    }

    fn abort(&self, cid: u16, answer: AbortAnswer) {
        self.run(move |queue| queue.abort(cid, answer));
    }

    fn give_back(&self, patience: Duration) {
        self.run(move |queue| queue.give_back(patience));
    }

    fn probe(&self, done: Arc<()>) {
        self.run(move |queue| {
            queue.transport.probe();
            drop(done);
        });
    }
}
