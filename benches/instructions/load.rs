//! Fixed loads: so many commands, in batches as large as the queue, the next batch when the last has ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use engine::mem::Buf;
use engine::{ChannelRef, Io, IoId, IoResult, Issuer, Op, Origin, Request, Sim, Volume};
use host::{Command, Kind, Queue};

use crate::counted;
use crate::world::World;

/// Turns in a row in which nothing happens, after which what is missing will not come.
const PATIENCE: usize = 1_000_000;

/// Whether the instructions of a stretch are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Yes,
    No,
}

/// A turn of both sides; only the near one can count.
fn turn(world: &World, count: Count) {
    match count {
        Count::Yes => counted(&mut || _ = world.near.turn()),
        Count::No => _ = world.near.turn(),
    }
    world.far.turn();
}

/// A host's commands on its queues: each batch takes all tags of all queues.
pub fn commands(
    world: &World,
    queues: &mut [Box<dyn Queue>],
    kind: Kind,
    bytes: usize,
    n: usize,
    count: Count,
) -> Result<()> {
    let mut done = Vec::new();
    let mut place = 0;
    let mut left = n;
    while left > 0 {
        let mut out = 0;
        for queue in queues.iter_mut() {
            let (blocks, size) = (queue.namespace().blocks, queue.namespace().block_size);
            let each = (bytes / size as usize) as u32;
            for tag in 0..queue.depth().min(u16::try_from(left - out).unwrap_or(u16::MAX)) {
                // A fixed walk that no cache line of the volume is near to.
                place = (place + 769) % (blocks / u64::from(each));
                queue.submit(tag, Command { kind, lba: place * u64::from(each), blocks: each })?;
                out += 1;
            }
        }
        left -= out;
        // All of the batch is in front of the shard before it takes a turn.
        let mut idle = 0;
        while out > 0 {
            for queue in queues.iter_mut() {
                queue.poll(&mut done)?;
            }
            for done in done.drain(..) {
                ensure!(done.status.is_success(), "{}", done.status);
                (out, idle) = (out - 1, 0);
            }
            if out > 0 {
                turn(world, count);
                idle += 1;
                ensure!(idle < PATIENCE, "{out} commands have no answer");
            }
        }
    }
    Ok(())
}

/// Who sends I/O straight to a volume.
struct Source {
    free: RefCell<Vec<Io>>,
    failed: Cell<bool>,
}

impl Issuer for Source {
    fn resume(self: Rc<Self>, io: Io, _cookie: u64, result: IoResult) {
        self.failed.set(self.failed.get() || result.is_err());
        self.free.borrow_mut().push(io);
    }
}

/// I/O on a volume's channel, without a host.
pub struct Direct {
    channel: ChannelRef,
    source: Rc<Source>,
    depth: usize,
    bytes: usize,
}

impl Direct {
    pub fn new(sim: &Sim, volume: &Arc<dyn Volume>, depth: usize, bytes: usize) -> Self {
        let channel = sim.on(0, |shard| ChannelRef::open(volume, shard));
        let origin = Origin::new();
        let make = |tag| {
            let mut io = Io::new(IoId { origin, tag: tag as u64 });
            io.request_mut().sgl = Buf::new(bytes).into_sgl(bytes);
            io
        };
        let source = Source { free: RefCell::new((0..depth).map(make).collect()), failed: Cell::new(false) };
        Direct { channel, source: Rc::new(source), depth, bytes }
    }

    pub fn run(&self, world: &World, op: Op, n: usize, count: Count) -> Result<()> {
        let limits = self.channel.volume().limits();
        let blocks = self.bytes as u32 / limits.block_size;
        let mut place = 0;
        for _ in 0..n / self.depth {
            let mut batch = std::mem::take(&mut *self.source.free.borrow_mut());
            for io in &mut batch {
                place = (place + 769) % (limits.blocks / u64::from(blocks));
                let sgl = std::mem::take(&mut io.request_mut().sgl);
                *io.request_mut() = Request { op, lba: place * u64::from(blocks), blocks, sgl };
            }
            let mut submit = || {
                world.near.on(0, |_| {
                    for io in batch.drain(..) {
                        io.forward(&self.channel, self.source.clone(), 0);
                    }
                });
            };
            match count {
                Count::Yes => counted(&mut submit),
                Count::No => submit(),
            }
            let mut idle = 0;
            while self.source.free.borrow().len() < self.depth {
                turn(world, count);
                idle += 1;
                if idle > PATIENCE {
                    bail!("I/O does not come back");
                }
            }
            ensure!(!self.source.failed.get(), "I/O failed");
        }
        Ok(())
    }
}
