//! Which hosts see what, and what they are told of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, namespace, pattern, rw};
use frontend::Viewer;
use frontend::tcp::Reason;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect, Property, SubsystemType};
use nvme_proto::log::{DiscoveryEntry, DiscoveryHeader, GetLogPage, LogId, Smart};
use nvme_proto::nqn::DISCOVERY_NQN;
use nvme_proto::register::offset;
use nvme_proto::tcp::{PduType, R2t};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Nqn, Sqe, Status};

const FRIEND: &str = "nqn.2024-01.test:friend";
const NAMESPACES_CHANGED: u32 = 0x04_0002;
const DISCOVERY_CHANGED: u32 = 0x70_f002;

fn nqn(name: &str) -> Nqn {
    Nqn::new(name).unwrap()
}

/// An admin queue of that host, enabled; notices are wanted, and one may be told.
fn admin(rig: &Rig, subnqn: &str, hostnqn: &str) -> (Host, u16) {
    let mut admin = Host::open(rig.addr, 0);
    let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let cqe = admin.connect(connect, &connect_data(subnqn, hostnqn, 0xffff));
    assert!(cqe.status().is_success(), "{:?}", cqe.status());
    admin.enable();
    let sqe = Sqe { opc: 9, cdw10: 0xb, cdw11: 1 << 31 | 1 << 8, ..Sqe::default() };
    assert!(admin.run(sqe, &[], 0).0.status().is_success());
    listen(&mut admin);
    (admin, cqe.dw0 as u16)
}

fn listen(admin: &mut Host) {
    let mut aer = Sqe { opc: 0xc, cid: 999, ..Sqe::default() };
    aer.set_sgl(SglDescriptor::transport(0));
    let capsule = admin.capsule(aer, &[]);
    admin.send(&capsule);
}

fn told(admin: &mut Host, event: u32) {
    let (cqe, _) = admin.complete(&[]);
    assert_eq!((cqe.cid, cqe.dw0), (999, event));
}

/// News is on its way no more: it goes from shard to shard, and makes more.
fn settle(rig: &Rig) {
    for _ in 0..3 {
        for shard in rig.shards.handles() {
            shard.call(|_| ());
        }
    }
}

/// Nothing was told, and nothing is on its way: the next answer is that of a command of now.
fn told_nothing(rig: &Rig, admin: &mut Host) {
    settle(rig);
    admin.property_get(offset::CSTS, 0);
}

fn log_page(admin: &mut Host, lid: LogId, offset: u64, len: u32) -> Vec<u8> {
    let mut sqe = Sqe { opc: 2, nsid: 0xffff_ffff, ..Sqe::default() };
    GetLogPage::new(lid, offset, len).put(&mut sqe);
    let (cqe, data) = admin.run(sqe, &[], len as usize);
    assert!(cqe.status().is_success(), "log {lid:?}: {:?}", cqe.status());
    data
}

fn namespaces(admin: &mut Host) -> Vec<u32> {
    let list = admin.run(Sqe { opc: 6, cdw10: 2, ..Sqe::default() }, &[], 4096).1;
    let ids = list.chunks(4).map(|id| u32::from_le_bytes(id.try_into().unwrap()));
    ids.take_while(|id| *id != 0).collect()
}

fn io(rig: &Rig, hostnqn: &str, cntlid: u16) -> Host {
    let mut io = Host::open(rig.addr, 0);
    let connect = Connect { recfmt: 0, qid: 1, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    assert!(io.connect(connect, &connect_data(SUBNQN, hostnqn, cntlid)).status().is_success());
    io
}

#[test]
fn who_is_taken_off_the_list_is_disconnected() {
    let rig = Rig::new();
    let ((mut out, id), (mut friend, friends)) = (admin(&rig, SUBNQN, HOSTNQN), admin(&rig, SUBNQN, FRIEND));
    let (mut out_io, mut friends_io) = (io(&rig, HOSTNQN, id), io(&rig, FRIEND, friends));
    let mut finder = admin(&rig, DISCOVERY_NQN, HOSTNQN).0;
    let mut friends_finder = admin(&rig, DISCOVERY_NQN, FRIEND).0;
    rig.target.set_allowed_hosts(&rig.subsystem, vec![nqn(FRIEND)]);
    assert!(out.is_closed() && out_io.is_closed());
    assert!(friends_io.write(0, &pattern(1, 512)).status().is_success());
    friend.property_get(offset::CSTS, 0);
    // Only who finds less than before is told.
    told(&mut finder, DISCOVERY_CHANGED);
    told_nothing(&rig, &mut friends_finder);
    let records = |host: &mut Host| {
        DiscoveryHeader::read_from_bytes(&log_page(host, LogId::Discovery, 0, 1024)).unwrap().numrec
    };
    assert_eq!((records(&mut finder), records(&mut friends_finder)), (0, 1));
    let again = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let refused = Host::open(rig.addr, 0).connect(again, &connect_data(SUBNQN, HOSTNQN, 0xffff));
    let unknown =
        Host::open(rig.addr, 0).connect(again, &connect_data("nqn.2024-01.test:no", HOSTNQN, 0xffff));
    assert_eq!((refused.status(), refused.dw0), (unknown.status(), unknown.dw0), "no oracle");
    // Back on the list: told again, and let in.
    listen(&mut finder);
    rig.target.set_allowed_hosts(&rig.subsystem, Vec::new());
    told(&mut finder, DISCOVERY_CHANGED);
    told_nothing(&rig, &mut friends_finder);
    admin(&rig, SUBNQN, HOSTNQN);
}

#[test]
fn a_dynamic_controller_counts_its_own_host_s_commands() {
    let rig = Rig::new();
    let ((mut mine, id), (mut theirs, their_id)) =
        (admin(&rig, SUBNQN, HOSTNQN), admin(&rig, SUBNQN, FRIEND));
    let (mut my_io, mut their_io) = (io(&rig, HOSTNQN, id), io(&rig, FRIEND, their_id));
    for _ in 0..3 {
        assert!(my_io.write(0, &pattern(1, 4096)).status().is_success());
    }
    assert!(their_io.read(0, 4096).0.status().is_success());
    let counts = |admin: &mut Host| {
        let smart = Smart::read_from_bytes(&log_page(admin, LogId::Smart, 0, 512)).unwrap();
        (smart.hrc.get(), smart.dur.get(), smart.hwc.get(), smart.duw.get())
    };
    assert_eq!([counts(&mut mine), counts(&mut theirs)], [(0, 0, 3, 1), (1, 1, 0, 0)]);
    // The listener has all of it, and keeps it.
    let of_listener = || {
        let all = rig.target.stats(rig.addr, rig.subsystem.nqn(), None).unwrap();
        [engine::stats::Kind::Read, engine::stats::Kind::Write].map(|kind| all.of(kind).ops)
    };
    assert_eq!(of_listener(), [1, 3]);
    drop((mine, theirs, my_io, their_io));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !rig.subsystem.controllers().is_empty() {
        assert!(std::time::Instant::now() < until, "they stay");
    }
    assert_eq!(of_listener(), [1, 3]);
}

#[test]
fn a_namespace_is_shown_to_some() {
    let rig = Rig::new();
    let ((mut mine, id), (mut theirs, their_id)) =
        (admin(&rig, SUBNQN, HOSTNQN), admin(&rig, SUBNQN, FRIEND));
    let (mut my_io, mut their_io) = (io(&rig, HOSTNQN, id), io(&rig, FRIEND, their_id));
    let only = |name: &str| Some([Viewer::Host(nqn(name))].into());
    rig.subsystem.add_masked_namespace(namespace(2, 512, 1 << 20), None, only(HOSTNQN)).unwrap();
    told(&mut mine, NAMESPACES_CHANGED);
    told_nothing(&rig, &mut theirs);
    assert_eq!((namespaces(&mut mine), namespaces(&mut theirs)), (vec![1, 2], vec![1]));
    let on_2 = |opc| Sqe { nsid: 2, ..rw(opc, 0, 512) };
    // As where there is no namespace: the NSID is inactive.
    let inactive = Status::INVALID_FIELD.dnr();
    let data = pattern(1, 512);
    assert!(my_io.run(on_2(1), &data, 0).0.status().is_success());
    for opc in [1, 2, 5, 8] {
        let write = if matches!(opc, 1 | 5) { &data[..] } else { &[] };
        assert_eq!(their_io.run(on_2(opc), write, 512).0.status(), inactive, "{opc}");
    }
    let identify = |cns| Sqe { opc: 6, nsid: 2, cdw10: cns, ..Sqe::default() };
    assert_eq!(theirs.run(identify(0), &[], 4096).1, vec![0; 4096], "as if there were none");
    let unknown = theirs.run(identify(3), &[], 4096).0.status();
    assert_eq!(unknown, inactive);
    assert_eq!(theirs.run(identify(8), &[], 4096).1, vec![0; 4096], "as if there were none");
    // The controllers that it is attached to are those that see it.
    let attached = mine.run(identify(0x12), &[], 4096).1;
    assert_eq!(attached[..4], [&1u16.to_le_bytes()[..], &id.to_le_bytes()].concat());
    // It goes over to the other host while a write of this one waits for its data.
    log_page(&mut mine, LogId::ChangedNamespaces, 0, 4096);
    listen(&mut mine);
    let mut sqe = Sqe { cid: 7, ..on_2(1) };
    sqe.set_sgl(SglDescriptor::transport(512));
    let capsule = my_io.capsule(sqe, &[]);
    my_io.send(&capsule);
    let pdu = my_io.receive().unwrap();
    assert_eq!(pdu.ch.pdu_type, PduType::R2t);
    rig.subsystem.mask_namespace(2, only(FRIEND)).unwrap();
    told(&mut mine, NAMESPACES_CHANGED);
    told(&mut theirs, NAMESPACES_CHANGED);
    for pdu in my_io.h2c(&pdu.read::<R2t>(), &[9; 512], 512) {
        my_io.send(&pdu);
    }
    assert_eq!(my_io.complete(&[]).0.status(), Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
    assert_eq!(their_io.run(on_2(2), &[], 512).1, data, "what is there is what was acknowledged");
    assert_eq!((namespaces(&mut mine), namespaces(&mut theirs)), (vec![1], vec![1, 2]));
    // Everybody: news to this host alone. Nobody: news to both.
    for host in [&mut mine, &mut theirs] {
        log_page(host, LogId::ChangedNamespaces, 0, 4096);
        listen(host);
    }
    rig.subsystem.mask_namespace(2, None).unwrap();
    told(&mut mine, NAMESPACES_CHANGED);
    told_nothing(&rig, &mut theirs);
    log_page(&mut mine, LogId::ChangedNamespaces, 0, 4096);
    listen(&mut mine);
    rig.subsystem.mask_namespace(2, Some([].into())).unwrap();
    told(&mut mine, NAMESPACES_CHANGED);
    told(&mut theirs, NAMESPACES_CHANGED);
    assert_eq!(their_io.run(on_2(2), &[], 512).0.status(), inactive);
    // A namespace that nobody sees goes unnoticed.
    for host in [&mut mine, &mut theirs] {
        log_page(host, LogId::ChangedNamespaces, 0, 4096);
        listen(host);
    }
    drop(rig.subsystem.remove_namespace(2).unwrap());
    told_nothing(&rig, &mut mine);
    told_nothing(&rig, &mut theirs);
}

/// The namespaces that changed since the host looked last; looking ends the notice.
fn changed(admin: &mut Host) -> Vec<u32> {
    let list = log_page(admin, LogId::ChangedNamespaces, 0, 4096);
    let ids = list.chunks(4).map(|id| u32::from_le_bytes(id.try_into().unwrap()));
    ids.take_while(|id| *id != 0).collect()
}

#[test]
fn changes_of_many_namespaces_are_told_once() {
    let rig = Rig::new();
    let mut host = admin(&rig, SUBNQN, HOSTNQN).0;
    // Until the host looks, one notice stands for all.
    for nsid in 2..=256 {
        rig.subsystem.add_namespace(namespace(nsid, 512, 4096)).unwrap();
    }
    told(&mut host, NAMESPACES_CHANGED);
    listen(&mut host);
    told_nothing(&rig, &mut host);
    assert!(changed(&mut host).into_iter().eq(2..=256));
    told_nothing(&rig, &mut host);
    for nsid in (2..=256).step_by(9) {
        drop(rig.subsystem.remove_namespace(nsid).unwrap());
        told(&mut host, NAMESPACES_CHANGED);
        assert_eq!(changed(&mut host), [nsid]);
        listen(&mut host);
        told_nothing(&rig, &mut host);
    }
    // They come and go while the host looks: each change is on a page that was read after its notice.
    let mut seen = BTreeSet::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for nsid in 3..=10 {
                drop(rig.subsystem.remove_namespace(nsid).unwrap());
                rig.subsystem.add_namespace(namespace(nsid, 512, 8192)).unwrap();
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            seen.extend(look(&mut host));
        }
    });
    settle(&rig);
    seen.extend(look(&mut host));
    assert!(seen.into_iter().eq(3..=10));
    told_nothing(&rig, &mut host);
}

/// What changed, if the host was told that something did.
fn look(host: &mut Host) -> Vec<u32> {
    let mut sqe = Property { offset: offset::CSTS, size: 0, value: 0 }.get(7);
    sqe.cid = 7;
    let capsule = host.capsule(sqe, &[]);
    host.send(&capsule);
    let mut notices = 0;
    loop {
        let cqe = host.complete(&[]).0;
        if cqe.cid == 7 {
            break;
        }
        assert_eq!((cqe.cid, cqe.dw0), (999, NAMESPACES_CHANGED));
        notices += 1;
    }
    assert!(notices <= 1);
    if notices == 0 {
        return Vec::new();
    }
    let changed = changed(host);
    assert!(!changed.is_empty(), "told of nothing");
    listen(host);
    changed
}

#[test]
fn referrals_are_told() {
    let rig = Rig::new();
    let mut finder = admin(&rig, DISCOVERY_NQN, HOSTNQN).0;
    rig.target.set_referrals(vec!["192.0.2.7:8009".parse().unwrap()]);
    told(&mut finder, DISCOVERY_CHANGED);
    let page = log_page(&mut finder, LogId::Discovery, 0, 3072);
    assert_eq!(DiscoveryHeader::read_from_bytes(&page[..1024]).unwrap().numrec, 2);
    let referral = DiscoveryEntry::read_from_bytes(&page[2048..]).unwrap();
    assert_eq!(referral.subtype, SubsystemType::Referral);
    assert_eq!(Nqn::from_field(&referral.subnqn).unwrap().as_str(), DISCOVERY_NQN);
    assert!(referral.traddr.starts_with(b"192.0.2.7 ") && referral.trsvcid.starts_with(b"8009 "));
    listen(&mut finder);
    rig.target.set_referrals(vec!["192.0.2.7:8009".parse().unwrap()]);
    told_nothing(&rig, &mut finder);
}

/// Ends the other thread, however this one ends.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The log read in parts while it changes: with the same GENCTR before and after, the parts belong together.
#[test]
fn the_discovery_log_is_read_in_parts_while_it_changes() {
    let rig = Rig::new();
    let others: Vec<_> =
        (0..6).map(|i| common::subsystem(rig.shards.handles(), &format!("nqn.2024-01.test:{i}"))).collect();
    let mut finder = Host::open(rig.addr, 0);
    finder.connect_admin(DISCOVERY_NQN, 0);
    finder.enable();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (at, other) in others.iter().enumerate() {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                    rig.target.listen(rig.addr, other).unwrap();
                    if at % 2 == 0 {
                        rig.target.set_allowed_hosts(other, vec![nqn(FRIEND)]);
                    }
                }
                for other in &others {
                    rig.target.set_allowed_hosts(other, Vec::new());
                    rig.target.unlisten(rig.addr, other.nqn(), None);
                }
            }
        });
        let _ended = Ended(&done);
        let header = |host: &mut Host| {
            DiscoveryHeader::read_from_bytes(&log_page(host, LogId::Discovery, 0, 1024)).unwrap()
        };
        let mut consistent = 0;
        for _ in 0..400 {
            let before = header(&mut finder);
            let mut names = Vec::new();
            for i in 0..before.numrec {
                let mut sqe = Sqe { opc: 2, ..Sqe::default() };
                GetLogPage::new(LogId::Discovery, 1024 * (i + 1), 1024).put(&mut sqe);
                let (cqe, entry) = finder.run(sqe, &[], 1024);
                if cqe.status().is_success() {
                    names.push(DiscoveryEntry::read_from_bytes(&entry).unwrap().subnqn);
                }
            }
            if header(&mut finder).genctr == before.genctr {
                consistent += 1;
                assert_eq!(names.len() as u64, before.numrec);
                let whole = names.iter().all(|name| Nqn::from_field(name).is_ok());
                names.sort_unstable();
                names.dedup();
                assert!(whole && names.len() as u64 == before.numrec, "records of different times");
            }
        }
        assert!(consistent > 0);
    });
}

#[test]
fn controllers_have_as_many_queues_as_the_listener_gives() {
    let rig = Rig::new();
    let addr = rig.target.listen_with("127.0.0.1:0".parse().unwrap(), &rig.subsystem, 2).unwrap();
    let mut admin = Host::open(addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let sqe = Sqe { opc: 9, cdw10: 7, cdw11: 0x000f_000f, ..Sqe::default() };
    assert_eq!(admin.run(sqe, &[], 0).0.dw0, 0x0001_0001);
    let queue = |qid| {
        let mut io = Host::open(addr, 0);
        let status = io.connect_queue(SUBNQN, qid, cntlid).status();
        (io, status)
    };
    let granted = [queue(1), queue(2)];
    assert!(granted.iter().all(|(_, status)| status.is_success()));
    assert_eq!(queue(3).1, Status::CONNECT_INVALID_PARAMETERS.dnr());
}

/// A host that connects again while its first association lives has two, as with Linux and SPDK.
#[test]
fn a_host_may_connect_twice() {
    let rig = Rig::new();
    let (first, second) = (rig.connect(0), rig.connect(0));
    for (mut admin, mut io) in [first, second] {
        assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1);
        assert!(io.write(0, &pattern(1, 512)).status().is_success());
    }
}

/// D.44: the kernel asks silent hosts whether they are there, whatever their KATO.
#[test]
fn d44_connections_have_the_kernel_s_keep_alive() {
    let rig = Rig::new();
    let (admin, _io) = rig.connect(0);
    let port = |addr: std::net::SocketAddr| format!(":{:04X}", addr.port());
    let (ours, theirs) = (port(rig.addr), port(admin.stream.local_addr().unwrap()));
    // Once what was sent last is acknowledged, no other timer of the socket runs.
    for _ in 0..2000 {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let runs = table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&ours) && fields[2].ends_with(&theirs) && fields[5].starts_with("02:")
        });
        if runs {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("no keep-alive timer");
}

#[test]
fn d44_kato_is_changed_in_flight() {
    let rig = Rig::new();
    let kato = |ms: u32| Sqe { opc: 9, cdw10: 0xf, cdw11: ms, ..Sqe::default() };
    let get = Sqe { opc: 0xa, cdw10: 0xf, ..Sqe::default() };
    let mut admin = Host::open(rig.addr, 0);
    admin.connect_admin(SUBNQN, 1);
    admin.enable();
    assert_eq!(admin.run(get, &[], 0).0.dw0, 1000, "rounded up to KAS");
    for (ms, rounded) in [(u32::MAX, u32::MAX), (120_000, 120_000), (1001, 2000), (0, 0)] {
        assert!(admin.run(kato(ms), &[], 0).0.status().is_success());
        assert_eq!(admin.run(get, &[], 0).0.dw0, rounded);
    }
    // On an I/O queue there is no Keep Alive.
    let (_other, mut io) = rig.connect(0);
    assert_eq!(
        io.run(Sqe { opc: 0x18, nsid: 1, ..Sqe::default() }, &[], 0).0.status(),
        Status::INVALID_OPCODE.dnr()
    );
    assert!(admin.run(Sqe { opc: 0x18, ..Sqe::default() }, &[], 0).0.status().is_success());
    assert!(admin.run(kato(1), &[], 0).0.status().is_success());
    assert!(admin.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::KeepAlive), 1);
    assert!(io.write(0, &pattern(1, 512)).status().is_success());
}

/// TBKAS: I/O alone keeps an association alive.
#[test]
fn d44_traffic_keeps_alive() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 1000);
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    // More I/O than fits in two timeouts, at gaps far below one.
    for _ in 0..30 {
        assert!(io.write(0, &pattern(1, 512)).status().is_success());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1);
    assert_eq!(rig.target.rejections().count(Reason::KeepAlive), 0);
}
