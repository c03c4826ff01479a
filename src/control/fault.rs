//! `FaultVolumeService`: volumes that misbehave as they are told.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use engine::{IoError, Volume};
use proto::isthmus::fault_rule::Effect as AskedEffect;
use proto::isthmus::fault_volume_service_server::FaultVolumeService;
use proto::isthmus::{
    CreateFaultVolumeRequest, CutPowerRequest, DeleteFaultVolumeRequest, FaultError, FaultOperation,
    FaultRule, FaultVolume, GetFaultVolumeRequest, ListFaultVolumesRequest, ListFaultVolumesResponse,
    StatsFaultVolumeRequest, StatsFaultVolumeResponse, UpdateFaultVolumeRequest,
};
use tonic::{Request, Response, Status};

use super::names;
use super::object::{Kind, Resource, Site};
use super::plane::Counters;
use super::plane::fault::{Effect, Faults, Kind as Operation, Rule};
use super::registry::{Entry, Registry};
use super::secret::Secret;
use super::service::{Control, volume_counters};
use super::volume::invalid;

/// Longest delay: longer ones are nothing that a host waits for.
const LONGEST: Duration = Duration::from_secs(3600);
/// Most rules of a volume: each I/O is held against all of them.
const MOST_RULES: usize = 256;

impl Resource for FaultVolume {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        faults(self).map(drop)
    }

    fn volume_ref(&self) -> Option<&str> {
        Some(&self.volume_name_ref)
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        // Only one that is built again has had a cache in another process.
        let lost = site.promise.is_some() && site.registry.was_killed();
        Ok(Some(site.registry.plane().fault(site.below()?, faults(self)?, lost)?))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

/// The faults that a volume asks for.
fn faults(volume: &FaultVolume) -> Result<Faults, Status> {
    if volume.rules.len() > MOST_RULES {
        return Err(invalid("fault_volume.rules", format!("more than {MOST_RULES}")));
    }
    let rules = volume.rules.iter().enumerate().map(|(index, asked)| {
        rule(asked).map_err(|(field, why)| invalid(&format!("fault_volume.rules[{index}].{field}"), why))
    });
    let rules = rules.collect::<Result<_, _>>()?;
    Ok(Faults { volatile_cache: volume.volatile_cache, rules, seed: volume.seed })
}

/// A rule, or the field that is wrong and why.
fn rule(asked: &FaultRule) -> Result<Rule, (&'static str, &'static str)> {
    // Not the getter, which passes over numbers that it does not know.
    let kinds = asked.operations.iter().map(|kind| operation(FaultOperation::try_from(*kind).ok()?));
    let kinds: Option<Vec<Operation>> = kinds.collect();
    let probability = asked.probability.unwrap_or(1.0);
    if !(probability > 0.0 && probability <= 1.0) {
        return Err(("probability", "must be above 0 and at most 1"));
    }
    Ok(Rule {
        kinds: kinds.ok_or(("operations", "not an operation"))?,
        lbas: blocks(asked.first_block, asked.blocks_count),
        skip: asked.skip,
        times: if asked.times == 0 { u64::MAX } else { asked.times },
        probability,
        effect: effect(asked)?,
    })
}

fn blocks(first: u64, count: u64) -> Range<u64> {
    first..if count == 0 { u64::MAX } else { first.saturating_add(count) }
}

fn operation(asked: FaultOperation) -> Option<Operation> {
    match asked {
        FaultOperation::Unspecified => None,
        FaultOperation::Read => Some(Operation::Read),
        FaultOperation::Write => Some(Operation::Write),
        FaultOperation::Flush => Some(Operation::Flush),
        FaultOperation::WriteZeroes => Some(Operation::WriteZeroes),
        FaultOperation::Unmap => Some(Operation::Unmap),
        FaultOperation::Compare => Some(Operation::Compare),
    }
}

fn effect(asked: &FaultRule) -> Result<Effect, (&'static str, &'static str)> {
    match asked.effect {
        Some(AskedEffect::Error(asked)) => match FaultError::try_from(asked).ok().and_then(error) {
            Some(error) => Ok(Effect::Fail(error)),
            None => Err(("error", "not an error")),
        },
        Some(AskedEffect::Delay(delay)) => match Duration::try_from(delay) {
            Ok(delay) if delay <= LONGEST => Ok(Effect::Delay(delay)),
            _ => Err(("delay", "must be 0 to 3600 seconds")),
        },
        Some(AskedEffect::Ignored(true)) => Ok(Effect::Ignore),
        Some(AskedEffect::Ignored(false)) => Err(("ignored", "must be true")),
        None => Err(("error", "missing: a rule has an error, a delay, or ignores")),
    }
}

fn error(asked: FaultError) -> Option<IoError> {
    match asked {
        FaultError::Unspecified => None,
        FaultError::ReadFault => Some(IoError::ReadFault),
        FaultError::WriteFault => Some(IoError::WriteFault),
        FaultError::Transient => Some(IoError::Transient),
        FaultError::Transfer => Some(IoError::Transfer),
        FaultError::NoSpace => Some(IoError::NoSpace),
        FaultError::ReadOnly => Some(IoError::ReadOnly),
        FaultError::Failed => Some(IoError::Failed),
    }
}

#[tonic::async_trait]
impl FaultVolumeService for Control {
    async fn create_fault_volume(
        &self,
        request: Request<CreateFaultVolumeRequest>,
    ) -> Result<Response<FaultVolume>, Status> {
        let CreateFaultVolumeRequest { fault_volume, fault_volume_id } = request.into_inner();
        self.create("", fault_volume, &fault_volume_id).await.map(Response::new)
    }

    async fn delete_fault_volume(
        &self,
        request: Request<DeleteFaultVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteFaultVolumeRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Fault, &name, allow_missing).await
    }

    async fn update_fault_volume(
        &self,
        request: Request<UpdateFaultVolumeRequest>,
    ) -> Result<Response<FaultVolume>, Status> {
        let UpdateFaultVolumeRequest { fault_volume, update_mask, allow_missing } = request.into_inner();
        self.update(fault_volume, update_mask, allow_missing, |registry, new, volume| {
            Ok(registry.plane().set_faults(volume, faults(new)?)?)
        })
        .await
    }

    async fn list_fault_volumes(
        &self,
        request: Request<ListFaultVolumesRequest>,
    ) -> Result<Response<ListFaultVolumesResponse>, Status> {
        let ListFaultVolumesRequest { parent, page_size, page_token } = request.into_inner();
        let (fault_volumes, next_page_token) = self.list(Some(&parent), page_size, &page_token)?;
        Ok(Response::new(ListFaultVolumesResponse { fault_volumes, next_page_token }))
    }

    async fn get_fault_volume(
        &self,
        request: Request<GetFaultVolumeRequest>,
    ) -> Result<Response<FaultVolume>, Status> {
        self.get(&request.into_inner().name)
    }

    async fn stats_fault_volume(
        &self,
        request: Request<StatsFaultVolumeRequest>,
    ) -> Result<Response<StatsFaultVolumeResponse>, Status> {
        let StatsFaultVolumeRequest { name } = request.into_inner();
        let stats = self.stats::<FaultVolume>(&name).await?;
        let unflushed_blocks =
            self.on_fault_volume(name, |registry, volume| Ok(registry.plane().unflushed(volume)?));
        Ok(Response::new(StatsFaultVolumeResponse { stats, unflushed_blocks: unflushed_blocks.await? }))
    }

    async fn cut_power(&self, request: Request<CutPowerRequest>) -> Result<Response<()>, Status> {
        let CutPowerRequest { name, seed } = request.into_inner();
        let cut = self
            .on_fault_volume(name, move |registry, volume| Ok(registry.plane().cut_power(volume, seed)?));
        cut.await.map(Response::new)
    }
}

impl Control {
    /// Does something with a fault volume that stands in the data plane.
    async fn on_fault_volume<T: Send + 'static>(
        &self,
        name: String,
        call: impl FnOnce(&Registry, &Arc<dyn Volume>) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let name = names::canonical(Kind::Fault, &name)?;
        self.run(move |registry| call(registry, &registry.find(Kind::Fault, &name)?.volume()?)).await
    }
}
