//! Futures that run on one shard: for what awaits more than once (connecting, control sequences), not for the path
//! of every I/O.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use slab::Slab;

use super::inbox::Bell;

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that were woken, from this thread or another.
struct Ready {
    keys: Mutex<Vec<usize>>,
    /// Whether there are any: looked at in every turn, without the lock.
    any: AtomicBool,
    bell: Arc<Bell>,
}

impl Ready {
    fn keys(&self) -> MutexGuard<'_, Vec<usize>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct TaskWaker {
    key: usize,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.keys().push(self.key);
        self.ready.any.store(true, Ordering::Release);
        self.ready.bell.ring();
    }
}

enum Slot {
    Waiting(Boxed, Waker),
    /// Being polled at the moment.
    Running,
    /// Dropped while it was being polled.
    Cancelled,
}

struct Inner {
    /// With the sequence number of the task, since slots are used again.
    slots: RefCell<Slab<(u64, Slot)>>,
    seq: Cell<u64>,
    ready: Arc<Ready>,
}

pub(super) struct Tasks(Rc<Inner>);

/// A running future; dropping it ends the future at its next await point.
#[must_use = "the future ends when its task is dropped; see `Task::detach`"]
pub struct Task {
    key: usize,
    seq: u64,
    of: Weak<Inner>,
}

impl Task {
    /// Lets the future run to its own end.
    pub fn detach(mut self) {
        self.of = Weak::new();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let Some(inner) = self.of.upgrade() else { return };
        let gone = {
            let mut slots = inner.slots.borrow_mut();
            match slots.get_mut(self.key).filter(|(seq, _)| *seq == self.seq) {
                Some((_, slot @ Slot::Running)) => Some((0, std::mem::replace(slot, Slot::Cancelled))),
                Some((_, Slot::Waiting(..))) => slots.try_remove(self.key),
                _ => None,
            }
        };
        drop(gone);
    }
}

impl Tasks {
    /// None yet; the bell is that of their shard.
    pub(super) fn new(bell: &Arc<Bell>) -> Self {
        let ready =
            Arc::new(Ready { keys: Mutex::default(), any: AtomicBool::new(false), bell: bell.clone() });
        Tasks(Rc::new(Inner { slots: RefCell::default(), seq: Cell::new(0), ready }))
    }

    pub(super) fn spawn(&self, future: Boxed) -> Task {
        let mut slots = self.0.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let key = entry.key();
        let waker = Waker::from(Arc::new(TaskWaker { key, ready: self.0.ready.clone() }));
        waker.wake_by_ref();
        let seq = self.0.seq.get();
        self.0.seq.set(seq + 1);
        entry.insert((seq, Slot::Waiting(future, waker)));
        Task { key, seq, of: Rc::downgrade(&self.0) }
    }

    pub(super) fn clear(&self) {
        drop(self.0.slots.take());
    }

    pub(super) fn has_ready(&self) -> bool {
        self.0.ready.any.load(Ordering::Acquire)
    }

    pub(super) fn run(&self) -> bool {
        // Before the keys are taken: one that comes meanwhile is seen in the next turn at the latest.
        if !self.has_ready() || !self.0.ready.any.swap(false, Ordering::AcqRel) {
            return false;
        }
        let ready = std::mem::take(&mut *self.0.ready.keys());
        let any = !ready.is_empty();
        for key in ready {
            self.poll(key);
        }
        any
    }

    fn poll(&self, key: usize) {
        let taken = {
            let mut slots = self.0.slots.borrow_mut();
            match slots.get_mut(key) {
                Some((_, slot @ Slot::Waiting(..))) => std::mem::replace(slot, Slot::Running),
                _ => return,
            }
        };
        let Slot::Waiting(mut future, waker) = taken else { return };
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let gone = {
            let mut slots = self.0.slots.borrow_mut();
            match slots.get_mut(key) {
                Some((_, slot @ Slot::Running)) if !ended => {
                    *slot = Slot::Waiting(future, waker);
                    return;
                }
                _ => (slots.try_remove(key), future),
            }
        };
        drop(gone);
    }
}
