//! `MiddleendEncryptionService`: volumes encrypted by AES-XTS.

use std::sync::Arc;

use engine::Volume;
use proto::storage::EncryptionType;
use proto::storage::middleend_encryption_service_server::MiddleendEncryptionService;
use proto::storage::{
    CreateEncryptedVolumeRequest, DeleteEncryptedVolumeRequest, EncryptedVolume, GetEncryptedVolumeRequest,
    ListEncryptedVolumesRequest, ListEncryptedVolumesResponse, StatsEncryptedVolumeRequest,
    StatsEncryptedVolumeResponse, UpdateEncryptedVolumeRequest,
};
use tonic::{Request, Response, Status};

use super::object::{Kind, Resource, Site};
use super::plane::Counters;
use super::registry::{Entry, Registry};
use super::secret::Secret;
use super::service::{Control, no_update, volume_counters};

impl Resource for EncryptedVolume {
    fn validate(&mut self, secret: &Secret) -> Result<(), Status> {
        let expected = match self.cipher() {
            EncryptionType::AesXts128 => 32,
            EncryptionType::AesXts256 => 64,
            _ => {
                let message = "only AES_XTS_256 and AES_XTS_128 are supported";
                return Err(Status::invalid_argument(message));
            }
        };
        let provided = secret.bytes().len();
        if provided != expected {
            let (expected, provided) = (expected * 8, provided.saturating_mul(8));
            let message = format!("expected key size {expected}b, provided size {provided}b");
            return Err(Status::invalid_argument(message));
        }
        Ok(())
    }

    fn secret_field(&mut self) -> Option<&mut Vec<u8>> {
        Some(&mut self.key)
    }

    fn volume_ref(&self) -> Option<&str> {
        Some(&self.volume_name_ref)
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        Ok(Some(site.registry.plane().crypt(site.below()?, site.secret.bytes())?))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

#[tonic::async_trait]
impl MiddleendEncryptionService for Control {
    async fn create_encrypted_volume(
        &self,
        request: Request<CreateEncryptedVolumeRequest>,
    ) -> Result<Response<EncryptedVolume>, Status> {
        let CreateEncryptedVolumeRequest { encrypted_volume, encrypted_volume_id } = request.into_inner();
        self.create("", encrypted_volume, &encrypted_volume_id).await.map(Response::new)
    }

    async fn delete_encrypted_volume(
        &self,
        request: Request<DeleteEncryptedVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteEncryptedVolumeRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Encrypted, &name, allow_missing).await
    }

    async fn update_encrypted_volume(
        &self,
        _request: Request<UpdateEncryptedVolumeRequest>,
    ) -> Result<Response<EncryptedVolume>, Status> {
        Err(no_update("UpdateEncryptedVolume"))
    }

    async fn list_encrypted_volumes(
        &self,
        request: Request<ListEncryptedVolumesRequest>,
    ) -> Result<Response<ListEncryptedVolumesResponse>, Status> {
        let ListEncryptedVolumesRequest { parent, page_size, page_token } = request.into_inner();
        let (encrypted_volumes, next_page_token) = self.list(Some(&parent), page_size, &page_token)?;
        Ok(Response::new(ListEncryptedVolumesResponse { encrypted_volumes, next_page_token }))
    }

    async fn get_encrypted_volume(
        &self,
        request: Request<GetEncryptedVolumeRequest>,
    ) -> Result<Response<EncryptedVolume>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_encrypted_volume(
        &self,
        request: Request<StatsEncryptedVolumeRequest>,
    ) -> Result<Response<StatsEncryptedVolumeResponse>, Status> {
        let stats = self.stats::<EncryptedVolume>(&request.into_inner().name).await?;
        Ok(Response::new(StatsEncryptedVolumeResponse { stats }))
    }
}
