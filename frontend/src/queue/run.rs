//! A command's way through its slot.

use std::ops::Range;
use std::rc::Rc;

use engine::mem::Sgl;
use engine::stats::Kind;
use engine::{Io, IoError, IoId, IoResult, Issuer, Op, Request};
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::{Sqe, Status};

use super::slot::{Parts, Pending, Pieces, Released, Slot, Stage, Work};
use super::{Completion, Data, Direction, Outcome, Queue, Reply, Ticket, Transport};
use crate::controller::{AbortAnswer, Failure, INACCESSIBLE};
use crate::namespace::{Attachment, Protection};
use crate::nvm::{self, Blocks, Command};

/// NSID of Flush for all namespaces.
const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// How a command ends, beside its reply.
#[derive(Default)]
struct End {
    /// What its memory holds is for the host.
    to_host: bool,
    /// Where it failed, if that is known.
    lba: Option<u64>,
    /// Its I/O, if that is not in its slot.
    io: Option<Io>,
}

impl<T: Transport> Queue<T> {
    /// Finds who executes a command that was just fetched.
    pub(super) fn dispatch(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe) {
        // Admin commands are never fused, whether the transport or the controller would execute them.
        if self.qid == 0 && sqe.flags.fuse() != 0 {
            return self.end(ticket, Status::INVALID_FIELD.dnr().into());
        }
        let intercepted = match self.qid == 0 || T::INTERCEPTS_IO {
            true => self.with_command(ticket, |c| self.transport.intercept(self, ticket, sqe, c)).flatten(),
            false => None,
        };
        match (intercepted, &self.controller) {
            (Some(outcome), _) => {
                self.break_pair();
                self.settle(ticket, sqe, outcome);
            }
            (None, Some(controller)) => {
                // The command waits before the controller sees it: the answer may come inside the call.
                self.stage(ticket, Stage::Waiting);
                let outcome = controller.admin(self.clone(), ticket, sqe);
                self.settle(ticket, sqe, outcome);
            }
            (None, None) => self.nvm(ticket, sqe),
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
                match self.data_of(ticket, sqe, direction, len) {
                    Some(Data::Ready) => self.start(ticket, sqe, attachment, blocks),
                    data => self.not_ready(ticket, data, Pending::Blocks(attachment, blocks)),
                }
            }
            Ok(Command::Blocks(blocks)) => self.start(ticket, sqe, attachment, blocks),
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
        match self.data_of(ticket, sqe, direction, len) {
            Some(Data::Ready) => self.go_on(ticket, sqe, then),
            data => self.not_ready(ticket, data, then),
        }
    }

    /// Where a command's data is, if it has not ended.
    #[inline]
    fn data_of(&self, ticket: Ticket, sqe: &Sqe, direction: Direction, len: usize) -> Option<Data> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get(ticket)?;
        let command = slot.command.as_mut()?;
        let io = slot.io.get_or_insert_with(|| self.io(ticket));
        Some(self.transport.data(ticket, sqe, command, direction, len, &mut io.request_mut().sgl))
    }

    /// The data is to come, or does not.
    #[cold]
    fn not_ready(self: &Rc<Self>, ticket: Ticket, data: Option<Data>, then: Pending) {
        self.stage(ticket, Stage::Data(then));
        if let Some(Data::Failed(status)) = data {
            self.end(ticket, status.into());
        }
    }

    /// Runs `f` on what the transport keeps of a command, with the slots free to be looked at.
    fn with_command<R>(&self, ticket: Ticket, f: impl FnOnce(&mut T::Command) -> R) -> Option<R> {
        let mut command = self.slots.borrow_mut().get(ticket)?.command.take()?;
        let result = f(&mut command);
        if let Some(slot) = self.slots.borrow_mut().open(ticket) {
            slot.command = Some(command);
        }
        Some(result)
    }

    /// Takes a command's I/O out of its slot.
    fn io_of(&self, ticket: Ticket, slot: &mut Slot<T::Command>) -> Io {
        slot.io.take().unwrap_or_else(|| self.io(ticket))
    }

    /// The first I/O of a slot.
    #[cold]
    fn io(&self, ticket: Ticket) -> Io {
        Io::new(IoId { origin: self.origin, tag: u64::from(ticket.slot) })
    }

    /// Takes the data of a command that is not with a volume.
    fn take_data(&self, ticket: Ticket) -> Sgl {
        let mut slots = self.slots.borrow_mut();
        let io = slots.get(ticket).and_then(|slot| slot.io.as_mut());
        io.map(|io| std::mem::take(&mut io.request_mut().sgl)).unwrap_or_default()
    }

    /// The same as bytes that nobody changes any more.
    fn take_bytes(&self, ticket: Ticket) -> Vec<u8> {
        let sgl = self.take_data(ticket);
        let mut bytes = vec![0; sgl.len()];
        sgl.copy_out(0, &mut bytes);
        bytes
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
            let mut io = self.io_of(ticket, slot);
            io.request_mut().sgl = sgl;
            slot.io = Some(io);
            (slot.sqe, then, slot.preempted)
        };
        match preempted {
            true => self.end(ticket, Status::ABORTED_PREEMPT_AND_ABORT.dnr().into()),
            false => self.go_on(ticket, &sqe, then),
        }
    }

    /// A command has its data, or the room for it.
    fn go_on(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe, then: Pending) {
        match then {
            Pending::Blocks(attachment, blocks) => self.start(ticket, sqe, attachment, blocks),
            Pending::Fused(pair) => self.fused_data(ticket, pair, self.take_data(ticket)),
            Pending::Ranges(attachment) => {
                let list = self.take_bytes(ticket);
                self.deallocate(ticket, attachment, &list);
            }
            Pending::Reserve(attachment) => {
                let bytes = self.take_bytes(ticket);
                self.change_reservation(ticket, sqe, &attachment, &bytes);
            }
            Pending::ToHost(bytes) => {
                let bytes = match &self.controller {
                    Some(controller) => controller.admin_answer(sqe, bytes),
                    None => bytes,
                };
                let io = self.slots.borrow_mut().get(ticket).and_then(|slot| slot.io.take());
                if let Some(sgl) = io.as_ref().map(Io::sgl) {
                    sgl.copy_in(0, &bytes[..bytes.len().min(sgl.len())]);
                }
                self.release(ticket, Reply::default(), End { to_host: true, io, ..End::default() });
            }
            Pending::FromHost => {
                let bytes = self.take_bytes(ticket);
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

    /// Does an operation on blocks whose memory the slot's I/O has.
    #[inline]
    fn start(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe, attachment: Rc<Attachment>, whole: Blocks) {
        let most = attachment.limits.max_blocks;
        let commit = attachment.limits.volatile_cache && nvm::commits_first(sqe);
        let pieces = match commit || whole.op.has_data() && most != 0 && whole.blocks > most {
            true => Pieces::Parts(Box::new(Parts { whole, data: self.take_data(ticket), commit, done: 0 })),
            false => Pieces::Whole(whole),
        };
        self.work(ticket, Work::new(attachment, pieces));
    }

    #[inline]
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
        self.next_piece(ticket, Some(work));
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
            Pieces::Whole(whole) => check(whole),
            Pieces::Parts(parts) | Pieces::Verify(parts) => check(&parts.whole),
            Pieces::Fused(fused) => check(fused.blocks()),
            Pieces::Ranges(ranges) => ranges.iter().try_for_each(check),
            Pieces::Flushes(_) => Ok(()),
        }
    }

    /// Sends the next piece of a command to its volume, or ends the command; `begins` is one that starts, and should be built
    /// in its slot: a copy would wait for each of its parts to be stored.
    #[inline(always)]
    fn next_piece(self: &Rc<Self>, ticket: Ticket, begins: Option<Work>) {
        let (io, channel, whole) = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get(ticket) else { return };
            let shard = self.local.shard();
            slot.sent = shard.now();
            if let Some(work) = begins {
                slot.stage = Stage::Io(work);
                (slot.began, slot.covered) = (slot.sent, 0);
            }
            let mut io = self.io_of(ticket, slot);
            let Stage::Io(work) = &mut slot.stage else {
                slot.io = Some(io);
                return;
            };
            match work.next(io.request_mut()) {
                true => {
                    let whole = matches!(work.pieces, Pieces::Whole(_));
                    (io, work.attachment.channel(shard).clone(), whole)
                }
                false => {
                    slot.io = Some(io);
                    drop(slots);
                    return self.end(ticket, Reply::default());
                }
            }
        };
        let cookie = u64::from(ticket.slot);
        match whole && T::BORROWS {
            true => io.forward_to_borrow(&channel, self.clone(), cookie),
            false => io.forward(&channel, self.clone(), cookie),
        }
    }

    pub(super) fn end(self: &Rc<Self>, ticket: Ticket, reply: Reply) {
        self.release(ticket, reply, End::default());
    }

    fn release(self: &Rc<Self>, ticket: Ticket, reply: Reply, end: End) {
        let failed = !reply.status.is_success();
        let (released, sqe) = {
            let mut slots = self.slots.borrow_mut();
            let sqe = failed.then(|| slots.get(ticket).map(|slot| slot.sqe)).flatten();
            let Some(released) = slots.release(ticket) else { return };
            (released, sqe)
        };
        let Released { cid, command, io, waiters, verified, pair, last } = released;
        if last && self.qid != 0 {
            self.shared.busy().end(self.local().shard().now());
        }
        self.answer(command, &Completion { ticket, cid, reply }, end.io.or(io), end.to_host);
        if let Some(sqe) = sqe {
            self.note_failure(&sqe, reply.status, end.lba);
        }
        if let Some(waiters) = waiters
            && reply.status.code() == Status::ABORT_REQUESTED
        {
            waiters.aborts.into_iter().for_each(AbortAnswer::aborted);
        }
        if verified {
            self.next_verify();
        }
        if let Some(pair) = pair {
            self.pair_ended(&pair, ticket, reply.status);
        }
        self.check_closed();
    }

    /// Has the transport answer, and keeps the I/O without its memory.
    #[inline]
    fn answer(&self, command: T::Command, completion: &Completion, io: Option<Io>, to_host: bool) {
        let Some(mut io) = io else {
            return self.transport.complete(command, completion, &mut Sgl::empty());
        };
        let data = &mut io.request_mut().sgl;
        if !to_host {
            data.clear();
        }
        self.transport.complete(command, completion, data);
        data.clear();
        self.slots.borrow_mut().keep(completion.ticket, io);
    }

    /// Counts a command of several pieces when the last of them has come back, which this one may be.
    #[cold]
    fn record_piece(
        &self,
        work: &Work,
        piece: &Request,
        covered: &mut u64,
        took: u64,
        (result, verdict): (IoResult, Result<bool, Status>),
    ) {
        let block_size = work.attachment.limits.block_size;
        let kind = match &work.pieces {
            Pieces::Parts(parts) => Kind::of(parts.whole.op),
            Pieces::Verify(_) => Kind::Verify,
            _ => Kind::of(piece.op),
        };
        if result.is_ok() {
            *covered += u64::from(piece.blocks);
        }
        if verdict != Ok(true) {
            self.stats.count(kind, *covered * u64::from(block_size), took, verdict.is_ok());
        }
    }

    /// What becomes of a command, a piece of which has come back with that result: whether there is more to do.
    fn verdict(
        &self,
        slot: &Slot<T::Command>,
        work: &Work,
        op: Op,
        result: IoResult,
    ) -> Result<bool, Status> {
        let is_asked_back = || slot.waiters.as_ref().is_some_and(|waiters| !waiters.aborts.is_empty());
        match result {
            Ok(()) if !work.has_more() => Ok(false),
            Ok(()) | Err(IoError::Aborted) if slot.preempted => Err(Status::ABORTED_PREEMPT_AND_ABORT.dnr()),
            Ok(()) if self.closing.get() => Err(Status::ABORTED_SQ_DELETION),
            Ok(()) | Err(IoError::Aborted) if is_asked_back() => Err(Status::ABORT_REQUESTED),
            Ok(()) => Ok(true),
            Err(IoError::Aborted) if self.closing.get() => Err(Status::ABORTED_SQ_DELETION),
            Err(IoError::Aborted) if self.lost(&work.attachment) => {
                Err(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())
            }
            Err(IoError::Aborted) if slot.not_ready => Err(self.shared.timed(Status::NAMESPACE_NOT_READY)),
            Err(error) => Err(self.shared.timed(nvm::status(error, op))),
        }
    }
}

impl Work {
    pub(super) fn new(attachment: Rc<Attachment>, pieces: Pieces) -> Self {
        Work { attachment, pieces, entered: None }
    }

    /// The run of blocks that it is about, if it is one for a volume as it stands.
    fn run(&self) -> Option<&Blocks> {
        match &self.pieces {
            Pieces::Whole(whole) => Some(whole),
            Pieces::Parts(parts) => Some(&parts.whole),
            Pieces::Verify(_) | Pieces::Fused(_) | Pieces::Ranges(_) | Pieces::Flushes(_) => None,
        }
    }

    /// Whether it writes, and is not what the gate was closed for.
    fn passes_gate(&self) -> bool {
        self.run().map_or(matches!(self.pieces, Pieces::Ranges(_)), |whole| whole.op.modifies())
    }

    /// The blocks that it touches.
    fn range(&self) -> Range<u64> {
        self.run().map_or(0..u64::MAX, |whole| whole.lba..whole.lba.saturating_add(whole.blocks.into()))
    }

    /// Puts into `request` what is asked of the volume next. False when all is done.
    fn next(&mut self, request: &mut Request) -> bool {
        let (blocks, sgl) = match &mut self.pieces {
            Pieces::Whole(whole) => {
                (request.op, request.lba, request.blocks) = (whole.op, whole.lba, whole.blocks);
                return true;
            }
            Pieces::Parts(parts) | Pieces::Verify(parts) if parts.commit => {
                parts.commit = false;
                (Blocks { op: Op::Flush, lba: 0, blocks: 0 }, Sgl::empty())
            }
            Pieces::Parts(parts) => {
                let (at, blocks) = parts.next(self.attachment.limits.max_blocks, u32::MAX);
                let shift = self.attachment.block_shift;
                (blocks, parts.data.slice((at as usize) << shift, (blocks.blocks as usize) << shift))
            }
            Pieces::Verify(parts) => {
                let shift = self.attachment.block_shift;
                let room = u32::try_from(parts.data.len() >> shift).unwrap_or(u32::MAX);
                let (_, blocks) = parts.next(self.attachment.limits.max_blocks, room);
                (blocks, parts.data.slice(0, (blocks.blocks as usize) << shift))
            }
            Pieces::Fused(fused) => match fused.next() {
                Some(next) => next,
                None => return false,
            },
            Pieces::Ranges(ranges) => match ranges.pop() {
                Some(range) => (range, Sgl::empty()),
                None => return false,
            },
            Pieces::Flushes(rest) => match rest.pop() {
                Some(next) => {
                    self.attachment = next;
                    (Blocks { op: Op::Flush, lba: 0, blocks: 0 }, Sgl::empty())
                }
                None => return false,
            },
        };
        let Blocks { op, lba, blocks } = blocks;
        *request = Request { op, lba, blocks, sgl };
        true
    }

    fn has_more(&self) -> bool {
        match &self.pieces {
            Pieces::Whole(_) => false,
            Pieces::Parts(parts) | Pieces::Verify(parts) => parts.done < parts.whole.blocks,
            Pieces::Fused(fused) => fused.step < 2,
            Pieces::Ranges(ranges) => !ranges.is_empty(),
            Pieces::Flushes(rest) => !rest.is_empty(),
        }
    }
}

impl Parts {
    /// The next part: where it begins in the whole, and its blocks; none are left when it is empty. `most` is the
    /// volume's limit, zero for none.
    fn next(&mut self, most: u32, room: u32) -> (u32, Blocks) {
        let Blocks { op, lba, blocks } = self.whole;
        let most = if most == 0 { room } else { most.min(room) };
        let (at, blocks) = (self.done, (blocks - self.done).min(most));
        self.done += blocks;
        (at, Blocks { op, lba: lba + u64::from(at), blocks })
    }
}

impl<T: Transport> Issuer for Queue<T> {
    fn resume(self: Rc<Self>, mut io: Io, cookie: u64, result: IoResult) {
        let (ticket, verdict, lba) = {
            let mut slots = self.slots.borrow_mut();
            let Some((ticket, slot)) = slots.of_io(cookie) else { return };
            let Stage::Io(work) = &slot.stage else { return };
            let now = self.local().shard().now();
            let verdict = self.verdict(slot, work, io.op(), result);
            match &work.pieces {
                // Two commands, if it is a pair.
                Pieces::Whole(_) | Pieces::Fused(_) => {
                    let took = now.saturating_sub(slot.sent);
                    self.stats.record(io.request(), work.attachment.limits.block_size, took, &result);
                }
                _ => {
                    let took = now.saturating_sub(slot.began);
                    self.record_piece(work, io.request(), &mut slot.covered, took, (result, verdict));
                }
            }
            if verdict == Ok(false) {
                let to_host = work.run().is_some_and(|whole| whole.op == Op::Read);
                if let Stage::Io(Work { pieces: Pieces::Parts(parts), .. }) = &mut slot.stage {
                    io.request_mut().sgl = std::mem::take(&mut parts.data);
                }
                drop(slots);
                return self.release(ticket, Reply::default(), End { to_host, io: Some(io), lba: None });
            }
            let lba = io.lba();
            slot.io = Some(io);
            (ticket, verdict, lba)
        };
        let Err(status) = verdict else { return self.next_piece(ticket, None) };
        let mut of = ticket;
        if let Some(second) = self.second_of(ticket) {
            self.end(ticket, Reply::default());
            of = second;
        }
        self.release(of, status.into(), End { lba: Some(lba), ..End::default() });
    }
}
