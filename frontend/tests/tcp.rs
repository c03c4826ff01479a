//! The NVMe/TCP target as a host sees it, over a real socket, on two shards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Host, Rig, SUBNQN, pattern, rw};
use engine::Sim;
use frontend::tcp::{Target, TargetConfig};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{AddressFamily, disconnect};
use nvme_proto::identify::{ControllerType, IdentifyController, IdentifyNamespace};
use nvme_proto::log::{DiscoveryEntry, DiscoveryHeader, GetLogPage, LogId};
use nvme_proto::nqn::DISCOVERY_NQN;
use nvme_proto::register::offset;
use nvme_proto::tcp::dgst;
use nvme_proto::zerocopy::{FromBytes, IntoBytes};
use nvme_proto::{Nqn, Sqe, Status};

const BOTH: u8 = dgst::HDGST_ENABLE | dgst::DDGST_ENABLE;

#[test]
fn writes_are_read_back_in_capsule_and_by_r2t() {
    let rig = Rig::new();
    for digests in [0, dgst::HDGST_ENABLE, dgst::DDGST_ENABLE, BOTH] {
        let (_admin, mut io) = rig.connect(digests);
        for (i, len) in [512, 4096, 8192, 8704, 65536, 128 << 10, 1 << 20].into_iter().enumerate() {
            let data = pattern(i as u64 + 100 * u64::from(digests), len);
            let slba = 4096 * i as u64;
            assert!(io.write(slba, &data).status().is_success(), "{len} bytes, digests {digests}");
            let (cqe, back) = io.read(slba, len);
            assert!(cqe.status().is_success());
            assert!(back == data, "{len} bytes, digests {digests}");
        }
    }
}

#[test]
fn a_controller_is_enabled_reset_and_shut_down() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    assert_eq!(admin.property_get(offset::CSTS, 0), 0);
    assert_eq!(admin.property_get(offset::VS, 0), 0x2_0100);
    assert_eq!(admin.property_get(offset::CAP, 1) & 0xffff, 1023);
    let mut early = Host::open(rig.addr, 0);
    assert!(!early.connect_queue(SUBNQN, 1, cntlid).status().is_success(), "not enabled yet");
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    let mut twice = Host::open(rig.addr, 0);
    assert!(!twice.connect_queue(SUBNQN, 1, cntlid).status().is_success(), "QID 1 is taken");
    // A reset ends the I/O queue, and the admin queue goes on.
    admin.property_set(offset::CC, 0x46_0000);
    admin.wait_csts(1, 0);
    assert!(io.is_closed());
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    admin.property_set(offset::CC, 0x46_4001);
    admin.wait_csts(0xc, 0x8);
}

fn identify(admin: &mut Host, cns: u32, nsid: u32) -> Vec<u8> {
    let sqe = Sqe { opc: 6, nsid, cdw10: cns, ..Sqe::default() };
    let (cqe, data) = admin.run(sqe, &[], 4096);
    assert!(cqe.status().is_success(), "CNS {cns:#x}: {:?}", cqe.status());
    data
}

fn log_page(admin: &mut Host, lid: LogId, offset: u64, len: u32) -> Vec<u8> {
    let mut sqe = Sqe { opc: 2, nsid: 0xffff_ffff, ..Sqe::default() };
    GetLogPage::new(lid, offset, len).put(&mut sqe);
    let (cqe, data) = admin.run(sqe, &[], len as usize);
    assert!(cqe.status().is_success(), "log {lid:?}: {:?}", cqe.status());
    data
}

/// What Linux asks of a controller before it takes it.
#[test]
fn a_controller_is_what_linux_needs() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 5000);
    let early = admin.run(Sqe { opc: 6, cdw10: 1, ..Sqe::default() }, &[], 4096).0;
    assert_eq!(early.status(), Status::COMMAND_SEQUENCE_ERROR.dnr(), "before CC.EN");
    admin.enable();
    let id = IdentifyController::read_from_bytes(&identify(&mut admin, 1, 0)).unwrap();
    assert_eq!(id.cntlid, cntlid);
    assert_eq!(id.ioccsz, (64 + 16384) / 16, "a write of 16 KiB goes in its capsule");
    assert_eq!((id.iorcsz, id.icdoff, id.mdts), (1, 0, 8));
    assert!(id.sgls.offset() && id.sgls.transport() && id.kas > 0 && id.maxcmd >= 128);
    assert_eq!(&id.subnqn[..SUBNQN.len()], SUBNQN.as_bytes());
    let list = identify(&mut admin, 2, 0);
    assert_eq!((&list[..4], &list[4..8]), (&[1, 0, 0, 0][..], &[0; 4][..]));
    let ns = IdentifyNamespace::read_from_bytes(&identify(&mut admin, 0, 1)).unwrap();
    assert_eq!((ns.nsze, ns.lbaf[0].lbads), ((64 << 20) / 512, 9));
    assert_eq!(&identify(&mut admin, 3, 1)[..4], &[3, 16, 0, 0], "its UUID");
    // Number of Queues, events, and one that waits.
    let sqe = Sqe { opc: 9, cdw10: 7, cdw11: 0x0003_0003, ..Sqe::default() };
    assert_eq!(admin.run(sqe, &[], 0).0.dw0, 0x0003_0003);
    let sqe = Sqe { opc: 9, cdw10: 0xb, cdw11: 0x100, ..Sqe::default() };
    assert!(admin.run(sqe, &[], 0).0.status().is_success());
    let mut aer = Sqe { opc: 0xc, cid: 999, ..Sqe::default() };
    aer.set_sgl(SglDescriptor::transport(0));
    let capsule = admin.capsule(aer, &[]);
    admin.send(&capsule);
    rig.subsystem.add_namespace(common::namespace(5, 4096, 1 << 20)).unwrap();
    let (cqe, _) = admin.complete(&[]);
    assert_eq!((cqe.cid, cqe.dw0), (999, 0x04_0002), "Namespace Attribute Changed");
    assert_eq!(log_page(&mut admin, LogId::ChangedNamespaces, 0, 4096)[..8], [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(&mut admin, 2, 0)[..8], [1, 0, 0, 0, 5, 0, 0, 0]);
}

#[test]
fn the_discovery_service_tells_what_is_where() {
    let rig = Rig::new();
    let v6 = rig.target.listen("[::1]:0".parse().unwrap(), &rig.subsystem).unwrap();
    let hidden = common::subsystem(rig.shards.handles(), "nqn.2024-01.test:hidden");
    hidden.set_allowed_hosts(vec![Nqn::new("nqn.2024-01.test:friend").unwrap()]);
    rig.target.listen(rig.addr, &hidden).unwrap();
    let mut admin = Host::open(v6, 0);
    admin.connect_admin(DISCOVERY_NQN, 0);
    admin.enable();
    let id = IdentifyController::read_from_bytes(&identify(&mut admin, 1, 0)).unwrap();
    assert_eq!(id.cntrltype, ControllerType::Discovery);
    let header = DiscoveryHeader::read_from_bytes(&log_page(&mut admin, LogId::Discovery, 0, 1024)).unwrap();
    assert_eq!(header.numrec, 2);
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).unwrap().trim_end().to_owned();
    let mut found = Vec::new();
    for i in 0..header.numrec {
        let entry = log_page(&mut admin, LogId::Discovery, 1024 * (i + 1), 1024);
        let entry = DiscoveryEntry::read_from_bytes(&entry).unwrap();
        assert_eq!(Nqn::from_field(&entry.subnqn).unwrap().as_str(), SUBNQN);
        found.push((text(&entry.traddr), text(&entry.trsvcid), entry.adrfam));
    }
    found.sort_by_key(|f| f.2.0);
    let v4 = ("127.0.0.1".to_owned(), rig.addr.port().to_string(), AddressFamily::Ipv4);
    assert_eq!(found, [v4, ("::1".to_owned(), v6.port().to_string(), AddressFamily::Ipv6)]);
    // The page changes with the listeners, and who wants to know is told.
    let sqe = Sqe { opc: 9, cdw10: 0xb, cdw11: 1 << 31, ..Sqe::default() };
    assert!(admin.run(sqe, &[], 0).0.status().is_success());
    let mut aer = Sqe { opc: 0xc, cid: 999, ..Sqe::default() };
    aer.set_sgl(SglDescriptor::transport(0));
    let capsule = admin.capsule(aer, &[]);
    admin.send(&capsule);
    assert!(rig.target.unlisten(rig.addr, rig.subsystem.nqn(), None));
    let (cqe, _) = admin.complete(&[]);
    assert_eq!((cqe.cid, cqe.dw0), (999, 0x70_f002), "Discovery Log Page Change");
    let after = DiscoveryHeader::read_from_bytes(&log_page(&mut admin, LogId::Discovery, 0, 1024)).unwrap();
    assert!(after.numrec == 1 && after.genctr != header.genctr);
    // No I/O queues there.
    let mut io = Host::open(v6, 0);
    assert!(!io.connect_queue(DISCOVERY_NQN, 1, id.cntlid).status().is_success());
}

#[test]
fn namespaces_come_and_go_under_io() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let on = |nsid: u32, opc: u8| Sqe { nsid, ..rw(opc, 0, 4096) };
    for round in 0..20 {
        let data = pattern(round, 4096);
        rig.subsystem.add_namespace(common::namespace(2, 512, 1 << 20)).unwrap();
        assert!(rig.subsystem.add_namespace(common::namespace(2, 512, 1 << 20)).is_err(), "NSID 2 is taken");
        // The queue's shard may hear of it a moment later.
        while !io.run(on(2, 1), &data, 0).0.status().is_success() {}
        assert!(io.run(on(2, 2), &[], 4096).1 == data);
        // Sixteen reads on their way while it goes: each ends, one way or the other.
        let mut all = Vec::new();
        for cid in 1000..1016 {
            let mut sqe = Sqe { cid, ..on(2, 2) };
            sqe.set_sgl(SglDescriptor::transport(4096));
            all.extend(io.capsule(sqe, &[]));
        }
        io.send(&all);
        let drain = rig.subsystem.remove_namespace(2).unwrap();
        for _ in 0..16 {
            let status = io.complete(&[]).0.status();
            // Done before, taken back, or come when it was gone.
            let taken_back = Status::INVALID_NAMESPACE_OR_FORMAT.dnr();
            assert!(
                status.is_success() || [taken_back, Status::INVALID_FIELD.dnr()].contains(&status),
                "{status:?}"
            );
        }
        assert!(drain.wait(Duration::from_secs(20)));
        let gone = io.run(on(2, 2), &[], 4096).0.status();
        assert_eq!(gone, Status::INVALID_FIELD.dnr());
    }
    assert!(io.write(0, &pattern(1, 512)).status().is_success(), "the other one is untouched");
}

#[test]
fn the_other_commands() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(3);
    let data = pattern(9, 8192);
    assert!(io.write(0, &data).status().is_success());
    assert!(io.run(rw(5, 0, 8192), &data, 0).0.status().is_success(), "compare");
    let mut other = data.clone();
    other[8191] ^= 1;
    assert_eq!(io.run(rw(5, 0, 8192), &other, 0).0.status(), Status::COMPARE_FAILURE.dnr());
    assert!(io.run(Sqe { opc: 0, nsid: 1, ..Sqe::default() }, &[], 0).0.status().is_success(), "flush");
    assert!(io.run(Sqe { opc: 0, nsid: u32::MAX, ..Sqe::default() }, &[], 0).0.status().is_success());
    assert!(io.run(rw(8, 4, 1024), &[], 0).0.status().is_success(), "write zeroes");
    let mut ranges = [0u8; 32];
    ranges[4] = 2;
    ranges[16 + 4] = 1;
    ranges[16 + 8] = 8;
    let dsm = Sqe { opc: 9, nsid: 1, cdw10: 1, cdw11: 4, ..Sqe::default() };
    assert!(io.run(dsm, &ranges, 0).0.status().is_success(), "deallocate");
    let mut want = data;
    want[4 * 512..6 * 512].fill(0);
    want[..1024].fill(0);
    want[8 * 512..9 * 512].fill(0);
    assert!(io.read(0, 8192).1 == want);
    let short = Sqe { cdw10: 255, ..dsm };
    assert_eq!(io.run(short, &ranges, 0).0.status(), Status::DATA_SGL_LENGTH_INVALID.dnr());
}

#[test]
fn hosts_are_killed_under_io_a_hundred_times() {
    let rig = Rig::new();
    let mut seed = 12345u64;
    for round in 0..100 {
        let (_admin, mut io) = rig.connect(if round % 2 == 0 { 3 } else { 0 });
        let mut bytes = Vec::new();
        for cid in 0..64 {
            let len = [512, 4096, 65536][cid as usize % 3];
            let mut sqe = Sqe { cid, ..rw(1 + u8::from(cid % 2 == 0), 128 * u64::from(cid), len) };
            sqe.set_sgl(SglDescriptor::transport(len as u32));
            bytes.extend(io.capsule(sqe, &[]));
        }
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        let cut = (seed >> 33) as usize % bytes.len();
        io.send(&bytes[..cut]);
        if round % 3 == 0 && cut > 100 {
            io.receive();
        }
    }
    let (_admin, mut io) = rig.connect(0);
    assert!(io.write(0, &pattern(1, 65536)).status().is_success());
    assert!(io.read(0, 65536).1 == pattern(1, 65536));
    for _ in 0..4000 {
        if rig.subsystem.controllers().len() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("controllers are left: {:?}", rig.subsystem.controllers());
}

#[test]
fn a_subsystem_is_closed_under_its_hosts() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    rig.target.remove_subsystem(rig.subsystem.nqn());
    assert!(rig.subsystem.close().wait(Duration::from_secs(20)));
    assert!(admin.is_closed() && io.is_closed());
    // Its address is free at once.
    let again = common::subsystem(rig.shards.handles(), SUBNQN);
    assert_eq!(rig.target.listen(rig.addr, &again).unwrap(), rig.addr);
    let mut admin = Host::open(rig.addr, 0);
    admin.connect_admin(SUBNQN, 0);
}

#[test]
fn data_is_aligned_as_the_host_asks() {
    let rig = Rig::new();
    let (_admin, mut plain) = rig.connect(0);
    let data = pattern(11, 4096);
    assert!(plain.write(0, &data).status().is_success());
    for (hpda_z, digests) in [(0u8, BOTH), (15, 0), (15, BOTH), (31, BOTH)] {
        let mut admin = Host::open(rig.addr, 0);
        let cntlid = admin.connect_admin(SUBNQN, 0);
        admin.enable();
        let mut io = Host::raw(rig.addr);
        let mut request = common::icreq(digests);
        request.hpda_z = hpda_z;
        io.send(request.as_bytes());
        assert!(io.receive().is_some());
        io.digests = digests;
        assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
        let mut sqe = Sqe { cid: 60, ..rw(2, 0, 4096) };
        sqe.set_sgl(SglDescriptor::transport(4096));
        let capsule = io.capsule(sqe, &[]);
        io.send(&capsule);
        let pdu = io.receive().unwrap();
        assert_eq!(pdu.ch.pdo % ((hpda_z + 1) * 4), 0, "PDO {} for HPDA {hpda_z}", pdu.ch.pdo);
        assert!(pdu.data == data);
    }
}

#[test]
fn an_io_queue_disconnects() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    assert!(io.run(disconnect(0), &[], 0).0.status().is_success());
    assert!(io.is_closed());
    assert_eq!(admin.run(disconnect(0), &[], 0).0.status(), Status::INVALID_QUEUE_TYPE.dnr());
    // Its QID is free again, as soon as it has ended.
    let cntlid = rig.subsystem.controllers()[0].cntlid();
    let again = || Host::open(rig.addr, 0).connect_queue(SUBNQN, 1, cntlid).status().is_success();
    while !again() {}
}

/// What came last begins a receive, which the end of a turn would start: there is none any more.
#[test]
fn a_shard_that_ends_closes_its_connections() {
    let sim = Sim::new(1).unwrap();
    let target = Target::new(&sim.handles(), TargetConfig::default()).unwrap();
    let subsystem = common::subsystem(&sim.handles(), SUBNQN);
    let addr = target.listen("127.0.0.1:0".parse().unwrap(), &subsystem).unwrap();
    let rest = || assert!(sim.settle(Duration::ZERO, 1000));
    rest();
    let mut host = Host::raw(addr);
    rest();
    host.send(&common::icreq(0).as_bytes()[..8]);
    drop(sim);
    assert!(host.is_closed());
}
