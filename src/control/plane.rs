//! What the control plane asks of the data plane.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use engine::Volume;
use engine::stats::{Kind, Snapshot, Sums};
use fault::Faults;
use frontend::AccessState;
pub use middleend::{Maxima, fault};

/// The data plane: volumes, the subsystems that show them, and the remote controllers that hold them.
///
/// Every call either happens whole or changes nothing. Calls block, for seconds where they must wait for I/O to end or
/// for a peer; they come from threads that may block, several at once, but never two at once for one object.
/// Subsystems, controllers, remote controllers and paths go by the last segment of their resource names.
pub trait DataPlane: Send + Sync + 'static {
    /// Firmware revision (FR) that hosts read.
    fn firmware_revision(&self) -> String;

    /// A volume in memory that reads as zeroes at first.
    fn malloc(&self, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>>;

    /// A volume that drops what is written.
    fn null(&self, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>>;

    /// A volume on a file or block device; of the size of the file where `blocks` is zero.
    fn aio(&self, file: &Path, block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>>;

    /// A volume whose blocks lie encrypted by AES-XTS on `below`; `key` is both halves, 32 or 64 bytes.
    fn crypt(&self, below: Arc<dyn Volume>, key: &[u8]) -> PlaneResult<Arc<dyn Volume>>;

    /// A volume that passes I/O to `below` no faster than its maxima.
    fn qos(&self, below: Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<Arc<dyn Volume>>;

    /// Changes the maxima of a volume that [`DataPlane::qos`] returned.
    fn set_maxima(&self, volume: &Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<()>;

    /// A volume over `below` that misbehaves as it is told. `lost`: what its cache held was lost with another process.
    fn fault(&self, below: Arc<dyn Volume>, faults: Faults, lost: bool) -> PlaneResult<Arc<dyn Volume>>;

    /// Puts other rules in the place of those of a volume that [`DataPlane::fault`] returned.
    fn set_faults(&self, volume: &Arc<dyn Volume>, faults: Faults) -> PlaneResult<()>;

    /// Has `keep` called when limits of volumes may have changed; hosts are told of them when it says that they are kept.
    fn keep_limits(&self, keep: Box<dyn Fn() -> bool + Send + Sync>);

    /// Cuts the power of a volume that [`DataPlane::fault`] returned.
    fn cut_power(&self, volume: &Arc<dyn Volume>, seed: u64) -> PlaneResult<()>;

    /// Blocks of a volume that [`DataPlane::fault`] returned that a power cut could lose.
    fn unflushed(&self, volume: &Arc<dyn Volume>) -> PlaneResult<u64>;

    /// Lets a volume go that nothing uses any more, and with it the file lock, memory or connection that it holds.
    fn close_volume(&self, volume: Arc<dyn Volume>) -> PlaneResult<()>;

    /// A subsystem without namespaces.
    fn create_subsystem(&self, subsystem: &str, config: &SubsystemConfig) -> PlaneResult<()>;

    /// Lets only that host connect to a subsystem, or any; others that are connected are disconnected.
    fn set_host(&self, subsystem: &str, hostnqn: Option<&str>) -> PlaneResult<()>;

    /// Deletes a subsystem that has neither namespaces nor controllers.
    fn delete_subsystem(&self, subsystem: &str) -> PlaneResult<()>;

    /// Shows a volume to the hosts of a subsystem.
    fn add_namespace(&self, subsystem: &str, namespace: &NamespaceConfig) -> PlaneResult<()>;

    /// Takes a namespace from the hosts; when this returns, none of their I/O to it is under way.
    fn remove_namespace(&self, subsystem: &str, nsid: u32) -> PlaneResult<()>;

    /// Shows a namespace to these alone, or to all. When this returns, no other gets at it.
    fn mask_namespace(&self, subsystem: &str, nsid: u32, viewers: Option<&Viewers>) -> PlaneResult<()>;

    /// Counters of what hosts did to a namespace.
    fn namespace_counters(&self, subsystem: &str, nsid: u32) -> PlaneResult<Counters>;

    /// Opens a controller to hosts. Returns its CNTLID; `None` where each host's connection gets its own.
    fn add_controller(
        &self,
        subsystem: &str,
        controller: &str,
        config: &ControllerConfig,
    ) -> PlaneResult<Option<u16>>;

    /// Closes a controller and ends the connections that came through it.
    fn remove_controller(&self, subsystem: &str, controller: &str) -> PlaneResult<()>;

    /// Sets how well hosts reach the namespaces through a controller; when this returns, every shard has heard.
    fn set_ana(&self, subsystem: &str, controller: &str, state: AccessState) -> PlaneResult<()>;

    /// Counters of what came through a controller.
    fn controller_counters(&self, subsystem: &str, controller: &str) -> PlaneResult<Counters>;

    /// A remote controller without a path.
    fn create_remote(&self, remote: &str, config: &RemoteConfig) -> PlaneResult<()>;

    /// Deletes a remote controller that has no path.
    fn delete_remote(&self, remote: &str) -> PlaneResult<()>;

    /// Adds a path and begins to connect, again and again until it succeeds.
    fn add_path(&self, remote: &str, path: &str, config: &PathConfig) -> PlaneResult<()>;

    /// Waits a little for the first connection of a remote controller whose path is new.
    fn await_connection(&self, remote: &str);

    /// Disconnects a path and forgets it.
    fn remove_path(&self, remote: &str, path: &str) -> PlaneResult<()>;

    /// Disconnects a remote controller and connects it again; I/O waits meanwhile.
    fn reset_remote(&self, remote: &str) -> PlaneResult<()>;

    /// Whether a remote controller is connected.
    fn remote_connected(&self, remote: &str) -> bool;

    /// The namespaces that a remote controller has; [`Failure::Unavailable`] until it was connected once.
    fn remote_namespaces(&self, remote: &str) -> PlaneResult<Vec<RemoteNamespace>>;

    /// A namespace of a remote controller as a volume.
    ///
    /// Without `promised` the remote must have been connected; for the first connection it waits a little. With it, the volume is had at once, parks its I/O until
    /// the remote is connected, and takes only a namespace of this identity with limits that cover these.
    fn remote_volume(
        &self,
        remote: &str,
        nsid: u32,
        promised: Option<&Promised>,
    ) -> PlaneResult<Arc<dyn Volume>>;
}

/// What a data plane answers.
pub type PlaneResult<T> = Result<T, PlaneError>;

/// Why the data plane refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The arguments are wrong.
    Invalid,
    /// The state of something does not allow it.
    Precondition,
    /// Another process holds an address, a socket or a file: to the client as [`Failure::Precondition`].
    Busy,
    /// Something of that name or number exists.
    Exists,
    /// Memory, numbers or files are used up.
    Exhausted,
    /// It may succeed later: a peer does not answer.
    Unavailable,
    /// It is not done here.
    Unsupported,
    /// Something failed that should not.
    Internal,
}

/// A refusal with its reason in words for a person, naming the file, address or limit that it is about.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct PlaneError {
    /// What kind of refusal.
    pub failure: Failure,
    /// Why.
    pub reason: String,
}

impl PlaneError {
    /// A refusal.
    pub fn new(failure: Failure, reason: impl fmt::Display) -> Self {
        PlaneError { failure, reason: reason.to_string() }
    }
}

/// What a subsystem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// SUBNQN.
    pub nqn: String,
    /// SN: at most 20 ASCII characters.
    pub serial: String,
    /// MN: at most 40 ASCII characters.
    pub model: String,
    /// Most namespaces; `None` for what the data plane takes by default.
    pub max_namespaces: Option<u32>,
    /// The only host that may connect; `None` for any.
    pub hostnqn: Option<String>,
    /// Processes that had the state directory, this one among them: power cycles to a host.
    pub starts: u64,
    /// Those of them that did not end in order: power losses to a host.
    pub kills: u64,
}

/// What a namespace is.
#[derive(Clone)]
pub struct NamespaceConfig {
    /// NSID.
    pub nsid: u32,
    /// UUID.
    pub uuid: [u8; 16],
    /// NGUID; zeroes for none.
    pub nguid: [u8; 16],
    /// EUI64; zeroes for none.
    pub eui64: [u8; 8],
    /// Where the blocks are.
    pub volume: Arc<dyn Volume>,
    /// Where it is kept what hosts set of it and that outlives the process; `None` if it does not.
    pub persist: Option<Arc<dyn frontend::Persist>>,
    /// Nobody sees it until [`DataPlane::mask_namespace`] says who does.
    pub hidden: bool,
}

/// Who alone sees a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viewers {
    /// Hosts over fabrics, by NQN.
    pub hosts: Vec<String>,
    /// vfio-user controllers of the subsystem.
    pub controllers: Vec<String>,
}

/// What a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Where hosts find it.
    pub endpoint: Endpoint,
    /// The CNTLID that is asked for, where hosts do not get their own.
    pub cntlid: Option<u16>,
    /// Most I/O queue pairs; `None` for what the data plane takes by default.
    pub io_queues: Option<u16>,
    /// How well hosts reach the namespaces through it.
    pub ana: AccessState,
}

/// Where hosts find a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A vfio-user socket; the function's port decides how it is served.
    Pcie {
        /// The port.
        port: u32,
        /// Whether the socket has the controller's name beside the subsystem's, which another has to itself.
        further: bool,
    },
    /// NVMe over TCP; the address may serve other subsystems too.
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Whether it is a static controller, of which an address may have several; else each host's connection makes
        /// one.
        fixed: bool,
    },
}

/// What a remote controller is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Header digests.
    pub hdgst: bool,
    /// Data digests.
    pub ddgst: bool,
    /// I/O queues; `None` for one for each shard.
    pub io_queues: Option<u16>,
    /// Entries of an I/O queue; `None` for what the data plane takes by default.
    pub queue_size: Option<u16>,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathConfig {
    /// The remote's address.
    pub address: SocketAddr,
    /// NQN of the remote subsystem.
    pub subnqn: String,
    /// NQN of this host.
    pub hostnqn: String,
    /// Host identifier (HOSTID).
    pub hostid: [u8; 16],
    /// The local address to connect from.
    pub source: Option<IpAddr>,
    /// The local port to connect from.
    pub source_port: Option<u16>,
}

/// Identity of a remote namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteNamespace {
    /// NSID.
    pub nsid: u32,
    /// UUID; zeroes for none.
    pub uuid: [u8; 16],
    /// NGUID; zeroes for none.
    pub nguid: [u8; 16],
    /// EUI64; zeroes for none.
    pub eui64: [u8; 8],
}

/// What the users of a remote namespace were told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promised {
    /// Its identity.
    pub identity: RemoteNamespace,
    /// Its limits.
    pub limits: engine::Limits,
}

/// Counters of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub read: Sums,
    /// Writes.
    pub write: Sums,
    /// Unmaps and write zeroes.
    pub unmap: Sums,
}

impl From<&Snapshot> for Counters {
    fn from(snapshot: &Snapshot) -> Self {
        let [read, write, unmap] = [Kind::Read, Kind::Write, Kind::Unmap].map(|kind| snapshot.of(kind));
        Counters { read, write, unmap }
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let add = |a: Sums, b: Sums| Sums {
            ops: a.ops.saturating_add(b.ops),
            bytes: a.bytes.saturating_add(b.bytes),
            latency_ns: a.latency_ns.saturating_add(b.latency_ns),
            errors: a.errors.saturating_add(b.errors),
        };
        all.fold(Counters::default(), |a, b| Counters {
            read: add(a.read, b.read),
            write: add(a.write, b.write),
            unmap: add(a.unmap, b.unmap),
        })
    }
}
