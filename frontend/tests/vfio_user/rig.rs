//! What is tested: a controller, and clients for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backend::ram::RamVolume;
use engine::testing::memory;
use engine::{Config, Shards, Volume};
use frontend::vfio_user::{Handle, Options, Server, socket_path};
use frontend::{Doorbells, Namespace, Subsystem, SubsystemConfig};
use nvme_proto::Nqn;

use crate::client::{Client, DATA, Queue, RAM, rw};

/// A host that nothing of what happens beside it may harm.
pub struct Neighbour {
    client: Client,
    queue: Queue,
    seed: u8,
    _handle: Handle,
}

impl Neighbour {
    /// Its controller is ready, and what it writes it reads.
    pub fn is_well(&mut self) {
        let (c, q) = (&mut self.client, &mut self.queue);
        self.seed = self.seed.wrapping_add(1);
        c.put(DATA, &[self.seed; 4096]);
        // Blocks that are nobody else's.
        assert!(c.run(q, rw(true, 100_000, 8, DATA, 0)).status().is_success());
        assert!(c.run(q, rw(false, 100_000, 8, DATA + 0x1000, 0)).status().is_success());
        assert_eq!(c.get(DATA + 0x1000, 4096), [self.seed; 4096]);
        assert_eq!(c.register(0x1c), 1, "ready, and not failed");
    }
}

/// A controller over vfio-user on the second of two shards.
pub struct Rig {
    dir: PathBuf,
    shards: Option<Shards>,
    handle: Option<Handle>,
}

impl Rig {
    /// One whose namespace is in memory.
    pub fn new(name: &str, doorbells: Doorbells) -> Self {
        Self::over(name, doorbells, RamVolume::new(512, (64 << 20) / 512).unwrap())
    }

    /// One whose namespace is that volume.
    pub fn over(name: &str, doorbells: Doorbells, volume: Arc<dyn Volume>) -> Self {
        Self::spinning(name, doorbells, volume, Config::default().spin)
    }

    /// One whose shards look for work for so long before they sleep.
    pub fn spinning(name: &str, doorbells: Doorbells, volume: Arc<dyn Volume>, spin: Duration) -> Self {
        memory::confine();
        let dir = std::env::temp_dir().join(format!("isthmus-{name}-{}", std::process::id()));
        let shards = Shards::start(&Config { cpus: vec![None, None], spin, ..Config::default() }).unwrap();
        let config = SubsystemConfig {
            nqn: Nqn::new("nqn.2024-01.test:disk").unwrap(),
            serial: "TEST0001".into(),
            model: "Isthmus".into(),
            max_namespaces: 8,
            allowed_hosts: Vec::new(),
        };
        let subsystem = Subsystem::new(config, shards.handles()).unwrap();
        let namespace = Namespace { nsid: 1, uuid: [1; 16], nguid: [0; 16], eui64: [0; 8], volume };
        subsystem.add_namespace(namespace).unwrap();
        let path = socket_path(&dir, "s", None).unwrap();
        let options = Options { doorbells, ..Options::default() };
        let handle = Server::listen(&shards.handles()[1], &subsystem, &path, options).unwrap();
        Rig { dir, shards: Some(shards), handle: Some(handle) }
    }

    /// Another namespace.
    pub fn add(&self, nsid: u32, volume: Arc<dyn Volume>) {
        let namespace = Namespace { nsid, uuid: [nsid as u8; 16], nguid: [0; 16], eui64: [0; 8], volume };
        self.handle().controller().subsystem().add_namespace(namespace).unwrap();
    }

    /// How long the controller was busy.
    pub fn busy_time(&self) -> Duration {
        let shard = &self.shards.as_ref().unwrap().handles()[1];
        let controller = self.handle().controller().clone();
        shard.call(move |shard| controller.busy_time(shard.now())).unwrap()
    }

    /// Processor time that the controller's shard has used.
    pub fn busy(&self) -> Duration {
        let shard = &self.shards.as_ref().unwrap().handles()[1];
        let thread = shard.call(|_| nix::unistd::gettid()).unwrap();
        // Time on a processor, in nanoseconds, is the first word.
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
        Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
    }

    pub fn handle(&self) -> &Handle {
        self.handle.as_ref().unwrap()
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.handle().path())
    }

    /// Another controller of the subsystem, on the same shard, and a host of it that works.
    pub fn neighbour(&self) -> Neighbour {
        let handle = self.handle();
        let path = socket_path(&self.dir, "s", Some("n")).unwrap();
        let options = Options::default();
        let home = &self.shards.as_ref().unwrap().handles()[1];
        let other = Server::listen(home, handle.controller().subsystem(), &path, options).unwrap();
        let mut client = Client::connect(other.path());
        assert_eq!(client.map(0, 0, RAM as u64, true), 0);
        client.map_doorbells();
        client.enable();
        let queue = client.create(1, 64);
        Neighbour { client, queue, seed: 0, _handle: other }
    }

    /// A client with an enabled controller.
    pub fn host(&self) -> Client {
        let mut client = self.connect();
        assert_eq!(client.map(0, 0, RAM as u64, true), 0);
        client.map_doorbells();
        client.enable();
        client
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let closed = self.handle.take().unwrap().close(Duration::from_secs(10));
        self.shards.take().unwrap().stop();
        let left = std::fs::remove_dir(self.dir.join("s"));
        let _ = std::fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            memory::assert_small();
            assert!(closed, "the controller ended");
            assert!(left.is_err(), "its directory went with it");
        }
    }
}
