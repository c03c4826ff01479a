//! A vfio-user client by hand: messages out, and answers that are held against what was asked.

use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use engine::Sim;
use engine::mem::Mapping;
use engine::ring::{receive_with_fds, send_with_fds};
use engine::testing::fuzz::Trace;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::world::{keeps_secrets, with_chunk};

/// Bytes of guest memory.
pub const RAM: usize = 192 << 10;
/// Where what a guest maps ends: nobody is to touch what lies beyond.
pub const MAPPED: u64 = RAM as u64 - 0x4000;
/// What lies there.
pub const BEYOND: u8 = 0xc4;
/// How its file is called in /proc/self/maps.
pub const RAM_NAME: &str = "fuzzed-guest";
const NO_REPLY: u32 = 1 << 4;

pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const RESET: u16 = 13;
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// How questions for memory are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Manner {
    #[default]
    Right,
    /// With counts of 32 bits, as older clients.
    Narrow,
    Refused,
    Short,
    AnotherId,
    AnotherAddress,
    Never,
}

struct Asked {
    id: u16,
    command: u16,
    /// Bytes of the body of a reply that is no error, where they are known.
    len: Option<usize>,
}

/// A reply.
pub struct Reply {
    pub errno: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// What the server wants to know of memory.
struct Question {
    id: u16,
    command: u16,
    body: Vec<u8>,
}

pub struct Client {
    stream: UnixStream,
    /// [`Sim::stirred`] when everything was taken that had come.
    stirred: u64,
    received: Vec<u8>,
    fds: Vec<OwnedFd>,
    asked: VecDeque<Asked>,
    questions: VecDeque<Question>,
    pub replies: VecDeque<Reply>,
    next: u16,
    /// What was sent cannot be followed any more.
    pub wild: bool,
    /// The server hung up.
    pub ended: bool,
    pub manner: Manner,
    pub ram: Arc<Mapping>,
    pub ram_fd: OwnedFd,
    cut: bool,
    /// Where what was mapped ends.
    limit: usize,
}

/// A guest's memory.
pub struct Memory {
    ram: Arc<Mapping>,
    fd: OwnedFd,
}

impl Client {
    /// With memory of its own, or what another that is gone has left.
    pub fn connect(path: &Path, memory: Option<Memory>) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        let clear = |memory: &Memory| memory.ram.sgl(0, RAM).unwrap().zero(0, RAM);
        let Memory { ram, fd: ram_fd } = memory.inspect(clear).unwrap_or_else(|| {
            let file = File::from(memfd_create(RAM_NAME, MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(RAM as u64).unwrap();
            let fd = OwnedFd::from(file);
            Memory { ram: Arc::new(Mapping::shared(&fd, 0, RAM, true).unwrap()), fd }
        });
        Client {
            stream,
            stirred: u64::MAX,
            received: Vec::new(),
            fds: Vec::new(),
            asked: VecDeque::new(),
            questions: VecDeque::new(),
            replies: VecDeque::new(),
            next: 0,
            wild: false,
            ended: false,
            manner: Manner::Right,
            ram,
            ram_fd,
            cut: false,
            limit: RAM,
        }
    }

    /// From here on the end of its memory is nobody else's.
    pub fn hold_back(&mut self) {
        self.limit = MAPPED as usize;
        self.put(MAPPED, &[BEYOND; RAM - MAPPED as usize]);
    }

    /// Leaves its memory to another, if nobody has cut the file.
    pub fn leave(self) -> Option<Memory> {
        let Client { ram, ram_fd: fd, .. } = self;
        (!self.cut).then_some(Memory { ram, fd })
    }

    /// Cuts the file behind its memory.
    pub fn cut(&mut self, len: u64) {
        self.cut = true;
        File::from(self.ram_fd.try_clone().unwrap()).set_len(len).unwrap();
    }

    /// A message of its own.
    pub fn message(&mut self, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
        self.next = self.next.wrapping_add(1);
        let mut bytes = [self.next.to_le_bytes(), command.to_le_bytes()].concat();
        bytes.extend(words(&[16 + body.len() as u32, flags, 0]));
        bytes.extend(body);
        bytes
    }

    /// Sends a whole message, whose answer is awaited if it wants one.
    pub fn ask(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (id, command) = (word(0) as u16, (word(0) >> 16) as u16);
        if word(8) & NO_REPLY == 0 && word(8) & 0xf == 0 {
            let len = match command {
                command::REGION_READ if bytes.len() >= 32 => Some(16 + word(28) as usize),
                command::REGION_WRITE => Some(16),
                command::DMA_MAP | command::RESET | command::SET_IRQS => Some(0),
                command::DMA_UNMAP => Some(bytes.len() - 16),
                _ => None,
            };
            self.asked.push_back(Asked { id, command, len });
        }
        self.write(bytes, fds);
    }

    pub fn write(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let sent = send_with_fds(self.stream.as_fd(), bytes, fds).unwrap_or(0);
        self.wild |= sent < bytes.len();
    }

    pub fn half_close(&mut self) {
        self.wild = true;
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Takes what has come. Whether it was anything.
    pub fn receive(&mut self, sim: &Sim, trace: &mut Trace) -> bool {
        if self.ended || self.stirred == sim.stirred() {
            return false;
        }
        self.stirred = sim.stirred();
        let mut any = false;
        with_chunk(|chunk| {
            while !self.ended {
                match receive_with_fds(self.stream.as_fd(), chunk, &mut self.fds) {
                    Ok(0) => self.ended = true,
                    Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => self.ended = true,
                }
                any = true;
            }
        });
        if self.ended {
            trace.note("end");
        }
        while self.received.len() >= 16 {
            let word = |at: usize| u32::from_le_bytes(self.received[at..at + 4].try_into().unwrap());
            let (first, size, flags, errno) = (word(0), word(4) as usize, word(8), word(12));
            assert!((16..=2 << 20).contains(&size) && flags & !0x21 == 0, "{size} bytes, flags {flags:#x}");
            if self.received.len() < size {
                break;
            }
            let rest = self.received.split_off(size);
            let body = std::mem::replace(&mut self.received, rest).split_off(16);
            let (id, command) = (first as u16, (first >> 16) as u16);
            keeps_secrets(&body);
            if flags & 1 == 0 {
                assert!(flags == 0 && matches!(command, command::DMA_READ | command::DMA_WRITE));
                trace.note(("question", command, self.manner));
                self.questions.push_back(Question { id, command, body });
                continue;
            }
            assert_eq!(flags & 0x20 != 0, errno != 0);
            assert!(errno == 0 || body.is_empty(), "a refusal with a body");
            trace.note(("reply", command, errno));
            let asked = self.asked.pop_front();
            if !self.wild {
                let asked = asked.expect("a reply to nothing");
                assert_eq!((asked.id, asked.command), (id, command), "replies keep the order of requests");
                assert!(
                    errno != 0 || asked.len.is_none_or(|len| len == body.len()),
                    "{command}: {}",
                    body.len()
                );
            }
            self.replies.push_back(Reply { errno, body, fds: std::mem::take(&mut self.fds) });
        }
        any
    }

    /// Whether an answer is still to come.
    pub fn waits(&self) -> bool {
        !self.ended && !self.wild && !self.asked.is_empty()
    }

    /// Answers what the server wants to know, as its manner is. Whether there was anything.
    pub fn serve(&mut self) -> bool {
        let mut any = false;
        while let Some(question) = self.questions.pop_front() {
            any = true;
            self.answer(&question);
        }
        any
    }

    fn answer(&mut self, question: &Question) {
        let Question { mut id, command, ref body } = *question;
        let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let (gpa, wide) = (long(0) as usize, long(8));
        let (count, at) = match self.manner {
            Manner::Narrow => (wide & 0xffff_ffff, 12),
            _ => (wide, 16),
        };
        let count = count as usize;
        // The first question may be one that only clients with counts of 32 bits understand.
        let memory = self.ram.sgl(gpa, count);
        assert!(memory.is_none() || gpa + count <= self.limit, "asks for what is not mapped");
        let mut answer = body[..16].to_vec();
        let mut errno = 0;
        match (memory, command) {
            (None, _) => errno = 14,
            (Some(_), _) if count > 1 << 20 => errno = 7,
            (Some(sgl), command::DMA_READ) => {
                answer.resize(16 + count, 0);
                sgl.copy_out(0, &mut answer[at..at + count]);
            }
            (Some(sgl), _) => {
                let bytes = body.get(at..at + count).expect("as many bytes as it says");
                keeps_secrets(bytes);
                sgl.copy_in(0, bytes);
            }
        }
        match self.manner {
            Manner::Right | Manner::Narrow => {}
            Manner::Refused => errno = 5,
            Manner::Short => answer.truncate(answer.len() / 2),
            Manner::AnotherId => id = id.wrapping_add(1),
            Manner::AnotherAddress => answer[0] ^= 0x40,
            Manner::Never => return,
        }
        let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
        let (flags, answer) = if errno == 0 { (1, answer) } else { (0x21, Vec::new()) };
        bytes.extend(words(&[16 + answer.len() as u32, flags, errno]));
        bytes.extend(answer);
        self.write(&bytes, &[]);
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        if let Some(sgl) = usize::try_from(at).ok().and_then(|at| self.ram.sgl(at, bytes.len())) {
            sgl.copy_in(0, bytes);
        }
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.sgl(at as usize, len).unwrap().copy_out(0, &mut bytes);
        bytes
    }

    /// Nothing in guest memory is somebody else's. What comes there comes by blocks, and is looked for by samples.
    pub fn check_memory(&self) {
        let secret = [crate::world::SECRET; 8];
        let all = self.ram.sgl(0, RAM).unwrap();
        with_chunk(|chunk| {
            for at in (0..RAM).step_by(chunk.len()) {
                let part = &mut chunk[..(RAM - at).min(64 << 10)];
                all.copy_out(at, part);
                let found = part.chunks(256).any(|some| some.starts_with(&secret));
                assert!(!found, "bytes of another host in guest memory");
            }
        });
        let beyond = self.get(self.limit as u64, RAM - self.limit);
        assert!(
            self.cut || beyond.iter().all(|byte| *byte == BEYOND),
            "memory was written that is not mapped"
        );
    }
}
