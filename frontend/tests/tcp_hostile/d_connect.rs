//! D: Connect, properties, and controllers that come and go.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use frontend::Namespace;
use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect, Property, invalid_parameter};
use nvme_proto::register::offset;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use super::common::stall::Stall;
use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, icreq, pattern, rw, subsystem};
use super::others_live;

#[test]
fn d38_to_d42_bad_connects() {
    let rig = Rig::new();
    let refused = |connect: Connect, subnqn: &str, hostnqn: &str, cntlid: u16| {
        let mut host = Host::open(rig.addr, 0);
        let cqe = host.connect(connect, &connect_data(subnqn, hostnqn, cntlid));
        (cqe.status(), cqe.dw0)
    };
    let admin = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let io = Connect { qid: 1, ..admin };
    let parameter = Status::CONNECT_INVALID_PARAMETERS.dnr();
    for cntlid in [0, 1, 0xffef, 0xfffe, 0xffff] {
        let got = refused(io, SUBNQN, HOSTNQN, cntlid);
        assert_eq!(got, (parameter, invalid_parameter(true, 16)), "I/O queue of controller {cntlid:#x}");
    }
    for cntlid in [0, 1, 0xfffe] {
        assert_eq!(refused(admin, SUBNQN, HOSTNQN, cntlid), (parameter, invalid_parameter(true, 16)));
    }
    for sqsize_z in [0, 1024, 65535] {
        let connect = Connect { sqsize_z, ..admin };
        assert_eq!(refused(connect, SUBNQN, HOSTNQN, 0xffff), (parameter, invalid_parameter(false, 44)));
    }
    let format = Connect { recfmt: 1, ..admin };
    assert_eq!(refused(format, SUBNQN, HOSTNQN, 0xffff).0, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    // D.49: a subsystem that is not there, and one that this host may not see.
    let unknown = refused(admin, "nqn.2024-01.test:nothing", HOSTNQN, 0xffff);
    rig.subsystem.set_allowed_hosts(vec![nvme_proto::Nqn::new("nqn.2024-01.test:friend").unwrap()]);
    assert_eq!(refused(admin, SUBNQN, HOSTNQN, 0xffff), unknown);
    assert!(refused(admin, SUBNQN, "nqn.2024-01.test:friend", 0xffff).0.is_success());
    rig.subsystem.set_allowed_hosts(Vec::new());
    // D.41: names that are none.
    let mut host = Host::open(rig.addr, 0);
    let mut data = connect_data(SUBNQN, HOSTNQN, 0xffff);
    for (field, offset) in [(0, 256), (1, 512)] {
        for junk in [[b'n'; 256], [0; 256], [0xff; 256], [b'\n'; 256]] {
            let mut bad = data;
            *(if field == 0 { &mut bad.subnqn } else { &mut bad.hostnqn }) = junk;
            let cqe = host.connect(admin, &bad);
            assert_eq!((cqe.status(), cqe.dw0), (parameter, invalid_parameter(true, offset)));
        }
    }
    assert_eq!(rig.target.rejections().count(Reason::ConnectHostNqn), 4);
    // After all this the same connection may still connect.
    data.hostid = [0; 16];
    assert!(host.connect(admin, &data).status().is_success());
}

#[test]
fn d38_a_controller_of_another_host() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let connect = Connect { recfmt: 0, qid: 1, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let parameter = (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(true, 16));
    let mut other = Host::open(rig.addr, 0);
    let cqe = other.connect(connect, &connect_data(SUBNQN, "nqn.2024-01.test:other", cntlid));
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    let mut data = connect_data(SUBNQN, HOSTNQN, cntlid);
    data.hostid = [8; 16];
    let cqe = other.connect(connect, &data);
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    // D.39: a queue beyond what there is.
    let cqe = other.connect(Connect { qid: 1000, ..connect }, &connect_data(SUBNQN, HOSTNQN, cntlid));
    assert_eq!((cqe.status(), cqe.dw0), (parameter.0, invalid_parameter(false, 42)));
}

#[test]
fn d43_commands_out_of_place() {
    let rig = Rig::new();
    let sequence = Status::COMMAND_SEQUENCE_ERROR.dnr();
    let get = Property { offset: offset::CAP, size: 1, value: 0 };
    let mut host = Host::open(rig.addr, 0);
    assert_eq!(host.run(get.get(0), &[], 0).0.status(), sequence, "before Connect");
    assert_eq!(host.read(0, 512).0.status(), sequence, "before Connect");
    for code in 0..=255u8 {
        let fabrics = Sqe { opc: 0x7f, nsid: code.into(), ..Sqe::default() };
        for sqe in [Sqe { opc: code, ..Sqe::default() }, fabrics] {
            if (sqe.opc, sqe.nsid) != (0x7f, 1) {
                assert_eq!(host.run(sqe, &[0; 64], 0).0.status(), sequence, "{code:#x} before Connect");
            }
        }
    }
    let (mut admin, mut io) = rig.connect(0);
    assert_eq!(io.run(get.get(0), &[], 0).0.status(), Status::INVALID_OPCODE.dnr(), "on an I/O queue");
    let again = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    for queue in [&mut admin, &mut io] {
        let cqe = queue.connect(again, &connect_data(SUBNQN, HOSTNQN, 0xffff));
        assert_eq!(cqe.status(), sequence, "twice");
    }
}

#[test]
fn d45_properties() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let invalid = Status::INVALID_FIELD.dnr();
    let bad_gets = [
        (offset::CAP, 0),
        (offset::CC, 1),
        (offset::CSTS + 1, 0),
        (offset::ASQ, 1),
        (offset::NSSD, 0),
        (0x1000, 0),
        (u32::MAX, 0),
        (offset::VS, 2),
        (offset::VS, 7),
    ];
    for (offset, size) in bad_gets {
        let sqe = Property { offset, size, value: 0 }.get(0);
        assert_eq!(admin.run(sqe, &[], 0).0.status(), invalid, "get {offset:#x} {size}");
    }
    for (offset, size) in [
        (offset::CAP, 0),
        (offset::CAP, 1),
        (offset::VS, 0),
        (offset::CSTS, 0),
        (offset::AQA, 0),
        (offset::ASQ, 1),
        (offset::CRTO, 0),
        (offset::CC, 1),
        (offset::CC, 7),
        (offset::CC + 1, 0),
        (offset::CC + 2, 0),
        (offset::NSSR, 1),
        (0x1000, 0),
        (u32::MAX, 0),
        (u32::MAX - 3, 1),
    ] {
        let set = Property { offset, size, value: 0 }.set(0);
        assert_eq!(admin.run(set, &[], 0).0.status(), invalid, "set {offset:#x} {size}");
    }
    assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1, "nothing of it reset the controller");
    // A subsystem reset takes the right word.
    assert!(admin.property_set(offset::NSSR, 1).status().is_success());
    assert_eq!(admin.property_get(offset::NSSR, 0), 0);
    // Enabling with what it cannot do makes the controller fail, until it is reset.
    let [mps, ams] =
        [(7, 16), (11, 8)].map(|(at, end)| (1..end).map(move |value| 0x46_0001u64 | value << at));
    let css = (1..8).map(|css| 0x46_0001 | css << 4);
    // Entries of no size yet are none that is wrong.
    let sizes = (0..256).filter(|sizes| !matches!((sizes & 15, sizes >> 4), (0 | 6, 0 | 4)));
    let sizes = sizes.map(|sizes| sizes << 16 | 1);
    for cc in mps.chain(ams).chain(css).chain(sizes) {
        admin.property_set(offset::CC, 0);
        admin.wait_csts(1, 0);
        admin.property_set(offset::CC, cc);
        assert_eq!(admin.property_get(offset::CSTS, 0) & 3, 2, "CC {cc:#x}");
    }
    admin.property_set(offset::CC, 0);
    for _ in 0..50 {
        admin.property_set(offset::CC, 0x46_0001);
        admin.property_set(offset::CC, 0x46_0000);
    }
    admin.wait_csts(1, 0);
    admin.enable();
}

#[test]
fn d44_a_silent_host_loses_its_controller() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 1);
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    assert!(admin.is_closed() && io.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::KeepAlive), 1);
    others_live(&rig);
}

#[test]
fn d46_controllers_come_and_go() {
    let rig = Rig::new();
    for _ in 0..200 {
        let mut host = Host::open(rig.addr, 0);
        host.connect_admin(SUBNQN, 0);
    }
    others_live(&rig);
    for _ in 0..2000 {
        if rig.subsystem.controllers().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("controllers are left: {:?}", rig.subsystem.controllers());
}

pub const ADMIN: Connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
pub const IO: Connect = Connect { qid: 1, ..ADMIN };

#[test]
fn d38_a_controller_of_another_subsystem() {
    let rig = Rig::new();
    let other = subsystem(rig.shards.handles(), "nqn.2024-01.test:other");
    rig.target.listen(rig.addr, &other).unwrap();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let parameter = (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(true, 16));
    let mut io = Host::open(rig.addr, 0);
    let cqe = io.connect(IO, &connect_data("nqn.2024-01.test:other", HOSTNQN, cntlid));
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    // One that has ended.
    drop(admin);
    while !rig.subsystem.controllers().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let cqe = io.connect(IO, &connect_data(SUBNQN, HOSTNQN, cntlid));
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    // The static model's "any controller", for an admin queue.
    let cqe = io.connect(ADMIN, &connect_data(SUBNQN, HOSTNQN, 0xfffe));
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    others_live(&rig);
}

#[test]
fn d39_queues_beyond_what_was_granted() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    let early = Host::open(rig.addr, 0).connect(IO, &connect_data(SUBNQN, HOSTNQN, cntlid));
    assert_eq!(early.status(), Status::COMMAND_SEQUENCE_ERROR.dnr(), "the controller is not enabled");
    admin.enable();
    let queues = |n_z: u32| Sqe { opc: 9, cdw10: 7, cdw11: n_z << 16 | n_z, ..Sqe::default() };
    assert_eq!(admin.run(queues(1), &[], 0).0.dw0, 0x0001_0001);
    let queue = |qid| {
        let mut io = Host::open(rig.addr, 0);
        let cqe = io.connect(Connect { qid, ..IO }, &connect_data(SUBNQN, HOSTNQN, cntlid));
        (io, cqe.status(), cqe.dw0)
    };
    let range = (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(false, 42));
    for qid in [3, 129, 0xfffe, 0xffff] {
        let (_, status, dw0) = queue(qid);
        assert_eq!((status, dw0), range, "{qid}");
    }
    let (_one, status, _) = queue(1);
    assert!(status.is_success());
    assert_eq!(queue(1).1, Status::COMMAND_SEQUENCE_ERROR.dnr(), "twice");
    assert_eq!(admin.run(queues(7), &[], 0).0.status(), Status::COMMAND_SEQUENCE_ERROR.dnr(), "too late");
    others_live(&rig);
}

#[test]
fn d39_a_queue_is_used_again_while_it_ends() {
    let rig = Rig::new();
    let volume = Stall::new(false);
    let stalled = Namespace { nsid: 7, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.subsystem.add_namespace(stalled).unwrap();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let data = connect_data(SUBNQN, HOSTNQN, cntlid);
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect(IO, &data).status().is_success());
    let mut sqe = Sqe { cid: 1, nsid: 7, ..rw(1, 0, 512) };
    sqe.set_sgl(SglDescriptor::in_capsule(512));
    let bytes = io.capsule(sqe, &[1; 512]);
    io.send(&bytes);
    while volume.held() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(io);
    while volume.revoked() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // As long as a write of the old one may land, there is no new one.
    let again = || Host::open(rig.addr, 0).connect(IO, &data).status();
    assert_eq!(again(), Status::COMMAND_SEQUENCE_ERROR.dnr());
    volume.release(Ok(()));
    while !again().is_success() {}
    assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1);
}

#[test]
fn d40_sizes_of_queues() {
    let rig = Rig::new();
    let (refused, entries) = (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(false, 44));
    for (sqsize_z, good) in [(0, false), (1, true), (1023, true), (1024, false), (65535, false)] {
        let mut admin = Host::open(rig.addr, 0);
        let first = admin.connect(Connect { sqsize_z, ..ADMIN }, &connect_data(SUBNQN, HOSTNQN, 0xffff));
        let cntlid = if good { first.dw0 as u16 } else { admin.connect_admin(SUBNQN, 0) };
        admin.enable();
        let mut io = Host::open(rig.addr, 0);
        let second = io.connect(Connect { sqsize_z, ..IO }, &connect_data(SUBNQN, HOSTNQN, cntlid));
        for cqe in [first, second] {
            assert!(if good {
                cqe.status().is_success()
            } else {
                (cqe.status(), cqe.dw0) == (refused, entries)
            });
        }
        for _ in 0..if good { 10 } else { 0 } {
            assert!(io.write(0, &[1; 512]).status().is_success());
        }
    }
    others_live(&rig);
}

#[test]
fn d44_any_kato_in_a_connect() {
    let rig = Rig::new();
    let get = Sqe { opc: 0xa, cdw10: 0xf, ..Sqe::default() };
    for (kato, rounded) in
        [(0, 0), (1, 1000), (120_000, 120_000), (u32::MAX - 1, u32::MAX), (u32::MAX, u32::MAX)]
    {
        let mut admin = Host::open(rig.addr, 0);
        admin.connect_admin(SUBNQN, kato);
        admin.enable();
        assert_eq!(admin.run(get, &[], 0).0.dw0, rounded, "{kato}");
    }
    others_live(&rig);
}

#[test]
fn d43_fabrics_commands_on_an_io_queue() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    for fuse in 1..4 {
        let mut disconnect = Sqe { opc: 0x7f, nsid: 8, ..Sqe::default() };
        disconnect.flags.set_fuse(fuse);
        assert_eq!(io.run(disconnect, &[], 0).0.status(), Status::INVALID_FIELD.dnr(), "FUSE {fuse}");
    }
    let set = Property { offset: offset::CC, size: 0, value: 0 }.set(0);
    assert_eq!(io.run(set, &[], 0).0.status(), Status::INVALID_OPCODE.dnr());
    let disconnect = Sqe { opc: 0x7f, nsid: 8, cdw10: 1, ..Sqe::default() };
    assert_eq!(io.run(disconnect, &[], 0).0.status(), Status::CONNECT_INCOMPATIBLE_FORMAT.dnr(), "RECFMT");
    assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1, "nothing was reset");
    for fctype in 0..=0xffu32 {
        // Connect is out of sequence, and Disconnect ends the queue.
        if matches!(fctype, 0 | 1 | 4 | 8) {
            continue;
        }
        for queue in [&mut admin, &mut io] {
            let sqe = Sqe { opc: 0x7f, nsid: fctype, ..Sqe::default() };
            assert_eq!(queue.run(sqe, &[], 0).0.status(), Status::INVALID_OPCODE.dnr(), "{fctype:#x}");
        }
    }
    others_live(&rig);
}

#[test]
fn d45_shutdown_and_resets() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    admin.connect_admin(SUBNQN, 0);
    for _ in 0..20 {
        admin.enable();
        // Shut down, reset while that is so, and enabled again.
        admin.property_set(offset::CC, 0x46_4001);
        admin.wait_csts(0xc, 0x8);
        admin.property_set(offset::CC, 0x46_0000);
        admin.wait_csts(0xd, 0);
    }
    // A shutdown that was never enabled.
    admin.property_set(offset::CC, 0x46_4000);
    admin.wait_csts(0xc, 0x8);
    admin.property_set(offset::CC, 0x46_0000);
    admin.enable();
    others_live(&rig);
}

/// A thousand that come as fast as they can, say all that they have to say and are gone: a host beside them goes on.
#[test]
fn d46_a_storm_of_connects() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let done = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let storm = || {
            for _ in 0..250 {
                let mut host = Host::raw(rig.addr);
                let mut sqe = ADMIN.to_sqe(1);
                sqe.set_sgl(SglDescriptor::in_capsule(1024));
                let data = connect_data(SUBNQN, HOSTNQN, 0xffff);
                let bytes = [icreq(0).as_bytes(), &host.capsule(sqe, data.as_bytes())].concat();
                // Whoever is one too many that has not connected yet is turned away.
                let _ = host.stream.write_all(&bytes);
            }
        };
        let storms: Vec<_> = (0..4).map(|_| scope.spawn(storm)).collect();
        scope.spawn(|| {
            storms.into_iter().for_each(|storm| storm.join().unwrap());
            println!("1000 connects in {:?}", began.elapsed());
            done.store(true, SeqCst);
        });
        let mut round = 0;
        while !done.load(SeqCst) || round == 0 {
            let data = pattern(round, 4096);
            assert!(io.write(round % 1000 * 8, &data).status().is_success());
            assert!(io.read(round % 1000 * 8, 4096).1 == data);
            round += 1;
        }
    });
    others_live(&rig);
    // Theirs are gone, and ours is the one that stays.
    for _ in 0..4000 {
        if rig.subsystem.controllers().len() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} controllers are left", rig.subsystem.controllers().len());
}

/// All controllers that a subsystem can have: who comes later is told that it is busy, until one goes.
#[test]
fn d46_no_controller_is_left() {
    let config = TargetConfig { max_half_open: 64, ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    let mut hosts = Vec::new();
    let busy = loop {
        let mut host = Host::open(rig.addr, 0);
        let cqe = host.connect(ADMIN, &connect_data(SUBNQN, HOSTNQN, 0xffff));
        match cqe.status().is_success() {
            true => hosts.push(host),
            false => break cqe.status(),
        }
        assert!(hosts.len() <= 65520);
    };
    assert_eq!((hosts.len(), busy), (1024, Status::CONNECT_CONTROLLER_BUSY));
    assert_eq!(rig.target.rejections().count(Reason::ConnectBusy), 1);
    hosts[500].enable();
    hosts.truncate(1000);
    let mut host = Host::open(rig.addr, 0);
    while !host.connect(ADMIN, &connect_data(SUBNQN, HOSTNQN, 0xffff)).status().is_success() {}
    hosts[500].property_get(offset::CSTS, 0);
}
