//! A guest that does anything with a controller: its registers, its queues, its lists and its data, while commands are
//! at work. As long as it keeps to the rules every command must be answered once, and in the right place.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use engine::mem::Mapping;
use engine::testing::fuzz::{Input, Record, Subject, Trace};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_proto::Sqe;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::feature::FeatureId;
use nvme_proto::zerocopy::IntoBytes;

use super::House;
use super::client::{Client, MAPPED, Manner, command, longs, words};
use super::host::{DATA, LISTS, Pair, QUEUES, base, ring};
use crate::world::{SECRET, THEIRS, namespace, ram, settle, with_chunk};

/// Guests.
pub struct Guest {
    house: House,
    events: Vec<EventFd>,
}

struct Run<'a> {
    on: &'a Guest,
    trace: &'a mut Trace,
    client: Client,
    doorbells: Option<Mapping>,
    /// Which of the controllers.
    controller: usize,
    pairs: Vec<Option<Pair>>,
    /// It has done something after which it cannot tell what it will see in its queues.
    wild: bool,
    /// The file behind its memory was cut.
    condemned: bool,
    /// A region of data is mapped.
    mapped: bool,
    /// Completions are left where they are.
    lazy: bool,
    /// In the end it resets its controller and begins anew, where others just leave.
    stays: bool,
}

impl Subject for Guest {
    fn new() -> Self {
        let event = |_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let mut guest = Guest { house: House::new(), events: (0..4).map(event).collect() };
        guest.house.leavings = guest.house.leavings();
        guest
    }

    fn run(&mut self, input: &Input, trace: &mut Trace) {
        self.attack(input.records(), trace, None);
    }

    fn check(&mut self) {
        self.house.check();
    }

    fn close(self) {
        self.house.close();
    }
}

impl Guest {
    /// A guest's life from its connection on. `meanwhile` does something of its own to its memory, from when it has
    /// queues until it does nothing more.
    pub fn attack(
        &mut self,
        mut records: impl Iterator<Item = Record>,
        trace: &mut Trace,
        meanwhile: Option<&dyn Meanwhile>,
    ) {
        let before = self.house.rejections();
        let Some(mut first) = records.next() else { return };
        let mut run = Run::begin(self, trace, &mut first);
        if let Some(meanwhile) = meanwhile {
            run.wild = true;
            meanwhile.begin(&run.client.ram);
        }
        for record in records {
            run.act(record);
            if !run.lazy {
                run.reap(1);
            }
        }
        if let Some(meanwhile) = meanwhile {
            meanwhile.end();
        }
        run.end();
        let client = run.leave();
        self.house.bury([client]);
        drop(self.house.attacked.remove_namespace(3));
        self.house.note_rejections(&before, trace);
        self.house.come_to_rest();
        self.house.neighbour_lives();
    }
}

/// What else happens to a guest's memory.
pub trait Meanwhile {
    fn begin(&self, memory: &Arc<Mapping>);
    fn end(&self);
}

impl<'a> Run<'a> {
    /// A guest with two I/O queue pairs.
    fn begin(on: &'a Guest, trace: &'a mut Trace, r: &mut Record) -> Self {
        let controller = r.below(2);
        let house = &on.house;
        let mut client = house.client(controller);
        assert!(house.greet(&mut client, trace));
        // Memory is mapped, or asked for by messages.
        let (queues, data) = (!r.rarely(8), !r.rarely(8));
        assert_eq!(house.map(&mut client, trace, 0, DATA, queues), 0);
        assert_eq!(house.map(&mut client, trace, DATA, MAPPED, data), 0);
        client.hold_back();
        let doorbells = house.doorbells(&mut client, trace);
        assert_eq!(doorbells.is_some(), controller == 0);
        if r.rarely(2) {
            let fds: Vec<_> = on.events.iter().map(AsFd::as_fd).collect();
            house.ask(&mut client, trace, command::SET_IRQS, &words(&[20, 4 | 32, 2, 0, 4]), &fds);
        }
        assert!(house.enable(&mut client, trace));
        let pairs = (0..QUEUES).map(|_| None).collect();
        let mut run = Run {
            on,
            trace,
            client,
            doorbells,
            controller,
            pairs,
            wild: false,
            condemned: false,
            mapped: true,
            lazy: false,
            stays: false,
        };
        run.pairs[0] = Some(Pair::new(0, 16, 16));
        let pairs: Vec<_> = (1..=2)
            .map(|qid| {
                let entries = r.pick(&[16u32, 16, 2, 5, 64]);
                (qid, entries, r.pick(&[entries, entries, 2, 3, 64]))
            })
            .collect();
        run.make_queues(&pairs);
        run.stays = r.rarely(2);
        run
    }

    fn leave(self) -> Client {
        self.client
    }

    /// Makes queue pairs: their identifiers, and the entries of their submission and completion queues.
    fn make_queues(&mut self, all: &[(u16, u32, u32)]) {
        let commands: Vec<_> = all.iter().map(|&(qid, sq, cq)| House::create(qid, sq, cq)).collect();
        let mut made = vec![true; all.len()];
        for &(qid, ..) in all {
            if let Some(sgl) = self.client.ram.sgl(base(qid) as usize, 0x2000) {
                sgl.zero(0, 0x2000);
            }
        }
        // Completion queues first: what a submission queue names is there when it is made.
        for step in 0..2 {
            for (at, sqes) in commands.iter().enumerate() {
                made[at] &= self.place(0, sqes[step]);
            }
            self.tell(0);
            self.reap(0);
        }
        for (&(qid, sq, cq), _) in all.iter().zip(made).filter(|(_, made)| *made) {
            self.pairs[usize::from(qid)] = Some(Pair::new(qid, sq, cq));
        }
    }

    fn bell(&mut self, at: usize, value: u32) {
        match &self.doorbells {
            Some(page) => ring(page, at, value),
            None => self.on.house.post(&mut self.client, 0, 0x1000 + at as u64, &value.to_le_bytes()),
        }
    }

    /// Puts a command into a queue and rings.
    fn submit(&mut self, qid: u16, sqe: Sqe) -> bool {
        let placed = self.place(qid, sqe);
        self.tell(qid);
        self.settle();
        placed
    }

    fn place(&mut self, qid: u16, sqe: Sqe) -> bool {
        let Some(pair) = self.pairs[usize::from(qid)].as_mut().filter(|pair| pair.has_room()) else {
            return false;
        };
        pair.place(&self.client, sqe);
        true
    }

    fn tell(&mut self, qid: u16) {
        let Some(pair) = &mut self.pairs[usize::from(qid)] else { return };
        pair.told = pair.placed;
        let tail = pair.tail;
        self.bell(usize::from(qid) * 8, tail);
    }

    /// The controller works, and asks for memory where it must.
    fn settle(&mut self) {
        for _ in 0..64 {
            settle(&self.on.house.sim, Duration::ZERO);
            if !(self.client.receive(&self.on.house.sim, self.trace) | self.client.serve()) {
                break;
            }
        }
        self.client.replies.clear();
    }

    /// Takes completions of the admin queue and, from `from` on, of others.
    fn reap(&mut self, from: usize) {
        self.settle();
        for qid in 0..self.pairs.len() {
            if qid >= from || qid == 0 {
                self.reap_one(qid, usize::MAX);
            }
        }
        self.settle();
    }

    fn reap_one(&mut self, qid: usize, most: usize) {
        let strict = !self.wild;
        let mut any = false;
        for _ in 0..most.min(256) {
            let Some(pair) = &mut self.pairs[qid] else { return };
            if pair.poll(&self.client, strict, self.trace).is_none() {
                break;
            }
            any = true;
        }
        if let (true, Some(head)) = (any, self.pairs[qid].as_ref().map(|pair| pair.head)) {
            self.bell(qid * 8 + 4, head);
        }
    }

    fn act(&mut self, mut r: Record) {
        let kind = r.below(30);
        self.trace.note(("act", kind, self.wild));
        match kind {
            0..=6 => self.io(r),
            7..=9 => self.admin(r),
            10 | 11 => self.list(r),
            12 | 13 => self.segments(r),
            14 => {
                // Words anywhere in lists and data: nobody else's business.
                let at = LISTS + (r.odd() % (MAPPED - LISTS - 64)) / 4 * 4;
                let bytes = r.rest().iter().map(|byte| if *byte == SECRET { THEIRS } else { *byte });
                self.client.put(at, &bytes.collect::<Vec<_>>());
            }
            15 => {
                self.wild = true;
                let (at, value) = (r.below(64) * 4, r.odd() as u32);
                self.bell(at, value);
                self.settle();
            }
            16 => self.register(r),
            17 => {
                let at = r.odd() % 0x4000;
                self.on.house.register(&mut self.client, self.trace, at);
            }
            18 => {
                // A queue entry that was told of is another one now.
                self.wild = true;
                let qid = r.below(3) as u16;
                let at = base(qid) + r.odd() % 0x1000;
                let bytes = r.rest().to_vec();
                self.client.put(at, &bytes);
                self.tell(qid);
                self.settle();
            }
            19 | 20 => {
                let time = r.pick(&[1u64, 3, 20, 300, 1600, 4000]);
                settle(&self.on.house.sim, Duration::from_millis(time));
            }
            21 => self.remap(r),
            22 => self.configure(r),
            23 => self.interrupts(r),
            24 => self.change(r),
            25 => self.reset(r),
            26 => {
                self.wild = true;
                self.condemned = true;
                self.client.cut(r.pick(&[0, base(1), DATA, DATA + 0x2000]));
                self.settle();
            }
            27 => {
                let manners = [
                    Manner::Right,
                    Manner::Narrow,
                    Manner::Refused,
                    Manner::Short,
                    Manner::AnotherId,
                    Manner::AnotherAddress,
                    Manner::Never,
                ];
                self.client.manner = r.pick(&manners);
                self.wild |= self.client.manner != Manner::Right;
            }
            28 => {
                let (qid, entries) = (1 + r.below(usize::from(QUEUES) - 1) as u16, r.pick(&[16u32, 3, 64]));
                if self.pairs[usize::from(qid)].is_none() {
                    self.make_queues(&[(qid, entries, r.pick(&[entries, 2, 4]))]);
                }
            }
            _ => {
                let (qid, n) = (r.below(3), r.below(4));
                self.reap_one(qid, n);
                self.lazy = r.rarely(2);
            }
        }
    }

    /// An address: data, a list, a queue, a register, nowhere.
    fn address(&mut self, r: &mut Record) -> u64 {
        let (kind, n) = (r.below(16), u64::from(r.word()));
        let data = DATA + n % 0x1e * 0x1000;
        match kind {
            0..=8 => data,
            9 | 10 => data + (n & 0xffc),
            11 => data + (n & 0xfff),
            12 => LISTS + n % 0x5000,
            13 => {
                self.wild = true;
                n % DATA
            }
            14 => MAPPED - 0x1000 + (n & 0x1ffc),
            _ => 0xfe00_0000 + n * 8,
        }
    }

    fn io(&mut self, mut r: Record) {
        let qid = 1 + r.below(2) as u16;
        let opc =
            r.pick(&[1u8, 1, 1, 2, 2, 2, 0, 4, 5, 8, 9, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, 0x7f, 0x80]);
        let nsid = r.pick(&[1u32, 1, 1, 2, 3, 0, u32::MAX]);
        let blocks = r.pick(&[1u32, 8, 8, 9, 16, 24, 64, 256, 2048, 65536]);
        let lba = if r.rarely(8) { r.odd() } else { r.below(40) as u64 };
        let mut sqe = Sqe { opc, nsid, cdw12: blocks - 1, ..Sqe::default() };
        sqe.set_slba(lba);
        match opc {
            9 => (sqe.cdw10, sqe.cdw11) = (blocks & 0xff, 4),
            0x0d | 0x11 | 0x15 => (sqe.cdw10, sqe.cdw11) = (lba as u32 & 0x1f | blocks << 8, 0),
            0x0e => (sqe.cdw10, sqe.cdw11) = (blocks, lba as u32 & 1),
            _ => {}
        }
        let length = if opc == 0x0e { blocks * 4 + 4 } else { blocks * 512 };
        sqe.dptr[0] = self.address(&mut r);
        match r.below(8) {
            0..=2 => sqe.dptr[1] = LISTS + u64::from(r.byte() & 3) * 0x1000 + u64::from(r.byte()) * 8,
            3 => sqe.dptr[1] = self.address(&mut r),
            4 | 5 => {
                let (kind, at) =
                    (r.pick(&[SglType::Segment.0, SglType::LastSegment.0, SglType::DataBlock.0]), r.byte());
                let at = LISTS + 0x4000 + u64::from(at) * 16;
                let (at, length) = match SglType(kind) {
                    SglType::DataBlock => {
                        let more = r.pick(&[0i32, 0, 0, 512, -512, 1, 1 << 20]);
                        (sqe.dptr[0], length.saturating_add_signed(more))
                    }
                    _ => (at, 16 * (1 + u32::from(r.byte() & 15))),
                };
                sqe.set_sgl(SglDescriptor::new(SglType(kind), SglSubtype::Address, at, length));
            }
            6 => sqe.flags.set_psdt(r.byte() & 3),
            _ => {}
        }
        sqe.flags.set_fuse(r.pick(&[0u8, 0, 0, 0, 0, 0, 0, 1, 2, 3]));
        // Data that is read into guest memory through a list must not come over the queues.
        let more = r.rarely(3);
        self.wild |= self.lists_reach_queues();
        if more {
            self.place(qid, sqe);
        } else {
            self.submit(qid, sqe);
        }
    }

    /// Whether a list names queue memory: entries are looked at as both kinds of list have them.
    fn lists_reach_queues(&self) -> bool {
        let lists = self.client.ram.sgl(LISTS as usize, (DATA - LISTS) as usize).unwrap();
        with_chunk(|chunk| {
            let bytes = &mut chunk[..(DATA - LISTS) as usize];
            lists.copy_out(0, bytes);
            let word = |eight: &[u8]| u64::from_le_bytes(eight.try_into().unwrap());
            bytes.chunks_exact(8).map(word).any(|word| word > 0x1000 && word < DATA)
        })
    }

    fn admin(&mut self, mut r: Record) {
        let opc = r.pick(&[6u8, 6, 2, 2, 9, 9, 0x0a, 8, 0x0c, 0x0c, 0, 4, 1, 5, 0x7c, 0x18, 0x7f, 0xff]);
        let (cdw10, cdw11) = (r.odd() as u32, r.odd() as u32);
        let mut sqe = Sqe { opc, nsid: r.pick(&[0u32, 1, 2, u32::MAX]), cdw10, cdw11, ..Sqe::default() };
        sqe.dptr[0] = self.address(&mut r);
        sqe.dptr[1] = if r.rarely(2) { self.address(&mut r) } else { 0 };
        match opc {
            2 => sqe.cdw10 = cdw11 << 16 & 0x07ff_0000 | cdw10 & 0x80ff,
            9 | 0x0a => {
                sqe.cdw10 &= 0x8000_07ff;
                // Who asks for a Keep Alive Timeout is to keep it, or its controller fails.
                self.wild |= opc == 9 && FeatureId(sqe.cdw10 as u8) == FeatureId::KeepAliveTimer;
            }
            8 => sqe.cdw10 = cdw10 & 3 | cdw11 << 16,
            0 | 4 => {
                let qid = cdw10 & 7;
                sqe.cdw10 = qid;
                self.wild |= qid == 0;
                if opc == 0
                    && qid > 0
                    && let Some(pair) = self.pairs.get_mut(qid as usize)
                {
                    // What was in it is answered or not.
                    *pair = None;
                    self.wild = true;
                }
            }
            1 | 5 => {
                self.wild = true;
                (sqe.cdw10, sqe.cdw11) = ((cdw10 & 63) << 16 | cdw11 & 7, cdw11 >> 3 << 16 | cdw10 >> 6 & 7);
                sqe.dptr[0] &= !0xfff;
            }
            0x7c => {
                // From here on it does not ring as it should.
                self.wild = true;
                sqe.dptr = sqe.dptr.map(|at| at & !0xfff);
            }
            _ => {}
        }
        self.wild |= self.lists_reach_queues();
        if self.pairs[0].as_ref().is_some_and(|pair| pair.patient < 8) {
            self.submit(0, sqe);
        }
    }

    /// Entries of a PRP list.
    fn list(&mut self, mut r: Record) {
        let mut at = LISTS + u64::from(r.byte() & 3) * 0x1000 + u64::from(r.byte()) * 8;
        let n = r.pick(&[1usize, 2, 4, 8, 32, 64, 256, 511]);
        let stride = u64::from(r.pick(&[1u8, 1, 1, 0, 2]));
        let first = self.address(&mut r);
        let mut entries = Vec::new();
        for i in 0..n as u64 {
            let page = first.wrapping_add(i * stride * 0x1000);
            entries.push(if (DATA..MAPPED + 0x8000).contains(&page) || i == 0 { page } else { DATA });
        }
        self.client.put(at, &longs(&entries));
        if r.rarely(2) {
            // A chain, or a loop.
            at |= 0xff8;
            let next =
                LISTS + u64::from(r.byte() & 3) * 0x1000 + u64::from(r.pick(&[0u8, 0, 8, 4, 0xf8])) * 8;
            self.client.put(at, &longs(&[next]));
        }
    }

    /// Descriptors of an SGL.
    fn segments(&mut self, mut r: Record) {
        let at = LISTS + 0x4000 + u64::from(r.byte()) * 16;
        let mut bytes = Vec::new();
        for _ in 0..1 + r.below(3) {
            let kind = r.pick(&[0u8, 0, 0, 1, 2, 3, 3, 4, 15]);
            let length = r.pick(&[512u32, 512, 4096, 1024, 16, 48, 0, 1, u32::MAX]);
            let address = match kind {
                2 | 3 => LISTS + 0x4000 + u64::from(r.byte()) * 16,
                _ => self.address(&mut r),
            };
            bytes.extend(SglDescriptor::new(SglType(kind), SglSubtype::Address, address, length).as_bytes());
        }
        self.client.put(at, &bytes);
    }

    fn register(&mut self, mut r: Record) {
        let known = [0x14u64, 0x14, 0x14, 0x0c, 0x10, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34];
        let at = if r.rarely(4) { r.odd() % 0x1000 } else { r.pick(&known) };
        let value = match r.below(6) {
            0 => r.odd(),
            1 => 0x46_0000,
            2 => 0x46_4001,
            3 => 0x46_8001,
            4 => 0x4e56_4d65,
            _ => 0x46_0001,
        };
        self.wild |= !matches!(at, 0x0c | 0x10);
        let width = r.pick(&[4usize, 4, 4, 8, 2, 1]);
        self.on.house.post(&mut self.client, 0, at, &value.to_le_bytes()[..width]);
        self.settle();
    }

    /// Memory goes and comes, while commands use it.
    fn remap(&mut self, mut r: Record) {
        let (house, trace) = (&self.on.house, &mut *self.trace);
        let queues = r.rarely(6);
        self.wild |= queues;
        let (from, to) = if queues { (0, DATA) } else { (DATA, MAPPED) };
        if self.mapped || queues {
            let body = [words(&[24, 0]), longs(&[from, to - from])].concat();
            house.ask(&mut self.client, trace, command::DMA_UNMAP, &body, &[]);
        }
        if queues || !self.mapped {
            house.map(&mut self.client, trace, from, to, !r.rarely(4));
        }
        self.mapped ^= !queues;
    }

    /// Configuration space: memory and bus master, INTx, MSI-X, function-level reset.
    fn configure(&mut self, mut r: Record) {
        let at = r.pick(&[0x04u64, 0x04, 0x52, 0x52, 0x10, 0x20, 0x44, 0x68, 0x68, 0x3c]);
        let value = r.odd().to_le_bytes();
        let width = r.pick(&[2usize, 4, 1]);
        self.wild |= matches!(at, 0x04 | 0x44 | 0x68);
        self.on.house.post(&mut self.client, 7, at, &value[..width]);
        let mut table = r.rest().to_vec();
        table.truncate(8);
        self.on.house.post(&mut self.client, 4, r.odd() % 0x2000, &table);
        self.on.house.exchange(&mut self.client, self.trace);
    }

    fn interrupts(&mut self, mut r: Record) {
        let flags = r.pick(&[4u32, 4, 1, 2]) | r.pick(&[32u32, 32, 8, 16]);
        let (index, start, count) = (r.pick(&[2u32, 2, 0]), r.below(4) as u32, r.below(5) as u32);
        let fds: Vec<_> = self.on.events.iter().map(AsFd::as_fd).take(count as usize).collect();
        let fds = if flags & 4 != 0 && !r.rarely(4) { &fds[..] } else { &[] };
        let mut body = words(&[20, flags, index, start, count]);
        body.extend(r.rest());
        self.on.house.ask(&mut self.client, self.trace, command::SET_IRQS, &body, fds);
    }

    /// The control plane does something meanwhile.
    fn change(&mut self, mut r: Record) {
        let attacked = &self.on.house.attacked;
        match r.below(3) {
            0 => drop(attacked.add_namespace(namespace(3, ram()))),
            1 => drop(attacked.remove_namespace(3)),
            _ => drop(attacked.refresh_namespace(1)),
        }
        self.settle();
    }

    fn reset(&mut self, mut r: Record) {
        self.wild = true;
        if r.rarely(2) {
            let reply = self.on.house.ask(&mut self.client, self.trace, command::RESET, &[], &[]);
            let errno = reply.map_or(0, |reply| reply.errno);
            assert!(errno == 0, "a reset ends with {errno}");
        } else {
            // By configuration space, and nobody waits for it.
            self.on.house.post(&mut self.client, 7, 0x68, &0x8000u16.to_le_bytes());
            self.settle();
        }
    }

    /// What was asked is answered; and whatever the guest has done, its controller can be used again.
    fn end(&mut self) {
        for qid in 0..self.pairs.len() as u16 {
            self.tell(qid);
        }
        if self.client.manner != Manner::Right {
            self.client.manner = Manner::Right;
        }
        // A completion queue may hold one entry at a time.
        for round in 0..160 {
            self.reap(1);
            if round >= 16 && self.pairs.iter().flatten().all(|pair| pair.outstanding() <= pair.patient) {
                break;
            }
            settle(&self.on.house.sim, Duration::from_millis(if round % 2 == 0 { 1 } else { 400 }));
        }
        for pair in self.pairs.iter().flatten().filter(|_| !self.wild) {
            let waits = pair.outstanding();
            assert!(waits <= pair.patient, "{waits} commands are never answered: {pair:?}");
        }
        self.client.check_memory();
        if self.condemned || self.client.ended || !self.wild || !self.stays {
            return;
        }
        let (house, trace) = (&self.on.house, &mut *self.trace);
        let reply = house.ask(&mut self.client, trace, command::RESET, &[], &[]);
        assert!(reply.is_some_and(|reply| reply.errno == 0), "a reset does not end");
        let all = [words(&[24, 2]), longs(&[0, 0])].concat();
        let reply = house.ask(&mut self.client, trace, command::DMA_UNMAP, &all, &[]);
        assert!(reply.is_some_and(|reply| reply.errno == 0), "memory cannot be unmapped");
        assert_eq!(house.map(&mut self.client, trace, 0, MAPPED, true), 0);
        assert!(
            house.enable(&mut self.client, trace),
            "the controller {} is not enabled again",
            self.controller
        );
        self.wild = false;
        self.pairs.fill_with(|| None);
        self.pairs[0] = Some(Pair::new(0, 16, 16));
        self.submit(0, Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() });
        self.reap(0);
        let done = self.pairs[0].as_ref().is_some_and(|pair| pair.done == 1);
        assert!(done && self.client.get(DATA + 4, 8) == *b"FUZZ0001", "no answer after a reset");
    }
}
