//! Hosts, resets and removals while the volume below does not answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::stall::Stall;
use common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, pattern, rw};
use engine::IoError;
use frontend::Namespace;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::register::offset;
use nvme_proto::{Sqe, Status};

const STALLED: u32 = 7;

/// A rig whose NSID 7 keeps its I/O.
fn rig(obedient: bool) -> (Rig, Arc<Stall>) {
    let rig = Rig::new();
    let volume = Stall::new(obedient);
    let uuid = [STALLED as u8; 16];
    let namespace = Namespace { nsid: STALLED, uuid, nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.subsystem.add_namespace(namespace).unwrap();
    (rig, volume)
}

/// Sends writes of 512 bytes to the stalled namespace, and waits until the volume has them.
fn send_writes(io: &mut Host, volume: &Stall, cids: std::ops::Range<u16>) {
    let before = volume.held();
    let count = cids.len();
    for cid in cids {
        let mut sqe = Sqe { cid, nsid: STALLED, ..rw(1, u64::from(cid), 512) };
        sqe.set_sgl(SglDescriptor::in_capsule(512));
        let bytes = io.capsule(sqe, &pattern(1, 512));
        io.send(&bytes);
    }
    until(|| volume.held() == before + count);
}

fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it never came");
}

#[test]
fn a_lost_hosts_writes_end_before_it_is_admitted_again() {
    // Of all its connections, or of those with writes alone: the admin queue's may be heard of later.
    for whole in [true, false] {
        let (rig, volume) = rig(false);
        let (admin, mut io) = rig.connect(0);
        send_writes(&mut io, &volume, 1..5);
        drop(io);
        let admin = Some(admin).filter(|_| !whole);
        // It is back at once; its Connect waits as long as its old writes may still land.
        let (tx, rx) = channel();
        let addr = rig.addr;
        let back = std::thread::spawn(move || {
            let mut admin = Host::open(addr, 0);
            admin.connect_admin(SUBNQN, 0);
            tx.send(()).unwrap();
        });
        until(|| volume.revoked() == 4);
        let early = rx.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "admitted while old writes are in flight");
        assert_eq!(volume.held(), 4);
        volume.release(Ok(()));
        rx.recv_timeout(Duration::from_secs(20)).expect("admitted");
        back.join().unwrap();
        drop(admin);
    }
}

/// A host that takes SQHD for what it says never sends more than there is room for.
#[test]
fn sqhd_gives_leave_for_no_more_commands_than_there_are_slots() {
    let (rig, volume) = rig(true);
    let (_admin, mut io) = {
        let mut admin = Host::open(rig.addr, 0);
        let cntlid = admin.connect_admin(SUBNQN, 0);
        admin.enable();
        let mut io = Host::open(rig.addr, 0);
        let connect = Connect { recfmt: 0, qid: 1, sqsize_z: 15, cattr: Cattr::new(), kato: 0 };
        let cqe = io.connect(connect, &connect_data(SUBNQN, HOSTNQN, cntlid));
        assert!(cqe.status().is_success());
        assert_eq!(cqe.sqhd, 1, "the Connect was the first entry");
        (admin, io)
    };
    let (mut head, mut tail, mut cid) = (1u16, 1u16, 0);
    for round in 0..40 {
        // As many as SQHD leaves room for.
        let room = (head + 15 - tail) % 16;
        send_writes(&mut io, &volume, cid..cid + room);
        (tail, cid) = ((tail + room) % 16, cid + room);
        volume.release(Ok(()));
        let ends = if round % 2 == 0 { room } else { room.min(15) };
        for _ in 0..ends {
            let (cqe, _) = io.complete(&[]);
            assert!(cqe.status().is_success());
            head = cqe.sqhd;
        }
        assert_eq!(head, tail, "all that was sent is consumed");
    }
    // Some that do not end, and one that does: there is room for one more, and not for fifteen.
    send_writes(&mut io, &volume, cid..cid + 14);
    let (cqe, _) = io.run(rw(2, 0, 512), &[], 512);
    assert!(cqe.status().is_success());
    assert_eq!((cqe.sqhd + 16 - head) % 16, 1);
    volume.release(Ok(()));
}

#[test]
fn ready_falls_when_the_last_command_has_ended() {
    let (rig, volume) = rig(false);
    let (mut admin, mut io) = rig.connect(0);
    send_writes(&mut io, &volume, 1..9);
    admin.property_set(offset::CC, 0x46_0000);
    until(|| volume.revoked() == 8);
    assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1, "old writes may still land");
    volume.release(Ok(()));
    admin.wait_csts(1, 0);
    admin.enable();
}

#[test]
fn abort_takes_one_command_back() {
    let (rig, volume) = rig(true);
    let (mut admin, mut io) = rig.connect(0);
    send_writes(&mut io, &volume, 1..4);
    let abort = |sqid: u32, cid: u32| Sqe { opc: 8, cdw10: sqid | cid << 16, ..Sqe::default() };
    // E.55: queues and commands that are not there.
    for (sqid, cid) in [(0, 0), (0, 999), (1, 999), (2, 1), (65535, 65535)] {
        let (cqe, _) = admin.run(abort(sqid, cid), &[], 0);
        assert!(cqe.status().is_success() && cqe.dw0 & 1 == 1, "not aborted");
    }
    assert!(admin.run(abort(1, 2), &[], 0).0.status().is_success());
    let (cqe, _) = io.complete(&[]);
    assert_eq!((cqe.cid, cqe.status()), (2, Status::ABORT_REQUESTED));
    volume.release(Err(IoError::WriteFault));
    for cid in [1, 3] {
        let (cqe, _) = io.complete(&[]);
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::WRITE_FAULT));
    }
}

#[test]
fn a_namespace_goes_when_its_commands_have_ended() {
    let (rig, volume) = rig(false);
    let (_admin, mut io) = rig.connect(0);
    send_writes(&mut io, &volume, 1..4);
    let drain = rig.subsystem.remove_namespace(STALLED).unwrap();
    until(|| volume.revoked() == 3);
    assert!(!drain.wait(Duration::ZERO));
    assert!(io.write(0, &pattern(1, 512)).status().is_success(), "others go on");
    volume.release(Ok(()));
    for _ in 1..4 {
        assert_eq!(io.complete(&[]).0.status(), Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
    }
    assert!(drain.wait(Duration::from_secs(20)));
    // Its volume's channels are closed with it.
    until(|| Arc::strong_count(&volume) <= 3);
}

#[test]
fn the_shutdown_waits_for_the_flush() {
    let (rig, volume) = rig(false);
    let (mut admin, _io) = rig.connect(0);
    admin.property_set(offset::CC, 0x46_4001);
    until(|| volume.held() == 1);
    assert_eq!(admin.property_get(offset::CSTS, 0) >> 2 & 3, 1, "shutdown is occurring");
    volume.release(Ok(()));
    admin.wait_csts(0xc, 0x8);
}

#[test]
fn a_subsystem_shown_no_more_loses_its_hosts() {
    let rig = Rig::new();
    let other = common::subsystem(rig.shards.handles(), "nqn.2024-01.test:other");
    rig.target.listen(rig.addr, &other).unwrap();
    let (mut admin, mut io) = rig.connect(0);
    let mut stays = Host::open(rig.addr, 0);
    stays.connect_admin("nqn.2024-01.test:other", 0);
    assert!(rig.target.unlisten(rig.addr, rig.subsystem.nqn(), None));
    assert!(admin.is_closed() && io.is_closed());
    stays.enable();
    assert!(rig.target.unlisten(rig.addr, other.nqn(), None));
    assert!(stays.is_closed());
}
