//! Commands that are taken back from their volumes: the one that an Abort command names, and those that have waited too
//! long for a volume out of reach.

use std::rc::Rc;
use std::time::Duration;

use engine::{IoId, Scope};
use nvme_proto::Status;

use super::slot::Stage;
use super::{Queue, Transport};
use crate::controller::AbortAnswer;

impl<T: Transport> Queue<T> {
    /// Takes back one command that has been fetched. What is with a volume is asked back, and the answer is given when
    /// it has ended; what still waits ends now.
    pub(super) fn abort(self: &Rc<Self>, cid: u16, answer: AbortAnswer) {
        let (ticket, attachment) = {
            let mut slots = self.slots.borrow_mut();
            let Some((ticket, slot)) = slots.find(cid) else { return };
            match &slot.stage {
                Stage::Io(work) => {
                    slot.waiters.get_or_insert_default().aborts.push(answer);
                    (ticket, work.attachment.clone())
                }
                Stage::Data(_) => {
                    drop(slots);
                    if self.transport.may_end(ticket) {
                        self.end(ticket, Status::ABORT_REQUESTED.into());
                        answer.aborted();
                    }
                    return;
                }
                Stage::Queued | Stage::Fused(_) => {
                    drop(slots);
                    self.end(ticket, Status::ABORT_REQUESTED.into());
                    return answer.aborted();
                }
                Stage::Free | Stage::Fetched | Stage::Follows | Stage::Waiting => return,
            }
        };
        attachment.revoke(Scope::Io(IoId { origin: self.origin, tag: u64::from(ticket.slot) }));
    }

    /// Asks back what has been with a volume for so long, and the volume is out of reach.
    pub(super) fn give_back(self: &Rc<Self>, patience: Duration) {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let before = self.local.shard().now().saturating_sub(patience);
        let late = self.slots.borrow_mut().give_back(before);
        for (slot, attachment) in late {
            attachment.revoke(Scope::Io(IoId { origin: self.origin, tag: u64::from(slot) }));
        }
    }
}
