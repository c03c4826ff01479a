//! Writes that their issuers took back while the controller had them: until it is known what became of one, later I/O
//! on its blocks waits, on whichever shard it comes, so that no old write lands over a new one.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::ShardHandle;

/// The ghosts of a namespace.
#[derive(Default)]
pub(super) struct Ghosts {
    /// How many there are: all that the path of an I/O looks at when there are none.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    blocks: Vec<Range<u64>>,
    /// Shards that hold I/O back for one of them.
    waiting: Vec<ShardHandle>,
}

impl Ghosts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command that nobody waits for any more may still change these blocks.
    pub fn add(&self, blocks: Range<u64>) {
        let mut inner = self.lock();
        inner.blocks.push(blocks);
        self.count.store(inner.blocks.len(), Ordering::Release);
    }

    /// Whether I/O on these blocks must wait; then `here` is told when to look again.
    pub fn hold(&self, blocks: &Range<u64>, here: impl FnOnce() -> ShardHandle) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut inner = self.lock();
        if !inner.blocks.iter().any(|g| g.start < blocks.end && blocks.start < g.end) {
            return false;
        }
        let here = here();
        if inner.waiting.iter().all(|shard| shard.id() != here.id()) {
            inner.waiting.push(here);
        }
        true
    }

    /// It is known what became of a command; the shards that look again.
    #[must_use]
    pub fn remove(&self, blocks: &Range<u64>) -> Vec<ShardHandle> {
        let mut inner = self.lock();
        if let Some(at) = inner.blocks.iter().position(|g| g == blocks) {
            inner.blocks.swap_remove(at);
        }
        self.count.store(inner.blocks.len(), Ordering::Release);
        std::mem::take(&mut inner.waiting)
    }
}
