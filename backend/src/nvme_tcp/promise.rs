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

/// What the first of two futures to end gives; the other is dropped.
pub(super) async fn either<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(value),
        Poll::Pending => b.as_mut().poll(cx),
    })
    .await
}

/// What `future` gives, if it does within `time` ([`Duration::MAX`]: however long it takes); else it is dropped.
pub(super) async fn within<T>(shard: &Shard, time: Duration, future: impl Future<Output = T>) -> Option<T> {
    let late = async {
        if time == Duration::MAX {
            return std::future::pending().await;
        }
        shard.sleep(time).await;
        None
    };
    either(async { Some(future.await) }, late).await
}
