//! G.72 to G.75 and G.78: registers, doorbells and queues that a guest must not use so. Whoever is beside it notices nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::Sqe;

use crate::client::{self, Client, DATA, Queue, RAM, rw};
use crate::rig::Rig;

const BOTH: [Doorbells; 2] = [Doorbells::Mapped, Doorbells::Trapped];

fn aer() -> Sqe {
    Sqe { opc: 0x0c, ..Sqe::default() }
}

pub fn works(c: &mut Client, q: &mut Queue) {
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
        // Beyond the last doorbell there is none, to the end of the region.
        for at in (0x1000 + 257 * 8..0x4000u64).step_by(4) {
            assert_eq!(c.write(0, at, &[0xff; 4]), 0);
        }
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
    c.master(true);
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

/// G.74: a tail that is where it was tells of nothing; one right behind the head tells of all there is room for.
#[test]
fn g74_tails_at_the_head() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g74-tails-{doorbells:?}"), doorbells);
        let mut c = rig.host();
        let mut q = c.create(1, 16);
        c.submit_admin(aer());
        for tail in 0..40u32 {
            for _ in 0..3 {
                c.ring(1, false, tail % 16);
            }
            works(&mut c, &mut q);
            assert!(
                c.peek(&q).is_none() && c.peek(&c.admin).is_none(),
                "a command that nobody gave, or an event"
            );
        }
        for _ in 0..5 {
            for _ in 0..14 {
                c.place(&mut q, rw(false, 0, 1, DATA, 0));
            }
            c.submit(&mut q, rw(false, 0, 1, DATA, 0));
            (0..15).for_each(|_| assert!(c.wait(&mut q).status().is_success()));
            assert!(c.peek(&q).is_none() && c.peek(&c.admin).is_none());
        }
    }
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
