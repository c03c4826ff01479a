//! Reservation commands, and what Preempt and Abort does to a queue (Base 2.1, 7.5 to 7.8).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::rc::Rc;
use std::sync::Arc;

use engine::{IoId, Origin, Scope};
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::reservation::{AcquireCdw10, RegisterCdw10, ReleaseCdw10, ReportCdw11};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Sqe, Status};

use super::slot::{Pending, Pieces, Stage, Work};
use super::{Direction, Outcome, Queue, Ticket, Transport};
use crate::controller::{INACCESSIBLE, MAX_TRANSFER};
use crate::namespace::Attachment;
use crate::subsystem::{Ask, Command, Hold, HostId, Member, Viewer};

impl<T: Transport> Queue<T> {
    /// A host without an identifier has no part in reservations (CTRATT.RHII).
    fn reserver(&self) -> Result<HostId, Status> {
        self.shared.host_id().ok_or(Status::HOST_ID_NOT_INITIALIZED)
    }

    /// Reservation Register, Acquire and Release: fetches their `len` bytes.
    pub(super) fn reserve(
        self: &Rc<Self>,
        ticket: Ticket,
        sqe: &Sqe,
        attachment: Rc<Attachment>,
        len: usize,
    ) {
        match self.reserver() {
            Ok(_) => self.transfer(ticket, sqe, Direction::FromHost, len, Pending::Reserve(attachment)),
            Err(status) => self.end(ticket, status.dnr().into()),
        }
    }

    /// Executes one whose data is here.
    pub(super) fn change_reservation(
        self: &Rc<Self>,
        ticket: Ticket,
        sqe: &Sqe,
        attachment: &Rc<Attachment>,
        data: &[u8],
    ) {
        if self.shared.is_inaccessible() {
            return self.end(ticket, INACCESSIBLE.into());
        }
        let (host, command) = match (self.reserver(), command(sqe, data)) {
            (Ok(host), Ok(command)) => (host, command),
            (Err(status), _) | (_, Err(status)) => return self.end(ticket, status.dnr().into()),
        };
        self.stage(ticket, Stage::Waiting);
        let (shard, key, origin) = (self.local.shard().handle(), self.key(), self.origin);
        let answer = move |status: Status| {
            let status = if status.is_success() { status } else { status.dnr() };
            shard.run(move |shard| {
                let queue = shard.local::<Queue<T>>(key).filter(|queue| queue.origin == origin);
                if let Some(queue) = queue {
                    queue.finish(ticket, status.into());
                }
            });
        };
        attachment.reservations.ask(Ask::Command(host, command), Box::new(answer));
    }

    /// Whether a reservation that came while a command's data was on its way lets it go on.
    pub(super) fn may_still(&self, ticket: Ticket, work: &Work) -> bool {
        let opcode = self.slots.borrow_mut().get(ticket).map(|slot| slot.sqe.nvm());
        let permits = |opcode| work.attachment.permits(&self.shared, opcode);
        let fused = matches!(work.pieces, Pieces::Fused(_));
        opcode.is_some_and(permits) && (!fused || permits(NvmOpcode::Write))
    }

    /// Reservation Report: as much of the data structure as the host asks for, and zeroes where it asks for more: what it
    /// asks for is the length that its data pointer has.
    pub(super) fn report(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe, attachment: &Rc<Attachment>) {
        let extended = ReportCdw11::from_bits(sqe.cdw11).eds();
        let asked = u64::from(sqe.cdw10).saturating_add(1).saturating_mul(4);
        let Some(len) = usize::try_from(asked).ok().filter(|_| asked <= MAX_TRANSFER) else {
            return self.end(ticket, Status::INVALID_FIELD.dnr().into());
        };
        let report = self.reserver().and_then(|host| attachment.reservations.report(host, extended));
        let outcome = match report {
            Ok(mut bytes) => {
                bytes.resize(len, 0);
                Outcome::ToHost(bytes)
            }
            Err(status) => status.dnr().into(),
        };
        self.settle(ticket, sqe, outcome);
    }
}

fn command(sqe: &Sqe, data: &[u8]) -> Result<Command, Status> {
    match sqe.nvm() {
        NvmOpcode::ReservationRegister => {
            let data = FromBytes::read_from_bytes(data).map_err(|_| Status::INVALID_FIELD)?;
            Ok(Command::Register(RegisterCdw10::from_bits(sqe.cdw10), data))
        }
        NvmOpcode::ReservationAcquire => {
            let data = FromBytes::read_from_bytes(data).map_err(|_| Status::INVALID_FIELD)?;
            Ok(Command::Acquire(AcquireCdw10::from_bits(sqe.cdw10), data))
        }
        NvmOpcode::ReservationRelease => {
            let data = FromBytes::read_from_bytes(data).map_err(|_| Status::INVALID_FIELD)?;
            Ok(Command::Release(ReleaseCdw10::from_bits(sqe.cdw10), data))
        }
        _ => Err(Status::INVALID_OPCODE),
    }
}

impl<T: Transport> Member for Queue<T> {
    fn origin(&self) -> Origin {
        self.origin
    }

    fn host(&self) -> Option<HostId> {
        self.shared.host_id()
    }

    fn viewer(&self) -> &Viewer {
        self.local.viewer()
    }

    fn preempt(self: Rc<Self>, attachment: &Rc<Attachment>, hold: &Arc<Hold>) {
        let at_work = self.slots.borrow_mut().preempt(attachment, hold);
        for slot in at_work {
            attachment.revoke(Scope::Io(IoId { origin: self.origin, tag: slot.into() }));
        }
        let queued = self.verifies.borrow().waiting_on(attachment);
        for ticket in queued {
            self.end(ticket, Status::ABORTED_PREEMPT_AND_ABORT.dnr().into());
        }
    }
}
