//! Asymmetric Namespace Access (Base 2.1, 8.1.1): one group of all namespaces. How well it is reached depends on the way
//! by which a controller is: a TCP listener of its subsystem, or the PCIe function that it is itself. A change takes effect at
//! once, without the state Change between: commands that are with a volume end as they would have, later ones find the new
//! state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_proto::aen::Event;
use nvme_proto::feature::{FeatureId, GetFeaturesCdw10, SetFeaturesCdw10};
use nvme_proto::identify::NSID_ALL;
use nvme_proto::log::{AnaGroupDescriptor, AnaHeader, AnaState, LSP_ANA_GROUPS_ONLY};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use super::features::is_of_namespaces;
use super::{Controller, Shared};
use crate::subsystem::Subsystem;

/// ANAGRPID of every namespace.
pub(super) const GROUP: u32 = 1;

/// How well a controller reaches its namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessState {
    /// As well as can be.
    #[default]
    Optimized,
    /// A host takes another way, if it has one.
    NonOptimized,
    /// Not at all: commands on them are refused, and may succeed elsewhere or later.
    Inaccessible,
}

impl From<AccessState> for AnaState {
    fn from(state: AccessState) -> Self {
        match state {
            AccessState::Optimized => AnaState::Optimized,
            AccessState::NonOptimized => AnaState::NonOptimized,
            AccessState::Inaccessible => AnaState::Inaccessible,
        }
    }
}

/// A way to a subsystem: all controllers that came to be by it are in its state.
#[derive(Debug, Default)]
pub struct Way(Mutex<AccessState>);

impl Way {
    fn lock(&self) -> MutexGuard<'_, AccessState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its state.
    pub fn state(&self) -> AccessState {
        *self.lock()
    }

    /// Sets its state, and tells its controllers in that subsystem. A controller that comes to be meanwhile is listed,
    /// or finds the new state.
    pub(crate) fn set(self: &Arc<Self>, subsystem: &Subsystem, state: AccessState) {
        // Held until all are told: they hear of changes in their order.
        let mut current = self.lock();
        *current = state;
        for controller in subsystem.controllers().iter().filter(|c| Arc::ptr_eq(c.way(), self)) {
            controller.at_home(move |controller| controller.access_changed(state));
        }
    }
}

impl Shared {
    /// Sets the state of the way by which the controller is, for all others of that way too.
    pub fn set_access(&self, state: AccessState) {
        self.way().set(self.subsystem(), state);
    }
}

/// What a controller tells of its group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ana {
    state: AccessState,
    /// CHGCNT: changes of the state since the controller was reset.
    changes: u64,
}

impl Controller {
    fn set_ana(&self, ana: Ana) {
        self.ana.set(ana);
        self.shared.set_inaccessible(ana.state == AccessState::Inaccessible);
    }

    /// Takes over the state of its way when it comes to be.
    pub(super) fn begin_access(&self) {
        self.set_ana(Ana { state: self.shared.way().state(), changes: 0 });
    }

    /// The way's state was set.
    fn access_changed(&self, state: AccessState) {
        let Ana { state: before, changes } = self.ana.get();
        if state == before {
            return;
        }
        self.set_ana(Ana { state, changes: changes.wrapping_add(1) });
        if self.events.borrow().configuration.anacn() {
            self.raise(Event::ANA_CHANGED);
        }
    }

    /// After a reset the count begins again.
    pub(super) fn forget_access_changes(&self) {
        self.ana.set(Ana { changes: 0, ..self.ana.get() });
    }

    /// Whether an admin command asks for what is not available while the namespaces are inaccessible (8.1.1.10).
    pub(super) fn is_withheld(&self, sqe: &Sqe) -> bool {
        if !self.shared.is_inaccessible() {
            return false;
        }
        let (fid, sets) = match sqe.admin() {
            AdminOpcode::SetFeatures => (SetFeaturesCdw10::from_bits(sqe.cdw10).fid(), true),
            AdminOpcode::GetFeatures => (GetFeaturesCdw10::from_bits(sqe.cdw10).fid(), false),
            _ => return false,
        };
        let everywhere = sets && sqe.nsid == NSID_ALL && is_of_namespaces(fid);
        everywhere
            || matches!(
                fid,
                FeatureId::ErrorRecovery
                    | FeatureId::ReservationNotificationMask
                    | FeatureId::ReservationPersistence
            )
    }

    /// The log page; a group without namespaces is not in it. `lsp` may leave the namespaces out.
    pub(super) fn ana_log(&self, lsp: u8) -> Vec<u8> {
        let Ana { state, changes } = self.ana.get();
        let namespaces = self.local.namespaces();
        let groups = u16::from(!namespaces.is_empty());
        let header = AnaHeader { chgcnt: changes, nanagrpd: groups, ..AnaHeader::default() };
        let mut page = header.as_bytes().to_vec();
        if groups == 0 {
            return page;
        }
        let nsids: Vec<u32> = match lsp & LSP_ANA_GROUPS_ONLY {
            0 => namespaces.iter().map(|n| n.namespace.nsid).collect(),
            _ => Vec::new(),
        };
        let group = AnaGroupDescriptor {
            anagrpid: GROUP,
            nnv: u32::try_from(nsids.len()).unwrap_or(0),
            chgcnt: changes,
            state: state.into(),
            reserved17: [0; 15],
        };
        page.extend_from_slice(group.as_bytes());
        page.extend(nsids.iter().flat_map(|nsid| nsid.to_le_bytes()));
        page
    }
}

/// What a command on namespaces that are not accessible completes with: it may be sent again, elsewhere.
pub(crate) const INACCESSIBLE: Status = Status::ASYMMETRIC_ACCESS_INACCESSIBLE;
