//! Shards, timers, tasks, crossing, and the order in which I/O comes back.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use engine::mem::{Access, Buf, GuestMemory, Mapping, Region, Sgl};
use engine::ring::RingOp;
use engine::testing::{Collector, bytes, filled};
use engine::{
    Channel, ChannelRef, Config, Io, IoError, IoId, IoResult, Issuer, Limits, OnTimer, Op, Scope, Shard,
    ShardHandle, Shards, Sim, Volume, VolumeStats, proxy,
};

/// A volume in memory that keeps what is submitted until it is told, or until a timer.
struct Slow {
    stats: VolumeStats,
    memory: Arc<Mapping>,
    home: Option<ShardHandle>,
    cache: bool,
    log: std::sync::Mutex<Vec<Op>>,
    /// What it works on cannot be revoked.
    busy: AtomicBool,
}

impl Slow {
    fn new(home: Option<ShardHandle>, cache: bool) -> Arc<Self> {
        let memory = Arc::new(Mapping::anonymous(1 << 20).unwrap());
        let (stats, busy) = (VolumeStats::default(), AtomicBool::new(false));
        Arc::new(Slow { stats, memory, home, cache, log: Default::default(), busy })
    }
}

impl Volume for Slow {
    fn limits(&self) -> Limits {
        Limits { volatile_cache: self.cache, fua: !self.cache, ..Limits::full(512, 2048) }
    }
    fn stats(&self) -> &VolumeStats {
        &self.stats
    }
    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        match self.home.clone() {
            Some(home) if home.id() != shard.id() => proxy(self, &home, shard),
            _ => Rc::new(SlowChannel { volume: self, parked: RefCell::default(), shard: shard.clone() }),
        }
    }
}

struct SlowChannel {
    volume: Arc<Slow>,
    parked: RefCell<VecDeque<Io>>,
    shard: Shard,
}

impl Channel for SlowChannel {
    fn submit(self: Rc<Self>, io: Io) {
        self.parked.borrow_mut().push_back(io);
        self.shard.timer(Duration::from_millis(10), self.clone(), 0);
    }
    fn revoke(&self, scope: Scope) {
        let parked = std::mem::take(&mut *self.parked.borrow_mut());
        for io in parked {
            if scope.covers(&io) && !self.volume.busy.load(Ordering::Relaxed) {
                io.complete(Err(IoError::Aborted))
            } else {
                self.parked.borrow_mut().push_back(io)
            }
        }
    }
}

impl OnTimer for SlowChannel {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        let Some(io) = self.parked.borrow_mut().pop_front() else { return };
        self.volume.log.lock().unwrap().push(io.op());
        if io.op().has_data() {
            let there = self.volume.memory.sgl(io.lba() as usize * 512, io.sgl().len()).unwrap();
            if io.op() == Op::Read { io.sgl().copy_from(&there) } else { there.copy_from(io.sgl()) }
        }
        io.complete(Ok(()));
    }
}

fn open(sim: &Sim, shard: usize, volume: &Arc<Slow>) -> ChannelRef {
    let volume: Arc<dyn Volume> = volume.clone();
    sim.on(shard, |s| ChannelRef::open(&volume, s))
}

#[test]
fn io_crosses_to_the_home_shard_and_back() {
    let sim = Sim::new(2).unwrap();
    let volume = Slow::new(Some(sim.handles()[0].clone()), false);
    let far = open(&sim, 1, &volume);
    let c = Collector::new();
    let memory = filled(1024, 0);
    sim.on(1, |_| c.submit(&far, 1, Op::Write { fua: false }, 8, 2, filled(1024, 7)));
    assert!(sim.run_until(|| c.count() == 1));
    sim.on(1, |_| c.submit(&far, 2, Op::Read, 8, 2, memory.clone()));
    assert!(sim.run_until(|| c.count() == 2));
    assert_eq!(bytes(&memory), [7; 1024]);
    assert!(sim.now() >= Duration::from_millis(20));
    let s = volume.stats.snapshot();
    assert_eq!(s.of(engine::stats::Kind::Write).ops, 1, "counted once though it crossed");
    assert_eq!(s.of(engine::stats::Kind::Read).bytes, 1024);
}

#[test]
fn a_revoke_crosses_too_and_takes_only_its_scope() {
    let sim = Sim::new(2).unwrap();
    let volume = Slow::new(Some(sim.handles()[0].clone()), false);
    let far = open(&sim, 1, &volume);
    let (a, b) = (Collector::new(), Collector::new());
    sim.on(1, |_| {
        a.submit(&far, 1, Op::Write { fua: false }, 0, 1, filled(512, 1));
        b.submit(&far, 2, Op::Write { fua: false }, 1, 1, filled(512, 2));
    });
    sim.on(1, |_| far.revoke(Scope::Origin(a.origin())));
    assert!(sim.run_until(|| a.count() == 1));
    assert_eq!(a.result(1), Some(Err(IoError::Aborted)));
    assert!(sim.run_until(|| b.count() == 1));
    assert_eq!(b.result(2), Some(Ok(())));
    let (mut first, mut second) = ([9; 512], [9; 512]);
    volume.memory.sgl(0, 512).unwrap().copy_out(0, &mut first);
    volume.memory.sgl(512, 512).unwrap().copy_out(0, &mut second);
    assert_eq!((first, second), ([0; 512], [2; 512]));
}

#[test]
fn what_crosses_to_a_home_that_has_ended_comes_back_as_failed() {
    struct Tell(std::sync::mpsc::Sender<IoResult>);
    impl Issuer for Tell {
        fn resume(self: Rc<Self>, _io: Io, _cookie: u64, result: IoResult) {
            self.0.send(result).unwrap();
        }
    }
    let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
    let [home, here] = [0, 1].map(|id: usize| shards.handles()[id].clone());
    let volume: Arc<dyn Volume> = Slow::new(Some(home.clone()), false);
    let (tell, told) = std::sync::mpsc::channel();
    let submit = move |shard: &Shard| {
        let far = ChannelRef::open(&volume, shard);
        Io::new(Default::default()).forward(&far, Rc::new(Tell(tell.clone())), 0);
    };
    let again = submit.clone();
    here.run(submit);
    assert_eq!(told.recv(), Ok(Ok(())));
    home.run(|_| panic!("on purpose"));
    here.run(again);
    assert_eq!(told.recv(), Ok(Err(IoError::Failed)));
}

#[test]
fn a_shard_that_ends_lets_the_memory_of_io_go() {
    let sim = Sim::new(2).unwrap();
    let volume = Slow::new(Some(sim.handles()[0].clone()), false);
    let (far, near) = (open(&sim, 1, &volume), open(&sim, 0, &volume));
    let c = Collector::new();
    let buf = Buf::new(512);
    let submit = |tag| sim.on(0, |_| c.submit(&near, tag, Op::Write { fua: false }, 0, 1, buf.sgl(0, 512)));
    submit(1);
    sim.on(0, |_| near.revoke(Scope::All));
    // The first has completed and is not delivered yet; the second is in its channel.
    submit(2);
    drop(sim);
    assert!(!buf.is_unique());
    near.revoke(Scope::All);
    assert!(buf.is_unique(), "nobody is told any more, and nothing is kept");
    drop((near, far));
    assert_eq!((c.count(), Arc::strong_count(&volume)), (0, 1));
}

#[test]
fn a_cache_that_cannot_write_through_is_flushed_after_the_write() {
    let sim = Sim::new(1).unwrap();
    let volume = Slow::new(None, true);
    let channel = open(&sim, 0, &volume);
    let c = Collector::new();
    sim.on(0, |_| c.submit(&channel, 1, Op::Write { fua: true }, 0, 1, filled(512, 1)));
    assert!(sim.run_until(|| c.count() == 1));
    assert_eq!(*volume.log.lock().unwrap(), [Op::Write { fua: false }, Op::Flush]);
    assert_eq!(volume.stats.snapshot().of(engine::stats::Kind::Write).ops, 1);
    assert_eq!(volume.stats.snapshot().of(engine::stats::Kind::Flush).ops, 0, "the host asked for none");
}

#[test]
fn a_revoked_write_is_not_flushed_after() {
    let map = Mapping::anonymous(8192).unwrap();
    let region = Region::new(0, 8192, true, true, Some(map)).unwrap();
    let guest = GuestMemory::default().with(region.clone()).unwrap();
    let sim = Sim::new(1).unwrap();
    let volume = Slow::new(None, true);
    let channel = open(&sim, 0, &volume);
    let c = Collector::new();
    for (tag, revoked) in [(1, true), (2, false), (3, true)] {
        let mut memory = Sgl::empty();
        memory.push_guest(&guest, 0, 512, Access::Read).unwrap();
        sim.on(0, |_| c.submit(&channel, tag, Op::Write { fua: true }, 0, 1, memory));
        let scope = match tag {
            1 => Scope::Io(IoId { origin: c.origin(), tag }),
            2 => Scope::Io(IoId { origin: c.origin(), tag: 99 }),
            _ => Scope::Region(region.id()),
        };
        // It comes just when the write has ended below and its end is not known above yet.
        sim.on(0, |_| {
            volume.busy.store(true, Ordering::Relaxed);
            channel.revoke(scope);
            volume.busy.store(false, Ordering::Relaxed);
        });
        assert!(sim.run_until(|| c.count() == tag as usize));
        assert_eq!(c.result(tag), Some(if revoked { Err(IoError::Aborted) } else { Ok(()) }));
    }
    let write = Op::Write { fua: false };
    assert_eq!(*volume.log.lock().unwrap(), [write, write, Op::Flush, write]);
}

/// Completes at once, and submits again from `resume`: as deep as a host pipelines.
struct Chain {
    channel: RefCell<Option<ChannelRef>>,
    left: Cell<usize>,
    inside: Cell<bool>,
}

impl Issuer for Chain {
    fn resume(self: Rc<Self>, io: Io, _cookie: u64, _result: IoResult) {
        assert!(!self.inside.replace(true), "completion was nested");
        self.left.set(self.left.get() - 1);
        if self.left.get() > 0 {
            let channel = self.channel.borrow().clone().unwrap();
            io.forward(&channel, self.clone(), 0);
        }
        self.inside.set(false);
    }
}

struct Instant;
impl Channel for Instant {
    fn submit(self: Rc<Self>, io: Io) {
        io.complete(Ok(()));
    }
    fn revoke(&self, _scope: Scope) {}
}
struct InstantVolume(VolumeStats, AtomicUsize);
impl Volume for InstantVolume {
    fn limits(&self) -> Limits {
        Limits::full(512, 1)
    }
    fn stats(&self) -> &VolumeStats {
        &self.0
    }
    fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Rc::new(Instant)
    }
}

#[test]
fn completion_is_queued_never_nested() {
    let sim = Sim::new(1).unwrap();
    let volume = Arc::new(InstantVolume(VolumeStats::default(), AtomicUsize::new(0)));
    let dynamic: Arc<dyn Volume> = volume.clone();
    let chain =
        Rc::new(Chain { channel: RefCell::default(), left: Cell::new(100_000), inside: Cell::new(false) });
    sim.on(0, |s| {
        chain.channel.replace(Some(ChannelRef::open(&dynamic, s)));
        let channel = ChannelRef::open(&dynamic, s);
        Io::new(Default::default()).forward(&channel, chain.clone(), 0);
    });
    assert!(sim.run_until(|| chain.left.get() == 0));
    assert_eq!(volume.1.load(Ordering::Relaxed), 1, "one channel per volume and shard");
}

#[test]
fn a_lost_io_comes_back_as_failed() {
    struct Loses(VolumeStats);
    struct LosesChannel;
    impl Channel for LosesChannel {
        fn submit(self: Rc<Self>, io: Io) {
            drop(io);
        }
        fn revoke(&self, _scope: Scope) {}
    }
    impl Volume for Loses {
        fn limits(&self) -> Limits {
            Limits::full(512, 1)
        }
        fn stats(&self) -> &VolumeStats {
            &self.0
        }
        fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
            Rc::new(LosesChannel)
        }
    }
    let sim = Sim::new(1).unwrap();
    let volume: Arc<dyn Volume> = Arc::new(Loses(VolumeStats::default()));
    let channel = sim.on(0, |s| ChannelRef::open(&volume, s));
    let c = Collector::new();
    sim.on(0, |_| c.submit(&channel, 1, Op::Flush, 0, 0, Sgl::empty()));
    assert!(sim.run_until(|| c.count() == 1));
    assert_eq!(c.result(1), Some(Err(IoError::Failed)));
}

#[test]
fn tasks_sleep_in_virtual_time_and_end_when_dropped() {
    let sim = Sim::new(1).unwrap();
    let count = Rc::new(Cell::new(0));
    let ticking = count.clone();
    let task = sim.on(0, |s| {
        let shard = s.clone();
        s.spawn(async move {
            loop {
                shard.sleep(Duration::from_secs(60)).await;
                ticking.set(ticking.get() + 1);
            }
        })
    });
    assert!(sim.run_until(|| count.get() == 60));
    assert_eq!(sim.now(), Duration::from_secs(3600));
    drop(task);
    assert_eq!(Rc::strong_count(&count), 1, "the future is gone");
    sim.advance(Duration::from_secs(600));
    assert_eq!(count.get(), 60);
}

#[test]
fn ring_operations_own_what_they_use() {
    let shards = Shards::start(&Config::default()).unwrap();
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    shards.handles()[0].run(move |shard| {
        let (a, b) = (Arc::new(a.into()), Arc::new(b.into()));
        let ring = shard.clone();
        let task = shard.spawn(async move {
            let into = filled(64, 0);
            let got = ring.ring().run(RingOp::Receive { fd: b, sgl: into.clone(), skip: 4 });
            let sent = ring
                .ring()
                .run(RingOp::Send { fd: a, sgls: vec![filled(8, 1), filled(8, 2)], skip: 3, now: false })
                .await;
            assert_eq!(sent.result.unwrap(), 13);
            assert_eq!(got.await.result.unwrap(), 13);
            tx.send(bytes(&into)).unwrap();
        });
        task.detach();
    });
    let got = rx.recv().unwrap();
    assert_eq!(got[..20], [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0]);
    // The shard is asleep by now or soon; a call wakes it.
    assert_eq!(shards.handles()[0].call(|s| s.id()), Some(0));
    shards.stop();
}

#[test]
fn a_cancelled_operation_ends() {
    let sim = Sim::new(1).unwrap();
    let (_a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    struct Ended(Cell<Option<i32>>);
    impl engine::ring::RingClient for Ended {
        fn done(self: Rc<Self>, completion: engine::ring::Completion, _cookie: u64) {
            self.0.set(completion.result.err().and_then(|e| e.raw_os_error()));
        }
    }
    let ended = Rc::new(Ended(Cell::new(None)));
    let id = sim.on(0, |s| {
        let op = RingOp::Receive { fd: Arc::new(b.into()), sgl: filled(64, 0), skip: 0 };
        s.ring().start(op, ended.clone(), 0)
    });
    sim.on(0, |s| s.ring().cancel(id));
    assert!(sim.run_until(|| ended.0.get().is_some()));
    assert_eq!(ended.0.get(), Some(125), "ECANCELED");
}
