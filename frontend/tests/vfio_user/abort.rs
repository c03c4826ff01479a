//! Abort (E.55): what it answers, and when.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::{Cqe, Sqe, Status};

use crate::client::{self, Client, DATA, rw};
use crate::parked::Parked;
use crate::rig::Rig;

pub fn rig(name: &str) -> (Rig, Arc<Parked>) {
    let volume = Arc::new(Parked::default());
    (Rig::over(name, Doorbells::Trapped, volume.clone()), volume)
}

pub fn until(mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < limit, "it does not happen");
        std::thread::yield_now();
    }
}

fn abort(sqid: u16, cid: u16) -> Sqe {
    Sqe { opc: 8, cdw10: u32::from(cid) << 16 | u32::from(sqid), ..Sqe::default() }
}

/// The next completion of the admin queue.
fn wait_admin(c: &mut Client) -> Cqe {
    let mut admin = std::mem::replace(&mut c.admin, client::none());
    let cqe = c.wait(&mut admin);
    c.admin = admin;
    cqe
}

#[test]
fn e55_an_aborted_command_completes_before_its_abort() {
    let (rig, volume) = rig("abort");
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let cids: Vec<u16> = (0..10).map(|i| c.submit(&mut q, rw(false, i * 8, 8, DATA, 0))).collect();
    until(|| volume.has.load(Ordering::SeqCst) == 10);
    for cid in [cids[3], cids[9], cids[0]] {
        let answer = c.admin(abort(1, cid));
        assert_eq!((answer.status(), answer.dw0), (Status::SUCCESS, 0));
        let aborted = c.poll(&mut q).expect("it is there when the Abort completes");
        assert_eq!((aborted.cid, aborted.status()), (cid, Status::ABORT_REQUESTED));
    }
    assert_eq!(volume.has.load(Ordering::SeqCst), 7, "the others stay");
    // It has ended, it never was, its queue never was, or it is the Abort itself.
    let own = c.submit_admin(Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() }) + 1;
    assert!(wait_admin(&mut c).status().is_success());
    for (sqid, cid) in [(1, cids[3]), (1, 0xffff), (2, cids[1]), (0xffff, cids[1]), (0, own), (0, 0xffff)] {
        let answer = c.admin(abort(sqid, cid));
        assert_eq!((answer.status(), answer.dw0), (Status::SUCCESS, 1), "{sqid} {cid}");
    }
}

#[test]
fn e55_an_event_request_is_aborted() {
    let (rig, _) = rig("abort-event");
    let mut c = rig.host();
    let requests: Vec<u16> = (0..4).map(|_| c.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() })).collect();
    let abort = c.submit_admin(abort(0, requests[2]));
    let aborted = wait_admin(&mut c);
    assert_eq!((aborted.cid, aborted.status()), (requests[2], Status::ABORT_REQUESTED));
    let answer = wait_admin(&mut c);
    assert_eq!((answer.cid, answer.status(), answer.dw0), (abort, Status::SUCCESS, 0));
    // There is room for one more, and not for two.
    c.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() });
    let fifth = c.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() });
    let refused = wait_admin(&mut c);
    let limit = Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.dnr();
    assert_eq!((refused.cid, refused.status()), (fifth, limit));
}

#[test]
fn e55_more_aborts_than_acl_and_commands_that_do_not_let_go() {
    let (rig, volume) = rig("abort-limit");
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    volume.obstinate.store(true, Ordering::SeqCst);
    let cids: Vec<u16> = (0..6).map(|i| c.submit(&mut q, rw(false, i * 8, 8, DATA, 0))).collect();
    until(|| volume.has.load(Ordering::SeqCst) == 6);
    for _ in 0..2 {
        let aborts: Vec<u16> = cids.iter().map(|cid| c.submit_admin(abort(1, *cid))).collect();
        let answers: Vec<Cqe> = aborts.iter().map(|_| wait_admin(&mut c)).collect();
        for (cqe, cid) in answers.iter().zip(&aborts[4..]) {
            assert_eq!((cqe.cid, cqe.status()), (*cid, Status::ABORT_COMMAND_LIMIT_EXCEEDED.dnr()));
        }
        // The four that were accepted give up in the end.
        assert!(answers[2..].iter().all(|cqe| cqe.status().is_success() && cqe.dw0 == 1));
    }
    volume.obstinate.store(false, Ordering::SeqCst);
    // A command that an Abort has given up on may still be aborted by another.
    assert_eq!(c.admin(abort(1, cids[0])).dw0, 0);
    assert_eq!(c.wait(&mut q).status(), Status::ABORT_REQUESTED);
}

#[test]
fn e55_a_flood_of_aborts() {
    let (rig, volume) = rig("abort-flood");
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let read = |c: &mut Client, q: &mut client::Queue| c.submit(q, rw(false, 0, 8, DATA, 0));
    for round in 0..500 {
        let cid = read(&mut c, &mut q);
        let answer = c.admin(abort(1, cid));
        assert_eq!(answer.status(), Status::SUCCESS);
        if answer.dw0 == 1 {
            // It had not been fetched yet.
            until(|| volume.has.load(Ordering::SeqCst) == 1);
            assert_eq!(c.admin(abort(1, cid)).dw0, 0, "round {round}");
        }
        assert_eq!(c.wait(&mut q).cid, cid);
        assert_eq!(c.admin(abort(1, cid)).dw0, 1);
    }
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);
}
