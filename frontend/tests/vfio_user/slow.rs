//! I/O that takes its time: what ends it, and what may not wait for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backend::file::{FileVolume, Options as FileOptions};
use frontend::Doorbells;
use frontend::vfio_user::Reject;
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, Queue, RAM, command, longs, rw};
use crate::parked::Parked;
use crate::rig::Rig;

fn rig(name: &str) -> (Rig, Arc<Parked>) {
    let volume = Arc::new(Parked::default());
    (Rig::over(name, Doorbells::Trapped, volume.clone()), volume)
}

/// A client with its data in a region of its own, and a queue with ten parked reads into it.
fn busy(rig: &Rig, volume: &Parked) -> (Client, Queue) {
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, DATA, true), 0);
    assert_eq!(c.map(DATA, DATA, RAM as u64 - DATA, true), 0);
    c.enable();
    let mut q = c.create(1, 64);
    for i in 0..10 {
        c.submit(&mut q, rw(false, i * 8, 8, DATA + i * 4096, 0));
    }
    until(|| volume.has.load(Ordering::SeqCst) == 10);
    (c, q)
}

fn until(mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < limit, "it does not happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_reset_ends_commands_without_completions() {
    let (rig, volume) = rig("reset-silent");
    let (mut c, q) = busy(&rig, &volume);
    for _ in 0..4 {
        c.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() });
    }
    assert!(c.admin(Sqe { opc: 6, cdw10: 1, dptr: [0x500000, 0], ..Sqe::default() }).status().is_success());
    c.post(0x14, 0);
    c.wait_csts(1, 0);
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);
    assert_eq!([c.peek(&q), c.peek(&c.admin)].map(|cqe| cqe.is_some()), [false, false]);
    c.enable();
    assert!(c.admin(Sqe { opc: 6, cdw10: 1, dptr: [0x500000, 0], ..Sqe::default() }).status().is_success());
}

#[test]
fn a_controller_is_busy_while_it_has_commands() {
    let (rig, volume) = rig("busy");
    let (mut c, q) = busy(&rig, &volume);
    let began = rig.busy_time();
    std::thread::sleep(Duration::from_millis(20));
    let mut other = c.create(2, 16);
    c.submit(&mut other, rw(false, 0, 1, DATA, 0));
    until(|| volume.has.load(Ordering::SeqCst) == 11);
    std::thread::sleep(Duration::from_millis(20));
    assert!(rig.busy_time() - began >= Duration::from_millis(30));
    // One queue's end is not the other's; admin commands do not count.
    for qid in [q.qid, other.qid] {
        assert!(c.admin(Sqe { cdw10: qid.into(), ..Sqe::default() }).status().is_success());
    }
    let was = rig.busy_time();
    std::thread::sleep(Duration::from_millis(5));
    assert!(c.admin(Sqe { opc: 6, cdw10: 1, dptr: [0x500000, 0], ..Sqe::default() }).status().is_success());
    assert_eq!(rig.busy_time(), was, "idle");
}

#[test]
fn f67_an_unmap_takes_io_back() {
    let (rig, volume) = rig("taken-back");
    let (mut c, mut q) = busy(&rig, &volume);
    assert_eq!(c.unmap(DATA, RAM as u64 - DATA), 0);
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);
    for _ in 0..10 {
        assert!(!c.wait(&mut q).status().is_success());
    }
    assert_eq!(c.register(0x1c) & 3, 1, "ready, and not failed");
}

#[test]
fn f67_an_unmap_that_io_does_not_let_go_of_fails_the_controller_and_is_answered() {
    let (rig, volume) = rig("obstinate");
    let (mut c, _q) = busy(&rig, &volume);
    volume.obstinate.store(true, Ordering::SeqCst);
    assert_eq!(c.unmap(DATA, RAM as u64 - DATA), 0, "answered all the same");
    assert_eq!(c.register(0x1c) & 2, 2);
    assert_eq!(rig.handle().rejections().count(Reject::Unmap), 1);
    volume.obstinate.store(false, Ordering::SeqCst);
    assert_eq!(c.map(DATA, DATA, RAM as u64 - DATA, true), 0);
    c.enable();
    c.create(1, 16);
}

#[test]
fn g84_resets_and_goodbyes_with_io_in_flight() {
    let (rig, volume) = rig("goodbye");
    for way in 0..4 {
        let (mut c, mut q) = busy(&rig, &volume);
        match way {
            0 => assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0),
            1 => assert_eq!(c.write(7, 0x68, &[0x10, 0xa8]), 0),
            2 => {
                let delete = Sqe { cdw10: 1, ..Sqe::default() };
                assert!(c.admin(delete).status().is_success());
                for _ in 0..10 {
                    assert_eq!(c.wait(&mut q).status().code(), Status::ABORTED_SQ_DELETION);
                }
            }
            _ => {}
        }
        assert_eq!(volume.has.load(Ordering::SeqCst), if way == 3 { 10 } else { 0 });
        drop((c, q));
        until(|| !rig.handle().is_connected());
        assert_eq!(volume.has.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn g82_a_full_completion_queue_waits_for_its_host() {
    let rig = Rig::new("full", Doorbells::Trapped);
    let mut c = rig.host();
    let mut q = c.create(1, 4);
    // Two submission queues with one completion queue of three usable entries.
    let second =
        Sqe { opc: 1, dptr: [0x180000, 0], cdw10: 63 << 16 | 2, cdw11: 1 << 16 | 1, ..Sqe::default() };
    assert!(c.admin(second).status().is_success());
    for i in 0..60u16 {
        let sqe = Sqe { cid: i, ..rw(false, 0, 1, DATA, 0) };
        c.put(0x180000 + u64::from(i) * 64, nvme_proto::zerocopy::IntoBytes::as_bytes(&sqe));
    }
    c.ring(2, false, 60);
    until(|| c.filled(&q, 3));
    std::thread::sleep(Duration::from_millis(5));
    assert!(!c.filled(&q, 4), "an entry that the host has not consumed is never written over");
    let mut seen: Vec<u16> = (0..60).map(|_| c.wait(&mut q).cid).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..60).collect::<Vec<u16>>());
}

#[test]
fn a_second_client_waits_for_the_first_to_go() {
    let rig = Rig::new("second", Doorbells::Mapped);
    let first = rig.host();
    let path = rig.handle().path().to_owned();
    let second = std::thread::spawn(move || Client::connect(&path).register(0x1c));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(second.join().unwrap(), 0, "nothing of the first is left");
}

#[test]
fn f67_the_kernel_lets_go_of_unmapped_memory_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    let volume = FileVolume::open(None, file.path(), FileOptions::default()).unwrap();
    let rig = Rig::over("kernel", Doorbells::Mapped, volume);
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, DATA, true), 0);
    assert_eq!(c.map(DATA, DATA, RAM as u64 - DATA, true), 0);
    c.map_doorbells();
    c.enable();
    let mut q = c.create(1, 64);
    // Sixteen blocks of 64 KiB, each with its own bytes, written whole.
    let pages: Vec<u64> = (0..16).map(|page| page * 4096).collect();
    for i in 0..16u64 {
        let at = DATA + i * 0x10000;
        c.put(at, &[i as u8 + 1; 0x10000]);
        c.put(0x200000 + i * 128, &longs(&pages.iter().skip(1).map(|p| at + p).collect::<Vec<_>>()));
        assert!(c.run(&mut q, rw(true, i * 128, 128, at, 0x200000 + i * 128)).status().is_success());
    }
    for round in 0..10 {
        for i in 0..16u64 {
            c.submit(&mut q, rw(false, i * 128, 128, DATA + i * 0x10000, 0x200000 + i * 128));
        }
        assert_eq!(c.unmap(DATA, RAM as u64 - DATA), 0);
        // Nothing of it lands any more.
        c.put(DATA, &[0xee; 16 * 0x10000]);
        for _ in 0..16 {
            c.wait(&mut q);
        }
        assert!(c.get(DATA, 16 * 0x10000).iter().all(|b| *b == 0xee), "round {round}");
        assert_eq!(c.map(DATA, DATA, RAM as u64 - DATA, true), 0);
    }
    for i in 0..16u64 {
        let at = DATA + i * 0x10000;
        assert!(c.run(&mut q, rw(false, i * 128, 128, at, 0x200000 + i * 128)).status().is_success());
        assert_eq!(c.get(at, 0x10000), [i as u8 + 1; 0x10000]);
    }
}
