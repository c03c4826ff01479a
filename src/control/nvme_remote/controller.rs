//! Remote controllers.

use std::sync::Arc;

use engine::Volume;
use proto::storage::NvmeRemoteController;
use tonic::Status;

use crate::control::names;
use crate::control::object::{Kind, Resource, Site};
use crate::control::plane::{Counters, RemoteConfig};
use crate::control::registry::{Entry, Registry};
use crate::control::secret::Secret;
use crate::control::service::volume_counters;
use crate::control::volume::invalid;

impl Resource for NvmeRemoteController {
    fn validate(&mut self, secret: &Secret) -> Result<(), Status> {
        if !secret.is_empty() {
            return Err(Status::unimplemented("nvme_remote_controller.tcp.psk: TLS is not supported"));
        }
        config(self).map(drop)
    }

    fn secret_field(&mut self) -> Option<&mut Vec<u8>> {
        self.tcp.as_mut().map(|tcp| &mut tcp.psk)
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        site.registry.plane().create_remote(names::id(site.name), &config(self)?)?;
        Ok(None)
    }

    fn dismantle(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        Ok(registry.plane().delete_remote(names::id(name))?)
    }

    fn counters(&self, registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volumes(registry, &entry.name)
    }
}

/// Counters of all volumes of a remote controller.
pub(super) fn volumes(registry: &Registry, controller: &str) -> Result<Counters, Status> {
    let namespaces = registry.all(Kind::RemoteNamespace, &format!("{controller}/"));
    namespaces.iter().filter(|entry| entry.is_built()).map(|entry| volume_counters(entry)).sum()
}

fn config(controller: &NvmeRemoteController) -> Result<RemoteConfig, Status> {
    let NvmeRemoteController { io_queues_count, queue_size, tcp, .. } = controller;
    let number = |field: &str, value: i64, least: u16| {
        let value = u16::try_from(value).ok().filter(|value| *value == 0 || *value >= least);
        let wrong =
            || invalid(&format!("nvme_remote_controller.{field}"), format!("must be 0, or {least} to 65535"));
        value.map(|value| (value > 0).then_some(value)).ok_or_else(wrong)
    };
    let (hdgst, ddgst) = tcp.as_ref().map_or((false, false), |tcp| (tcp.hdgst, tcp.ddgst));
    Ok(RemoteConfig {
        hdgst,
        ddgst,
        io_queues: number("io_queues_count", *io_queues_count, 1)?,
        queue_size: number("queue_size", *queue_size, 2)?,
    })
}
