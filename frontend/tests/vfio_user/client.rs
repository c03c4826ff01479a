//! A host by hand: a vfio-user client with guest memory, and just enough of an NVMe driver.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::mem::Mapping;
use engine::ring::{receive_with_fds, send_with_fds};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_proto::register::doorbell_offset;
use nvme_proto::zerocopy::{FromBytes, IntoBytes};
use nvme_proto::{Cqe, Sqe};

pub const RAM: usize = 32 << 20;
/// Where tests put their data.
pub const DATA: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const RESET: u16 = 13;
}

pub struct Reply {
    pub errno: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

pub struct Queue {
    pub qid: u16,
    sq: u64,
    cq: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: bool,
}

/// How a client answers the server's questions for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    #[default]
    Right,
    /// Each with an error.
    Refused,
    /// Of other memory than was asked for.
    OfOther,
    /// A byte too few.
    Short,
    /// A byte too many.
    Long,
    /// With nothing but a header.
    Empty,
    /// Not at all.
    Never,
    /// Right, but not before [`Client::answer_at_last`].
    Later,
}

pub struct Client {
    pub stream: UnixStream,
    next: u16,
    pub ram: Arc<Mapping>,
    pub ram_fd: OwnedFd,
    doorbells: Option<Mapping>,
    pub admin: Queue,
    next_cid: u16,
    /// Shadow doorbells and event indexes.
    pub shadow: Option<(u64, u64)>,
    /// Takes counts of DMA messages to be 32 bits wide, as older QEMU does.
    pub narrow: bool,
    /// Doorbells written for real.
    pub rung: usize,
    pub answers: Answers,
    /// Questions that the server asked.
    pub asked: usize,
    /// Answers that wait, oldest first.
    pub withheld: Vec<Vec<u8>>,
}

impl Queue {
    pub fn at(qid: u16, sq: u64, cq: u64, entries: u32) -> Self {
        Queue { qid, sq, cq, entries, tail: 0, head: 0, phase: true }
    }
}

fn queue(qid: u16, entries: u32) -> Queue {
    let at = 0x10000 + u64::from(qid) * 0x20000;
    Queue::at(qid, at, at + 0x10000, entries)
}

/// A queue that is none, to stand in for one.
pub fn none() -> Queue {
    queue(0, 2)
}

/// What the memory files of this test's clients are called.
pub fn ram_name() -> String {
    format!("ram-{}", std::thread::current().name().unwrap_or_default())
}

impl Queue {
    /// One entry of a completion queue of so many is consumed.
    pub fn wrap(&mut self, entries: u32) {
        self.head += 1;
        if self.head == entries {
            (self.head, self.phase) = (0, !self.phase);
        }
    }

    /// The next entry of the completion queue.
    pub fn head(&self) -> u32 {
        self.head
    }
}

impl Client {
    /// Connects and shakes hands.
    pub fn connect(path: &Path) -> Self {
        Self::with_ram(path, RAM)
    }

    /// The same with so much memory.
    pub fn with_ram(path: &Path, bytes: usize) -> Self {
        let json = b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576}}\0";
        Self::greeting(path, bytes, json)
    }

    /// The same with other capabilities.
    pub fn greeting(path: &Path, bytes: usize, json: &[u8]) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (ram, ram_fd) = Mapping::memfd(&ram_name(), bytes).unwrap();
        let admin = queue(0, 32);
        let mut client = Client {
            stream,
            next: 0,
            ram: Arc::new(ram),
            ram_fd,
            doorbells: None,
            admin,
            next_cid: 0,
            shadow: None,
            narrow: false,
            rung: 0,
            answers: Answers::Right,
            asked: 0,
            withheld: Vec::new(),
        };
        let reply = client.ask(command::VERSION, &[&[0, 0, 0, 0], json].concat(), &[]);
        assert_eq!(reply.errno, 0);
        client
    }

    pub fn send(&mut self, command: u16, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u16 {
        self.next = self.next.wrapping_add(1);
        let mut bytes = Vec::new();
        bytes.extend(self.next.to_le_bytes());
        bytes.extend(command.to_le_bytes());
        bytes.extend(words(&[16 + body.len() as u32, flags, 0]));
        bytes.extend(body);
        let sent = loop {
            match send_with_fds(self.stream.as_fd(), &bytes, fds) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                sent => break sent.unwrap(),
            }
        };
        self.stream.write_all(&bytes[sent..]).unwrap();
        self.next
    }

    /// The next message: its header's words and what follows.
    fn receive(&mut self) -> (u16, u16, u32, Reply) {
        let mut header = [0; 16];
        let mut fds = Vec::new();
        let until = Instant::now() + PATIENCE;
        let n = loop {
            match receive_with_fds(self.stream.as_fd(), &mut header, &mut fds) {
                Ok(n) => break n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::yield_now();
                }
                Err(e) => panic!("no answer: {e}"),
            }
        };
        assert_ne!(n, 0, "the server hung up");
        self.stream.read_exact(&mut header[n..]).unwrap();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(4) as usize - 16];
        self.stream.read_exact(&mut body).unwrap();
        let (id, command) = (word(0) as u16, (word(0) >> 16) as u16);
        (id, command, word(8), Reply { errno: word(12), body, fds })
    }

    /// Receives a reply, and serves the server's questions for memory meanwhile.
    pub fn reply(&mut self) -> (u16, Reply) {
        loop {
            let (id, command, flags, message) = self.receive();
            if flags & 0xf == 1 {
                assert_eq!(flags & 0x20 != 0, message.errno != 0);
                return (id, message);
            }
            self.serve(id, command, &message.body);
        }
    }

    fn serve(&mut self, id: u16, command: u16, body: &[u8]) {
        self.asked += 1;
        let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let (gpa, wide) = (long(0) as usize, long(8));
        let (count, at) = match self.narrow {
            true => (wide & 0xffff_ffff, 12),
            false => (wide, 16),
        };
        let count = count as usize;
        let mut answer = body[..16].to_vec();
        let mut errno = 0;
        match command {
            command::DMA_READ if count > 1 << 20 => {
                (answer, errno) = (Vec::new(), 7);
            }
            command::DMA_READ => {
                answer.resize(16 + count, 0);
                self.ram.sgl(gpa, count).unwrap().copy_out(0, &mut answer[at..at + count]);
            }
            command::DMA_WRITE => self.ram.sgl(gpa, count).unwrap().copy_in(0, &body[at..at + count]),
            _ => panic!("the server asks {command}"),
        }
        match self.answers {
            Answers::Right | Answers::Later => {}
            Answers::Refused => errno = 14,
            Answers::OfOther => answer[0] ^= 1,
            Answers::Short => drop(answer.pop()),
            Answers::Long => answer.push(0),
            Answers::Empty => answer.clear(),
            Answers::Never => return,
        }
        let flags = if errno == 0 { 1 } else { 0x21 };
        let mut bytes = Vec::new();
        bytes.extend(id.to_le_bytes());
        bytes.extend(command.to_le_bytes());
        bytes.extend(words(&[16 + answer.len() as u32, flags, errno]));
        bytes.extend(answer);
        match self.answers {
            Answers::Later => self.withheld.push(bytes),
            _ => self.stream.write_all(&bytes).unwrap(),
        }
    }

    /// Waits until the server has asked so many questions that are not answered yet.
    pub fn withhold(&mut self, questions: usize) {
        self.answers = Answers::Later;
        let until = Instant::now() + PATIENCE;
        while self.withheld.len() < questions {
            assert!(Instant::now() < until, "{} questions", self.withheld.len());
            self.serve_pending();
        }
        self.answers = Answers::Right;
    }

    /// Gives the answers that wait, in their order.
    pub fn answer_at_last(&mut self) {
        for bytes in std::mem::take(&mut self.withheld) {
            self.stream.write_all(&bytes).unwrap();
        }
    }

    /// Serves what the server asks at the moment.
    pub fn serve_pending(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
        let mut first = [0; 1];
        let pending = nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(&self.stream),
            &mut first,
            nix::sys::socket::MsgFlags::MSG_PEEK,
        );
        self.stream.set_nonblocking(false).unwrap();
        if pending.is_ok_and(|n| n > 0) {
            let (id, command, flags, message) = self.receive();
            assert_eq!(flags & 0xf, 0, "a reply that nobody waits for");
            self.serve(id, command, &message.body);
        }
    }

    pub fn ask(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Reply {
        let asked = self.send(command, 0, body, fds);
        let (id, reply) = self.reply();
        assert_eq!(id, asked, "replies keep the order of requests");
        reply
    }

    pub fn map(&mut self, gpa: u64, offset: u64, size: u64, shared: bool) -> u32 {
        let body = [words(&[32, 3]), longs(&[offset, gpa, size])].concat();
        let fd = self.ram_fd.try_clone().unwrap();
        let fds: &[BorrowedFd<'_>] = if shared { &[fd.as_fd()] } else { &[] };
        self.ask(command::DMA_MAP, &body, fds).errno
    }

    pub fn unmap(&mut self, gpa: u64, size: u64) -> u32 {
        self.ask(command::DMA_UNMAP, &[words(&[24, 0]), longs(&[gpa, size])].concat(), &[]).errno
    }

    pub fn read(&mut self, region: u32, at: u64, count: u32) -> Vec<u8> {
        let body = [longs(&[at]), words(&[region, count])].concat();
        self.ask(command::REGION_READ, &body, &[]).body.split_off(16)
    }

    pub fn write(&mut self, region: u32, at: u64, data: &[u8]) -> u32 {
        let body = [&longs(&[at])[..], &words(&[region, data.len() as u32]), data].concat();
        self.ask(command::REGION_WRITE, &body, &[]).errno
    }

    /// As QEMU writes: nobody waits for the answer.
    pub fn post(&mut self, at: u64, value: u32) {
        let body = [longs(&[at]), words(&[0, 4, value])].concat();
        self.send(command::REGION_WRITE, 1 << 4, &body, &[]);
    }

    pub fn register(&mut self, at: u32) -> u32 {
        u32::from_le_bytes(self.read(0, at.into(), 4).try_into().unwrap())
    }

    /// Maps the doorbells, if the server lets its clients.
    pub fn map_doorbells(&mut self) -> bool {
        let info = |argsz| words(&[argsz, 0, 0, 0, 0, 0, 0, 0]);
        let first = self.ask(command::GET_REGION_INFO, &info(32), &[]);
        let argsz = u32::from_le_bytes(first.body[..4].try_into().unwrap());
        if argsz == 32 {
            return false;
        }
        assert_eq!((argsz, first.fds.len()), (64, 0));
        let second = self.ask(command::GET_REGION_INFO, &info(64), &[]);
        let area = u64::from_le_bytes(second.body[48..56].try_into().unwrap());
        assert_eq!((second.body.len(), area), (64, 0x1000));
        self.doorbells = Some(Mapping::shared(&second.fds[0], area, 4096, true).unwrap());
        true
    }

    pub fn vectors(&mut self, start: u32, events: &[&EventFd]) -> u32 {
        let fds: Vec<_> = events.iter().map(|e| e.as_fd()).collect();
        self.ask(command::SET_IRQS, &words(&[20, 4 | 32, 2, start, events.len() as u32]), &fds).errno
    }

    pub fn wait_csts(&mut self, mask: u32, value: u32) {
        let until = Instant::now() + PATIENCE;
        while self.register(0x1c) & mask != value {
            assert!(Instant::now() < until, "CSTS stays {:#x}", self.register(0x1c));
        }
    }

    /// Command: memory space, and bus master or not.
    pub fn master(&mut self, on: bool) {
        let command = 2 | u8::from(on) << 2;
        assert_eq!(self.write(7, 4, &[command, 0]), 0);
    }

    /// Enables the controller as QEMU's guests do: 64-bit registers in halves.
    pub fn enable(&mut self) {
        self.master(true);
        self.post(0x14, 0);
        self.wait_csts(1, 0);
        self.admin = queue(0, 32);
        self.ram.sgl(0x10000, 0x20000).unwrap().zero(0, 0x20000);
        self.post(0x24, 31 << 16 | 31);
        self.post(0x2c, 0);
        self.post(0x28, self.admin.sq as u32);
        self.post(0x30, self.admin.cq as u32);
        self.post(0x34, 0);
        self.post(0x14, 4 << 20 | 6 << 16 | 1);
        self.wait_csts(1, 1);
    }

    /// A new queue pair with vector `qid`.
    pub fn create(&mut self, qid: u16, entries: u32) -> Queue {
        let new = queue(qid, entries);
        self.ram.sgl(new.sq as usize, 0x20000).unwrap().zero(0, 0x20000);
        self.create_in(new)
    }

    /// A new queue pair where it is said to be, in memory that is zero, with vector `qid`.
    pub fn create_in(&mut self, new: Queue) -> Queue {
        let qid = new.qid;
        let size = (new.entries - 1) << 16 | u32::from(qid);
        let cq =
            Sqe { opc: 5, dptr: [new.cq, 0], cdw10: size, cdw11: u32::from(qid) << 16 | 3, ..Sqe::default() };
        assert!(self.admin(cq).status().is_success());
        let sq =
            Sqe { opc: 1, dptr: [new.sq, 0], cdw10: size, cdw11: u32::from(qid) << 16 | 1, ..Sqe::default() };
        assert!(self.admin(sq).status().is_success());
        new
    }

    pub fn ring(&mut self, qid: u16, completion: bool, value: u32) {
        let at = doorbell_offset(qid, completion);
        if let Some((shadow, events)) = self.shadow.filter(|_| qid != 0) {
            let word = |base: u64| self.ram.word((base + u64::from(at) - 0x1000) as usize).unwrap();
            let old = word(shadow).swap(value, Ordering::SeqCst);
            let event = word(events).load(Ordering::SeqCst);
            // The specification's rule, modulo 2^16: whether the event index lies between old and new.
            let (new, old, event) = (value as u16, old as u16, event as u16);
            if new.wrapping_sub(event).wrapping_sub(1) >= new.wrapping_sub(old) {
                return;
            }
        }
        self.rung += 1;
        match &self.doorbells {
            Some(page) => page.word(at as usize - 0x1000).unwrap().store(value, Ordering::Release),
            None => self.post(at.into(), value),
        }
    }

    pub fn submit(&mut self, queue: &mut Queue, sqe: Sqe) -> u16 {
        let cid = self.place(queue, sqe);
        self.ring(queue.qid, false, queue.tail);
        cid
    }

    /// Where the next command of a queue goes, for one who puts it there by hand.
    pub fn place_at(&mut self, queue: &mut Queue) -> u64 {
        let at = queue.sq + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % queue.entries;
        at
    }

    /// Puts a command into a queue; it is told of with the next one.
    pub fn place(&mut self, queue: &mut Queue, mut sqe: Sqe) -> u16 {
        self.next_cid = (self.next_cid + 1) % 0x7fff;
        sqe.cid = self.next_cid;
        let at = queue.sq as usize + queue.tail as usize * 64;
        self.ram.sgl(at, 64).unwrap().copy_in(0, sqe.as_bytes());
        queue.tail = (queue.tail + 1) % queue.entries;
        sqe.cid
    }

    /// The next completion, if it is there; it is not consumed.
    pub fn peek(&self, queue: &Queue) -> Option<Cqe> {
        let mut bytes = [0; 16];
        let at = queue.cq as usize + queue.head as usize * 16;
        let word = self.ram.word(at + 12).unwrap().load(Ordering::Acquire);
        if (word >> 16 & 1 == 1) != queue.phase {
            return None;
        }
        self.ram.sgl(at, 16).unwrap().copy_out(0, &mut bytes);
        Some(Cqe::read_from_bytes(&bytes).unwrap())
    }

    /// Whether the next `n` entries have come; none is consumed.
    pub fn filled(&self, queue: &Queue, n: u32) -> bool {
        (0..n).all(|i| {
            let (at, wrapped) = ((queue.head + i) % queue.entries, queue.head + i >= queue.entries);
            let word = self.ram.word(queue.cq as usize + at as usize * 16 + 12).unwrap();
            (word.load(Ordering::Acquire) >> 16 & 1 == 1) == (queue.phase != wrapped)
        })
    }

    /// The next completion, if it is there.
    pub fn poll(&mut self, queue: &mut Queue) -> Option<Cqe> {
        let cqe = self.peek(queue)?;
        queue.head += 1;
        if queue.head == queue.entries {
            queue.head = 0;
            queue.phase = !queue.phase;
        }
        self.ring(queue.qid, true, queue.head);
        Some(cqe)
    }

    pub fn wait(&mut self, queue: &mut Queue) -> Cqe {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(cqe) = self.poll(queue) {
                return cqe;
            }
            self.serve_pending();
            assert!(Instant::now() < until, "no completion");
            std::thread::yield_now();
        }
    }

    pub fn run(&mut self, queue: &mut Queue, sqe: Sqe) -> Cqe {
        let cid = self.submit(queue, sqe);
        let cqe = self.wait(queue);
        assert_eq!((cqe.cid, cqe.sqid), (cid, queue.qid));
        cqe
    }

    pub fn admin(&mut self, sqe: Sqe) -> Cqe {
        let mut admin = std::mem::replace(&mut self.admin, queue(0, 32));
        let cqe = self.run(&mut admin, sqe);
        self.admin = admin;
        cqe
    }

    pub fn submit_admin(&mut self, sqe: Sqe) -> u16 {
        let mut admin = std::mem::replace(&mut self.admin, none());
        let cid = self.submit(&mut admin, sqe);
        self.admin = admin;
        cid
    }

    /// The next completion's identifier, if it is there.
    pub fn reap_admin(&mut self) -> Option<u16> {
        let mut admin = std::mem::replace(&mut self.admin, none());
        let cqe = self.poll(&mut admin);
        self.admin = admin;
        cqe.map(|cqe| cqe.cid)
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.sgl(at as usize, bytes.len()).unwrap().copy_in(0, bytes);
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.sgl(at as usize, len).unwrap().copy_out(0, &mut bytes);
        bytes
    }
}

/// A read or a write of blocks by PRPs.
pub fn rw(write: bool, lba: u64, blocks: u32, prp1: u64, prp2: u64) -> Sqe {
    let mut sqe = Sqe { opc: if write { 1 } else { 2 }, nsid: 1, dptr: [prp1, prp2], ..Sqe::default() };
    sqe.set_slba(lba);
    sqe.cdw12 = blocks - 1;
    sqe
}

pub fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap()
}

/// Waits until an event was signalled.
pub fn await_event(event: &EventFd) {
    let until = Instant::now() + PATIENCE;
    while event.read().is_err() {
        assert!(Instant::now() < until, "no interrupt");
        std::thread::yield_now();
    }
}
