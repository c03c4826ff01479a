//! Subsystems.

use std::sync::Arc;

use engine::Volume;
use proto::storage::{NvmeController, NvmeSubsystem, NvmeSubsystemStatus, NvmeTransportType};
use tonic::Status;
use uuid::Uuid;

use super::NAMESPACES;
use crate::control::names;
use crate::control::nqn;
use crate::control::object::{Claim, Declared, Kind, Resource, Site};
use crate::control::plane::{Counters, SubsystemConfig};
use crate::control::registry::{Entry, Registry, internal};
use crate::control::secret::Secret;
use crate::control::service::counters;
use crate::control::volume::invalid;

/// Model number where the client does not give one.
const MODEL: &str = "Isthmus";

impl Resource for NvmeSubsystem {
    fn validate(&mut self, secret: &Secret) -> Result<(), Status> {
        self.status = None;
        let spec = self.spec.get_or_insert_default();
        nqn::check(&spec.nqn)?;
        if !spec.hostnqn.is_empty() {
            nqn::check(&spec.hostnqn)?;
        }
        for (field, value, longest) in
            [("SerialNumber", &spec.serial_number, 20), ("ModelNumber", &spec.model_number, 40)]
        {
            if value.len() > longest {
                let shown = names::shown(value);
                return Err(Status::invalid_argument(format!(
                    "{field} value ({shown}) is too long, have to be between 1 and {longest}"
                )));
            }
            if !value.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                return Err(Status::invalid_argument(format!("{field} value is not printable ASCII")));
            }
        }
        max_namespaces(spec.max_namespaces)?;
        if !secret.is_empty() {
            return Err(Status::unimplemented("nvme_subsystem.spec.psk: TLS is not supported"));
        }
        Ok(())
    }

    fn secret_field(&mut self) -> Option<&mut Vec<u8>> {
        self.spec.as_mut().map(|spec| &mut spec.psk)
    }

    fn claim(&self) -> Option<Claim> {
        self.spec.as_ref().map(|spec| Claim { what: "NQN", value: spec.nqn.clone() })
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let spec = self.spec.get_or_insert_default();
        let or = |value: &str, default: String| if value.is_empty() { default } else { value.to_owned() };
        let (starts, kills) = site.registry.lives();
        let config = SubsystemConfig {
            nqn: spec.nqn.clone(),
            serial: or(&spec.serial_number, serial(site.uuid)),
            model: or(&spec.model_number, MODEL.into()),
            max_namespaces: max_namespaces(spec.max_namespaces)?,
            hostnqn: (!spec.hostnqn.is_empty()).then(|| spec.hostnqn.clone()),
            starts,
            kills,
        };
        site.registry.plane().create_subsystem(names::id(site.name), &config)?;
        let firmware_revision = site.registry.plane().firmware_revision();
        self.status = Some(NvmeSubsystemStatus { firmware_revision, fru_guid: Vec::new() });
        Ok(None)
    }

    fn dismantle(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        Ok(registry.plane().delete_subsystem(names::id(name))?)
    }

    fn observe(&mut self, registry: &Registry, _entry: &Entry) {
        let firmware_revision = registry.plane().firmware_revision();
        self.status = Some(NvmeSubsystemStatus { firmware_revision, fru_guid: Vec::new() });
    }

    fn counters(&self, registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        let namespaces = registry.all(Kind::Namespace, &format!("{}/{NAMESPACES}/", entry.name));
        namespaces.iter().map(|entry| counters::<proto::storage::NvmeNamespace>(registry, entry)).sum()
    }
}

/// Lets another host in, or all, and puts out who may not stay: the one thing that an update may change.
pub(super) fn admit(registry: &Registry, new: &NvmeSubsystem, entry: &Entry) -> Result<(), Status> {
    let old = NvmeSubsystem::of(&entry.object).ok_or_else(|| internal("an object of another kind"))?;
    let hostnqn = new.spec.as_ref().map(|spec| spec.hostnqn.as_str()).unwrap_or_default();
    let mut same = old.clone();
    same.status.clone_from(&new.status);
    if let Some(spec) = &mut same.spec {
        hostnqn.clone_into(&mut spec.hostnqn);
    }
    if let Some(field) = registry.schema().difference(&same, new)? {
        return Err(Status::unimplemented(format!("nvme_subsystem.{field} cannot be changed")));
    }
    let controllers = format!("{}/{}/", entry.name, Kind::Controller.collection());
    let pcie = |entry: &Arc<Entry>| {
        NvmeController::of(&entry.object)
            .and_then(|controller| controller.spec.as_ref())
            .is_some_and(|spec| spec.trtype() == NvmeTransportType::Pcie)
    };
    if !hostnqn.is_empty() && registry.all(Kind::Controller, &controllers).iter().any(pcie) {
        return Err(Status::invalid_argument("hostnqn for subsystem is not supported for vfiouser"));
    }
    let hostnqn = (!hostnqn.is_empty()).then_some(hostnqn);
    Ok(registry.plane().set_host(names::id(&entry.name), hostnqn)?)
}

/// The most namespaces that are asked for; `None` for zero.
fn max_namespaces(value: i64) -> Result<Option<u32>, Status> {
    let value = u32::try_from(value);
    let value =
        value.map_err(|_| invalid("nvme_subsystem.spec.max_namespaces", "must be 0 to 4294967295"))?;
    Ok((value > 0).then_some(value))
}

/// A serial number that stays with the subsystem: 20 digits of its identity.
fn serial(uuid: Uuid) -> String {
    uuid.simple().encode_upper(&mut Uuid::encode_buffer()).chars().take(20).collect()
}
