//! Hosts that say anything: messages, registers, commands. Nothing of it may harm anyone but them.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::Sqe;
use nvme_proto::zerocopy::FromBytes;

use crate::client::{Client, DATA, RAM, event, longs, rw, words};
use crate::rig::Rig;

/// Numbers that are the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Mostly small or close to a power of two, at times anything.
    fn odd(&mut self) -> u64 {
        let n = self.next();
        match n % 6 {
            0 => n >> 8 & 0xf,
            1 => n >> 8 & 0xfff,
            2 => (1u64 << (n >> 8 & 63)).wrapping_add(n >> 16 & 3).wrapping_sub(2),
            3 => n >> 8 & 0x1ff_f000,
            4 => u64::MAX - (n >> 8 & 0xff),
            _ => n,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.odd().to_le_bytes()).take(len).collect()
    }
}

fn still_works(rig: &Rig) {
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
}

#[test]
fn f63_messages_of_any_kind() {
    let rig = Rig::new("fuzz-messages", Doorbells::Mapped);
    let mut random = Random(63);
    for _ in 0..60 {
        let mut c = rig.connect();
        c.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let events = [event(), event()];
        let zero = std::fs::File::open("/dev/zero").unwrap();
        for _ in 0..100 {
            let command = (random.next() % 19) as u16;
            // Bodies that begin as the specification's do, and go on as they like.
            let mut body = match command {
                2 => [words(&[32, 3]), longs(&[random.odd(), random.odd(), random.odd()])].concat(),
                3 => [words(&[24, 0]), longs(&[random.odd(), random.odd()])].concat(),
                8 => {
                    let flags = 1 << (random.next() % 3) | 8 << (random.next() % 3);
                    words(&[20, flags, (random.next() % 6) as u32, random.odd() as u32, random.odd() as u32])
                }
                9 | 10 => {
                    let count = random.next() % 64;
                    let access = [longs(&[random.odd()]), words(&[(random.next() % 9) as u32, count as u32])];
                    let data = if command == 10 { random.bytes(count as usize) } else { Vec::new() };
                    [access.concat(), data].concat()
                }
                _ => {
                    let n = random.below(80);
                    random.bytes(n)
                }
            };
            if random.below(8) == 0 {
                body.truncate(random.below(40));
            }
            let fds = [c.ram_fd.try_clone().unwrap(), zero.try_clone().unwrap().into()];
            let chosen = [fds[0].as_fd(), events[0].as_fd(), fds[1].as_fd(), events[1].as_fd()];
            let (first, n) = (random.below(4), random.below(3));
            let chosen = &chosen[first..(first + n).min(4)];
            // Without replies, so that nobody has to read them; DEVICE_RESET and unmaps are done all the same.
            c.send(command, 1 << 4, &body, chosen);
        }
    }
    still_works(&rig);
}

#[test]
fn f63_streams_of_any_bytes() {
    use std::io::Write;
    let rig = Rig::new("fuzz-streams", Doorbells::Trapped);
    let mut random = Random(64);
    for _ in 0..200 {
        let mut stream = UnixStream::connect(rig.handle().path()).unwrap();
        let n = random.below(300);
        let mut bytes = random.bytes(n);
        if random.below(2) == 0 && bytes.len() > 16 {
            bytes[4..8].copy_from_slice(&200u32.to_le_bytes());
            bytes[8..12].copy_from_slice(&[0; 4]);
        }
        let _ = stream.write_all(&bytes);
    }
    still_works(&rig);
}

#[test]
fn commands_of_any_kind_are_all_answered() {
    for doorbells in [Doorbells::Mapped, Doorbells::Trapped] {
        let rig = Rig::new(&format!("fuzz-commands-{doorbells:?}"), doorbells);
        let mut random = Random(80);
        let mut c = rig.host();
        let mut q = c.create(1, 64);
        for _ in 0..3000 {
            let mut sqe = Sqe::read_from_bytes(&random.bytes(64)).unwrap();
            let opcodes = [0u8, 1, 2, 4, 5, 8, 9, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, random.next() as u8];
            sqe.opc = opcodes[random.below(14)];
            sqe.nsid = [1, 1, 1, 0, u32::MAX, random.next() as u32][random.below(6)];
            let cid = c.submit(&mut q, sqe);
            assert_eq!(c.wait(&mut q).cid, cid);
        }
        assert_eq!(c.register(0x1c) & 3, 1);
        drop((c, q));
        still_works(&rig);
    }
}

#[test]
fn admin_commands_of_any_kind_are_answered_or_wait_for_events() {
    let rig = Rig::new("fuzz-admin", Doorbells::Trapped);
    let mut random = Random(50);
    let mut c = rig.host();
    for round in 0..2000 {
        let mut sqe = Sqe::read_from_bytes(&random.bytes(64)).unwrap();
        let opcodes = [0u8, 1, 2, 4, 5, 6, 8, 9, 0x0a, 0x18, 0x7c, random.next() as u8];
        sqe.opc = opcodes[random.below(12)];
        sqe.nsid = [0, 1, u32::MAX][random.below(3)];
        if sqe.opc == 0x0c || random.below(4) == 0 {
            // Queues that can be, now and then, so that others come and go.
            (sqe.opc, sqe.cdw10, sqe.cdw11) = (5, (15 << 16) | (1 + round % 4), 3);
            sqe.dptr[0] = DATA;
        }
        sqe.flags = Default::default();
        let cid = c.submit_admin(sqe);
        let until = Instant::now() + Duration::from_secs(10);
        while c.reap_admin() != Some(cid) {
            assert!(Instant::now() < until, "opcode {:#x} is not answered", sqe.opc);
        }
    }
    drop(c);
    still_works(&rig);
}

#[test]
fn registers_and_doorbells_of_any_value() {
    let rig = Rig::new("fuzz-registers", Doorbells::Trapped);
    let mut random = Random(72);
    let mut c: Client = rig.connect();
    c.map(0, 0, RAM as u64, true);
    for _ in 0..4000 {
        let at = match random.next() % 4 {
            0 => 0x1000 + random.next() % 64 * 4,
            1 => [0x0c, 0x10, 0x14, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34][random.below(9)],
            2 => random.next() % 0x70,
            _ => random.next() % 0x4000,
        };
        let value = if random.below(3) == 0 {
            4 << 20 | 6 << 16 | (random.next() & 1) as u32
        } else {
            random.odd() as u32
        };
        c.post(at, value);
    }
    c.register(0x1c);
    drop(c);
    still_works(&rig);
}
