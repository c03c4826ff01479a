//! D: static controllers: who gets which, and who gets none.

use std::time::Duration;

use frontend::AccessState;
use frontend::tcp::Reason;
use nvme_proto::Status;
use nvme_proto::fabrics::{CNTLID_ANY_STATIC, CNTLID_DYNAMIC, Cattr, Connect, invalid_parameter};
use nvme_proto::identify::IdentifyController;
use nvme_proto::log::{DiscoveryEntry, DiscoveryHeader, GetLogPage, LogId};
use nvme_proto::nqn::DISCOVERY_NQN;
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Cqe, Sqe};

use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, namespace, pattern, subsystem};
use super::others_live;

const FIXED: &str = "nqn.2024-01.test:fixed";
const OTHER: &str = "nqn.2024-01.test:other-host";
const ADMIN: Connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
const BUSY: (Status, u32) = (Status::CONNECT_CONTROLLER_BUSY, 0);

fn cntlid_is_wrong() -> (Status, u32) {
    (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(true, 16))
}

/// A subsystem whose controllers are the static ones 5, with at most two I/O queues, and 1, beside the rig's dynamic ones.
fn fixed(rig: &Rig) -> std::sync::Arc<frontend::Subsystem> {
    let fixed = subsystem(rig.shards.handles(), FIXED);
    fixed.add_namespace(namespace(1, 512, 1 << 20)).unwrap();
    for shard in rig.shards.handles() {
        shard.call(|_| ());
    }
    assert_eq!(rig.target.listen_static(rig.addr, &fixed, Some(5), 2).unwrap(), (rig.addr, 5));
    assert_eq!(rig.target.listen_static(rig.addr, &fixed, None, 128).unwrap(), (rig.addr, 1));
    fixed
}

fn connect(rig: &Rig, hostnqn: &str, connect: Connect, cntlid: u16) -> (Host, Cqe) {
    let mut host = Host::open(rig.addr, 0);
    let cqe = host.connect(connect, &connect_data(FIXED, hostnqn, cntlid));
    (host, cqe)
}

fn refused(rig: &Rig, hostnqn: &str, cntlid: u16) -> (Status, u32) {
    let (_, cqe) = connect(rig, hostnqn, ADMIN, cntlid);
    (cqe.status(), cqe.dw0)
}

/// A host's admin queue of a controller, once whoever had it before has ended.
fn admitted(rig: &Rig, hostnqn: &str, cntlid: u16) -> (Host, u32) {
    for _ in 0..5000 {
        let (host, cqe) = connect(rig, hostnqn, ADMIN, cntlid);
        if cqe.status().is_success() {
            return (host, cqe.dw0);
        }
        assert_eq!(cqe.status(), BUSY.0);
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("controller {cntlid:#x} stays busy");
}

fn identify(admin: &mut Host, cns: u32) -> Vec<u8> {
    let (cqe, data) = admin.run(Sqe { opc: 6, cdw10: cns, ..Sqe::default() }, &[], 4096);
    assert!(cqe.status().is_success());
    data
}

#[test]
fn d38_a_static_controller_has_one_host_at_a_time() {
    let rig = Rig::new();
    let subsystem = fixed(&rig);
    for wrong in [CNTLID_DYNAMIC, 0, 2, 1024, 0xffef, 0xfff0] {
        assert_eq!(refused(&rig, HOSTNQN, wrong), cntlid_is_wrong(), "{wrong:#x}");
    }
    let (mut five, cntlid) = admitted(&rig, HOSTNQN, 5);
    assert_eq!(cntlid, 5);
    five.enable();
    assert_eq!(refused(&rig, OTHER, 5), BUSY);
    assert_eq!(refused(&rig, HOSTNQN, 5), BUSY, "nor twice by the same host");
    let (mut one, cntlid) = admitted(&rig, OTHER, CNTLID_ANY_STATIC);
    assert_eq!(cntlid, 1);
    assert_eq!(refused(&rig, OTHER, CNTLID_ANY_STATIC), BUSY);
    assert_eq!(rig.target.rejections().count(Reason::ConnectBusy), 3);
    // An I/O queue names its controller.
    for wrong in [CNTLID_ANY_STATIC, CNTLID_DYNAMIC, 1] {
        let (_, cqe) = connect(&rig, HOSTNQN, Connect { qid: 1, ..ADMIN }, wrong);
        assert_eq!((cqe.status(), cqe.dw0), cntlid_is_wrong(), "{wrong:#x}");
    }
    let (_, cqe) = connect(&rig, HOSTNQN, Connect { qid: 3, ..ADMIN }, 5);
    let range = (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(false, 42));
    assert_eq!((cqe.status(), cqe.dw0), range, "it was declared with two");
    let (mut io, cqe) = connect(&rig, HOSTNQN, Connect { qid: 2, ..ADMIN }, 5);
    assert!(cqe.status().is_success());
    assert!(io.write(0, &pattern(3, 4096)).status().is_success());
    let writes = |cntlid| {
        let counted = rig.target.stats(rig.addr, subsystem.nqn(), Some(cntlid)).unwrap();
        counted.of(engine::stats::Kind::Write).ops
    };
    assert_eq!((writes(5), writes(1)), (1, 0), "each is counted by itself");
    // The host leaves, and another one has it.
    drop((five, io));
    let (_five, cntlid) = admitted(&rig, OTHER, 5);
    assert_eq!(cntlid, 5);
    one.enable();
    others_live(&rig);
}

/// What lives on is what a Controller Level Reset leaves (Base 2.1, 3.1.1): nothing that the host has set.
#[test]
fn d46_an_association_begins_as_after_a_reset() {
    let rig = Rig::new();
    fixed(&rig);
    let arbitration = |admin: &mut Host| admin.run(Sqe { opc: 10, cdw10: 1, ..Sqe::default() }, &[], 0).0.dw0;
    for _ in 0..2 {
        let (mut admin, _) = admitted(&rig, HOSTNQN, 5);
        admin.enable();
        assert_eq!(arbitration(&mut admin), 0);
        let set = Sqe { opc: 9, cdw10: 1, cdw11: 0x0102_0304, ..Sqe::default() };
        assert!(admin.run(set, &[], 0).0.status().is_success());
        assert_eq!(arbitration(&mut admin), 0x0102_0304);
    }
}

/// The so many entries of the discovery log.
fn discovered(rig: &Rig, count: usize) -> Vec<DiscoveryEntry> {
    let mut discovery = Host::open(rig.addr, 0);
    discovery.connect_admin(DISCOVERY_NQN, 0);
    discovery.enable();
    let len = size_of::<DiscoveryHeader>() + count * size_of::<DiscoveryEntry>();
    let mut sqe = Sqe { opc: 2, nsid: 0xffff_ffff, ..Sqe::default() };
    GetLogPage::new(LogId::Discovery, 0, len as u32).put(&mut sqe);
    let (cqe, log) = discovery.run(sqe, &[], len);
    assert!(cqe.status().is_success());
    let (header, entries) = log.split_at(size_of::<DiscoveryHeader>());
    assert_eq!(DiscoveryHeader::read_from_bytes(header).unwrap().numrec, count as u64);
    let entries = entries.chunks(size_of::<DiscoveryEntry>());
    entries.map(|bytes| DiscoveryEntry::read_from_bytes(bytes).unwrap()).collect()
}

#[test]
fn a_port_keeps_its_identifier_while_others_come_and_go() {
    let rig = Rig::new();
    let other = subsystem(rig.shards.handles(), FIXED);
    let listen = || rig.target.listen("127.0.0.1:0".parse().unwrap(), &other).unwrap();
    let ports = |count| -> std::collections::BTreeMap<String, u16> {
        let entries = discovered(&rig, count).into_iter();
        entries.map(|e| (String::from_utf8_lossy(&e.trsvcid).trim().to_owned(), e.portid)).collect()
    };
    let addrs: Vec<_> = (0..5).map(|_| listen()).collect();
    let all = ports(6);
    let mut ids: Vec<_> = all.values().copied().collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6], "each has its own");
    for (gone, addr) in addrs[..4].iter().enumerate() {
        assert!(rig.target.unlisten(*addr, other.nqn(), None));
        for (port, id) in ports(5 - gone) {
            assert_eq!(all[&port], id);
        }
    }
}

/// A report tells which static controller a registrant is at, and of dynamic ones that they are (Base 2.1, 8.1.25).
#[test]
fn reservation_reports_name_static_controllers() {
    let rig = Rig::new();
    fixed(&rig);
    let (mut admin, _) = admitted(&rig, HOSTNQN, 5);
    admin.enable();
    let (mut io, cqe) = connect(&rig, HOSTNQN, Connect { qid: 1, ..ADMIN }, 5);
    assert!(cqe.status().is_success());
    let (_admin, mut dynamic) = rig.connect(0);
    for (io, cntlid) in [(&mut io, 5), (&mut dynamic, CNTLID_DYNAMIC)] {
        let register = Sqe { opc: 0x0d, nsid: 1, ..Sqe::default() };
        let keys = [[0; 8], 7u64.to_le_bytes()].concat();
        assert_eq!(io.run(register, &keys, 0).0.status(), Status::SUCCESS);
        let report = Sqe { opc: 0x0e, nsid: 1, cdw10: 31, cdw11: 1, ..Sqe::default() };
        let (cqe, data) = io.run(report, &[], 128);
        assert!(cqe.status().is_success());
        assert_eq!(data[64..66], u16::to_le_bytes(cntlid));
    }
}

#[test]
fn static_controllers_are_known_before_hosts_come() {
    let rig = Rig::new();
    fixed(&rig);
    let (mut admin, _) = admitted(&rig, HOSTNQN, 5);
    admin.enable();
    let id = IdentifyController::read_from_bytes(&identify(&mut admin, 1)).unwrap();
    assert!(id.cntlid == 5 && id.fcatt.static_controllers());
    assert_eq!(identify(&mut admin, 0x13)[..8], [2, 0, 1, 0, 5, 0, 0, 0], "1 has no association");
    let entries = discovered(&rig, 3).into_iter();
    let mut told: Vec<_> =
        entries.map(|entry| (entry.cntlid, entry.subnqn.starts_with(FIXED.as_bytes()))).collect();
    told.sort_unstable();
    assert_eq!(told, [(1, true), (5, true), (CNTLID_DYNAMIC, false)]);
    let (_, cqe) = connect(&rig, HOSTNQN, ADMIN, CNTLID_DYNAMIC);
    assert!(!cqe.status().is_success());
    assert!(Host::open(rig.addr, 0).connect_admin(SUBNQN, 0) >= 1024, "dynamic ones are far from them");
}

#[test]
fn a_static_controller_that_is_taken_away_takes_its_host_along() {
    let rig = Rig::new();
    let subsystem = fixed(&rig);
    let nqn = subsystem.nqn();
    assert!(rig.target.listen_static(rig.addr, &subsystem, Some(5), 1).is_err(), "it is there already");
    let (mut five, _) = admitted(&rig, HOSTNQN, 5);
    let (mut one, _) = admitted(&rig, OTHER, 1);
    one.enable();
    assert!(rig.target.set_access(rig.addr, nqn, Some(5), AccessState::Inaccessible));
    assert!(!rig.target.set_access(rig.addr, nqn, Some(6), AccessState::Inaccessible));
    assert!(rig.target.unlisten(rig.addr, nqn, Some(5)) && !rig.target.unlisten(rig.addr, nqn, Some(5)));
    assert!(five.is_closed());
    assert_eq!(refused(&rig, HOSTNQN, 5), cntlid_is_wrong());
    assert!(identify(&mut one, 1).starts_with(&[0; 4]), "the other goes on");
    // It may be declared again while the last association ends.
    rig.target.listen_static(rig.addr, &subsystem, Some(5), 1).unwrap();
    let (mut five, _) = admitted(&rig, HOSTNQN, 5);
    five.enable();
    assert!(rig.target.unlisten(rig.addr, nqn, Some(1)) && one.is_closed());
    assert_eq!(identify(&mut five, 0x13)[..4], [1, 0, 5, 0]);
}
