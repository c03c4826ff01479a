//! What keeps writes from a range of a namespace while a fused Compare and Write is at work on it (NVM Command Set 1.1,
//! 2.1.4.4). Each shard has one for each namespace; it costs a write a look at a flag and a count.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

/// Held while the gate is not closed yet.
pub(crate) type Closing = Arc<dyn Any + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Cell<bool>,
    range: RefCell<Range<u64>>,
    /// Writes at work, apart from each other by whether they began before the gate was last closed.
    writing: [Cell<usize>; 2],
    epoch: Cell<bool>,
    closing: RefCell<Option<Closing>>,
    parked: RefCell<Vec<Box<dyn FnOnce()>>>,
}

impl Gate {
    /// Whether a write to these blocks must wait.
    pub fn holds(&self, range: impl FnOnce() -> Range<u64>) -> bool {
        self.closed.get() && {
            let (held, range) = (self.range.borrow(), range());
            range.start < held.end && held.start < range.end
        }
    }

    /// Calls `go` when the gate opens.
    pub fn park(&self, go: Box<dyn FnOnce()>) {
        self.parked.borrow_mut().push(go);
    }

    /// A write begins; it gives [`Gate::leave`] the answer.
    pub fn enter(&self) -> bool {
        let epoch = self.epoch.get();
        let writing = &self.writing[usize::from(epoch)];
        writing.set(writing.get() + 1);
        epoch
    }

    /// A write has ended.
    pub fn leave(&self, epoch: bool) {
        let writing = &self.writing[usize::from(epoch)];
        writing.set(writing.get().saturating_sub(1));
        if writing.get() == 0 && epoch != self.epoch.get() {
            drop(self.closing.take());
        }
    }

    /// Lets no new writes to these blocks begin; `closing` is let go when those before have ended.
    pub fn close(&self, range: Range<u64>, closing: Option<Closing>) {
        self.closed.set(true);
        self.range.replace(range);
        let before = self.epoch.replace(!self.epoch.get());
        if self.writing[usize::from(before)].get() > 0 {
            drop(self.closing.replace(closing));
        }
    }

    /// Lets writes begin again, first those that waited.
    pub fn open(&self) {
        self.closed.set(false);
        drop(self.closing.take());
        self.parked.take().into_iter().for_each(|go| go());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_closes_when_the_writes_before_have_ended() {
        let gate = Gate::default();
        assert!(!gate.holds(|| 0..u64::MAX));
        let (a, b) = (gate.enter(), gate.enter());
        let closing: Closing = Arc::new(());
        gate.close(10..12, Some(closing.clone()));
        assert!(
            gate.holds(|| 11..20) && gate.holds(|| 0..11) && !gate.holds(|| 12..20) && !gate.holds(|| 0..10)
        );
        // A write elsewhere that begins now is not waited for.
        let c = gate.enter();
        gate.leave(a);
        assert_eq!(Arc::strong_count(&closing), 2);
        gate.leave(b);
        assert_eq!(Arc::strong_count(&closing), 1);
        gate.open();
        gate.close(0..1, Some(closing.clone()));
        assert_eq!(Arc::strong_count(&closing), 2);
        gate.leave(c);
        assert_eq!(Arc::strong_count(&closing), 1);
        gate.open();
        gate.close(0..1, Some(closing.clone()));
        assert_eq!(Arc::strong_count(&closing), 1, "nothing to wait for");
    }
}
