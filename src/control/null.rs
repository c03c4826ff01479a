//! `NullVolumeService`: volumes that drop what is written.

use std::sync::Arc;

use engine::Volume;
use proto::storage::null_volume_service_server::NullVolumeService;
use proto::storage::{
    CreateNullVolumeRequest, DeleteNullVolumeRequest, GetNullVolumeRequest, ListNullVolumesRequest,
    ListNullVolumesResponse, NullVolume, StatsNullVolumeRequest, StatsNullVolumeResponse,
    UpdateNullVolumeRequest,
};
use tonic::{Request, Response, Status};

use super::object::{Claim, Kind, Resource, Site};
use super::plane::Counters;
use super::registry::{Entry, Registry};
use super::secret::Secret;
use super::service::{Control, no_update, volume_counters};
use super::volume::{geometry, uuid, uuid_claim};

impl Resource for NullVolume {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        geometry("null_volume", self.block_size, self.blocks_count)?;
        uuid("null_volume.uuid", &self.uuid).map(drop)
    }

    fn claim(&self) -> Option<Claim> {
        uuid_claim(&self.uuid)
    }

    fn chosen_uuid(&self) -> Option<uuid::Uuid> {
        self.uuid.parse().ok()
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let (block_size, blocks) = geometry("null_volume", self.block_size, self.blocks_count)?;
        self.uuid = site.uuid.to_string();
        Ok(Some(site.registry.plane().null(block_size, blocks)?))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

#[tonic::async_trait]
impl NullVolumeService for Control {
    async fn create_null_volume(
        &self,
        request: Request<CreateNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        let CreateNullVolumeRequest { null_volume, null_volume_id } = request.into_inner();
        self.create("", null_volume, &null_volume_id).await.map(Response::new)
    }

    async fn delete_null_volume(
        &self,
        request: Request<DeleteNullVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNullVolumeRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Null, &name, allow_missing).await
    }

    async fn update_null_volume(
        &self,
        _request: Request<UpdateNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        Err(no_update("UpdateNullVolume"))
    }

    async fn list_null_volumes(
        &self,
        request: Request<ListNullVolumesRequest>,
    ) -> Result<Response<ListNullVolumesResponse>, Status> {
        let ListNullVolumesRequest { page_size, page_token } = request.into_inner();
        let (null_volumes, next_page_token) = self.list(None, page_size, &page_token)?;
        Ok(Response::new(ListNullVolumesResponse { null_volumes, next_page_token }))
    }

    async fn get_null_volume(
        &self,
        request: Request<GetNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_null_volume(
        &self,
        request: Request<StatsNullVolumeRequest>,
    ) -> Result<Response<StatsNullVolumeResponse>, Status> {
        let stats = self.stats::<NullVolume>(&request.into_inner().name).await?;
        Ok(Response::new(StatsNullVolumeResponse { stats }))
    }
}
