//! One queue of a controller: its command identifiers, and what the PDUs of a connection do to them (NVMe/TCP
//! Transport 1.1, 3.3). Sans I/O: `batch` writes what it has to send, `conn` moves the bytes.
//!
//! A controller is believed nothing that its commands do not bear out: a violation ends the connection.
#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::VecDeque;
use std::rc::Rc;

use engine::mem::{Buf, Sgl};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::tcp::{DataHdr, Fes, R2t, flags};
use nvme_proto::{Cqe, Sqe, Status};

use super::issued::{Ghost, Issued};
use super::promise::Promise;
use super::wire::{Agreed, Event, Framer, MAX_R2T, Violation};

/// Payload of which at least this many bytes are still to come is received straight into the command's memory. Measured:
/// at 16 KiB the receives that this adds cost twice what the copy costs, at 128 KiB they cost no more.
pub(super) const DIRECT: usize = 64 << 10;
/// A command identifier: the slot below, how often it was used above, so that a late answer finds nobody.
const SLOT_BITS: u32 = 12;
/// Data of a Fabrics command that its capsule always has room for (NVMe/TCP 1.1, 3.3.1.1).
const FABRICS_INLINE: u32 = 8192;

/// What a command came back with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// Its status; success for one that ended by C2HData's SUCCESS flag.
    pub status: Status,
    /// Dwords 0 and 1.
    pub result: u64,
    /// Data came that does not equal its digest.
    pub damaged: bool,
}

/// Whose command it is.
pub(super) enum Owner {
    /// A control sequence's, with the command's memory; `None` tells it that the connection is gone.
    Task(Rc<Promise<Option<Answer>>>, Sgl),
    /// A volume's.
    Io(Issued),
    /// Nobody's any more.
    Nobody(Ghost),
}

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the host.
    In,
    /// To the controller.
    Out,
}

pub(super) struct Command {
    pub cid: u16,
    pub sqe: Sqe,
    pub owner: Owner,
    pub way: Way,
    /// Bytes of data.
    pub len: u32,
    /// The data follows in the capsule.
    pub inline: bool,
    /// Order of issue on this connection.
    pub order: u64,
    /// The capsule was written into a batch.
    pub written: bool,
    /// Bytes received, or asked for by R2Ts.
    pub moved: u32,
    /// Bytes of data written into batches.
    pub sent: u32,
    /// R2Ts whose data is not written yet.
    r2ts: u32,
    /// Runs of the owner's memory that the kernel has at the moment.
    pub lent: u32,
    damaged: bool,
    /// What it ends with once its memory is back.
    answer: Option<Answer>,
}

impl Command {
    /// Bytes `at .. at + len` of the data.
    pub fn data(&self, at: u32, len: u32) -> Sgl {
        let (at, len) = (at as usize, len as usize);
        match &self.owner {
            Owner::Task(_, sgl) => sgl.slice(at, len),
            Owner::Io(issued) => issued.data().slice(at, len),
            Owner::Nobody(ghost) => ghost.data.slice(at.saturating_sub(ghost.base), len),
        }
    }

    fn memory(&self) -> Option<&Sgl> {
        match &self.owner {
            Owner::Task(_, sgl) => Some(sgl),
            Owner::Io(issued) => Some(issued.data()),
            Owner::Nobody(_) => None,
        }
    }
}

/// Something to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    /// A command's capsule.
    Capsule(u16),
    /// Data that an R2T asked for.
    Data { cid: u16, ttag: u16, offset: u32, left: u32 },
}

struct Slot {
    /// The identifier's upper bits next time.
    round: u16,
    command: Option<Command>,
}

/// A free slot.
pub(super) struct Place(u16);

/// What became of a command that its owner takes back.
pub(super) enum Taken {
    /// It is the owner's again; its memory is free.
    Back(Owner),
    /// The kernel has its memory: first end the operation, then ask again.
    Lent,
}

pub(super) struct Queue {
    pub agreed: Agreed,
    framer: Framer,
    slots: Vec<Slot>,
    free: VecDeque<u16>,
    in_capsule: u32,
    orders: u64,
    pub outbox: VecDeque<Item>,
    /// The command whose payload comes at the moment, and whether SUCCESS ends it.
    receiving: Option<(u16, bool)>,
    /// Commands that ended, for the connection to tell their owners.
    pub ended: VecDeque<(Owner, Answer)>,
    /// Reads of [`DIRECT`] bytes and more that are out.
    large: usize,
}

impl Queue {
    /// A queue of `entries` (2 to 4095), of which one stays empty as on any ring; data of at most `in_capsule` bytes
    /// goes with the command.
    pub fn new(agreed: Agreed, entries: u16, in_capsule: u32) -> Self {
        let usable = entries.clamp(2, 4095).saturating_sub(1);
        Queue {
            agreed,
            framer: Framer::new(agreed),
            slots: (0..usable).map(|_| Slot { round: 0, command: None }).collect(),
            free: (0..usable).collect(),
            in_capsule,
            orders: 0,
            outbox: VecDeque::new(),
            receiving: None,
            ended: VecDeque::new(),
            large: 0,
        }
    }

    /// A place for a command, if there is one; it is taken by [`Queue::submit`] alone.
    pub fn place(&self) -> Option<Place> {
        self.free.front().copied().map(Place)
    }

    /// Takes a command; it is sent with the next batch. Its data is the owner's memory.
    pub fn submit(&mut self, Place(index): Place, mut sqe: Sqe, way: Way, owner: Owner) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        self.free.pop_front();
        let cid = slot.round.wrapping_shl(SLOT_BITS) | index;
        slot.round = slot.round.wrapping_add(1);
        let len = match &owner {
            Owner::Task(_, sgl) => sgl.len(),
            Owner::Io(issued) => issued.data().len(),
            Owner::Nobody(_) => 0,
        };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let room = if sqe.admin() == AdminOpcode::Fabrics { FABRICS_INLINE } else { self.in_capsule };
        let inline = way == Way::Out && len <= room && len > 0;
        sqe.cid = cid;
        sqe.set_sgl(if inline { SglDescriptor::in_capsule(len) } else { SglDescriptor::transport(len) });
        if way == Way::In && len as usize >= DIRECT {
            self.large = self.large.saturating_add(1);
        }
        self.orders = self.orders.saturating_add(1);
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.command = Some(Command {
                cid,
                sqe,
                owner,
                way,
                len,
                inline,
                order: self.orders,
                written: false,
                moved: 0,
                sent: 0,
                r2ts: 0,
                lent: 0,
                damaged: false,
                answer: None,
            });
        }
        self.outbox.push_back(Item::Capsule(cid));
    }

    /// The command of an identifier.
    pub fn command(&mut self, cid: u16) -> Option<&mut Command> {
        let index = cid & ((1 << SLOT_BITS) - 1);
        self.slots.get_mut(usize::from(index))?.command.as_mut().filter(|c| c.cid == cid)
    }

    /// Identifiers of the commands that `pick` chooses.
    pub fn find(&self, pick: impl Fn(&Owner) -> bool) -> Vec<u16> {
        self.slots
            .iter()
            .filter_map(|s| s.command.as_ref())
            .filter(|c| pick(&c.owner))
            .map(|c| c.cid)
            .collect()
    }

    fn remove(&mut self, cid: u16) -> Option<Command> {
        let index = cid & ((1 << SLOT_BITS) - 1);
        let slot = self.slots.get_mut(usize::from(index))?;
        let command = slot.command.take_if(|c| c.cid == cid)?;
        self.free.push_back(index);
        if command.way == Way::In && command.len as usize >= DIRECT {
            self.large = self.large.saturating_sub(1);
        }
        Some(command)
    }

    /// Every command that is there, in order of issue: the connection is gone.
    pub fn drain(&mut self) -> Vec<Owner> {
        let mut all: Vec<Command> = self.slots.iter_mut().filter_map(|s| s.command.take()).collect();
        all.sort_by_key(|c| c.order);
        for command in all.iter_mut().filter(|c| !c.written) {
            if let Owner::Io(issued) = &mut command.owner {
                issued.not_sent();
            }
        }
        self.outbox.clear();
        self.free.clear();
        all.into_iter().map(|c| c.owner).collect()
    }

    fn out(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Whether commands are out besides those that are still to be sent.
    pub fn has_sent(&self) -> bool {
        self.out() > self.outbox.len()
    }

    /// How many bytes to receive next: when only large reads are out, a header alone, so that their payload need not
    /// be copied.
    pub fn window(&self, most: usize) -> usize {
        if self.large > 0 && self.out() == self.large && self.framer.at_header() {
            super::wire::HEADER.saturating_add(self.agreed.hdgst()).min(most)
        } else {
            most
        }
    }

    /// Where the payload that comes next goes without a copy: a command, and that part of its memory.
    pub fn direct(&mut self) -> Option<(u16, Sgl)> {
        let (cid, _) = self.receiving?;
        let left = self.framer.payload_left();
        if left < DIRECT {
            return None;
        }
        let command = self.command(cid)?;
        let at = command.moved as usize;
        Some((cid, command.memory()?.slice(at, left)))
    }

    /// `n` bytes of payload went to the start of what [`Queue::direct`] named.
    pub fn received(&mut self, to: &Sgl, n: usize) -> Result<(), Violation> {
        self.framer.received(to, 0, n);
        let Some((cid, _)) = self.receiving else { return Ok(()) };
        if let Some(command) = self.command(cid) {
            command.moved = command.moved.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        }
        // Nothing more of the stream is here, but the payload may have ended with these bytes.
        self.receive(&[])
    }

    /// Bytes from the controller.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some(event) = self.framer.next(&mut bytes)? {
            match event {
                Event::Response(cqe) => self.response(&cqe)?,
                Event::Data(header) => self.data(&header)?,
                Event::Payload(run) => self.payload(run),
                Event::End { intact } => self.end_of_data(intact)?,
                Event::R2t(r2t) => self.r2t(&r2t)?,
                Event::Terminated(_) => {
                    return Err(Violation::new(Fes(0), 0, "the controller terminated the connection"));
                }
            }
        }
        Ok(())
    }

    fn sent_command(&mut self, cid: u16, way: Option<Way>) -> Result<&mut Command, Violation> {
        let wrong = |what| Violation::new(Fes::PduSequenceError, 8, what);
        let command = self.command(cid).ok_or(wrong("an unknown command identifier"))?;
        if !command.written || command.answer.is_some() {
            return Err(wrong("a command that is not outstanding"));
        }
        if way.is_some_and(|w| w != command.way) {
            return Err(wrong("data in the wrong direction"));
        }
        Ok(command)
    }

    fn response(&mut self, cqe: &Cqe) -> Result<(), Violation> {
        let command = self.sent_command(cqe.cid, None)?;
        let status = cqe.status();
        let complete = match command.way {
            Way::In => command.moved == command.len,
            Way::Out => command.sent == command.len,
        };
        if status.is_success() && !complete {
            return Err(Violation::new(Fes::PduSequenceError, 8, "success before the data"));
        }
        let damaged = command.damaged;
        self.end(cqe.cid, Answer { status, result: cqe.result64(), damaged });
        Ok(())
    }

    fn data(&mut self, header: &DataHdr) -> Result<(), Violation> {
        let command = self.sent_command(header.cccid, Some(Way::In))?;
        let out_of_range = |what| Violation::new(Fes::DataOutOfRange, 12, what);
        if header.datao != command.moved {
            return Err(out_of_range("DATAO other than what comes next"));
        }
        if header.datal > command.len.saturating_sub(command.moved) {
            return Err(out_of_range("more data than was asked for"));
        }
        let ends = header.ch.flags & flags::SUCCESS != 0;
        if ends && header.datal != command.len.saturating_sub(command.moved) {
            return Err(Violation::new(Fes::PduSequenceError, 1, "success before the data"));
        }
        self.receiving = Some((header.cccid, ends));
        Ok(())
    }

    fn payload(&mut self, run: &[u8]) {
        let Some((cid, _)) = self.receiving else { return };
        if let Some(command) = self.command(cid) {
            let at = command.moved as usize;
            if let Some(memory) = command.memory() {
                memory.copy_in(at, run);
            }
            command.moved = command.moved.saturating_add(u32::try_from(run.len()).unwrap_or(u32::MAX));
        }
    }

    fn end_of_data(&mut self, intact: bool) -> Result<(), Violation> {
        let Some((cid, ends)) = self.receiving.take() else { return Ok(()) };
        let Some(command) = self.command(cid) else { return Ok(()) };
        command.damaged |= !intact;
        let damaged = command.damaged;
        if ends {
            self.end(cid, Answer { status: Status::SUCCESS, result: 0, damaged });
        }
        Ok(())
    }

    fn r2t(&mut self, r2t: &R2t) -> Result<(), Violation> {
        let command = self.sent_command(r2t.cccid, Some(Way::Out))?;
        if command.inline {
            return Err(Violation::new(Fes::PduSequenceError, 8, "R2T for data that was in the capsule"));
        }
        let left = command.len.saturating_sub(command.moved);
        if r2t.r2to != command.moved || r2t.r2tl == 0 || r2t.r2tl > left {
            return Err(Violation::new(Fes::DataOutOfRange, 12, "R2T outside what is still to be sent"));
        }
        if command.r2ts >= MAX_R2T {
            return Err(Violation::new(Fes::LimitExceeded, 8, "more R2Ts than MAXR2T"));
        }
        command.r2ts = command.r2ts.saturating_add(1);
        command.moved = command.moved.saturating_add(r2t.r2tl);
        let (cid, ttag, offset, left) = (r2t.cccid, r2t.ttag, r2t.r2to, r2t.r2tl);
        self.outbox.push_back(Item::Data { cid, ttag, offset, left });
        Ok(())
    }

    /// The data of an R2T is written.
    pub fn r2t_done(&mut self, cid: u16) {
        if let Some(command) = self.command(cid) {
            command.r2ts = command.r2ts.saturating_sub(1);
        }
    }

    fn end(&mut self, cid: u16, answer: Answer) {
        match self.command(cid) {
            Some(command) if command.lent > 0 => command.answer = Some(answer),
            Some(_) => {
                if let Some(command) = self.remove(cid) {
                    self.ended.push_back((command.owner, answer));
                }
            }
            None => {}
        }
    }

    /// The kernel gave back a run of a command's memory.
    pub fn gave_back(&mut self, cid: u16) {
        let Some(command) = self.command(cid) else { return };
        command.lent = command.lent.saturating_sub(1);
        if command.lent == 0
            && let Some(answer) = command.answer.take()
        {
            self.end(cid, answer);
        }
    }

    /// Gives a command back to its owner. If the controller has it, its identifier stays taken until the answer
    /// comes, what it still has to send is copied, and what it still has to receive is passed over.
    pub fn take_back(&mut self, cid: u16) -> Option<Taken> {
        let command = self.command(cid)?;
        if command.lent > 0 {
            return Some(Taken::Lent);
        }
        if !command.written {
            return self.remove(cid).map(|c| Taken::Back(c.owner));
        }
        let Owner::Io(issued) = &command.owner else { return None };
        let base = command.sent as usize;
        let rest = if command.way == Way::Out { issued.data().len().saturating_sub(base) } else { 0 };
        let data = if rest > 0 {
            let staged = Buf::new(rest).into_sgl(rest);
            staged.copy_part(0, issued.data(), base, rest);
            staged
        } else {
            Sgl::empty()
        };
        if let Some(range) = issued.blocks_changed() {
            issued.channel.haunt(range);
        }
        let ghost = Ghost { data, base, channel: issued.channel.clone(), range: issued.blocks_changed() };
        Some(Taken::Back(std::mem::replace(&mut command.owner, Owner::Nobody(ghost))))
    }
}
