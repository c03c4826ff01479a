//! What the tests of this room share: a volume in memory, and a host that does I/O on simulated shards.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::mem::{Buf, Sgl};
use engine::{
    Channel, ChannelRef, Io, IoError, IoId, IoResult, Issuer, Limits, Op, Origin, Request, Scope, Shard, Sim,
    Volume, VolumeStats,
};

pub(crate) const BLOCK: usize = 512;

/// A volume in memory, the same on every shard, which remembers what it was asked.
pub(crate) struct Ram {
    pub limits: Limits,
    pub bytes: Mutex<Vec<u8>>,
    pub asked: Mutex<Vec<(Op, u64, u32)>>,
    /// While true, I/O waits until it is revoked.
    pub stuck: AtomicBool,
    /// While true, the memory of every I/O stays shared.
    pub hold: AtomicBool,
    held: Mutex<Vec<Sgl>>,
    stats: VolumeStats,
}

impl Ram {
    pub fn new(blocks: u64) -> Arc<Self> {
        Self::with(Limits::full(BLOCK as u32, blocks))
    }

    pub fn with(limits: Limits) -> Arc<Self> {
        Arc::new(Ram {
            bytes: Mutex::new(vec![0; limits.bytes() as usize]),
            limits,
            asked: Mutex::default(),
            stuck: false.into(),
            hold: false.into(),
            held: Mutex::default(),
            stats: VolumeStats::default(),
        })
    }

    pub fn block(&self, lba: u64) -> Vec<u8> {
        let bs = self.limits.block_size as usize;
        self.bytes.lock().unwrap()[lba as usize * bs..][..bs].to_vec()
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<(Op, u64, u32)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn execute(&self, r: &Request) -> IoResult {
        let bs = self.limits.block_size as usize;
        self.asked.lock().unwrap().push((r.op, r.lba, r.blocks));
        assert!(self.limits.contains(r.lba, r.blocks), "{r:?} is outside the volume");
        assert!(!r.op.has_data() || r.sgl.len() == r.blocks as usize * bs, "{r:?} has the wrong list");
        assert!(!r.op.has_data() || self.limits.max_blocks == 0 || r.blocks <= self.limits.max_blocks);
        if self.hold.load(Relaxed) {
            self.held.lock().unwrap().push(r.sgl.clone());
        }
        let mut bytes = self.bytes.lock().unwrap();
        let range = &mut bytes[r.lba as usize * bs..][..r.blocks as usize * bs];
        match r.op {
            Op::Read => r.sgl.copy_in(0, range),
            Op::Write { .. } => r.sgl.copy_out(0, range),
            Op::WriteZeroes { .. } | Op::Unmap => range.fill(0),
            Op::Flush => (),
            Op::Compare => {
                let mut theirs = vec![0; range.len()];
                r.sgl.copy_out(0, &mut theirs);
                return if theirs == range { Ok(()) } else { Err(IoError::Miscompare) };
            }
        }
        Ok(())
    }
}

impl Volume for Ram {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
        Rc::new(RamChannel { ram: self, waiting: RefCell::default() })
    }
}

struct RamChannel {
    ram: Arc<Ram>,
    waiting: RefCell<Vec<Io>>,
}

impl Channel for RamChannel {
    fn submit(self: Rc<Self>, io: Io) {
        if self.ram.stuck.load(Relaxed) {
            return self.waiting.borrow_mut().push(io);
        }
        let result = self.ram.execute(io.request());
        io.complete(result);
    }

    fn revoke(&self, scope: Scope) {
        let (revoked, rest) = self.waiting.take().into_iter().partition(|io| scope.covers(io));
        self.waiting.replace(rest);
        let revoked: Vec<Io> = revoked;
        revoked.into_iter().for_each(|io| io.complete(Err(IoError::Aborted)));
    }
}

/// One I/O of a test: what it came back with, and when.
pub(crate) struct Pending {
    sim: Rc<Sim>,
    pub id: IoId,
    pub sgl: Sgl,
    done: Rc<Answer>,
}

struct Answer {
    result: RefCell<Option<(IoResult, Duration)>>,
    sim: Rc<Sim>,
}

impl Issuer for Answer {
    fn resume(self: Rc<Self>, _io: Io, _cookie: u64, result: IoResult) {
        let before = self.result.replace(Some((result, self.sim.now())));
        assert!(before.is_none(), "completed twice");
    }
}

impl Pending {
    pub fn result(&self) -> Option<IoResult> {
        self.done.result.borrow().map(|(result, _)| result)
    }

    pub fn wait(&self) -> IoResult {
        assert!(self.sim.run_until(|| self.result().is_some()), "the I/O never comes back");
        self.result().unwrap()
    }

    pub fn finished_at(&self) -> Duration {
        self.wait().ok();
        self.done.result.borrow().unwrap().1
    }
}

/// A host of one volume, on two shards.
pub(crate) struct Host {
    pub sim: Rc<Sim>,
    channels: Vec<ChannelRef>,
    pub origin: Origin,
    block: usize,
    tags: AtomicU64,
}

impl Host {
    pub fn new(volume: Arc<dyn Volume>) -> Self {
        let sim = Rc::new(Sim::new(2).unwrap());
        let channels = (0..2).map(|id| sim.on(id, |shard| ChannelRef::open(&volume, shard))).collect();
        let block = volume.limits().block_size as usize;
        Host { sim, channels, origin: Origin::new(), block, tags: AtomicU64::new(0) }
    }

    /// Sends a request from `shard` and does not wait.
    pub fn send(&self, shard: usize, op: Op, lba: u64, blocks: u32, sgl: Sgl) -> Pending {
        let done = Rc::new(Answer { result: RefCell::default(), sim: self.sim.clone() });
        let id = IoId { origin: self.origin, tag: self.tags.fetch_add(1, Relaxed) };
        let mut io = Io::new(id);
        *io.request_mut() = Request { op, lba, blocks, sgl: sgl.clone() };
        self.sim.on(shard, |_| io.forward(&self.channels[shard], done.clone(), 0));
        Pending { sim: self.sim.clone(), id, sgl, done }
    }

    pub fn send_write(&self, shard: usize, lba: u64, bytes: &[u8], fua: bool) -> Pending {
        self.send(shard, Op::Write { fua }, lba, (bytes.len() / self.block) as u32, filled(bytes))
    }

    pub fn send_read(&self, shard: usize, lba: u64, blocks: u32) -> Pending {
        self.send(shard, Op::Read, lba, blocks, filled(&vec![0xee; blocks as usize * self.block]))
    }

    pub fn write(&self, shard: usize, lba: u64, bytes: &[u8]) -> IoResult {
        self.send_write(shard, lba, bytes, false).wait()
    }

    pub fn read(&self, shard: usize, lba: u64, blocks: u32) -> Result<Vec<u8>, IoError> {
        let read = self.send_read(shard, lba, blocks);
        read.wait().map(|()| content(&read.sgl))
    }

    /// Sends a request without data and waits.
    pub fn ask(&self, shard: usize, op: Op, lba: u64, blocks: u32) -> IoResult {
        self.send(shard, op, lba, blocks, Sgl::empty()).wait()
    }

    pub fn compare(&self, shard: usize, lba: u64, bytes: &[u8]) -> IoResult {
        self.send(shard, Op::Compare, lba, (bytes.len() / self.block) as u32, filled(bytes)).wait()
    }

    pub fn revoke(&self, shard: usize, scope: Scope) {
        self.sim.on(shard, |_| self.channels[shard].revoke(scope));
    }
}

pub(crate) fn filled(bytes: &[u8]) -> Sgl {
    let sgl = Buf::new(bytes.len()).into_sgl(bytes.len());
    sgl.copy_in(0, bytes);
    sgl
}

pub(crate) fn content(sgl: &Sgl) -> Vec<u8> {
    let mut bytes = vec![0; sgl.len()];
    sgl.copy_out(0, &mut bytes);
    bytes
}

/// Bytes that differ from block to block and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
