//! `AioVolumeService`: volumes on files and block devices.

use std::path::Path;
use std::sync::Arc;

use engine::Volume;
use proto::storage::aio_volume_service_server::AioVolumeService;
use proto::storage::{
    AioVolume, CreateAioVolumeRequest, DeleteAioVolumeRequest, GetAioVolumeRequest, ListAioVolumesRequest,
    ListAioVolumesResponse, StatsAioVolumeRequest, StatsAioVolumeResponse, UpdateAioVolumeRequest,
};
use tonic::{Request, Response, Status};

use super::object::{Claim, Kind, Resource, Site};
use super::plane::Counters;
use super::registry::{Entry, Registry, internal};
use super::secret::Secret;
use super::service::{Control, no_update, volume_counters};
use super::volume::{block_size, geometry, invalid, uuid, uuid_claim};

/// Bytes in a block where the client does not say.
const BLOCK_SIZE: i64 = 512;

impl Resource for AioVolume {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        if self.block_size != 0 {
            block_size("aio_volume.block_size", self.block_size)?;
        }
        if self.blocks_count != 0 {
            geometry("aio_volume", self.block_size.max(BLOCK_SIZE), self.blocks_count)?;
        }
        if self.filename.contains('\0') || self.filename.len() > 4095 {
            return Err(invalid("aio_volume.filename", "not a file name"));
        }
        uuid("aio_volume.uuid", &self.uuid).map(drop)
    }

    fn claim(&self) -> Option<Claim> {
        uuid_claim(&self.uuid)
    }

    fn chosen_uuid(&self) -> Option<uuid::Uuid> {
        self.uuid.parse().ok()
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let asked = if self.block_size == 0 { BLOCK_SIZE } else { self.block_size };
        let size = block_size("aio_volume.block_size", asked)?;
        let blocks = u64::try_from(self.blocks_count).map_err(internal)?;
        let volume = site.registry.plane().aio(Path::new(&self.filename), size, blocks)?;
        let limits = volume.limits();
        self.block_size = limits.block_size.into();
        self.blocks_count = limits.blocks.try_into().map_err(internal)?;
        self.uuid = site.uuid.to_string();
        Ok(Some(volume))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

#[tonic::async_trait]
impl AioVolumeService for Control {
    async fn create_aio_volume(
        &self,
        request: Request<CreateAioVolumeRequest>,
    ) -> Result<Response<AioVolume>, Status> {
        let CreateAioVolumeRequest { aio_volume, aio_volume_id } = request.into_inner();
        self.create("", aio_volume, &aio_volume_id).await.map(Response::new)
    }

    async fn delete_aio_volume(
        &self,
        request: Request<DeleteAioVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteAioVolumeRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Aio, &name, allow_missing).await
    }

    async fn update_aio_volume(
        &self,
        _request: Request<UpdateAioVolumeRequest>,
    ) -> Result<Response<AioVolume>, Status> {
        Err(no_update("UpdateAioVolume"))
    }

    async fn list_aio_volumes(
        &self,
        request: Request<ListAioVolumesRequest>,
    ) -> Result<Response<ListAioVolumesResponse>, Status> {
        let ListAioVolumesRequest { page_size, page_token } = request.into_inner();
        let (aio_volumes, next_page_token) = self.list(None, page_size, &page_token)?;
        Ok(Response::new(ListAioVolumesResponse { aio_volumes, next_page_token }))
    }

    async fn get_aio_volume(
        &self,
        request: Request<GetAioVolumeRequest>,
    ) -> Result<Response<AioVolume>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_aio_volume(
        &self,
        request: Request<StatsAioVolumeRequest>,
    ) -> Result<Response<StatsAioVolumeResponse>, Status> {
        let stats = self.stats::<AioVolume>(&request.into_inner().name).await?;
        Ok(Response::new(StatsAioVolumeResponse { stats }))
    }
}
