//! How data goes over NVMe/TCP: capsules, R2Ts, alignment; and what a target spends on it at most.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::stall::Stall;
use common::{Host, Rig, SUBNQN, icreq, pattern, rw};
use engine::mem::Seg;
use engine::{Channel, Io, Limits, Scope, Shard, Volume, VolumeStats};
use frontend::Namespace;
use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::Sqe;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::tcp::{IcResp, PduType, R2t};
use nvme_proto::zerocopy::IntoBytes;

fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it never came");
}

/// An enabled controller's admin queue, and its I/O queue 1 whose ICReq was changed.
fn connect(rig: &Rig, maxr2t_z: u32) -> (Host, Host) {
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let mut io = Host::raw(rig.addr);
    let mut request = icreq(0);
    request.maxr2t_z = maxr2t_z;
    io.send(request.as_bytes());
    assert_eq!(io.receive().unwrap().ch.pdu_type, PduType::IcResp);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    (admin, io)
}

/// Sends a flush, and expects its answer before anything else.
fn nothing_else_comes(io: &mut Host) {
    let mut flush = Sqe { opc: 0, nsid: 1, cid: 999, ..Sqe::default() };
    flush.set_sgl(SglDescriptor::transport(0));
    let bytes = io.capsule(flush, &[]);
    io.send(&bytes);
    assert_eq!(io.receive().unwrap().ch.pdu_type, PduType::CapsuleResp);
}

#[test]
fn sixteen_kib_go_in_a_capsule() {
    let rig = Rig::new();
    for digests in [0, 3] {
        let (_admin, mut io) = rig.connect(digests);
        let data = pattern(u64::from(digests) + 7, 16 << 10);
        let mut sqe = Sqe { cid: 1, ..rw(1, 64, data.len()) };
        sqe.set_sgl(SglDescriptor::in_capsule(16 << 10));
        let bytes = io.capsule(sqe, &data);
        io.send(&bytes);
        assert!(io.complete(&[]).0.status().is_success());
        assert!(io.read(64, data.len()).1 == data);
    }
}

#[test]
fn no_more_r2ts_than_the_host_takes_are_outstanding() {
    let rig = Rig::new();
    for (maxr2t_z, outstanding) in [(0, 1), (1, 2), (2, 3), (3, 4), (u32::MAX, 4)] {
        let (_admin, mut io) = connect(&rig, maxr2t_z);
        let data = pattern(u64::from(maxr2t_z), 1 << 20);
        let mut sqe = Sqe { cid: 5, ..rw(1, 0, data.len()) };
        sqe.set_sgl(SglDescriptor::transport(1 << 20));
        let bytes = io.capsule(sqe, &[]);
        io.send(&bytes);
        let r2t = |io: &mut Host| -> R2t {
            let pdu = io.receive().unwrap();
            assert_eq!(pdu.ch.pdu_type, PduType::R2t);
            pdu.read()
        };
        let mut asked: Vec<R2t> = (0..outstanding).map(|_| r2t(&mut io)).collect();
        nothing_else_comes(&mut io);
        assert!((1..asked.len()).all(|i| asked[..i].iter().all(|a| a.ttag != asked[i].ttag)));
        let mut requested: u32 = asked.iter().map(|r| r.r2tl).sum();
        // All but the last PDU of each, in turn; then the rest, the latest first.
        let mut rests = Vec::new();
        for r2t in &asked {
            let mut pdus = io.h2c(r2t, &data, 48 << 10);
            rests.push(pdus.split_off(1));
            io.send(&pdus[0]);
        }
        for rest in rests.into_iter().rev() {
            io.send(&rest.concat());
        }
        asked.clear();
        // Each that was answered makes room for the next.
        while requested < 1 << 20 {
            let next = r2t(&mut io);
            requested += next.r2tl;
            for pdu in io.h2c(&next, &data, 100 << 10) {
                io.send(&pdu);
            }
        }
        assert!(io.complete(&data).0.status().is_success());
        assert!(io.read(0, data.len()).1 == data, "MAXR2T {maxr2t_z}");
    }
}

/// One shard, so that the volume lends its memory to what is sent: a host that does not take its reads must not keep it.
#[test]
fn reads_that_a_host_leaves_hold_up_no_write_and_are_of_whole_blocks() {
    let rig = Rig::on(1, TargetConfig::default(), "127.0.0.1:0");
    for digests in [0, 3] {
        leave_reads(&rig, digests);
    }
}

fn leave_reads(rig: &Rig, digests: u8) {
    const LEN: usize = 512 << 10;
    const READS: u64 = 16;
    const BLOCKS: u64 = (LEN / 512) as u64;
    let (_admin, mut slow) = rig.connect(digests);
    let (_other, mut writer) = rig.connect(0);
    let mut fill = |byte: u8| {
        for i in 0..READS {
            assert!(writer.write(i * BLOCKS, &vec![byte; LEN]).status().is_success());
        }
    };
    for round in 0..4u8 {
        fill(2 * round);
        // The second half comes while the first is being sent.
        for half in [0..READS / 2, READS / 2..READS] {
            let mut reads = Vec::new();
            for i in half {
                let mut sqe = Sqe { cid: i as u16, ..rw(2, i * BLOCKS, LEN) };
                sqe.set_sgl(SglDescriptor::transport(LEN as u32));
                reads.extend(slow.capsule(sqe, &[]));
            }
            slow.send(&reads);
            slow.stream.peek(&mut [0]).unwrap();
        }
        fill(2 * round + 1);
        for _ in 0..READS {
            let (cqe, data) = slow.complete(&[]);
            assert!(cqe.status().is_success() && data.len() == LEN);
            for block in data.chunks(512) {
                assert!(block[0] / 2 == round && block.iter().all(|&b| b == block[0]), "{block:?}");
            }
        }
    }
}

#[test]
fn data_is_aligned_as_this_side_asks() {
    let rig = Rig::with(TargetConfig { cpda_z: 15, ..TargetConfig::default() }, "127.0.0.1:0");
    let mut admin = Host::raw(rig.addr);
    let sent = |host: &mut Host, pad: usize| {
        host.send(icreq(0).as_bytes());
        assert_eq!(host.receive().unwrap().read::<IcResp>().cpda_z, 15);
        let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
        let mut sqe = connect.to_sqe(0);
        sqe.set_sgl(SglDescriptor::in_capsule(1024));
        let data = common::connect_data(SUBNQN, common::HOSTNQN, 0xffff);
        let mut bytes = host.capsule(sqe, data.as_bytes());
        // Whatever is in the padding.
        bytes.splice(72..72, vec![0xee; pad]);
        bytes[3] = (72 + pad) as u8;
        bytes[4..8].copy_from_slice(&((72 + pad + 1024) as u32).to_le_bytes());
        host.send(&bytes);
    };
    sent(&mut admin, 56);
    assert!(admin.complete(&[]).0.status().is_success());
    let mut other = Host::raw(rig.addr);
    sent(&mut other, 0);
    let terminated = other.terminated();
    assert_eq!((terminated.fes, terminated.fei), (1, 3));
}

#[test]
fn a_hundred_and_twenty_eight_queues_of_1024() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let all = Sqe { opc: 9, cdw10: 7, cdw11: 0x00ff_00ff, ..Sqe::default() };
    assert_eq!(admin.run(all, &[], 0).0.dw0, 0x007f_007f);
    let data = common::connect_data(SUBNQN, common::HOSTNQN, cntlid);
    let queue = |qid| {
        let mut io = Host::open(rig.addr, 0);
        let connect = Connect { recfmt: 0, qid, sqsize_z: 1023, cattr: Cattr::new(), kato: 0 };
        let status = io.connect(connect, &data).status();
        (io, status)
    };
    let mut queues: Vec<Host> = (1..=128)
        .map(|qid| {
            let (io, status) = queue(qid);
            assert!(status.is_success(), "{qid}");
            io
        })
        .collect();
    assert!(!queue(129).1.is_success());
    let blocks = pattern(3, 512);
    for (slba, io) in (0..).zip(&mut queues) {
        assert!(io.write(slba, &blocks).status().is_success());
    }
    // A queue of n entries has n - 1 commands with flow control; the host here does not hold back.
    let io = &mut queues[77];
    let mut bytes = Vec::new();
    for cid in 0..1023u16 {
        let mut sqe = Sqe { cid, ..rw(2, u64::from(cid % 128), 512) };
        sqe.set_sgl(SglDescriptor::transport(512));
        bytes.extend(io.capsule(sqe, &[]));
    }
    io.send(&bytes);
    let mut seen: Vec<u16> = (0..1023)
        .map(|_| {
            let (cqe, read) = io.complete(&[]);
            assert!(cqe.status().is_success() && read == blocks);
            cqe.cid
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..1023).collect::<Vec<_>>());
}

#[test]
fn many_listeners() {
    let rig = Rig::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let addrs: Vec<_> = (0..64).map(|_| rig.target.listen(any, &rig.subsystem).unwrap()).collect();
    let mut hosts: Vec<Host> = addrs
        .iter()
        .map(|addr| {
            let mut host = Host::open(*addr, 0);
            host.connect_admin(SUBNQN, 0);
            host
        })
        .collect();
    for addr in &addrs[..32] {
        assert!(rig.target.unlisten(*addr, rig.subsystem.nqn(), None));
    }
    for (at, host) in hosts.iter_mut().enumerate() {
        match at < 32 {
            true => assert!(host.is_closed()),
            false => host.enable(),
        }
    }
}

#[test]
fn data_in_capsules_is_bounded() {
    let config = TargetConfig { shard_budget: 256 << 10, ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    let volume = Stall::new(true);
    let stalled = Namespace { nsid: 7, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.subsystem.add_namespace(stalled).unwrap();
    let (_admin, mut greedy) = rig.connect(0);
    // No more of it is read when it holds its connection's quarter.
    for cid in 0..100 {
        let mut sqe = Sqe { cid, nsid: 7, ..rw(1, u64::from(cid), 4096) };
        sqe.set_sgl(SglDescriptor::in_capsule(4096));
        let bytes = greedy.capsule(sqe, &[1; 4096]);
        greedy.send(&bytes);
    }
    // One counts as its data at least, and as its part of a chunk, large while much comes, at most.
    until(|| volume.held() >= 2);
    let (_admin, mut other) = rig.connect(0);
    assert!(other.write(0, &pattern(1, 4096)).status().is_success());
    assert!((2..=16).contains(&volume.held()));
    // As its commands end, the others follow: all hundred end.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                volume.release(Ok(()));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let ended = (0..100).filter(|_| greedy.complete(&[]).0.status().is_success()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(ended, 100);
    });
}

/// A volume that is done with a write at once, and notes where its data lay.
#[derive(Default)]
struct Placed {
    stats: VolumeStats,
    at: Mutex<Vec<usize>>,
}

impl Volume for Placed {
    fn limits(&self) -> Limits {
        Limits::full(512, 2048)
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
        Rc::new(PlacedChannel(self))
    }
}

struct PlacedChannel(Arc<Placed>);

impl Channel for PlacedChannel {
    fn submit(self: Rc<Self>, io: Io) {
        self.0.at.lock().unwrap().extend(io.request().sgl.segs().first().map(Seg::addr));
        io.complete(Ok(()));
    }

    fn revoke(&self, _scope: Scope) {}
}

#[test]
fn memory_of_a_write_that_has_ended_takes_the_next() {
    let rig = Rig::new();
    let volume = Arc::new(Placed::default());
    let placed = Namespace { nsid: 7, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.subsystem.add_namespace(placed).unwrap();
    let (_admin, mut io) = rig.connect(0);
    for slba in 0..8 {
        let mut sqe = Sqe { nsid: 7, ..rw(1, slba, 4096) };
        sqe.set_sgl(SglDescriptor::in_capsule(4096));
        let bytes = io.capsule(sqe, &[1; 4096]);
        io.send(&bytes);
        assert!(io.complete(&[]).0.status().is_success());
    }
    let at = volume.at.lock().unwrap();
    assert!(at.len() == 8 && at.iter().all(|one| *one == at[0]), "{at:x?}");
}

#[test]
fn connections_are_bounded() {
    let config = TargetConfig { max_connections: 8, ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    // Eight on each of two shards; they take them in turn.
    let mut hosts: Vec<Host> = (0..20).map(|_| Host::raw(rig.addr)).collect();
    until(|| rig.target.rejections().count(Reason::TooManyConnections) == 4);
    assert!(hosts[16..].iter_mut().all(Host::is_closed));
    hosts[0].send(icreq(0).as_bytes());
    assert_eq!(hosts[0].receive().unwrap().ch.pdu_type, PduType::IcResp, "who is there stays");
}

/// A send may keep a little back for the next one: a connection that ends says it all the same.
#[test]
fn a_connection_that_ends_says_all_of_it() {
    const BLOCK: usize = 4096;
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    for count in 1..=48u16 {
        let mut io = Host::open(rig.addr, 0);
        assert!(io.connect_queue(SUBNQN, count, cntlid).status().is_success());
        let data = pattern(count.into(), BLOCK);
        assert!(io.write(8, &data).status().is_success());
        let mut bytes = Vec::new();
        for cid in 0..count {
            let mut read = Sqe { cid, ..rw(2, 8, BLOCK) };
            read.set_sgl(SglDescriptor::transport(BLOCK as u32));
            bytes.extend(io.capsule(read, &[]));
        }
        let mut disconnect = Sqe { opc: AdminOpcode::Fabrics.0, nsid: 8, cid: count, ..Sqe::default() };
        disconnect.set_sgl(SglDescriptor::transport(0));
        bytes.extend(io.capsule(disconnect, &[]));
        io.send(&bytes);
        let mut reads = 0;
        while let Some(pdu) = io.receive() {
            if pdu.ch.pdu_type == PduType::C2hData {
                assert!(pdu.data == data);
                reads += 1;
            }
        }
        assert_eq!(reads, count);
        assert!(io.is_closed());
    }
}
