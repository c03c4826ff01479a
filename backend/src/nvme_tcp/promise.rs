//! What tasks of one shard wait for: a value, messages, or the first of two things.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use engine::Shard;

/// Set once; one task waits.
pub(super) struct Promise<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Promise<T> {
    /// One that is not kept yet.
    pub fn new() -> Rc<Self> {
        Rc::new(Promise { value: RefCell::new(None), waker: RefCell::new(None) })
    }

    /// Keeps it.
    pub fn set(&self, value: T) {
        self.value.replace(Some(value));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until it is kept.
    pub async fn wait(&self) -> T {
        std::future::poll_fn(|cx| match self.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// Messages to a task, in order.
pub(super) struct Mailbox<T> {
    messages: RefCell<VecDeque<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Mailbox { messages: RefCell::default(), waker: RefCell::default() }
    }
}

impl<T> Mailbox<T> {
    pub fn push(&self, message: T) {
        self.messages.borrow_mut().push_back(message);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the next message.
    pub async fn next(&self) -> T {
        std::future::poll_fn(|cx| match self.messages.borrow_mut().pop_front() {
            Some(message) => Poll::Ready(message),
            None => {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// What `future` gives, if it does before `other` ends; then `future` is dropped.
pub(super) async fn unless<T>(other: impl Future<Output = ()>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut other = std::pin::pin!(other);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => other.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// What `future` gives, if it does within `time`.
pub(super) async fn within<T>(shard: &Shard, time: Duration, future: impl Future<Output = T>) -> Option<T> {
    unless(shard.sleep(time), future).await
}

/// Runs two futures to their ends.
pub(super) async fn both(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut a_done, mut b_done) = (false, false);
    std::future::poll_fn(|cx| {
        a_done = a_done || a.as_mut().poll(cx).is_ready();
        b_done = b_done || b.as_mut().poll(cx).is_ready();
        if a_done && b_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await
}
