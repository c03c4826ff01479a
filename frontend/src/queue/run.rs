//! A command's way through its slot.

use std::ops::Range;
use std::rc::Rc;

use engine::mem::Sgl;
use engine::{Io, IoId, IoResult, Issuer, Op, Request};
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::{Sqe, Status};

use super::slot::{Pending, Pieces, Released, Stage, Work};
use super::{Completion, Data, Direction, Outcome, Queue, Reply, Ticket, Transport};
use crate::controller::{AbortAnswer, Failure, INACCESSIBLE};
use crate::namespace::{Attachment, Protection};
use crate::nvm::{self, Blocks, Command};

/// NSID of Flush for all namespaces.
const ALL_NAMESPACES: u32 = 0xffff_ffff;

impl<T: Transport> Queue<T> {
    /// Finds who executes a command that was just fetched.
    pub(super) fn dispatch(self: &Rc<Self>, ticket: Ticket, sqe: Sqe) {
        let intercepted = match self.qid == 0 || T::INTERCEPTS_IO {
            true => self.with_command(ticket, |c| self.transport.intercept(self, ticket, &sqe, c)).flatten(),
            false => None,
        };
        match (intercepted, &self.controller) {
            (Some(outcome), _) => {
                self.break_pair();
                self.settle(ticket, &sqe, outcome);
            }
            (None, Some(controller)) => {
                // The command waits before the controller sees it: the answer may come inside the call.
                self.stage(ticket, Stage::Waiting);
                let outcome = controller.admin(self.clone(), ticket, &sqe);
                self.settle(ticket, &sqe, outcome);
            }
            (None, None) => self.nvm(ticket, &sqe),
        }
    }

    pub(super) fn settle(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe, outcome: Outcome) {
        match outcome {
            Outcome::Done(reply) => self.end(ticket, reply),
            Outcome::ToHost(bytes) if bytes.is_empty() => self.end(ticket, Reply::default()),
            Outcome::ToHost(bytes) => {
                let len = bytes.len();
                self.transfer(ticket, sqe, Direction::ToHost, len, Pending::ToHost(bytes));
            }
            Outcome::FromHost(len) => self.transfer(ticket, sqe, Direction::FromHost, len, Pending::FromHost),
            Outcome::Later => self.stage(ticket, Stage::Waiting),
        }
    }

    /// Why a command does nothing where its namespace is not: its NSID is inactive or invalid (Base 2.1, 3.2.1.4 and
    /// 3.2.1.5).
    pub(super) fn no_namespace(&self, sqe: &Sqe) -> Status {
        match (1..=self.local.subsystem().max_namespaces()).contains(&sqe.nsid) {
            _ if !nvm::is_known(sqe) => Status::INVALID_OPCODE,
            true => Status::INVALID_FIELD,
            false => Status::INVALID_NAMESPACE_OR_FORMAT,
        }
    }

    pub(super) fn nvm(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe) {
        if sqe.flags.fuse() != 0 || self.first.get().is_some() {
            return self.fused(ticket, sqe);
        }
        let Some(attachment) = self.local.namespace(sqe.nsid) else {
            if sqe.nsid == ALL_NAMESPACES && sqe.opc == 0 {
                return self.flush_all(ticket);
            }
            return self.end(ticket, self.no_namespace(sqe).dnr().into());
        };
        match nvm::parse(sqe, &attachment.limits, crate::controller::MAX_TRANSFER) {
            Err(status) => self.end(ticket, status.into()),
            Ok(_) if self.shared.is_inaccessible() => self.end(ticket, INACCESSIBLE.into()),
            Ok(_) if !attachment.permits(&self.shared, sqe.nvm()) => {
                self.end(ticket, Status::RESERVATION_CONFLICT.dnr().into());
            }
            Ok(command) if command.modifies() && attachment.protection != Protection::None => {
                self.end(ticket, Status::NAMESPACE_WRITE_PROTECTED.dnr().into());
            }
            Ok(Command::Nothing) => self.end(ticket, Reply::default()),
            Ok(Command::Verify(blocks)) => self.verify(ticket, attachment, blocks),
            Ok(Command::Reserve(len)) => self.reserve(ticket, sqe, attachment, len),
            Ok(Command::Report) => self.report(ticket, sqe, &attachment),
            Ok(Command::Deallocate(n)) => {
                let len = n * nvm::RANGE_LEN;
                self.transfer(ticket, sqe, Direction::FromHost, len, Pending::Ranges(attachment));
            }
            Ok(Command::Blocks(blocks)) if blocks.op.has_data() => {
                let len = (blocks.blocks as usize) << attachment.block_shift;
                let direction = if blocks.op == Op::Read { Direction::ToHost } else { Direction::FromHost };
                self.transfer(ticket, sqe, direction, len, Pending::Blocks(attachment, blocks));
            }
            Ok(Command::Blocks(blocks)) => self.start(ticket, attachment, blocks, Sgl::empty()),
        }
    }

    /// Flush with NSID FFFFFFFFh: every namespace, one after the other.
    fn flush_all(self: &Rc<Self>, ticket: Ticket) {
        let mut rest = self.local.namespaces();
        if !rest.iter().all(|n| n.permits(&self.shared, NvmOpcode::Flush)) {
            return self.end(ticket, Status::RESERVATION_CONFLICT.dnr().into());
        }
        match rest.pop() {
            None => self.end(ticket, Reply::default()),
            Some(last) => {
                rest.push(last.clone());
                self.work(ticket, Work::new(last, Pieces::Flushes(rest)));
            }
        }
    }

    /// Asks the transport for a command's data.
    pub(super) fn transfer(
        self: &Rc<Self>,
        ticket: Ticket,
        sqe: &Sqe,
        direction: Direction,
        len: usize,
        then: Pending,
    ) {
        let data = self.with_command(ticket, |c| self.transport.data(ticket, sqe, c, direction, len));
        match data {
            Some(Data::Ready(sgl)) => self.go_on(ticket, sqe, then, sgl),
            Some(Data::Failed(status)) => {
                self.stage(ticket, Stage::Data(then));
                self.end(ticket, status.into());
            }
            Some(Data::Later) => self.stage(ticket, Stage::Data(then)),
            None => {}
        }
    }

    /// Runs `f` on what the transport keeps of a command, with the slots free to be looked at.
    fn with_command<R>(&self, ticket: Ticket, f: impl FnOnce(&mut T::Command) -> R) -> Option<R> {
        let mut command = self.slots.borrow_mut().get(ticket)?.command.take()?;
        let result = f(&mut command);
        self.slots.borrow_mut().put_back(ticket, command);
        Some(result)
    }

    /// A command has failed: the error log has it, unless its host took it back.
    #[cold]
    fn note_failure(&self, sqe: &Sqe, status: Status, lba: Option<u64>) {
        if matches!(status.code(), Status::ABORT_REQUESTED | Status::ABORTED_SQ_DELETION) {
            return;
        }
        if matches!(status.code(), Status::WRITE_FAULT | Status::UNRECOVERED_READ_ERROR) {
            self.shared.subsystem().note_media_error();
        }
        let lba = lba.unwrap_or(if self.qid == 0 { 0 } else { nvm::lba(sqe) });
        let location = if self.qid == 0 { None } else { nvm::location(sqe, status) };
        self.shared.errors().note(Failure { sqid: self.qid, sqe, status, lba, location });
    }

    pub(super) fn stage(&self, ticket: Ticket, stage: Stage) {
        if let Some(slot) = self.slots.borrow_mut().get(ticket) {
            slot.stage = stage;
        }
    }

    pub(super) fn data_is_there(self: &Rc<Self>, ticket: Ticket, sgl: Sgl) {
        let (sqe, then, preempted) = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get(ticket) else { return };
            if !matches!(slot.stage, Stage::Data(_)) {
                return;
            }
            let Stage::Data(then) = std::mem::replace(&mut slot.stage, Stage::Fetched) else { return };
            (slot.sqe, then, slot.preempted)
        };
        match preempted {
            true => self.end(ticket, Status::ABORTED_PREEMPT_AND_ABORT.dnr().into()),
            false => self.go_on(ticket, &sqe, then, sgl),
        }
    }

    /// A command has its data, or the room for it.
    fn go_on(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe, then: Pending, sgl: Sgl) {
        match then {
            Pending::Blocks(attachment, blocks) => self.start(ticket, attachment, blocks, sgl),
            Pending::Fused(pair) => self.fused_data(ticket, pair, sgl),
            Pending::Ranges(attachment) => {
                let mut list = vec![0; sgl.len()];
                sgl.copy_out(0, &mut list);
                self.deallocate(ticket, attachment, &list);
            }
            Pending::Reserve(attachment) => {
                let mut bytes = vec![0; sgl.len()];
                sgl.copy_out(0, &mut bytes);
                self.change_reservation(ticket, sqe, &attachment, &bytes);
            }
            Pending::ToHost(bytes) => {
                sgl.copy_in(0, &bytes[..bytes.len().min(sgl.len())]);
                self.end_with(ticket, Reply::default(), sgl);
            }
            Pending::FromHost => {
                let mut bytes = vec![0; sgl.len()];
                sgl.copy_out(0, &mut bytes);
                let reply = match &self.controller {
                    Some(controller) => controller.admin_data(sqe, &bytes),
                    None => Status::INVALID_OPCODE.dnr().into(),
                };
                self.end(ticket, reply);
            }
        }
    }

    fn deallocate(self: &Rc<Self>, ticket: Ticket, attachment: Rc<Attachment>, list: &[u8]) {
        match nvm::ranges(list, &attachment.limits) {
            Err(status) => self.end(ticket, status.into()),
            Ok(mut ranges) => {
                ranges.reverse();
                self.work(ticket, Work::new(attachment, Pieces::Ranges(ranges)));
            }
        }
    }

    fn start(self: &Rc<Self>, ticket: Ticket, attachment: Rc<Attachment>, whole: Blocks, data: Sgl) {
        let pieces = Pieces::Run { whole, data, done: None };
        self.work(ticket, Work::new(attachment, pieces));
    }

    pub(super) fn work(self: &Rc<Self>, ticket: Ticket, mut work: Work) {
        if !work.attachment.is_current()
            && let Err(status) = self.check_again(&work)
        {
            return self.end(ticket, status.into());
        }
        if self.shared.is_inaccessible() {
            return self.end(ticket, INACCESSIBLE.into());
        }
        if work.attachment.is_fenced() && !self.may_still(ticket, &work) {
            return self.end(ticket, Status::RESERVATION_CONFLICT.dnr().into());
        }
        if work.passes_gate() {
            if work.attachment.gate().holds(|| work.range()) {
                return self.park(ticket, work);
            }
            work.entered = Some(work.attachment.gate().enter());
        }
        self.stage(ticket, Stage::Io(work));
        self.next_piece(ticket);
    }

    /// Whether the namespace was removed, or is not shown to this host any more.
    fn lost(&self, attachment: &Attachment) -> bool {
        !attachment.is_current() && self.local.namespace(attachment.namespace.nsid).is_none()
            || attachment.is_gone()
    }

    /// The namespace changed while a command waited for its data: whether it still takes it.
    fn check_again(&self, work: &Work) -> Result<(), Status> {
        if work.attachment.is_gone() {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
        }
        let now = self.local.namespace(work.attachment.namespace.nsid);
        let now = now.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())?;
        let check = |blocks: &Blocks| match now.limits.contains(blocks.lba, blocks.blocks) {
            _ if blocks.op.modifies() && now.protection != Protection::None => {
                Err(Status::NAMESPACE_WRITE_PROTECTED.dnr())
            }
            true => Ok(()),
            false => Err(Status::LBA_OUT_OF_RANGE.dnr()),
        };
        match &work.pieces {
            Pieces::Run { whole, .. } | Pieces::Verify { whole, .. } => check(whole),
            Pieces::Fused(fused) => check(fused.blocks()),
            Pieces::Ranges(ranges) => ranges.iter().try_for_each(check),
            Pieces::Flushes(_) => Ok(()),
        }
    }

    /// Sends the next piece of a command to its volume, or ends the command.
    fn next_piece(self: &Rc<Self>, ticket: Ticket) {
        let send = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get(ticket) else { return };
            let Stage::Io(work) = &mut slot.stage else { return };
            slot.sent = self.local().shard().now();
            work.next().map(|request| {
                let id = IoId { origin: self.origin, tag: u64::from(ticket.slot) };
                let mut io = slot.io.take().unwrap_or_else(|| Io::new(id));
                *io.request_mut() = request;
                (io, work.attachment.clone())
            })
        };
        match send {
            Some((io, attachment)) => {
                let channel = attachment.channel(self.local.shard());
                io.forward(channel, self.clone(), u64::from(ticket.slot));
            }
            None => {
                let data = self.slots.borrow_mut().get(ticket).map(|slot| slot.stage.take_data());
                self.end_with(ticket, Reply::default(), data.unwrap_or_default());
            }
        }
    }

    pub(super) fn end(self: &Rc<Self>, ticket: Ticket, reply: Reply) {
        self.end_with(ticket, reply, Sgl::empty());
    }

    fn end_with(self: &Rc<Self>, ticket: Ticket, reply: Reply, data: Sgl) {
        self.release(ticket, reply, data, None);
    }

    /// Ends a command; `lba` is where it failed, if that is known.
    fn release(self: &Rc<Self>, ticket: Ticket, reply: Reply, data: Sgl, lba: Option<u64>) {
        let (released, last) = {
            let mut slots = self.slots.borrow_mut();
            let Some(released) = slots.release(ticket) else { return };
            (released, slots.in_flight() == 0)
        };
        if last && self.qid != 0 {
            self.shared.busy().end(self.local().shard().now());
        }
        let Released { sqe, command, aborts, verified, hold, pair } = released;
        self.transport.complete(command, Completion { ticket, cid: sqe.cid, reply, data });
        if !reply.status.is_success() {
            self.note_failure(&sqe, reply.status, lba);
        }
        if reply.status.code() == Status::ABORT_REQUESTED {
            aborts.into_iter().for_each(AbortAnswer::aborted);
        }
        drop(hold);
        if verified {
            self.next_verify();
        }
        if let Some(pair) = pair {
            self.pair_ended(&pair, ticket, reply.status);
        }
        self.check_closed();
    }
}

impl Work {
    pub(super) fn new(attachment: Rc<Attachment>, pieces: Pieces) -> Self {
        Work { attachment, pieces, aborts: Vec::new(), entered: None }
    }

    /// Whether it writes, and is not what the gate was closed for.
    fn passes_gate(&self) -> bool {
        match &self.pieces {
            Pieces::Run { whole, .. } => whole.op.modifies(),
            Pieces::Ranges(_) => true,
            Pieces::Verify { .. } | Pieces::Fused(_) | Pieces::Flushes(_) => false,
        }
    }

    /// The blocks that it touches.
    fn range(&self) -> Range<u64> {
        match &self.pieces {
            Pieces::Run { whole, .. } => whole.lba..whole.lba.saturating_add(whole.blocks.into()),
            _ => 0..u64::MAX,
        }
    }

    /// What is asked of the volume next; `None` when all is done.
    fn next(&mut self) -> Option<Request> {
        match &mut self.pieces {
            Pieces::Fused(fused) => fused.next(),
            Pieces::Ranges(ranges) => {
                let Blocks { op, lba, blocks } = ranges.pop()?;
                Some(Request { op, lba, blocks, sgl: Sgl::empty() })
            }
            Pieces::Flushes(rest) => {
                self.attachment = rest.pop()?;
                Some(Request { op: Op::Flush, ..Request::default() })
            }
            Pieces::Verify { whole, buffer, done } => {
                let left = whole.blocks.checked_sub(*done).filter(|left| *left > 0)?;
                let shift = self.attachment.block_shift;
                let most = match self.attachment.limits.max_blocks {
                    0 => left,
                    most => most.min(left),
                };
                let blocks = u32::try_from(buffer.len() >> shift).unwrap_or(most).min(most);
                let lba = whole.lba + u64::from(*done);
                *done += blocks;
                let sgl = buffer.slice(0, (blocks as usize) << shift);
                Some(Request { op: Op::Read, lba, blocks, sgl })
            }
            Pieces::Run { whole, data, done } => {
                let before = done.unwrap_or(0);
                let left = whole.blocks - before;
                if left == 0 && done.is_some() {
                    return None;
                }
                let most = self.attachment.limits.max_blocks;
                let bounded = whole.op.has_data() && most != 0 && left > most;
                let blocks = if bounded { most } else { left };
                let sgl = match (whole.op.has_data(), blocks == whole.blocks) {
                    (false, _) => Sgl::empty(),
                    (true, true) => data.clone(),
                    (true, false) => {
                        let shift = self.attachment.block_shift;
                        data.slice((before as usize) << shift, (blocks as usize) << shift)
                    }
                };
                let lba = whole.lba + u64::from(before);
                *done = Some(before + blocks);
                Some(Request { op: whole.op, lba, blocks, sgl })
            }
        }
    }

    fn has_more(&self) -> bool {
        match &self.pieces {
            Pieces::Fused(fused) => fused.step < 2,
            Pieces::Ranges(ranges) => !ranges.is_empty(),
            Pieces::Verify { whole, done, .. } => *done < whole.blocks,
            Pieces::Flushes(rest) => !rest.is_empty(),
            Pieces::Run { whole, done, .. } => done.unwrap_or(0) < whole.blocks,
        }
    }
}

impl Stage {
    /// The memory of a read, for its host.
    fn take_data(&mut self) -> Sgl {
        match self {
            Stage::Io(Work { pieces: Pieces::Run { whole, data, .. }, .. }) if whole.op == Op::Read => {
                std::mem::take(data)
            }
            _ => Sgl::empty(),
        }
    }
}

impl<T: Transport> Issuer for Queue<T> {
    fn resume(self: Rc<Self>, mut io: Io, cookie: u64, result: IoResult) {
        let (ticket, failed, lba, done) = {
            let mut slots = self.slots.borrow_mut();
            let Some((ticket, slot)) = slots.of_io(cookie) else { return };
            if let Stage::Io(work) = &slot.stage {
                let took = self.local().shard().now().saturating_sub(slot.sent);
                self.stats.record(io.request(), work.attachment.limits.block_size, took, &result);
            }
            let (op, lba) = (io.op(), io.request().lba);
            io.request_mut().sgl = Sgl::empty();
            slot.io = Some(io);
            let Stage::Io(work) = &slot.stage else { return };
            let (preempted, not_ready) = (slot.preempted, slot.not_ready);
            let failed = match result {
                Ok(()) if preempted && work.has_more() => Some(Status::ABORTED_PREEMPT_AND_ABORT.dnr()),
                Err(engine::IoError::Aborted) if preempted => Some(Status::ABORTED_PREEMPT_AND_ABORT.dnr()),
                Ok(()) if self.closing.get() && work.has_more() => Some(Status::ABORTED_SQ_DELETION),
                Ok(()) if !work.aborts.is_empty() && work.has_more() => Some(Status::ABORT_REQUESTED),
                Ok(()) => None,
                Err(engine::IoError::Aborted) if !work.aborts.is_empty() => Some(Status::ABORT_REQUESTED),
                Err(engine::IoError::Aborted) if self.closing.get() => Some(Status::ABORTED_SQ_DELETION),
                Err(engine::IoError::Aborted) if self.lost(&work.attachment) => {
                    Some(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())
                }
                Err(engine::IoError::Aborted) if not_ready => {
                    Some(self.shared.timed(Status::NAMESPACE_NOT_READY))
                }
                Err(error) => Some(self.shared.timed(nvm::status(error, op))),
            };
            let done = (failed.is_none() && !work.has_more()).then(|| slot.stage.take_data());
            (ticket, failed, lba, done)
        };
        match (failed, done) {
            (Some(status), _) => {
                let mut of = ticket;
                if let Some(second) = self.second_of(ticket) {
                    self.end(ticket, Reply::default());
                    of = second;
                }
                self.release(of, status.into(), Sgl::empty(), Some(lba));
            }
            (None, Some(data)) => self.end_with(ticket, Reply::default(), data),
            (None, None) => self.next_piece(ticket),
        }
    }
}
