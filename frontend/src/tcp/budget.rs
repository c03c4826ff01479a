//! Bytes that commands may pin, on a shard and on each of its connections: what is over waits, and nothing is refused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use engine::{Shard, TurnEnd};

use super::connection::Connection;
use crate::queue::Ticket;

/// A connection may hold one part in so many of its shard's bytes.
pub(super) const SHARES: usize = 4;

/// The bytes of a shard.
pub(super) struct Budget {
    shard: Shard,
    limit: usize,
    used: Cell<usize>,
    waiting: RefCell<VecDeque<(Weak<Connection>, Ticket)>>,
    /// One that waits is held up by the shard, not by its connection: nobody overtakes it.
    starved: Cell<bool>,
    noted: Cell<bool>,
}

/// A share of the budget; given back when it is dropped.
pub(super) struct Lease {
    of: Rc<Budget>,
    pinned: Rc<Cell<usize>>,
    bytes: usize,
}

/// Whether `bytes` more fit; the first always do, so that no command is too large to run.
fn fits(used: usize, bytes: usize, limit: usize) -> bool {
    used == 0 || used.saturating_add(bytes) <= limit
}

impl Budget {
    pub fn new(shard: &Shard, limit: usize) -> Rc<Self> {
        Rc::new(Budget {
            shard: shard.clone(),
            limit,
            used: Cell::new(0),
            waiting: RefCell::default(),
            starved: Cell::new(false),
            noted: Cell::new(false),
        })
    }

    /// `bytes` for a command of the connection that holds `pinned`, unless they are used up.
    pub fn lease(self: &Rc<Self>, pinned: &Rc<Cell<usize>>, bytes: usize) -> Option<Lease> {
        if self.starved.get() || !self.has_room(bytes) || !self.may_have(pinned, bytes) {
            return None;
        }
        Some(self.take(pinned, bytes))
    }

    fn has_room(&self, bytes: usize) -> bool {
        fits(self.used.get(), bytes, self.limit)
    }

    fn may_have(&self, pinned: &Cell<usize>, bytes: usize) -> bool {
        fits(pinned.get(), bytes, self.limit / SHARES)
    }

    fn take(self: &Rc<Self>, pinned: &Rc<Cell<usize>>, bytes: usize) -> Lease {
        self.used.set(self.used.get().saturating_add(bytes));
        pinned.set(pinned.get().saturating_add(bytes));
        Lease { of: self.clone(), pinned: pinned.clone(), bytes }
    }

    /// Calls [`Connection::granted`] for a command that [`Budget::lease`] refused, when there is room.
    pub fn wait(&self, connection: &Rc<Connection>, ticket: Ticket, bytes: usize) {
        if self.may_have(&connection.pinned, bytes) {
            self.starved.set(true);
        }
        self.waiting.borrow_mut().push_back((Rc::downgrade(connection), ticket));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let budget = &self.of;
        budget.used.set(budget.used.get().saturating_sub(self.bytes));
        self.pinned.set(self.pinned.get().saturating_sub(self.bytes));
        if !budget.waiting.borrow().is_empty() && !budget.noted.replace(true) {
            budget.shard.at_turn_end(budget.clone());
        }
    }
}

impl TurnEnd for Budget {
    fn turn_end(self: Rc<Self>) {
        self.noted.set(false);
        self.starved.set(false);
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        let mut still = VecDeque::new();
        while let Some((weak, ticket)) = waiting.pop_front() {
            let Some((bytes, connection)) = weak.upgrade().and_then(|c| Some((c.wanted(ticket)?, c))) else {
                continue;
            };
            if !self.may_have(&connection.pinned, bytes) {
                still.push_back((weak, ticket));
            } else if self.has_room(bytes) {
                connection.granted(ticket, self.take(&connection.pinned, bytes));
            } else {
                self.starved.set(true);
                still.push_back((weak, ticket));
                break;
            }
        }
        still.append(&mut waiting);
        // Whoever came to wait meanwhile waits behind.
        still.append(&mut self.waiting.borrow_mut());
        self.waiting.replace(still);
    }
}

#[cfg(test)]
mod tests {
    use engine::Sim;

    use super::*;

    #[test]
    fn leases_are_bounded_and_given_back() {
        let sim = Sim::new(1).unwrap();
        sim.on(0, |shard| {
            let budget = Budget::new(shard, 100);
            let (a, b) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let large = budget.lease(&a, 1000).expect("one command always runs");
            assert!(budget.lease(&b, 1).is_none(), "the shard has no more");
            drop(large);
            let first = budget.lease(&a, 20).unwrap();
            assert!(budget.lease(&a, 6).is_none(), "a connection has a quarter");
            let others = (budget.lease(&b, 75).unwrap(), budget.lease(&a, 5).unwrap());
            assert!(budget.lease(&Rc::default(), 1).is_none());
            drop((first, others));
            assert_eq!((budget.used.get(), a.get(), b.get()), (0, 0, 0));
        });
    }
}
