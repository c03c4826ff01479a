//! Simulated shards, and the controllers and remotes on them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use backend::nvme_tcp::{self, Remote};
use engine::{ShardHandle, Sim, Volume};
use frontend::tcp::{Target, TargetConfig};
use frontend::vfio_user::{Handle, Options, Server, socket_path};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use host::{Queue, tcp, vfio_user};
use nvme_proto::Nqn;

const SUBNQN: &str = "nqn.2024-01.org.isthmus:counted";
const HOSTNQN: &str = "nqn.2024-01.org.isthmus:host";
const PATIENCE: Duration = Duration::from_secs(60);

/// A shard whose instructions are counted, and one that is only there.
pub struct World {
    pub near: Sim,
    pub far: Sim,
}

impl World {
    pub fn new() -> Result<Self> {
        Ok(World { near: Sim::new(1)?, far: Sim::new(1)? })
    }

    /// Runs what waits for shards, on another thread, while the shards take turns on this one.
    pub fn aside<R: Send + 'static>(&self, f: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        let (tx, rx) = channel();
        let thread = std::thread::spawn(move || drop(tx.send(f())));
        let result = loop {
            let busy = self.near.turn() | self.far.turn();
            match rx.try_recv() {
                Ok(result) => break result,
                Err(TryRecvError::Empty) if busy => {}
                Err(TryRecvError::Empty) => std::thread::sleep(Duration::from_micros(50)),
                Err(TryRecvError::Disconnected) => bail!("the set-up panicked"),
            }
        };
        let _ = thread.join();
        result
    }
}

/// A subsystem on that shard with one namespace.
fn subsystem(shards: &[ShardHandle], volume: Arc<dyn Volume>) -> Result<Arc<Subsystem>> {
    let config = SubsystemConfig {
        nqn: Nqn::new(SUBNQN)?,
        serial: "COUNTED".into(),
        model: "Isthmus".into(),
        max_namespaces: 8,
        allowed_hosts: Vec::new(),
    };
    let subsystem = Subsystem::new(config, shards)?;
    subsystem.add_namespace(Namespace { nsid: 1, uuid: [1; 16], nguid: [0; 16], eui64: [0; 8], volume })?;
    Ok(subsystem)
}

/// A target on these shards; it ends with the process.
pub fn listen(shards: &[ShardHandle], volume: Arc<dyn Volume>) -> Result<SocketAddr> {
    let target = Target::new(shards, TargetConfig::default())?;
    let subsystem = subsystem(shards, volume)?;
    let addr = target.listen("127.0.0.1:0".parse()?, &subsystem)?;
    std::mem::forget((target, subsystem));
    Ok(addr)
}

/// A vfio-user controller, its client, and what keeps both.
pub struct Pcie {
    directory: PathBuf,
    _handle: Handle,
    _controller: vfio_user::Controller,
}

impl Drop for Pcie {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A host's queues on a vfio-user controller on that shard.
pub fn pcie(
    shard: &ShardHandle,
    volume: Arc<dyn Volume>,
    depth: u16,
    bytes: usize,
) -> Result<(Pcie, Vec<Box<dyn Queue>>)> {
    let subsystem = subsystem(std::slice::from_ref(shard), volume)?;
    let directory = std::env::temp_dir().join(format!("isthmus-counted-{}", std::process::id()));
    let path = socket_path(Path::new(&directory), "s", None)?;
    let handle = Server::listen(shard, &subsystem, &path, Options::default())?;
    let options = vfio_user::Options { max_transfer: bytes, queues: 1, depth };
    let mut controller = vfio_user::Controller::connect(&path, options)?;
    let queue: Box<dyn Queue> = Box::new(controller.io_queue(1)?);
    std::mem::forget(subsystem);
    Ok((Pcie { directory, _handle: handle, _controller: controller }, vec![queue]))
}

/// So many connections of a host to a target.
pub fn connect(
    addr: SocketAddr,
    queues: u16,
    depth: u16,
    bytes: usize,
    digests: bool,
) -> Result<(tcp::Controller, Vec<Box<dyn Queue>>)> {
    let options = tcp::Options {
        subnqn: Nqn::new(SUBNQN)?,
        hostnqn: Nqn::new(HOSTNQN)?,
        hostid: [7; 16],
        digests: tcp::Digests { header: digests, data: digests },
        max_transfer: bytes,
        queues,
        depth,
        kato: 0,
        flow_control: true,
        among: None,
    };
    let mut controller = tcp::Controller::connect(addr, options)?;
    let mut all: Vec<Box<dyn Queue>> = Vec::new();
    for _ in 0..queues {
        all.push(Box::new(controller.io_queue(1)?));
    }
    Ok((controller, all))
}

/// The namespace of a target as a volume on these shards; the connection ends with the process.
pub fn remote(addr: SocketAddr, shards: &[ShardHandle], digests: bool) -> Result<Arc<dyn Volume>> {
    let defaults = nvme_tcp::Config::new("r0", addr, Nqn::new(SUBNQN)?, Nqn::new(HOSTNQN)?, [9; 16]);
    let config = nvme_tcp::Config { hdgst: digests, ddgst: digests, kato: Duration::ZERO, ..defaults };
    let remote = Remote::start(config, Vec::new(), shards).context("there is no shard")?;
    if let Err(state) = remote.wait_live(PATIENCE) {
        bail!("the remote is not connected: {state:?}");
    }
    let namespace = remote.namespace(1).context("the remote has no namespace")?;
    std::mem::forget(remote);
    Ok(namespace)
}
