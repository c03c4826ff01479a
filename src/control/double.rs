//! A data plane for tests: it keeps a log of what it was asked, and refuses what it is told to refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use engine::{Channel, Limits, Shard, Volume, VolumeStats};
use frontend::AccessState;

use super::plane::*;

/// A volume that has limits and counters alone.
struct Idle(Limits, VolumeStats, Arc<AtomicU64>);

impl Volume for Idle {
    fn limits(&self) -> Limits {
        Limits { blocks: self.0.blocks + self.2.load(Ordering::SeqCst), ..self.0.clone() }
    }

    fn stats(&self) -> &VolumeStats {
        &self.1
    }

    fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
        unreachable!("the control plane does no I/O")
    }
}

fn volume(limits: Limits) -> Arc<dyn Volume> {
    Arc::new(Idle(limits, VolumeStats::default(), Arc::default()))
}

/// The data plane.
#[derive(Default)]
pub struct Double {
    /// What was asked, a line each.
    pub log: Mutex<Vec<String>>,
    /// Calls that are refused, by the beginning of their line.
    pub refuse: Mutex<BTreeSet<String>>,
    /// The next calls of which the line begins so find their file or address held by another process: that many.
    pub busy: Mutex<BTreeMap<String, u32>>,
    /// Blocks that files and remote namespaces have, by file name or remote controller; none for a remote that does
    /// not answer.
    pub sizes: Mutex<BTreeMap<String, u64>>,
    /// Keys that volumes were made with.
    pub keys: Mutex<Vec<Vec<u8>>>,
    /// Namespaces as they were added.
    pub namespaces: Mutex<Vec<NamespaceConfig>>,
    /// Paths as they were added.
    pub paths: Mutex<Vec<PathConfig>>,
    /// What is to be called when volumes have other limits, and by how many blocks those of remotes have grown.
    pub keep: Mutex<Option<Box<dyn Fn() -> bool + Send + Sync>>>,
    pub grown: Arc<AtomicU64>,
}

impl Double {
    fn growing(&self, limits: Limits) -> Arc<dyn Volume> {
        Arc::new(Idle(limits, VolumeStats::default(), self.grown.clone()))
    }

    fn call(&self, line: String) -> PlaneResult<()> {
        if self.refuse.lock().unwrap().iter().any(|start| line.starts_with(start)) {
            return Err(PlaneError::new(Failure::Exhausted, format!("{line} is refused")));
        }
        let mut busy = self.busy.lock().unwrap();
        if let Some((_, left)) = busy.iter_mut().find(|(start, left)| line.starts_with(*start) && **left > 0)
        {
            *left -= 1;
            return Err(PlaneError::new(Failure::Busy, format!("{line}: held by another process")));
        }
        self.log.lock().unwrap().push(line);
        Ok(())
    }

    /// The log since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// The number of blocks of a file, or of a remote controller's only namespace, number 1.
    pub fn set_size(&self, of: &str, blocks: u64) {
        self.sizes.lock().unwrap().insert(of.into(), blocks);
    }

    fn size(&self, of: &str) -> Option<u64> {
        self.sizes.lock().unwrap().get(of).copied()
    }
}

/// Identity of every remote namespace.
pub const REMOTE: RemoteNamespace = RemoteNamespace { nsid: 1, uuid: [5; 16], nguid: [6; 16], eui64: [7; 8] };

impl DataPlane for Double {
    fn firmware_revision(&self) -> String {
        "1.0".into()
    }

    fn malloc(&self, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
        self.call(format!("malloc {block_size} {blocks}"))?;
        Ok(volume(Limits::full(block_size, blocks)))
    }

    fn null(&self, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
        self.call(format!("null {block_size} {blocks}"))?;
        Ok(volume(Limits::full(block_size, blocks)))
    }

    fn aio(&self, file: &Path, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
        let file = file.to_str().unwrap();
        let has = self
            .size(file)
            .ok_or_else(|| PlaneError::new(Failure::Invalid, format!("{file}: no such file")))?;
        self.call(format!("aio {file} {block_size} {blocks}"))?;
        Ok(volume(Limits::full(block_size, if blocks == 0 { has } else { blocks.min(has) })))
    }

    fn crypt(&self, below: Arc<dyn Volume>, key: &[u8]) -> PlaneResult<Arc<dyn Volume>> {
        self.call(format!("crypt {}", below.limits().blocks))?;
        self.keys.lock().unwrap().push(key.to_vec());
        Ok(volume(below.limits()))
    }

    fn qos(&self, below: Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<Arc<dyn Volume>> {
        self.call(format!("qos {} {}", below.limits().blocks, maxima.rw_iops_kiops))?;
        Ok(volume(below.limits()))
    }

    fn set_maxima(&self, _volume: &Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<()> {
        self.call(format!("set_maxima {}", maxima.rw_iops_kiops))
    }

    fn fault(
        &self,
        below: Arc<dyn Volume>,
        faults: fault::Faults,
        lost: bool,
    ) -> PlaneResult<Arc<dyn Volume>> {
        let lost = if lost { " lost" } else { "" };
        self.call(format!("fault {} {}{lost}", below.limits().blocks, faults.rules.len()))?;
        Ok(volume(below.limits()))
    }

    fn set_faults(&self, _volume: &Arc<dyn Volume>, faults: fault::Faults) -> PlaneResult<()> {
        self.call(format!("set_faults {}", faults.rules.len()))
    }

    fn keep_limits(&self, keep: Box<dyn Fn() -> bool + Send + Sync>) {
        self.keep.lock().unwrap().replace(keep);
    }

    fn cut_power(&self, _volume: &Arc<dyn Volume>, seed: u64) -> PlaneResult<()> {
        self.call(format!("cut_power {seed}"))
    }

    fn unflushed(&self, _volume: &Arc<dyn Volume>) -> PlaneResult<u64> {
        Ok(3)
    }

    fn close_volume(&self, volume: Arc<dyn Volume>) -> PlaneResult<()> {
        self.call(format!("close {}", volume.limits().blocks))
    }

    fn create_subsystem(&self, subsystem: &str, config: &SubsystemConfig) -> PlaneResult<()> {
        self.call(format!("subsystem {subsystem} {} {}", config.nqn, config.serial))
    }

    fn set_host(&self, subsystem: &str, hostnqn: Option<&str>) -> PlaneResult<()> {
        self.call(format!("host of {subsystem} {}", hostnqn.unwrap_or("any")))
    }

    fn delete_subsystem(&self, subsystem: &str) -> PlaneResult<()> {
        self.call(format!("delete subsystem {subsystem}"))
    }

    fn add_namespace(&self, subsystem: &str, namespace: &NamespaceConfig) -> PlaneResult<()> {
        let (nsid, blocks) = (namespace.nsid, namespace.volume.limits().blocks);
        let hidden = if namespace.hidden { " hidden" } else { "" };
        self.call(format!("namespace {subsystem} {nsid} {blocks}{hidden}"))?;
        self.namespaces.lock().unwrap().push(namespace.clone());
        Ok(())
    }

    fn remove_namespace(&self, subsystem: &str, nsid: u32) -> PlaneResult<()> {
        self.call(format!("remove namespace {subsystem} {nsid}"))
    }

    fn mask_namespace(&self, subsystem: &str, nsid: u32, viewers: Option<&Viewers>) -> PlaneResult<()> {
        match viewers {
            Some(Viewers { hosts, controllers }) => {
                self.call(format!("mask {subsystem} {nsid} {hosts:?} {controllers:?}"))
            }
            None => self.call(format!("unmask {subsystem} {nsid}")),
        }
    }

    fn namespace_counters(&self, _subsystem: &str, _nsid: u32) -> PlaneResult<Counters> {
        let mut counters = Counters::default();
        counters.read.ops = 2;
        Ok(counters)
    }

    fn add_controller(
        &self,
        subsystem: &str,
        controller: &str,
        config: &ControllerConfig,
    ) -> PlaneResult<Option<u16>> {
        if matches!(config.endpoint, Endpoint::Pcie { port: 1.., .. }) {
            return Err(PlaneError::new(Failure::Invalid, "only port 0 is supported for vfiouser"));
        }
        let further = matches!(config.endpoint, Endpoint::Pcie { further: true, .. });
        let access = match config.ana {
            AccessState::Optimized => String::new(),
            other => format!(" {other:?}"),
        };
        let further = if further { " further" } else { "" };
        let (own, fixed) = match config.endpoint {
            Endpoint::Tcp { fixed: true, .. } => (true, format!(" static {:?}", config.cntlid)),
            Endpoint::Tcp { fixed: false, .. } => (false, String::new()),
            Endpoint::Pcie { .. } => (true, String::new()),
        };
        self.call(format!("controller {subsystem} {controller}{further}{fixed}{access}"))?;
        Ok(own.then(|| config.cntlid.unwrap_or(9)))
    }

    fn remove_controller(&self, subsystem: &str, controller: &str) -> PlaneResult<()> {
        self.call(format!("remove controller {subsystem} {controller}"))
    }

    fn set_ana(&self, subsystem: &str, controller: &str, state: AccessState) -> PlaneResult<()> {
        self.call(format!("ana {subsystem} {controller} {state:?}"))
    }

    fn controller_counters(&self, _subsystem: &str, _controller: &str) -> PlaneResult<Counters> {
        Ok(Counters::default())
    }

    fn create_remote(&self, remote: &str, _config: &RemoteConfig) -> PlaneResult<()> {
        self.call(format!("remote {remote}"))
    }

    fn delete_remote(&self, remote: &str) -> PlaneResult<()> {
        self.call(format!("delete remote {remote}"))
    }

    fn add_path(&self, remote: &str, path: &str, config: &PathConfig) -> PlaneResult<()> {
        self.call(format!("path {remote} {path}"))?;
        self.paths.lock().unwrap().push(config.clone());
        Ok(())
    }

    fn await_connection(&self, _remote: &str) {}

    fn remove_path(&self, remote: &str, path: &str) -> PlaneResult<()> {
        self.call(format!("remove path {remote} {path}"))
    }

    fn reset_remote(&self, remote: &str) -> PlaneResult<()> {
        self.call(format!("reset {remote}"))
    }

    fn remote_connected(&self, remote: &str) -> bool {
        self.size(remote).is_some()
    }

    fn remote_namespaces(&self, remote: &str) -> PlaneResult<Vec<RemoteNamespace>> {
        match self.size(remote) {
            Some(_) => Ok(vec![REMOTE]),
            None => Err(PlaneError::new(Failure::Unavailable, format!("{remote} does not answer"))),
        }
    }

    fn remote_volume(
        &self,
        remote: &str,
        nsid: u32,
        promised: Option<&Promised>,
    ) -> PlaneResult<Arc<dyn Volume>> {
        self.call(format!("remote volume {remote} {nsid} {}", promised.is_some()))?;
        match promised {
            Some(promised) => {
                assert_eq!(promised.identity, REMOTE);
                Ok(self.growing(promised.limits.clone()))
            }
            None => Ok(self.growing(Limits::full(512, self.size(remote).unwrap()))),
        }
    }
}
