//! The PCI function of a controller: its registers and doorbells as BARs, its queues, its guest's memory.

mod bars;
mod port;
mod queues;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::mem::{Access, GuestMemory, MemError, Region, RegionId, Sgl, condemnations};
use engine::{PollerId, Scope, Shard};
use nvme_proto::aen::ErrorInfo;
use nvme_proto::register::{Csts, offset};
use nvme_proto::zerocopy::IntoBytes;

use super::coalesce::Coalescing;
use super::config::{ConfigSpace, MAX_VECTORS};
use super::cq::Cq;
use super::doorbell::{Bells, Doorbells, PAGE};
use super::irq::Interrupts;
use super::runs::Runs;
use super::sq::Sq;
use super::staged::{Late, Messages};
use crate::controller::{Config, Controller};
use crate::queue::{Queue, Ticket};
use crate::subsystem::Subsystem;
use bars::msix_table;
use port::FunctionPort;

pub(crate) use bars::{Space, Then};

/// A PCI function. It lives on its controller's home shard, and outlives its hosts: between two of them it is reset.
pub(crate) struct Function {
    pub shard: Shard,
    controller: Rc<Controller>,
    pub bells: Bells,
    pub interrupts: Interrupts,
    pub coalescing: Coalescing,
    config: RefCell<ConfigSpace>,
    msix_table: RefCell<Box<[u8]>>,
    /// What its host has mapped.
    regions: RefCell<GuestMemory>,
    /// What of that it may use: nothing while it is no bus master.
    pub memory: RefCell<GuestMemory>,
    /// See [`ConfigSpace::is_bus_master`].
    bus_master: Cell<bool>,
    messages: RefCell<Option<Rc<dyn Messages>>>,
    /// Runs that are used again: no allocation for a command's data pointer.
    pub runs: RefCell<Runs>,
    /// Bytes in buffers: see [`super::staged`].
    pub staged: Cell<usize>,
    /// Completions on their way by message.
    late: Late,
    /// Writes of guest memory by message that were not answered yet, and how long a reset waits for them.
    pub writes: Cell<usize>,
    patient_until: Cell<u64>,
    sqs: RefCell<Vec<Rc<Queue<Sq>>>>,
    cqs: RefCell<BTreeMap<u16, Rc<Cq>>>,
    /// Delete I/O Submission Queue commands that wait for the queue's end.
    deleting: RefCell<Vec<(Rc<Queue<Sq>>, Ticket)>>,
    poller: Cell<Option<PollerId>>,
    /// Polls in a row that found nothing.
    vain: Cell<u32>,
    /// [`TurnEnd`] is asked for.
    ending: Cell<bool>,
    /// An error that the host will be told of then.
    event: Cell<Option<ErrorInfo>>,
    /// [`condemnations`] when the guest's memory was last looked at.
    condemned: Cell<usize>,
    /// Nobody is there to be answered.
    deaf: Cell<bool>,
    /// Times that the host did what fails a controller.
    complaints: Cell<u64>,
    /// CSTS.CFS: nothing is fetched any more.
    failed: Cell<bool>,
    ended: Cell<bool>,
    on_end: RefCell<Option<Box<dyn FnOnce()>>>,
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
        let vectors = max_io_queues.saturating_add(1).min(MAX_VECTORS);
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
            coalescing: Coalescing::default(),
            config: RefCell::new(ConfigSpace::new(vectors)),
            msix_table: RefCell::new(msix_table()),
            regions: RefCell::default(),
            memory: RefCell::default(),
            bus_master: Cell::new(false),
            messages: RefCell::default(),
            runs: RefCell::default(),
            staged: Cell::new(0),
            late: Late::default(),
            writes: Cell::new(0),
            patient_until: Cell::new(0),
            sqs: RefCell::default(),
            cqs: RefCell::default(),
            deleting: RefCell::default(),
            poller: Cell::new(None),
            vain: Cell::new(0),
            ending: Cell::new(false),
            event: Cell::new(None),
            condemned: Cell::new(condemnations()),
            deaf: Cell::new(true),
            complaints: Cell::new(0),
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

    /// A host is there; `messages` reaches the parts of its memory that cannot be mapped. It gets doorbells that no
    /// earlier host shares.
    ///
    /// # Errors
    /// No memory file can be made for the doorbells.
    pub fn attach_host(&self, messages: Rc<dyn Messages>) -> io::Result<()> {
        self.bells.renew()?;
        messages.allow(self.is_bus_master());
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
        self.regions.replace(GuestMemory::default());
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

    /// Adds a region. Whether it was possible: it overlaps none.
    pub fn add_region(self: &Rc<Self>, region: Arc<Region>) -> bool {
        let with = self.regions.borrow().with(region);
        let added = with.is_some();
        if let Some(regions) = with {
            self.regions.replace(regions);
            self.memory_changed();
        }
        added
    }

    /// Takes a region away and everything that uses it back. The memory is free when nobody else has the region.
    pub fn remove_region(self: &Rc<Self>, id: RegionId) {
        let without = self.regions.borrow().without(id);
        self.regions.replace(without);
        self.revoke(id);
        self.memory_changed();
    }

    /// Takes back what uses a region.
    pub fn revoke(&self, id: RegionId) {
        self.controller().local().revoke(Scope::Region(id));
    }

    /// Whether it may use its guest's memory at all.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.get()
    }

    /// Takes over whether configuration space makes it a bus master. One that is not makes no request of its own (PCI
    /// Express Base, 7.5.1.1.3): its commands lose the memory that they use, as by an unmap, and their completions and
    /// messages wait. Whether it has to let go of memory.
    fn follow_bus_master(self: &Rc<Self>) -> bool {
        let is = self.config.borrow().is_bus_master();
        if self.bus_master.replace(is) == is {
            return false;
        }
        self.interrupts.hold(!is);
        if let Some(messages) = self.messages() {
            messages.allow(is);
        }
        self.memory_changed();
        if !is {
            // The client's and ours hold each; others are I/O. A guest may ask this as often as it likes.
            let regions = self.regions.borrow().clone();
            let used = regions.regions().iter().filter(|region| Arc::strong_count(region) > 2);
            used.for_each(|region| self.revoke(region.id()));
        }
        self.late.go_on(self);
        !is
    }

    fn memory_changed(self: &Rc<Self>) {
        self.memory.replace(match self.is_bus_master() {
            true => self.regions.borrow().clone(),
            false => GuestMemory::default(),
        });
        for queue in self.sqs.borrow().iter() {
            queue.transport().memory_changed();
        }
        self.cqs.borrow().values().for_each(|cq| cq.memory_changed());
        self.drain_completions();
    }

    /// Whether the file behind some of the guest's memory was truncated.
    fn is_condemned(&self) -> bool {
        self.regions.borrow().regions().iter().any(|region| region.is_condemned())
    }

    /// A host that truncates a file under its memory reads and writes nothing any more, and its controller has failed.
    /// One that is disabled has not, or its reset would never be complete.
    fn check_memory(&self) {
        if self.sqs.borrow().is_empty() {
            return;
        }
        let now = condemnations();
        if self.condemned.replace(now) == now || self.failed.get() {
            return;
        }
        if self.is_condemned() {
            self.complain("the file behind guest memory was truncated");
            self.fail();
        }
    }

    /// The next look at the guest's memory is a look at every region.
    fn look_at_memory(&self) {
        self.condemned.set(condemnations().wrapping_sub(1));
    }

    /// Whether a queue can be there.
    pub fn has_memory(&self, gpa: u64, len: u64) -> bool {
        gpa != 0 && self.reaches(gpa, len, Access::Read) && self.reaches(gpa, len, Access::Write)
    }

    fn reaches(&self, gpa: u64, len: u64, access: Access) -> bool {
        let (Some(end), memory) = (gpa.checked_add(len), self.regions.borrow()) else { return false };
        let mut at = gpa;
        while at < end {
            match Sgl::empty().push_guest(&memory, at, (end - at) as usize, access) {
                Ok(()) => return true,
                Err(MemError::ByMessage { gpa, len }) => at = gpa + len as u64,
                Err(_) => return false,
            }
        }
        true
    }

    /// Logs why the controller fails: the first few times, and then ever fewer.
    pub fn complain(&self, why: &'static str) {
        let before = self.complaints.replace(self.complaints.get() + 1);
        if before < 16 || before.is_power_of_two() {
            tracing::warn!(controller = ?self.controller().shared(), count = before + 1, "pcie: {why}");
        }
    }

    /// The controller cannot go on: CSTS.CFS.
    pub fn fail(&self) {
        self.failed.set(true);
        self.controller().fail();
    }

    /// Function-level reset: everything as after power on. Whether it was complete within `patience`; if not, it goes
    /// on.
    pub async fn reset(self: &Rc<Self>, patience: Duration) -> bool {
        self.config.borrow_mut().reset();
        self.msix_table.replace(msix_table());
        let controller = self.controller();
        controller.clear();
        self.follow_bus_master();
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
}
