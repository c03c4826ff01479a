//! Controllers over vfio-user, and the clients around them: what both fuzzers of this transport have in common.

mod client;
mod guest;
mod host;
mod race;
mod stream;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::mem::Mapping;
use engine::testing::fuzz::Trace;
use engine::testing::{Collector, bytes, filled};
use engine::{ChannelRef, Op, ShardHandle, Sim, Volume};
use frontend::vfio_user::{Handle, Options, Reject, Server, socket_path};
use frontend::{Doorbells, Subsystem};
use nvme_proto::Sqe;

use crate::world::{SECRET, descriptors, in_flight, namespace, ram, settle, slow, subsystem};
use client::{BEYOND, Client, Memory, RAM, RAM_NAME, Reply, command, longs, words};
use host::{Pair, base, ring};

pub use guest::Guest;
pub use race::Race;
pub use stream::Streams;

const SHARDS: usize = 2;
/// Virtual and real time in which everything is answered: a reset takes 4 s at most, an unmap 3 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rounds of questions and answers before one answer: more, and it never comes.
const ENDLESS: usize = 20_000;

/// Two controllers of one subsystem, with mapped and with trapped doorbells, and the neighbour's own.
pub struct House {
    sim: Sim,
    attacked: Arc<Subsystem>,
    neighbours: Arc<Subsystem>,
    /// Where the blocks of the attacked namespaces are.
    media: [Arc<dyn Volume>; 2],
    dir: PathBuf,
    handles: Vec<Handle>,
    neighbour: RefCell<Option<Neighbour>>,
    rested: Rested,
    leavings: Leavings,
    /// Memory that nobody uses, and that whose users may still be about to go.
    memories: RefCell<Vec<Memory>>,
    left: RefCell<Vec<Memory>>,
}

struct Neighbour {
    client: Client,
    doorbells: Mapping,
    pair: Pair,
    turn: u64,
}

/// What there is while nobody attacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rested {
    in_flight: Vec<usize>,
    queues: usize,
    /// Who has the subsystem.
    owners: usize,
}

/// What there is between runs, besides; it takes long to be counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Leavings {
    descriptors: usize,
    /// Mappings of guests' memory.
    maps: usize,
}

/// Runs what waits for a shard beside the shards.
fn beside<R: Send>(sim: &Sim, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(f);
        while !thread.is_finished() {
            settle(sim, Duration::from_millis(1));
            std::thread::yield_now();
        }
        thread.join().unwrap()
    })
}

impl House {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("isthmus-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let sim = Sim::new(SHARDS).unwrap();
        let attacked = subsystem(&sim, "nqn.2024-01.test:attacked", &[]);
        let media: [Arc<dyn Volume>; 2] = [ram(), ram()];
        attacked.add_namespace(namespace(1, slow(media[0].clone()))).unwrap();
        attacked.add_namespace(namespace(2, media[1].clone())).unwrap();
        let neighbours = subsystem(&sim, "nqn.2024-01.test:neighbours", &[]);
        neighbours.add_namespace(namespace(1, ram())).unwrap();
        let handles = sim.handles();
        let listen = |shard: &ShardHandle, subsystem: &Arc<Subsystem>, name: &str, doorbells| {
            let path = socket_path(&dir, name, None).unwrap();
            let options =
                Options { doorbells, max_queue_entries: 64, max_io_queues: 8, ..Options::default() };
            beside(&sim, || Server::listen(shard, subsystem, &path, options).unwrap())
        };
        let handles = vec![
            listen(&handles[1], &attacked, "mapped", Doorbells::Mapped),
            listen(&handles[1], &attacked, "trapped", Doorbells::Trapped),
            listen(&handles[1], &neighbours, "neighbour", Doorbells::Mapped),
        ];
        let mut house = House {
            sim,
            attacked,
            neighbours,
            media,
            dir,
            handles,
            neighbour: RefCell::default(),
            rested: Rested::default(),
            leavings: Leavings::default(),
            memories: RefCell::default(),
            left: RefCell::default(),
        };
        house.admit_neighbour();
        (house.rested, house.leavings) = (house.rest(), house.leavings());
        house
    }

    /// A client of one of the attacked controllers.
    fn client(&self, controller: usize) -> Client {
        Client::connect(self.handles[controller].path(), self.memories.borrow_mut().pop())
    }

    /// Keeps the memory of clients that are gone until everything is at rest.
    fn bury(&self, clients: impl IntoIterator<Item = Client>) {
        self.left.borrow_mut().extend(clients.into_iter().filter_map(Client::leave));
    }

    /// Lets the shards work, and serves the client, until it has its answers.
    fn exchange(&self, client: &mut Client, trace: &mut Trace) {
        let (began, since) = (Instant::now(), self.sim.now());
        let mut step = Duration::from_micros(100);
        let mut came = 0;
        for round in 0u32.. {
            settle(&self.sim, Duration::ZERO);
            if client.receive(&self.sim, trace) | client.serve() {
                came += 1;
                assert!(came < ENDLESS, "the server asks for memory for ever");
                continue;
            }
            if !client.waits() {
                break;
            }
            if round % 16 == 15 {
                settle(&self.sim, step);
                step = (step * 2).min(Duration::from_millis(200));
            }
            let late = began.elapsed() > PATIENCE && self.sim.now() - since > PATIENCE;
            assert!(!late, "a message is not answered");
        }
    }

    /// Asks, and gets the answer; `None` when the server hung up.
    fn ask(
        &self,
        client: &mut Client,
        trace: &mut Trace,
        command: u16,
        body: &[u8],
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> Option<Reply> {
        client.replies.clear();
        let bytes = client.message(command, 0, body);
        client.ask(&bytes, fds);
        self.exchange(client, trace);
        client.replies.pop_back()
    }

    fn post(&self, client: &mut Client, region: u32, at: u64, data: &[u8]) {
        let body = [&longs(&[at])[..], &words(&[region, data.len() as u32]), data].concat();
        let bytes = client.message(command::REGION_WRITE, 1 << 4, &body);
        client.ask(&bytes, &[]);
        settle(&self.sim, Duration::ZERO);
    }

    fn register(&self, client: &mut Client, trace: &mut Trace, at: u64) -> Option<u32> {
        let body = [longs(&[at]), words(&[0, 4])].concat();
        let reply = self.ask(client, trace, command::REGION_READ, &body, &[])?;
        Some(u32::from_le_bytes(reply.body.get(16..20)?.try_into().unwrap()))
    }

    fn greet(&self, client: &mut Client, trace: &mut Trace) -> bool {
        let json = b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576}}\0";
        let body = [&[0, 0, 0, 0], &json[..]].concat();
        self.ask(client, trace, command::VERSION, &body, &[]).is_some_and(|reply| reply.errno == 0)
    }

    /// Maps guest memory from `from` to `to` where it is; with a descriptor, or to be asked for by messages.
    fn map(&self, client: &mut Client, trace: &mut Trace, from: u64, to: u64, shared: bool) -> u32 {
        use std::os::fd::AsFd;
        let body = [words(&[32, 3]), longs(&[from, from, to - from])].concat();
        let fd = client.ram_fd.try_clone().unwrap();
        let fds: &[_] = if shared { &[fd.as_fd()] } else { &[] };
        self.ask(client, trace, command::DMA_MAP, &body, fds).map_or(u32::MAX, |reply| reply.errno)
    }

    /// The doorbells' page, where the server lets it be mapped.
    fn doorbells(&self, client: &mut Client, trace: &mut Trace) -> Option<Mapping> {
        let body = words(&[64, 0, 0, 0, 0, 0, 0, 0]);
        let reply = self.ask(client, trace, command::GET_REGION_INFO, &body, &[])?;
        let fd = reply.fds.first()?;
        Mapping::shared(fd, 0x1000, 4096, true).ok()
    }

    /// Admin queues of 16 entries, and CC.EN. Whether it is ready then.
    fn enable(&self, client: &mut Client, trace: &mut Trace) -> bool {
        if let Some(sgl) = client.ram.sgl(base(0) as usize, 0x2000) {
            sgl.zero(0, 0x2000);
        }
        // Command: memory space and bus master; AQA, ASQ and ACQ, CC: in one go.
        let (sq, cq) = (base(0), base(0) + 0x1000);
        let registers = [
            (7, 0x04, 6),
            (0, 0x24, 15 << 16 | 15),
            (0, 0x28, sq),
            (0, 0x2c, 0),
            (0, 0x30, cq),
            (0, 0x34, 0),
            (0, 0x14, 4 << 20 | 6 << 16 | 1),
        ];
        let message = |(region, at, value)| {
            let body = [longs(&[at]), words(&[region, 4, value as u32])].concat();
            client.message(command::REGION_WRITE, 1 << 4, &body)
        };
        let all: Vec<u8> = registers.into_iter().flat_map(message).collect();
        client.write(&all, &[]);
        settle(&self.sim, Duration::ZERO);
        for _ in 0..20 {
            match self.register(client, trace, 0x1c) {
                Some(csts) if csts & 3 == 0 => settle(&self.sim, Duration::from_millis(100)),
                csts => return csts.is_some_and(|csts| csts & 3 == 1),
            }
        }
        false
    }

    /// The commands that make a pair of queues with so many entries.
    fn create(qid: u16, entries: u32, cq_entries: u32) -> [Sqe; 2] {
        let size = |entries: u32| (entries - 1) << 16 | u32::from(qid);
        let cq = Sqe {
            opc: 5,
            dptr: [base(qid) + 0x1000, 0],
            cdw10: size(cq_entries),
            cdw11: u32::from(qid) << 16 | 3,
            ..Sqe::default()
        };
        let sq = Sqe {
            opc: 1,
            dptr: [base(qid), 0],
            cdw10: size(entries),
            cdw11: u32::from(qid) << 16 | 1,
            ..Sqe::default()
        };
        [cq, sq]
    }

    fn admit_neighbour(&mut self) {
        let (mut client, mut trace) = (self.client(2), Trace::default());
        assert!(self.greet(&mut client, &mut trace));
        assert_eq!(self.map(&mut client, &mut trace, 0, RAM as u64, true), 0);
        let doorbells = self.doorbells(&mut client, &mut trace).unwrap();
        assert!(self.enable(&mut client, &mut trace));
        let mut neighbour = Neighbour { client, doorbells, pair: Pair::new(0, 16, 16), turn: 0 };
        for sqe in Self::create(1, 16, 16) {
            self.neighbourly(&mut neighbour, sqe);
        }
        neighbour.pair = Pair::new(1, 16, 16);
        self.neighbour.replace(Some(neighbour));
        self.neighbour_lives();
    }

    /// One command of the neighbour, which must succeed.
    fn neighbourly(&self, n: &mut Neighbour, sqe: Sqe) {
        n.pair.place(&n.client, sqe);
        n.pair.told += 1;
        let at = usize::from(n.pair.qid) * 8;
        ring(&n.doorbells, at, n.pair.tail);
        let until = Instant::now() + PATIENCE;
        let cqe = loop {
            settle(&self.sim, Duration::from_micros(10));
            if let Some(cqe) = n.pair.poll(&n.client, true, &mut Trace::default()) {
                break cqe;
            }
            assert!(Instant::now() < until, "the neighbour gets no answer");
        };
        assert!(cqe.status().is_success(), "the neighbour's {sqe:?} ends with {:?}", cqe.status());
        ring(&n.doorbells, at + 4, n.pair.head);
    }

    /// The neighbour writes blocks and reads them back.
    fn neighbour_lives(&self) {
        let mut neighbour = self.neighbour.borrow_mut();
        let n = neighbour.as_mut().unwrap();
        n.turn += 1;
        let (from, to) = (host::DATA, host::DATA + 0x1000);
        n.client.put(from, &[SECRET; 4096]);
        n.client.put(to, &[0; 4096]);
        let mut write = Sqe { opc: 1, nsid: 1, dptr: [from, 0], cdw12: 7, ..Sqe::default() };
        write.set_slba(n.turn % 64 * 8);
        self.neighbourly(n, write);
        self.neighbourly(n, Sqe { opc: 2, dptr: [to, 0], ..write });
        assert!(n.client.get(to, 4096) == [SECRET; 4096], "its blocks changed");
    }

    fn rest(&self) -> Rested {
        Rested {
            in_flight: in_flight(&self.sim, SHARDS),
            queues: self.attacked.controllers().iter().map(|c| c.queue_count()).sum(),
            owners: Arc::strong_count(&self.attacked),
        }
    }

    fn leavings(&self) -> Leavings {
        self.memories.borrow_mut().clear();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let maps = maps.lines().filter(|line| line.contains(RAM_NAME)).count();
        Leavings { descriptors: descriptors(), maps }
    }

    /// Nothing of the last clients is left in the process.
    fn check(&self) {
        assert_eq!(self.leavings(), self.leavings, "something of a client stays behind");
        let (io, read) = (Collector::new(), filled(64 << 10, 0));
        for (tag, volume) in (0..).zip(&self.media) {
            self.sim.on(0, |shard| {
                io.submit(&ChannelRef::open(volume, shard), tag, Op::Read, 0, 128, read.clone());
            });
            settle(&self.sim, Duration::from_millis(1));
            assert_eq!(io.result(tag), Some(Ok(())));
            let taken = bytes(&read).chunks(16).any(|some| some == [BEYOND; 16]);
            assert!(!taken, "memory was read that is not mapped");
        }
    }

    /// Everything of a run is gone, or it never will be.
    fn come_to_rest(&self) {
        let until = Instant::now() + PATIENCE * 2;
        loop {
            settle(&self.sim, Duration::from_millis(200));
            let connected = self.handles[..2].iter().any(Handle::is_connected);
            if !connected && self.rest() == self.rested {
                break;
            }
            let say = || format!("{:?}, at rest {:?}, connected: {connected}", self.rest(), self.rested);
            assert!(Instant::now() < until, "something of a client stays behind: {}", say());
        }
        self.memories.borrow_mut().append(&mut self.left.borrow_mut());
    }

    /// How often each kind of wrong was noted.
    fn rejections(&self) -> Vec<u64> {
        let handles = self.handles[..2].iter();
        handles.flat_map(|h| Reject::ALL.map(|kind| h.rejections().count(kind))).collect()
    }

    fn note_rejections(&self, before: &[u64], trace: &mut Trace) {
        for (kind, (before, now)) in before.iter().zip(self.rejections()).enumerate() {
            if now > *before {
                trace.note(("rejected", kind));
            }
        }
    }

    /// Ends everything in good order.
    fn close(mut self) {
        drop(self.neighbour.take());
        for handle in self.handles.drain(..) {
            assert!(beside(&self.sim, || handle.close(PATIENCE)), "a controller does not end");
        }
        let drains = [self.attacked.close(), self.neighbours.close()];
        settle(&self.sim, Duration::from_secs(5));
        drop(drains);
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.handles.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
