//! A lock for each name: a call holds the names of all that it touches, and waits for no other call.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The names that are held now.
#[derive(Debug, Default)]
pub(crate) struct NameLocks {
    held: Mutex<HashSet<String>>,
    released: Condvar,
}

/// Names that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    locks: &'a NameLocks,
    names: HashSet<String>,
}

impl NameLocks {
    /// Waits until all of `names` are free, and takes them at once: no order of taking can make a deadlock.
    pub fn hold(&self, names: impl IntoIterator<Item = String>) -> Held<'_> {
        let names: HashSet<String> = names.into_iter().collect();
        let mut held = self.lock();
        while !held.is_disjoint(&names) {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.extend(names.iter().cloned());
        Held { locks: self, names }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.locks.lock().retain(|name| !self.names.contains(name));
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn names_are_held_by_one_at_a_time_and_others_stay_free() {
        let locks = NameLocks::default();
        let done = AtomicBool::new(false);
        let first = locks.hold(["a".to_owned(), "b".to_owned()]);
        drop(locks.hold(["c".to_owned()]));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _held = locks.hold(["b".to_owned(), "c".to_owned()]);
                assert!(done.load(Ordering::SeqCst));
            });
            done.store(true, Ordering::SeqCst);
            drop(first);
        });
        assert!(locks.lock().is_empty());
    }
}
