//! One fused Compare and Write at a time on each namespace, whichever queue, shard or transport it comes by; meanwhile no
//! other command writes to its blocks.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Local, Subsystem};

/// Called when the range is locked, from any thread.
pub(crate) type Granted = Box<dyn FnOnce(RangeGuard) + Send>;

#[derive(Default)]
struct Locked {
    /// What the gates of the shards are closed to.
    range: Option<Range<u64>>,
    waiting: VecDeque<(Range<u64>, Granted)>,
}

/// The locks of a subsystem, by NSID; one that is here is taken.
#[derive(Default)]
pub(super) struct RangeLocks(Mutex<BTreeMap<u32, Locked>>);

impl RangeLocks {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, Locked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A locked range; dropped, it is free.
pub(crate) struct RangeGuard {
    subsystem: Arc<Subsystem>,
    nsid: u32,
}

/// The last gate to close lets it go.
struct Closing {
    guard: Mutex<Option<(RangeGuard, Granted)>>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let guard = self.guard.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((guard, granted)) = guard.take() {
            granted(guard);
        }
    }
}

impl Subsystem {
    /// Locks blocks of a namespace against writes: `granted` is called when those that had begun have ended.
    pub(crate) fn lock_range(self: &Arc<Self>, nsid: u32, range: Range<u64>, granted: Granted) {
        {
            let mut all = self.range_locks.all();
            if let Some(locked) = all.get_mut(&nsid) {
                return locked.waiting.push_back((range, granted));
            }
            all.insert(nsid, Locked { range: Some(range.clone()), waiting: VecDeque::new() });
        }
        self.close_gates(nsid, range, granted);
    }

    fn close_gates(self: &Arc<Self>, nsid: u32, range: Range<u64>, granted: Granted) {
        let guard = RangeGuard { subsystem: self.clone(), nsid };
        let closing = Arc::new(Closing { guard: Mutex::new(Some((guard, granted))) });
        let key = self.key();
        for shard in &self.shards {
            let (range, closing) = (range.clone(), closing.clone());
            shard.run(move |shard| {
                let attachment = shard.local::<Local>(key).and_then(|local| local.namespace(nsid));
                if let Some(attachment) = attachment {
                    attachment.gate().close(range, Some(closing));
                }
            });
        }
    }

    /// What a shard that has just begun to use a namespace must not write to.
    pub(super) fn locked_range(&self, nsid: u32) -> Option<Range<u64>> {
        self.range_locks.all().get(&nsid).and_then(|locked| locked.range.clone())
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let (subsystem, nsid) = (&self.subsystem, self.nsid);
        // A shard that begins to use the namespace from here on finds it open.
        if let Some(locked) = subsystem.range_locks.all().get_mut(&nsid) {
            locked.range = None;
        }
        let key = subsystem.key();
        for shard in &subsystem.shards {
            shard.run(move |shard| {
                if let Some(attachment) = shard.local::<Local>(key).and_then(|local| local.namespace(nsid)) {
                    attachment.gate().open();
                }
            });
        }
        // The next one's gates close after these have opened: messages keep their order.
        let next = {
            let mut all = subsystem.range_locks.all();
            let next = all.get_mut(&nsid).and_then(|locked| {
                let (range, granted) = locked.waiting.pop_front()?;
                locked.range = Some(range.clone());
                Some((range, granted))
            });
            if next.is_none() {
                all.remove(&nsid);
            }
            next
        };
        if let Some((range, granted)) = next {
            subsystem.close_gates(nsid, range, granted);
        }
    }
}
