//! Remote controllers: NVMe/TCP initiators, and their namespaces as volumes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backend::nvme_tcp::{self, Identity, Pin, Remote, State};
use engine::Volume;

use super::convert::{nqn, refuse};
use super::{Plane, Settings, lock};
use crate::control::plane::{
    Failure, PathConfig, PlaneError, PlaneResult, Promised, RemoteConfig, RemoteNamespace,
};

/// How long a new path may take to connect before those who wait for it are answered.
const FIRST_CONNECTION: Duration = Duration::from_secs(2);

/// A remote controller, and its one path.
pub(super) struct RemoteEntry {
    config: RemoteConfig,
    path: Mutex<Option<Path>>,
}

struct Path {
    name: String,
    remote: Arc<Remote>,
    since: Instant,
}

impl Plane {
    pub(super) fn new_remote(&self, name: &str, config: &RemoteConfig) -> PlaneResult<()> {
        if config.queue_size.is_some_and(|n| !(2..=4095).contains(&n)) {
            return refuse(Failure::Invalid, "queue_size is not from 2 to 4095");
        }
        let mut remotes = lock(&self.remotes);
        if remotes.contains_key(name) {
            return refuse(Failure::Exists, format!("remote controller {name} exists"));
        }
        let entry = RemoteEntry { config: config.clone(), path: Mutex::default() };
        remotes.insert(name.to_owned(), Arc::new(entry));
        Ok(())
    }

    pub(super) fn drop_remote(&self, name: &str) -> PlaneResult<()> {
        if lock(&self.remote(name)?.path).is_some() {
            return refuse(Failure::Precondition, format!("remote controller {name} has a path"));
        }
        lock(&self.remotes).remove(name);
        Ok(())
    }

    pub(super) fn remote(&self, name: &str) -> PlaneResult<Arc<RemoteEntry>> {
        let unknown =
            || PlaneError::new(Failure::Precondition, format!("there is no remote controller {name}"));
        lock(&self.remotes).get(name).cloned().ok_or_else(unknown)
    }
}

impl RemoteEntry {
    pub(super) fn add_path(
        &self,
        remote: &str,
        path: &str,
        config: &PathConfig,
        plane: &Plane,
    ) -> PlaneResult<()> {
        let mut slot = lock(&self.path);
        match &*slot {
            Some(there) if there.name == path => {
                return refuse(Failure::Exists, format!("path {path} exists"));
            }
            Some(_) => {
                return refuse(Failure::Unsupported, "a remote controller has one path in this version");
            }
            None => {}
        }
        let initiator = self.initiator(remote, config, &plane.settings)?;
        let started = Remote::start(initiator, Vec::new(), &plane.shards)
            .ok_or_else(|| PlaneError::new(Failure::Internal, "there is no shard"))?;
        started.watch(plane.growth.teller());
        *slot = Some(Path { name: path.to_owned(), remote: started, since: Instant::now() });
        Ok(())
    }

    /// Waits for the first connection of a path that is new.
    pub(super) fn await_connection(&self) {
        let path = lock(&self.path).as_ref().map(|path| (path.remote.clone(), path.since));
        if let Some((remote, since)) = path {
            // Whether it is there, those who ask find out themselves.
            let _ = remote.wait_live(FIRST_CONNECTION.saturating_sub(since.elapsed()));
        }
    }

    fn initiator(
        &self,
        remote: &str,
        path: &PathConfig,
        settings: &Settings,
    ) -> PlaneResult<nvme_tcp::Config> {
        if path.source_port.is_some() {
            let why = "a path has several connections, which cannot share the local port source_trsvcid";
            return refuse(Failure::Unsupported, why);
        }
        let (subnqn, hostnqn) = (nqn("subnqn", &path.subnqn)?, nqn("hostnqn", &path.hostnqn)?);
        let defaults = nvme_tcp::Config::new(remote, path.address, subnqn, hostnqn, path.hostid);
        Ok(nvme_tcp::Config {
            source: path.source,
            io_queues: self.config.io_queues.unwrap_or(0),
            queue_size: self.config.queue_size.unwrap_or(defaults.queue_size),
            hdgst: self.config.hdgst,
            ddgst: self.config.ddgst,
            kato: settings.remote_kato,
            resend: settings.remote_resend,
            ..defaults
        })
    }

    pub(super) fn remove_path(&self, path: &str) -> PlaneResult<()> {
        let mut slot = lock(&self.path);
        match &*slot {
            Some(there) if there.name == path => there.remote.close(),
            _ => return refuse(Failure::Precondition, format!("there is no path {path}")),
        }
        *slot = None;
        Ok(())
    }

    fn started(&self) -> PlaneResult<Arc<Remote>> {
        let none = || PlaneError::new(Failure::Unavailable, "the remote controller has no path");
        lock(&self.path).as_ref().map(|path| path.remote.clone()).ok_or_else(none)
    }

    pub(super) fn reset(&self) -> PlaneResult<()> {
        self.started()?.reset();
        Ok(())
    }

    pub(super) fn close(&self) {
        if let Ok(remote) = self.started() {
            remote.close();
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.started().is_ok_and(|remote| remote.state() == State::Live)
    }

    pub(super) fn namespaces(&self) -> PlaneResult<Vec<RemoteNamespace>> {
        let remote = self.connected_once()?;
        Ok(remote.namespaces().iter().map(|ns| told(ns.nsid(), &ns.identity())).collect())
    }

    pub(super) fn volume(&self, nsid: u32, promised: Option<&Promised>) -> PlaneResult<Arc<dyn Volume>> {
        if let Some(promised) = promised {
            let pin = Pin { nsid, identity: kept(&promised.identity), limits: promised.limits.clone() };
            return Ok(self.started()?.promise(pin));
        }
        self.await_connection();
        let remote = self.connected_once()?;
        let none = || {
            PlaneError::new(Failure::Precondition, format!("the remote controller has no namespace {nsid}"))
        };
        let namespace = remote.namespace(nsid).ok_or_else(none)?;
        match namespace.refused() {
            Some(reason) => refuse(Failure::Precondition, format!("namespace {nsid}: {reason}")),
            None => Ok(namespace),
        }
    }

    fn connected_once(&self) -> PlaneResult<Arc<Remote>> {
        let remote = self.started()?;
        match remote.state() {
            State::Live | State::Reconnecting(_) => Ok(remote),
            State::Connecting(Some(reason)) => {
                refuse(Failure::Unavailable, format!("not connected yet: {reason}"))
            }
            State::Connecting(None) => refuse(Failure::Unavailable, "not connected yet"),
            State::Closed => refuse(Failure::Unavailable, "closed"),
        }
    }
}

fn told(nsid: u32, identity: &Identity) -> RemoteNamespace {
    RemoteNamespace {
        nsid,
        uuid: identity.uuid.unwrap_or_default(),
        nguid: identity.nguid.unwrap_or_default(),
        eui64: identity.eui64.unwrap_or_default(),
    }
}

fn kept(identity: &RemoteNamespace) -> Identity {
    fn some<const N: usize>(id: [u8; N]) -> Option<[u8; N]> {
        Some(id).filter(|id| id.iter().any(|&b| b != 0))
    }
    Identity { uuid: some(identity.uuid), nguid: some(identity.nguid), eui64: some(identity.eui64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_come_back_as_they_were() {
        for identity in [
            Identity::default(),
            Identity { uuid: Some([7; 16]), nguid: None, eui64: Some([1; 8]) },
            Identity { uuid: None, nguid: Some([9; 16]), eui64: None },
        ] {
            assert_eq!(kept(&told(3, &identity)), identity);
        }
    }
}
