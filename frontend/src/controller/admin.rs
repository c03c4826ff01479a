//! Admin commands that every transport has (Base 2.1, 5.1).

use std::rc::Rc;

use nvme_proto::admin::{AbortCdw10, NOT_ABORTED};
use nvme_proto::log::GetLogPage;
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::{Sqe, Status};

use super::Controller;
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};

impl Controller {
    /// Executes an admin command; `queue` is answered later where the outcome says so.
    pub fn admin(self: &Rc<Self>, queue: Rc<dyn AdminQueue>, ticket: Ticket, sqe: &Sqe) -> Outcome {
        if !self.is_ready() {
            return self.refuse(sqe, Status::COMMAND_SEQUENCE_ERROR);
        }
        if sqe.flags.fuse() != 0 {
            return self.refuse(sqe, Status::INVALID_FIELD);
        }
        let done = match sqe.admin() {
            AdminOpcode::Identify => self.identify(sqe).map(Outcome::ToHost),
            AdminOpcode::GetLogPage => self.log_page(&GetLogPage::of(sqe), sqe.nsid).map(Outcome::ToHost),
            AdminOpcode::SetFeatures => self.set_features(sqe),
            AdminOpcode::GetFeatures => self.get_features(sqe),
            AdminOpcode::AsyncEventRequest => self.await_event(queue, ticket),
            AdminOpcode::KeepAlive => Ok(Reply::default().into()),
            AdminOpcode::Abort if !self.config.discovery => Ok(self.abort(sqe).into()),
            _ => Err(Status::INVALID_OPCODE),
        };
        done.unwrap_or_else(|status| self.refuse(sqe, status))
    }

    /// Executes an admin command whose data has come.
    pub fn admin_data(self: &Rc<Self>, sqe: &Sqe, data: &[u8]) -> Reply {
        let done = match sqe.admin() {
            AdminOpcode::SetFeatures => self.set_features_data(sqe, data),
            _ => Err(Status::INVALID_OPCODE),
        };
        match done {
            Ok(()) => Reply::default(),
            Err(status) => {
                self.note_error(0, sqe, status);
                status.dnr().into()
            }
        }
    }

    fn refuse(&self, sqe: &Sqe, status: Status) -> Outcome {
        self.note_error(0, sqe, status);
        status.dnr().into()
    }

    /// Takes a command back where it is found. Its own completion tells how it ended, so this one never promises that
    /// it was aborted: that is known later, and perhaps on another shard.
    fn abort(&self, sqe: &Sqe) -> Reply {
        let which = AbortCdw10::from_bits(sqe.cdw10);
        self.shared.abort(which.sqid(), which.cid());
        Reply::value(NOT_ABORTED)
    }
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Outcome::Done(reply)
    }
}
