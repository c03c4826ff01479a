//! Namespaces.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::Volume;
use proto::storage::nvme_namespace_status::{OperState, State};
use proto::storage::{NvmeNamespace, NvmeNamespaceStatus, NvmeRemoteNamespace};
use tonic::Status;
use uuid::Uuid;

use super::NAMESPACES;
use crate::control::names;
use crate::control::object::{Declared, Kind, Object, Resource, Site};
use crate::control::plane::{Counters, NamespaceConfig};
use crate::control::registry::{Entry, Registry, internal};
use crate::control::secret::Secret;
use crate::control::volume::{invalid, uuid};

impl Resource for NvmeNamespace {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        self.status = None;
        let spec = self.spec.get_or_insert_default();
        if spec.host_nsid < 0 {
            return Err(invalid("nvme_namespace.spec.host_nsid", "must not be negative"));
        }
        uuid("nvme_namespace.spec.uuid", &spec.uuid)?;
        nguid(&spec.nguid).map(drop)
    }

    fn volume_ref(&self) -> Option<&str> {
        self.spec.as_ref().map(|spec| spec.volume_name_ref.as_str())
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let spec = self.spec.get_or_insert_default();
        let volume = site.below()?;
        let nsid = free_nsid(site, spec.host_nsid)?;
        let uuid = uuid("nvme_namespace.spec.uuid", &spec.uuid)?;
        let uuid = uuid.unwrap_or_else(|| site.below.as_ref().map_or(site.uuid, |below| identity(below)));
        let namespace = NamespaceConfig {
            nsid: nsid.try_into().map_err(internal)?,
            uuid: uuid.into_bytes(),
            nguid: nguid(&spec.nguid)?,
            eui64: spec.eui64.to_be_bytes(),
            volume,
            persist: Some(site.registry.persist(site.uuid)),
            hidden: site.registry.is_masked(site.name),
        };
        site.registry.plane().add_namespace(subsystem(site.name), &namespace)?;
        (spec.host_nsid, spec.uuid) = (nsid, uuid.to_string());
        let (state, oper_state) = (State::Enabled.into(), OperState::Online.into());
        self.status = Some(NvmeNamespaceStatus { state, oper_state });
        Ok(None)
    }

    fn dismantle(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        Ok(registry.plane().remove_namespace(subsystem(name), self.nsid()?)?)
    }

    fn observe(&mut self, registry: &Registry, entry: &Entry) {
        let oper_state = if is_online(registry, entry) { OperState::Online } else { OperState::Offline };
        let state = if entry.is_built() { State::Enabled } else { State::Disabled };
        self.status = Some(NvmeNamespaceStatus { state: state.into(), oper_state: oper_state.into() });
    }

    fn counters(&self, registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        if !entry.is_built() {
            return Ok(Counters::default());
        }
        Ok(registry.plane().namespace_counters(subsystem(&entry.name), self.nsid()?)?)
    }
}

trait Nsid {
    fn nsid(&self) -> Result<u32, Status>;
}

impl Nsid for NvmeNamespace {
    fn nsid(&self) -> Result<u32, Status> {
        self.spec.as_ref().map_or(0, |spec| spec.host_nsid).try_into().map_err(internal)
    }
}

/// Where a namespace is: its subsystem's identifier, and its NSID.
pub(in crate::control) fn place(entry: &Entry) -> Result<(&str, u32), Status> {
    let namespace = NvmeNamespace::of(&entry.object).ok_or_else(|| internal("an object of another kind"))?;
    Ok((subsystem(&entry.name), namespace.nsid()?))
}

/// The subsystem's identifier in a namespace's name.
fn subsystem(name: &str) -> &str {
    names::id(names::parent(name))
}

/// The NSID that is asked for, or the first free one. The subsystem's name is held meanwhile.
fn free_nsid(site: &Site<'_>, asked: i32) -> Result<i32, Status> {
    let siblings = format!("{}/{NAMESPACES}/", names::parent(site.name));
    let siblings = site.registry.all(Kind::Namespace, &siblings);
    let others = siblings.iter().filter(|entry| entry.name != site.name);
    let nsid = |entry: &Arc<Entry>| Some(NvmeNamespace::of(&entry.object)?.spec.as_ref()?.host_nsid);
    if asked == 0 {
        let used: BTreeSet<i32> = others.filter_map(nsid).collect();
        return (1..i32::MAX).find(|nsid| !used.contains(nsid)).ok_or_else(|| internal("no NSID is free"));
    }
    let owner = others.into_iter().find(|entry| nsid(entry) == Some(asked));
    owner.map_or(Ok(asked), |owner| {
        let message = format!("nvme_namespace.spec.host_nsid: {asked} is in use by {}", owner.name);
        Err(Status::already_exists(message))
    })
}

/// The identity of a volume: a remote namespace's own UUID, if it has one.
fn identity(below: &Entry) -> Uuid {
    let remote = NvmeRemoteNamespace::of(&below.object).and_then(|remote| Uuid::try_parse(&remote.uuid).ok());
    remote.unwrap_or(below.uuid)
}

/// Whether everything that an object needs is there, down to the connections of remote controllers.
fn is_online(registry: &Registry, entry: &Entry) -> bool {
    let connected = match &entry.object {
        Object::RemoteNamespace(_) => {
            registry.plane().remote_connected(names::id(names::parent(&entry.name)))
        }
        _ => true,
    };
    let below = || entry.uses().iter().filter_map(|used| registry.entry(used));
    entry.is_built() && connected && below().all(|below| is_online(registry, &below))
}

/// An NGUID of 32 hexadecimal digits with or without dashes; zeroes for an empty one.
fn nguid(text: &str) -> Result<[u8; 16], Status> {
    if text.is_empty() {
        return Ok([0; 16]);
    }
    let parsed = Uuid::try_parse(text).ok().filter(|nguid| !nguid.is_nil() && text.len() <= 36);
    let wrong = || invalid("nvme_namespace.spec.nguid", "not 32 hexadecimal digits, with or without dashes");
    parsed.map(Uuid::into_bytes).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::nguid;

    #[test]
    fn nguids_may_have_dashes() {
        let bytes = nguid("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb").unwrap();
        assert_eq!(bytes[..4], [0x1b, 0x4e, 0x28, 0xba]);
        assert_eq!(nguid("1b4e28ba2fa111d2883fb9a761bde3fb").unwrap(), bytes);
        assert_eq!(nguid("").unwrap(), [0; 16]);
        for wrong in ["1b4e", "zz4e28ba2fa111d2883fb9a761bde3fb", "00000000000000000000000000000000"] {
            assert!(nguid(wrong).unwrap_err().message().starts_with("nvme_namespace.spec.nguid: "));
        }
    }
}
