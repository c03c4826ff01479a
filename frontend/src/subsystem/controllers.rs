//! The controllers of a subsystem and their identifiers (CNTLID; Base 2.1, 3.1.1): static ones of fabrics keep theirs
//! without a host, those of PCIe have theirs while they are there, and associations are given one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use nvme_proto::fabrics::CNTLID_MAX;

use super::{Subsystem, SubsystemError, Viewer, allowed};
use crate::controller::{Host, Shared};

/// The first identifier that hosts' associations get. Those below are for controllers that are declared: a restarted
/// process finds them free, whichever host comes back first.
pub(super) const FIRST_DYNAMIC: u16 = 1024;
/// Controllers that one subsystem has at once.
const MAX_CONTROLLERS: usize = 1024;

impl Subsystem {
    /// Keeps an identifier for a static controller over fabrics: the one asked for, or the lowest that is free.
    ///
    /// # Errors
    /// The identifier belongs to another controller or is out of range, or none is left.
    pub(crate) fn reserve(&self, asked: Option<u16>) -> Result<u16, SubsystemError> {
        let mut state = self.state();
        if state.statics.len() >= MAX_CONTROLLERS {
            return Err(SubsystemError::NoController);
        }
        // An association of a static controller that was there before may still be ending; it is no other controller.
        let open = |cntlid: &u16| {
            let other = state.controllers.get(cntlid).is_some_and(|c| c.host().is_none());
            *cntlid <= CNTLID_MAX && !other && !state.statics.contains(cntlid)
        };
        let cntlid = match asked {
            Some(asked) => Some(asked).filter(open).ok_or(SubsystemError::CntlidInUse)?,
            None => (1..FIRST_DYNAMIC).find(open).ok_or(SubsystemError::NoController)?,
        };
        state.statics.insert(cntlid);
        Ok(cntlid)
    }

    /// Whether the identifier is a static controller's, over fabrics or PCIe.
    pub(super) fn is_static(&self, controller: &Shared) -> bool {
        controller.host().is_none() || self.state().statics.contains(&controller.cntlid())
    }

    /// A static controller is no more.
    pub(crate) fn release(&self, cntlid: u16) {
        self.state().statics.remove(&cntlid);
    }

    /// The identifiers of its controllers, in order: of those that are there, and of static ones that wait for a host.
    /// `which` says of each whether it is meant; of one that waits nobody's view is known.
    pub(crate) fn cntlids(&self, which: impl Fn(Option<Viewer>) -> bool) -> Vec<u16> {
        let state = self.state();
        let mut all: BTreeMap<u16, Option<Viewer>> = state.statics.iter().map(|id| (*id, None)).collect();
        all.extend(state.controllers.iter().map(|(id, controller)| (*id, Some(controller.viewer()))));
        all.into_iter().filter(|(_, viewer)| which(*viewer)).map(|(id, _)| id).collect()
    }

    /// A controller identifier for a new controller, and its place in the list; `make` gets the identifier. It is
    /// `wanted`, the lowest that is free, or over `fabrics` the next; a `wanted` one over fabrics is a static controller's.
    pub(crate) fn admit(
        &self,
        wanted: Option<u16>,
        fabrics: bool,
        make: impl FnOnce(u16) -> Arc<Shared>,
    ) -> Result<Arc<Shared>, SubsystemError> {
        let mut state = self.state();
        if state.closed || state.controllers.len() >= MAX_CONTROLLERS {
            return Err(SubsystemError::NoController);
        }
        let free = |cntlid: &u16| !state.controllers.contains_key(cntlid);
        let open = |cntlid: &u16| free(cntlid) && !state.statics.contains(cntlid);
        let next = |cntlid: u16| if cntlid >= CNTLID_MAX { FIRST_DYNAMIC } else { cntlid + 1 };
        let cntlid = match wanted {
            Some(wanted) => {
                let meant = |n: &u16| *n <= CNTLID_MAX && free(n) && state.statics.contains(n) == fabrics;
                Some(wanted).filter(meant).ok_or(SubsystemError::CntlidInUse)?
            }
            None if !fabrics => (1..FIRST_DYNAMIC).find(open).ok_or(SubsystemError::NoController)?,
            None => {
                // They go round, so that one that has just ended does not come back at once. The lists are far shorter
                // than the round: one is free.
                let mut cntlid = state.next_cntlid;
                while !open(&cntlid) {
                    cntlid = next(cntlid);
                }
                state.next_cntlid = next(cntlid);
                cntlid
            }
        };
        let shared = make(cntlid);
        // The list may have become another since the host was let in.
        if shared.host().is_some_and(|host| !allowed(&state.allowed_hosts, &host.nqn)) {
            return Err(SubsystemError::Host);
        }
        state.controllers.insert(cntlid, shared.clone());
        Ok(shared)
    }

    /// The controller with that identifier.
    pub(crate) fn controller(&self, cntlid: u16) -> Option<Arc<Shared>> {
        self.state().controllers.get(&cntlid).cloned()
    }

    /// Whether commands of that host are being taken back: they may still land.
    pub(crate) fn is_draining(&self, host: &Host) -> bool {
        self.controllers().iter().any(|c| c.host() == Some(host) && c.is_draining())
    }

    /// Has the queues of that host look whether it is gone; `done` is dropped when that is known.
    pub(crate) fn probe(&self, host: &Host, done: &Arc<()>) {
        for controller in self.controllers().iter().filter(|c| c.host() == Some(host)) {
            controller.probe(done);
        }
    }

    /// A controller has ended: its identifier may be given out again.
    pub(crate) fn forget(&self, cntlid: u16) {
        self.state().controllers.remove(&cntlid);
    }
}
