//! A hostile client on vfio-user: messages and descriptors that are right but for a field, a length or an order.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use engine::testing::fuzz::{Input, Record, Subject, Trace};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_proto::Sqe;

use super::House;
use super::client::{Client, Manner, RAM, command, longs, words};
use super::host::{DATA, Pair};
use crate::world::settle;

/// Clients of a run: two of each controller, of which one waits until the other is gone.
const CLIENTS: usize = 4;

/// Clients that say anything.
pub struct Streams {
    house: House,
    /// Descriptors of every kind.
    fds: Vec<OwnedFd>,
}

struct Run<'a> {
    on: &'a Streams,
    trace: &'a mut Trace,
    clients: [Option<Client>; CLIENTS],
    /// In the order in which they came.
    order: Vec<usize>,
    /// Answers are awaited after each message.
    polite: bool,
    /// Bytes after which a message is cut in two.
    cut: usize,
}

impl Subject for Streams {
    fn new() -> Self {
        let event = || OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let (short, _) = engine::mem::Mapping::memfd("short", 4096).map(|(_, fd)| (fd, ())).unwrap();
        let fds = vec![
            event(),
            event(),
            File::open("/dev/zero").unwrap().into(),
            File::open("/proc/self/exe").unwrap().into(),
            nix::unistd::pipe().unwrap().0,
            short,
            File::open("/").unwrap().into(),
        ];
        let mut streams = Streams { house: House::new(), fds };
        streams.house.leavings = streams.house.leavings();
        streams
    }

    fn run(&mut self, input: &Input, trace: &mut Trace) {
        let before = self.house.rejections();
        let clients = [const { None }; CLIENTS];
        let mut run = Run { on: self, trace, clients, order: Vec::new(), polite: true, cut: 0 };
        for record in input.records() {
            run.act(record);
        }
        run.end();
        self.house.note_rejections(&before, trace);
        self.house.come_to_rest();
        self.house.neighbour_lives();
    }

    fn check(&mut self) {
        self.house.check();
    }

    fn close(self) {
        self.house.close();
    }
}

impl Run<'_> {
    fn client(&mut self, at: usize) -> &mut Client {
        if self.clients[at].is_none() {
            self.clients[at] = Some(self.on.house.client(at % 2));
            self.order.retain(|other| *other != at);
            self.order.push(at);
        }
        self.clients[at].as_mut().unwrap()
    }

    fn fds(&self, at: usize, r: &mut Record) -> Vec<OwnedFd> {
        let ram = || self.clients[at].as_ref().map(|client| client.ram_fd.try_clone().unwrap());
        let n = r.pick(&[0usize, 1, 1, 1, 2, 3, 16, 17, 64]);
        let first = r.below(10);
        let each = |i: usize| match self.on.fds.get((first + i) % 10) {
            Some(fd) => Some(fd.try_clone().unwrap()),
            None => ram(),
        };
        (0..n).filter_map(each).collect()
    }

    /// Sends a message, of which the record changes something, or nothing.
    fn send(&mut self, at: usize, command: u16, body: &[u8], fds: &[OwnedFd], mut how: Record) {
        let (polite, cut) = (self.polite, self.cut);
        let house = &self.on.house;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let client = self.client(at);
        let flags = how.pick(&[0u32, 0, 0, 0, 0, 0, 1 << 4]);
        let mut bytes = client.message(command, flags, body);
        let (kind, place, value) = (how.below(12), usize::from(how.byte()), how.byte());
        match kind {
            8 => {
                bytes[place % 16] = value;
                client.wild = true;
            }
            9 if bytes.len() > 16 => {
                let place = 16 + place % (bytes.len() - 16);
                bytes[place] = value;
                client.wild |= command == command::REGION_READ || command == command::VERSION;
            }
            10 => {
                bytes.truncate(place.max(1).min(bytes.len()));
                client.wild = true;
            }
            11 => {
                bytes.extend(vec![value; place]);
                client.wild = true;
            }
            _ => {}
        }
        // A server that was not greeted ends the connection at its own time.
        if client.wild || cut == 0 || bytes.len() <= cut {
            if client.wild { client.write(&bytes, &fds) } else { client.ask(&bytes, &fds) }
        } else {
            client.wild = true;
            client.write(&bytes[..cut], &fds);
            settle(&house.sim, Duration::ZERO);
            client.write(&bytes[cut..], &[]);
        }
        self.look(at, polite);
    }

    fn look(&mut self, at: usize, polite: bool) {
        let house = &self.on.house;
        // The second client of a controller is not let in before the first has left.
        let mut others = self.order.iter().filter(|other| **other % 2 == at % 2);
        let first =
            others.find(|other| self.clients[**other].as_ref().is_some_and(|c| !c.ended)) == Some(&at);
        let Some(client) = &mut self.clients[at] else { return };
        if polite && first {
            house.exchange(client, self.trace);
        } else {
            settle(&house.sim, Duration::ZERO);
            client.receive(&house.sim, self.trace);
            client.serve();
        }
        client.replies.clear();
    }

    fn act(&mut self, mut r: Record) {
        let kind = r.below(20);
        let at = r.pick(&[0usize, 0, 1, 1, 2, 3]);
        self.trace.note(("act", kind));
        match kind {
            0 => self.version(at, r),
            1 | 2 => self.host(at, r),
            3 | 4 => {
                let fds = self.fds(at, &mut r);
                let flags = r.pick(&[3u32, 3, 3, 1, 2, 0, 4, 7]);
                let argsz = r.pick(&[32u32, 32, 32, 0, 31, u32::MAX]);
                let mut words_ = [0u64, DATA, 0x1000];
                for word in &mut words_ {
                    if r.rarely(3) {
                        *word = r.odd();
                    }
                }
                self.send(at, command::DMA_MAP, &[words(&[argsz, flags]), longs(&words_)].concat(), &fds, r);
            }
            5 => {
                let flags = r.pick(&[0u32, 0, 0, 2, 1, 3]);
                let (gpa, size) = match r.below(5) {
                    0 => (0, DATA),
                    1 => (DATA, RAM as u64 - DATA),
                    2 => (0, 0),
                    3 => (DATA, 0x1000),
                    _ => (r.odd(), r.odd()),
                };
                self.send(
                    at,
                    command::DMA_UNMAP,
                    &[words(&[24, flags]), longs(&[gpa, size])].concat(),
                    &[],
                    r,
                );
            }
            6 => {
                let command = r.pick(&[command::GET_INFO, command::GET_REGION_INFO, command::GET_IRQ_INFO]);
                let argsz = r.pick(&[32u32, 64, 16, 0, 15, u32::MAX]);
                let index = r.odd() as u32;
                let body = match command {
                    command::GET_INFO => words(&[argsz, 0, 0, 0]),
                    command::GET_REGION_INFO => words(&[argsz, 0, index % 12, 0, 0, 0, 0, 0]),
                    _ => words(&[argsz, 0, index % 7, 0]),
                };
                self.send(at, command, &body, &[], r);
            }
            7 | 8 => {
                let fds = self.fds(at, &mut r);
                let flags = r.pick(&[4u32, 4, 1, 2, 0, 5]) | r.pick(&[32u32, 32, 8, 16, 0, 40]);
                let index = r.pick(&[2u32, 2, 0, 3, 1, 4, 5]);
                let (start, count) = match r.below(4) {
                    0 => (r.odd() as u32, r.odd() as u32),
                    1 => (0, fds.len() as u32),
                    _ => (r.below(10) as u32, fds.len() as u32),
                };
                let mut body = words(&[20, flags, index, start, count]);
                body.extend(r.rest());
                self.send(at, command::SET_IRQS, &body, &fds, r);
            }
            9 | 10 => {
                let (region, offset) = (r.pick(&[0u32, 0, 7, 4, 1, 8, 9, u32::MAX]), r.odd());
                let count = r.pick(&[4u32, 8, 1, 2, 3, 0, 4096, 65536, 65537, u32::MAX]);
                self.send(
                    at,
                    command::REGION_READ,
                    &[longs(&[offset]), words(&[region, count])].concat(),
                    &[],
                    r,
                );
            }
            11..=13 => {
                let registers =
                    [0x14u64, 0x14, 0x0c, 0x10, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x1000, 0x1004, 0x1008];
                let region = r.pick(&[0u32, 0, 0, 7, 4, 2]);
                let offset = if r.rarely(3) { r.odd() } else { r.pick(&registers) };
                let value = if r.rarely(3) { r.odd() } else { 4 << 20 | 6 << 16 | u64::from(r.byte()) };
                let width = r.pick(&[4usize, 4, 4, 8, 1, 2, 3, 0]);
                let value = &value.to_le_bytes()[..width];
                let body = [&longs(&[offset])[..], &words(&[region, width as u32]), value].concat();
                self.send(at, command::REGION_WRITE, &body, &[], r);
            }
            14 => {
                let command = r.pick(&[
                    command::RESET,
                    command::RESET,
                    command::DMA_READ,
                    command::DMA_WRITE,
                    6,
                    14,
                    0,
                    0xffff,
                ]);
                let body = r.rest().to_vec();
                let body = if command == command::RESET { Vec::new() } else { body };
                self.send(at, command, &body, &[], r);
            }
            15 => {
                let fds = self.fds(at, &mut r);
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                let bytes = r.rest().to_vec();
                let client = self.client(at);
                client.wild = true;
                client.write(&bytes, &fds);
                self.look(at, false);
            }
            16 => self.on.house.bury(self.clients[at].take()),
            17 => match r.below(4) {
                0 => self.client(at).half_close(),
                1 => {
                    let len = r.pick(&[0, DATA, 0x3000]);
                    self.client(at).cut(len);
                }
                2 => {
                    let manners = [
                        Manner::Right,
                        Manner::Narrow,
                        Manner::Refused,
                        Manner::Short,
                        Manner::AnotherId,
                        Manner::AnotherAddress,
                        Manner::Never,
                    ];
                    self.client(at).manner = r.pick(&manners);
                }
                _ => {
                    // A reply that nobody waits for.
                    let (command, flags) = (u16::from(r.byte() & 15), r.pick(&[1u32, 0x21, 0x11]));
                    let body = r.rest().to_vec();
                    let client = self.client(at);
                    let bytes = client.message(command, flags, &body);
                    client.write(&bytes, &[]);
                }
            },
            18 => {
                let time = r.pick(&[1u64, 20, 300, 1600, 4000, 11_000]);
                settle(&self.on.house.sim, Duration::from_millis(time));
                self.look(at, false);
            }
            _ => {
                self.polite = r.rarely(2);
                self.cut = r.pick(&[0usize, 0, 1, 15, 16, 17, 40]);
            }
        }
    }

    fn version(&mut self, at: usize, mut r: Record) {
        let json: &[u8] = match r.below(8) {
            0 => b"",
            1 => b"{\"capabilities\":{\"max_data_xfer_size\":4096}}\0",
            2 => b"{\"capabilities\":{\"max_msg_fds\":0}}",
            3 => b"{\"capabilities\":[[[[[[[[[[",
            4 => b"{\"capabilities\":{\"max_data_xfer_size\":1}}",
            _ => b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}\0",
        };
        let (major, minor) = (r.pick(&[0u8, 0, 0, 0, 1]), r.byte());
        self.send(at, command::VERSION, &[&[major, 0, minor, 0], json].concat(), &[], r);
    }

    /// A client that does everything right up to an enabled controller and a command of it.
    fn host(&mut self, at: usize, mut r: Record) {
        // Of a controller's two clients it is the first, since only that one is served.
        let (at, shared) = (at % 2, !r.rarely(3));
        self.on.house.bury([at, at + 2].into_iter().filter_map(|at| self.clients[at].take()));
        let (house, trace) = (&self.on.house, &mut *self.trace);
        let mut client = house.client(at);
        if house.greet(&mut client, trace) {
            house.map(&mut client, trace, 0, DATA, shared);
            house.map(&mut client, trace, DATA, RAM as u64, !r.rarely(3));
            if house.enable(&mut client, trace) {
                let mut admin = Pair::new(0, 16, 16);
                let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
                admin.place(&client, identify);
                admin.told += 1;
                house.post(&mut client, 0, 0x1000, &1u32.to_le_bytes());
                house.exchange(&mut client, trace);
                settle(&house.sim, Duration::from_millis(1));
                house.exchange(&mut client, trace);
                if let Some(cqe) = admin.poll(&client, true, trace) {
                    assert!(cqe.status().is_success());
                }
            }
        }
        client.replies.clear();
        self.order.retain(|other| other % 2 != at);
        self.order.push(at);
        self.clients[at] = Some(client);
    }

    fn end(&mut self) {
        let (house, trace) = (&self.on.house, &mut *self.trace);
        for client in &mut self.clients {
            let Some(mut client) = client.take() else { continue };
            settle(&house.sim, Duration::ZERO);
            client.receive(&house.sim, trace);
            client.check_memory();
            house.bury([client]);
            // The next one of this controller is let in.
            settle(&house.sim, Duration::from_millis(1));
        }
    }
}
