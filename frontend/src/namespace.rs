//! Namespaces: a volume under a number and identities, as a subsystem shows it to hosts.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::gate::Gate;
use engine::{ChannelRef, Limits, Scope, Shard, Volume};
use nvme_proto::opcode::NvmOpcode;

use crate::controller::Shared;
use crate::subsystem::{Fence, Mask, Reservations};

/// One namespace of a subsystem.
pub struct Namespace {
    /// NSID: 1 and up.
    pub nsid: u32,
    /// Its UUID (Identify, CNS 03h); all zeroes for none.
    pub uuid: [u8; 16],
    /// NGUID; all zeroes for none.
    pub nguid: [u8; 16],
    /// EUI-64; all zeroes for none.
    pub eui64: [u8; 8],
    /// Where its blocks are.
    pub volume: Arc<dyn Volume>,
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Namespace({})", self.nsid)
    }
}

/// Whether a namespace takes writes (Base 2.1, 8.1.16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// It does.
    #[default]
    None,
    /// It does not, until a host allows it again.
    Protected,
    /// It does not, as long as this process lives.
    UntilPowerCycle,
}

/// Tells when the last command on what was taken away has ended, on every shard.
#[derive(Debug)]
pub struct Drain(Receiver<Infallible>);

impl Drain {
    /// The word of it, and what each holder keeps until it has let go.
    pub(crate) fn new() -> (Sender<Infallible>, Drain) {
        let (hold, gone) = channel();
        (hold, Drain(gone))
    }

    /// Waits at most `timeout`. Whether nothing uses it any more. Never called on a shard.
    pub fn wait(&self, timeout: Duration) -> bool {
        matches!(self.0.recv_timeout(timeout), Err(RecvTimeoutError::Disconnected))
    }
}

/// What a shard checks commands against when the namespace is reserved.
struct Guard {
    /// Whether a reservation keeps anyone out.
    fenced: Cell<bool>,
    /// The reservation and its number.
    fence: RefCell<(u64, Option<Arc<Fence>>)>,
}

/// A namespace as one shard uses it. Commands in flight hold it.
pub struct Attachment {
    /// What it is.
    pub namespace: Arc<Namespace>,
    /// What its volume can do.
    pub limits: Limits,
    /// log2 of the block size in bytes.
    pub block_shift: u32,
    /// How it is write protected, for all hosts.
    pub protection: Protection,
    /// Who may do what with it.
    pub(crate) reservations: Arc<Reservations>,
    /// The same for this and those that it was renewed from.
    guard: Rc<Guard>,
    /// Who sees it.
    pub(crate) mask: Mask,
    channel: OnceCell<ChannelRef>,
    /// New commands use this one.
    current: Cell<bool>,
    /// Given when the namespace goes: let go with the last command. One for this and those that it was renewed from.
    gone: Rc<OnceCell<Sender<Infallible>>>,
    gate: Rc<Gate>,
}

impl Attachment {
    pub(crate) fn new(
        namespace: Arc<Namespace>,
        protection: Protection,
        mask: Mask,
        reservations: Arc<Reservations>,
    ) -> Rc<Self> {
        let fence = reservations.fence();
        let guard = Guard { fenced: Cell::new(fence.1.is_some()), fence: RefCell::new(fence) };
        Self::make(namespace, protection, mask, reservations, Rc::new(guard), Rc::default(), Rc::default())
    }

    fn make(
        namespace: Arc<Namespace>,
        protection: Protection,
        mask: Mask,
        reservations: Arc<Reservations>,
        guard: Rc<Guard>,
        gone: Rc<OnceCell<Sender<Infallible>>>,
        gate: Rc<Gate>,
    ) -> Rc<Self> {
        let limits = namespace.volume.limits();
        let block_shift = limits.block_size.trailing_zeros();
        Rc::new(Attachment {
            namespace,
            limits,
            block_shift,
            protection,
            reservations,
            guard,
            mask,
            channel: OnceCell::new(),
            current: Cell::new(true),
            gone,
            gate,
        })
    }

    /// The same with the limits that the volume has now, for commands to come.
    pub(crate) fn renewed(&self, protection: Protection, mask: Mask) -> Rc<Self> {
        let (namespace, reservations) = (self.namespace.clone(), self.reservations.clone());
        let (guard, gone, gate) = (self.guard.clone(), self.gone.clone(), self.gate.clone());
        let new = Attachment::make(namespace, protection, mask, reservations, guard, gone, gate);
        self.current.set(false);
        if let Some(channel) = self.channel.get() {
            let _ = new.channel.set(channel.clone());
        }
        new
    }

    /// What commands are checked against from now on, unless it is older than what is here.
    pub(crate) fn set_fence(&self, fence: (u64, Option<Arc<Fence>>)) {
        let mut current = self.guard.fence.borrow_mut();
        if fence.0 > current.0 {
            self.guard.fenced.set(fence.1.is_some());
            *current = fence;
        }
    }

    /// Whether a reservation keeps anyone out.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.guard.fenced.get()
    }

    /// Whether its reservation, if there is one, lets this controller's host execute that command.
    #[inline]
    pub(crate) fn permits(&self, controller: &Shared, opcode: NvmOpcode) -> bool {
        !self.is_fenced() || self.admits(controller, opcode)
    }

    fn admits(&self, controller: &Shared, opcode: NvmOpcode) -> bool {
        let fence = self.guard.fence.borrow();
        fence.1.as_ref().is_none_or(|fence| fence.permits(controller.host_id(), opcode))
    }

    /// Whether the namespace is as it was when a command was checked against it.
    pub(crate) fn is_current(&self) -> bool {
        self.current.get()
    }

    /// What writes go through.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether the namespace was removed.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get().is_some()
    }

    /// The volume's channel on this shard, opened with the first command.
    pub fn channel(&self, shard: &Shard) -> &ChannelRef {
        self.channel.get_or_init(|| ChannelRef::open(&self.namespace.volume, shard))
    }

    /// Takes back I/O in flight here (see [`engine::Channel::revoke`]).
    pub(crate) fn revoke(&self, scope: Scope) {
        if let Some(channel) = self.channel.get() {
            channel.revoke(scope);
        }
    }

    pub(crate) fn going(&self, hold: Sender<Infallible>) {
        self.current.set(false);
        let _ = self.gone.set(hold);
        self.gate.open();
    }
}
