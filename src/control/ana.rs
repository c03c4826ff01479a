//! `AnaService`: how well hosts reach a subsystem's namespaces by each of its controllers.

use frontend::AccessState;
use proto::isthmus::ana_service_server::AnaService;
use proto::isthmus::{Ana, AnaState, GetAnaStateRequest, SetAnaStateRequest};
use tonic::{Request, Response, Status};

use super::names;
use super::object::Kind;
use super::service::Control;
use super::volume::invalid;

fn asked(state: i32) -> Result<AccessState, Status> {
    // Not the getter, which takes numbers that it does not know for none.
    match AnaState::try_from(state) {
        Ok(AnaState::Optimized) => Ok(AccessState::Optimized),
        Ok(AnaState::NonOptimized) => Ok(AccessState::NonOptimized),
        Ok(AnaState::Inaccessible) => Ok(AccessState::Inaccessible),
        Ok(AnaState::Unspecified) | Err(_) => Err(invalid("state", "not a state")),
    }
}

fn told(state: AccessState) -> AnaState {
    match state {
        AccessState::Optimized => AnaState::Optimized,
        AccessState::NonOptimized => AnaState::NonOptimized,
        AccessState::Inaccessible => AnaState::Inaccessible,
    }
}

/// As a record keeps it.
pub(super) fn kept(state: AccessState) -> i32 {
    told(state).into()
}

/// From a record; a controller whose state was never set has none.
pub(super) fn of_record(kept: Option<i32>) -> AccessState {
    kept.and_then(|state| asked(state).ok()).unwrap_or_default()
}

#[tonic::async_trait]
impl AnaService for Control {
    async fn set_ana_state(&self, request: Request<SetAnaStateRequest>) -> Result<Response<Ana>, Status> {
        let SetAnaStateRequest { name, state } = request.into_inner();
        let (name, state) = (names::canonical(Kind::Controller, &name)?, asked(state)?);
        let set = self.run(move |registry| {
            registry.set_ana(&name, state)?;
            Ok(Ana { name, state: told(state).into() })
        });
        set.await.map(Response::new)
    }

    async fn get_ana_state(&self, request: Request<GetAnaStateRequest>) -> Result<Response<Ana>, Status> {
        let name = names::canonical(Kind::Controller, &request.into_inner().name)?;
        let state = told(self.registry().find(Kind::Controller, &name)?.ana()).into();
        Ok(Response::new(Ana { name, state }))
    }
}
