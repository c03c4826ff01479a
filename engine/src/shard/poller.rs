//! What a shard looks at in every turn: doorbells in shared memory.

use std::cell::RefCell;
use std::rc::Rc;

use slab::Slab;

/// How a poller lets the shard sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It has work: no sleep.
    Busy,
    /// An event will wake the shard, or nothing can come.
    Event,
    /// Nothing tells the shard: it must look from time to time.
    Look,
}

/// Something that is looked at in every turn.
pub trait Poller {
    /// Looks, and does what is there. Whether there was anything.
    fn poll(self: Rc<Self>) -> bool;

    /// The shard is about to sleep: arm what wakes it, then look once more. After [`Wake::Look`] this is called again
    /// at each look, and [`Poller::poll`] only when it says [`Wake::Busy`], or something else has woken the shard.
    fn sleep(&self) -> Wake;
}

/// Names a poller of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollerId(usize);

#[derive(Default)]
pub(super) struct Pollers {
    all: RefCell<Slab<Rc<dyn Poller>>>,
    /// The same, for walking while it changes.
    walk: RefCell<Vec<Rc<dyn Poller>>>,
}

impl Pollers {
    pub(super) fn add(&self, poller: Rc<dyn Poller>) -> PollerId {
        let id = self.all.borrow_mut().insert(poller);
        self.walk.borrow_mut().clear();
        PollerId(id)
    }

    pub(super) fn remove(&self, id: PollerId) {
        let gone = (self.all.borrow_mut().try_remove(id.0), self.walk.take());
        drop(gone);
    }

    pub(super) fn clear(&self) {
        drop((self.all.take(), self.walk.take()));
    }

    fn refresh(&self) {
        let (all, mut walk) = (self.all.borrow(), self.walk.borrow_mut());
        if walk.is_empty() && !all.is_empty() {
            walk.extend(all.iter().map(|(_, p)| p.clone()));
        }
    }

    pub(super) fn poll(&self) -> bool {
        self.refresh();
        let mut busy = false;
        let mut at = 0;
        loop {
            // A poller may add or remove pollers: then the walk starts anew in the next turn.
            let Some(poller) = self.walk.borrow().get(at).cloned() else { return busy };
            busy |= poller.poll();
            at += 1;
        }
    }

    pub(super) fn sleep(&self) -> Wake {
        self.refresh();
        let (mut wake, mut at) = (Wake::Event, 0);
        loop {
            let Some(poller) = self.walk.borrow().get(at).cloned() else { break };
            match poller.sleep() {
                Wake::Busy => return Wake::Busy,
                Wake::Look => wake = Wake::Look,
                Wake::Event => {}
            }
            at += 1;
        }
        // One that came or went meanwhile cut the walk short.
        if at == self.all.borrow().len() { wake } else { Wake::Busy }
    }
}
