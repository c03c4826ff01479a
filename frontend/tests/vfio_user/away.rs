//! A volume that is out of reach: who heeds delays gets commands back as Namespace Not Ready, and nobody waits for a
//! shutdown for longer than RTD3E.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_proto::{Cqe, Sqe, Status};

use crate::abort::{rig, until};
use crate::client::{Client, DATA, Queue, rw};
use crate::rig::Rig;

/// FID of Host Behavior Support.
const HOST_BEHAVIOR: u32 = 0x16;

/// A host that heeds delays, and its I/O queue.
fn heeding(rig: &Rig) -> (Client, Queue) {
    let mut c = rig.host();
    let queue = c.create(1, 64);
    let mut behavior = [0; 512];
    behavior[0] = 1;
    c.put(DATA, &behavior);
    let set = Sqe { opc: 9, cdw10: HOST_BEHAVIOR, dptr: [DATA, 0], ..Sqe::default() };
    assert_eq!(c.admin(set).status(), Status::SUCCESS);
    (c, queue)
}

/// The next completion, however long that takes.
fn at_last(c: &mut Client, queue: &mut Queue) -> Cqe {
    let begun = Instant::now();
    loop {
        if let Some(cqe) = c.poll(queue) {
            return cqe;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no completion");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn commands_on_a_volume_out_of_reach_come_back_to_a_host_that_heeds_delays() {
    let ((rig, volume), (slow_rig, slow)) = (rig("away"), rig("away-not"));
    volume.away.store(true, Ordering::SeqCst);
    let ((mut c, mut queue), (mut slow_c, mut slow_queue)) = (heeding(&rig), heeding(&slow_rig));
    slow_c.submit(&mut slow_queue, rw(false, 0, 8, DATA, 0));
    until(|| slow.has.load(Ordering::SeqCst) == 1);

    let begun = Instant::now();
    let read = c.submit(&mut queue, rw(false, 0, 8, DATA, 0));
    let flush = c.submit(&mut queue, Sqe { nsid: 1, ..Sqe::default() });
    for cid in [read, flush] {
        let back = at_last(&mut c, &mut queue);
        assert_eq!((back.cid, back.status()), (cid, Status::NAMESPACE_NOT_READY.with_crd(2)));
    }
    assert!(begun.elapsed() >= Duration::from_secs(15), "they were given no time");
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);

    // What is slow and in reach is not given back.
    std::thread::sleep(Duration::from_secs(6));
    assert!(slow_c.poll(&mut slow_queue).is_none());
}

#[test]
fn a_shutdown_ends_although_the_media_are_out_of_reach() {
    let (rig, volume) = rig("away-shutdown");
    let mut c = rig.host();
    c.admin(Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() });
    let rtd3e = u32::from_le_bytes(c.get(DATA + 88, 4).try_into().unwrap());
    let begun = Instant::now();
    // CC.SHN = 01b; SHST says occurring, then complete, and CFS that the media may lack something.
    let cc = c.register(0x14);
    c.post(0x14, cc | 1 << 14);
    c.wait_csts(3 << 2, 1 << 2);
    assert_eq!(volume.has.load(Ordering::SeqCst), 1);
    while c.register(0x1c) >> 2 & 3 != 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "SHST stays {:#x}", c.register(0x1c));
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("the shutdown took {:?} of {rtd3e} us", begun.elapsed());
    assert_eq!(c.register(0x1c) & 2, 2);
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);
    c.enable();
}
