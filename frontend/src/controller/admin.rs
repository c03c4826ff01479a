//! Admin commands that every transport has (Base 2.1, 5.1).

use std::rc::Rc;

use nvme_proto::log::GetLogPage;
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::{Sqe, Status};

use super::{Controller, INACCESSIBLE};
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};

impl Controller {
    /// Executes an admin command; `queue` is answered later where the outcome says so.
    pub fn admin(self: &Rc<Self>, queue: Rc<dyn AdminQueue>, ticket: Ticket, sqe: &Sqe) -> Outcome {
        if !self.is_ready() {
            return Status::COMMAND_SEQUENCE_ERROR.dnr().into();
        }
        if self.is_withheld(sqe) {
            return INACCESSIBLE.into();
        }
        let done = match sqe.admin() {
            AdminOpcode::Identify => self.identify(sqe).map(Outcome::ToHost),
            AdminOpcode::GetLogPage => self.log_page(&GetLogPage::of(sqe), sqe.nsid).map(Outcome::ToHost),
            AdminOpcode::SetFeatures if self.has_reservation_feature(sqe) => {
                self.set_reservation_feature(queue, ticket, sqe)
            }
            AdminOpcode::GetFeatures if self.has_reservation_feature(sqe) => {
                self.get_reservation_feature(sqe)
            }
            AdminOpcode::SetFeatures => self.set_features(queue, ticket, sqe),
            AdminOpcode::GetFeatures => self.get_features(sqe),
            AdminOpcode::AsyncEventRequest => self.await_event(queue, ticket),
            AdminOpcode::KeepAlive => Ok(Reply::default().into()),
            AdminOpcode::Abort if !self.config.discovery => self.abort(queue, ticket, sqe),
            _ => Err(Status::INVALID_OPCODE),
        };
        done.unwrap_or_else(|status| status.dnr().into())
    }

    /// The bytes that go to the host, whose memory is there now.
    pub fn admin_answer(&self, sqe: &Sqe, bytes: Vec<u8>) -> Vec<u8> {
        match sqe.admin() {
            AdminOpcode::GetLogPage => self.told_log_page(&GetLogPage::of(sqe), sqe.nsid).unwrap_or(bytes),
            _ => bytes,
        }
    }

    /// Executes an admin command whose data has come.
    pub fn admin_data(self: &Rc<Self>, sqe: &Sqe, data: &[u8]) -> Reply {
        let done = match sqe.admin() {
            AdminOpcode::SetFeatures => self.set_features_data(sqe, data),
            _ => Err(Status::INVALID_OPCODE),
        };
        match done {
            Ok(()) => Reply::default(),
            Err(status) => status.dnr().into(),
        }
    }
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Outcome::Done(reply)
    }
}
