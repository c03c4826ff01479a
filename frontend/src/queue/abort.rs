//! What an Abort command does to the queue whose command it names.

use std::rc::Rc;

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
            match &mut slot.stage {
                Stage::Io(work) => {
                    work.aborts.push(answer);
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
}
