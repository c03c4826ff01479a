//! Namespace Write Protection Config (Base 2.1, 5.1.25.1.33 and 8.1.16). It holds for every controller of the subsystem,
//! and the command completes when that is so and what was written before is on the media.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine::{Io, IoId, IoResult, Issuer, Op, Origin, Request};
use nvme_proto::feature::WriteProtection;
use nvme_proto::identify::NSID_ALL;
use nvme_proto::{Sqe, Status};

use crate::controller::Controller;
use crate::namespace::Protection;
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};

/// WPS.
const NONE: u8 = 0;
const PROTECTED: u8 = 1;
const UNTIL_POWER_CYCLE: u8 = 2;

/// A command that waits until all its namespaces are protected, and then for a flush.
struct Waiting {
    id: u64,
    queue: Rc<dyn AdminQueue>,
    ticket: Ticket,
    nsids: Vec<u32>,
    left: usize,
    failed: Option<Status>,
}

/// Commands of this controller that wait.
#[derive(Default)]
pub(in crate::controller) struct Protecting {
    waiting: RefCell<Vec<Waiting>>,
    last: Cell<u64>,
}

fn wps(protection: Protection) -> u8 {
    match protection {
        Protection::None => NONE,
        Protection::Protected => PROTECTED,
        Protection::UntilPowerCycle => UNTIL_POWER_CYCLE,
    }
}

impl Controller {
    pub(super) fn set_protection(
        self: &Rc<Self>,
        queue: Rc<dyn AdminQueue>,
        ticket: Ticket,
        sqe: &Sqe,
    ) -> Result<Outcome, Status> {
        let wanted = match WriteProtection::from_bits(sqe.cdw11).wps() {
            NONE => Protection::None,
            PROTECTED => Protection::Protected,
            UNTIL_POWER_CYCLE => Protection::UntilPowerCycle,
            _ => return Err(Status::INVALID_FIELD),
        };
        let mut of = self.local.namespaces();
        of.retain(|a| sqe.nsid == NSID_ALL || a.namespace.nsid == sqe.nsid);
        let fixed = |p: Protection| p == Protection::UntilPowerCycle && wanted != p;
        if of.iter().any(|a| fixed(a.protection)) {
            return Err(Status::FEATURE_NOT_CHANGEABLE);
        }
        of.retain(|a| a.protection != wanted);
        if of.is_empty() {
            return Ok(Reply::default().into());
        }
        let nsids: Vec<u32> = of.iter().map(|a| a.namespace.nsid).collect();
        let id = self.protecting.last.get().wrapping_add(1);
        self.protecting.last.set(id);
        let waiting = Waiting { id, queue, ticket, nsids: nsids.clone(), left: nsids.len(), failed: None };
        self.protecting.waiting.borrow_mut().push(waiting);
        for nsid in nsids {
            let shared = self.shared.clone();
            let answer = move |status| shared.at_home(move |controller| controller.protected(id, status));
            self.local.subsystem().protect(nsid, wanted, Box::new(answer));
        }
        Ok(Outcome::Later)
    }

    pub(super) fn protection(&self, nsid: u32) -> u32 {
        let attachment = self.local.namespace(nsid);
        let protection = attachment.map(|a| a.protection).unwrap_or_default();
        WriteProtection::new().with_wps(wps(protection)).into_bits()
    }

    /// One of a command's namespaces is protected on all shards, or is not.
    fn protected(self: &Rc<Self>, id: u64, status: Status) {
        let held = {
            let mut waiting = self.protecting.waiting.borrow_mut();
            let Some(at) = waiting.iter().position(|w| w.id == id) else { return };
            let of = &mut waiting[at];
            of.left = of.left.saturating_sub(1);
            of.failed = of.failed.or((!status.is_success()).then_some(status));
            if of.left > 0 {
                return;
            }
            waiting.swap_remove(at)
        };
        let Waiting { queue, ticket, nsids, failed, .. } = held;
        if let Some(status) = failed {
            return queue.finish(ticket, status.dnr().into());
        }
        let flush = Rc::new(Flush { answer: RefCell::new(Some((queue, ticket))), state: RefCell::default() });
        let origin = Origin::new();
        let of: Vec<_> = nsids.into_iter().filter_map(|nsid| self.local.namespace(nsid)).collect();
        flush.state.borrow_mut().left = of.len();
        if of.is_empty() {
            flush.end();
        }
        for attachment in of {
            let mut io = Io::new(IoId { origin, tag: 0 });
            *io.request_mut() = Request { op: Op::Flush, ..Request::default() };
            io.forward(attachment.channel(self.local.shard()), flush.clone(), 0);
        }
    }

    /// The admin queue closes, and its commands end with it.
    pub(in crate::controller) fn forget_protecting(&self) {
        self.protecting.waiting.take();
    }
}

#[derive(Default)]
struct State {
    left: usize,
    failed: Option<Status>,
}

/// The flushes of one command.
struct Flush {
    answer: RefCell<Option<(Rc<dyn AdminQueue>, Ticket)>>,
    state: RefCell<State>,
}

impl Flush {
    fn end(&self) {
        let status = self.state.borrow().failed.unwrap_or_default();
        if let Some((queue, ticket)) = self.answer.take() {
            queue.finish(ticket, status.into());
        }
    }
}

impl Issuer for Flush {
    fn resume(self: Rc<Self>, _io: Io, _cookie: u64, result: IoResult) {
        let left = {
            let mut state = self.state.borrow_mut();
            state.failed = state.failed.or(result.err().map(|error| crate::nvm::status(error, Op::Flush)));
            state.left = state.left.saturating_sub(1);
            state.left
        };
        if left == 0 {
            self.end();
        }
    }
}
