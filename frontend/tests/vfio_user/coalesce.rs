//! Interrupt Coalescing and Interrupt Vector Configuration (E.54): interrupts are held back, and come all the same.

use std::os::fd::AsFd;

use frontend::Doorbells;
use nix::sys::eventfd::EventFd;
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, Queue, await_event, command, event, rw, words};
use crate::rig::Rig;

const COALESCING: u32 = 8;
const VECTOR: u32 = 9;
/// CD.
const PROMPT: u32 = 1 << 16;

fn set(c: &mut Client, fid: u32, value: u32) -> Status {
    c.admin(Sqe { opc: 9, cdw10: fid, cdw11: value, ..Sqe::default() }).status()
}

fn get(c: &mut Client, fid: u32, cdw11: u32) -> u32 {
    let cqe = c.admin(Sqe { opc: 0xa, cdw10: fid, cdw11, ..Sqe::default() });
    assert!(cqe.status().is_success());
    cqe.dw0
}

/// Interrupts that a hundred commands raise, one after the other.
fn interrupts(c: &mut Client, q: &mut Queue, event: &EventFd) -> u64 {
    let mut raised = 0;
    while event.read().is_ok() {}
    for i in 0..100 {
        assert!(c.run(q, rw(i % 2 == 0, i, 1, DATA, 0)).status().is_success());
        raised += event.read().unwrap_or(0);
    }
    raised
}

#[test]
fn e54_interrupts_are_coalesced() {
    let rig = Rig::new("coalesce", Doorbells::Mapped);
    let mut c = rig.host();
    let events = [event(), event(), event()];
    assert_eq!(c.vectors(0, &[&events[0], &events[1], &events[2]]), 0);
    let mut q = c.create(1, 64);
    assert_eq!(get(&mut c, COALESCING, 0), 0);
    assert!(interrupts(&mut c, &mut q, &events[1]) > 50, "one for each");
    // 25.5 ms, and more entries than come in that time.
    assert_eq!(set(&mut c, COALESCING, 0xffff), Status::SUCCESS);
    assert_eq!(get(&mut c, COALESCING, 0), 0xffff);
    assert!(interrupts(&mut c, &mut q, &events[1]) < 50, "few");
    c.submit(&mut q, rw(false, 0, 1, DATA, 0));
    await_event(&events[1]);
    assert!(c.wait(&mut q).status().is_success());
    // Every tenth entry.
    assert_eq!(set(&mut c, COALESCING, 0xff09), Status::SUCCESS);
    let raised = interrupts(&mut c, &mut q, &events[1]);
    assert!((5..60).contains(&raised), "{raised}");
    // Admin commands are never held back, nor vectors that are not to be.
    while events[0].read().is_ok() {}
    assert!(c.admin(Sqe { opc: 0xa, cdw10: 1, ..Sqe::default() }).status().is_success());
    await_event(&events[0]);
    assert_eq!((get(&mut c, VECTOR, 0), get(&mut c, VECTOR, 1)), (PROMPT, 1));
    assert_eq!(set(&mut c, COALESCING, 0xffff), Status::SUCCESS);
    assert_eq!(set(&mut c, VECTOR, PROMPT | 1), Status::SUCCESS);
    assert_eq!(get(&mut c, VECTOR, 1), PROMPT | 1);
    assert!(interrupts(&mut c, &mut q, &events[1]) > 50, "one for each");
    assert_eq!(set(&mut c, VECTOR, 1), Status::SUCCESS);
    assert!(interrupts(&mut c, &mut q, &events[1]) < 50, "few");
    for vector in [0xffff, 0x1000] {
        assert_eq!(set(&mut c, VECTOR, vector), Status::INVALID_FIELD.dnr());
        let asked = Sqe { opc: 0xa, cdw10: VECTOR, cdw11: vector, ..Sqe::default() };
        assert_eq!(c.admin(asked).status(), Status::INVALID_FIELD.dnr());
    }
    // A threshold without a time, and a time without a threshold, hold nothing back; nor does anything after a reset.
    for value in [0x00ff, 0xff00] {
        assert_eq!(set(&mut c, COALESCING, value), Status::SUCCESS);
        assert!(interrupts(&mut c, &mut q, &events[1]) > 50, "{value:#x}");
    }
    assert_eq!(set(&mut c, COALESCING, 0xffff), Status::SUCCESS);
    c.enable();
    let mut q = c.create(1, 64);
    assert_eq!(get(&mut c, COALESCING, 0), 0);
    assert!(interrupts(&mut c, &mut q, &events[1]) > 50, "after a reset");
}

#[test]
fn e54_the_pin_is_held_back_and_comes() {
    let rig = Rig::new("coalesce-pin", Doorbells::Trapped);
    let mut c = rig.host();
    let pin = event();
    let irqs = |flags| words(&[20, flags, 0, 0, 1]);
    assert_eq!(c.ask(command::SET_IRQS, &irqs(4 | 32), &[pin.as_fd()]).errno, 0);
    let mut q = c.create(1, 64);
    assert_eq!(set(&mut c, COALESCING, 0xffff), Status::SUCCESS);
    for _ in 0..3 {
        // Nothing is consumed yet; an unmask tells the level anew.
        assert_eq!(c.ask(command::SET_IRQS, &irqs(1 | 16), &[]).errno, 0);
        while pin.read().is_ok() {}
        c.submit(&mut q, rw(false, 0, 1, DATA, 0));
        await_event(&pin);
        assert!(c.wait(&mut q).status().is_success());
    }
}
