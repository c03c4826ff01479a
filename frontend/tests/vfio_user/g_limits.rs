//! G.81 to G.84: shadow doorbells, full queues, interrupts and endings at their worst. Whoever is beside it notices
//! nothing.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::IoError;
use frontend::Doorbells;
use nvme_proto::register::{NSSR_KEY, offset};
use nvme_proto::{Sqe, Status};

use crate::client::{self, Client, DATA, Queue, RAM, await_event, command, event, rw, words};
use crate::parked::Parked;
use crate::rig::Rig;
use crate::stall::Stall;

const BOTH: [Doorbells; 2] = [Doorbells::Mapped, Doorbells::Trapped];
/// Errors are told of anew when their log was read.
fn error_log() -> Sqe {
    Sqe { opc: 2, cdw10: 15 << 16 | 1, dptr: [DATA, 0], ..Sqe::default() }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::yield_now();
    }
}

/// The shard has nothing to do, and does it.
fn is_idle(rig: &Rig) {
    until("the shard sleeps", || {
        let before = rig.busy();
        std::thread::sleep(Duration::from_millis(200));
        rig.busy() - before < Duration::from_millis(100)
    });
}

/// G.81; that no command is lost between an event index and a doorbell is another test's.
#[test]
fn g81_shadow_doorbells() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g81-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        let mut c = rig.connect();
        let (shadow, events) = (DATA + 0x400000, DATA + 0x401000);
        let bar = 0xfebd_0000;
        assert_eq!(c.map(0, 0, shadow, true), 0);
        assert_eq!(c.map(shadow, shadow, 0x2000, true), 0);
        assert_eq!(c.map(1 << 40, 0, 0x2000, false), 0);
        c.map_doorbells();
        c.enable();
        let config = |a, b| Sqe { opc: 0x7c, dptr: [a, b], ..Sqe::default() };
        for (a, b) in [
            (shadow, shadow),
            (shadow + 8, events),
            (shadow, events + 8),
            (shadow, 0),
            (0, events),
            (shadow, bar),
            (bar, events),
            (shadow, events + 0x1000),
            (u64::MAX - 4095, events),
            // Memory without a descriptor, since it is looked at all the time.
            (1 << 40, events),
            (shadow, (1 << 40) + 0x1000),
        ] {
            assert_eq!(c.admin(config(a, b)).status().code(), Status::INVALID_FIELD, "{a:#x} {b:#x}");
        }
        assert!(c.admin(config(shadow, events)).status().is_success());
        c.shadow = Some((shadow, events));
        let mut q = c.create(1, 16);
        assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
        // Garbage in both pages, while the queue runs: an event, and nothing is fetched that is not there.
        let mut admin = std::mem::replace(&mut c.admin, client::none());
        let aer = c.submit(&mut admin, Sqe { opc: 0x0c, ..Sqe::default() });
        c.put(shadow, &[0xff; 0x2000]);
        c.shadow = None;
        c.ring(1, false, 0);
        let cqe = c.wait(&mut admin);
        assert_eq!((cqe.cid, cqe.dw0 & 0xffff), (aer, 0x0100), "Invalid Doorbell Write Value");
        c.admin = admin;
        assert!(c.admin(error_log()).status().is_success());
        neighbour.is_well();
        // Their page goes away: the queue stands still, the admin queue does not, and a reset forgets them.
        assert_eq!(c.unmap(shadow, 0x2000), 0);
        c.ring(1, false, 5);
        is_idle(&rig);
        let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
        assert!(c.admin(identify).status().is_success());
        c.enable();
        let mut q = c.create(1, 16);
        assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
        neighbour.is_well();
    }
}

/// G.82, on the admin queue and with events; that of an I/O queue is among the slow volumes.
#[test]
fn g82_full_queues_cost_nothing_while_they_are_full() {
    for doorbells in BOTH {
        let rig = Rig::new(&format!("g82-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        let mut c = rig.host();
        let mut q = c.create(1, 64);
        let mut admin = std::mem::replace(&mut c.admin, client::none());
        for _ in 0..3 {
            c.place(&mut admin, Sqe { opc: 0x0c, ..Sqe::default() });
        }
        let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
        for _ in 0..20 {
            c.submit(&mut admin, identify);
        }
        until("they are done", || c.filled(&admin, 20));
        for _ in 0..30 {
            c.submit(&mut admin, identify);
        }
        until("it is full", || c.filled(&admin, 31));
        // An I/O queue fills beside it, and an event finds no room.
        for _ in 0..63 {
            c.submit(&mut q, rw(false, 0, 1, DATA, 0));
        }
        until("it is full", || c.filled(&q, 63));
        for _ in 0..20 {
            c.submit(&mut q, rw(false, 0, 1, DATA, 0));
        }
        c.ring(1, true, 63_000);
        is_idle(&rig);
        neighbour.is_well();
        assert!(!c.filled(&q, 64) && !c.filled(&admin, 32), "nothing is written over");
        // Both drain without another command; the event is among what comes.
        for _ in 0..20 + 63 {
            assert!(c.wait(&mut q).status().is_success());
        }
        let mut told = 0;
        for _ in 0..51 {
            let cqe = c.wait(&mut admin);
            told += usize::from(cqe.dw0 & 0xffff == 0x0100);
        }
        assert_eq!(told, 1, "the event");
        c.admin = admin;
        assert!(c.admin(identify).status().is_success());
    }
}

/// G.83
#[test]
fn g83_a_vector_table_of_any_content_and_the_pin() {
    let rig = Rig::new("g83", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let events = [event(), event()];
    assert_eq!(c.vectors(0, &[&events[0], &events[1]]), 0);
    // The table is the host's note to its own machine: it keeps what is written, and raises what has a descriptor. The
    // pending bits are not the host's.
    let pending = c.read(4, 8192, 64);
    for fill in [0xff, 0, 0xa5] {
        for at in (0..16384).step_by(4096) {
            assert_eq!(c.write(4, at, &[fill; 4096]), 0);
        }
        assert_eq!(c.read(4, 0, 8192), [fill; 8192]);
        assert_eq!(c.read(4, 8192, 64), pending);
        for i in 0..32 {
            c.write(4, 16 + i % 16, &[i as u8]);
            assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
        }
        await_event(&events[1]);
    }
    // Enabled, disabled and masked as a whole by its capability.
    for control in [0x8000u16, 0xc000, 0, 0xffff] {
        assert_eq!(c.write(7, 0x52, &control.to_le_bytes()), 0);
        assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
    }
    // Taken away while commands run: the pin tells of the rest, until all is consumed.
    for i in 0..32 {
        c.submit(&mut q, rw(false, i, 1, DATA, 0));
    }
    assert_eq!(c.ask(command::SET_IRQS, &words(&[20, 1 | 32, 2, 0, 0]), &[]).errno, 0);
    let pin = event();
    assert_eq!(c.ask(command::SET_IRQS, &words(&[20, 4 | 32, 0, 0, 1]), &[pin.as_fd()]).errno, 0);
    await_event(&pin);
    (0..32).for_each(|_| assert!(c.wait(&mut q).status().is_success()));
    let unmask = words(&[20, 1 | 16, 0, 0, 1]);
    assert_eq!(c.ask(command::SET_IRQS, &unmask, &[]).errno, 0);
    c.submit(&mut q, rw(false, 0, 1, DATA, 0));
    await_event(&pin);
    assert!(c.wait(&mut q).status().is_success());
    neighbour.is_well();
}

/// G.84
#[test]
fn g84_resets_with_sixty_four_thousand_commands_outstanding() {
    let rig = Rig::new("g84", Doorbells::Mapped);
    let volume = Arc::new(Parked::default());
    rig.add(7, volume.clone());
    let mut neighbour = rig.neighbour();
    let base = 16u64 << 20;
    for way in 0..5 {
        let mut c = rig.connect();
        assert_eq!(c.map(0, 0, RAM as u64, true), 0);
        c.map_doorbells();
        c.enable();
        let sqe = Sqe { nsid: 7, ..rw(false, 0, 1, DATA, 0) };
        let mut queues: Vec<Queue> = (1..=64u16)
            .map(|qid| {
                let at = base + u64::from(qid - 1) * 0x14000;
                c.ram.sgl(at as usize, 0x14000).unwrap().zero(0, 0x14000);
                c.create_in(Queue::at(qid, at, at + 0x10000, 1024))
            })
            .collect();
        for q in &mut queues {
            for _ in 0..1022 {
                c.place(q, sqe);
            }
            c.submit(q, sqe);
        }
        // Those at work are bounded; the others wait where they are.
        until("as many as there may be", || volume.has.load(Ordering::SeqCst) == 64 * 256);
        neighbour.is_well();
        match way {
            0 => assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0),
            1 => assert_eq!(c.write(7, 0x68, &[0x10, 0xa8]), 0),
            2 => {
                c.post(offset::CC.into(), 0);
                c.wait_csts(1, 0);
            }
            3 => {
                for q in &queues {
                    let delete = Sqe { cdw10: q.qid.into(), ..Sqe::default() };
                    assert!(c.admin(delete).status().is_success());
                }
            }
            _ => {}
        }
        if way < 4 {
            assert_eq!(volume.has.load(Ordering::SeqCst), 0);
        }
        if way < 3 {
            c.enable();
            let mut q = c.create(1, 16);
            assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
        }
        drop(c);
        until("it has gone", || !rig.handle().is_connected());
        assert_eq!(volume.has.load(Ordering::SeqCst), 0);
        neighbour.is_well();
    }
    // All of the subsystem: the neighbour's controller too, which is enabled again.
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    for _ in 0..40 {
        c.submit(&mut q, Sqe { nsid: 7, ..rw(false, 0, 1, DATA, 0) });
    }
    until("they are at work", || volume.has.load(Ordering::SeqCst) == 40);
    c.post(offset::NSSR.into(), NSSR_KEY);
    c.wait_csts(1, 0);
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);
    c.enable();
}

/// G.84: a guest dies while the backend hangs. Its commands are held to their end, nobody else is, and nobody takes its
/// place before.
#[test]
fn g84_a_guest_dies_while_the_backend_hangs() {
    let rig = Rig::new("g84-hung", Doorbells::Mapped);
    let volume = Stall::new(false);
    rig.add(7, volume.clone());
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    for i in 0..40 {
        c.submit(&mut q, Sqe { nsid: 7, ..rw(i % 2 == 0, i, 1, DATA, 0) });
    }
    until("they are at work", || volume.held() == 40);
    drop((c, q));
    until("they are taken back", || volume.revoked() == 40);
    neighbour.is_well();
    assert!(rig.handle().is_connected(), "the place is not free");
    let path = rig.handle().path().to_owned();
    let next = std::thread::spawn(move || Client::connect(&path).register(0x1c));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!next.is_finished());
    neighbour.is_well();
    volume.release(Err(IoError::Aborted));
    assert_eq!(next.join().unwrap(), 0);
    until("the next has gone", || !rig.handle().is_connected());
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
}
