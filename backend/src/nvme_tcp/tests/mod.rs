//! The initiator against a target that does what a test wants.

mod conformance;
mod gather;
mod hostile;
mod hostile_admin;
mod io;
mod reconnect;
mod revoke;
mod stream;
mod target;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use engine::mem::{Buf, Sgl};
use engine::testing::memory;
use engine::{
    ChannelRef, Config as ShardConfig, Io, IoError, IoId, IoResult, Issuer, Op, Origin, Request, Scope,
    ShardHandle, Shards, Volume,
};
use nvme_proto::Nqn;

use super::{Config, Remote};
pub use target::{BLOCK, Manner, Target};

/// How long anything may take before a test gives up.
const LONG: Duration = Duration::from_secs(20);

/// Shards, a target, and a remote of it.
pub struct World {
    pub target: Target,
    pub remote: Arc<Remote>,
    pub shards: Option<Shards>,
    origin: Origin,
}

pub fn config(target: &Target) -> Config {
    let nqn = |n| Nqn::new(n).unwrap();
    let mut config = Config::new("r0", target.addr, nqn("nqn.x:sub"), nqn("nqn.x:host"), [9; 16]);
    config.first_pause = Duration::from_millis(5);
    config.longest_pause = Duration::from_millis(20);
    config
}

impl World {
    pub fn new(manner: Manner, change: impl FnOnce(&mut Config)) -> Self {
        let world = Self::unready(manner, change);
        world.remote.wait_live(LONG).unwrap();
        world
    }

    pub fn unready(manner: Manner, change: impl FnOnce(&mut Config)) -> Self {
        memory::confine();
        let target = Target::start(manner);
        let mut config = config(&target);
        change(&mut config);
        let shards =
            Shards::start(&ShardConfig { cpus: vec![None, None], ..ShardConfig::default() }).unwrap();
        let remote = Remote::start(config, Vec::new(), shards.handles()).unwrap();
        World { target, remote, shards: Some(shards), origin: Origin::new() }
    }

    pub fn shard(&self, id: usize) -> ShardHandle {
        self.shards.as_ref().unwrap().handles()[id].clone()
    }

    /// Submits requests on a shard, all in one turn; their results come with their tags and memory.
    pub fn submit(&self, shard: usize, requests: Vec<Request>) -> Answers {
        self.submit_to(self.remote.namespace(1).unwrap(), shard, requests)
    }

    pub fn submit_to(&self, volume: Arc<dyn Volume>, shard: usize, requests: Vec<Request>) -> Answers {
        let (tx, rx) = mpsc::channel();
        let origin = self.origin;
        self.shard(shard).run(move |shard| {
            let channel = ChannelRef::open(&volume, shard);
            let issuer = Rc::new(Teller(tx));
            for (tag, request) in requests.into_iter().enumerate() {
                let mut io = Io::new(IoId { origin, tag: tag as u64 });
                *io.request_mut() = request;
                io.forward(&channel, issuer.clone(), tag as u64);
            }
        });
        Answers(rx)
    }

    pub fn one(&self, shard: usize, request: Request) -> (IoResult, Vec<u8>) {
        let mut all = self.submit(shard, vec![request]).take(1);
        let (_, result, bytes) = all.remove(0);
        (result, bytes)
    }

    pub fn revoke(&self, shard: usize, scope: Scope) {
        let volume: Arc<dyn Volume> = self.remote.namespace(1).unwrap();
        self.shard(shard).run(move |shard| ChannelRef::open(&volume, shard).revoke(scope));
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.remote.close();
        if let Some(shards) = self.shards.take() {
            shards.stop();
        }
    }
}

pub struct Answers(mpsc::Receiver<(u64, IoResult, Vec<u8>)>);

impl Answers {
    /// The first `n` that come.
    pub fn take(&self, n: usize) -> Vec<(u64, IoResult, Vec<u8>)> {
        (0..n)
            .map(|i| self.0.recv_timeout(LONG).unwrap_or_else(|e| panic!("answer {i} of {n}: {e}")))
            .collect()
    }

    pub fn none_yet(&self) -> bool {
        self.0.try_recv().is_err()
    }
}

struct Teller(mpsc::Sender<(u64, IoResult, Vec<u8>)>);

impl Issuer for Teller {
    fn resume(self: Rc<Self>, io: Io, cookie: u64, result: IoResult) {
        let mut bytes = vec![0; io.sgl().len()];
        io.sgl().copy_out(0, &mut bytes);
        let _ = self.0.send((cookie, result, bytes));
    }
}

pub fn memory(bytes: &[u8]) -> Sgl {
    let sgl = Buf::new(bytes.len()).into_sgl(bytes.len());
    sgl.copy_in(0, bytes);
    sgl
}

/// Bytes that differ everywhere.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 * 31 + i + seed * 17) as u8).collect()
}

pub fn read(lba: u64, blocks: u32) -> Request {
    Request { op: Op::Read, lba, blocks, sgl: memory(&vec![0xee; blocks as usize * BLOCK]) }
}

pub fn write(lba: u64, bytes: &[u8]) -> Request {
    let blocks = (bytes.len() / BLOCK) as u32;
    Request { op: Op::Write { fua: false }, lba, blocks, sgl: memory(bytes) }
}

pub fn bare(op: Op, lba: u64, blocks: u32) -> Request {
    Request { op, lba, blocks, sgl: Sgl::empty() }
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub const ABORTED: IoResult = Err(IoError::Aborted);
