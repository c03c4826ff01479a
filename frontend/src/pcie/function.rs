//! The PCI function of a controller: its registers and doorbells as BARs, its queues, its guest's memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use engine::mem::{Access, GuestMemory, MemError, Region, RegionId, SglBuilder};
use engine::{Poller, PollerId, Scope, Shard, TurnEnd, Wake};
use nvme_proto::Cqe;
use nvme_proto::aen::ErrorInfo;
use nvme_proto::register::{Csts, doorbell, offset};
use nvme_proto::zerocopy::IntoBytes;

use super::config::{BAR0_BYTES, BAR4_BYTES, CONFIG_BYTES, ConfigSpace, PBA, VENDOR_ID};
use super::cq::{Cq, Posted};
use super::doorbell::{Bell, Bells, Doorbells, PAGE, Shadow};
use super::irq::Interrupts;
use super::sq::Sq;
use super::staged::{Late, Messages};
use crate::controller::{Config, Controller, Port};
use crate::queue::{Queue, Reply, Ticket};
use crate::subsystem::Subsystem;

/// Turns with completions from one look at the guest's memory to the next: whether its files are whole.
const CONDEMNED_EVERY: u32 = 64;

/// Which of the function's regions is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Configuration space.
    Config,
    /// Registers and doorbells.
    Bar0,
    /// The MSI-X table and pending bits.
    Bar4,
}

impl Space {
    /// Bytes.
    pub fn len(self) -> u64 {
        match self {
            Space::Config => CONFIG_BYTES,
            Space::Bar0 => BAR0_BYTES,
            Space::Bar4 => BAR4_BYTES,
        }
    }
}

/// A PCI function. It lives on its controller's home shard, and outlives its hosts: between two of them it is reset.
pub(crate) struct Function {
    pub shard: Shard,
    controller: Rc<Controller>,
    pub bells: Bells,
    pub interrupts: Interrupts,
    config: RefCell<ConfigSpace>,
    msix_table: RefCell<Box<[u8]>>,
    pub memory: RefCell<GuestMemory>,
    messages: RefCell<Option<Rc<dyn Messages>>>,
    /// Bytes in buffers: see [`super::staged`].
    pub staged: Cell<usize>,
    /// Completions on their way by message.
    late: Late,
    sqs: RefCell<Vec<Rc<Queue<Sq>>>>,
    cqs: RefCell<BTreeMap<u16, Rc<Cq>>>,
    /// Delete I/O Submission Queue commands that wait for the queue's end.
    deleting: RefCell<BTreeMap<u16, Ticket>>,
    poller: Cell<Option<PollerId>>,
    /// [`TurnEnd`] is asked for.
    ending: Cell<bool>,
    /// An error that the host will be told of then.
    event: Cell<Option<ErrorInfo>>,
    /// Turns that ended with completions.
    turns: Cell<u32>,
    /// Nobody is there to be answered.
    deaf: Cell<bool>,
    /// CSTS.CFS: nothing is fetched any more.
    failed: Cell<bool>,
    ended: Cell<bool>,
    on_end: RefCell<Option<Box<dyn FnOnce()>>>,
}

/// The controller's way to its function.
#[derive(Clone, Default)]
struct FunctionPort(Rc<RefCell<Weak<Function>>>);

impl FunctionPort {
    fn function(&self) -> Option<Rc<Function>> {
        self.0.borrow().upgrade()
    }
}

impl Function {
    /// A function on `shard` with a new controller of `subsystem`.
    ///
    /// # Errors
    /// `cntlid` is in use, no controller identifier is left, or no memory file can be made for the doorbells.
    pub fn new(
        shard: &Shard,
        subsystem: &Arc<Subsystem>,
        kind: Doorbells,
        cntlid: Option<u16>,
        max_queue_entries: u16,
        max_io_queues: u16,
    ) -> io::Result<Rc<Self>> {
        let max_io_queues = max_io_queues.clamp(1, (PAGE / 8 - 1) as u16);
        let vectors = max_io_queues.saturating_add(1).min(256);
        let config = Config {
            fabrics: false,
            cntlid,
            discovery: false,
            max_queue_entries: max_queue_entries.max(2),
            max_io_queues,
            ioccsz: 0,
            kato: 0,
        };
        let port = FunctionPort::default();
        let controller = Controller::new(subsystem, shard, config, None, Box::new(port.clone()))
            .map_err(io::Error::other)?;
        let function = Rc::new(Function {
            shard: shard.clone(),
            controller,
            bells: Bells::new(kind)?,
            interrupts: Interrupts::new(shard, vectors),
            config: RefCell::new(ConfigSpace::new(vectors)),
            msix_table: RefCell::new(msix_table()),
            memory: RefCell::default(),
            messages: RefCell::default(),
            staged: Cell::new(0),
            late: Late::default(),
            sqs: RefCell::default(),
            cqs: RefCell::default(),
            deleting: RefCell::default(),
            poller: Cell::new(None),
            ending: Cell::new(false),
            event: Cell::new(None),
            turns: Cell::new(0),
            deaf: Cell::new(true),
            failed: Cell::new(false),
            ended: Cell::new(false),
            on_end: RefCell::default(),
        });
        port.0.replace(Rc::downgrade(&function));
        Ok(function)
    }

    /// Its controller.
    pub fn controller(&self) -> &Rc<Controller> {
        &self.controller
    }

    /// Calls `f` when the controller ends.
    pub fn on_end(&self, f: impl FnOnce() + 'static) {
        self.on_end.replace(Some(Box::new(f)));
    }

    // Hosts come and go.

    /// A host is there; `messages` reaches the parts of its memory that cannot be mapped. It gets doorbells that no
    /// earlier host shares.
    ///
    /// # Errors
    /// No memory file can be made for the doorbells.
    pub fn attach_host(&self, messages: Rc<dyn Messages>) -> io::Result<()> {
        self.bells.renew()?;
        self.messages.replace(Some(messages));
        self.deaf.set(false);
        Ok(())
    }

    /// The host is gone: nothing is sent to it any more, everything is taken back. Ends when all of it has come.
    pub async fn detach_host(self: &Rc<Self>) {
        self.deaf.set(true);
        self.messages.replace(None);
        self.interrupts.clear();
        while !self.reset(Duration::from_secs(10)).await {
            let controller = self.controller().shared();
            tracing::warn!(?controller, "I/O of a host that has gone does not end; no other host is let in");
        }
        self.memory.replace(GuestMemory::default());
    }

    /// Guest memory by messages, if a host is there.
    pub fn messages(&self) -> Option<Rc<dyn Messages>> {
        self.messages.borrow().clone()
    }

    /// Whether the controller has ended, with its subsystem.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    // Memory.

    /// Adds a region. Whether it was possible: it overlaps none.
    pub fn add_region(self: &Rc<Self>, region: Arc<Region>) -> bool {
        let with = self.memory.borrow().with(region);
        let added = with.is_some();
        if let Some(memory) = with {
            self.memory.replace(memory);
            self.memory_changed();
        }
        added
    }

    /// Takes a region away and everything that uses it back. The memory is free when nobody else has the region.
    pub fn remove_region(self: &Rc<Self>, id: RegionId) {
        let without = self.memory.borrow().without(id);
        self.memory.replace(without);
        self.controller().local().revoke(Scope::Region(id));
        self.memory_changed();
    }

    fn memory_changed(self: &Rc<Self>) {
        for queue in self.sqs.borrow().iter() {
            queue.transport().blind.set(false);
        }
        self.drain_completions();
    }

    /// A host that truncates a file under its memory reads and writes nothing any more, and its controller has failed.
    fn check_memory(&self) {
        if !self.failed.get() && self.memory.borrow().regions().iter().any(|region| region.is_condemned()) {
            tracing::warn!(controller = ?self.controller().shared(), "the file behind guest memory was truncated");
            self.fail();
        }
    }

    /// Whether a queue can be there.
    pub fn has_memory(&self, gpa: u64, len: u64) -> bool {
        gpa != 0 && self.reaches(gpa, len, Access::Read) && self.reaches(gpa, len, Access::Write)
    }

    fn reaches(&self, gpa: u64, len: u64, access: Access) -> bool {
        let (Some(end), memory) = (gpa.checked_add(len), self.memory.borrow()) else { return false };
        let mut at = gpa;
        while at < end {
            match SglBuilder::default().push(&memory, at, (end - at) as usize, access) {
                Ok(()) => return true,
                Err(MemError::ByMessage { gpa, len }) => at = gpa + len as u64,
                Err(_) => return false,
            }
        }
        true
    }

    // Regions.

    /// Reads a region's bytes. What is not there reads as ones.
    pub fn read(&self, space: Space, at: u64, to: &mut [u8]) {
        to.fill(0xff);
        let Some(at) = inside(space, at, to.len()) else { return };
        match space {
            Space::Config => self.config.borrow().read(at, to),
            Space::Bar4 => to.copy_from_slice(&self.msix_table.borrow()[at..at + to.len()]),
            Space::Bar0 => {
                let registers = (offset::DOORBELLS as usize).saturating_sub(at).min(to.len());
                let (registers, doorbells) = to.split_at_mut(registers);
                self.controller().read(at as u32, registers);
                doorbells.fill(0);
            }
        }
    }

    /// Writes a region's bytes; what is not there swallows them. Whether the function is to be reset now.
    pub fn write(self: &Rc<Self>, space: Space, at: u64, from: &[u8]) -> bool {
        let Some(at) = inside(space, at, from.len()) else { return false };
        match space {
            Space::Config => {
                let effect = self.config.borrow_mut().write(at, from);
                if effect.interrupts {
                    self.update_pin();
                }
                return effect.reset;
            }
            // The pending bits are ours.
            Space::Bar4 => {
                let end = (at + from.len()).min(PBA as usize);
                if let Some(to) = self.msix_table.borrow_mut().get_mut(at..end) {
                    to.copy_from_slice(&from[..to.len()]);
                }
            }
            Space::Bar0 => match at.checked_sub(offset::DOORBELLS as usize) {
                None => self.controller().write(at as u32, from),
                Some(at) => {
                    if let Ok(value) = <[u8; 4]>::try_from(from) {
                        self.ring(at as u32, u32::from_le_bytes(value));
                    }
                }
            },
        }
        false
    }

    /// A trapped doorbell write.
    fn ring(self: &Rc<Self>, at: u32, value: u32) {
        if !self.controller().is_ready() {
            return;
        }
        match doorbell(at) {
            Some((qid, false)) => match self.queue(qid) {
                Some(queue) => {
                    self.bells.store(Bell::Tail(qid), value);
                    if !self.failed.get() && queue.transport().has_work(&queue) {
                        Sq::fetch(&queue);
                    }
                }
                None => self.error_event(ErrorInfo::InvalidDoorbellRegister),
            },
            Some((qid, true)) => match self.cq(qid) {
                Some(cq) => {
                    self.bells.store(Bell::Head(qid), value);
                    let starved = cq.is_starved();
                    self.look_at_head(&cq);
                    if starved {
                        self.drain_completions();
                        self.fetch_all();
                    }
                    if !self.interrupts.uses_msix() {
                        self.update_pin();
                    }
                }
                None => self.error_event(ErrorInfo::InvalidDoorbellRegister),
            },
            None => self.error_event(ErrorInfo::InvalidDoorbellRegister),
        }
    }

    // Queues.

    /// The submission queue with that QID.
    pub fn queue(&self, qid: u16) -> Option<Rc<Queue<Sq>>> {
        self.sqs.borrow().iter().find(|q| q.qid() == qid).cloned()
    }

    /// The completion queue with that QID.
    pub fn cq(&self, qid: u16) -> Option<Rc<Cq>> {
        self.cqs.borrow().get(&qid).cloned()
    }

    pub fn add_queue(&self, queue: Rc<Queue<Sq>>) {
        self.sqs.borrow_mut().push(queue);
    }

    pub fn add_cq(&self, cq: Rc<Cq>) {
        self.cqs.borrow_mut().insert(cq.qid, cq);
    }

    pub fn remove_cq(&self, qid: u16) {
        self.cqs.borrow_mut().remove(&qid);
    }

    /// Whether a submission queue completes there.
    pub fn is_used(&self, cq: &Rc<Cq>) -> bool {
        self.sqs.borrow().iter().any(|q| Rc::ptr_eq(q.transport().cq(), cq))
    }

    /// Delete I/O Submission Queue is answered when the queue has ended.
    pub fn await_deletion(&self, qid: u16, ticket: Ticket) {
        self.deleting.borrow_mut().insert(qid, ticket);
    }

    /// A submission queue has ended.
    pub fn forget_queue(&self, queue: &Rc<Queue<Sq>>) {
        self.sqs.borrow_mut().retain(|q| !Rc::ptr_eq(q, queue));
        let waits = self.deleting.borrow_mut().remove(&queue.qid());
        if let (Some(ticket), Some(admin)) = (waits, self.queue(0)) {
            admin.finish(ticket, Reply::default());
        }
    }

    /// The first value of a new queue's doorbell.
    pub fn begin_bell(&self, bell: Bell) {
        self.bells.store(bell, 0);
        self.bells.adopt(&self.memory.borrow(), bell, 0);
    }

    /// Doorbell Buffer Config.
    pub fn set_shadow(&self, shadow: Shadow) {
        self.bells.shadow.set(Some(shadow));
        let memory = self.memory.borrow();
        for queue in self.sqs.borrow().iter() {
            self.bells.adopt(&memory, Bell::Tail(queue.qid()), queue.transport().tail());
        }
        for cq in self.cqs.borrow().values() {
            self.bells.adopt(&memory, Bell::Head(cq.qid), cq.head());
        }
    }

    /// Looks at a completion queue's head doorbell.
    pub fn look_at_head(self: &Rc<Self>, cq: &Cq) {
        let looked = cq.look(&self.memory.borrow(), &self.bells);
        if looked.is_err() {
            self.error_event(ErrorInfo::InvalidDoorbellValue);
        }
    }

    /// Adds a completion to a queue; the host hears of it at the end of this turn.
    pub fn post(self: &Rc<Self>, cq: &Rc<Cq>, cqe: Cqe, reserved: bool) {
        if self.deaf.get() {
            return;
        }
        let posted = cq.post(&self.memory.borrow(), cqe, reserved);
        self.posted(cq, posted);
    }

    fn posted(self: &Rc<Self>, cq: &Rc<Cq>, posted: Result<Posted, MemError>) {
        match posted {
            Ok(Posted::There) => self.note_end(),
            Ok(Posted::Message { gpa, cqe }) => self.late.post(self, cq, gpa, cqe),
            Err(error) => {
                tracing::info!(controller = ?self.controller().shared(), %error, "completion queue unreachable");
                self.fail();
            }
        }
    }

    /// Completions on their way by message.
    pub fn late(&self) -> &Late {
        &self.late
    }

    /// An entry is in its queue: the host hears of it at the end of this turn.
    pub fn arrived(self: &Rc<Self>, cq: &Cq) {
        cq.fresh.set(true);
        self.note_end();
    }

    fn note_end(self: &Rc<Self>) {
        if !self.ending.replace(true) {
            self.shard.at_turn_end(self.clone());
        }
    }

    /// Event completions that waited for room.
    fn drain_completions(self: &Rc<Self>) {
        if let Some(cq) = self.cq(0).filter(|cq| cq.is_starved()) {
            self.look_at_head(&cq);
            let waited = cq.drain(&self.memory.borrow()).transpose();
            if let Some(posted) = waited {
                self.posted(&cq, posted);
            }
        }
    }

    fn fetch_all(self: &Rc<Self>) -> bool {
        let mut any = false;
        let mut at = 0;
        if self.failed.get() {
            return false;
        }
        loop {
            let queue = {
                let sqs = self.sqs.borrow();
                let Some(queue) = sqs.get(at) else { return any };
                queue.transport().has_work(queue).then(|| queue.clone())
            };
            if let Some(queue) = queue {
                any |= Sq::fetch(&queue);
            }
            at += 1;
        }
    }

    /// INTx: whether any queue that interrupts has entries to consume.
    pub fn update_pin(self: &Rc<Self>) {
        if self.interrupts.uses_msix() {
            return;
        }
        let masked = self.interrupts.mask.get();
        let mut level = false;
        for cq in self.cqs.borrow().values() {
            let Some(vector) = cq.vector else { continue };
            self.look_at_head(cq);
            level |= cq.is_pending() && masked & 1u32.wrapping_shl(vector.into()) == 0;
        }
        let mut config = self.config.borrow_mut();
        config.set_interrupt_status(level);
        self.interrupts.set_level(level && !config.intx_disabled());
    }

    // What goes wrong.

    /// The host did what it must not: an event at the end of this turn, when nothing is borrowed.
    pub fn error_event(self: &Rc<Self>, info: ErrorInfo) {
        self.event.set(Some(info));
        self.note_end();
    }

    /// The controller cannot go on: CSTS.CFS.
    pub fn fail(&self) {
        self.failed.set(true);
        self.controller().fail();
    }

    // Reset.

    /// Function-level reset: everything as after power on. Whether it was complete within `patience`; if not, it goes
    /// on.
    pub async fn reset(self: &Rc<Self>, patience: Duration) -> bool {
        self.config.borrow_mut().reset();
        self.msix_table.replace(msix_table());
        let controller = self.controller();
        controller.clear();
        let until = self.shard.now().saturating_add(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
        let mut step = Duration::from_micros(20);
        while !self.is_quiet() {
            if self.shard.now() >= until {
                return false;
            }
            self.shard.sleep(step).await;
            step = (step * 2).min(Duration::from_millis(2));
        }
        true
    }

    /// Whether the controller is disabled and nothing of it is in flight.
    fn is_quiet(&self) -> bool {
        let mut csts = Csts::new();
        self.controller().read(offset::CSTS, csts.as_mut_bytes());
        let gone = self.controller().shared().queue_count() == 0 && self.sqs.borrow().is_empty();
        self.ended.get() || gone && !csts.rdy() && !csts.cfs()
    }

    fn disabled(self: &Rc<Self>) {
        if let Some(poller) = self.poller.take() {
            self.shard.remove_poller(poller);
        }
        self.failed.set(false);
        self.cqs.borrow_mut().clear();
        self.late.clear();
        self.deleting.borrow_mut().clear();
        self.bells.clear();
        self.interrupts.mask.set(0);
        self.update_pin();
    }

    /// Makes the admin queues. Whether the registers allow it.
    fn enable(self: &Rc<Self>, controller: &Rc<Controller>) -> bool {
        let (aqa, asq, acq) = controller.admin_queue_registers();
        let (sq_entries, cq_entries) = (u32::from(aqa.asqs_z()) + 1, u32::from(aqa.acqs_z()) + 1);
        let usable = self.has_memory(asq, u64::from(sq_entries) * 64)
            && self.has_memory(acq, u64::from(cq_entries) * 16)
            && sq_entries > 1
            && cq_entries > 1;
        if !usable {
            tracing::info!(controller = ?controller.shared(), "AQA, ASQ or ACQ give no admin queue in mapped memory");
            return false;
        }
        self.bells.clear();
        let cq = Rc::new(Cq::new(0, acq, cq_entries, Some(0)));
        self.add_cq(cq.clone());
        let sq = Sq::new(self, 0, asq, sq_entries, cq);
        let attached = super::admin::attach(self, controller.local(), sq, sq_entries).is_ok();
        if attached && self.poller.get().is_none() {
            self.poller.set(Some(self.shard.add_poller(self.clone())));
        }
        attached
    }
}

fn msix_table() -> Box<[u8]> {
    let mut table = vec![0; BAR4_BYTES as usize];
    // Every vector is masked after a reset.
    table[..PBA as usize].iter_mut().skip(12).step_by(16).for_each(|control| *control = 1);
    table.into()
}

fn inside(space: Space, at: u64, len: usize) -> Option<usize> {
    let end = at.checked_add(len as u64)?;
    (end <= space.len()).then_some(at as usize)
}

impl Port for FunctionPort {
    fn enable(&self, controller: &Rc<Controller>) -> bool {
        self.function().is_some_and(|f| f.enable(controller))
    }

    fn disabled(&self) {
        if let Some(function) = self.function() {
            function.disabled();
        }
    }

    fn ended(&self) {
        if let Some(function) = self.function() {
            function.disabled();
            function.ended.set(true);
            if let Some(f) = function.on_end.take() {
                f();
            }
        }
    }

    fn pci_ids(&self) -> (u16, u16) {
        (VENDOR_ID, VENDOR_ID)
    }

    fn interrupt_mask(&self) -> u32 {
        self.function().map_or(0, |f| f.interrupts.mask.get())
    }

    fn mask(&self, vectors: u32) {
        if let Some(function) = self.function() {
            function.interrupts.mask.set(function.interrupts.mask.get() | vectors);
            function.update_pin();
        }
    }

    fn unmask(&self, vectors: u32) {
        if let Some(function) = self.function() {
            function.interrupts.mask.set(function.interrupts.mask.get() & !vectors);
            function.update_pin();
        }
    }
}

impl Poller for Function {
    fn poll(self: Rc<Self>) -> bool {
        self.drain_completions();
        self.fetch_all()
    }

    fn sleep(&self) -> Wake {
        if self.bells.shadow.get().is_some() {
            // Arm, then look again: a host that missed the event index is seen by the second look.
            let memory = self.memory.borrow();
            for queue in self.sqs.borrow().iter() {
                self.bells.arm(&memory, Bell::Tail(queue.qid()), queue.transport().tail());
            }
            for cq in self.cqs.borrow().values().filter(|cq| cq.is_starved()) {
                self.bells.arm(&memory, Bell::Head(cq.qid), cq.head());
            }
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        if !self.failed.get() && self.sqs.borrow().iter().any(|queue| queue.transport().has_work(queue)) {
            return Wake::Busy;
        }
        if self.bells.is_silent() { Wake::Look } else { Wake::Event }
    }
}

impl TurnEnd for Function {
    fn turn_end(self: Rc<Self>) {
        self.ending.set(false);
        if let Some(info) = self.event.take() {
            self.controller().error_event(info);
        }
        self.turns.set(self.turns.get().wrapping_add(1));
        if self.turns.get().is_multiple_of(CONDEMNED_EVERY) {
            self.check_memory();
        }
        if !self.interrupts.uses_msix() {
            return self.update_pin();
        }
        for cq in self.cqs.borrow().values() {
            if let Some(vector) = cq.vector.filter(|_| cq.fresh.replace(false)) {
                self.interrupts.raise(vector);
            }
        }
    }
}
