//! Namespaces of remote controllers. One that a volume or namespace uses is an object of its own, so that what its
//! users were told of it is kept.

use std::sync::Arc;

use engine::Volume;
use proto::storage::NvmeRemoteNamespace;
use tonic::Status;
use uuid::Uuid;

use crate::control::names;
use crate::control::object::{Declared, Kind, Resource, Site};
use crate::control::plane::{Counters, Failure, Promised, RemoteNamespace};
use crate::control::registry::{Entry, Registry, internal};
use crate::control::secret::Secret;
use crate::control::service::volume_counters;

impl Resource for NvmeRemoteNamespace {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        Err(Status::invalid_argument("namespaces of a remote controller are found, not declared"))
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let (plane, controller) = (site.registry.plane(), names::id(names::parent(site.name)));
        let nsid = self.nsid.try_into().map_err(internal)?;
        if let Some(limits) = site.promise {
            let promised = Promised { identity: identity(self)?, limits: limits.clone() };
            return Ok(Some(plane.remote_volume(controller, nsid, Some(&promised))?));
        }
        let found = plane.remote_namespaces(controller)?.into_iter().find(|found| found.nsid == nsid);
        let found = found.ok_or_else(|| Status::not_found(format!("unable to find volume {}", site.name)))?;
        let volume = plane.remote_volume(controller, nsid, None)?;
        *self = message(names::parent(site.name), &found)?;
        Ok(Some(volume))
    }

    fn counters(&self, _registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        volume_counters(entry)
    }
}

/// The namespaces of a remote controller by number: those that it has, or those that are used while it was never
/// connected.
pub(super) fn all(registry: &Registry, controller: &str) -> Result<Vec<NvmeRemoteNamespace>, Status> {
    registry.find(Kind::Remote, controller)?;
    let mut all = match registry.plane().remote_namespaces(names::id(controller)) {
        Ok(found) => found.iter().map(|found| message(controller, found)).collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.failure == Failure::Unavailable => {
            let used = registry.all(Kind::RemoteNamespace, &format!("{controller}/"));
            used.iter().filter_map(|entry| NvmeRemoteNamespace::of(&entry.object).cloned()).collect()
        }
        Err(error) => return Err(error.into()),
    };
    all.sort_by_key(|namespace| namespace.nsid);
    Ok(all)
}

fn message(controller: &str, found: &RemoteNamespace) -> Result<NvmeRemoteNamespace, Status> {
    let set = |bytes: [u8; 16]| (bytes != [0; 16]).then(|| Uuid::from_bytes(bytes));
    Ok(NvmeRemoteNamespace {
        name: format!("{controller}/{}/{}", Kind::RemoteNamespace.collection(), found.nsid),
        nsid: found.nsid.try_into().map_err(internal)?,
        nguid: set(found.nguid).map(|nguid| nguid.simple().to_string()).unwrap_or_default(),
        eui64: i64::from_be_bytes(found.eui64),
        uuid: set(found.uuid).map(|uuid| uuid.to_string()).unwrap_or_default(),
    })
}

fn identity(namespace: &NvmeRemoteNamespace) -> Result<RemoteNamespace, Status> {
    let bytes = |text: &str| match text {
        "" => Ok([0; 16]),
        text => Uuid::try_parse(text).map(Uuid::into_bytes).map_err(internal),
    };
    Ok(RemoteNamespace {
        nsid: namespace.nsid.try_into().map_err(internal)?,
        uuid: bytes(&namespace.uuid)?,
        nguid: bytes(&namespace.nguid)?,
        eui64: namespace.eui64.to_be_bytes(),
    })
}
