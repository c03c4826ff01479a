//! Bytes that came in capsules and that commands hold, on a shard and on each of its connections: a connection reads no
//! more while there are too many.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use engine::{Shard, TurnEnd};

use super::budget::SHARES;
use super::connection::Connection;

/// The bytes of a shard.
pub(super) struct Inflow {
    shard: Shard,
    limit: usize,
    used: Cell<usize>,
    waiting: RefCell<Vec<Weak<Connection>>>,
    noted: Cell<bool>,
}

impl Inflow {
    pub fn new(shard: &Shard, limit: usize) -> Rc<Self> {
        Rc::new(Inflow {
            shard: shard.clone(),
            limit,
            used: Cell::new(0),
            waiting: RefCell::default(),
            noted: Cell::new(false),
        })
    }

    /// Whether a connection whose commands hold `held` bytes may read on. One that holds none always may, so that no
    /// admin queue waits for the I/O of others.
    pub fn is_open(&self, held: &Cell<usize>) -> bool {
        held.get() == 0 || held.get() < self.limit / SHARES && self.used.get() < self.limit
    }

    /// Calls [`Connection::pump`] when [`Inflow::is_open`] may have another answer.
    pub fn wait(&self, connection: &Rc<Connection>) {
        if !connection.held_up.replace(true) {
            self.waiting.borrow_mut().push(Rc::downgrade(connection));
        }
    }

    /// A command came that holds so many bytes until it has ended.
    pub fn take(&self, held: &Cell<usize>, bytes: usize) {
        held.set(held.get().saturating_add(bytes));
        self.used.set(self.used.get().saturating_add(bytes));
    }

    /// A command has ended.
    pub fn give_back(self: &Rc<Self>, held: &Cell<usize>, bytes: usize) {
        held.set(held.get().saturating_sub(bytes));
        self.used.set(self.used.get().saturating_sub(bytes));
        if !self.waiting.borrow().is_empty() && !self.noted.replace(true) {
            self.shard.at_turn_end(self.clone());
        }
    }
}

impl TurnEnd for Inflow {
    fn turn_end(self: Rc<Self>) {
        self.noted.set(false);
        for connection in self.waiting.take().iter().filter_map(Weak::upgrade) {
            connection.held_up.set(false);
            connection.pump();
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::Sim;

    use super::*;

    #[test]
    fn readers_are_held_up_and_go_on() {
        let sim = Sim::new(1).unwrap();
        sim.on(0, |shard| {
            let inflow = Inflow::new(shard, 64 << 10);
            let (a, b) = (Cell::new(0), Cell::new(0));
            (0..4).for_each(|_| inflow.take(&a, 4 << 10));
            assert!(!inflow.is_open(&a), "a connection has a quarter");
            inflow.take(&b, 48 << 10);
            assert!(!inflow.is_open(&b));
            assert!(inflow.is_open(&Cell::new(0)), "who holds nothing reads");
            inflow.give_back(&b, 48 << 10);
            (0..4).for_each(|_| inflow.give_back(&a, 4 << 10));
            assert_eq!((inflow.used.get(), a.get(), b.get()), (0, 0, 0));
        });
    }
}
