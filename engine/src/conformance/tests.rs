//! The kit finds what it says it finds: a sound volume passes, and each way of being broken is noticed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Options, run};
use crate::io::{Io, IoError, IoResult, Op, Request, Scope};
use crate::mem::{Mapping, Sgl};
use crate::proxy::proxy;
use crate::shard::{OnTimer, Shard, ShardHandle, Sim};
use crate::stats::VolumeStats;
use crate::volume::{Channel, Limits, Volume};

const BLOCK: usize = 512;
const BLOCKS: u64 = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Writes go in two halves, with time between them.
    Tears,
    /// A write now and then vanishes.
    Loses,
    /// An aborted write lands some time later.
    LandsLate,
    /// Memory is held after the I/O came back.
    Holds,
    /// A revoke takes more than it covers.
    TakesAll,
    /// A revoke drops what it covers.
    Drops,
    /// Compare finds no difference.
    Agrees,
    /// The last block of a WriteZeroes stays as it was.
    ZeroesLess,
    /// The largest I/O that the limits allow fails.
    TakesLess,
}

struct Mock {
    fault: Fault,
    /// Elsewhere its channel is a proxy.
    home: Option<ShardHandle>,
    /// Has a cache, and no way to write through it.
    cache: bool,
    memory: Arc<Mapping>,
    stats: VolumeStats,
}

impl Volume for Mock {
    fn limits(&self) -> Limits {
        let (volatile_cache, fua) = (self.cache, !self.cache);
        Limits { max_blocks: 100, volatile_cache, fua, ..Limits::full(BLOCK as u32, BLOCKS) }
    }
    fn stats(&self) -> &VolumeStats {
        &self.stats
    }
    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        if let Some(home) = self.home.clone().filter(|home| home.id() != shard.id()) {
            return proxy(self, &home, shard);
        }
        let (shard, parked, held) = (shard.clone(), RefCell::default(), RefCell::default());
        Rc::new(MockChannel { volume: self, shard, parked, held, count: Cell::new(0) })
    }
}

struct MockChannel {
    volume: Arc<Mock>,
    shard: Shard,
    parked: RefCell<VecDeque<(Io, bool)>>,
    held: RefCell<Vec<Request>>,
    count: Cell<u64>,
}

impl MockChannel {
    fn bytes(&self, r: &Request) -> Sgl {
        self.volume.memory.sgl(r.lba as usize * BLOCK, r.blocks as usize * BLOCK).unwrap()
    }

    fn execute(&self, r: &Request) -> IoResult {
        let (there, fault) = (self.bytes(r), self.volume.fault);
        let count = self.count.replace(self.count.get() + 1);
        match r.op {
            Op::Read => r.sgl.copy_from(&there),
            Op::Write { .. } if fault == Fault::Loses && count % 10 == 9 => {}
            Op::Write { .. } => there.copy_from(&r.sgl),
            Op::WriteZeroes { .. } if fault == Fault::ZeroesLess => there.zero(0, there.len() - BLOCK),
            Op::WriteZeroes { .. } | Op::Unmap => there.zero(0, there.len()),
            Op::Compare if fault != Fault::Agrees && !there.same_bytes(&r.sgl) => {
                return Err(IoError::Miscompare);
            }
            Op::Compare | Op::Flush => {}
        }
        if fault == Fault::Holds && count % 40 == 39 {
            self.held.borrow_mut().push(r.clone());
        }
        let whole = !r.op.has_data() || r.blocks < 100;
        if fault == Fault::TakesLess && !whole { Err(IoError::OutOfRange) } else { Ok(()) }
    }

    fn wait(self: &Rc<Self>, io: Io, again: bool) {
        self.parked.borrow_mut().push_back((io, again));
        self.shard.timer(Duration::from_millis(1), self.clone(), 0);
    }
}

impl Channel for MockChannel {
    fn submit(self: Rc<Self>, io: Io) {
        self.wait(io, false);
    }

    fn revoke(&self, scope: Scope) {
        let fault = self.volume.fault;
        if fault == Fault::Drops {
            return self.parked.borrow_mut().retain(|(io, _)| !scope.covers(io));
        }
        for (io, again) in self.parked.take() {
            if !scope.covers(&io) && fault != Fault::TakesAll {
                self.parked.borrow_mut().push_back((io, again));
                continue;
            }
            if fault == Fault::LandsLate && io.op().modifies() {
                let late = Request { op: Op::Unmap, sgl: Sgl::empty(), ..io.request().clone() };
                self.held.borrow_mut().push(late);
            }
            io.complete(Err(IoError::Aborted));
        }
    }
}

impl OnTimer for MockChannel {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        let fault = self.volume.fault;
        if fault == Fault::LandsLate && self.count.get() % 8 == 7 {
            self.held.take().iter().for_each(|late| self.bytes(late).zero(0, self.bytes(late).len()));
        }
        let Some((io, again)) = self.parked.borrow_mut().pop_front() else { return };
        if fault == Fault::Tears && !again && matches!(io.op(), Op::Write { .. }) {
            let (half, there) = (io.sgl().len() - BLOCK / 2, self.bytes(io.request()));
            there.copy_from(&io.sgl().slice(0, half));
            return self.wait(io, true);
        }
        let result = self.execute(io.request());
        io.complete(result);
    }
}

fn with(fault: Fault, proxied: bool, cache: bool) {
    let make = |sim: &Sim| -> Arc<dyn Volume> {
        let memory = Arc::new(Mapping::anonymous(BLOCKS as usize * BLOCK).unwrap());
        let home = proxied.then(|| sim.handles()[0].clone());
        Arc::new(Mock { fault, home, cache, memory, stats: VolumeStats::default() })
    };
    run("mock", make, Options::default());
}

/// What the kit says of a volume with `fault`.
fn found(fault: Fault) -> String {
    let caught = std::panic::catch_unwind(|| with(fault, false, false)).expect_err("the kit found nothing");
    let said = caught.downcast::<String>().unwrap();
    assert!(said.contains("ISTHMUS_SEED="), "{said}");
    *said
}

#[test]
fn a_sound_volume_passes() {
    with(Fault::None, false, false);
}

#[test]
fn crossing_shards_changes_nothing() {
    with(Fault::None, true, false);
}

#[test]
fn a_flush_in_place_of_fua_changes_nothing() {
    with(Fault::None, false, true);
}

#[test]
fn each_way_of_being_broken_is_found() {
    const WRONG: &[&str] = &["none of", "Miscompare"];
    for (fault, said) in [
        (Fault::Tears, WRONG),
        (Fault::Loses, WRONG),
        (Fault::LandsLate, WRONG),
        (Fault::Holds, &["held"]),
        (Fault::TakesAll, &["Aborted"]),
        (Fault::Drops, &["Failed"]),
        (Fault::Agrees, &["no difference"]),
        (Fault::ZeroesLess, WRONG),
        (Fault::TakesLess, &["OutOfRange"]),
    ] {
        let why = found(fault);
        assert!(said.iter().any(|said| why.contains(said)), "{fault:?}: {why}");
    }
}
