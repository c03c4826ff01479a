//! What gathers during a turn and is worked off at once, in room that is used again.

use std::cell::RefCell;

pub(super) struct Batch<T> {
    next: RefCell<Vec<T>>,
    spare: RefCell<Vec<T>>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Batch { next: RefCell::default(), spare: RefCell::default() }
    }
}

impl<T> Batch<T> {
    pub(super) fn push(&self, item: T) {
        self.next.borrow_mut().push(item);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next.borrow().is_empty()
    }

    /// Calls `f` with each item that is there now; what is pushed meanwhile is for the next batch.
    pub(super) fn each(&self, f: impl FnMut(T)) {
        let mut batch = self.next.replace(self.spare.take());
        batch.drain(..).for_each(f);
        self.spare.replace(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::Batch;

    #[test]
    fn what_comes_meanwhile_is_for_the_next_batch() {
        let batch = Batch::default();
        batch.push(1);
        let mut seen = Vec::new();
        for _ in 0..3 {
            batch.each(|n| {
                seen.push(n);
                batch.push(n + 1);
            });
        }
        assert_eq!(seen, [1, 2, 3]);
        assert!(!batch.is_empty());
    }
}
