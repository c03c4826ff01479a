//! G.79, G.80 and G.85: PRP lists, scatter-gather lists and memory that no command may use so, in a guest's own queue.
//! Whoever is beside it notices nothing, and what comes after is served.

use std::os::fd::{AsFd, BorrowedFd};

use frontend::Doorbells;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, Queue, RAM, command, longs, rw, words};
use crate::rig::{Neighbour, Rig};

/// Where lists lie.
const LIST: u64 = 0x700000;
/// An address that is the controller's own to the guest: nothing of it is memory (G.79: data in a BAR).
const BAR: u64 = 0xfebd_0000;
const TRANSFER: Status = Status::DATA_TRANSFER_ERROR;
const OFFSET: Status = Status::PRP_OFFSET_INVALID;

/// What a status says; who asks for what can never be is told not to try again (DNR).
fn for_good(status: Status) -> Status {
    assert!(status.is_success() || status == status.code().dnr(), "{status:?} may be tried again");
    status.code()
}

struct Bench {
    c: Client,
    q: Queue,
    neighbour: Neighbour,
    _rig: Rig,
}

impl Bench {
    /// A host whose memory begins at its second page: address 0 is none.
    fn new(name: &str) -> Self {
        let rig = Rig::new(name, Doorbells::Mapped);
        let neighbour = rig.neighbour();
        let mut c = rig.connect();
        assert_eq!(c.map(4096, 4096, RAM as u64 - 4096, true), 0);
        c.map_doorbells();
        c.enable();
        let q = c.create(1, 64);
        Bench { c, q, neighbour, _rig: rig }
    }

    /// What commands both ways are answered, which must be the same.
    fn both(&mut self, blocks: u32, prp1: u64, prp2: u64) -> Status {
        let read = self.c.run(&mut self.q, rw(false, 0, blocks, prp1, prp2)).status();
        let write = self.c.run(&mut self.q, rw(true, 0, blocks, prp1, prp2)).status();
        assert_eq!(read, write);
        for_good(read)
    }

    fn sgl(&mut self, write: bool, blocks: u32, first: SglDescriptor) -> Status {
        let mut sqe = rw(write, 0, blocks, 0, 0);
        sqe.set_sgl(first);
        for_good(self.c.run(&mut self.q, sqe).status())
    }

    fn ends_well(mut self) {
        assert_eq!(self.both(8, DATA, 0), Status::SUCCESS);
        assert_eq!(self.c.register(0x1c) & 3, 1);
        self.neighbour.is_well();
    }
}

/// G.79
#[test]
fn g79_prps() {
    let mut b = Bench::new("g79");
    let end = RAM as u64;
    for (blocks, prp1, prp2, want) in [
        (1, DATA + 1, 0, OFFSET),
        (1, DATA + 2, 0, OFFSET),
        (1, DATA + 3, 0, OFFSET),
        (1, DATA + 4, 1, Status::SUCCESS),
        // PRP2 as a page: with an offset, nothing, outside memory, the controller's own.
        (16, DATA, DATA + 4, OFFSET),
        (16, DATA, DATA + 0x1200, OFFSET),
        (16, DATA, 0, TRANSFER),
        (16, DATA, end, TRANSFER),
        (16, DATA, BAR, TRANSFER),
        (16, DATA, u64::MAX - 4095, TRANSFER),
        // PRP2 as a list: the same.
        (24, DATA, LIST + 4, OFFSET),
        (24, DATA, 0, TRANSFER),
        (24, DATA, end, TRANSFER),
        (24, DATA, BAR, TRANSFER),
        (24, DATA, u64::MAX - 7, TRANSFER),
        // Data: outside memory, over its end, at the controller's own registers and doorbells.
        (1, end, 0, TRANSFER),
        (1, end - 512, 0, Status::SUCCESS),
        (1, end - 256, end, TRANSFER),
        (1, 0, 0, TRANSFER),
        (1, BAR, 0, TRANSFER),
        (1, BAR + 0x1000, 0, TRANSFER),
        (1, u64::MAX - 511, 0, TRANSFER),
    ] {
        assert_eq!(b.both(blocks, prp1, prp2), want, "{blocks} {prp1:#x} {prp2:#x}");
    }
    b.neighbour.is_well();
    // Entries of a list: with an offset, outside, zero, the list itself, a queue.
    for (entry, want) in [
        (DATA + 8, OFFSET),
        (DATA + 0xfff, OFFSET),
        (0, TRANSFER),
        (end, TRANSFER),
        (BAR, TRANSFER),
        (u64::MAX - 4095, TRANSFER),
        (DATA + 0x10000, Status::SUCCESS),
    ] {
        b.c.put(LIST, &longs(&[DATA + 0x1000, entry]));
        assert_eq!(b.both(24, DATA, LIST), want, "{entry:#x}");
    }
    // A page of an admin command: from the middle of one page to that of the next, or nowhere.
    for (prp1, prp2, want) in [
        (DATA + 0x804, DATA + 0x1000, Status::SUCCESS),
        (DATA + 0x804, 0, TRANSFER),
        (DATA + 0x804, DATA + 0x1004, OFFSET),
        (DATA + 0x802, DATA + 0x1000, OFFSET),
        (0, 0, TRANSFER),
        (end - 0x800, end, TRANSFER),
        (BAR, 0, TRANSFER),
        (u64::MAX - 4095, 0, TRANSFER),
    ] {
        for (opc, cdw10) in [(6, 1), (2, 1023 << 16 | 2)] {
            let sqe = Sqe { opc, cdw10, dptr: [prp1, prp2], ..Sqe::default() };
            assert_eq!(for_good(b.c.admin(sqe).status()), want, "{opc} {prp1:#x} {prp2:#x}");
        }
    }
    // A list that ends with memory: its last entry is a page or, with more to come, nowhere.
    b.c.put(end - 16, &longs(&[DATA + 0x1000, DATA + 0x2000]));
    assert_eq!(b.both(24, DATA, end - 16), Status::SUCCESS);
    assert_eq!(b.both(32, DATA, end - 16), TRANSFER, "a page of data taken for a list");
    for (chain, want) in [(end, TRANSFER), (0, TRANSFER), (BAR, TRANSFER), (LIST + 8, OFFSET)] {
        b.c.put(end - 16, &longs(&[DATA + 0x1000, chain]));
        assert_eq!(b.both(32, DATA, end - 16), want, "{chain:#x}");
    }
    // A chain in the last entry of its page, from the middle of it: as it should be.
    b.c.put(end - 16, &longs(&[DATA + 0x1000, LIST]));
    b.c.put(LIST, &longs(&[DATA + 0x2000, DATA + 0x3000]));
    assert_eq!(b.both(32, DATA, end - 16), Status::SUCCESS);
    // Lists in the submission queue, in the completion queue, in the data they name.
    b.c.put(DATA, &longs(&[DATA, DATA]));
    for inside in [0x30000, 0x40000, DATA] {
        for write in [true, false] {
            b.c.run(&mut b.q, rw(write, 0, 24, DATA, inside));
        }
    }
    b.ends_well();
}

/// G.79: a list that names itself, and a hole between two regions.
#[test]
fn g79_lists_without_end_and_memory_with_holes() {
    let mut b = Bench::new("g79-loop");
    // Every entry is the list; it ends with the bytes that were asked for, here the most there may be.
    let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
    assert!(b.c.admin(identify).status().is_success());
    let mdts = b.c.get(DATA + 77, 1)[0];
    let most = if mdts == 0 { 2048 } else { 8u32 << mdts };
    b.c.put(LIST, &longs(&[LIST; 512]));
    for write in [true, false] {
        assert!(b.c.run(&mut b.q, rw(write, 0, most, LIST, LIST)).status().is_success());
    }
    // A chain to itself from the middle of a page.
    b.c.put(LIST + 0xff0, &longs(&[DATA, LIST + 0xff0]));
    assert_eq!(b.both(most.min(64), DATA, LIST + 0xff0), OFFSET);
    let all = b.c.ask(command::DMA_UNMAP, &[words(&[24, 2]), longs(&[0, 0])].concat(), &[]);
    assert_eq!(all.errno, 0);
    // Two regions and a page between them that is none.
    assert_eq!(b.c.map(4096, 4096, DATA + 0x3000, true), 0);
    assert_eq!(b.c.map(DATA + 0x5000, DATA + 0x5000, 0x10000, true), 0);
    assert_eq!(b.both(8, DATA + 0x3000, 0), Status::SUCCESS);
    for (prp1, prp2) in [(DATA + 0x4000, 0), (DATA + 0x3800, DATA + 0x4000), (DATA + 0x4ffc, DATA + 0x5000)] {
        assert_eq!(b.both(8, prp1, prp2), TRANSFER, "{prp1:#x}");
    }
    b.c.put(LIST, &longs(&[DATA + 0x4000, DATA + 0x5000]));
    assert_eq!(b.both(24, DATA, LIST), TRANSFER);
    assert_eq!(b.both(24, DATA, DATA + 0x4ff8), TRANSFER, "the list in the hole");
    b.ends_well();
}

/// G.80
#[test]
fn g80_scatter_gather_lists() {
    let mut b = Bench::new("g80");
    let d = |kind, address, length| SglDescriptor::new(kind, SglSubtype::Address, address, length);
    let (block, bucket) = (SglType::DataBlock, SglType::BitBucket);
    let (segment, last) = (SglType::Segment, SglType::LastSegment);
    let (length, bad) = (Status::DATA_SGL_LENGTH_INVALID, Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    let kind = Status::SGL_DESCRIPTOR_TYPE_INVALID;
    let many = Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS;
    let end = RAM as u64;
    // The command's own descriptor: every type and subtype.
    for identifier in 0..=255u8 {
        let mut first = d(block, DATA, 512);
        first.identifier = identifier;
        for write in [false, true] {
            let want = match identifier {
                0x00 => Status::SUCCESS,
                // A bit bucket takes all of a read, and is nothing of a write.
                0x10 => {
                    if write {
                        length
                    } else {
                        Status::SUCCESS
                    }
                }
                // Segments of what is not a list there: zeroes, which are data blocks of nothing.
                0x20 => bad,
                0x30 => length,
                _ => kind,
            };
            b.c.put(DATA, &[0; 512]);
            assert_eq!(b.sgl(write, 1, first), want, "{identifier:#x} {write}");
        }
    }
    b.neighbour.is_well();
    for (first, want) in [
        (d(block, DATA, 0), length),
        (d(block, DATA, 511), length),
        (d(block, DATA, 513), length),
        (d(block, DATA, u32::MAX), length),
        (d(block, end, 512), TRANSFER),
        (d(block, end - 511, 512), TRANSFER),
        (d(block, 0, 512), TRANSFER),
        (d(block, BAR, 512), TRANSFER),
        (d(block, u64::MAX, 512), TRANSFER),
        (d(segment, LIST, 0), bad),
        (d(segment, LIST, 15), bad),
        (d(segment, LIST, 17), bad),
        (d(last, LIST, 0), bad),
        (d(last, LIST, 40), bad),
        (d(last, u64::MAX, 16), bad),
        (d(last, end, 16), TRANSFER),
        (d(last, end - 16, 32), TRANSFER),
        (d(segment, BAR, 16), TRANSFER),
        (d(last, LIST, !15), many),
    ] {
        b.c.put(LIST, &vec![0; 0x20000]);
        for write in [false, true] {
            assert_eq!(b.sgl(write, 1, first), want, "{first:?}");
        }
    }
    // Lists: more and fewer bytes than asked for, pointers where none may be, none where one must be.
    for (list, first, want) in [
        (vec![d(block, DATA, 256), d(block, DATA, 255)], last, length),
        (vec![d(block, DATA, 256), d(block, DATA, 257)], last, length),
        (vec![d(block, DATA, 512), d(block, DATA, u32::MAX)], last, length),
        (vec![d(block, DATA, 512), d(block, u64::MAX, 0)], last, Status::SUCCESS),
        (vec![d(last, LIST, 16), d(block, DATA, 512)], segment, bad),
        (vec![d(block, DATA, 512)], segment, bad),
        (vec![d(block, DATA, 512), d(segment, LIST, 16)], last, bad),
        (vec![d(block, DATA, 256), d(block, end - 255, 256)], last, TRANSFER),
        (vec![d(bucket, 0, 512)], last, Status::SUCCESS),
    ] {
        b.c.put(LIST, list.as_bytes());
        let got = b.sgl(false, 1, d(first, LIST, list.len() as u32 * 16));
        assert_eq!(got, want, "{list:?}");
    }
    // On writes a bit bucket is passed over: its bytes are not the host's to give.
    b.c.put(LIST, [d(bucket, BAR, 4096), d(block, DATA, 512), d(bucket, 0, u32::MAX)].as_bytes());
    assert_eq!(b.sgl(true, 1, d(last, LIST, 48)), Status::SUCCESS);
    // A segment that names itself, alone and after data of nothing; two that name each other.
    b.c.put(LIST, d(segment, LIST, 16).as_bytes());
    assert_eq!(b.sgl(false, 1, d(segment, LIST, 16)), many);
    b.c.put(LIST, [d(block, 0, 0), d(segment, LIST, 32)].as_bytes());
    assert_eq!(b.sgl(true, 1, d(segment, LIST, 32)), many);
    b.c.put(LIST, d(segment, LIST + 16, 16).as_bytes());
    b.c.put(LIST + 16, d(segment, LIST, 16).as_bytes());
    assert_eq!(b.sgl(false, 1, d(segment, LIST, 16)), many);
    // A chain of a million segments, as deep as this memory allows without naming one twice.
    let deep: Vec<_> = (1..=1u64 << 20).map(|i| d(segment, DATA + i * 16, 16)).collect();
    b.c.put(DATA, deep.as_bytes());
    assert_eq!(b.sgl(false, 1, d(segment, DATA, 16)), many);
    // A data block over the border of two regions is one block all the same.
    assert_eq!(b.c.map(end, DATA, 4096, true), 0);
    assert_eq!(b.sgl(true, 1, d(block, end - 256, 512)), Status::SUCCESS);
    assert_eq!(b.sgl(false, 1, d(block, end - 1, 512)), Status::SUCCESS);
    b.ends_well();
}

/// G.85, and ROM: memory that the device may read alone, or write alone, with a descriptor and without.
#[test]
fn g85_memory_that_is_read_or_written_alone() {
    for shared in [true, false] {
        let rig = Rig::new(&format!("g85-{shared}"), Doorbells::Trapped);
        let mut neighbour = rig.neighbour();
        let mut c = rig.connect();
        assert_eq!(c.map(0, 0, DATA, true), 0);
        let fd = c.ram_fd.try_clone().unwrap();
        let (rom, only) = (DATA, DATA + 0x10000);
        for (flags, gpa) in [(1, rom), (2, only)] {
            let body = [words(&[32, flags]), longs(&[gpa, gpa, 0x10000])].concat();
            let fds: &[BorrowedFd<'_>] = if shared { &[fd.as_fd()] } else { &[] };
            assert_eq!(c.ask(command::DMA_MAP, &body, fds).errno, 0);
        }
        c.enable();
        let mut q = c.create(1, 16);
        let list = 0x600000;
        c.put(rom, &[0x5a; 0x10000]);
        // From ROM, and not into it; a part of a transfer is as bad as all of it, and nothing lands.
        assert!(c.run(&mut q, rw(true, 0, 16, rom, rom + 0x1000)).status().is_success());
        for sqe in [
            rw(false, 0, 8, rom, 0),
            rw(false, 0, 16, 0x500000, rom),
            rw(false, 0, 16, rom + 0x1000, 0x500000),
            rw(true, 0, 8, only, 0),
            rw(true, 0, 16, rom, only),
        ] {
            assert_eq!(c.run(&mut q, sqe).status().code(), TRANSFER, "{:?}", sqe.dptr);
        }
        assert_eq!(c.get(rom, 0x10000), vec![0x5a; 0x10000]);
        // Lists lie in what can be read.
        c.put(rom, &longs(&[0x500000, 0x501000]));
        assert!(c.run(&mut q, rw(true, 0, 24, list, rom)).status().is_success());
        c.put(only, &longs(&[0x500000, 0x501000]));
        assert_eq!(c.run(&mut q, rw(true, 0, 24, list, only)).status().code(), TRANSFER);
        // Into what can only be written.
        c.put(0x500000, &[0x77; 4096]);
        assert!(c.run(&mut q, rw(true, 0, 8, 0x500000, 0)).status().is_success());
        assert!(c.run(&mut q, rw(false, 0, 8, only + 0x1000, 0)).status().is_success());
        assert_eq!(c.get(only + 0x1000, 4096), [0x77; 4096]);
        // A queue lies in neither, nor in both.
        for base in [rom, only, only - 4096] {
            for opc in [1, 5] {
                let sqe =
                    Sqe { opc, dptr: [base, 0], cdw10: 127 << 16 | 2, cdw11: 1 << 16 | 1, ..Sqe::default() };
                assert_eq!(c.admin(sqe).status().code(), Status::INVALID_FIELD);
            }
        }
        // Identify into ROM.
        let identify = Sqe { opc: 6, cdw10: 1, dptr: [rom, 0], ..Sqe::default() };
        assert_eq!(c.admin(identify).status().code(), TRANSFER);
        neighbour.is_well();
    }
}
