//! G.72 to G.78: registers, doorbells and queues that a guest must not use so. Whoever is beside it notices nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{self, Client, DATA, Queue, RAM, command, rw};
use crate::rig::Rig;

const BOTH: [Doorbells; 2] = [Doorbells::Mapped, Doorbells::Trapped];

fn aer() -> Sqe {
    Sqe { opc: 0x0c, ..Sqe::default() }
}

fn works(c: &mut Client, q: &mut Queue) {
    assert!(c.run(q, rw(false, 0, 1, DATA, 0)).status().is_success());
}

/// G.72
#[test]
fn g72_registers_in_every_width_from_every_place() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g72-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        let mut c = rig.host();
        let mut q = c.create(1, 16);
        // Read: each byte is the same in whichever width; CAP and VS are straddled; beyond CRTO there is nothing.
        let whole = c.read(0, 0, 0x100);
        assert_ne!(whole[0x68..0x6c], [0; 4], "CRTO");
        assert!(whole[0x6c..].iter().all(|b| *b == 0));
        assert!(whole[0x38..0x68].iter().all(|b| *b == 0), "no memory buffers, no boot partition, no NSSD");
        for at in 0..0xf8usize {
            for width in [1, 2, 3, 4, 8] {
                assert_eq!(c.read(0, at as u64, width as u32), whole[at..at + width], "{at:#x} {width}");
            }
        }
        for at in (0x1000..0x1100).chain(0x1ff0..0x2010).chain(0x3ff0..0x4000) {
            for width in [1, 2, 4, 8] {
                if at + width <= 0x4000 {
                    assert_eq!(c.read(0, at, width as u32), vec![0; width as usize], "doorbells read zero");
                }
            }
        }
        assert_eq!(c.read(0, 0xffc, 8), [0; 8], "from the registers into the doorbells");
        // Written in widths that no register has, nothing happens; nor to what is read only or not there.
        for at in (0..0x100u64).filter(|at| !(0x0c..0x40).contains(at) || at % 4 != 0) {
            for width in [1, 2, 3, 4, 8] {
                let aligned = at % 4 == 0 && (width == 4 || width == 8);
                if !(aligned && (0x0c..0x40).contains(&at)) {
                    c.write(0, at, &vec![0xa5; width]);
                }
            }
        }
        for width in [1, 2, 3, 5, 8, 64] {
            for at in 0x0cu64..0x38 {
                if !(width == 8 && at % 4 == 0) {
                    c.write(0, at, &vec![0; width]);
                }
            }
        }
        for width in [1, 2, 3, 8, 16] {
            for at in 0x1000u64..0x1010 {
                c.write(0, at, &vec![0xff; width]);
            }
        }
        c.write(0, 0xffe, &[0xff; 4]);
        assert_eq!(c.read(0, 0, 0x100), whole);
        works(&mut c, &mut q);
        neighbour.is_well();
    }
}

/// G.73
#[test]
fn g73_admin_queues_in_any_order_and_of_any_size() {
    let rig = Rig::new("g73", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
    // Halves of ASQ and ACQ in each order, and both at once; their low bits are not kept.
    for order in 0..3 {
        c.post(0x14, 0);
        c.wait_csts(1, 0);
        c.ram.sgl(0x10000, 0x20000).unwrap().zero(0, 0x20000);
        c.post(0x24, 31 << 16 | 31);
        match order {
            0 => [(0x2c, 0), (0x28, 0x10fff), (0x34, 0), (0x30, 0x20abc)]
                .iter()
                .for_each(|(at, v)| c.post(*at, *v)),
            1 => [(0x30, 0x20000), (0x28, 0x10000), (0x34, 0), (0x2c, 0)]
                .iter()
                .for_each(|(at, v)| c.post(*at, *v)),
            _ => {
                c.write(0, 0x28, &0x10000u64.to_le_bytes());
                c.write(0, 0x30, &0x20fffu64.to_le_bytes());
            }
        }
        assert_eq!(c.read(0, 0x28, 16), [0x10000u64.to_le_bytes(), 0x20000u64.to_le_bytes()].concat());
        c.post(0x14, 4 << 20 | 6 << 16 | 1);
        c.wait_csts(1, 1);
        c.admin = Queue::at(0, 0x10000, 0x20000, 32);
        assert!(c.admin(identify).status().is_success());
    }
    // Changed while it is enabled: what it has begun with it goes on with.
    c.post(0x24, 1 << 16 | 1);
    c.write(0, 0x28, &(1u64 << 40).to_le_bytes());
    c.write(0, 0x30, &0u64.to_le_bytes());
    for _ in 0..40 {
        assert!(c.admin(identify).status().is_success());
    }
    // AQA of the least and the most; what does not lie in memory fails, and a reset helps.
    for (aqa, asq, acq, good) in [
        (1 << 16 | 1, 0x10000, 0x20000, true),
        (0x0fff_0fff, 0x400000, 0x500000, true),
        (0x0fff_0fff, RAM as u64 - 0x40000, 0x500000, true),
        (0x0fff_0fff, RAM as u64 - 0x3f000, 0x500000, false),
        (0x0fff_0fff, 0x400000, RAM as u64 - 0xf000, false),
        (1 << 16 | 1, RAM as u64, 0x20000, false),
        (1 << 16 | 1, 0x10000, 1 << 63, false),
        (1 << 16 | 1, u64::MAX - 4095, 0x20000, false),
        (0, 0x10000, 0x20000, false),
        (0xf000_f000, 0x10000, 0x20000, false),
    ] {
        c.post(0x14, 0);
        c.wait_csts(3, 0);
        c.post(0x24, aqa);
        c.write(0, 0x28, &asq.to_le_bytes());
        c.write(0, 0x30, &acq.to_le_bytes());
        c.post(0x14, 4 << 20 | 6 << 16 | 1);
        if good {
            c.wait_csts(3, 1)
        } else {
            c.wait_csts(2, 2)
        }
        if good {
            c.ram.sgl(acq as usize, 32).unwrap().zero(0, 32);
            c.admin = Queue::at(0, asq, acq, (aqa & 0xfff) + 1);
            assert!(c.admin(identify).status().is_success());
        }
        neighbour.is_well();
    }
}

/// G.74
#[test]
fn g74_every_doorbell_that_cannot_be() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g74-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        let mut c = rig.host();
        let mut q = c.create(1, 16);
        let trapped = doorbells == Doorbells::Trapped;
        // The queue, tail or head, the value; what the event says.
        let value = 0x0100;
        let register = 0x0000;
        let mut bells = vec![
            (1, false, 16, value),
            (1, false, 17, value),
            (1, false, 0xffff, value),
            (1, false, 0x1_0000, value),
            (1, false, u32::MAX, value),
            (1, true, 16, value),
            (1, true, u32::MAX, value),
        ];
        if trapped {
            // A store into mapped doorbells of a queue that is not there tells nobody.
            let none =
                [2, 64, 256, 257, 300, 511].map(|qid| [(qid, false, 1, register), (qid, true, 1, register)]);
            bells.extend(none.concat());
        }
        for (qid, completion, to, said) in bells {
            let mut admin = std::mem::replace(&mut c.admin, client::none());
            let cid = c.submit(&mut admin, aer());
            c.ring(qid, completion, to);
            if completion {
                // A head is looked at when it matters: the queue is full, and another command is there.
                for _ in 0..15 {
                    c.submit(&mut q, rw(false, 0, 1, DATA, 0));
                }
                let until = Instant::now() + Duration::from_secs(10);
                while !c.filled(&q, 14) {
                    assert!(Instant::now() < until, "no completions");
                }
                c.submit(&mut q, rw(false, 0, 1, DATA, 0));
            }
            let cqe = c.wait(&mut admin);
            assert_eq!((cqe.cid, cqe.dw0 & 0xffff), (cid, said), "{qid} {completion} {to:#x}");
            c.admin = admin;
            // The event is one of errors, which stays masked until its log is read.
            let log = Sqe { opc: 2, cdw10: 15 << 16 | 1, dptr: [DATA, 0], ..Sqe::default() };
            assert!(c.admin(log).status().is_success());
            // Right again: nothing of it is left.
            let delete = |opc| Sqe { opc, cdw10: 1, ..Sqe::default() };
            assert!(c.admin(delete(0)).status().is_success() && c.admin(delete(4)).status().is_success());
            q = c.create(1, 16);
            works(&mut c, &mut q);
            neighbour.is_well();
        }
    }
}

/// G.74: the head moves backwards, or past the tail.
#[test]
fn g74_heads_that_run_away() {
    let rig = Rig::new("g74-heads", Doorbells::Trapped);
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    (0..5).for_each(|_| works(&mut c, &mut q));
    for wrong in [4, 6, 15, 0] {
        let mut admin = std::mem::replace(&mut c.admin, client::none());
        let cid = c.submit(&mut admin, aer());
        c.ring(1, true, wrong);
        let cqe = c.wait(&mut admin);
        assert_eq!((cqe.cid, cqe.dw0 & 0xffff), (cid, 0x0100), "{wrong}");
        c.admin = admin;
        let log = Sqe { opc: 2, cdw10: 15 << 16 | 1, dptr: [DATA, 0], ..Sqe::default() };
        assert!(c.admin(log).status().is_success());
        c.ring(1, true, 5);
    }
    (0..40).for_each(|_| works(&mut c, &mut q));
}

/// G.75
#[test]
fn g75_doorbells_while_the_controller_is_disabled() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g75-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        let mut c = rig.connect();
        assert_eq!(c.map(0, 0, RAM as u64, true), 0);
        c.map_doorbells();
        let storm = |c: &mut Client| {
            for qid in [0, 1, 2, 511] {
                for value in [0, 1, 31, 0xffff, u32::MAX] {
                    c.ring(qid, false, value);
                    c.ring(qid, true, value);
                }
            }
        };
        storm(&mut c);
        for round in 0..10 {
            c.enable();
            let mut q = c.create(1, 16);
            for i in 0..10 {
                c.submit(&mut q, rw(i % 2 == 0, i, 8, DATA, 0));
            }
            // From 1 to 0 and back while it rings.
            c.post(0x14, 0);
            storm(&mut c);
            if round % 2 == 0 {
                c.wait_csts(1, 0);
                storm(&mut c);
            }
            assert_eq!(c.register(0x1c) & 2, 0);
        }
        c.enable();
        let mut q = c.create(1, 16);
        works(&mut c, &mut q);
        neighbour.is_well();
    }
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

/// G.78: what the guest does to a command after it has rung changes nothing once it was fetched, and never more than its
/// own.
#[test]
fn g78_commands_and_lists_that_change_while_they_are_read() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g78-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        // A page above memory that is nobody's, and one below the data that no command may touch.
        let mut c = rig.host();
        let mut q = c.create(1, 64);
        let list = 0x700000u64;
        let segment = 0x710000u64;
        let good: Vec<u64> = (0..32).map(|i| DATA + i * 4096).collect();
        c.put(list, &crate::client::longs(&good));
        let stop = AtomicBool::new(false);
        let ram = c.ram.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Entries of the list, of the segment, and of the queue itself, back and forth.
                let mut x = 78u64;
                let mut any = || {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    x
                };
                while !stop.load(Ordering::Relaxed) {
                    let bad = match any() % 4 {
                        0 => DATA + any() % 32 * 4096,
                        1 => RAM as u64 + any() % 64 * 4096,
                        2 => any(),
                        _ => list,
                    };
                    let at = list + any() % 64 * 8;
                    ram.sgl(at as usize, 8).unwrap().copy_in(0, &bad.to_le_bytes());
                    let at = segment + any() % 64 * 8;
                    let word = if any() % 2 == 0 { bad } else { ((any() % 4) << 60) | (any() % 8192) };
                    ram.sgl(at as usize, 8).unwrap().copy_in(0, &word.to_le_bytes());
                    let at = 0x30000 + any() % 64 * 64 + 8 + any() % 14 * 4;
                    ram.sgl(at as usize, 4).unwrap().copy_in(0, &(any() as u32).to_le_bytes());
                }
            });
            // Each command is answered once, under the name that it was rung with: the first words of an entry stay.
            for round in 0..1000u64 {
                let mut sqe = rw(round % 2 == 0, round % 1000 * 8, 64, DATA, list);
                if round % 3 == 0 {
                    use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
                    sqe.set_sgl(SglDescriptor::new(SglType::LastSegment, SglSubtype::Address, segment, 512));
                }
                let cid = c.submit(&mut q, sqe);
                assert_eq!(c.wait(&mut q).cid, cid);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(c.register(0x1c) & 3, 1);
        works(&mut c, &mut q);
        neighbour.is_well();
    }
}
