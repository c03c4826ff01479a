//! I/Os in flight, and what their answers must be.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use slab::Slab;

use super::model::{Model, Value};
use super::rng::Rng;
use crate::io::{Io, IoError, IoId, IoResult, Op, Origin, Request};
use crate::mem::{Buf, Sgl};
use crate::volume::{ChannelRef, Issuer};

/// An I/O that has not come back.
pub(super) struct Flight {
    pub shard: usize,
    pub id: IoId,
    pub op: Op,
    pub lba: u64,
    pub blocks: u32,
    /// The slot of memory that it uses.
    pub slot: usize,
    /// Guest regions that it touches.
    pub touches: [bool; 2],
    /// What it may have been told to give back.
    pub revoked: bool,
    /// What it writes.
    value: Value,
    /// What each block of a read may be.
    allowed: Vec<Vec<Value>>,
    /// No write overlaps this read.
    quiet: bool,
    /// A compare must find a difference.
    differs: bool,
    since: u64,
    len: usize,
    buf: Option<Buf>,
}

impl Flight {
    fn overlaps(&self, lba: u64, blocks: u32) -> bool {
        self.lba < lba + u64::from(blocks) && lba < self.lba + u64::from(self.blocks)
    }
}

/// Operations that came back, by kind: succeeded, their bytes, failed.
pub(super) type Counts = [(u64, u64, u64); 5];

pub(super) struct State {
    pub model: Model,
    pub flights: Slab<Flight>,
    pub counts: Counts,
    pub back: u64,
    spare: Vec<Io>,
    /// What reads were lent, and what it was then.
    loans: Vec<(Sgl, Vec<u8>)>,
    moment: u64,
    vanishes: bool,
    unmapped: Value,
}

/// The issuer of all I/O of a run.
pub(super) struct Desk {
    name: String,
    block_size: usize,
    submitting: Cell<bool>,
    pub state: RefCell<State>,
}

/// What an I/O is to be.
pub(super) struct Plan {
    pub shard: usize,
    pub origin: Origin,
    pub op: Op,
    pub lba: u64,
    pub blocks: u32,
    pub slot: usize,
}

#[expect(clippy::panic, reason = "a test kit says by a panic what is wrong")]
pub(super) fn fail(name: &str, why: &str) -> ! {
    panic!("conformance of {name}: {why}")
}

pub(super) fn kind(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Write { .. } => 1,
        Op::Unmap | Op::WriteZeroes { .. } => 2,
        Op::Flush => 3,
        Op::Compare => 4,
    }
}

impl Desk {
    pub(super) fn new(name: &str, block_size: u32, vanishes: bool, unmapped_zero: bool) -> Rc<Self> {
        let state = State {
            model: Model::new(if vanishes { Value::Zero } else { Value::Any }),
            flights: Slab::new(),
            counts: Counts::default(),
            back: 0,
            spare: Vec::new(),
            loans: Vec::new(),
            moment: 1,
            vanishes,
            unmapped: if unmapped_zero { Value::Zero } else { Value::Any },
        };
        Rc::new(Desk {
            name: name.to_owned(),
            block_size: block_size as usize,
            submitting: Cell::new(false),
            state: RefCell::new(state),
        })
    }

    /// Whether `plan` may go beside what is in flight, of which it may overlap only what `overlap` allows. A compare
    /// goes alone, and where it is certain what is there.
    pub(super) fn may_go(&self, plan: &Plan, overlap: bool) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let (writes, compares) = (plan.op.modifies(), plan.op == Op::Compare);
        let clear = state.flights.iter().all(|(_, f)| {
            let conflict = writes && f.op == Op::Compare || compares && f.op.modifies();
            let meets = !overlap && (writes || f.op.modifies());
            !(conflict || meets) || !f.overlaps(plan.lba, plan.blocks)
        });
        let mut range = plan.lba..plan.lba + u64::from(plan.blocks);
        clear && (!compares || range.all(|lba| state.model.certain(lba).is_some()))
    }

    /// Submits it, in the turn of its shard.
    pub(super) fn submit(
        self: &Rc<Self>,
        rng: &mut Rng,
        channel: &ChannelRef,
        plan: Plan,
        memory: &super::memory::Memory,
    ) {
        let Plan { shard, origin, op, lba, blocks, slot } = plan;
        let len = if op.has_data() { blocks as usize * self.block_size } else { 0 };
        let (sgl, buf) = if len > 0 { memory.take(rng, slot, len) } else { Default::default() };
        if sgl.len() != len {
            fail(&self.name, "no memory for the kit");
        }
        let touches = [0, 1].map(|which| sgl.touches(memory.region(which)));
        let mut differs = false;
        let (mut io, key, id) = {
            let mut state = self.state.borrow_mut();
            let moment = state.moment;
            state.moment += 1;
            let value = state.value(op, moment);
            let mut bytes = vec![0xa5; len];
            for (block, lba) in bytes.chunks_mut(self.block_size).zip(lba..) {
                let content = if op == Op::Compare { state.model.certain(lba) } else { Some(value.clone()) };
                let known = content.is_none_or(|value| value.fill(lba, block));
                debug_assert!(known || op == Op::Read);
            }
            if op == Op::Compare && rng.one_in(2) {
                differs = true;
                let at = rng.index(len);
                bytes[at] ^= 1 << rng.below(8);
            }
            if state.vanishes && matches!(op, Op::Write { .. }) {
                bytes.fill(0x77);
            }
            sgl.copy_in(0, &bytes);
            let id = IoId { origin, tag: moment };
            let io = state.spare.pop().unwrap_or_else(|| Io::new(id));
            let flight = Flight {
                shard,
                id,
                op,
                lba,
                blocks,
                slot,
                touches,
                revoked: false,
                value,
                allowed: Vec::new(),
                quiet: true,
                differs,
                since: moment,
                len,
                buf,
            };
            (io, state.begin(flight), id)
        };
        io.set_id(id);
        *io.request_mut() = Request { op, lba, blocks, sgl };
        self.submitting.set(true);
        match op == Op::Read && rng.one_in(2) {
            true => io.forward_to_borrow(channel, self.clone(), key as u64),
            false => io.forward(channel, self.clone(), key as u64),
        }
        self.submitting.set(false);
    }

    /// Gives back what was lent, which must be what it was.
    pub(super) fn give_back(&self) {
        for (sgl, before) in self.state.borrow_mut().loans.drain(..) {
            let mut bytes = vec![0; sgl.len()];
            sgl.copy_out(0, &mut bytes);
            if bytes != before {
                fail(&self.name, "what was lent was written before it was given back");
            }
        }
    }
}

impl State {
    fn value(&self, op: Op, moment: u64) -> Value {
        match op {
            _ if self.vanishes => Value::Zero,
            Op::Write { .. } => Value::Written(moment),
            Op::WriteZeroes { .. } => Value::Zero,
            Op::Unmap => self.unmapped.clone(),
            Op::Read | Op::Flush | Op::Compare => Value::Any,
        }
    }

    fn begin(&mut self, mut flight: Flight) -> usize {
        let (lba, blocks) = (flight.lba, flight.blocks);
        if flight.op == Op::Read {
            flight.allowed = (lba..lba + u64::from(blocks)).map(|lba| self.model.allowed(lba)).collect();
            flight.quiet = !self.flights.iter().any(|(_, f)| f.op.modifies() && f.overlaps(lba, blocks));
        }
        let value = flight.value.clone();
        let writes = flight.op.modifies();
        let key = self.flights.insert(flight);
        if writes {
            self.model.submit(key, lba, blocks, &value);
            for (_, read) in self.flights.iter_mut().filter(|(_, f)| f.op == Op::Read) {
                if !read.overlaps(lba, blocks) {
                    continue;
                }
                read.quiet = false;
                for (allowed, at) in read.allowed.iter_mut().zip(read.lba..) {
                    if (lba..lba + u64::from(blocks)).contains(&at) {
                        allowed.push(value.clone());
                    }
                }
            }
        }
        key
    }

    /// What is wrong with an answer, if anything is.
    fn judge(
        &mut self,
        key: usize,
        flight: &Flight,
        bytes: &[u8],
        block_size: usize,
        result: IoResult,
    ) -> Option<String> {
        let counts = &mut self.counts[kind(flight.op)];
        match result {
            Ok(()) => {
                (counts.0, counts.1) = (counts.0 + 1, counts.1 + u64::from(flight.blocks) * block_size as u64)
            }
            Err(_) => counts.2 += 1,
        }
        let (lba, blocks) = (flight.lba, flight.blocks);
        if flight.op.modifies() {
            self.model.end(key, lba, blocks, flight.since, self.moment, result.is_ok());
            self.moment += 1;
        }
        match result {
            Err(IoError::Aborted) if flight.revoked => return None,
            Err(IoError::Miscompare) if flight.op == Op::Compare && flight.differs => return None,
            Err(e) => return Some(format!("came back with {e:?}")),
            Ok(()) if flight.op == Op::Compare && flight.differs => {
                return Some("found no difference, though there is one".into());
            }
            Ok(()) if flight.op != Op::Read => return None,
            Ok(()) => {}
        }
        for ((block, allowed), lba) in bytes.chunks(block_size).zip(&flight.allowed).zip(lba..) {
            if !allowed.iter().any(|value| value.matches(lba, block)) {
                let head = &block[..16];
                return Some(format!("block {lba} reads {head:02x?}…, which is none of {allowed:?}"));
            }
            if flight.quiet {
                self.model.found(lba, block);
            }
        }
        None
    }
}

impl Issuer for Desk {
    fn resume(self: Rc<Self>, mut io: Io, cookie: u64, result: IoResult) {
        if self.submitting.get() {
            fail(&self.name, "an I/O came back inside a submission");
        }
        let mut state = self.state.borrow_mut();
        let Some(flight) = state.flights.try_remove(cookie as usize).filter(|f| f.id == io.id()) else {
            fail(&self.name, "an I/O came back twice");
        };
        state.back += 1;
        let what = format!("{:?} of {} blocks at {}", flight.op, flight.blocks, flight.lba);
        let Request { op, lba, blocks, sgl } = std::mem::take(io.request_mut());
        if (op, lba, blocks, sgl.len()) != (flight.op, flight.lba, flight.blocks, flight.len) {
            fail(&self.name, &format!("{what} came back as another request"));
        }
        let mut bytes = vec![0; sgl.len()];
        sgl.copy_out(0, &mut bytes);
        match sgl.is_lent() {
            true => state.loans.push((sgl, bytes.clone())),
            false => drop(sgl),
        }
        if flight.buf.as_ref().is_some_and(|buf| !buf.is_unique()) {
            fail(&self.name, &format!("{what} came back ({result:?}), and its memory is still held"));
        }
        if let Some(wrong) = state.judge(cookie as usize, &flight, &bytes, self.block_size, result) {
            fail(&self.name, &format!("{what}: {wrong}"));
        }
        state.spare.push(io);
    }
}
