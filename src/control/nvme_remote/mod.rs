//! `NvmeRemoteControllerService`: remote controllers, the paths to them, and the namespaces found there.

mod controller;
mod namespace;
mod path;

use proto::storage::nvme_remote_controller_service_server::NvmeRemoteControllerService;
use proto::storage::{
    CreateNvmePathRequest, CreateNvmeRemoteControllerRequest, DeleteNvmePathRequest,
    DeleteNvmeRemoteControllerRequest, GetNvmePathRequest, GetNvmeRemoteControllerRequest,
    GetNvmeRemoteNamespaceRequest, ListNvmePathsRequest, ListNvmePathsResponse,
    ListNvmeRemoteControllersRequest, ListNvmeRemoteControllersResponse, ListNvmeRemoteNamespacesRequest,
    ListNvmeRemoteNamespacesResponse, NvmePath, NvmeRemoteController, NvmeRemoteNamespace,
    ResetNvmeRemoteControllerRequest, StatsNvmePathRequest, StatsNvmePathResponse,
    StatsNvmeRemoteControllerRequest, StatsNvmeRemoteControllerResponse, UpdateNvmePathRequest,
    UpdateNvmeRemoteControllerRequest,
};
use tonic::{Request, Response, Status};

use super::names;
use super::object::Kind;
use super::page::page;
use super::schema::missing_field;
use super::service::{Control, no_update};

#[tonic::async_trait]
impl NvmeRemoteControllerService for Control {
    async fn create_nvme_remote_controller(
        &self,
        request: Request<CreateNvmeRemoteControllerRequest>,
    ) -> Result<Response<NvmeRemoteController>, Status> {
        let CreateNvmeRemoteControllerRequest { nvme_remote_controller, nvme_remote_controller_id } =
            request.into_inner();
        self.create("", nvme_remote_controller, &nvme_remote_controller_id).await.map(Response::new)
    }

    async fn delete_nvme_remote_controller(
        &self,
        request: Request<DeleteNvmeRemoteControllerRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNvmeRemoteControllerRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Remote, &name, allow_missing).await
    }

    async fn update_nvme_remote_controller(
        &self,
        _request: Request<UpdateNvmeRemoteControllerRequest>,
    ) -> Result<Response<NvmeRemoteController>, Status> {
        Err(no_update("UpdateNvmeRemoteController"))
    }

    async fn list_nvme_remote_controllers(
        &self,
        request: Request<ListNvmeRemoteControllersRequest>,
    ) -> Result<Response<ListNvmeRemoteControllersResponse>, Status> {
        let ListNvmeRemoteControllersRequest { page_size, page_token } = request.into_inner();
        let (nvme_remote_controllers, next_page_token) = self.list(None, page_size, &page_token)?;
        Ok(Response::new(ListNvmeRemoteControllersResponse { nvme_remote_controllers, next_page_token }))
    }

    async fn get_nvme_remote_controller(
        &self,
        request: Request<GetNvmeRemoteControllerRequest>,
    ) -> Result<Response<NvmeRemoteController>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_nvme_remote_controller(
        &self,
        request: Request<StatsNvmeRemoteControllerRequest>,
    ) -> Result<Response<StatsNvmeRemoteControllerResponse>, Status> {
        let stats = self.stats::<NvmeRemoteController>(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeRemoteControllerResponse { stats }))
    }

    async fn reset_nvme_remote_controller(
        &self,
        request: Request<ResetNvmeRemoteControllerRequest>,
    ) -> Result<Response<()>, Status> {
        let name = names::canonical(Kind::Remote, &request.into_inner().name)?;
        let reset = self.run(move |registry| {
            let _held = registry.hold_name(&name);
            registry.find(Kind::Remote, &name)?;
            Ok(registry.plane().reset_remote(names::id(&name))?)
        });
        reset.await.map(Response::new)
    }

    async fn list_nvme_remote_namespaces(
        &self,
        request: Request<ListNvmeRemoteNamespacesRequest>,
    ) -> Result<Response<ListNvmeRemoteNamespacesResponse>, Status> {
        let ListNvmeRemoteNamespacesRequest { parent, page_size, page_token } = request.into_inner();
        if parent.is_empty() {
            return Err(missing_field("parent"));
        }
        let controller = names::canonical(Kind::Remote, &parent)?;
        let all = self.run(move |registry| namespace::all(registry, &controller)).await?;
        // By number, which the names in the list that is paged say with leading zeroes.
        let sorted = all.into_iter().map(|namespace| (format!("{:010}", namespace.nsid), namespace));
        let (nvme_remote_namespaces, next_page_token) = page(&parent, sorted, page_size, &page_token)?;
        Ok(Response::new(ListNvmeRemoteNamespacesResponse { nvme_remote_namespaces, next_page_token }))
    }

    async fn get_nvme_remote_namespace(
        &self,
        request: Request<GetNvmeRemoteNamespaceRequest>,
    ) -> Result<Response<NvmeRemoteNamespace>, Status> {
        let name = names::canonical(Kind::RemoteNamespace, &request.into_inner().name)?;
        let missing = Status::not_found(format!("unable to find key {name}"));
        let all = self.run(move |registry| {
            let namespaces = namespace::all(registry, names::parent(&name))?;
            Ok(namespaces.into_iter().find(|namespace| namespace.name == name))
        });
        all.await?.map(Response::new).ok_or(missing)
    }

    async fn create_nvme_path(
        &self,
        request: Request<CreateNvmePathRequest>,
    ) -> Result<Response<NvmePath>, Status> {
        let CreateNvmePathRequest { parent, nvme_path, nvme_path_id } = request.into_inner();
        let path = self.create(&parent, nvme_path, &nvme_path_id).await?;
        // Its client goes on with the namespaces behind it.
        let connected = self.run(move |registry| {
            registry.plane().await_connection(names::id(&parent));
            Ok(())
        });
        connected.await?;
        Ok(Response::new(path))
    }

    async fn delete_nvme_path(
        &self,
        request: Request<DeleteNvmePathRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNvmePathRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Path, &name, allow_missing).await
    }

    async fn update_nvme_path(
        &self,
        _request: Request<UpdateNvmePathRequest>,
    ) -> Result<Response<NvmePath>, Status> {
        Err(no_update("UpdateNvmePath"))
    }

    async fn list_nvme_paths(
        &self,
        request: Request<ListNvmePathsRequest>,
    ) -> Result<Response<ListNvmePathsResponse>, Status> {
        let ListNvmePathsRequest { parent, page_size, page_token } = request.into_inner();
        let (nvme_paths, next_page_token) = self.list(Some(&parent), page_size, &page_token)?;
        Ok(Response::new(ListNvmePathsResponse { nvme_paths, next_page_token }))
    }

    async fn get_nvme_path(
        &self,
        request: Request<GetNvmePathRequest>,
    ) -> Result<Response<NvmePath>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_nvme_path(
        &self,
        request: Request<StatsNvmePathRequest>,
    ) -> Result<Response<StatsNvmePathResponse>, Status> {
        let stats = self.stats::<NvmePath>(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmePathResponse { stats }))
    }
}
