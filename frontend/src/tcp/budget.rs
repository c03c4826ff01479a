//! Bytes that commands may pin on a shard: what is over waits, and nothing is refused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use engine::{Shard, TurnEnd};

use super::connection::Connection;
use crate::queue::Ticket;

/// The bytes of a shard.
pub(super) struct Budget {
    shard: Shard,
    limit: usize,
    used: Cell<usize>,
    waiting: RefCell<VecDeque<(Weak<Connection>, Ticket)>>,
    noted: Cell<bool>,
}

/// A share of the budget; given back when it is dropped.
pub(super) struct Lease {
    of: Rc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(shard: &Shard, limit: usize) -> Rc<Self> {
        Rc::new(Budget {
            shard: shard.clone(),
            limit,
            used: Cell::new(0),
            waiting: RefCell::default(),
            noted: Cell::new(false),
        })
    }

    /// `bytes` for a command, unless they are used up or others wait already; one command always gets what it needs.
    pub fn lease(self: &Rc<Self>, bytes: usize) -> Option<Lease> {
        if !self.waiting.borrow().is_empty() {
            return None;
        }
        self.take(bytes)
    }

    fn take(self: &Rc<Self>, bytes: usize) -> Option<Lease> {
        let used = self.used.get();
        if used != 0 && used.saturating_add(bytes) > self.limit {
            return None;
        }
        self.used.set(used.saturating_add(bytes));
        Some(Lease { of: self.clone(), bytes })
    }

    /// Calls [`Connection::granted`] for the command when there is room for what it then asks of `lease`.
    pub fn wait(&self, connection: &Rc<Connection>, ticket: Ticket) {
        self.waiting.borrow_mut().push_back((Rc::downgrade(connection), ticket));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let budget = &self.of;
        budget.used.set(budget.used.get().saturating_sub(self.bytes));
        if !budget.waiting.borrow().is_empty() && !budget.noted.replace(true) {
            budget.shard.at_turn_end(budget.clone());
        }
    }
}

impl TurnEnd for Budget {
    fn turn_end(self: Rc<Self>) {
        self.noted.set(false);
        loop {
            let Some((connection, ticket)) = self.waiting.borrow().front().cloned() else { return };
            let lease = match connection.upgrade().and_then(|c| Some((c.wanted(ticket)?, c))) {
                None => None,
                Some((bytes, connection)) => match self.take(bytes) {
                    None => return,
                    Some(lease) => Some((connection, lease)),
                },
            };
            self.waiting.borrow_mut().pop_front();
            if let Some((connection, lease)) = lease {
                connection.granted(ticket, lease);
            }
        }
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
            let large = budget.lease(1000).expect("one command always runs");
            assert!(budget.lease(1).is_none());
            drop(large);
            let two = (budget.lease(60).unwrap(), budget.lease(40).unwrap());
            assert!(budget.lease(1).is_none());
            drop(two.0);
            assert!(budget.lease(61).is_none());
            assert!(budget.lease(60).is_some());
        });
    }
}
