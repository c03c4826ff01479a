//! `ControllerModelService`: whether a subsystem's controllers over fabrics are dynamic or static (Base 2.1, 3.1.1).

use proto::isthmus::controller_model_service_server::ControllerModelService;
use proto::isthmus::{ControllerModel, GetControllerModelRequest, Model, SetControllerModelRequest};
use tonic::{Request, Response, Status};

use super::names;
use super::object::Kind;
use super::service::Control;
use super::volume::invalid;

#[tonic::async_trait]
impl ControllerModelService for Control {
    async fn set_controller_model(
        &self,
        request: Request<SetControllerModelRequest>,
    ) -> Result<Response<ControllerModel>, Status> {
        let SetControllerModelRequest { name, model } = request.into_inner();
        let name = names::canonical(Kind::Subsystem, &name)?;
        // Not the getter, which takes numbers that it does not know for none.
        let fixed = match Model::try_from(model) {
            Ok(Model::Dynamic) => false,
            Ok(Model::Static) => true,
            Ok(Model::Unspecified) | Err(_) => return Err(invalid("model", "not a model")),
        };
        let set = self.run(move |registry| {
            registry.set_static_controllers(&name, fixed)?;
            Ok(ControllerModel { name, model })
        });
        set.await.map(Response::new)
    }

    async fn get_controller_model(
        &self,
        request: Request<GetControllerModelRequest>,
    ) -> Result<Response<ControllerModel>, Status> {
        let name = names::canonical(Kind::Subsystem, &request.into_inner().name)?;
        let subsystem = self.registry().find(Kind::Subsystem, &name)?;
        let model = if subsystem.has_static_controllers() { Model::Static } else { Model::Dynamic };
        Ok(Response::new(ControllerModel { name, model: model.into() }))
    }
}
