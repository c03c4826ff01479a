//! G.76 and G.77: queues that are made and deleted as no guest should. Whoever is beside it notices nothing.

use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{DATA, RAM, command, rw};
use crate::g_queues::works;
use crate::rig::Rig;

#[test]
fn g76_g77_queues_that_cannot_be() {
    let rig = Rig::new("queues", Doorbells::Trapped);
    let mut c = rig.host();
    let mut neighbour = rig.neighbour();
    let mut status = |opc, base: u64, cdw10, cdw11| {
        let status = c.admin(Sqe { opc, dptr: [base, 0], cdw10, cdw11, ..Sqe::default() }).status();
        assert!(status.is_success() || status == status.code().dnr(), "{status:?} may be tried again");
        status.code()
    };
    let (cq, sq, size) = (0x100000, 0x110000, 15 << 16);
    let success = Status::SUCCESS;
    assert_eq!(status(5, cq, size, 3), Status::INVALID_QUEUE_IDENTIFIER, "QID 0");
    assert_eq!(status(5, cq, size | 1000, 3), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(status(5, cq, 1, 3), Status::INVALID_QUEUE_SIZE);
    assert_eq!(status(5, cq, 0xffff_0001, 3), Status::INVALID_QUEUE_SIZE);
    assert_eq!(status(5, cq, size | 1, 2), Status::INVALID_FIELD, "not contiguous");
    assert_eq!(status(5, cq + 4, size | 1, 3), Status::PRP_OFFSET_INVALID);
    assert_eq!(status(5, cq, 4096 << 16 | 1, 3), Status::INVALID_QUEUE_SIZE);
    assert_eq!(status(5, RAM as u64 - 4096, 4000 << 16 | 1, 3), Status::INVALID_FIELD, "beyond its end");
    assert_eq!(status(5, RAM as u64, size | 1, 3), Status::INVALID_FIELD, "outside memory");
    assert_eq!(status(5, cq, size | 1, 400 << 16 | 3), Status::INVALID_INTERRUPT_VECTOR);
    assert_eq!(status(1, sq, size | 1, 1 << 16 | 1), Status::COMPLETION_QUEUE_INVALID);
    assert_eq!(status(5, cq, size | 1, 1 << 16 | 3), success);
    assert_eq!(status(5, cq, size | 1, 1 << 16 | 3), Status::INVALID_QUEUE_IDENTIFIER, "twice");
    assert_eq!(status(1, sq, size | 1, 1), Status::INVALID_QUEUE_IDENTIFIER, "CQID 0");
    // A submission queue that is wrong in the same ways, where its completion queue is right.
    let on = 1 << 16 | 1;
    for (base, cdw10, cdw11, want) in [
        (sq, size, on, Status::INVALID_QUEUE_IDENTIFIER),
        (sq, size | 257, on, Status::INVALID_QUEUE_IDENTIFIER),
        (sq, size | 0xffff, on, Status::INVALID_QUEUE_IDENTIFIER),
        (sq, 1, on, Status::INVALID_QUEUE_SIZE),
        (sq, 4096 << 16 | 1, on, Status::INVALID_QUEUE_SIZE),
        (sq, 0xffff_0001, on, Status::INVALID_QUEUE_SIZE),
        (sq, size | 1, 1 << 16, Status::INVALID_FIELD),
        (sq + 4, size | 1, on, Status::PRP_OFFSET_INVALID),
        (RAM as u64, size | 1, on, Status::INVALID_FIELD),
        (RAM as u64 - 4096, 4000 << 16 | 1, on, Status::INVALID_FIELD),
        (sq, size | 1, 2 << 16 | 1, Status::COMPLETION_QUEUE_INVALID),
        (sq, size | 1, 257 << 16 | 1, Status::INVALID_QUEUE_IDENTIFIER),
        (sq, size | 1, 0xffff << 16 | 1, Status::INVALID_QUEUE_IDENTIFIER),
    ] {
        assert_eq!(status(1, base, cdw10, cdw11), want, "{base:#x} {cdw10:#x} {cdw11:#x}");
    }
    // Two submission queues complete in one place.
    assert_eq!(status(1, sq, size | 1, 1 << 16 | 1), success);
    assert_eq!(status(1, sq + 4096, size | 2, 1 << 16 | 1), success);
    assert_eq!(status(1, sq, size | 1, 1 << 16 | 1), Status::INVALID_QUEUE_IDENTIFIER, "twice");
    assert_eq!(status(4, 0, 1, 0), Status::INVALID_QUEUE_DELETION);
    assert_eq!(status(4, 0, 0, 0), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(status(0, 0, 0, 0), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(status(0, 0, 1, 0), success);
    assert_eq!(status(0, 0, 1, 0), Status::INVALID_QUEUE_IDENTIFIER, "twice");
    assert_eq!(status(0, 0, 2, 0), success);
    assert_eq!(status(4, 0, 1, 0), success);
    neighbour.is_well();
}

/// G.76: queues that lie on each other, and on the data. All of it is the guest's own memory, and its own loss.
#[test]
fn g76_queues_that_overlap() {
    let rig = Rig::new("g76", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let at = |opc, base: u64, cdw10, cdw11| Sqe { opc, dptr: [base, 0], cdw10, cdw11, ..Sqe::default() };
    let size = 63 << 16;
    // A completion queue on its own submission queue, on the admin queue, and two on one place.
    assert!(c.admin(at(5, 0x600000, size | 1, 3)).status().is_success());
    assert!(c.admin(at(1, 0x600000, size | 1, 1 << 16 | 1)).status().is_success());
    assert!(c.admin(at(5, 0x600000, size | 2, 3)).status().is_success());
    assert!(c.admin(at(1, 0x600000, size | 2, 2 << 16 | 1)).status().is_success());
    c.put(0x600000, rw(false, 0, 8, 0x600000, 0).as_bytes());
    c.ring(1, false, 60);
    c.ring(2, false, 63);
    // Into its own queues goes what it reads, and is taken for commands.
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        neighbour.is_well();
    }
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    c.enable();
    let mut q = c.create(1, 16);
    works(&mut c, &mut q);
}

/// G.76: a host that asks for more submission than completion queues gets both, and shares the latter.
#[test]
fn g76_more_submission_than_completion_queues() {
    let rig = Rig::new("g76-shared", Doorbells::Trapped);
    let mut c = rig.host();
    let mut admin = |opc, cdw10: u32, cdw11: u32| {
        let base = 0x600000 + u64::from(opc) * 0x10000 + u64::from(cdw10 & 0xff) * 4096;
        c.admin(Sqe { opc, dptr: [base, 0], cdw10, cdw11, ..Sqe::default() })
    };
    let asked = 1 << 16 | 3;
    let [set, get] = [(9, asked), (10, 0)].map(|(opc, value)| admin(opc, 7, value));
    assert_eq!((set.dw0, get.dw0), (asked, asked), "NSQA 4, NCQA 2");
    let mut status = |opc, cdw10, cdw11| admin(opc, cdw10, cdw11).status().code();
    let size = 7 << 16;
    for qid in 1..=2 {
        assert_eq!(status(5, size | qid, 1), Status::SUCCESS);
    }
    assert_eq!(status(5, size | 3, 1), Status::INVALID_QUEUE_IDENTIFIER, "a third completion queue");
    for (qid, cqid) in [(1, 2), (2, 2), (3, 2), (4, 1)] {
        assert_eq!(status(1, size | qid, cqid << 16 | 1), Status::SUCCESS);
    }
    assert_eq!(
        status(1, size | 5, 1 << 16 | 1),
        Status::INVALID_QUEUE_IDENTIFIER,
        "a fifth submission queue"
    );
    assert_eq!([status(0, 1, 0), status(0, 2, 0)], [Status::SUCCESS; 2]);
    assert_eq!(status(4, 2, 0), Status::INVALID_QUEUE_DELETION, "the third completes there");
    assert_eq!([status(0, 3, 0), status(0, 4, 0), status(4, 2, 0), status(4, 1, 0)], [Status::SUCCESS; 4]);
}

/// G.76, G.77: queues are made and deleted in any order while commands run, those of namespaces that are not there among
/// them.
#[test]
fn g77_queues_deleted_with_commands_in_flight() {
    let rig = Rig::new("g77", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let delete = |opc, qid: u16| Sqe { opc, cdw10: qid.into(), ..Sqe::default() };
    for round in 0..100u32 {
        let mut q = c.create(1, 64);
        for i in 0..40u64 {
            let mut sqe = rw(i % 2 == 0, i * 8, 8, DATA + i * 4096, 0);
            if round % 2 == 0 {
                sqe.nsid = [0, 7, u32::MAX - 1][i as usize % 3];
            }
            c.place(&mut q, sqe);
        }
        c.submit(&mut q, rw(false, 0, 1, DATA, 0));
        // Before its submission queue a completion queue does not go; a queue goes once; the admin queue never.
        assert_eq!(c.admin(delete(4, 1)).status().code(), Status::INVALID_QUEUE_DELETION);
        for none in [0, 2, 256, 257, 0xffff] {
            assert_eq!(c.admin(delete(0, none)).status().code(), Status::INVALID_QUEUE_IDENTIFIER);
            assert_eq!(c.admin(delete(4, none)).status().code(), Status::INVALID_QUEUE_IDENTIFIER);
        }
        assert!(c.admin(delete(0, 1)).status().is_success());
        assert_eq!(c.admin(delete(0, 1)).status().code(), Status::INVALID_QUEUE_IDENTIFIER);
        assert!(c.admin(delete(4, 1)).status().is_success());
        assert_eq!(c.admin(delete(4, 1)).status().code(), Status::INVALID_QUEUE_IDENTIFIER);
    }
    neighbour.is_well();
}
