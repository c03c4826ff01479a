//! D: Connect, properties, and controllers that come and go.

use std::time::Duration;

use frontend::tcp::Reason;
use nvme_proto::Status;
use nvme_proto::fabrics::{Cattr, Connect, Property, invalid_parameter};
use nvme_proto::register::offset;

use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data};
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
    for offset in [offset::CAP, offset::VS, offset::CSTS, offset::AQA] {
        assert_eq!(admin.property_set(offset, 1).status(), invalid, "set {offset:#x}");
    }
    // A subsystem reset takes the right word.
    assert!(admin.property_set(offset::NSSR, 1).status().is_success());
    assert_eq!(admin.property_get(offset::NSSR, 0), 0);
    // Enabling with what it cannot do makes the controller fail, until it is reset.
    for cc in [0x46_0081u64, 0x46_0801, 0x46_0011, 0x66_0001, 0x36_0001] {
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
