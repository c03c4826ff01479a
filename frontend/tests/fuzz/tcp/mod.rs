//! A hostile host on NVMe/TCP: a few connections, and PDUs that are right but for a byte, an order or a length.

mod peer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Sim;
use engine::testing::fuzz::{Input, Record, Subject, Trace};
use frontend::tcp::{Reason, Target, TargetConfig};
use frontend::{Local, Subsystem};
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::fabrics::{CNTLID_DYNAMIC, Cattr, Connect, ConnectData, Property};
use nvme_proto::nqn::DISCOVERY_NQN;
use nvme_proto::register::offset;
use nvme_proto::tcp::{PduType, R2t, TermReq};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Nqn, Sqe};

use crate::world::{SECRET, THEIRS, descriptors, in_flight, namespace, ram, settle, slow, subsystem};
use peer::Peer;

const SHARDS: usize = 2;
const ATTACKED: &str = "nqn.2024-01.test:attacked";
const NEIGHBOURS: &str = "nqn.2024-01.test:neighbours";
const HOST: &str = "nqn.2024-01.test:host";
const OTHER: &str = "nqn.2024-01.test:other";
const NEIGHBOUR: &str = "nqn.2024-01.test:neighbour";
/// Connections of a run at one time.
const PEERS: usize = 5;
/// The block that the neighbour's namespace begins with holds this many bytes in each of its commands.
const NEIGHBOURLY: usize = 16 << 10;

/// Bytes of data that no capsule may carry more of.
const MOST_IN_CAPSULE: usize = 16 << 10;

/// Whether [`Run::send`] changes the PDU by this record.
fn is_changed(mut how: Record) -> bool {
    how.below(10) > 5
}

/// The target, and the hosts around it.
pub struct Streams {
    sim: Sim,
    target: Target,
    attacked: Arc<Subsystem>,
    neighbours: Arc<Subsystem>,
    addr: SocketAddr,
    neighbour: Option<[Peer; 2]>,
    serial: u64,
    rested: Rested,
    descriptors: usize,
}

/// What there is while nobody attacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rested {
    in_flight: Vec<usize>,
    /// Who has the subsystem.
    owners: usize,
}

/// A run in progress.
struct Run<'a> {
    on: &'a mut Streams,
    trace: &'a mut Trace,
    peers: [Option<Peer>; PEERS],
    /// The controller that was made last.
    cntlid: u16,
    /// R2Ts are answered as they come.
    prompt: bool,
    /// Bytes of a write, where they are cut.
    cut: usize,
}

fn connect_data(subnqn: &str, hostnqn: &str, cntlid: u16) -> ConnectData {
    let mut data = ConnectData::new_zeroed();
    (data.hostid, data.cntlid) = ([7; 16], cntlid);
    data.subnqn[..subnqn.len()].copy_from_slice(subnqn.as_bytes());
    data.hostnqn[..hostnqn.len()].copy_from_slice(hostnqn.as_bytes());
    data
}

impl Streams {
    /// Real time for the kernel, as long as `peer` waits for something; virtual time too.
    fn wait(&self, peer: &mut Peer, done: impl Fn(&Peer) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            settle(&self.sim, Duration::ZERO);
            peer.receive(&self.sim, &mut Trace::default());
            while let Some(r2t) = peer.r2ts.pop_front() {
                let pdus = peer.h2c(&r2t, 128 << 10, SECRET);
                pdus.iter().for_each(|pdu| peer.write(pdu));
            }
            if done(peer) {
                return;
            }
            assert!(!peer.ended, "the neighbour lost its connection");
            assert!(Instant::now() < until, "the neighbour gets no answer");
            settle(&self.sim, Duration::from_millis(1));
        }
    }

    /// One command of the neighbour, which must succeed; what it read.
    fn neighbourly(&self, peer: &mut Peer, mut sqe: Sqe, data: &[u8]) -> Vec<u8> {
        sqe.cid = peer.next_cid();
        if data.is_empty() {
            sqe.set_sgl(SglDescriptor::transport(NEIGHBOURLY as u32));
        } else {
            sqe.set_sgl(SglDescriptor::in_capsule(data.len() as u32));
        }
        let bytes = peer.capsule(sqe, data);
        peer.ask(&bytes);
        self.wait(peer, Peer::is_idle);
        let cqe = peer.completed.pop().unwrap();
        assert!(cqe.status().is_success(), "the neighbour's {sqe:?} ends with {:?}", cqe.status());
        if sqe.opc == 0x7f && sqe.nsid == 1 {
            peer.cntlid = cqe.dw0 as u16;
        }
        std::mem::take(&mut peer.data)
    }

    /// The neighbour writes blocks and reads them back.
    fn neighbour_lives(&mut self) {
        let [admin, mut io] = self.neighbour.take().unwrap();
        let blocks = (NEIGHBOURLY / 512) as u64;
        let mut sqe = Sqe { opc: 1, nsid: 1, cdw12: blocks as u32 - 1, ..Sqe::default() };
        sqe.set_slba(self.serial % 16 * blocks);
        self.neighbourly(&mut io, sqe, &[]);
        let read = self.neighbourly(&mut io, Sqe { opc: 2, ..sqe }, &[]);
        assert!(read.len() == NEIGHBOURLY && read.iter().all(|byte| *byte == SECRET), "its blocks changed");
        self.neighbour = Some([admin, io]);
    }

    fn peer(&mut self) -> Peer {
        self.serial += 1;
        match self.serial % 16 {
            0 => Peer::connect(self.addr, self.serial),
            _ => Peer::admitted(&self.target, self.addr, self.serial),
        }
    }

    /// The neighbour connects.
    fn admit_neighbour(&mut self) {
        let mut cntlid = CNTLID_DYNAMIC;
        let peers = [0, 1].map(|qid| {
            let mut peer = self.peer();
            let request = peer.ic_req(3, 0, 0);
            peer.write(request.as_bytes());
            self.wait(&mut peer, Peer::has_begun);
            let cattr = Cattr::new().with_disable_sqfc(true);
            let connect = Connect { recfmt: 0, qid, sqsize_z: 31, cattr, kato: 0 };
            let data = connect_data(NEIGHBOURS, NEIGHBOUR, cntlid);
            self.neighbourly(&mut peer, connect.to_sqe(0), data.as_bytes());
            if qid == 0 {
                cntlid = peer.cntlid;
                let enable = Property { offset: offset::CC, size: 0, value: 0x46_0001 };
                self.neighbourly(&mut peer, enable.set(0), &[]);
                settle(&self.sim, Duration::from_secs(1));
            }
            peer
        });
        self.neighbour = Some(peers);
        self.neighbour_lives();
    }

    fn rest(&self) -> Rested {
        Rested { in_flight: in_flight(&self.sim, SHARDS), owners: Arc::strong_count(&self.attacked) }
    }

    /// Everything of a run is gone, or it never will be.
    fn come_to_rest(&mut self) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            settle(&self.sim, Duration::from_millis(200));
            let left = self.attacked.controllers();
            let now = self.rest();
            if left.is_empty() && (now == self.rested || self.rested == Rested::default()) {
                break;
            }
            let say = || format!("{now:?}, at rest {:?}, controllers {left:?}", self.rested);
            assert!(Instant::now() < until, "something of a host stays behind: {}", say());
        }
    }
}

impl Subject for Streams {
    fn new() -> Self {
        let sim = Sim::new(SHARDS).unwrap();
        let config = TargetConfig {
            max_half_open: 4,
            max_connections: 8,
            shard_budget: 1 << 20,
            ..TargetConfig::default()
        };
        let target = Target::new(&sim.handles(), config).unwrap();
        let attacked = subsystem(&sim, ATTACKED, &[]);
        attacked.add_namespace(namespace(1, slow(ram()))).unwrap();
        attacked.add_namespace(namespace(2, ram())).unwrap();
        let neighbours = subsystem(&sim, NEIGHBOURS, &[NEIGHBOUR]);
        neighbours.add_namespace(namespace(1, ram())).unwrap();
        let addr = target.listen(SocketAddr::from(([127, 0, 0, 1], 0)), &attacked).unwrap();
        target.listen(addr, &neighbours).unwrap();
        settle(&sim, Duration::ZERO);
        let (neighbour, rested) = (None, Rested::default());
        let mut new =
            Streams { sim, target, attacked, neighbours, addr, neighbour, serial: 0, rested, descriptors: 0 };
        new.admit_neighbour();
        // What each shard makes for the first host that comes.
        (0..SHARDS).for_each(|id| new.sim.on(id, |shard| drop(Local::of(&new.attacked, shard))));
        (new.rested, new.descriptors) = (new.rest(), descriptors());
        new
    }

    fn run(&mut self, input: &Input, trace: &mut Trace) {
        let counts =
            |on: &Self| Reason::ALL.iter().map(|r| on.target.rejections().count(*r)).collect::<Vec<_>>();
        let before = counts(self);
        let peers = [const { None }; PEERS];
        let mut run = Run { on: self, trace, peers, cntlid: CNTLID_DYNAMIC, prompt: true, cut: 0 };
        for record in input.records() {
            run.act(record);
            run.receive();
        }
        run.end();
        for (reason, (before, now)) in Reason::ALL.iter().zip(before.iter().zip(counts(self))) {
            if now > *before {
                trace.note(("rejected", reason.text()));
            }
        }
        self.come_to_rest();
        self.neighbour_lives();
    }

    fn check(&mut self) {
        assert_eq!(descriptors(), self.descriptors, "descriptors stay behind");
    }

    fn close(self) {
        self.target.close();
        let drains = [self.attacked.close(), self.neighbours.close()];
        settle(&self.sim, Duration::from_secs(5));
        drop(drains);
    }
}

impl Run<'_> {
    fn receive(&mut self) {
        settle(&self.on.sim, Duration::ZERO);
        // Answering makes more come; a command needs a few rounds at most.
        for _ in 0..64 {
            let mut any = false;
            for peer in self.peers.iter_mut().flatten() {
                any |= peer.receive(&self.on.sim, self.trace);
                while let Some(r2t) = self.prompt.then(|| peer.r2ts.pop_front()).flatten() {
                    peer.h2c(&r2t, 128 << 10, THEIRS).iter().for_each(|pdu| peer.write(pdu));
                    any = true;
                }
            }
            if !any {
                break;
            }
            settle(&self.on.sim, Duration::ZERO);
        }
    }

    fn peer(&mut self, at: usize) -> &mut Peer {
        if self.peers[at].is_none() {
            self.peers[at] = Some(self.on.peer());
        }
        self.peers[at].as_mut().unwrap()
    }

    /// Sends a PDU, of which the record changes something, or nothing.
    fn send(&mut self, at: usize, mut pdu: Vec<u8>, header: usize, mut how: Record) {
        let cut = self.cut;
        let sim = &self.on.sim;
        let Some(peer) = &mut self.peers[at] else { return };
        let (kind, place, value) = (how.below(10), usize::from(how.byte()), how.byte());
        let follows = !peer.wild;
        match kind {
            6 => {
                // Another type, or a length that the type does not have.
                peer.doomed |= follows && matches!(place % 8, 0 | 2) && pdu[place % 8] != value;
                pdu[place % 8] = value;
                peer.seal(&mut pdu, header);
                peer.wild = true;
            }
            7 => {
                let place = 8 + place % (header - 8);
                // Data of another command, at another offset, or of another length.
                let tells = pdu[0] == PduType::H2cData.0 && matches!(place, 8 | 9 | 12..=19);
                peer.doomed |= follows && tells && pdu[place] != value;
                pdu[place] = value;
                peer.seal(&mut pdu, header);
                peer.wild |= pdu[0] != PduType::CapsuleCmd.0;
            }
            8 => {
                pdu.truncate(place.max(1).min(pdu.len()));
                peer.wild = true;
            }
            9 => {
                let place = pdu.len() - 1 - place % pdu.len().min(64);
                pdu[place] ^= value.max(1);
                peer.wild = true;
            }
            _ => {}
        }
        if cut > 0 && pdu.len() > cut {
            if pdu[0] == PduType::CapsuleCmd.0 && !peer.wild && pdu.len() >= 72 {
                peer.expect(&pdu);
            }
            let (most, last) = pdu.split_at(pdu.len() - cut.min(pdu.len() - 1));
            peer.write(most);
            settle(sim, Duration::ZERO);
            last.iter().take(8).for_each(|byte| {
                peer.write(&[*byte]);
                settle(sim, Duration::ZERO);
            });
            peer.write(last.get(8..).unwrap_or_default());
        } else if pdu[0] == PduType::CapsuleCmd.0 && pdu.len() >= 72 {
            peer.ask(&pdu);
        } else {
            peer.write(&pdu);
        }
    }

    fn act(&mut self, mut r: Record) {
        let kind = r.below(24);
        let at = r.below(PEERS);
        self.trace.note(("act", kind));
        match kind {
            0 => self.begin(at, r),
            1 => self.connect(at, r),
            // A whole association at once: what most other actions need.
            2 | 3 => self.associate(at, r),
            4..=8 => self.io(at, r),
            9..=11 => self.admin(at, r),
            12 => self.property(at, r),
            13 | 14 => self.data(at, r),
            15 => {
                let bytes = r.rest().to_vec();
                let peer = self.peer(at);
                peer.wild = true;
                peer.write(&bytes);
            }
            16 => {
                let mut term = TermReq::new_zeroed();
                term.ch.pdu_type = PduType::H2cTermReq;
                (term.ch.hlen, term.ch.plen) = (24, 24 + u32::from(r.byte()));
                term.fes.0 = r.word();
                let mut bytes = term.as_bytes().to_vec();
                bytes.resize(term.ch.plen as usize, THEIRS);
                let peer = self.peer(at);
                peer.wild = true;
                peer.write(&bytes);
            }
            17 => drop(self.peers[at].take()),
            18 => self.peer(at).half_close(),
            19 => {
                let time = r.pick(&[1u64, 3, 20, 200, 1600, 5000, 11_000, 31_000, 130_000]);
                settle(&self.on.sim, Duration::from_millis(time));
            }
            20 => self.prompt = r.rarely(2),
            21 => self.cut = r.pick(&[0, 1, 4, 20, 60, 130]),
            22 => self.change(r),
            _ => {
                // The same connection is opened anew, in a state where nothing was said.
                self.peers[at] = None;
                self.peer(at);
            }
        }
    }

    /// ICReq.
    fn begin(&mut self, at: usize, mut r: Record) {
        let (digests, hpda, r2ts) =
            (r.byte(), r.pick(&[0u8, 0, 1, 7, 31, 32, 255]), r.pick(&[0u32, 0, 1, 3, 15, u32::MAX]));
        let peer = self.peer(at);
        let request = peer.ic_req(digests, hpda, r2ts);
        peer.wild |= hpda > 31;
        self.send(at, request.as_bytes().to_vec(), 128, r);
    }

    fn connect(&mut self, at: usize, mut r: Record) {
        let qid = r.pick(&[0u16, 1, 1, 2, 3, 128, 129, 0xffff]);
        let sqsize_z = r.pick(&[31u16, 31, 1, 0, 3, 1023, 1024, 0xffff]);
        let cattr = Cattr::from_bits(r.byte());
        let kato = r.pick(&[0u32, 0, 1, 1000, 60_000, u32::MAX]);
        let subnqn = r.pick(&[
            ATTACKED,
            ATTACKED,
            ATTACKED,
            ATTACKED,
            NEIGHBOURS,
            DISCOVERY_NQN,
            "",
            "nqn.2024-01.test:no",
        ]);
        let hostnqn = r.pick(&[HOST, HOST, HOST, OTHER, NEIGHBOUR, "x", ""]);
        let known = self.cntlid;
        let cntlid = if qid == 0 { CNTLID_DYNAMIC } else { known };
        let cntlid = r.pick(&[cntlid, cntlid, cntlid, cntlid, 0, 1, 0xfffe, known]);
        let recfmt = u16::from(r.rarely(16));
        let mut data = connect_data(subnqn, hostnqn, cntlid);
        if r.rarely(16) {
            data.subnqn.fill(b'n');
        }
        let mut sqe = Connect { recfmt, qid, sqsize_z, cattr, kato }.to_sqe(self.peer(at).next_cid());
        sqe.set_sgl(SglDescriptor::in_capsule(1024));
        let pdu = self.peer(at).capsule(sqe, data.as_bytes());
        self.send(at, pdu, 72, r);
        self.receive();
        self.note_controller(at);
    }

    fn note_controller(&mut self, at: usize) {
        let Some(peer) = &mut self.peers[at] else { return };
        if let Some(cqe) = peer.completed.pop()
            && cqe.status().is_success()
        {
            self.cntlid = cqe.dw0 as u16;
        }
    }

    /// ICReq, Connect and enable; with the next connection as an I/O queue.
    fn associate(&mut self, at: usize, mut r: Record) {
        let (digests, hpda, r2ts) = (r.byte(), r.pick(&[0u8, 0, 0, 15]), r.pick(&[0u32, 0, 3]));
        let (sqsize_z, cattr) = (r.pick(&[31u16, 3, 127]), Cattr::new().with_disable_sqfc(r.rarely(2)));
        let (kato, host) = (r.pick(&[0u32, 0, 0, 10_000]), r.pick(&[HOST, HOST, OTHER]));
        let queues = 1 + r.below(2) as u16;
        self.prompt = !r.rarely(3);
        for qid in 0..=queues {
            let at = (at + usize::from(qid)) % PEERS;
            self.peers[at] = None;
            let peer = self.peer(at);
            let request = peer.ic_req(digests, hpda, r2ts);
            peer.write(request.as_bytes());
            self.receive();
            let cntlid = if qid == 0 { CNTLID_DYNAMIC } else { self.cntlid };
            let data = connect_data(ATTACKED, host, cntlid);
            let peer = self.peer(at);
            let mut sqe = Connect { recfmt: 0, qid, sqsize_z, cattr, kato }.to_sqe(peer.next_cid());
            sqe.set_sgl(SglDescriptor::in_capsule(1024));
            let pdu = peer.capsule(sqe, data.as_bytes());
            peer.ask(&pdu);
            self.receive();
            // A controller of this host that is ending holds it up.
            settle(&self.on.sim, Duration::from_millis(2));
            self.receive();
            if qid == 0 {
                self.note_controller(at);
                let peer = self.peer(at);
                let enable = Property { offset: offset::CC, size: 0, value: 0x46_0001 };
                let cid = peer.next_cid();
                let pdu = peer.capsule(enable.set(cid), &[]);
                peer.ask(&pdu);
                self.receive();
                settle(&self.on.sim, Duration::from_millis(2));
            }
        }
    }

    /// The data pointer of a command that moves `len` bytes, and what lies in its capsule.
    fn pointer(&mut self, sqe: &mut Sqe, len: usize, write: bool, r: &mut Record) -> Vec<u8> {
        let mut capsule = Vec::new();
        let l = len as u32;
        match r.below(12) {
            _ if len == 0 => sqe.set_sgl(SglDescriptor::transport(0)),
            0..=3 if write && len <= 16 << 10 => {
                sqe.set_sgl(SglDescriptor::in_capsule(l));
                capsule = vec![THEIRS; len];
            }
            0..=7 => sqe.set_sgl(SglDescriptor::transport(l)),
            8 => sqe.set_sgl(SglDescriptor::transport(r.odd() as u32)),
            9 => {
                sqe.set_sgl(SglDescriptor::in_capsule(r.odd() as u32));
                capsule = vec![THEIRS; r.below(64) * 64];
            }
            10 => {
                let kind = SglDescriptor::new(SglType(r.byte() & 15), SglSubtype(r.byte() & 15), 0, l);
                sqe.set_sgl(kind);
            }
            _ => {
                sqe.set_sgl(SglDescriptor::in_capsule(l));
                capsule = vec![THEIRS; len.min(20 << 10)];
            }
        }
        capsule
    }

    fn io(&mut self, at: usize, mut r: Record) {
        let opc = r.pick(&[1u8, 1, 2, 2, 0, 4, 5, 8, 9, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, 0x7f, 0x80]);
        let nsid = r.pick(&[1u32, 1, 1, 2, 3, 0, u32::MAX]);
        let blocks = r.pick(&[1u32, 1, 2, 8, 9, 32, 64, 256, 512, 4096, 65536]);
        let lba = if r.rarely(8) { r.odd() } else { r.below(40) as u64 };
        let same = r.rarely(16);
        let fuse = r.pick(&[0u8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        let mut sqe = Sqe { opc, nsid, cdw12: blocks - 1, ..Sqe::default() };
        sqe.set_slba(lba);
        let (len, write) = match opc {
            1 | 5 => (blocks as usize * 512, true),
            2 => (blocks as usize * 512, false),
            9 => {
                (sqe.cdw10, sqe.cdw11) = (blocks & 0xff, 4);
                (((blocks & 0xff) as usize + 1) * 16, true)
            }
            0x0d | 0x11 | 0x15 => {
                (sqe.cdw10, sqe.cdw11) = (lba as u32 & 0x1f | blocks << 8, 0);
                (16, true)
            }
            0x0e => {
                (sqe.cdw10, sqe.cdw11) = (blocks, lba as u32 & 1);
                (blocks as usize * 4 + 4, false)
            }
            _ => (0, false),
        };
        sqe.cdw12 |= (r.pick(&[0u32, 0, 0, 0, 1 << 30, 1 << 31, 1 << 25, 0x3c00_0000])) & 0xffff_0000;
        let capsule = self.pointer(&mut sqe, len, write, &mut r);
        sqe.flags.set_fuse(fuse);
        self.command(at, sqe, capsule, same, r);
    }

    fn admin(&mut self, at: usize, mut r: Record) {
        let opc =
            r.pick(&[6u8, 6, 2, 2, 9, 9, 0x0a, 0x0a, 8, 0x0c, 0x18, 0, 1, 4, 5, 0x7c, 0x14, 0x19, 0xff]);
        let nsid = r.pick(&[0u32, 1, 2, u32::MAX]);
        let cdw10 = r.odd() as u32;
        let cdw11 = r.odd() as u32;
        let len = r.pick(&[4096usize, 4096, 512, 16, 0, 8192]);
        let same = r.rarely(16);
        let mut sqe = Sqe { opc, nsid, cdw10, cdw11, ..Sqe::default() };
        if opc == 2 {
            // NUMDL in the upper half; pages that exist.
            sqe.cdw10 = (len as u32 / 4).wrapping_sub(1) << 16 | cdw10 & 0x80ff;
            sqe.cdw12 = if cdw11 & 1 != 0 { cdw11 } else { 0 };
        }
        if matches!(opc, 9 | 0x0a) {
            sqe.cdw10 &= 0x8000_07ff;
        }
        let capsule = self.pointer(&mut sqe, len, opc == 9, &mut r);
        self.command(at, sqe, capsule, same, r);
    }

    fn property(&mut self, at: usize, mut r: Record) {
        let known = [offset::CC, offset::CC, offset::CSTS, offset::CAP, offset::VS, offset::NSSR, offset::CC];
        let at_offset = if r.rarely(4) { r.odd() as u32 } else { r.pick(&known) };
        let value = match r.below(6) {
            0 => r.odd(),
            1 => 0x46_0000,
            2 => 0x46_4001,
            3 => 0x46_8001,
            4 => 0x4e56_4d65,
            _ => 0x46_0001,
        };
        let property = Property { offset: at_offset, size: r.pick(&[0u8, 0, 1, 7]), value };
        let cid = self.peer(at).next_cid();
        let sqe = if r.rarely(3) { property.get(cid) } else { property.set(cid) };
        self.command(at, sqe, Vec::new(), false, r);
    }

    fn command(&mut self, at: usize, mut sqe: Sqe, capsule: Vec<u8>, same: bool, r: Record) {
        let peer = self.peer(at);
        sqe.cid = peer.next_cid();
        if same {
            sqe.cid = sqe.cid.wrapping_sub(1);
            peer.patient = true;
        }
        let pdu = peer.capsule(sqe, &capsule);
        peer.doomed |= capsule.len() > MOST_IN_CAPSULE && !peer.wild && !is_changed(r);
        self.send(at, pdu, 72, r);
    }

    /// H2CData: what an R2T asked for, or not quite.
    fn data(&mut self, at: usize, mut r: Record) {
        let kind = r.below(8);
        let most = r.pick(&[128usize << 10, 4096, 512, 64]);
        let peer = self.peer(at);
        let asked = peer.r2ts.pop_front();
        peer.wild |= asked.is_none();
        let follows = !peer.wild;
        let mut r2t = asked.unwrap_or_else(R2t::new_zeroed);
        let right = (r2t.cccid, r2t.r2to, r2t.r2tl);
        if r2t.r2tl == 0 {
            r2t.r2tl = 512;
        }
        match kind {
            1 => r2t.ttag = r.word(),
            2 => r2t.cccid = r.word(),
            3 => r2t.r2to = r2t.r2to.wrapping_add(r.odd() as u32 & 0xfff_ffff) & 0xfff_ffff,
            4 => r2t.r2tl = (r.odd() as u32).clamp(1, 256 << 10),
            _ => {}
        }
        let mut pdus = peer.h2c(&r2t, most, THEIRS);
        let in_order = kind != 6 && (kind != 5 || pdus.len() < 2);
        let follows = follows && kind != 1 && !is_changed(r);
        peer.doomed |= follows && !(in_order && (r2t.cccid, r2t.r2to, r2t.r2tl) == right);
        if kind == 5 && pdus.len() > 1 {
            pdus.swap(0, 1);
        }
        if kind == 6 {
            let last = pdus.pop().unwrap_or_default();
            pdus.extend([last.clone(), last]);
        }
        peer.wild |= (1..7).contains(&kind);
        let last = pdus.pop();
        pdus.iter().for_each(|pdu| peer.write(pdu));
        if let Some(last) = last {
            self.send(at, last, 24, r);
        }
    }

    /// The control plane does something meanwhile.
    fn change(&mut self, mut r: Record) {
        let attacked = &self.on.attacked;
        match r.below(6) {
            0 => drop(attacked.add_namespace(namespace(3, ram()))),
            1 => drop(attacked.remove_namespace(3)),
            2 => drop(attacked.refresh_namespace(1)),
            3 => self.on.target.set_allowed_hosts(attacked, vec![Nqn::new(OTHER).unwrap()]),
            4 => self.on.target.set_allowed_hosts(attacked, Vec::new()),
            _ => self.on.target.set_referrals(vec![SocketAddr::from(([127, 0, 0, 1], u16::from(r.byte())))]),
        }
    }

    fn end(&mut self) {
        self.prompt = true;
        for _ in 0..3 {
            settle(&self.on.sim, Duration::from_millis(1600));
            self.receive();
        }
        // By now the target has given up on data that does not come.
        settle(&self.on.sim, Duration::from_secs(32));
        self.receive();
        for peer in self.peers.iter_mut() {
            if let Some(peer) = peer.take() {
                peer.check_answered();
                peer.check_data();
            }
        }
        drop(self.on.attacked.remove_namespace(3));
        self.on.target.set_allowed_hosts(&self.on.attacked, Vec::new());
    }
}
