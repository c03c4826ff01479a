//! `MiddleendQosVolumeService`: volumes whose rate is limited.

use std::sync::Arc;

use engine::Volume;
use proto::storage::middleend_qos_volume_service_server::MiddleendQosVolumeService;
use proto::storage::{
    CreateQosVolumeRequest, DeleteQosVolumeRequest, GetQosVolumeRequest, ListQosVolumesRequest,
    ListQosVolumesResponse, QosLimit, QosVolume, StatsQosVolumeRequest, StatsQosVolumeResponse,
    UpdateQosVolumeRequest,
};
use tonic::{Request, Response, Status};

use super::object::{Kind, Resource, Site};
use super::plane::{Counters, Maxima};
use super::registry::{Entry, Registry};
use super::secret::Secret;
use super::service::{Control, volume_counters};

/// Largest value of a limit: beyond it, operations or bytes a second do not fit.
const LARGEST: u64 = 1 << 40;

impl Resource for QosVolume {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        maxima(self).map(drop)
    }

    fn volume_ref(&self) -> Option<&str> {
        Some(&self.volume_name_ref)
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        Ok(Some(site.registry.plane().qos(site.below()?, &maxima(self)?)?))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

/// The maxima that a volume asks for.
fn maxima(volume: &QosVolume) -> Result<Maxima, Status> {
    let limits = volume.limits.unwrap_or_default();
    if limits.min.is_some_and(|min| min != QosLimit::default()) {
        return Err(Status::unimplemented("QoS volume min_limit is not supported"));
    }
    let max = limits.max.unwrap_or_default();
    let rate = |field: &str, value: i64| {
        let refused = |why: &str| Status::invalid_argument(format!("QoS volume max_limit {field} {why}"));
        let value = u64::try_from(value).map_err(|_| refused("cannot be negative"))?;
        if value > LARGEST { Err(refused("is too large")) } else { Ok(value) }
    };
    let maxima = Maxima {
        rd_iops_kiops: rate("rd_iops_kiops", max.rd_iops_kiops)?,
        wr_iops_kiops: rate("wr_iops_kiops", max.wr_iops_kiops)?,
        rw_iops_kiops: rate("rw_iops_kiops", max.rw_iops_kiops)?,
        rd_bandwidth_mbs: rate("rd_bandwidth_mbs", max.rd_bandwidth_mbs)?,
        wr_bandwidth_mbs: rate("wr_bandwidth_mbs", max.wr_bandwidth_mbs)?,
        rw_bandwidth_mbs: rate("rw_bandwidth_mbs", max.rw_bandwidth_mbs)?,
    };
    if maxima == Maxima::default() {
        return Err(Status::invalid_argument("QoS volume max_limit should set limit"));
    }
    Ok(maxima)
}

#[tonic::async_trait]
impl MiddleendQosVolumeService for Control {
    async fn create_qos_volume(
        &self,
        request: Request<CreateQosVolumeRequest>,
    ) -> Result<Response<QosVolume>, Status> {
        let CreateQosVolumeRequest { qos_volume, qos_volume_id } = request.into_inner();
        self.create("", qos_volume, &qos_volume_id).await.map(Response::new)
    }

    async fn delete_qos_volume(
        &self,
        request: Request<DeleteQosVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteQosVolumeRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Qos, &name, allow_missing).await
    }

    async fn update_qos_volume(
        &self,
        request: Request<UpdateQosVolumeRequest>,
    ) -> Result<Response<QosVolume>, Status> {
        let UpdateQosVolumeRequest { qos_volume, update_mask, allow_missing } = request.into_inner();
        self.update(qos_volume, update_mask, allow_missing, |registry, new, volume| {
            Ok(registry.plane().set_maxima(volume, &maxima(new)?)?)
        })
        .await
    }

    async fn list_qos_volumes(
        &self,
        request: Request<ListQosVolumesRequest>,
    ) -> Result<Response<ListQosVolumesResponse>, Status> {
        let ListQosVolumesRequest { parent, page_size, page_token } = request.into_inner();
        let (qos_volumes, next_page_token) = self.list(Some(&parent), page_size, &page_token)?;
        Ok(Response::new(ListQosVolumesResponse { qos_volumes, next_page_token }))
    }

    async fn get_qos_volume(
        &self,
        request: Request<GetQosVolumeRequest>,
    ) -> Result<Response<QosVolume>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_qos_volume(
        &self,
        request: Request<StatsQosVolumeRequest>,
    ) -> Result<Response<StatsQosVolumeResponse>, Status> {
        let stats = self.stats::<QosVolume>(&request.into_inner().name).await?;
        Ok(Response::new(StatsQosVolumeResponse { stats }))
    }
}
