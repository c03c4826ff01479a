//! The initiator against a hostile target: an honest one, behind what lies about it.

mod proxy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::nvme_tcp::{Config, Pin, Remote, RemoteNamespace, Resend, State};
use engine::mem::Sgl;
use engine::testing::fuzz::{Input, Record, Subject, Trace};
use engine::testing::{Collector, bytes, filled};
use engine::{ChannelRef, Op, Request, Scope, Sim, Volume};
use frontend::Subsystem;
use frontend::tcp::{Target, TargetConfig};
use nvme_proto::tcp::{CapsuleResp, CommonHdr, DataHdr, PduType, R2t, TermReq};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Cqe, Nqn, Status};

use crate::world::{SECRET, THEIRS, descriptors, in_flight, namespace, ram, settle, subsystem};
use proxy::{Lie, Proxy};

const SHARDS: usize = 2;
const NQN: &str = "nqn.2024-01.test:disk";
/// Rounds of the proxy without time passing: more, and initiator and target do not come to rest.
const ROUNDS: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes behind the memory of a read, and what they and it hold.
const BEHIND: usize = 512;
const UNTOUCHED: u8 = 0x77;

/// Both targets, the proxy before one of them, and the neighbour's remote, which uses the other.
pub struct Initiator {
    sim: Sim,
    target: Target,
    subsystems: [Arc<Subsystem>; 2],
    proxy: Proxy,
    neighbour: Arc<Remote>,
    honest: Vec<Pin>,
    serial: u64,
    rested: (usize, Vec<usize>),
}

struct Run<'a> {
    on: &'a mut Initiator,
    trace: &'a mut Trace,
    remote: Arc<Remote>,
    io: Rc<Collector>,
    asked: u64,
    /// The target may have said something untrue of itself.
    lied: bool,
    /// And other data than there is may have come, in a form that is right.
    forged: bool,
    /// Headers and data have digests.
    digests: bool,
    /// Reads, in the order of their tags.
    reads: Vec<(u64, u64, Sgl)>,
}

/// What a block of the attacked namespaces holds, unless it is zeroes or [`THEIRS`].
fn pattern(lba: u64) -> u8 {
    1 + (lba % 64) as u8
}

fn patterned(lba: u64, blocks: u32) -> Sgl {
    let sgl = filled(blocks as usize * 512, 0);
    for at in 0..u64::from(blocks) {
        sgl.copy_in(at as usize * 512, &[pattern(lba + at); 512]);
    }
    sgl
}

/// Whether these may be the blocks from `lba` on.
fn right(lba: u64, read: &[u8]) -> bool {
    (lba..).zip(read.chunks(512)).all(|(lba, block)| {
        let all = |byte| block.iter().all(|other| *other == byte);
        all(0) || all(THEIRS) || all(pattern(lba))
    })
}

fn config(name: &str, address: SocketAddr, host: &str, serial: u64) -> Config {
    let nqn = |name: &str| Nqn::new(name).unwrap();
    let mut config = Config::new(name, address, nqn(NQN), nqn(host), [9; 16]);
    let [a, b, ..] = serial.to_le_bytes();
    config.source = Some(IpAddr::V4(Ipv4Addr::new(127, 2, a, b.max(1))));
    config.first_pause = Duration::from_millis(5);
    config.longest_pause = Duration::from_millis(500);
    config.connect_timeout = Duration::from_secs(2);
    config.kato = Duration::from_secs(4);
    config
}

impl Initiator {
    /// Lets initiator, proxy and target work until none has anything to do.
    fn pump(&mut self) {
        for _ in 0..ROUNDS {
            settle(&self.sim, Duration::ZERO);
            if !self.proxy.shuttle() {
                return;
            }
        }
        panic!("initiator and target never come to rest");
    }

    fn pass(&mut self, time: Duration) {
        let step = (time / 20).clamp(Duration::from_millis(1), Duration::from_millis(250));
        let until = self.sim.now() + time;
        while self.sim.now() < until {
            self.pump();
            settle(&self.sim, step);
        }
        self.pump();
    }

    /// Lets time pass until something is so. Whether it is.
    fn until(&mut self, patience: Duration, mut so: impl FnMut() -> bool) -> bool {
        let (until, began) = (self.sim.now() + patience, Instant::now());
        loop {
            self.pump();
            if so() {
                return true;
            }
            if self.sim.now() > until && began.elapsed() > Duration::from_millis(50) {
                return false;
            }
            settle(&self.sim, Duration::from_millis(20));
        }
    }

    fn submit(&self, io: &Rc<Collector>, volume: &Arc<RemoteNamespace>, at: (usize, u64), request: Request) {
        let volume: Arc<dyn Volume> = volume.clone();
        let ((shard, tag), Request { op, lba, blocks, sgl }) = (at, request);
        self.sim.on(shard, |shard| {
            let channel = ChannelRef::open(&volume, shard);
            io.submit(&channel, tag, op, lba, blocks, sgl);
        });
    }

    /// Writes a block of a remote and reads it back.
    fn works(&mut self, remote: &Arc<Remote>, byte: u8, lba: u64) -> bool {
        let Some(volume) = remote.namespace(1) else { return false };
        let io = Collector::new();
        let shard = (self.serial % SHARDS as u64) as usize;
        let (op, sgl) = (Op::Write { fua: false }, filled(40 * 512, byte));
        self.submit(&io, &volume, (shard, 0), Request { op, lba, blocks: 40, sgl });
        if !self.until(PATIENCE, || io.count() == 1) {
            return false;
        }
        let read = filled(40 * 512, 0);
        let request = Request { op: Op::Read, lba, blocks: 40, sgl: read.clone() };
        self.submit(&io, &volume, (shard, 1), request);
        let done = self.until(PATIENCE, || io.count() == 2);
        done && io.results().iter().all(|(_, result)| result.is_ok())
            && bytes(&read).iter().all(|b| *b == byte)
    }

    fn rest(&self) -> (usize, Vec<usize>) {
        (descriptors(), in_flight(&self.sim, SHARDS))
    }

    fn come_to_rest(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            self.pass(Duration::from_millis(200));
            let left = self.subsystems[0].controllers();
            if left.is_empty() && self.rest() == self.rested {
                return;
            }
            let say = || format!("{:?}, at rest {:?}; {left:?}", self.rest(), self.rested);
            assert!(Instant::now() < until, "something of a remote stays behind: {}", say());
        }
    }
}

impl Subject for Initiator {
    fn new() -> Self {
        let sim = Sim::new(SHARDS).unwrap();
        let target = Target::new(&sim.handles(), TargetConfig::default()).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let subsystems = [(); 2].map(|()| subsystem(&sim, NQN, &[]));
        let addrs = [0, 1].map(|at| {
            let subsystem: &Arc<Subsystem> = &subsystems[at];
            subsystem.add_namespace(namespace(1, ram())).unwrap();
            subsystem.add_namespace(namespace(2, ram())).unwrap();
            target.listen(any, subsystem).unwrap()
        });
        settle(&sim, Duration::ZERO);
        let neighbour = config("neighbour", addrs[1], "nqn.2024-01.test:neighbour", 0);
        let neighbour = Remote::start(neighbour, Vec::new(), &sim.handles()).unwrap();
        let (proxy, rested) = (Proxy::new(addrs[0]), Default::default());
        let mut new =
            Initiator { sim, target, subsystems, proxy, neighbour, honest: Vec::new(), serial: 0, rested };
        let remote = new.neighbour.clone();
        assert!(new.until(PATIENCE, || remote.state() == State::Live));
        for shard in 0..SHARDS as u64 {
            new.serial = shard;
            assert!(new.works(&remote, SECRET, 0));
        }
        new.honest = remote.namespaces().iter().map(|namespace| namespace.pin()).collect();
        new.rested = new.rest();
        new
    }

    fn run(&mut self, input: &Input, trace: &mut Trace) {
        let mut records = input.records();
        let Some(mut first) = records.next() else { return };
        let mut run = Run::begin(self, trace, &mut first);
        for record in records {
            run.act(record);
            run.on.pump();
        }
        let remote = Arc::downgrade(&run.remote);
        run.end();
        self.come_to_rest();
        assert_eq!(remote.strong_count(), 0, "something keeps a remote that is closed");
        let (neighbour, lba) = (self.neighbour.clone(), self.serial % 64 * 40);
        assert!(self.works(&neighbour, SECRET, lba), "the neighbour's remote does not work");
    }

    fn close(mut self) {
        self.neighbour.close();
        self.pass(Duration::from_secs(3));
        self.target.close();
        let drains = self.subsystems.each_ref().map(Subsystem::close);
        self.pass(Duration::from_secs(3));
        drop(drains);
    }
}

impl<'a> Run<'a> {
    fn begin(on: &'a mut Initiator, trace: &'a mut Trace, r: &mut Record) -> Self {
        on.serial += 1;
        on.proxy.heal();
        on.proxy.cids.clear();
        let mut config = config("attacked", on.proxy.addr(), "nqn.2024-01.test:host", on.serial);
        (config.hdgst, config.ddgst) = (r.rarely(2), r.rarely(2));
        let digests = config.hdgst && config.ddgst;
        config.resend = if r.rarely(2) { Resend::Strict } else { Resend::Fast };
        config.queue_size = r.pick(&[128u16, 2, 8]);
        config.io_queues = r.pick(&[0u16, 1]);
        let early = r.rarely(3);
        // Namespaces that were promised before the target was seen.
        let pins = if early || r.rarely(2) { on.honest.clone() } else { Vec::new() };
        let remote = Remote::start(config, pins, &on.sim.handles()).unwrap();
        let (io, asked) = (Collector::new(), 0);
        if !early {
            let live = remote.clone();
            assert!(on.until(PATIENCE, || live.state() == State::Live), "{:?}", remote.state());
        }
        Run { on, trace, remote, io, asked, lied: false, forged: false, digests, reads: Vec::new() }
    }

    fn act(&mut self, mut r: Record) {
        let kind = r.below(20);
        self.trace.note(("act", kind));
        match kind {
            0..=7 => self.submit(r),
            8..=11 => self.lie(r),
            12..=14 => self.invent(r),
            15 => {
                let at = r.below(4);
                self.on.proxy.cut(at);
            }
            16 => {
                let time = r.pick(&[1u64, 10, 100, 1000, 3000, 9000]);
                self.on.pass(Duration::from_millis(time));
            }
            17 => self.revoke(r),
            18 => match r.below(6) {
                0 => self.on.proxy.mute ^= true,
                1 => self.on.proxy.shut ^= true,
                2 => self.remote.reset(),
                3 => drop(self.on.subsystems[0].refresh_namespace(1)),
                4 => {
                    self.lied = true;
                    drop(self.on.subsystems[0].remove_namespace(2));
                }
                _ => drop(self.on.subsystems[0].add_namespace(namespace(2, ram()))),
            },
            _ => {
                let bytes = r.rest().to_vec();
                self.on.proxy.say(usize::from(r.byte()), &bytes);
                (self.lied, self.forged) = (true, true);
            }
        }
        self.trace.note(("state", std::mem::discriminant(&self.remote.state())));
        if let State::Connecting(Some(reason)) | State::Reconnecting(reason) = self.remote.state() {
            self.trace.note(format!("{reason:?}"));
        }
    }

    fn submit(&mut self, mut r: Record) {
        let nsid = r.pick(&[1u32, 1, 1, 2]);
        let Some(volume) = self.remote.namespace(nsid) else { return };
        let limits = volume.limits();
        let op = match r.below(8) {
            0..=2 => Op::Read,
            3 | 4 => Op::Write { fua: r.rarely(2) },
            5 => Op::Flush,
            6 => Op::WriteZeroes { deallocate: r.rarely(2), fua: false },
            _ => Op::Compare,
        };
        let supported = match op {
            Op::WriteZeroes { .. } => limits.write_zeroes,
            Op::Compare => limits.compare,
            _ => true,
        };
        let blocks = r.pick(&[1u32, 8, 32, 33, 64, 256]).min(limits.max_blocks);
        let lba = u64::from(r.byte());
        if !supported || limits.block_size != 512 || limits.blocks < lba + u64::from(blocks) {
            return;
        }
        let (blocks, len) = match op {
            Op::Flush => (0, 0),
            Op::WriteZeroes { .. } => (blocks, 0),
            _ => (blocks, blocks as usize * 512),
        };
        for _ in 0..1 + r.below(3) {
            let shard = r.below(SHARDS);
            let sgl = match op {
                _ if len == 0 => Sgl::empty(),
                // What lies behind it is not the target's to write.
                Op::Read => {
                    let memory = filled(len + BEHIND, UNTOUCHED);
                    self.reads.push((self.asked, lba, memory.clone()));
                    memory.slice(0, len)
                }
                _ => patterned(lba, blocks),
            };
            let request = Request { op, lba, blocks, sgl };
            self.on.submit(&self.io, &volume, (shard, self.asked), request);
            self.asked += 1;
        }
    }

    /// The next PDU is not what the target said.
    fn lie(&mut self, mut r: Record) {
        let (admin, kind) = (r.rarely(3), r.below(10));
        let (word, byte) = (r.word(), r.byte());
        let lie = match kind {
            0 | 1 => Lie::Header(word as u8, byte),
            2 => Lie::Data(word, byte),
            3 => Lie::Damage(word, byte),
            4 => Lie::Drop,
            5 => Lie::Twice,
            6 => Lie::Later,
            7 => Lie::Split(word, byte & 1 != 0),
            8 => Lie::Longer(byte),
            _ if byte & 1 == 0 => Lie::Short(word as u8),
            _ => Lie::End(word as u8),
        };
        self.lied |= admin;
        // What it gets as data then it cannot know to be wrong.
        let place = usize::from(word as u8) % 24;
        self.forged |= match lie {
            Lie::Header(..) => place == 8 || place == 9,
            Lie::Damage(..) => !self.digests,
            Lie::Data(..) | Lie::Short(_) => true,
            _ => false,
        };
        let lies = if admin { &mut self.on.proxy.admin } else { &mut self.on.proxy.io };
        lies.push(lie);
    }

    /// A PDU that the target never sent.
    fn invent(&mut self, mut r: Record) {
        let (kind, link) = (r.below(8), r.below(4));
        let recent = usize::from(r.byte());
        let cids = &self.on.proxy.cids;
        let cid = match cids.len() {
            0 => 0,
            n => cids[n - 1 - recent % n.min(8)],
        };
        let cid = if r.rarely(4) { r.word() } else { cid };
        let (from, len) = (r.odd() as u32, r.odd() as u32 & 0xffff);
        let ch = |pdu_type, hlen: u8, more: u8| CommonHdr {
            pdu_type,
            flags: more,
            hlen,
            pdo: 0,
            plen: hlen.into(),
        };
        let bytes = match kind {
            0..=2 => {
                let mut cqe = Cqe::new(cid, Status(u16::from(r.byte()) & 0x7ff));
                cqe.dw0 = from;
                CapsuleResp { ch: ch(PduType::CapsuleResp, 24, 0), cqe }.as_bytes().to_vec()
            }
            3 | 4 => {
                let r2to = if r.rarely(2) { from } else { 0 };
                R2t { ch: ch(PduType::R2t, 24, 0), cccid: cid, ttag: r.word(), r2to, r2tl: len, reserved: 0 }
                    .as_bytes()
                    .to_vec()
            }
            5 | 6 => {
                let datal = r.pick(&[512u32, 4096, 1, 16 << 10]);
                let datao = if r.rarely(2) { from } else { 0 };
                let mut ch = ch(PduType::C2hData, 24, r.byte() & 0x0f);
                (ch.pdo, ch.plen) = (24, 24 + datal);
                let header = DataHdr { ch, cccid: cid, ttag: 0, datao, datal, reserved: 0 };
                [header.as_bytes(), &vec![0x3c; datal as usize]].concat()
            }
            _ => {
                let mut term = TermReq::new_zeroed();
                term.ch = ch(PduType::C2hTermReq, 24, 0);
                term.fes.0 = u16::from(r.byte());
                term.as_bytes().to_vec()
            }
        };
        (self.lied, self.forged) = (true, true);
        self.on.proxy.say(link, &bytes);
    }

    fn revoke(&mut self, mut r: Record) {
        let Some(volume) = self.remote.namespace(1) else { return };
        let origin = self.io.origin();
        let one = Scope::Io(engine::IoId { origin, tag: u64::from(r.byte()) % self.asked.max(1) });
        self.take_back(&volume, if r.rarely(2) { one } else { Scope::Origin(origin) });
    }

    fn take_back(&self, volume: &Arc<RemoteNamespace>, scope: Scope) {
        let volume: Arc<dyn Volume> = volume.clone();
        for shard in 0..SHARDS {
            self.on.sim.on(shard, |shard| ChannelRef::open(&volume, shard).revoke(scope));
        }
    }

    fn end(self) {
        self.on.proxy.heal();
        let (io, asked, remote) = (self.io.clone(), self.asked as usize, self.remote.clone());
        let live = remote.clone();
        let back = self.on.until(PATIENCE, || live.state() == State::Live);
        assert!(back, "the remote does not come back: {:?}", remote.state());
        let patience = if self.lied { PATIENCE / 4 } else { PATIENCE };
        let answered = self.on.until(patience, || io.count() == asked);
        assert!(answered || self.lied, "{} of {asked} answered", io.count());
        if !answered {
            // A namespace that was first seen with another face is not taken for what it is now.
            for volume in remote.namespaces() {
                self.take_back(&volume, Scope::Origin(io.origin()));
            }
            self.on.pass(Duration::from_millis(100));
        }
        for (tag, lba, memory) in &self.reads {
            let got = bytes(memory);
            let (read, behind) = got.split_at(got.len() - BEHIND);
            assert!(behind.iter().all(|byte| *byte == UNTOUCHED), "more than was asked for");
            let done = io.result(*tag) == Some(Ok(()));
            assert!(!done || self.forged || right(*lba, read), "a read that succeeds gives other blocks");
        }
        for (_, result) in io.results() {
            self.trace.note(("io", format!("{result:?}")));
        }
        if !self.lied {
            assert!(self.on.works(&remote, THEIRS, 0), "the remote does not work after all");
        }
        remote.close();
        self.on.pass(Duration::from_millis(100));
        assert_eq!(io.count(), asked, "I/O is not answered, or twice");
        drop(self.on.subsystems[0].add_namespace(namespace(2, ram())));
    }
}
