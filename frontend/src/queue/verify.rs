//! Verify (NVM Command Set 1.1, 3.3.5): the blocks are read, and their bytes go nowhere. One of a queue's commands at a
//! time, through one buffer; the others wait for it.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use engine::mem::Buf;

use super::slot::{Parts, Pieces, Stage, Work};
use super::{Queue, Ticket, Transport};
use crate::namespace::Attachment;
use crate::nvm::{self, Blocks};

/// Bytes that are read at a time.
const PIECE: usize = 128 << 10;

/// A queue's Verify commands.
#[derive(Default)]
pub(super) struct Verifies {
    busy: bool,
    waiting: VecDeque<(Ticket, Rc<Attachment>, Blocks)>,
}

impl Verifies {
    /// Those that wait, on a namespace.
    pub fn waiting_on(&self, attachment: &Attachment) -> Vec<Ticket> {
        let there = |of: &Attachment| Arc::ptr_eq(&of.namespace, &attachment.namespace);
        self.waiting.iter().filter(|(_, of, _)| there(of)).map(|(ticket, ..)| *ticket).collect()
    }
}

impl<T: Transport> Queue<T> {
    pub(super) fn verify(self: &Rc<Self>, ticket: Ticket, attachment: Rc<Attachment>, whole: Blocks) {
        self.stage(ticket, Stage::Queued);
        self.verifies.borrow_mut().waiting.push_back((ticket, attachment, whole));
        if !self.verifies.borrow().busy {
            self.next_verify();
        }
    }

    /// The last one has ended: the next one's turn.
    pub(super) fn next_verify(self: &Rc<Self>) {
        loop {
            let next = {
                let mut verifies = self.verifies.borrow_mut();
                let next = verifies.waiting.pop_front();
                verifies.busy = next.is_some();
                next
            };
            let Some((ticket, attachment, whole)) = next else { return };
            // It may have been aborted meanwhile, and its slot be another's.
            let waits = self.slots.borrow_mut().get(ticket).and_then(|s| match s.stage {
                Stage::Queued => Some(s.sqe),
                _ => None,
            });
            let Some(sqe) = waits else { continue };
            let commit = attachment.limits.volatile_cache && nvm::commits_first(&sqe);
            let len = ((whole.blocks as usize) << attachment.block_shift).min(PIECE);
            let parts = Parts { whole, data: Buf::new(len).into_sgl(len), commit, done: 0 };
            self.work(ticket, Work::new(attachment, Pieces::Verify(Box::new(parts))));
            // It is at work, unless its namespace has changed too much.
            if self.slots.borrow_mut().get(ticket).is_some() {
                return;
            }
        }
    }
}
