//! Enable, reset, shutdown and end: once for all transports (Base 2.1, 3.5 to 3.7).

use std::rc::Rc;
use std::time::Duration;

use engine::{Io, IoError, IoId, IoResult, Issuer, Op, Origin, Request, Scope};
use nvme_proto::register::{Cc, Csts};

use super::Controller;
use crate::namespace::Attachment;

/// Where a controller is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// CC.EN is 0, and nothing is in flight.
    Disabled,
    /// CSTS.RDY is 1.
    Ready,
    /// Waits for its queues to end.
    Resetting,
    /// CSTS.CFS is 1: only a reset helps.
    Failed,
    /// Waits for its queues to end, and then goes.
    Ending,
    /// Gone.
    Ended,
}

/// CC.SHN values that ask for a shutdown are not zero; CSTS.SHST while it runs, and when it is complete.
const SHST_OCCURRING: u8 = 1;
const SHST_COMPLETE: u8 = 2;
/// How long a shutdown waits for the media: less than RTD3E, after which a host gives the controller up.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// How long the host that has reset the subsystem may take to disconnect.
const LEAVE: Duration = Duration::from_secs(5);

impl Controller {
    /// CC was written.
    pub(super) fn configure(self: &Rc<Self>, cc: Cc) {
        let before = self.registers().cc;
        // A reset leaves nothing of CC (3.7.2); a shutdown that the same write asks for is heeded.
        let resets = before.en() && !cc.en();
        self.edit(|r| r.cc = if resets { Cc::new().with_shn(cc.shn()) } else { cc });
        match (before.en(), cc.en()) {
            (false, true) if self.phase.get() == Phase::Disabled => self.enable(),
            (true, false) => self.reset(),
            _ => {}
        }
        if cc.shn() != 0 && before.shn() == 0 {
            self.shutdown();
        }
    }

    fn enable(self: &Rc<Self>) {
        let cc = self.registers().cc;
        // The NVM command set, 4 KiB pages, round robin; entry sizes may be set later, but to nothing else.
        let sizes = matches!(cc.iosqes(), 0 | 6) && matches!(cc.iocqes(), 0 | 4);
        if cc.css() != 0 || cc.mps() != 0 || cc.ams() != 0 || cc.crime() || !sizes {
            return self.fail();
        }
        self.phase.set(Phase::Ready);
        if !self.port().enable(self) {
            return self.fail();
        }
        self.shared.enable();
        self.edit(|r| r.csts = Csts::new().with_rdy(true).with_nssro(r.csts.nssro()));
    }

    /// Gives up: CSTS.CFS is 1 until the host resets the controller.
    pub fn fail(self: &Rc<Self>) {
        if matches!(self.phase.get(), Phase::Disabled | Phase::Ready) {
            self.phase.set(Phase::Failed);
            self.edit(|r| r.csts.set_cfs(true));
        }
    }

    /// Whether a reset is on its way: it takes commands back, and nobody waits for their completions.
    pub(crate) fn is_resetting(&self) -> bool {
        self.phase.get() == Phase::Resetting
    }

    /// Whether CSTS.RDY is 1.
    pub fn is_ready(&self) -> bool {
        self.registers().csts.rdy()
    }

    /// Resets the controller: CC.EN became 0, or the transport's own reset (then CC and the admin queue's registers
    /// are cleared first, see [`Controller::clear`]). CSTS.RDY becomes 0 when the last command has ended.
    pub fn reset(self: &Rc<Self>) {
        if !matches!(self.phase.get(), Phase::Ready | Phase::Failed) {
            return;
        }
        self.phase.set(Phase::Resetting);
        if !self.config.fabrics {
            self.stop_keep_alive();
        }
        if self.shared.close_queues(!self.config.fabrics) {
            self.drained();
        }
    }

    /// A reset of the transport (FLR, DEVICE_RESET): all registers as after power on, then as [`Controller::reset`].
    pub fn clear(self: &Rc<Self>) {
        self.edit(|r| *r = super::register::Registers { csts: r.csts, ..Default::default() });
        match self.phase.get() {
            Phase::Disabled => self.disabled(),
            _ => self.reset(),
        }
    }

    /// The host wrote the word to NSSR: every controller that there is now is reset.
    pub(super) fn reset_subsystem(self: &Rc<Self>) {
        for other in self.shared.subsystem().controllers() {
            if other.cntlid() != self.shared.cntlid() || !self.config.fabrics {
                other.subsystem_reset();
                continue;
            }
            // The one who asked disconnects by itself after a last few Properties; Linux waits a minute for each of
            // their answers, whatever becomes of the connection.
            self.clear();
            let (me, shard) = (self.clone(), self.local.shard().clone());
            let end = async move {
                shard.sleep(LEAVE).await;
                me.terminate();
            };
            self.local.shard().spawn(end).detach();
        }
    }

    /// The subsystem is reset (NSSR): as after power on, and CSTS.NSSRO says so. On fabrics the association ends.
    pub(super) fn subsystem_reset(self: &Rc<Self>) {
        if self.config.fabrics {
            return self.terminate();
        }
        self.edit(|r| r.csts.set_nssro(true));
        self.clear();
    }

    /// Ends the controller: its queues are closed, their commands taken back; then its identifier is free and
    /// [`super::Port::ended`] is called.
    pub fn terminate(self: &Rc<Self>) {
        if matches!(self.phase.get(), Phase::Ending | Phase::Ended) {
            return;
        }
        self.phase.set(Phase::Ending);
        self.shared.set_ending();
        self.stop_keep_alive();
        if self.shared.close_queues(true) {
            self.drained();
        }
    }

    /// The queues that a reset or the end waited for are gone.
    pub(super) fn drained(self: &Rc<Self>) {
        match self.phase.get() {
            Phase::Resetting if self.shared.is_drained(!self.config.fabrics) => {
                self.phase.set(Phase::Disabled);
                self.disabled();
                if self.registers().cc.en() {
                    self.enable();
                }
            }
            Phase::Ending if self.shared.is_drained(true) => {
                self.phase.set(Phase::Ended);
                self.forget_events();
                self.shared.subsystem().forget(self.shared.cntlid());
                self.local.shard().take_local(self.shared.key());
                self.port().ended();
            }
            _ => {}
        }
    }

    /// It is as a reset leaves it.
    fn disabled(self: &Rc<Self>) {
        self.next_shutdown();
        self.edit(|r| r.csts = Csts::new().with_nssro(r.csts.nssro()));
        self.forget_events();
        self.forget_features();
        self.forget_access_changes();
        self.port().disabled();
    }

    /// The number of the shutdown that begins; those before have nothing more to say.
    fn next_shutdown(&self) -> u64 {
        self.shutdowns.set(self.shutdowns.get() + 1);
        self.shutdowns.get()
    }

    /// CC.SHN: everything that hosts wrote is on the media before SHST says that the shutdown is complete.
    fn shutdown(self: &Rc<Self>) {
        let number = self.next_shutdown();
        self.edit(|r| r.csts.set_shst(SHST_OCCURRING));
        if !self.config.fabrics {
            self.stop_keep_alive();
        }
        let origin = Origin::new();
        let namespaces = self.local.namespaces();
        if namespaces.is_empty() {
            return self.shutdown_complete();
        }
        self.local.begin(origin);
        let left = Default::default();
        let flush = Rc::new(ShutdownFlush { controller: self.clone(), origin, number, namespaces, left });
        for (at, attachment) in (0..).zip(&flush.namespaces) {
            flush.left.set(flush.left.get() + 1);
            let mut io = Io::new(IoId { origin, tag: 0 });
            *io.request_mut() = Request { op: Op::Flush, ..Request::default() };
            io.forward(attachment.channel(self.local.shard()), flush.clone(), at);
        }
        // Media that are out of reach do not hold the host.
        let (flush, shard) = (Rc::downgrade(&flush), self.local.shard().clone());
        let give_up = async move {
            shard.sleep(SHUTDOWN).await;
            if let Some(flush) = flush.upgrade() {
                flush.namespaces.iter().for_each(|attachment| attachment.revoke(Scope::Origin(origin)));
            }
        };
        self.local.shard().spawn(give_up).detach();
    }

    fn shutdown_complete(&self) {
        self.edit(|r| {
            if r.csts.shst() == SHST_OCCURRING {
                r.csts.set_shst(SHST_COMPLETE);
            }
        });
    }
}

struct ShutdownFlush {
    controller: Rc<Controller>,
    origin: Origin,
    number: u64,
    /// Held until the last has been flushed, and no longer: whoever takes one away waits for it.
    namespaces: Vec<Rc<Attachment>>,
    left: std::cell::Cell<usize>,
}

impl Issuer for ShutdownFlush {
    fn resume(self: Rc<Self>, _io: Io, cookie: u64, result: IoResult) {
        // One that was taken away meanwhile was not to be flushed.
        let at = usize::try_from(cookie).ok().and_then(|at| self.namespaces.get(at));
        let result = match result {
            Err(IoError::Aborted) if at.is_some_and(|of| of.is_gone()) => Ok(()),
            result => result,
        };
        if let Err(error) = result {
            // SHST has no word for it, and CFS is one that a host heeds.
            tracing::error!(controller = ?self.controller.shared, %error, "flush at shutdown");
        }
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.controller.local.end(self.origin);
        }
        // A reset, and another shutdown, have made the controller another since.
        if self.controller.shutdowns.get() != self.number {
            return;
        }
        if result.is_err() {
            self.controller.edit(|r| r.csts.set_cfs(true));
        }
        if self.left.get() == 0 {
            self.controller.shutdown_complete();
        }
    }
}
