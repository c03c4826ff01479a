//! As much as a controller has: its most queues of the most entries, completion queues that many share, memory in many
//! regions.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use frontend::Doorbells;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::register::{Cap, offset};
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, Queue, RAM, await_event, command, event, longs, rw, words};
use crate::rig::Rig;

const QUEUES: u16 = 256;
const ENTRIES: u32 = 4096;
/// Bytes of a queue pair.
const PAIR: u64 = ENTRIES as u64 * (64 + 16);
/// Where the queue pairs begin.
const PAIRS: u64 = 16 << 20;

/// Bytes of the client's memory that anybody has touched.
fn touched(c: &Client) -> u64 {
    std::fs::metadata(format!("/proc/self/fd/{}", c.ram_fd.as_raw_fd())).unwrap().blocks() * 512
}

fn pair(qid: u16) -> Queue {
    let at = PAIRS + u64::from(qid - 1) * PAIR;
    Queue::at(qid, at, at + u64::from(ENTRIES) * 64, ENTRIES)
}

#[test]
fn as_many_queues_as_there_can_be_of_the_largest_size() {
    let rig = Rig::new("wide", Doorbells::Mapped);
    let ram = PAIRS + u64::from(QUEUES) * PAIR;
    let mut c = Client::with_ram(rig.handle().path(), ram as usize);
    assert_eq!(c.map(0, 0, ram, true), 0);
    c.map_doorbells();
    c.enable();
    let cap = u64::from_le_bytes(c.read(0, offset::CAP.into(), 8).try_into().unwrap());
    assert_eq!(u32::from(Cap::from_bits(cap).mqes_z()) + 1, ENTRIES);
    let most = Sqe { opc: 9, cdw10: 7, cdw11: 0xfffe_fffe, ..Sqe::default() };
    assert_eq!(c.admin(most).dw0, 255 << 16 | 255, "Number of Queues");
    let table = u16::from_le_bytes(c.read(7, 0x52, 2).try_into().unwrap()) & 0x7ff;
    assert_eq!(table, QUEUES, "a vector for each, and the admin queue's");
    let info = c.ask(command::GET_IRQ, &words(&[16, 0, 2, 0]), &[]).body;
    assert_eq!(info[12..], u32::from(QUEUES + 1).to_le_bytes());

    let before = touched(&c);
    let mut queues: Vec<Queue> = (1..=QUEUES).map(|qid| c.create_in(pair(qid))).collect();
    // A queue takes memory when it is used: here the admin queue's pages at most.
    assert!(touched(&c) < before + 0x10000, "{} bytes", touched(&c) - before);
    let beyond = Sqe { opc: 5, dptr: [DATA, 0], cdw10: 15 << 16 | 257, cdw11: 3, ..Sqe::default() };
    assert_eq!(c.admin(beyond).status().code(), Status::INVALID_QUEUE_IDENTIFIER);

    let events: Vec<_> = (0..=QUEUES).map(|_| event()).collect();
    for (at, some) in events.chunks(16).enumerate() {
        assert_eq!(c.vectors(at as u32 * 16, &some.iter().collect::<Vec<_>>()), 0);
    }
    for queue in &mut queues {
        let lba = u64::from(queue.qid) * 8;
        c.put(DATA, &[queue.qid as u8; 4096]);
        assert!(c.run(queue, rw(true, lba, 8, DATA, 0)).status().is_success());
        await_event(&events[usize::from(queue.qid)]);
    }
    // The first and the last, full: every entry is used, and the phase turns.
    for queue in [0, usize::from(QUEUES) - 1] {
        let queue = &mut queues[queue];
        for _ in 0..3 {
            for i in 0..ENTRIES - 2 {
                c.place(queue, rw(false, u64::from(i % 256) * 8, 1, DATA + 0x1000, 0));
            }
            c.submit(queue, rw(false, u64::from(queue.qid) * 8, 8, DATA, 0));
            (0..ENTRIES - 1).for_each(|_| assert!(c.wait(queue).status().is_success()));
            assert_eq!(c.get(DATA, 4096), [queue.qid as u8; 4096]);
        }
    }
    // A vector beyond the first 256 is pending while it has no descriptor.
    assert_eq!(c.ask(command::SET_IRQS, &words(&[20, 4 | 32, 2, 256, 1]), &[]).errno, 0);
    assert!(c.run(&mut queues[255], rw(false, 0, 1, DATA, 0)).status().is_success());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while c.read(4, 8192 + 32, 1) != [1] {
        assert!(std::time::Instant::now() < until, "the pending bit is never set");
    }
    assert_eq!(c.vectors(256, &[&events[256]]), 0);
    await_event(&events[256]);
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    c.enable();
}

#[test]
fn many_submission_queues_complete_in_one_place() {
    for doorbells in [Doorbells::Mapped, Doorbells::Trapped] {
        let rig = Rig::new(&format!("shared-cq-{doorbells:?}"), doorbells);
        let mut c = rig.host();
        let mut cq = c.create(1, 64);
        let at = |qid: u16| 0x400000 + u64::from(qid) * 0x2000;
        let mut others: Vec<Queue> = (2..=9).map(|qid| Queue::at(qid, at(qid), 0, 16)).collect();
        for q in &others {
            let size = 15 << 16 | u32::from(q.qid);
            let sqe = Sqe { opc: 1, dptr: [at(q.qid), 0], cdw10: size, cdw11: 1 << 16 | 1, ..Sqe::default() };
            assert!(c.admin(sqe).status().is_success());
        }
        for round in 0..50u64 {
            let mut asked = Vec::new();
            for q in &mut others {
                let qid = q.qid;
                for i in 0..6 {
                    let lba = (u64::from(qid) * 8 + i) * 8;
                    asked.push((qid, c.submit(q, rw(i % 2 == 0, lba, 1 + (round % 8) as u32, DATA, 0))));
                }
            }
            // Each answer tells whose it is, and how far that queue was read.
            let mut seen: Vec<(u16, u16)> = (0..asked.len())
                .map(|_| {
                    let cqe = c.wait(&mut cq);
                    assert!(cqe.status().is_success() && cqe.sqhd < 16);
                    (cqe.sqid, cqe.cid)
                })
                .collect();
            seen.sort_unstable();
            asked.sort_unstable();
            assert_eq!(seen, asked);
        }
        let delete = |opc, qid: u16| Sqe { opc, cdw10: qid.into(), ..Sqe::default() };
        for qid in 1..=9 {
            assert_eq!(c.admin(delete(4, 1)).status().code(), Status::INVALID_QUEUE_DELETION);
            assert!(c.admin(delete(0, qid)).status().is_success());
        }
        assert!(c.admin(delete(4, 1)).status().is_success());
    }
}

#[test]
fn memory_in_thousands_of_regions() {
    let rig = Rig::new("regions", Doorbells::Mapped);
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, DATA, true), 0);
    c.map_doorbells();
    c.enable();
    let mut q = c.create(1, 64);
    // The file's pages, last first, one region each, with holes between them: no run of two pages lies in one.
    let base = 1u64 << 40;
    let gpa = |page: u64| base + page * 0x2000;
    let fd = c.ram_fd.try_clone().unwrap();
    let most = 4095;
    for page in 0..most {
        let body = [words(&[32, 3]), longs(&[DATA + (most - 1 - page) * 4096, gpa(page), 4096])].concat();
        assert_eq!(c.ask(command::DMA_MAP, &body, &[fd.as_fd()]).errno, 0, "{page}");
    }
    assert_ne!(c.map(1 << 50, 0, 4096, true), 0, "one more than there may be");
    for first in [0, 64, 1000, most - 16] {
        for page in 0..16 {
            c.put(DATA + (most - 1 - first - page) * 4096, &[page as u8 + 1; 4096]);
        }
        let list: Vec<u64> = (1..16).map(|page| gpa(first + page)).collect();
        c.put(0x400000, &longs(&list));
        assert!(c.run(&mut q, rw(true, 0, 128, gpa(first), 0x400000)).status().is_success());
        for page in 0..16u64 {
            assert!(c.run(&mut q, rw(false, page * 8, 8, 0x500000, 0)).status().is_success());
            assert_eq!(c.get(0x500000, 4096), [page as u8 + 1; 4096]);
        }
        // Half a page before a hole, and over the hole's edge.
        let over = rw(false, 0, 8, gpa(first) + 0x800, gpa(first) + 0x1000);
        assert_eq!(c.run(&mut q, over).status().code(), Status::DATA_TRANSFER_ERROR);
    }
    // All of them at once, with I/O on its way.
    for i in 0..32 {
        c.submit(&mut q, rw(true, i * 8, 8, gpa(i), 0));
    }
    assert_eq!(c.ask(command::DMA_UNMAP, &[words(&[24, 2]), longs(&[0, 0])].concat(), &[]).errno, 0);
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    c.enable();
    let mut q = c.create(1, 64);
    assert!(c.run(&mut q, rw(false, 0, 8, DATA, 0)).status().is_success());
}

#[test]
fn memory_of_any_size_and_alignment() {
    let rig = Rig::new("alignment", Doorbells::Mapped);
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, DATA, true), 0);
    c.map_doorbells();
    c.enable();
    let mut q = c.create(1, 16);
    let fd = c.ram_fd.try_clone().unwrap();
    // Three regions that touch, of odd sizes, at odd addresses and odd places of the file: 512 bytes in all.
    let parts =
        [(0x1_0000_0003u64, 0x101u64, 5u64), (0x1_0000_0008, 0x2fff, 500), (0x1_0000_01fc, 0x7001, 7)];
    for (gpa, offset, size) in parts {
        let body = [words(&[32, 3]), longs(&[DATA + offset, gpa, size])].concat();
        assert_eq!(c.ask(command::DMA_MAP, &body, &[fd.as_fd()]).errno, 0);
    }
    let data: Vec<u8> = (0..512u32).map(|i| (i * 7 + 3) as u8).collect();
    let mut at = 0;
    for (_, offset, size) in parts {
        c.put(DATA + offset, &data[at..at + size as usize]);
        at += size as usize;
    }
    let all = SglDescriptor::new(SglType::DataBlock, SglSubtype::Address, parts[0].0, 512);
    let mut write = rw(true, 5, 1, 0, 0);
    write.set_sgl(all);
    assert!(c.run(&mut q, write).status().is_success());
    assert!(c.run(&mut q, rw(false, 5, 1, 0x400000, 0)).status().is_success());
    assert_eq!(c.get(0x400000, 512), data);
    // And back to where it came from, byte by byte; nothing beside it is touched.
    c.put(DATA, &[0xee; 0x8000]);
    let mut read = rw(false, 5, 1, 0, 0);
    read.set_sgl(all);
    assert!(c.run(&mut q, read).status().is_success());
    let mut want = vec![0xee; 0x8000];
    let mut at = 0;
    for (_, offset, size) in parts {
        let (to, n) = (offset as usize, size as usize);
        want[to..to + n].copy_from_slice(&data[at..at + n]);
        at += n;
    }
    assert!(c.get(DATA, 0x8000) == want);
    // A byte past the end.
    read.set_sgl(SglDescriptor::new(SglType::DataBlock, SglSubtype::Address, parts[0].0 + 1, 512));
    assert_eq!(c.run(&mut q, read).status().code(), Status::DATA_TRANSFER_ERROR);
}
