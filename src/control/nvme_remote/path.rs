//! Paths to remote controllers.

use std::sync::Arc;

use engine::Volume;
use proto::storage::{NvmePath, NvmeRemoteController, NvmeTransportType};
use tonic::Status;
use uuid::Uuid;

use super::controller;
use crate::control::object::{Declared, Kind, Resource, Site};
use crate::control::plane::{Counters, PathConfig};
use crate::control::registry::{Entry, Registry};
use crate::control::secret::Secret;
use crate::control::volume::invalid;
use crate::control::{address, names, nqn};

impl Resource for NvmePath {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        match self.trtype() {
            NvmeTransportType::Tcp => config(self, Uuid::nil()).map(drop),
            NvmeTransportType::Pcie if self.fabrics.is_some() => {
                Err(Status::invalid_argument("fabrics field is not allowed for pcie transport"))
            }
            NvmeTransportType::Pcie => Ok(()),
            other => Err(address::unsupported_transport(other)),
        }
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let controller = site.registry.find(Kind::Remote, names::parent(site.name))?;
        if self.trtype() == NvmeTransportType::Pcie {
            let over_tcp =
                NvmeRemoteController::of(&controller.object).is_some_and(|remote| remote.tcp.is_some());
            return Err(match over_tcp {
                true => Status::failed_precondition("pcie transport on tcp controller is not allowed"),
                false => Status::unimplemented("nvme_path.trtype: PCI Express paths are not supported"),
            });
        }
        if let Some(other) = others(site.registry, site.name).first() {
            return Err(Status::unimplemented(format!(
                "{} has the path {}, and several paths are not supported",
                controller.name, other.name
            )));
        }
        let config = config(self, site.registry.host_id())?;
        site.registry.plane().add_path(names::id(&controller.name), names::id(site.name), &config)?;
        Ok(None)
    }

    fn dismantle(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        Ok(registry.plane().remove_path(names::id(names::parent(name)), names::id(name))?)
    }

    fn check_delete(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        let volumes = registry.all(Kind::RemoteNamespace, &format!("{}/", names::parent(name)));
        let Some(volume) = volumes.first().filter(|_| others(registry, name).is_empty()) else {
            return Ok(());
        };
        let users = registry.users(&volume.name);
        let user = users.first().map_or(&volume.name, |user| &user.name);
        Err(Status::failed_precondition(format!(
            "{name} is the last path to {}, which {user} uses",
            volume.name
        )))
    }

    fn counters(&self, registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        controller::volumes(registry, names::parent(&entry.name))
    }
}

/// The other paths to the same controller.
fn others(registry: &Registry, name: &str) -> Vec<Arc<Entry>> {
    let mut paths = registry.all(Kind::Path, &format!("{}/", names::parent(name)));
    paths.retain(|entry| entry.name != name);
    paths
}

fn config(path: &NvmePath, host_id: Uuid) -> Result<PathConfig, Status> {
    let fabrics = path
        .fabrics
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("missing required field for fabrics transports: fabrics"))?;
    let port =
        |field: &str, value: i64| address::port(&format!("nvme_path.fabrics.{field}"), &value.to_string());
    nqn::check(&fabrics.subnqn)?;
    if !fabrics.hostnqn.is_empty() {
        nqn::check(&fabrics.hostnqn)?;
    }
    let address = address::ip("nvme_path.traddr", &path.traddr)?;
    let remote = address::socket(
        "nvme_path.fabrics",
        &path.traddr,
        port("trsvcid", fabrics.trsvcid)?,
        fabrics.adrfam(),
    )?;
    let source = match fabrics.source_traddr.as_str() {
        "" => None,
        text => Some(address::ip("nvme_path.fabrics.source_traddr", text)?),
    };
    if source.is_some_and(|source| source.is_ipv4() != address.is_ipv4()) {
        return Err(invalid("nvme_path.fabrics.source_traddr", "of another family than the address"));
    }
    let source_port = match fabrics.source_trsvcid {
        0 => None,
        value => Some(port("source_trsvcid", value)?),
    };
    let hostnqn = match fabrics.hostnqn.as_str() {
        "" => format!("nqn.2014-08.org.nvmexpress:uuid:{host_id}"),
        hostnqn => hostnqn.to_owned(),
    };
    Ok(PathConfig {
        address: remote,
        subnqn: fabrics.subnqn.clone(),
        hostnqn,
        hostid: host_id.into_bytes(),
        source,
        source_port,
    })
}
