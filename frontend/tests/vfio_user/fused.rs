//! E.27 on PCIe: Compare and Write from a queue in guest memory, taken back at every moment.

use std::sync::atomic::Ordering;

use frontend::Doorbells;
use nvme_proto::{Sqe, Status};

use crate::abort::{rig, until};
use crate::client::{Client, DATA, Queue, rw};
use crate::rig::Rig;

/// Submits a pair: what is at DATA is compared, and what is a page above is written.
fn submit(c: &mut Client, q: &mut Queue, lba: u64) -> [u16; 2] {
    let mut compare = Sqe { opc: 5, ..rw(false, lba, 1, DATA, 0) };
    compare.flags = compare.flags.with_fuse(1);
    let mut write = rw(true, lba, 1, DATA + 0x1000, 0);
    write.flags = write.flags.with_fuse(2);
    [c.place(q, compare), c.submit(q, write)]
}

fn delete(c: &mut Client) {
    assert!(c.admin(Sqe { cdw10: 1, ..Sqe::default() }).status().is_success());
}

#[test]
fn e27_fused_in_guest_memory() {
    let rig = Rig::new("fused", Doorbells::Mapped);
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    c.put(DATA + 0x1000, &[7; 512]);
    for (lba, want) in [(3, [Status::SUCCESS; 2]), (3, [Status::COMPARE_FAILURE.dnr(), FAILED])] {
        let cids = submit(&mut c, &mut q, lba);
        for (cid, want) in cids.into_iter().zip(want) {
            let cqe = c.wait(&mut q);
            assert_eq!((cqe.cid, cqe.status()), (cid, want));
        }
    }
    assert!(c.run(&mut q, rw(false, 3, 1, DATA + 0x2000, 0)).status().is_success());
    assert_eq!(c.get(DATA + 0x2000, 512), [7; 512]);
    // The data pointer of the second is wrong.
    let [first, second] = [(5, 1, DATA), (1, 2, RAM_END)].map(|(opc, fuse, prp)| {
        let mut sqe = Sqe { opc, ..rw(false, 3, 1, prp, 0) };
        sqe.flags = sqe.flags.with_fuse(fuse);
        sqe
    });
    let cids = [c.place(&mut q, first), c.submit(&mut q, second)];
    let mut ended = [c.wait(&mut q), c.wait(&mut q)];
    ended.sort_by_key(|cqe| cqe.cid);
    assert_eq!(ended.map(|cqe| cqe.cid), cids);
    assert_eq!(ended[0].status(), FAILED);
    assert_eq!(ended[1].status().code(), Status::DATA_TRANSFER_ERROR);
    // The first comes alone: both come with one write of the doorbell, or not at all.
    for sqe in [first, second, first] {
        assert_eq!(c.run(&mut q, sqe).status(), Status::ABORTED_MISSING_FUSED);
    }
}

#[test]
fn e27_a_pair_needs_room_for_two_completions() {
    let rig = Rig::new("fused-room", Doorbells::Trapped);
    let mut c = rig.host();
    // A completion queue that holds one, and two that share one that holds two.
    let cqs = [(1u32, 2u32, 1u32), (2, 3, 2), (3, 3, 2)];
    let mut queues = cqs.map(|(qid, entries, cq)| {
        let q = c.create(qid as u16, 16);
        if (qid, cq) != (3, 2) {
            // Again, with another size.
            for (opc, dptr, size) in
                [(0u8, 0, 0), (4, 0, 0), (5, 0x20000 + u64::from(qid) * 0x20000, entries)]
            {
                let cdw10 = if opc == 5 { (size - 1) << 16 | qid } else { qid };
                let sqe = Sqe { opc, dptr: [dptr, 0], cdw10, cdw11: qid << 16 | 3, ..Sqe::default() };
                assert!(c.admin(sqe).status().is_success());
            }
        } else {
            assert!(c.admin(Sqe { opc: 0, cdw10: qid, ..Sqe::default() }).status().is_success());
        }
        let (dptr, cdw10) = ([0x10000 + u64::from(qid) * 0x20000, 0], 15 << 16 | qid);
        let sqe = Sqe { opc: 1, dptr, cdw10, cdw11: cq << 16 | 1, ..Sqe::default() };
        assert!(c.admin(sqe).status().is_success());
        q
    });
    let first = submit(&mut c, &mut queues[0], 3);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    for cid in first {
        // Each is seen before the next has room: the second is one without a first then.
        while c.peek(&queues[0]).is_none() {
            assert!(std::time::Instant::now() < until, "{cid} is never answered");
        }
        let cqe = c.peek(&queues[0]).unwrap();
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::ABORTED_MISSING_FUSED));
        queues[0].wrap(2);
        c.ring(1, true, queues[0].head());
    }
    // Firsts that hold an entry each leave none for their seconds: all four are answered all the same.
    let ([_, second, third], mut done) = (&mut queues, 0);
    submit(&mut c, second, 5);
    submit(&mut c, third, 7);
    while done < 4 {
        assert!(std::time::Instant::now() < until, "{done} of 4 are answered");
        if c.peek(second).is_some_and(|cqe| cqe.status().is_success()) {
            done += 1;
            second.wrap(3);
            c.ring(2, true, second.head());
        }
    }
}

const FAILED: Status = Status::ABORTED_FAILED_FUSED;
const RAM_END: u64 = crate::client::RAM as u64;

#[test]
fn e27_a_pair_waits_for_writes_before_it_and_lets_go_when_it_is_taken_back() {
    let (rig, volume) = rig("fused-parked");
    let mut c = rig.host();
    let has = |n| until(|| volume.has.load(Ordering::SeqCst) == n);
    for moment in 0..4 {
        let mut q = c.create(1, 64);
        let write = c.submit(&mut q, rw(true, 3, 1, DATA, 0));
        has(1);
        let cids = submit(&mut c, &mut q, 3);
        // One that comes later, and reads, passes; one that writes waits behind the pair.
        c.submit(&mut q, rw(false, 3, 1, DATA, 0));
        has(2);
        let abort = |cid: u16| Sqe { opc: 8, cdw10: u32::from(cid) << 16 | 1, ..Sqe::default() };
        let mut ended = 0;
        if moment > 0 {
            assert_eq!(c.admin(abort(write)).dw0, 0);
            assert_eq!(c.wait(&mut q).cid, write);
            // The compare takes its place.
            has(2);
            c.submit(&mut q, rw(true, 3, 1, DATA, 0));
            ended = 1;
        }
        match moment {
            0 | 1 => delete(&mut c),
            2 => {
                assert_eq!(c.admin(abort(cids[0])).dw0, 0);
                let pair = [c.wait(&mut q), c.wait(&mut q)];
                assert_eq!(pair.map(|cqe| cqe.cid), cids);
                assert_eq!(pair.map(|cqe| cqe.status()), [Status::ABORT_REQUESTED, FAILED]);
                // The write that waited is at work.
                has(2);
                ended += 2;
                delete(&mut c);
            }
            _ => {
                c.enable();
                has(0);
                continue;
            }
        }
        let all = if moment == 0 { 4 } else { 5 };
        for _ in ended..all {
            assert_eq!(c.wait(&mut q).status(), Status::ABORTED_SQ_DELETION);
        }
        assert!(c.admin(Sqe { opc: 4, cdw10: 1, ..Sqe::default() }).status().is_success());
        has(0);
    }
    // Nothing is locked any more.
    let mut q = c.create(1, 64);
    c.submit(&mut q, rw(true, 3, 1, DATA, 0));
    has(1);
}
