//! `MallocVolumeService`: volumes in memory.

use std::sync::Arc;

use engine::Volume;
use proto::storage::malloc_volume_service_server::MallocVolumeService;
use proto::storage::{
    CreateMallocVolumeRequest, DeleteMallocVolumeRequest, GetMallocVolumeRequest, ListMallocVolumesRequest,
    ListMallocVolumesResponse, MallocVolume, StatsMallocVolumeRequest, StatsMallocVolumeResponse,
    UpdateMallocVolumeRequest,
};
use tonic::{Request, Response, Status};

use super::object::{Claim, Kind, Resource, Site};
use super::plane::Counters;
use super::registry::{Entry, Registry};
use super::secret::Secret;
use super::service::{Control, no_update, volume_counters};
use super::volume::{geometry, uuid, uuid_claim};

impl Resource for MallocVolume {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        geometry("malloc_volume", self.block_size, self.blocks_count)?;
        if self.metadata_size != 0 {
            return Err(Status::unimplemented("malloc_volume.metadata_size: metadata is not supported"));
        }
        uuid("malloc_volume.uuid", &self.uuid).map(drop)
    }

    fn claim(&self) -> Option<Claim> {
        uuid_claim(&self.uuid)
    }

    fn chosen_uuid(&self) -> Option<uuid::Uuid> {
        self.uuid.parse().ok()
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let (block_size, blocks) = geometry("malloc_volume", self.block_size, self.blocks_count)?;
        self.uuid = site.uuid.to_string();
        Ok(Some(site.registry.plane().malloc(block_size, blocks)?))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

#[tonic::async_trait]
impl MallocVolumeService for Control {
    async fn create_malloc_volume(
        &self,
        request: Request<CreateMallocVolumeRequest>,
    ) -> Result<Response<MallocVolume>, Status> {
        let CreateMallocVolumeRequest { malloc_volume, malloc_volume_id } = request.into_inner();
        self.create("", malloc_volume, &malloc_volume_id).await.map(Response::new)
    }

    async fn delete_malloc_volume(
        &self,
        request: Request<DeleteMallocVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteMallocVolumeRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Malloc, &name, allow_missing).await
    }

    async fn update_malloc_volume(
        &self,
        _request: Request<UpdateMallocVolumeRequest>,
    ) -> Result<Response<MallocVolume>, Status> {
        Err(no_update("UpdateMallocVolume"))
    }

    async fn list_malloc_volumes(
        &self,
        request: Request<ListMallocVolumesRequest>,
    ) -> Result<Response<ListMallocVolumesResponse>, Status> {
        let ListMallocVolumesRequest { page_size, page_token } = request.into_inner();
        let (malloc_volumes, next_page_token) = self.list(None, page_size, &page_token)?;
        Ok(Response::new(ListMallocVolumesResponse { malloc_volumes, next_page_token }))
    }

    async fn get_malloc_volume(
        &self,
        request: Request<GetMallocVolumeRequest>,
    ) -> Result<Response<MallocVolume>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_malloc_volume(
        &self,
        request: Request<StatsMallocVolumeRequest>,
    ) -> Result<Response<StatsMallocVolumeResponse>, Status> {
        let stats = self.stats::<MallocVolume>(&request.into_inner().name).await?;
        Ok(Response::new(StatsMallocVolumeResponse { stats }))
    }
}
