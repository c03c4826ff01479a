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
