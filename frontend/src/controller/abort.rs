//! Abort (Base 2.1, 5.1.1): a command is taken back where it is, on whichever shard, and the host is told whether it was.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::Task;
use nvme_proto::admin::{AbortCdw10, NOT_ABORTED};
use nvme_proto::{Sqe, Status};

use super::identify::ABORTS_Z;
use super::{Controller, Shared};
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};

/// How long a command may take to let go before its Abort says that it was not aborted (at once: IANP). It ends in its
/// own time.
const PATIENCE: Duration = Duration::from_secs(1);

struct Waiting {
    id: u64,
    queue: Rc<dyn AdminQueue>,
    ticket: Ticket,
    /// Ends the wait.
    _give_up: Task,
}

/// Abort commands that wait for the command that they abort.
#[derive(Default)]
pub(super) struct Aborts {
    waiting: RefCell<Vec<Waiting>>,
    last: Cell<u64>,
}

/// What an Abort waits for: told once, by [`AbortAnswer::aborted`] or by being dropped, which says that it was not.
pub struct AbortAnswer {
    shared: Arc<Shared>,
    id: u64,
    aborted: bool,
}

impl AbortAnswer {
    /// The command's completion is on its way: Command Abort Requested.
    pub(crate) fn aborted(mut self) {
        self.aborted = true;
    }
}

impl Drop for AbortAnswer {
    fn drop(&mut self) {
        let (id, aborted) = (self.id, self.aborted);
        self.shared.at_home(move |controller| controller.abort_ended(id, aborted));
    }
}

impl std::fmt::Debug for AbortAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AbortAnswer({})", self.id)
    }
}

fn reply(aborted: bool) -> Reply {
    Reply::value(if aborted { 0 } else { NOT_ABORTED })
}

impl Controller {
    pub(super) fn abort(
        self: &Rc<Self>,
        queue: Rc<dyn AdminQueue>,
        ticket: Ticket,
        sqe: &Sqe,
    ) -> Result<Outcome, Status> {
        let which = AbortCdw10::from_bits(sqe.cdw10);
        if which.sqid() == 0 {
            // Of the admin commands only event requests wait for something that may never come.
            return Ok(reply(self.abort_event_request(which.cid())).into());
        }
        let aborts = &self.aborts;
        if aborts.waiting.borrow().len() > usize::from(ABORTS_Z) {
            return Err(Status::ABORT_COMMAND_LIMIT_EXCEEDED);
        }
        let id = aborts.last.get().wrapping_add(1);
        aborts.last.set(id);
        let (patience, me) = (self.local.shard().sleep(PATIENCE), Rc::downgrade(self));
        let give_up = self.local.shard().spawn(async move {
            patience.await;
            if let Some(controller) = me.upgrade() {
                controller.abort_ended(id, false);
            }
        });
        aborts.waiting.borrow_mut().push(Waiting { id, queue, ticket, _give_up: give_up });
        let answer = AbortAnswer { shared: self.shared.clone(), id, aborted: false };
        self.shared.abort(which.sqid(), which.cid(), answer);
        Ok(Outcome::Later)
    }

    fn abort_ended(&self, id: u64, aborted: bool) {
        let ended = {
            let mut waiting = self.aborts.waiting.borrow_mut();
            let at = waiting.iter().position(|w| w.id == id);
            at.map(|at| waiting.swap_remove(at))
        };
        if let Some(Waiting { queue, ticket, .. }) = ended {
            queue.finish(ticket, reply(aborted));
        }
    }

    /// The admin queue closes, and its commands end with it.
    pub(super) fn forget_aborts(&self) {
        self.aborts.waiting.take();
    }
}
