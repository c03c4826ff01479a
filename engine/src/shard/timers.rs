//! Timers of a shard. Few: layers scan their I/O with one timer, not one per I/O.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Shard;

/// Who is called when time has come.
pub trait OnTimer {
    /// The timer with `cookie` fired; it is gone.
    fn on_timer(self: Rc<Self>, cookie: u64);
}

/// Names a timer of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId {
    at: u64,
    seq: u64,
}

/// Who is called, with which cookie.
type Target = (Rc<dyn OnTimer>, u64);

#[derive(Default)]
pub(super) struct Timers {
    all: RefCell<BTreeMap<TimerId, Target>>,
    seq: Cell<u64>,
}

impl Timers {
    pub(super) fn add(&self, at: u64, target: Rc<dyn OnTimer>, cookie: u64) -> TimerId {
        let id = TimerId { at, seq: self.seq.replace(self.seq.get() + 1) };
        self.all.borrow_mut().insert(id, (target, cookie));
        id
    }

    pub(super) fn remove(&self, id: TimerId) {
        let gone = self.all.borrow_mut().remove(&id);
        drop(gone);
    }

    pub(super) fn clear(&self) {
        drop(self.all.take());
    }

    /// When the first one is due.
    pub(super) fn first(&self) -> Option<u64> {
        self.all.borrow().keys().next().map(|id| id.at)
    }

    /// Fires what is due, but for timers made meanwhile: those have their turn in the next.
    pub(super) fn fire(&self, now: u64) -> bool {
        let mut any = false;
        let made = self.seq.get();
        loop {
            let due = {
                let mut all = self.all.borrow_mut();
                match all.first_entry() {
                    Some(first) if first.key().at <= now && first.key().seq < made => first.remove(),
                    _ => return any,
                }
            };
            due.0.on_timer(due.1);
            any = true;
        }
    }
}

/// A future that waits.
pub(super) struct Sleep {
    shard: Shard,
    delay: Duration,
    state: Rc<SleepState>,
    timer: Option<TimerId>,
}

#[derive(Default)]
struct SleepState {
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl OnTimer for SleepState {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.done.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Sleep {
    pub(super) fn new(shard: Shard, delay: Duration) -> Self {
        Sleep { shard, delay, state: Rc::default(), timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.done.get() {
            return Poll::Ready(());
        }
        self.state.waker.replace(Some(cx.waker().clone()));
        if self.timer.is_none() {
            let timer = self.shard.timer(self.delay, self.state.clone(), 0);
            self.timer = Some(timer);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.shard.cancel_timer(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Log(Timers, RefCell<Vec<u64>>, Cell<u64>);

    impl OnTimer for Log {
        fn on_timer(self: Rc<Self>, cookie: u64) {
            self.1.borrow_mut().push(cookie);
            if cookie == 0 {
                self.0.add(self.2.get(), self.clone(), 0);
            }
        }
    }

    #[test]
    fn timers_fire_in_order_and_one_that_is_always_due_holds_nobody_up() {
        let log = Rc::new(Log(Timers::default(), RefCell::default(), Cell::new(0)));
        log.0.add(7, log.clone(), 2);
        log.0.add(5, log.clone(), 1);
        let gone = log.0.add(6, log.clone(), 3);
        log.0.add(0, log.clone(), 0);
        log.0.remove(gone);
        let fire = |now| {
            log.2.set(now);
            assert!(log.0.fire(now));
            log.1.take()
        };
        assert_eq!(fire(6), [0, 1]);
        assert_eq!(fire(7), [0, 2]);
        assert_eq!(log.0.first(), Some(7));
    }
}
