//! Who may do what on a namespace that is reserved (Base 2.1, 8.1.22.4, "Command Behavior in the Presence of a
//! Reservation").

use nvme_proto::opcode::NvmOpcode;
use nvme_proto::reservation::ReservationType;

use super::HostId;
use super::state::{State, is_shared};

/// A reservation as the shards check commands against it.
#[derive(Debug)]
pub(crate) struct Fence {
    /// Whether hosts that it keeps out may read all the same.
    readable: bool,
    /// Who may do everything, in ascending order.
    admitted: Vec<HostId>,
}

impl Fence {
    /// What a namespace's state forbids; `None` if nothing.
    pub fn of(state: &State) -> Option<Self> {
        use ReservationType as T;
        if state.rtype == T::None {
            return None;
        }
        let readable = matches!(
            state.rtype,
            T::WriteExclusive | T::WriteExclusiveRegistrantsOnly | T::WriteExclusiveAllRegistrants
        );
        let mut admitted: Vec<HostId> = match is_shared(state.rtype) {
            true => state.registrants.iter().map(|r| r.host).collect(),
            false => state.holder.into_iter().collect(),
        };
        admitted.sort_unstable();
        Some(Fence { readable, admitted })
    }

    /// Whether a host may execute a command of the NVM command set. Reservation commands look after themselves.
    pub fn permits(&self, host: Option<HostId>, opcode: NvmOpcode) -> bool {
        use NvmOpcode as O;
        let reads = matches!(opcode, O::Read | O::Compare | O::Verify);
        reads && self.readable
            || host.is_some_and(|host| self.admitted.binary_search(&host).is_ok())
            || is_reservation(opcode)
    }
}

fn is_reservation(opcode: NvmOpcode) -> bool {
    use NvmOpcode as O;
    matches!(
        opcode,
        O::ReservationRegister | O::ReservationReport | O::ReservationAcquire | O::ReservationRelease
    )
}
