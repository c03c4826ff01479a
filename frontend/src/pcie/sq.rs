//! Submission queues in guest memory: the PCIe half of a [`Queue`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use engine::mem::{Access, MemError, Sgl};
use nvme_proto::aen::ErrorInfo;
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Cqe, Sqe, Status};

use super::cq::{Cq, InvalidValue};
use super::doorbell::Bell;
use super::function::Function;
use super::memory::QueueMemory;
use super::prp::{self, PrpWalk};
use super::runs::{Runs, Step, Walk};
use super::sgl::SglWalk;
use super::staged::{self, Staged};
use crate::queue::{Completion, Data, Direction, Outcome, Queue, Ticket, Transport};

/// Bytes of a page: CC.MPS is always 0.
pub(crate) const PAGE: u64 = 4096;
const ENTRY: u64 = size_of::<Sqe>() as u64;
/// Commands that one queue fetches before another one's turn comes.
const BATCH: usize = 32;
/// FUSE of the first of a pair.
const FUSED_FIRST: u8 = 1;

/// A submission queue.
pub(crate) struct Sq {
    function: Rc<Function>,
    qid: u16,
    base: u64,
    entries: u32,
    memory: QueueMemory,
    cq: Rc<Cq>,
    head: Cell<u32>,
    /// The last tail that was seen.
    tail: Cell<u32>,
    /// A tail that made no sense: reported once.
    rejected: Cell<Option<u32>>,
    /// Its memory is away: nothing is fetched before the guest's memory changes.
    blind: Cell<bool>,
    /// Commands that came by message and have not been executed yet; others are on their way.
    ahead: RefCell<VecDeque<Sqe>>,
    fetching: Cell<bool>,
    /// The first of a fused pair was fetched, and a completion queue entry is reserved for the second too: else many
    /// firsts could hold all entries and wait for seconds that find none.
    second: Cell<bool>,
    /// What is still out of commands that have ended: see [`Out`](super::staged::Out).
    pub out: Cell<usize>,
    /// The queue's deletion has waited long enough for that.
    pub given_up: Cell<bool>,
}

/// What is kept of a command.
#[derive(Default)]
pub(crate) struct Fetched {
    /// A completion queue entry is reserved for it.
    reserved: bool,
    /// Its data goes through a buffer.
    staged: Option<Staged>,
}

impl Sq {
    pub fn new(function: &Rc<Function>, qid: u16, base: u64, entries: u32, cq: Rc<Cq>) -> Self {
        Sq {
            function: function.clone(),
            qid,
            base,
            entries,
            memory: QueueMemory::default(),
            cq,
            head: Cell::new(0),
            tail: Cell::new(0),
            rejected: Cell::new(None),
            blind: Cell::new(false),
            ahead: RefCell::default(),
            fetching: Cell::new(false),
            second: Cell::new(false),
            out: Cell::new(0),
            given_up: Cell::new(false),
        }
    }

    pub fn qid(&self) -> u16 {
        self.qid
    }

    pub fn function(&self) -> &Rc<Function> {
        &self.function
    }

    pub fn cq(&self) -> &Rc<Cq> {
        &self.cq
    }

    /// The guest's memory is another now. A queue that ends may have a completion queue that nobody else has.
    pub fn memory_changed(&self) {
        self.blind.set(false);
        self.memory.forget();
        self.cq.memory_changed();
    }

    /// The last tail that was seen.
    pub fn tail(&self) -> u32 {
        self.tail.get()
    }

    /// Looks at the tail doorbell.
    pub fn look(&self) -> Result<(), InvalidValue> {
        let function = &self.function;
        let Some(tail) = function.bells.load(&function.memory.borrow(), Bell::Tail(self.qid)) else {
            return Ok(());
        };
        if tail == self.tail.get() {
            self.rejected.set(None);
            return Ok(());
        }
        if tail >= self.entries {
            return match self.rejected.replace(Some(tail)) {
                Some(before) if before == tail => Ok(()),
                _ => Err(InvalidValue),
            };
        }
        self.rejected.set(None);
        self.tail.set(tail);
        Ok(())
    }

    /// Whether there are commands that were not fetched, as far as it has looked.
    pub fn has_commands(&self) -> bool {
        self.head.get() != self.tail.get()
    }

    /// Whether a command can be fetched.
    pub fn has_work(&self, queue: &Queue<Sq>) -> bool {
        if self.look().is_err() {
            self.function.error_event(ErrorInfo::InvalidDoorbellValue);
        }
        let away = self.blind.get() || self.fetching.get();
        self.head.get() != self.tail.get() && !away && queue.has_room() && self.cq_has_room()
    }

    fn cq_has_room(&self) -> bool {
        let pair = self.ahead.borrow().front().is_some_and(|sqe| self.takes_two(sqe));
        let wants = 1 + u32::from(pair) - u32::from(self.second.get());
        self.cq.has_room_for(wants) || {
            self.function.look_at_head(&self.cq);
            self.cq.has_room_for(wants)
        }
    }

    /// Whether it is the first of a fused pair.
    fn begins_pair(&self, sqe: &Sqe) -> bool {
        sqe.flags.fuse() == FUSED_FIRST && self.qid != 0
    }

    /// Whether it takes entries for both of a pair. Where there never will be two, it goes alone.
    fn takes_two(&self, sqe: &Sqe) -> bool {
        self.begins_pair(sqe) && self.cq.entries() > 2
    }

    /// The second of a pair does not come.
    fn release_second(&self) {
        if self.second.take() {
            self.cq.release();
        }
    }

    /// Reserves an entry for the second if this is the first of a pair. Without one it waits at the queue's head.
    fn reserve_pair(&self, sqe: &Sqe) -> bool {
        if !self.takes_two(sqe) {
            return true;
        }
        self.second.set(self.cq.reserve());
        self.second.get()
    }

    /// Fetches what there is and room for. Whether there was anything.
    pub fn fetch(queue: &Rc<Queue<Sq>>) -> bool {
        let sq = queue.transport();
        sq.look_ahead();
        let mut any = false;
        let mut sqe = Sqe::default();
        for _ in 0..BATCH {
            if sq.head.get() == sq.tail.get() || !queue.has_room() {
                break;
            }
            let is_second = sq.second.take();
            if !is_second && !sq.cq.reserve() {
                break;
            }
            if !sq.next(queue, &mut sqe) {
                match is_second {
                    true => sq.second.set(true),
                    false => sq.cq.release(),
                }
                break;
            };
            if is_second && sq.begins_pair(&sqe) {
                queue.break_pair();
            }
            if !sq.reserve_pair(&sqe) {
                sq.ahead.borrow_mut().push_front(sqe);
                sq.cq.release();
                break;
            }
            let next = sq.head.get() + 1;
            sq.head.set(if next == sq.entries { 0 } else { next });
            any = true;
            let mut command = Fetched { reserved: true, staged: None };
            if sq.qid == 0 && sqe.admin() == AdminOpcode::AsyncEventRequest {
                // It may wait for ever, and must not keep an entry from the commands that do not.
                sq.cq.release();
                command.reserved = false;
            }
            if let Err(command) = queue.execute(&sqe, command) {
                if command.reserved {
                    sq.cq.release();
                }
                break;
            }
            if sq.begins_pair(&sqe) && !sq.second.get() {
                queue.break_pair();
            }
        }
        if any && sq.head.get() == sq.tail.get() {
            // Both of a fused pair come with one write of the doorbell.
            queue.break_pair();
            sq.release_second();
        }
        any
    }

    /// Has the processor bring the batch's entries near: they are in the caches of whoever wrote them.
    fn look_ahead(&self) {
        let (head, tail) = (self.head.get(), self.tail.get());
        // What lies before the wrap is enough.
        let run = (if head < tail { tail } else { self.entries } - head).min(BATCH as u32);
        let (memory, len) = (self.function.memory.borrow(), u64::from(self.entries) * ENTRY);
        if let Some(own) = self.memory.get(&memory, self.base, len, Access::Read)
            && run > 1
        {
            own.prefetch((u64::from(head) * ENTRY) as usize, (u64::from(run) * ENTRY) as usize);
        }
    }

    /// Copies the command at the head to `to`, if it is here. It is copied once: what the guest does to its memory afterwards
    /// changes nothing.
    #[inline]
    fn next(&self, queue: &Rc<Queue<Sq>>, to: &mut Sqe) -> bool {
        if let Some(sqe) = self.ahead.borrow_mut().pop_front() {
            *to = sqe;
            return true;
        }
        let offset = u64::from(self.head.get()) * ENTRY;
        let at = self.base + offset;
        let read = {
            let (memory, len) = (self.function.memory.borrow(), u64::from(self.entries) * ENTRY);
            let own = self.memory.get(&memory, self.base, len, Access::Read);
            match own {
                Some(own) => {
                    own.copy_out(offset as usize, to.as_mut_bytes());
                    Ok(())
                }
                None => memory.read(at, to.as_mut_bytes()),
            }
        };
        match read {
            Ok(()) => return true,
            Err(MemError::ByMessage { .. }) => {
                self.fetching.set(true);
                let (head, tail) = (self.head.get(), self.tail.get());
                let run = if head < tail { tail - head } else { self.entries - head };
                staged::fetch(queue, &self.function, at, run.min(BATCH as u32) as usize);
            }
            Err(_) => self.blind.set(true),
        }
        false
    }

    /// Commands came by message; none if they could not be had. Then the host is not asked again for what it refuses,
    /// as fast as it can answer.
    pub fn fetched(&self, queue: &Rc<Queue<Sq>>, sqes: Vec<Sqe>) {
        self.fetching.set(false);
        if sqes.is_empty() {
            return self.blind.set(true);
        }
        self.ahead.replace(sqes.into());
        if self.function.may_fetch() {
            Sq::fetch(queue);
        }
    }

    /// Finds a command's data in guest memory. What is left of the walk comes back when the data must be staged.
    #[inline]
    fn map(
        &self,
        sqe: &Sqe,
        direction: Direction,
        len: usize,
        runs: &mut Runs,
        to: &mut Sgl,
    ) -> Result<Option<DataWalk>, Status> {
        let access = match direction {
            Direction::FromHost => Access::Read,
            Direction::ToHost => Access::Write,
        };
        let memory = self.function.memory.borrow();
        let one_page = if sqe.flags.psdt() == 0 { prp::in_one_page(sqe.prp(), len, PAGE) } else { None };
        if let Some(gpa) = one_page
            && to.push_guest(&memory, gpa, len, access).is_ok()
        {
            return Ok(None);
        }
        to.clear();
        let mut walk = DataWalk::new(sqe, direction, len, runs)?;
        let mapped = match walk.advance(&memory, runs)? {
            Step::Done => runs.map(&memory, access, to)?,
            Step::Need { .. } => false,
        };
        Ok(if mapped { None } else { Some(walk) })
    }

    /// Adds a completion to the queue's completion queue.
    pub fn post(&self, completion: &Completion, reserved: bool) {
        let reply = completion.reply;
        let cqe = Cqe {
            dw0: reply.dw0,
            dw1: reply.dw1,
            sqhd: self.head.get() as u16,
            sqid: self.qid,
            ..Cqe::new(completion.cid, reply.status)
        };
        self.function.post(&self.cq, cqe, reserved, None);
    }
}

/// The kinds of walks over a command's data pointer.
pub(crate) enum DataWalk {
    Prp(PrpWalk),
    Sgl(SglWalk),
}

impl DataWalk {
    fn new(sqe: &Sqe, direction: Direction, len: usize, runs: &mut Runs) -> Result<Self, Status> {
        match sqe.flags.psdt() {
            0 => PrpWalk::new(sqe.prp(), len, PAGE, runs).map(DataWalk::Prp),
            1 | 2 => SglWalk::new(sqe.sgl(), len, direction == Direction::ToHost, runs).map(DataWalk::Sgl),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }
}

impl Walk for DataWalk {
    fn wants(&self) -> Option<(u64, usize)> {
        match self {
            DataWalk::Prp(walk) => walk.wants(),
            DataWalk::Sgl(walk) => walk.wants(),
        }
    }

    fn take(&mut self, bytes: &[u8], to: &mut Runs) -> Result<(), Status> {
        match self {
            DataWalk::Prp(walk) => walk.take(bytes, to),
            DataWalk::Sgl(walk) => walk.take(bytes, to),
        }
    }
}

impl Transport for Sq {
    type Command = Fetched;
    const INTERCEPTS_IO: bool = false;

    fn intercept(
        &self,
        queue: &Rc<Queue<Self>>,
        ticket: Ticket,
        sqe: &Sqe,
        _command: &mut Fetched,
    ) -> Option<Outcome> {
        match self.qid {
            0 => super::admin::intercept(&self.function, queue, ticket, sqe),
            _ => None,
        }
    }

    fn data(
        &self,
        ticket: Ticket,
        sqe: &Sqe,
        command: &mut Fetched,
        direction: Direction,
        len: usize,
        to: &mut Sgl,
    ) -> Data {
        let mut runs = self.function.runs.borrow_mut();
        runs.clear();
        let walk = match self.map(sqe, direction, len, &mut runs, to) {
            Err(status) => return Data::Failed(status),
            Ok(None) => return Data::Ready,
            Ok(Some(walk)) => walk,
        };
        let runs = std::mem::take(&mut *runs);
        let staged = staged::begin(&self.function, self.qid, ticket, direction, len, walk, runs);
        command.staged = Some(staged);
        Data::Later
    }

    fn complete(&self, command: Fetched, completion: &Completion, data: &mut Sgl) {
        let staged = command.staged.filter(|_| !data.is_empty());
        match staged.and_then(|to| Some((to, self.function.queue(self.qid)?))) {
            Some((to, queue)) => {
                let data = std::mem::take(data);
                staged::deliver(&self.function, queue, to, *completion, data, command.reserved);
            }
            None => self.post(completion, command.reserved),
        }
    }

    fn closing(&self) {
        if self.qid == 0 {
            self.function.await_writes();
        }
    }

    fn is_settled(&self) -> bool {
        self.qid != 0 || !self.function.awaits_writes()
    }

    fn closed(&self, queue: &Rc<Queue<Self>>) {
        // Whoever waits for its host's messages keeps the queue, and must not keep the host's memory.
        self.memory_changed();
        self.release_second();
        self.function.forget_queue(queue);
    }
}
