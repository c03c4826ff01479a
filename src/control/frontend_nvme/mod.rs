//! `FrontendNvmeService`: subsystems, controllers and namespaces that hosts see.

mod controller;
mod namespace;
mod subsystem;

use proto::storage::frontend_nvme_service_server::FrontendNvmeService;
use proto::storage::{
    CreateNvmeControllerRequest, CreateNvmeNamespaceRequest, CreateNvmeSubsystemRequest,
    DeleteNvmeControllerRequest, DeleteNvmeNamespaceRequest, DeleteNvmeSubsystemRequest,
    GetNvmeControllerRequest, GetNvmeNamespaceRequest, GetNvmeSubsystemRequest, ListNvmeControllersRequest,
    ListNvmeControllersResponse, ListNvmeNamespacesRequest, ListNvmeNamespacesResponse,
    ListNvmeSubsystemsRequest, ListNvmeSubsystemsResponse, NvmeController, NvmeNamespace, NvmeSubsystem,
    StatsNvmeControllerRequest, StatsNvmeControllerResponse, StatsNvmeNamespaceRequest,
    StatsNvmeNamespaceResponse, StatsNvmeSubsystemRequest, StatsNvmeSubsystemResponse,
    UpdateNvmeControllerRequest, UpdateNvmeNamespaceRequest, UpdateNvmeSubsystemRequest,
};
use tonic::{Request, Response, Status};

use super::object::Kind;
use super::service::{Control, no_update};

pub(super) use namespace::place;

/// The collection of a subsystem's namespaces.
const NAMESPACES: &str = "nvmeNamespaces";

#[tonic::async_trait]
impl FrontendNvmeService for Control {
    async fn create_nvme_subsystem(
        &self,
        request: Request<CreateNvmeSubsystemRequest>,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        let CreateNvmeSubsystemRequest { nvme_subsystem, nvme_subsystem_id } = request.into_inner();
        self.create("", nvme_subsystem, &nvme_subsystem_id).await.map(Response::new)
    }

    async fn delete_nvme_subsystem(
        &self,
        request: Request<DeleteNvmeSubsystemRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNvmeSubsystemRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Subsystem, &name, allow_missing).await
    }

    async fn update_nvme_subsystem(
        &self,
        request: Request<UpdateNvmeSubsystemRequest>,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        let UpdateNvmeSubsystemRequest { nvme_subsystem, update_mask, allow_missing } = request.into_inner();
        if nvme_subsystem.as_ref().and_then(|s| s.spec.as_ref()).is_some_and(|spec| !spec.psk.is_empty()) {
            return Err(Status::unimplemented("nvme_subsystem.spec.psk: TLS is not supported"));
        }
        let updated = self.update_entry(nvme_subsystem, update_mask, allow_missing, subsystem::admit);
        self.get(&updated.await?.name)
    }

    async fn list_nvme_subsystems(
        &self,
        request: Request<ListNvmeSubsystemsRequest>,
    ) -> Result<Response<ListNvmeSubsystemsResponse>, Status> {
        let ListNvmeSubsystemsRequest { page_size, page_token } = request.into_inner();
        let (nvme_subsystems, next_page_token) = self.list(None, page_size, &page_token)?;
        Ok(Response::new(ListNvmeSubsystemsResponse { nvme_subsystems, next_page_token }))
    }

    async fn get_nvme_subsystem(
        &self,
        request: Request<GetNvmeSubsystemRequest>,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_nvme_subsystem(
        &self,
        request: Request<StatsNvmeSubsystemRequest>,
    ) -> Result<Response<StatsNvmeSubsystemResponse>, Status> {
        let stats = self.stats::<NvmeSubsystem>(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeSubsystemResponse { stats }))
    }

    async fn create_nvme_controller(
        &self,
        request: Request<CreateNvmeControllerRequest>,
    ) -> Result<Response<NvmeController>, Status> {
        let CreateNvmeControllerRequest { parent, nvme_controller, nvme_controller_id } =
            request.into_inner();
        self.create(&parent, nvme_controller, &nvme_controller_id).await.map(Response::new)
    }

    async fn delete_nvme_controller(
        &self,
        request: Request<DeleteNvmeControllerRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNvmeControllerRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Controller, &name, allow_missing).await
    }

    async fn update_nvme_controller(
        &self,
        _request: Request<UpdateNvmeControllerRequest>,
    ) -> Result<Response<NvmeController>, Status> {
        Err(no_update("UpdateNvmeController"))
    }

    async fn list_nvme_controllers(
        &self,
        request: Request<ListNvmeControllersRequest>,
    ) -> Result<Response<ListNvmeControllersResponse>, Status> {
        let ListNvmeControllersRequest { parent, page_size, page_token } = request.into_inner();
        let (nvme_controllers, next_page_token) = self.list(Some(&parent), page_size, &page_token)?;
        Ok(Response::new(ListNvmeControllersResponse { nvme_controllers, next_page_token }))
    }

    async fn get_nvme_controller(
        &self,
        request: Request<GetNvmeControllerRequest>,
    ) -> Result<Response<NvmeController>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_nvme_controller(
        &self,
        request: Request<StatsNvmeControllerRequest>,
    ) -> Result<Response<StatsNvmeControllerResponse>, Status> {
        let stats = self.stats::<NvmeController>(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeControllerResponse { stats }))
    }

    async fn create_nvme_namespace(
        &self,
        request: Request<CreateNvmeNamespaceRequest>,
    ) -> Result<Response<NvmeNamespace>, Status> {
        let CreateNvmeNamespaceRequest { parent, nvme_namespace, nvme_namespace_id } = request.into_inner();
        self.create(&parent, nvme_namespace, &nvme_namespace_id).await.map(Response::new)
    }

    async fn delete_nvme_namespace(
        &self,
        request: Request<DeleteNvmeNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNvmeNamespaceRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Namespace, &name, allow_missing).await
    }

    async fn update_nvme_namespace(
        &self,
        _request: Request<UpdateNvmeNamespaceRequest>,
    ) -> Result<Response<NvmeNamespace>, Status> {
        Err(no_update("UpdateNvmeNamespace"))
    }

    async fn list_nvme_namespaces(
        &self,
        request: Request<ListNvmeNamespacesRequest>,
    ) -> Result<Response<ListNvmeNamespacesResponse>, Status> {
        let ListNvmeNamespacesRequest { parent, page_size, page_token } = request.into_inner();
        let (nvme_namespaces, next_page_token) = self.list(Some(&parent), page_size, &page_token)?;
        Ok(Response::new(ListNvmeNamespacesResponse { nvme_namespaces, next_page_token }))
    }

    async fn get_nvme_namespace(
        &self,
        request: Request<GetNvmeNamespaceRequest>,
    ) -> Result<Response<NvmeNamespace>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_nvme_namespace(
        &self,
        request: Request<StatsNvmeNamespaceRequest>,
    ) -> Result<Response<StatsNvmeNamespaceResponse>, Status> {
        let stats = self.stats::<NvmeNamespace>(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeNamespaceResponse { stats }))
    }
}
