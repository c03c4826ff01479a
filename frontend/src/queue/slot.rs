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

/// A command at work on a volume, piece by piece.
pub(super) struct Work {
    pub attachment: Rc<Attachment>,
    /// What is asked of it, and how far that is.
    pub pieces: Pieces,
    /// The Abort commands that want it back.
    pub aborts: Vec<AbortAnswer>,
    /// It has passed the namespace's gate.
    pub entered: Option<bool>,
}

pub(super) enum Pieces {
    /// One run of blocks and its memory; `done` blocks have ended or are under way.
    Run { whole: Blocks, data: Sgl, done: Option<u32> },
    /// A run of blocks that are read into the buffer again and again; `done` of them have been or are under way.
    Verify { whole: Blocks, buffer: Sgl, done: u32 },
    /// Compare and Write.
    Fused(Fused),
    /// Ranges; the last one is next.
    Ranges(Vec<Blocks>),
    /// A flush of each of these; the last one is next.
    Flushes(Vec<Rc<Attachment>>),
}

pub(super) struct Slot<C> {
    pub sqe: Sqe,
    pub command: Option<C>,
    /// Here unless it is with a volume.
    pub io: Option<Io>,
    /// When the I/O went to its volume, on the shard's clock.
    pub sent: u64,
    pub stage: Stage,
    /// Preempt and Abort took the command back.
    pub preempted: bool,
    /// It is asked back because its volume is out of reach.
    pub not_ready: bool,
    /// It waits for the command's end.
    pub hold: Option<Arc<Hold>>,
    seq: u32,
}

/// What is left of a command that has ended.
pub(super) struct Released<C> {
    pub sqe: Sqe,
    pub command: C,
    /// The Abort commands that wanted it back.
    pub aborts: Vec<AbortAnswer>,
    /// It was a Verify at work.
    pub verified: bool,
    /// The Preempt and Abort that waits for its end.
    pub hold: Option<Arc<Hold>>,
    /// It was one of a pair.
    pub pair: Option<Rc<Pair>>,
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
    pub fn take(&mut self, sqe: Sqe, command: C) -> Result<Ticket, C> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.all.len() < usize::from(self.depth) => {
                let at = self.all.len() as u16;
                self.all.push(Slot {
                    sqe,
                    command: None,
                    io: None,
                    sent: 0,
                    stage: Stage::Free,
                    preempted: false,
                    not_ready: false,
                    hold: None,
                    seq: 0,
                });
                at
            }
            None => return Err(command),
        };
        let slot = &mut self.all[usize::from(at)];
        slot.sqe = sqe;
        slot.command = Some(command);
        slot.stage = Stage::Fetched;
        slot.seq = slot.seq.wrapping_add(1);
        Ok(Ticket { slot: at, seq: slot.seq })
    }

    /// The slot of a command that is still in flight.
    pub fn get(&mut self, ticket: Ticket) -> Option<&mut Slot<C>> {
        self.all.get_mut(usize::from(ticket.slot)).filter(|s| s.seq == ticket.seq && s.command.is_some())
    }

    /// Gives back the command that was taken out of its slot for a moment.
    pub fn put_back(&mut self, ticket: Ticket, command: C) {
        if let Some(slot) = self.all.get_mut(usize::from(ticket.slot)).filter(|s| s.seq == ticket.seq) {
            slot.command = Some(command);
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
        let (mut aborts, mut verified, mut pair) = (Vec::new(), false, None);
        match &mut slot.stage {
            Stage::Io(work) => {
                aborts = std::mem::take(&mut work.aborts);
                if let Some(epoch) = work.entered {
                    work.attachment.gate().leave(epoch);
                }
                match &work.pieces {
                    Pieces::Verify { .. } => verified = true,
                    Pieces::Fused(fused) => pair = Some(fused.pair.clone()),
                    _ => {}
                }
            }
            Stage::Data(Pending::Fused(of)) | Stage::Fused(of) => pair = Some(of.clone()),
            _ => {}
        }
        slot.stage = Stage::Free;
        (slot.preempted, slot.not_ready) = (false, false);
        let (sqe, hold) = (slot.sqe, slot.hold.take());
        self.free.push(ticket.slot);
        Some(Released { sqe, command, aborts, verified, hold, pair })
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
                    slot.hold = Some(hold.clone());
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
