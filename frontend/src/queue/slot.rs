//! The slots of a queue: made when they are first needed, used again for ever.

use std::rc::Rc;
use std::sync::Arc;

use engine::Io;
use engine::mem::Sgl;
use nvme_proto::Sqe;

use super::Ticket;
use super::fused::{Fused, Pair};
use crate::controller::AbortAnswer;
use crate::namespace::Attachment;
use crate::nvm::Blocks;
use crate::subsystem::Hold;

/// Where a command is on its way.
#[derive(Default)]
pub(super) enum Stage {
    /// The slot is free.
    #[default]
    Free,
    /// Just taken.
    Fetched,
    /// It waits for its data, and then does this.
    Data(Pending),
    /// It is at work on a volume.
    Io(Work),
    /// It waits for others of its queue.
    Queued,
    /// It waits for the other of its pair, or for their blocks.
    Fused(Rc<Pair>),
    /// The first of its pair is at work, for both.
    Follows,
    /// Its controller or its transport ends it.
    Waiting,
}

/// What is done when the data is there.
pub(super) enum Pending {
    /// An operation on blocks.
    Blocks(Rc<Attachment>, Blocks),
    /// One of a pair.
    Fused(Rc<Pair>),
    /// The data lists ranges to deallocate.
    Ranges(Rc<Attachment>),
    /// The data goes with a command that changes the reservation.
    Reserve(Rc<Attachment>),
    /// The bytes are copied into it, and the command has succeeded.
    ToHost(Vec<u8>),
    /// The controller takes the bytes.
    FromHost,
}

/// A command at work on a volume.
pub(super) struct Work {
    pub attachment: Rc<Attachment>,
    /// What is asked of it, and how far that is.
    pub pieces: Pieces,
    /// It has passed the namespace's gate.
    pub entered: Option<bool>,
}

/// Small, since it is moved about: what few commands need is in a box.
pub(super) enum Pieces {
    /// One run of blocks at once. Its memory is the slot's I/O's.
    Whole(Blocks),
    /// One run of blocks, part by part.
    Parts(Box<Parts>),
    /// A run of blocks that are read into the buffer again and again.
    Verify(Box<Parts>),
    /// Compare and Write.
    Fused(Box<Fused>),
    /// Ranges; the last one is next.
    Ranges(Vec<Blocks>),
    /// A flush of each of these; the last one is next.
    Flushes(Vec<Rc<Attachment>>),
}

/// A run of blocks that is larger than what its volume, or our buffer, takes at once.
pub(super) struct Parts {
    pub whole: Blocks,
    /// The memory of all of it; of a Verify, the buffer.
    pub data: Sgl,
    /// A flush is the first of it.
    pub commit: bool,
    /// So many blocks have ended or are under way.
    pub done: u32,
}

/// Who waits for a command's end, apart from its host.
#[derive(Default)]
pub(super) struct Waiters {
    /// The Abort commands that want it back.
    pub aborts: Vec<AbortAnswer>,
    /// The Preempt and Abort that took it back.
    pub hold: Option<Arc<Hold>>,
}

pub(super) struct Slot<C> {
    pub sqe: Sqe,
    pub command: Option<C>,
    /// Here unless it is with a volume; it has the command's memory, once that is known.
    pub io: Option<Io>,
    /// When the I/O went to its volume, on the shard's clock.
    pub sent: u64,
    /// When the first of the command's did, and how many blocks those before have covered.
    pub began: u64,
    pub covered: u64,
    pub stage: Stage,
    /// Preempt and Abort took the command back.
    pub preempted: bool,
    /// It is asked back because its volume is out of reach.
    pub not_ready: bool,
    /// Few commands have any.
    pub waiters: Option<Box<Waiters>>,
    seq: u32,
}

const _: () = assert!(size_of::<Stage>() <= 64, "a stage is moved about");

/// What is left of a command that has ended.
pub(super) struct Released<C> {
    pub cid: u16,
    pub command: C,
    /// Its I/O, with its memory, unless that is with a volume or was taken.
    pub io: Option<Io>,
    pub waiters: Option<Box<Waiters>>,
    /// It was a Verify at work.
    pub verified: bool,
    /// It was one of a pair.
    pub pair: Option<Rc<Pair>>,
    /// No command is in flight any more.
    pub last: bool,
}

pub(super) struct Slots<C> {
    all: Vec<Slot<C>>,
    free: Vec<u16>,
    depth: u16,
}

impl<C> Slots<C> {
    pub fn new(depth: u16) -> Self {
        Slots { all: Vec::new(), free: Vec::new(), depth }
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.all.len() < usize::from(self.depth)
    }

    pub fn in_flight(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// A slot for a command; the command comes back if there is none.
    pub fn take(&mut self, sqe: &Sqe, command: C) -> Result<Ticket, C> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.all.len() < usize::from(self.depth) => {
                let at = self.all.len() as u16;
                self.all.push(Slot {
                    sqe: *sqe,
                    command: None,
                    io: None,
                    sent: 0,
                    began: 0,
                    covered: 0,
                    stage: Stage::Free,
                    preempted: false,
                    not_ready: false,
                    waiters: None,
                    seq: 0,
                });
                at
            }
            None => return Err(command),
        };
        let slot = &mut self.all[usize::from(at)];
        slot.sqe = *sqe;
        slot.command = Some(command);
        slot.stage = Stage::Fetched;
        slot.seq = slot.seq.wrapping_add(1);
        Ok(Ticket { slot: at, seq: slot.seq })
    }

    /// The slot of a command that is still in flight.
    pub fn get(&mut self, ticket: Ticket) -> Option<&mut Slot<C>> {
        self.all.get_mut(usize::from(ticket.slot)).filter(|s| s.seq == ticket.seq && s.command.is_some())
    }

    /// The slot of a command that was taken out of it for a moment.
    pub fn open(&mut self, ticket: Ticket) -> Option<&mut Slot<C>> {
        self.all.get_mut(usize::from(ticket.slot)).filter(|s| s.seq == ticket.seq)
    }

    /// Keeps the I/O of a command that has ended, for the slot's next one.
    pub fn keep(&mut self, ticket: Ticket, io: Io) {
        if let Some(slot) = self.all.get_mut(usize::from(ticket.slot)) {
            slot.io.get_or_insert(io);
        }
    }

    /// The slot that an I/O belongs to, and its command.
    pub fn of_io(&mut self, at: u64) -> Option<(Ticket, &mut Slot<C>)> {
        let slot = self.all.get_mut(usize::try_from(at).ok()?)?;
        Some((Ticket { slot: at as u16, seq: slot.seq }, slot))
    }

    /// Frees a command's slot; gives what was kept of it.
    pub fn release(&mut self, ticket: Ticket) -> Option<Released<C>> {
        let slot = self.get(ticket)?;
        let command = slot.command.take()?;
        let (mut verified, mut pair) = (false, None);
        match &slot.stage {
            Stage::Io(work) => {
                if let Some(epoch) = work.entered {
                    work.attachment.gate().leave(epoch);
                }
                match &work.pieces {
                    Pieces::Verify(_) => verified = true,
                    Pieces::Fused(fused) => pair = Some(fused.pair.clone()),
                    _ => {}
                }
            }
            Stage::Data(Pending::Fused(of)) | Stage::Fused(of) => pair = Some(of.clone()),
            _ => {}
        }
        slot.stage = Stage::Free;
        (slot.preempted, slot.not_ready) = (false, false);
        let (cid, io, waiters) = (slot.sqe.cid, slot.io.take(), slot.waiters.take());
        self.free.push(ticket.slot);
        let last = self.in_flight() == 0;
        Some(Released { cid, command, io, waiters, verified, pair, last })
    }

    /// A command in flight with that identifier.
    pub fn find(&mut self, cid: u16) -> Option<(Ticket, &mut Slot<C>)> {
        let found = |slot: &Slot<C>| slot.command.is_some() && slot.sqe.cid == cid;
        let (at, slot) = self.all.iter_mut().enumerate().find(|(_, slot)| found(slot))?;
        Some((Ticket { slot: at as u16, seq: slot.seq }, slot))
    }

    /// Marks the commands on a namespace for Preempt and Abort, and names those that are with its volume. Those that
    /// wait for data never get there: they end when the data has come, since the host is sending it.
    pub fn preempt(&mut self, attachment: &Rc<Attachment>, hold: &Arc<Hold>) -> Vec<u16> {
        let mut at_work = Vec::new();
        for (at, slot) in self.all.iter_mut().enumerate() {
            let theirs = |other: &Rc<Attachment>| Arc::ptr_eq(&other.namespace, &attachment.namespace);
            match &slot.stage {
                Stage::Data(Pending::Blocks(of, _) | Pending::Ranges(of)) if theirs(of) => {}
                Stage::Io(work) if theirs(&work.attachment) => {
                    slot.waiters.get_or_insert_default().hold = Some(hold.clone());
                    at_work.push(at as u16);
                }
                _ => continue,
            }
            slot.preempted = true;
        }
        at_work
    }

    /// Marks the commands that went to their volumes before then, if those are out of reach, and names them. Compare and
    /// Write stays: it must not be tried again before it is known what became of it.
    pub fn give_back(&mut self, before: u64) -> Vec<(u16, Rc<Attachment>)> {
        let mut late = Vec::new();
        for (at, slot) in self.all.iter_mut().enumerate().filter(|(_, slot)| slot.sent < before) {
            if let Stage::Io(work) = &slot.stage
                && !matches!(work.pieces, Pieces::Fused(_))
                && work.attachment.namespace.volume.is_away()
            {
                slot.not_ready = true;
                late.push((at as u16, work.attachment.clone()));
            }
        }
        late
    }

    /// Commands that no volume has: they wait for data or for their controller.
    pub fn waiting(&self) -> Vec<Ticket> {
        let waits = |s: &&Slot<C>| {
            matches!(s.stage, Stage::Data(_) | Stage::Queued | Stage::Fused(_) | Stage::Waiting)
        };
        let ticket = |(at, s): (usize, &Slot<C>)| waits(&s).then_some(Ticket { slot: at as u16, seq: s.seq });
        self.all.iter().enumerate().filter_map(ticket).collect()
    }
}
