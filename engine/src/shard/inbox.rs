//! What other threads ask of a shard: closures, run in its next turn.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Shard;
use crate::ring::Fd;

type Message = Box<dyn FnOnce(&Shard) + Send>;

/// Reaches one shard from anywhere.
#[derive(Clone)]
pub struct ShardHandle {
    id: usize,
    to: Sender<Message>,
    bell: Arc<Bell>,
}

/// Wakes the shard, if it sleeps.
pub(super) struct Bell {
    asleep: AtomicBool,
    event: Fd,
}

impl Bell {
    /// After something was put where the shard looks before it sleeps.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _ = nix::unistd::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl ShardHandle {
    /// The shard's number.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Runs `f` on the shard in its next turn; after the shard stopped, never.
    pub fn run(&self, f: impl FnOnce(&Shard) + Send + 'static) {
        if self.to.send(Box::new(f)).is_ok() {
            self.bell.ring();
        }
    }

    /// As [`ShardHandle::run`], and waits for what `f` gives; `None` if the shard stopped. Never called on a shard.
    pub fn call<R: Send + 'static>(&self, f: impl FnOnce(&Shard) -> R + Send + 'static) -> Option<R> {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        self.run(move |shard| drop(tx.send(f(shard))));
        rx.recv().ok()
    }
}

impl std::fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardHandle({})", self.id)
    }
}

pub(super) struct Inbox {
    id: usize,
    /// `None` when the shard has ended.
    from: RefCell<Option<Receiver<Message>>>,
    to: Sender<Message>,
    /// A message taken while looking whether there is one.
    next: Cell<Option<Message>>,
    bell: Arc<Bell>,
}

impl Inbox {
    pub(super) fn new(id: usize) -> std::io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (to, from) = channel();
        let bell = Arc::new(Bell { asleep: AtomicBool::new(false), event: Arc::new(event.into()) });
        Ok(Inbox { id, from: RefCell::new(Some(from)), to, next: Cell::new(None), bell })
    }

    pub(super) fn handle(&self) -> ShardHandle {
        ShardHandle { id: self.id, to: self.to.clone(), bell: self.bell.clone() }
    }

    fn take(&self) -> Option<Message> {
        if let Some(m) = self.next.take() {
            return Some(m);
        }
        self.from.borrow().as_ref()?.try_recv().ok()
    }

    /// Takes no more messages, and drops those that have come.
    pub(super) fn close(&self) {
        let unseen = (self.next.take(), self.from.take());
        drop(unseen);
    }

    /// Runs what is there, up to a budget of messages and time, and a few in any case.
    pub(super) fn run(&self, shard: &Shard, until: u64) -> bool {
        let mut ran = 0;
        while ran < 256 {
            let Some(message) = self.take() else { break };
            message(shard);
            ran += 1;
            if ran % 16 == 0 {
                shard.tick();
                if shard.now() >= until {
                    break;
                }
            }
        }
        ran > 0
    }

    pub(super) fn has_messages(&self) -> bool {
        let next = self.take();
        let any = next.is_some();
        self.next.set(next);
        any
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// The descriptor that becomes readable when the bell rings.
    pub(super) fn event(&self) -> Fd {
        self.bell.event.clone()
    }

    /// Before the last look: from now on messages ring the bell.
    pub(super) fn arm(&self) {
        self.bell.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// A ring of the bell may still be on its way: the shard's ring silences it whenever it comes.
    pub(super) fn disarm(&self) {
        self.bell.asleep.store(false, Ordering::SeqCst);
    }
}
