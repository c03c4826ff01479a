//! A host that shares no memory: everything goes by messages, and some of them are answered wrong, late or never.

use std::time::{Duration, Instant};

use frontend::Doorbells;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{Answers, Client, DATA, Queue, RAM, command, longs, rw};
use crate::rig::Rig;

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = move |_| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..len).map(step).collect()
}

/// A whole life without shared memory: identify, queues, writes, reads and compares by PRPs and SGLs, bit buckets, a
/// deallocation, and all of it verified.
#[test]
fn a_host_without_shared_memory() {
    let rig = Rig::new("no-memory", Doorbells::Trapped);
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, RAM as u64, false), 0);
    c.enable();
    assert!(
        c.admin(Sqe { opc: 6, cdw10: 1, dptr: [DATA + 0x804, DATA + 0x1000], ..Sqe::default() })
            .status()
            .is_success()
    );
    assert_eq!(c.get(DATA + 0x808, 8), b"TEST0001", "across two pages");
    let mut q = c.create(1, 64);
    let d = |kind, address, length| SglDescriptor::new(kind, SglSubtype::Address, address, length);
    let (list, back) = (0x700000u64, DATA + 0x200000);
    for round in 0..20u64 {
        let data = pattern(round, 16 * 4096);
        let lba = round * 128;
        // A write by a list that begins mid-page and goes on in another.
        let pages: Vec<u64> = (1..16).map(|i| DATA + (i * 7 % 16) * 0x3000).collect();
        c.put(list + 0xfe0, &longs(&[pages[0], pages[1], pages[2], list + 0x1000]));
        c.put(list + 0x1000, &longs(&pages[3..]));
        for (page, bytes) in std::iter::once(&DATA).chain(&pages).zip(data.chunks(4096)) {
            c.put(*page, bytes);
        }
        assert!(c.run(&mut q, rw(true, lba, 128, DATA, list + 0xfe0)).status().is_success());
        // Read by segments, the middle swallowed.
        let half = 8 * 4096u32;
        c.put(
            list,
            [d(SglType::DataBlock, back + 1, half), d(SglType::LastSegment, list + 0x100, 48)].as_bytes(),
        );
        let rest = [
            (SglType::BitBucket, 0, 4096),
            (SglType::DataBlock, back + 0x10000, 4096),
            (SglType::DataBlock, back + 0x20003, half - 8192),
        ];
        c.put(list + 0x100, rest.map(|(k, a, l)| d(k, a, l)).as_bytes());
        c.put(back, &[0xee; 0x30000]);
        let mut read = rw(false, lba, 128, 0, 0);
        read.set_sgl(d(SglType::Segment, list, 32));
        assert!(c.run(&mut q, read).status().is_success());
        let half = half as usize;
        assert!(c.get(back + 1, half) == data[..half]);
        assert!(c.get(back + 0x10000, 4096) == data[half + 4096..half + 8192]);
        assert!(c.get(back + 0x20003, half - 8192) == data[half + 8192..]);
        assert_eq!(
            (c.get(back, 1)[0], c.get(back + 1 + half as u64, 1)[0]),
            (0xee, 0xee),
            "nothing beside it"
        );
        // Compared: the same, and not quite.
        let compare = Sqe { opc: 5, ..rw(false, lba, 128, DATA, list + 0x1fe0) };
        c.put(list + 0x1fe0, &longs(&[pages[0], pages[1], pages[2], list + 0x1000]));
        assert!(c.run(&mut q, compare).status().is_success());
        c.put(pages[7] + 5, &[!c.get(pages[7] + 5, 1)[0]]);
        assert_eq!(c.run(&mut q, compare).status().code(), Status::COMPARE_FAILURE);
    }
    // Ranges by message.
    c.put(DATA, &[longs(&[8 << 32, 0]), longs(&[8 << 32, 64])].concat());
    let dsm = Sqe { opc: 9, nsid: 1, cdw10: 1, cdw11: 4, dptr: [DATA, 0], ..Sqe::default() };
    assert!(c.run(&mut q, dsm).status().is_success());
    assert!(c.run(&mut q, rw(false, 64, 8, DATA, 0)).status().is_success());
    assert_eq!(c.get(DATA, 4096), [0; 4096]);
    // Flushed, shut down, reset, and all of it again.
    assert!(c.run(&mut q, Sqe { nsid: 1, ..Sqe::default() }).status().is_success());
    c.post(0x14, 1 << 14 | 4 << 20 | 6 << 16 | 1);
    c.wait_csts(0xc, 0x8);
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    c.enable();
    let mut q = c.create(1, 64);
    assert!(c.run(&mut q, rw(false, 128, 8, DATA, 0)).status().is_success());
    assert!(c.get(DATA, 4096) == pattern(1, 4096));
}

/// Queues in shared memory, data that is not: `c` answers for it as it likes.
fn bench(rig: &Rig) -> Client {
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, DATA, true), 0);
    assert_eq!(c.map(DATA, DATA, RAM as u64 - DATA, false), 0);
    c.enable();
    c
}

#[test]
fn answers_that_are_none() {
    let rig = Rig::new("answers", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = bench(&rig);
    let mut q = c.create(1, 64);
    // The first question finds how wide the client's counts are: it is to be answered right.
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
    for answers in [Answers::Refused, Answers::OfOther, Answers::Short, Answers::Long, Answers::Empty] {
        c.answers = answers;
        let status = c.run(&mut q, rw(true, 0, 8, DATA, 0)).status();
        assert_eq!(status.code(), Status::DATA_TRANSFER_ERROR, "{answers:?}: a write's data");
        let status = c.run(&mut q, rw(true, 0, 64, 0x500000, DATA)).status();
        assert_eq!(status.code(), Status::DATA_TRANSFER_ERROR, "{answers:?}: a list");
        if answers == Answers::Refused {
            let status = c.run(&mut q, rw(false, 0, 8, DATA, 0)).status();
            assert_eq!(status.code(), Status::DATA_TRANSFER_ERROR, "a read's data is refused");
        }
        // What is shared does not care.
        assert!(c.run(&mut q, rw(true, 0, 8, 0x500000, 0)).status().is_success());
        neighbour.is_well();
    }
    c.answers = Answers::Right;
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
}

/// Questions that are never answered hold up neither an unmap nor a reset nor the commands that have shared memory.
#[test]
fn answers_that_never_come() {
    let rig = Rig::new("never", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    for way in 0..4 {
        let mut c = bench(&rig);
        let mut q = c.create(1, 64);
        c.answers = Answers::Never;
        for i in 0..20 {
            c.submit(&mut q, rw(i % 2 == 0, i * 8, 8, DATA + i * 4096, 0));
        }
        let limit = Instant::now() + Duration::from_secs(10);
        while c.asked == 0 {
            assert!(Instant::now() < limit, "nothing is asked");
            c.serve_pending();
        }
        let mut other = c.create(2, 16);
        assert!(c.run(&mut other, rw(true, 0, 8, 0x500000, 0)).status().is_success());
        neighbour.is_well();
        match way {
            0 => {
                assert_eq!(c.unmap(DATA, RAM as u64 - DATA), 0);
                assert_eq!(c.register(0x1c), 1, "nothing of it is memory that is held");
            }
            1 => assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0),
            2 => {
                let delete = Sqe { cdw10: 1, ..Sqe::default() };
                assert!(c.admin(delete).status().is_success());
            }
            _ => {}
        }
        drop((c, q));
        let limit = Instant::now() + Duration::from_secs(10);
        while rig.handle().is_connected() {
            assert!(Instant::now() < limit, "the session does not end");
            std::thread::yield_now();
        }
        neighbour.is_well();
    }
}

/// What was asked for a command of a queue that is gone answers nobody: not the first command of the next queue with its
/// QID, which is as much the first of its slot.
#[test]
fn answers_that_come_after_their_queue() {
    let rig = Rig::new("too-late", Doorbells::Trapped);
    let mut c = bench(&rig);
    let mut q = c.create(1, 64);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
    for way in 0..4 {
        c.post(0x14, 0);
        c.wait_csts(1, 0);
        c.enable();
        let mut q = c.create(1, 64);
        c.put(DATA, &[0xaa; 4096]);
        c.submit(&mut q, rw(true, 800, 8, DATA, 0));
        c.withhold(1);
        if way % 2 == 0 {
            c.post(0x14, 0);
            c.wait_csts(1, 0);
            c.enable();
        } else {
            for opc in [0, 4] {
                assert!(c.admin(Sqe { opc, cdw10: 1, ..Sqe::default() }).status().is_success());
            }
        }
        let mut q = c.create(1, 64);
        c.put(DATA + 0x10000, &[0xbb; 4096]);
        c.put(DATA + 0x20000, &longs(&[8 << 32, 1600]).repeat(256));
        let deallocate =
            Sqe { opc: 9, nsid: 1, cdw10: 255, cdw11: 4, dptr: [DATA + 0x20000, 0], ..Sqe::default() };
        let next = if way < 2 { rw(true, 1600, 8, DATA + 0x10000, 0) } else { deallocate };
        c.submit(&mut q, next);
        c.withhold(2);
        c.answer_at_last();
        assert_eq!(c.wait(&mut q).status(), Status::SUCCESS);
        for (lba, byte) in [(800, 0), (1600, if way < 2 { 0xbb } else { 0 })] {
            assert!(c.run(&mut q, rw(false, lba, 8, 0x500000, 0)).status().is_success());
            assert_eq!(c.get(0x500000, 4096), [byte; 4096], "block {lba}, {way}");
        }
    }
}

/// Reads that are on their way to the host when their queue is deleted leave its completion queue as wide as it was; the
/// deletion is answered when they are there.
#[test]
fn reads_on_their_way_give_their_entries_back() {
    let rig = Rig::new("entries-back", Doorbells::Trapped);
    let mut c = bench(&rig);
    let mut q = c.create(1, 4);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
    for _ in 0..8 {
        // Another submission queue with the same completion queue.
        let sq =
            Sqe { opc: 1, dptr: [0x600000, 0], cdw10: 3 << 16 | 2, cdw11: 1 << 16 | 1, ..Sqe::default() };
        assert!(c.admin(sq).status().is_success());
        c.put(0x600000, &[0; 256]);
        let read = Sqe { cid: 7, ..rw(false, 0, 8, DATA, 0) };
        c.put(0x600000, read.as_bytes());
        c.ring(2, false, 1);
        c.withhold(1);
        c.submit_admin(Sqe { cdw10: 2, ..Sqe::default() });
        assert!(c.run(&mut q, rw(true, 0, 8, 0x500000, 0)).status().is_success());
        assert_eq!(c.reap_admin(), None);
        c.answer_at_last();
        let until = Instant::now() + Duration::from_secs(10);
        while c.reap_admin().is_none() {
            assert!(Instant::now() < until, "the queue is not deleted");
            c.serve_pending();
        }
        assert!(c.run(&mut q, rw(false, 0, 8, 0x500000, 0)).status().is_success());
    }
}

/// Completions that are on their way when their submission queue is deleted come before the deletion's.
#[test]
fn completions_on_their_way_come_before_their_queue_s_end() {
    let rig = Rig::new("entries-first", Doorbells::Trapped);
    for patient in [true, false] {
        let mut c = bench(&rig);
        // The completion queue is reached by messages, the submission queue is not.
        let queue = Queue::at(1, 0x600000, DATA + 0x100000, 16);
        let mut q = c.create_in(queue);
        assert!(c.run(&mut q, rw(true, 0, 8, 0x500000, 0)).status().is_success());
        for i in 0..3 {
            c.submit(&mut q, rw(false, i * 8, 8, 0x500000, 0));
        }
        c.withhold(1);
        let begin = Instant::now();
        c.submit_admin(Sqe { cdw10: 1, ..Sqe::default() });
        let mut other = c.create(2, 16);
        assert!(c.run(&mut other, rw(true, 0, 8, 0x500000, 0)).status().is_success());
        assert_eq!(c.reap_admin(), None, "the queue is deleted");
        if patient {
            c.answer_at_last();
        }
        let until = Instant::now() + Duration::from_secs(10);
        while c.reap_admin().is_none() {
            assert!(Instant::now() < until, "the queue is not deleted");
            c.serve_pending();
        }
        // Who does not take it is not waited for for long, and on a busy machine nobody may be.
        let in_time = patient && begin.elapsed() < Duration::from_secs(2);
        if !patient {
            c.answer_at_last();
        }
        // No entry of a queue that is there is left out. One alone is known to have been on its way.
        for i in 0..3 {
            assert!(!in_time || c.peek(&q).is_some(), "an entry comes late");
            let status = c.wait(&mut q).status();
            assert!(status.is_success() || i > 0 && status == Status::ABORTED_SQ_DELETION, "{i}: {status}");
        }
    }
}

/// Commands that were asked for before the function ceased to be a bus master are executed when it is one again.
#[test]
fn commands_that_come_while_it_is_no_bus_master_wait() {
    let rig = Rig::new("master-late", Doorbells::Trapped);
    let mut c = bench(&rig);
    let mut q = c.create_in(Queue::at(1, DATA + 0x200000, 0x700000, 16));
    c.put(0x500000, &pattern(5, 4096));
    assert!(c.run(&mut q, rw(true, 0, 8, 0x500000, 0)).status().is_success());
    c.submit(&mut q, rw(false, 0, 8, 0x510000, 0));
    c.withhold(1);
    c.master(false);
    c.answer_at_last();
    for _ in 0..20 {
        c.register(0x1c);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(c.peek(&q).is_none());
    assert_eq!(c.get(0x510000, 4096), [0; 4096]);
    c.master(true);
    assert_eq!(c.wait(&mut q).status(), Status::SUCCESS);
    assert!(c.get(0x510000, 4096) == pattern(5, 4096));
}

/// A reset is complete when no write of guest memory is out any more, and the answer of one is taken while a reset waits.
#[test]
fn a_reset_waits_for_what_is_out() {
    let rig = Rig::new("reset-out", Doorbells::Trapped);
    let mut c = bench(&rig);
    for by_message in [false, true] {
        let mut q = c.create(1, 64);
        assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
        c.submit(&mut q, rw(false, 0, 8, DATA, 0));
        c.withhold(1);
        let reset = by_message.then(|| c.send(command::RESET, 0, &[], &[]));
        if reset.is_none() {
            c.post(0x14, 0);
            for _ in 0..20 {
                assert_eq!(c.register(0x1c) & 1, 1, "it is complete");
            }
        }
        c.answer_at_last();
        match reset {
            Some(id) => {
                let (answered, reply) = c.reply();
                assert_eq!((answered, reply.errno), (id, 0));
            }
            None => c.wait_csts(1, 0),
        }
        c.enable();
    }
}
