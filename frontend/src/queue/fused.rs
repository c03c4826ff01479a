//! Compare and Write, fused (Base 2.1, 3.4.2; NVM Command Set 1.1, 2.1.4.4 and 3.1.2.2): two commands side by side, one
//! operation. Both have their data before either is at work, and nobody else writes to the blocks between them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine::Op;
use engine::mem::Sgl;
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::{Sqe, Status};

use super::slot::{Pending, Pieces, Stage, Work};
use super::{Direction, Queue, Ticket, Transport};
use crate::controller::MAX_TRANSFER;
use crate::namespace::{Attachment, Protection};
use crate::nvm::{self, Blocks, Command};
use crate::subsystem::RangeGuard;

/// FUSE.
const FIRST: u8 = 1;
const SECOND: u8 = 2;

/// Two commands that are one.
pub(super) struct Pair {
    first: Ticket,
    second: Ticket,
    attachment: Rc<Attachment>,
    /// The write.
    blocks: Blocks,
    /// What is compared, and what is written, when they are there.
    data: RefCell<[Option<Sgl>; 2]>,
    /// One of them has ended.
    ended: Cell<bool>,
}

/// A pair at work.
pub(super) struct Fused {
    pub pair: Rc<Pair>,
    /// 0: nothing is under way yet; 1: the compare; 2: the write.
    pub step: u8,
    _lock: RangeGuard,
}

impl Fused {
    /// The next operation, and its memory.
    pub fn next(&mut self) -> Option<(Blocks, Sgl)> {
        let Blocks { op, lba, blocks } = self.pair.blocks;
        let data = self.pair.data.borrow_mut().get_mut(usize::from(self.step))?.take()?;
        let op = if self.step == 0 { Op::Compare } else { op };
        self.step += 1;
        Some((Blocks { op, lba, blocks }, data))
    }

    /// The write, whose blocks a namespace that has changed must still have.
    pub fn blocks(&self) -> &Blocks {
        &self.pair.blocks
    }
}

impl<T: Transport> Queue<T> {
    /// A command that is fused, or follows one that is.
    pub(super) fn fused(self: &Rc<Self>, ticket: Ticket, sqe: &Sqe) {
        let first = self.first.take().filter(|first| self.is_queued(*first));
        let fuse = sqe.flags.fuse();
        if let (Some(first), SECOND) = (first, fuse) {
            return self.join(first, ticket, sqe);
        }
        if let Some(first) = first {
            self.end(first, Status::ABORTED_MISSING_FUSED.into());
        }
        match fuse {
            0 => self.nvm(ticket, sqe),
            FIRST => {
                self.stage(ticket, Stage::Queued);
                self.first.set(Some(ticket));
            }
            SECOND => self.end(ticket, Status::ABORTED_MISSING_FUSED.into()),
            _ => self.end(ticket, Status::INVALID_FIELD.dnr().into()),
        }
    }

    /// The second of a pair, if it is awaited, does not come: something else did, or nothing will.
    pub(crate) fn break_pair(self: &Rc<Self>) {
        if let Some(first) = self.first.take().filter(|first| self.is_queued(*first)) {
            self.end(first, Status::ABORTED_MISSING_FUSED.into());
        }
    }

    /// Keeps a write until its namespace's gate opens.
    pub(super) fn park(self: &Rc<Self>, ticket: Ticket, work: Work) {
        self.stage(ticket, Stage::Queued);
        let (me, attachment) = (self.clone(), work.attachment.clone());
        attachment.gate().park(Box::new(move || {
            // It may have been taken back meanwhile.
            if me.is_queued(ticket) {
                me.work(ticket, work);
            }
        }));
    }

    fn is_queued(&self, ticket: Ticket) -> bool {
        self.slots.borrow_mut().get(ticket).is_some_and(|slot| matches!(slot.stage, Stage::Queued))
    }

    fn join(self: &Rc<Self>, first: Ticket, second: Ticket, write: &Sqe) {
        let compare = self.slots.borrow_mut().get(first).map(|slot| slot.sqe).unwrap_or_default();
        let (attachment, blocks) = match self.check_pair(&compare, write) {
            Ok(checked) => checked,
            Err([a, b]) => {
                self.end(first, a.into());
                return self.end(second, b.into());
            }
        };
        let len = (blocks.blocks as usize) << attachment.block_shift;
        let pair = Rc::new(Pair {
            first,
            second,
            attachment,
            blocks,
            data: RefCell::default(),
            ended: Cell::new(false),
        });
        self.stage(second, Stage::Fused(pair.clone()));
        self.transfer(first, &compare, Direction::FromHost, len, Pending::Fused(pair.clone()));
        if !pair.ended.get() {
            self.transfer(second, write, Direction::FromHost, len, Pending::Fused(pair));
        }
    }

    /// What a pair writes, and where; or what each of them completes with.
    fn check_pair(&self, compare: &Sqe, write: &Sqe) -> Result<(Rc<Attachment>, Blocks), [Status; 2]> {
        let both = |status: Status| [status.dnr(), status.dnr()];
        let failed = Status::ABORTED_FAILED_FUSED;
        let opcodes = compare.nvm() == NvmOpcode::Compare && write.nvm() == NvmOpcode::Write;
        let range = |sqe: &Sqe| (sqe.nsid, sqe.slba(), sqe.nlb());
        if !opcodes || range(compare) != range(write) {
            return Err(both(Status::INVALID_FIELD));
        }
        let attachment = self.local.namespace(compare.nsid).ok_or(both(self.no_namespace(compare)))?;
        let limits = &attachment.limits;
        if !limits.compare {
            return Err(both(Status::INVALID_FIELD));
        }
        let alone =
            |sqe: &Sqe| nvm::parse(&Sqe { flags: sqe.flags.with_fuse(0), ..*sqe }, limits, MAX_TRANSFER);
        alone(compare).map_err(|status| [status, failed])?;
        let Command::Blocks(blocks) = alone(write).map_err(|status| [failed, status])? else {
            return Err(both(Status::INVALID_FIELD));
        };
        if blocks.blocks > limits.atomic_blocks {
            return Err([Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr(), failed]);
        }
        let conflict = Status::RESERVATION_CONFLICT.dnr();
        if !attachment.permits(&self.shared, NvmOpcode::Compare) {
            return Err([conflict, failed]);
        }
        if !attachment.permits(&self.shared, NvmOpcode::Write) {
            return Err([failed, conflict]);
        }
        if attachment.protection != Protection::None {
            return Err([failed, Status::NAMESPACE_WRITE_PROTECTED.dnr()]);
        }
        Ok((attachment, blocks))
    }

    /// One of them has its data; when both have, the blocks are locked.
    pub(super) fn fused_data(self: &Rc<Self>, ticket: Ticket, pair: Rc<Pair>, sgl: Sgl) {
        if pair.ended.get() {
            return self.end(ticket, Status::ABORTED_FAILED_FUSED.into());
        }
        self.stage(ticket, Stage::Fused(pair.clone()));
        let ready = {
            let mut data = pair.data.borrow_mut();
            data[usize::from(ticket == pair.second)] = Some(sgl);
            data.iter().all(Option::is_some)
        };
        if !ready {
            return;
        }
        let (shard, key, origin, first) = (self.local.shard().handle(), self.key(), self.origin, pair.first);
        let Blocks { lba, blocks, .. } = pair.blocks;
        let range = lba..lba + u64::from(blocks);
        let granted = move |lock: RangeGuard| {
            shard.run(move |shard| {
                if let Some(queue) = shard.local::<Queue<T>>(key).filter(|queue| queue.origin == origin) {
                    queue.run_pair(first, lock);
                }
            });
        };
        let nsid = pair.attachment.namespace.nsid;
        self.local.subsystem().lock_range(nsid, range, Box::new(granted));
    }

    fn run_pair(self: &Rc<Self>, first: Ticket, lock: RangeGuard) {
        let pair = match self.slots.borrow_mut().get(first).map(|slot| &slot.stage) {
            Some(Stage::Fused(pair)) => pair.clone(),
            _ => return,
        };
        self.stage(pair.second, Stage::Follows);
        let attachment = pair.attachment.clone();
        let pieces = Pieces::Fused(Box::new(Fused { pair, step: 0, _lock: lock }));
        self.work(first, Work::new(attachment, pieces));
    }

    /// The write of a pair has failed: the compare had succeeded.
    pub(super) fn second_of(&self, first: Ticket) -> Option<Ticket> {
        match self.slots.borrow_mut().get(first).map(|slot| &slot.stage) {
            Some(Stage::Io(Work { pieces: Pieces::Fused(fused), .. })) if fused.step == 2 => {
                fused.pair.ended.set(true);
                Some(fused.pair.second)
            }
            _ => None,
        }
    }

    /// One of a pair has ended: so does the other, unless its host still owes its data.
    pub(super) fn pair_ended(self: &Rc<Self>, pair: &Pair, ticket: Ticket, status: Status) {
        if pair.ended.replace(true) {
            return;
        }
        let other = if ticket == pair.first { pair.second } else { pair.first };
        let waits =
            self.slots.borrow_mut().get(other).is_some_and(|slot| matches!(slot.stage, Stage::Data(_)));
        if waits && !self.is_closing() && !self.transport.may_end(other) {
            return;
        }
        let status = match status.is_success() {
            true => Status::SUCCESS,
            false if self.is_closing() => Status::ABORTED_SQ_DELETION,
            false => Status::ABORTED_FAILED_FUSED,
        };
        self.end(other, status.into());
    }
}
