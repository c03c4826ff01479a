//! The data plane: what the control plane asks for, built of volumes, subsystems and remotes that live on the shards.

mod convert;
mod flush;
mod growth;
mod remotes;
mod subsystems;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::{ShardHandle, Volume};
use frontend::AccessState;
use frontend::tcp::{Target, TargetConfig};

use crate::control::plane::fault::Faults;
use crate::control::plane::{
    ControllerConfig, Counters, DataPlane, Failure, Maxima, NamespaceConfig, PathConfig, PlaneError,
    PlaneResult, Promised, RemoteConfig, RemoteNamespace, SubsystemConfig, Viewers,
};
use growth::Growth;
use remotes::RemoteEntry;
use subsystems::{ENDING, SubsystemEntry};
use volumes::Typed;

pub use backend::nvme_tcp::Resend;
pub use frontend::Doorbells;

/// How a data plane meets its machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where aio volumes may open files; without it they are refused.
    pub aio_dir: Option<PathBuf>,
    /// Directory of the vfio-user sockets.
    pub ctrlr_dir: PathBuf,
    /// Permissions of the sockets.
    pub socket_mode: u32,
    /// Group of the sockets, by number; `None` for the process's own.
    pub socket_group: Option<u32>,
    /// Doorbells of vfio-user controllers by the port that they are on; at least one.
    pub doorbells: Vec<Doorbells>,
    /// Discovery services that the target's own refers hosts to.
    pub referrals: Vec<SocketAddr>,
    /// Keep-alive timeout of connections to remote controllers.
    pub remote_kato: Duration,
    /// When writes that were out on a lost connection to a remote controller are sent again.
    pub remote_resend: Resend,
}

/// The data plane of this process.
pub struct Plane {
    settings: Settings,
    shards: Vec<ShardHandle>,
    /// Counts controllers, which take their home shards in turn.
    homes: AtomicUsize,
    target: Target,
    volumes: Mutex<Typed>,
    subsystems: Arc<Mutex<BTreeMap<String, Arc<SubsystemEntry>>>>,
    growth: Growth,
    remotes: Mutex<BTreeMap<String, Arc<RemoteEntry>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plane {
    /// A data plane on `shards`, at least one.
    ///
    /// # Errors
    /// `Internal`, if there is no shard.
    pub fn new(settings: Settings, shards: &[ShardHandle]) -> PlaneResult<Self> {
        if shards.is_empty() {
            return Err(PlaneError::new(Failure::Internal, "a data plane needs a shard"));
        }
        let target = Target::new(shards, TargetConfig::default())
            .map_err(|e| PlaneError::new(Failure::Internal, format!("discovery service: {e}")))?;
        target.set_referrals(settings.referrals.clone());
        let subsystems = Arc::default();
        Ok(Plane {
            settings,
            shards: shards.to_vec(),
            homes: AtomicUsize::new(0),
            target,
            volumes: Mutex::default(),
            growth: Growth::watch(&subsystems)?,
            subsystems,
            remotes: Mutex::default(),
        })
    }

    /// The home shard of the next controller.
    fn next_home(&self) -> &ShardHandle {
        let at = self.homes.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        &self.shards[at]
    }

    /// Ends everything in order: hosts are disconnected, and their I/O may take `hosts` to end; what they wrote is
    /// flushed, which may take `flushes` more, whatever hosts took; remotes are disconnected. Whether all was flushed; what
    /// could not be is logged.
    pub fn shut_down(&self, hosts: Duration, flushes: Duration) -> bool {
        let subsystems: Vec<_> = lock(&self.subsystems).values().cloned().collect();
        self.close_controllers(&subsystems, Instant::now() + hosts);
        self.target.close();
        let end = Instant::now() + flushes;
        let flushed = flush::all(&self.shards, subsystems.iter().flat_map(|s| s.volumes()), end);
        let closing: Vec<_> = subsystems.iter().map(|s| (s, s.close())).collect();
        // Those that have nothing out end in it, although the flushes may have left no time.
        self.pass_a_turn();
        for (subsystem, drain) in closing {
            if !drain.wait(end.saturating_duration_since(Instant::now())) {
                tracing::warn!(subsystem = subsystem.name(), "some I/O did not end");
            }
        }
        for remote in lock(&self.remotes).values() {
            remote.close();
        }
        self.pass_a_turn();
        flushed
    }

    /// Waits until every shard has done what it was asked so far.
    fn pass_a_turn(&self) {
        for shard in &self.shards {
            shard.call(|_| ());
        }
    }
}

impl DataPlane for Plane {
    fn firmware_revision(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn malloc(&self, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
        volumes::malloc(block_size, blocks)
    }

    fn null(&self, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
        volumes::null(block_size, blocks)
    }

    fn aio(&self, file: &Path, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
        volumes::aio(self.settings.aio_dir.as_deref(), file, block_size, blocks)
    }

    fn crypt(&self, below: Arc<dyn Volume>, key: &[u8]) -> PlaneResult<Arc<dyn Volume>> {
        volumes::crypt(below, key)
    }

    fn qos(&self, below: Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<Arc<dyn Volume>> {
        Ok(lock(&self.volumes).qos(below, maxima))
    }

    fn set_maxima(&self, volume: &Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<()> {
        lock(&self.volumes).set_maxima(volume, maxima)
    }

    fn fault(&self, below: Arc<dyn Volume>, faults: Faults, lost: bool) -> PlaneResult<Arc<dyn Volume>> {
        Ok(lock(&self.volumes).fault(below, faults, lost))
    }

    fn set_faults(&self, volume: &Arc<dyn Volume>, faults: Faults) -> PlaneResult<()> {
        lock(&self.volumes).set_faults(volume, faults)
    }

    fn cut_power(&self, volume: &Arc<dyn Volume>, seed: u64) -> PlaneResult<()> {
        lock(&self.volumes).cut_power(volume, seed)
    }

    fn unflushed(&self, volume: &Arc<dyn Volume>) -> PlaneResult<u64> {
        lock(&self.volumes).unflushed(volume)
    }

    fn close_volume(&self, volume: Arc<dyn Volume>) -> PlaneResult<()> {
        lock(&self.volumes).forget(&volume);
        drop(volume);
        // The shards drop their channels.
        self.pass_a_turn();
        Ok(())
    }

    fn create_subsystem(&self, subsystem: &str, config: &SubsystemConfig) -> PlaneResult<()> {
        self.new_subsystem(subsystem, config)
    }

    fn set_host(&self, subsystem: &str, hostnqn: Option<&str>) -> PlaneResult<()> {
        let hosts = hostnqn.map(|host| convert::nqn("hostnqn", host)).transpose()?;
        self.target.set_allowed_hosts(self.subsystem(subsystem)?.frontend(), hosts.into_iter().collect());
        Ok(())
    }

    fn delete_subsystem(&self, subsystem: &str) -> PlaneResult<()> {
        self.drop_subsystem(subsystem)
    }

    fn add_namespace(&self, subsystem: &str, namespace: &NamespaceConfig) -> PlaneResult<()> {
        self.subsystem(subsystem)?.add_namespace(namespace)
    }

    fn remove_namespace(&self, subsystem: &str, nsid: u32) -> PlaneResult<()> {
        self.subsystem(subsystem)?.remove_namespace(nsid, ENDING)
    }

    fn mask_namespace(&self, subsystem: &str, nsid: u32, viewers: Option<&Viewers>) -> PlaneResult<()> {
        self.subsystem(subsystem)?.mask_namespace(nsid, viewers)?;
        self.pass_a_turn();
        Ok(())
    }

    fn namespace_counters(&self, subsystem: &str, nsid: u32) -> PlaneResult<Counters> {
        self.subsystem(subsystem)?.namespace_counters(nsid)
    }

    fn add_controller(
        &self,
        subsystem: &str,
        controller: &str,
        config: &ControllerConfig,
    ) -> PlaneResult<Option<u16>> {
        self.open_controller(subsystem, controller, config)
    }

    fn remove_controller(&self, subsystem: &str, controller: &str) -> PlaneResult<()> {
        self.close_controller(subsystem, controller, ENDING)
    }

    fn set_ana(&self, subsystem: &str, controller: &str, state: AccessState) -> PlaneResult<()> {
        self.subsystem(subsystem)?.set_ana(controller, state, &self.target)?;
        self.pass_a_turn();
        Ok(())
    }

    fn controller_counters(&self, subsystem: &str, controller: &str) -> PlaneResult<Counters> {
        self.subsystem(subsystem)?.controller_counters(controller, &self.target)
    }

    fn keep_limits(&self, keep: Box<dyn Fn() -> bool + Send + Sync>) {
        self.growth.keep_with(keep);
    }

    fn create_remote(&self, remote: &str, config: &RemoteConfig) -> PlaneResult<()> {
        self.new_remote(remote, config)
    }

    fn delete_remote(&self, remote: &str) -> PlaneResult<()> {
        self.drop_remote(remote)
    }

    fn add_path(&self, remote: &str, path: &str, config: &PathConfig) -> PlaneResult<()> {
        self.remote(remote)?.add_path(remote, path, config, self)
    }

    fn await_connection(&self, remote: &str) {
        if let Ok(remote) = self.remote(remote) {
            remote.await_connection();
        }
    }

    fn remove_path(&self, remote: &str, path: &str) -> PlaneResult<()> {
        self.remote(remote)?.remove_path(path)?;
        self.pass_a_turn();
        Ok(())
    }

    fn reset_remote(&self, remote: &str) -> PlaneResult<()> {
        self.remote(remote)?.reset()
    }

    fn remote_connected(&self, remote: &str) -> bool {
        self.remote(remote).is_ok_and(|remote| remote.is_connected())
    }

    fn remote_namespaces(&self, remote: &str) -> PlaneResult<Vec<RemoteNamespace>> {
        self.remote(remote)?.namespaces()
    }

    fn remote_volume(
        &self,
        remote: &str,
        nsid: u32,
        promised: Option<&Promised>,
    ) -> PlaneResult<Arc<dyn Volume>> {
        self.remote(remote)?.volume(nsid, promised)
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane")
            .field("settings", &self.settings)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}
