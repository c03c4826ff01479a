//! A controller: registers, admin commands, events. It lives on its home shard, the shard of its admin queue; what
//! queues on other shards need of it is in [`Shared`].

mod abort;
mod admin;
mod ana;
mod away;
mod busy;
mod effects;
mod errors;
mod events;
mod features;
mod identify;
mod keep_alive;
mod lifecycle;
mod log;
mod register;
mod reservation;
mod shared;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::subsystem::{Local, Seen, Subsystem, SubsystemError};
use abort::Aborts;
use ana::Ana;
use engine::{Shard, Task, VolumeStats};
use events::Events;
use features::{Features, Protecting};
use keep_alive::KeepAlive;
use lifecycle::Phase;
use log::Logs;
use nvme_proto::feature::InterruptCoalescing;
use register::Registers;
use reservation::Notices;

pub use abort::AbortAnswer;
pub(crate) use ana::INACCESSIBLE;
pub use ana::{AccessState, Way};
pub(crate) use errors::Failure;
pub use shared::{AttachError, Host, QueueLink, QueueToken, Shared};

/// Bytes that one command moves at most (MDTS).
pub const MAX_TRANSFER: u64 = 1 << 20;

/// How a controller is made.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Queues are connections that survive a reset but for I/O queues; without it, PCIe: all queues go with a reset.
    pub fabrics: bool,
    /// The CNTLID that is asked for, over fabrics a static controller's; `None` for one that is free.
    pub cntlid: Option<u16>,
    /// A discovery controller: no I/O queues, and its log is the port's.
    pub discovery: bool,
    /// Entries of the largest queue (MQES + 1): at least 2.
    pub max_queue_entries: u16,
    /// I/O queues that the host may have at most.
    pub max_io_queues: u16,
    /// IOCCSZ in 16 bytes; 0 on PCIe.
    pub ioccsz: u32,
    /// Keep Alive Timeout in milliseconds that the host asked for in Connect; 0 for none.
    pub kato: u32,
}

/// What a controller asks of its transport, once for all its queues.
pub trait Port {
    /// CC.EN was set. PCIe makes the admin queue from AQA, ASQ and ACQ. `false` makes the controller fail (CSTS.CFS).
    fn enable(&self, controller: &Rc<Controller>) -> bool {
        let _ = controller;
        true
    }

    /// The reset is complete: all its queues are gone, and CSTS.RDY is 0.
    fn disabled(&self) {}

    /// The controller has ended: all queues are gone, and so is its identifier.
    fn ended(&self) {}

    /// The host was silent for longer than KATO. The controller ends on fabrics, and is to fail over PCIe.
    fn keep_alive_expired(&self) {}

    /// Vendor and subsystem vendor of the PCI function; zeroes on fabrics.
    fn pci_ids(&self) -> (u16, u16) {
        (0, 0)
    }

    /// The discovery log page, on a discovery controller.
    fn discovery_log(&self) -> Option<Vec<u8>> {
        None
    }

    /// Where the controller's I/O is counted; by default nobody else counts there.
    fn stats(&self) -> Arc<VolumeStats> {
        Arc::default()
    }

    /// The way by which the controller is; by default it is its own.
    fn way(&self) -> Arc<Way> {
        Arc::default()
    }

    /// Whether the host has made I/O completion queues.
    fn has_completion_queues(&self) -> bool {
        false
    }

    /// Interrupt vectors that the host may use.
    fn vectors(&self) -> u16 {
        0
    }

    /// Interrupt Coalescing, as the host sets it; none after a reset.
    fn set_coalescing(&self, _setting: InterruptCoalescing) {}

    /// Interrupt Vector Configuration: whether a vector is raised at once all the same (CD).
    fn set_prompt(&self, _vector: u16, _cd: bool) {}

    /// The interrupt mask: INTMS and INTMC as they read.
    fn interrupt_mask(&self) -> u32 {
        0
    }

    /// INTMS: masks vectors.
    fn mask(&self, _vectors: u32) {}

    /// INTMC: unmasks vectors.
    fn unmask(&self, _vectors: u32) {}
}

/// One NVMe controller.
pub struct Controller {
    shared: Arc<Shared>,
    local: Seen,
    config: Config,
    port: Box<dyn Port>,
    registers: RefCell<Registers>,
    phase: Cell<Phase>,
    /// Shutdowns so far, and resets, which end them.
    shutdowns: Cell<u64>,
    keep_alive: KeepAlive,
    ana: Cell<Ana>,
    features: RefCell<Features>,
    events: RefCell<Events>,
    aborts: Aborts,
    /// Looks for commands on volumes that are out of reach.
    away: RefCell<Option<Task>>,
    protecting: Protecting,
    logs: RefCell<Logs>,
    notices: RefCell<Notices>,
}

impl Controller {
    /// A controller of `subsystem` whose home is `shard`. It is there until [`Controller::terminate`] has run its
    /// course.
    ///
    /// # Errors
    /// No controller identifier is left.
    pub fn new(
        subsystem: &Arc<Subsystem>,
        shard: &Shard,
        config: Config,
        host: Option<Host>,
        port: Box<dyn Port>,
    ) -> Result<Rc<Self>, SubsystemError> {
        let (home, stats, way) = (shard.handle(), port.stats(), port.way());
        let shared = subsystem.admit(config.cntlid, config.fabrics, |cntlid| {
            Arc::new(Shared::new(cntlid, subsystem.clone(), host, home, config.max_io_queues, stats, way))
        })?;
        let controller = Rc::new(Controller {
            local: Seen::new(&Local::of(subsystem, shard), shared.viewer()),
            config,
            port,
            registers: RefCell::default(),
            phase: Cell::new(Phase::Disabled),
            shutdowns: Cell::new(0),
            keep_alive: KeepAlive::default(),
            ana: Cell::default(),
            features: RefCell::new(Features::new(shared.host().map(|h| h.id), shard.now())),
            events: RefCell::default(),
            aborts: Aborts::default(),
            away: RefCell::default(),
            protecting: Protecting::default(),
            logs: RefCell::default(),
            notices: RefCell::default(),
            shared: shared.clone(),
        });
        shard.put_local(shared.key(), controller.clone());
        controller.begin_access();
        controller.set_kato(config.kato);
        Ok(controller)
    }

    /// What other threads may use of it.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The subsystem on the home shard.
    pub fn local(&self) -> &Rc<Local> {
        self.local.local()
    }

    /// How it was made.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn port(&self) -> &dyn Port {
        self.port.as_ref()
    }

    fn registers(&self) -> Registers {
        *self.registers.borrow()
    }

    fn edit(&self, f: impl FnOnce(&mut Registers)) {
        f(&mut self.registers.borrow_mut());
    }

    /// AQA, ASQ and ACQ, for the transport that makes the admin queue from them.
    pub fn admin_queue_registers(&self) -> (nvme_proto::register::Aqa, u64, u64) {
        let r = self.registers();
        (r.aqa, r.asq, r.acq)
    }
}
