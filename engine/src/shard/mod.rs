//! A shard: one thread, its ring, its timers, its share of everything. Shards share no data-plane object; they send
//! each other closures.

mod batch;
mod inbox;
mod poller;
mod run;
mod sim;
mod tasks;
mod timers;
mod turn;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use batch::Batch;
pub use inbox::ShardHandle;
pub use poller::{Poller, PollerId, Wake};
pub use run::{Config, Shards};
pub use sim::Sim;
pub use tasks::Task;
pub use timers::{OnTimer, TimerId};

use crate::io::{Io, IoResult};
use crate::ring::Ring;
use crate::volume::{Channel, ChannelRef, WeakChannelRef};

thread_local! {
    static CURRENT: RefCell<Option<Shard>> = const { RefCell::new(None) };
}

/// The shard whose turn it is on this thread, in nanoseconds of its clock; zero outside a turn.
pub(crate) fn now() -> u64 {
    CURRENT.with_borrow(|s| s.as_ref().map_or(0, Shard::now))
}

/// Puts `io` on the list of what has completed, for this turn of this thread's shard.
pub(crate) fn completed(io: Io, result: IoResult) {
    let mut io = Some(io);
    let _ = CURRENT.try_with(|current| {
        if let Some(shard) = &*current.borrow()
            && let Some(io) = io.take()
        {
            shard.0.completed.borrow_mut().push_back((io, result));
        }
    });
    if let Some(io) = io {
        // Outside a turn the shard has ended, and with it everyone who waits: the memory is let go, nobody is told.
        io.abandon();
    }
}

/// Who is called at the end of a batch: see [`Shard::at_turn_end`].
pub trait TurnEnd {
    /// Sends what has gathered, and begins what was to follow it.
    fn turn_end(self: Rc<Self>);
}

/// What one turn of the clock reads.
enum Clock {
    Real(Instant),
    /// Moves only when the simulation has nothing else to do.
    Virtual(Rc<Cell<u64>>),
}

impl Clock {
    fn read(&self) -> u64 {
        match self {
            Clock::Real(start) => start.elapsed().as_nanos() as u64,
            Clock::Virtual(now) => now.get(),
        }
    }
}

struct Inner {
    id: usize,
    clock: Clock,
    now: Cell<u64>,
    ring: Ring,
    inbox: inbox::Inbox,
    timers: timers::Timers,
    tasks: tasks::Tasks,
    pollers: poller::Pollers,
    completed: RefCell<VecDeque<(Io, IoResult)>>,
    dirty: Batch<Rc<dyn Channel>>,
    /// Dirty at the end of the next turn.
    later: Batch<Rc<dyn Channel>>,
    ends: Batch<Rc<dyn TurnEnd>>,
    channels: RefCell<HashMap<usize, WeakChannelRef>>,
    locals: RefCell<HashMap<u64, Rc<dyn Any>>>,
    /// When a poller last had work, or came.
    polled: Cell<u64>,
    stopping: Cell<bool>,
}

/// A handle on the shard of this thread; cheap to clone, never leaves the thread.
#[derive(Clone)]
pub struct Shard(Rc<Inner>);

impl Shard {
    fn new(id: usize, clock: Clock, ring: Ring, inbox: inbox::Inbox) -> Self {
        Shard(Rc::new(Inner {
            id,
            now: Cell::new(clock.read()),
            clock,
            ring,
            tasks: tasks::Tasks::new(inbox.bell()),
            inbox,
            timers: timers::Timers::default(),
            pollers: poller::Pollers::default(),
            completed: RefCell::default(),
            dirty: Batch::default(),
            later: Batch::default(),
            ends: Batch::default(),
            channels: RefCell::default(),
            locals: RefCell::default(),
            polled: Cell::new(0),
            stopping: Cell::new(false),
        }))
    }

    /// The shard whose turn it is on this thread.
    pub fn current() -> Option<Shard> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Its number, from 0.
    pub fn id(&self) -> usize {
        self.0.id
    }

    /// Nanoseconds on the shard's clock, read once in a while during a turn: monotonic, cheap, a few microseconds old.
    pub fn now(&self) -> u64 {
        self.0.now.get()
    }

    /// Whether it is one of a [`Sim`]: then time is not the world's, and what else runs on a thread of its own is
    /// better done by a message, so that everything happens in one order.
    pub fn is_simulated(&self) -> bool {
        matches!(self.0.clock, Clock::Virtual(_))
    }

    /// How others reach this shard.
    pub fn handle(&self) -> ShardHandle {
        self.0.inbox.handle()
    }

    /// The shard's ring.
    pub fn ring(&self) -> &Ring {
        &self.0.ring
    }

    /// Notes that `channel` has something to send at the end of this turn: its [`Channel::kick`] is called once for
    /// each call of this. Channels keep a flag of their own so that a batch notes itself once.
    pub fn dirty(&self, channel: Rc<dyn Channel>) {
        self.0.dirty.push(channel);
    }

    /// As [`Shard::dirty`], at the end of the next turn: for one that waits for more to send.
    pub fn dirty_next_turn(&self, channel: Rc<dyn Channel>) {
        self.0.later.push(channel);
    }

    /// As [`Shard::dirty`], for what is no channel: a host's connection or completion queue, which have answers to send.
    pub fn at_turn_end(&self, target: Rc<dyn TurnEnd>) {
        self.0.ends.push(target);
    }

    /// Calls `target` with `cookie` in the first turn at or after `delay` from now.
    pub fn timer(&self, delay: Duration, target: Rc<dyn OnTimer>, cookie: u64) -> TimerId {
        let at = self.now().saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
        self.0.timers.add(at, target, cookie)
    }

    /// Forgets a timer; nothing happens if it has fired.
    pub fn cancel_timer(&self, id: TimerId) {
        self.0.timers.remove(id);
    }

    /// Runs `future` on this shard, in its turns, until it ends or the returned task is dropped.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> Task {
        self.0.tasks.spawn(Box::pin(future))
    }

    /// A future that is ready `delay` from now.
    pub fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> {
        timers::Sleep::new(self.clone(), delay)
    }

    /// Adds what is looked at in every turn.
    pub fn add_poller(&self, poller: Rc<dyn Poller>) -> PollerId {
        self.0.polled.set(self.now());
        self.0.pollers.add(poller)
    }

    /// Forgets a poller.
    pub fn remove_poller(&self, id: PollerId) {
        self.0.pollers.remove(id);
    }

    /// Keeps `object` on this shard under `key`, for closures that come from elsewhere; the one that was there goes.
    pub fn put_local(&self, key: u64, object: Rc<dyn Any>) {
        let before = self.0.locals.borrow_mut().insert(key, object);
        drop(before);
    }

    /// The object under `key`, if it is a `T`.
    pub fn local<T: 'static>(&self, key: u64) -> Option<Rc<T>> {
        self.0.locals.borrow().get(&key).cloned()?.downcast().ok()
    }

    /// Lets go of the object under `key`.
    pub fn take_local(&self, key: u64) -> Option<Rc<dyn Any>> {
        self.0.locals.borrow_mut().remove(&key)
    }

    pub(crate) fn channel(&self, key: usize) -> Option<ChannelRef> {
        self.0.channels.borrow().get(&key)?.upgrade()
    }

    pub(crate) fn keep_channel(&self, key: usize, channel: &ChannelRef) {
        let mut channels = self.0.channels.borrow_mut();
        if channels.len() >= 64 && channels.len().is_power_of_two() {
            channels.retain(|_, c| c.upgrade().is_some());
        }
        channels.insert(key, channel.downgrade());
    }
}
