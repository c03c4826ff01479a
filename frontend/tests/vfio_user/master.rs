//! Bus Master Enable: a function that is no bus master neither reads its guest's memory nor writes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, RAM, await_event, event, rw};
use crate::parked::Parked;
use crate::rig::Rig;

/// Everything that the server does with what it has been sent is done: it has answered another message, and had a turn
/// for its doorbells.
fn settle(c: &mut Client) {
    for _ in 0..20 {
        c.register(0x1c);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn commands_and_interrupts_wait_for_it() {
    for doorbells in [Doorbells::Mapped, Doorbells::Trapped] {
        let rig = Rig::new("master", doorbells);
        let mut c = rig.host();
        let (admin, first) = (event(), event());
        assert_eq!(c.vectors(0, &[&admin, &first]), 0);
        let mut q = c.create(1, 64);
        c.put(DATA, &[7; 4096]);
        assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
        await_event(&first);
        for power in [false, true] {
            let before = c.get(0x10000, 0x20000);
            // As Linux does before another kernel has the memory; and D3hot.
            let set = |c: &mut Client, on: bool| match power {
                false => c.master(on),
                true => assert_eq!(c.write(7, 0x44, &[if on { 0 } else { 3 }]), 0),
            };
            set(&mut c, false);
            c.submit(&mut q, rw(false, 0, 8, DATA + 0x1000, 0));
            settle(&mut c);
            assert!(c.peek(&q).is_none(), "{doorbells:?}: a command was fetched");
            assert_eq!(c.get(DATA + 0x1000, 4096), [0; 4096]);
            assert!(first.read().is_err(), "and its host was interrupted");
            assert_eq!(before[..0x1000], c.get(0x10000, 0x1000));
            set(&mut c, true);
            assert!(c.wait(&mut q).status().is_success());
            await_event(&first);
            assert_eq!(c.get(DATA + 0x1000, 4096), [7; 4096]);
            c.put(DATA + 0x1000, &[0; 4096]);
        }
        // A vector that is raised meanwhile is pending, and comes later.
        c.master(false);
        assert_eq!(c.ask(crate::command::SET_IRQS, &crate::words(&[20, 1 | 32, 2, 1, 1]), &[]).errno, 0);
        settle(&mut c);
        assert!(first.read().is_err());
        assert_eq!(c.read(4, 0x2000, 1), [2]);
        c.master(true);
        await_event(&first);
        assert_eq!(c.read(4, 0x2000, 1), [0]);
        // A reset of the function ends it; a controller that is enabled without it waits.
        assert_eq!(c.ask(crate::command::RESET, &[], &[]).errno, 0);
        assert_eq!(c.read(7, 4, 2), [0, 0]);
        c.enable();
        c.post(0x14, 0);
        c.wait_csts(1, 0);
        c.master(false);
        c.admin = crate::client::Queue::at(0, 0x10000, 0x20000, 32);
        c.ram.sgl(0x10000, 0x20000).unwrap().zero(0, 0x20000);
        c.post(0x14, 4 << 20 | 6 << 16 | 1);
        c.wait_csts(1, 1);
        c.submit_admin(Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() });
        settle(&mut c);
        assert_eq!(c.reap_admin(), None);
        c.master(true);
        let until = Instant::now() + Duration::from_secs(10);
        while c.reap_admin().is_none() {
            assert!(Instant::now() < until, "it goes on");
        }
    }
}

/// What is under way when the function ceases to be a bus master ends without its memory, and its host hears of that when
/// it is one again.
#[test]
fn what_is_under_way_lets_go() {
    let volume = Arc::new(Parked::default());
    let rig = Rig::over("master-parked", Doorbells::Trapped, volume.clone());
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    for round in 0..3 {
        for i in 0..8 {
            c.submit(&mut q, rw(i % 2 == 0, i * 8, 8, DATA + i * 4096, 0));
        }
        c.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() });
        let until = Instant::now() + Duration::from_secs(10);
        while volume.has.load(Ordering::SeqCst) < 8 {
            assert!(Instant::now() < until, "no I/O");
        }
        c.master(false);
        assert_eq!(volume.has.load(Ordering::SeqCst), 0, "the answer says that no I/O has the memory");
        settle(&mut c);
        assert!(c.peek(&q).is_none(), "no completion can be written");
        if round == 2 {
            // They go with a reset.
            c.post(0x14, 0);
            c.wait_csts(1, 0);
            c.enable();
            let new = c.create(1, 64);
            assert!(c.peek(&new).is_none());
            break;
        }
        c.master(true);
        for _ in 0..8 {
            let status = c.wait(&mut q).status();
            assert!(status.code() == Status::ABORT_REQUESTED && !status.is_dnr(), "{status:?}");
        }
    }
    // Obstinate I/O: the controller fails, and the answer comes.
    volume.obstinate.store(true, Ordering::SeqCst);
    let mut q = c.create(2, 64);
    c.submit(&mut q, rw(false, 0, 8, DATA, 0));
    let until = Instant::now() + Duration::from_secs(10);
    while volume.has.load(Ordering::SeqCst) < 1 {
        assert!(Instant::now() < until, "no I/O");
    }
    c.master(false);
    assert_eq!(c.register(0x1c) & 2, 2, "CFS");
    volume.obstinate.store(false, Ordering::SeqCst);
    // Memory that comes and goes meanwhile.
    assert_eq!(c.unmap(0, RAM as u64), 0);
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    c.enable();
    let mut q = c.create(1, 64);
    let cid = u32::from(c.submit(&mut q, rw(false, 0, 8, DATA, 0)));
    assert!(c.admin(Sqe { opc: 8, cdw10: cid << 16 | 1, ..Sqe::default() }).status().is_success());
    assert_eq!(c.wait(&mut q).status().code(), Status::ABORT_REQUESTED);
}
