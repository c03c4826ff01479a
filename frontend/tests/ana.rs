//! Asymmetric namespace access over TCP: what the controllers of a listener tell and refuse when its state changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::stall::Stall;
use common::{Host, Rig, SUBNQN, pattern, rw};
use frontend::AccessState::{self, Inaccessible, NonOptimized, Optimized};
use frontend::Namespace;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::log::{AnaGroupDescriptor, AnaHeader, AnaState, GetLogPage, LogId};
use nvme_proto::register::offset;
use nvme_proto::tcp::{PduType, R2t};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Nqn, Sqe, Status};

const ANA_CHANGED: u32 = 0x0c_0302;
const INACCESSIBLE: Status = Status::ASYMMETRIC_ACCESS_INACCESSIBLE;
/// The command of the host's that awaits an event.
const AWAITS: u16 = 999;

fn another_way(rig: &Rig) -> SocketAddr {
    rig.target.listen("127.0.0.1:0".parse().unwrap(), &rig.subsystem).unwrap()
}

fn connect(addr: SocketAddr) -> (Host, Host) {
    let mut admin = Host::open(addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let mut io = Host::open(addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    (admin, io)
}

/// Wants ANA Change notices.
fn want(admin: &mut Host) {
    let sqe = Sqe { opc: 9, cdw10: 0xb, cdw11: 1 << 11, ..Sqe::default() };
    assert!(admin.run(sqe, &[], 0).0.status().is_success());
    listen(admin);
}

fn listen(admin: &mut Host) {
    let mut aer = Sqe { opc: 0xc, cid: AWAITS, ..Sqe::default() };
    aer.set_sgl(SglDescriptor::transport(0));
    let capsule = admin.capsule(aer, &[]);
    admin.send(&capsule);
}

fn told(admin: &mut Host) {
    let (cqe, _) = admin.complete(&[]);
    assert_eq!((cqe.cid, cqe.dw0), (AWAITS, ANA_CHANGED));
    listen(admin);
}

/// Every shard has heard of what was done so far.
fn settle(rig: &Rig) {
    for _ in 0..3 {
        for shard in rig.shards.handles() {
            shard.call(|_| ());
        }
    }
}

/// Nothing was told, and nothing is on its way: the next answer is that of a command of now.
fn told_nothing(rig: &Rig, admin: &mut Host) {
    settle(rig);
    admin.property_get(offset::CSTS, 0);
}

fn set(rig: &Rig, addr: SocketAddr, state: AccessState) {
    assert!(rig.target.set_access(addr, &Nqn::new(SUBNQN).unwrap(), None, state));
    settle(rig);
}

/// The change count and the state of the only group; `rae` retains the event.
fn ana_log(admin: &mut Host, rae: bool) -> (u64, AnaState) {
    let mut sqe = Sqe { opc: 2, nsid: 0xffff_ffff, ..Sqe::default() };
    GetLogPage { rae, ..GetLogPage::new(LogId::Ana, 0, 64) }.put(&mut sqe);
    let (cqe, page) = admin.run(sqe, &[], 64);
    assert!(cqe.status().is_success(), "{:?}", cqe.status());
    let header = AnaHeader::read_from_bytes(&page[..16]).unwrap();
    let group = AnaGroupDescriptor::read_from_bytes(&page[16..48]).unwrap();
    assert_eq!((header.nanagrpd, group.anagrpid, group.chgcnt), (1, 1, header.chgcnt));
    assert_eq!(u32::from_le_bytes(page[48..52].try_into().unwrap()), 1, "the first NSID");
    (header.chgcnt, group.state)
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the writer whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_way_goes_and_comes_under_writes_and_none_is_lost() {
    const BLOCKS: u64 = 2048;
    let rig = Rig::new();
    let (here, there) = (rig.addr, another_way(&rig));
    let ((mut admin, mut io), (mut other, mut other_io)) = (connect(here), connect(there));
    want(&mut admin);
    want(&mut other);
    let (stop, by_here, by_there) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = vec![None; BLOCKS as usize];
            for seed in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let lba = seed * 37 % BLOCKS;
                // Small ones come in capsules, the others are asked for.
                let blocks = if seed % 5 == 0 { 32 } else { 1 }.min(BLOCKS - lba);
                let data = pattern(seed, blocks as usize * 512);
                let status = io.write(lba, &data).status();
                if status.is_success() {
                    by_here.fetch_add(1, Ordering::Relaxed);
                } else {
                    assert_eq!(status, INACCESSIBLE, "and it may be sent again");
                    assert_eq!(other_io.write(lba, &data).status(), Status::SUCCESS);
                    by_there.fetch_add(1, Ordering::Relaxed);
                }
                for (at, block) in data.chunks(512).enumerate() {
                    written[lba as usize + at] = Some(block.to_vec());
                }
            }
            (written, other_io)
        });
        let stop = Stop(&stop);
        let more = |count: &AtomicU64| {
            let before = count.load(Ordering::Relaxed);
            until(|| count.load(Ordering::Relaxed) > before + 50 || writer.is_finished());
        };
        for round in 0..3 {
            more(&by_here);
            set(&rig, here, Inaccessible);
            told(&mut admin);
            assert_eq!(ana_log(&mut admin, false), (3 * round + 1, AnaState::Inaccessible));
            more(&by_there);
            set(&rig, here, NonOptimized);
            told(&mut admin);
            assert_eq!(ana_log(&mut admin, false), (3 * round + 2, AnaState::NonOptimized));
            more(&by_here);
            set(&rig, here, Optimized);
            told(&mut admin);
            assert_eq!(ana_log(&mut admin, false), (3 * round + 3, AnaState::Optimized));
        }
        told_nothing(&rig, &mut admin);
        told_nothing(&rig, &mut other);
        assert_eq!(ana_log(&mut other, false), (0, AnaState::Optimized), "the other way is as it was");
        drop(stop);
        let (written, mut other_io) = writer.join().unwrap();
        for (lba, block) in written.into_iter().enumerate() {
            if let Some(block) = block {
                assert!(other_io.read(lba as u64, 512).1 == block, "block {lba}");
            }
        }
    });
}

#[test]
fn a_change_is_told_once_until_the_log_is_read() {
    let rig = Rig::new();
    let ((mut admin, _io), (mut deaf, _deaf_io)) = (rig.connect(0), rig.connect(0));
    want(&mut admin);
    listen(&mut deaf);
    set(&rig, rig.addr, Optimized);
    told_nothing(&rig, &mut admin);
    set(&rig, rig.addr, Inaccessible);
    told(&mut admin);
    for (count, state) in [(2, Optimized), (3, Inaccessible)] {
        set(&rig, rig.addr, state);
        told_nothing(&rig, &mut admin);
        assert_eq!(ana_log(&mut admin, true), (count, state.into()), "the event is retained");
    }
    assert_eq!(ana_log(&mut admin, false).0, 3);
    set(&rig, rig.addr, Inaccessible);
    told_nothing(&rig, &mut admin);
    set(&rig, rig.addr, NonOptimized);
    told(&mut admin);
    // Who did not ask hears nothing, and finds the same.
    told_nothing(&rig, &mut deaf);
    assert_eq!(ana_log(&mut deaf, false), (4, AnaState::NonOptimized));
    // A reset lets the count begin again, and leaves the state; so does who comes now find it.
    deaf.property_set(offset::CC, 0x46_0000);
    let (cqe, _) = deaf.complete(&[]);
    assert_eq!((cqe.cid, cqe.status()), (AWAITS, Status::ABORT_REQUESTED));
    deaf.wait_csts(1, 0);
    deaf.enable();
    assert_eq!(ana_log(&mut deaf, false), (0, AnaState::NonOptimized));
    set(&rig, rig.addr, Inaccessible);
    let (mut late, mut late_io) = rig.connect(0);
    assert_eq!(ana_log(&mut late, false), (0, AnaState::Inaccessible));
    assert_eq!(late_io.read(0, 512).0.status(), INACCESSIBLE);
    // Shown there again, it is as it was.
    rig.target.listen(rig.addr, &rig.subsystem).unwrap();
    assert_eq!(rig.connect(0).1.read(0, 512).0.status(), INACCESSIBLE);
}

#[test]
fn what_is_refused_by_an_inaccessible_way_and_what_is_not() {
    let rig = Rig::new();
    let there = another_way(&rig);
    let ((mut admin, mut io), (_other, mut other_io)) = (rig.connect(0), connect(there));
    let identify = |admin: &mut Host, cns: u32, nsid: u32| {
        let (cqe, page) = admin.run(Sqe { opc: 6, nsid, cdw10: cns, ..Sqe::default() }, &[], 4096);
        assert!(cqe.status().is_success());
        page
    };
    assert_eq!(identify(&mut admin, 1, 0)[343], 0b100_0111, "ANACAP: these three states, groups that stay");
    let before = identify(&mut admin, 0, 1);
    set(&rig, rig.addr, Inaccessible);
    let data = pattern(1, 4096);
    for opc in [1, 5] {
        assert_eq!(io.run(rw(opc, 0, 4096), &data, 0).0.status(), INACCESSIBLE, "opcode {opc}");
    }
    assert_eq!(io.write(0, &pattern(2, 64 << 10)).status(), INACCESSIBLE, "nor is its data asked for");
    let of = |opc: u8, nsid: u32| Sqe { opc, nsid, ..Sqe::default() };
    for sqe in [rw(2, 0, 512), rw(8, 0, 512), rw(0xc, 0, 512), of(0, 1), of(0, u32::MAX), of(0xe, 1)] {
        assert_eq!(io.run(sqe, &[], 64).0.status(), INACCESSIBLE, "{sqe:?}");
    }
    assert_eq!(io.run(of(9, 1), &[0; 16], 0).0.status(), INACCESSIBLE, "deallocate");
    assert_eq!(io.run(of(0xd, 1), &[0; 16], 0).0.status(), INACCESSIBLE, "register");
    assert_eq!(io.run(of(0x7c, 1), &[], 0).0.status(), Status::INVALID_OPCODE.dnr());
    assert_eq!(io.run(of(2, 9), &[], 512).0.status(), Status::INVALID_FIELD.dnr());

    let after = identify(&mut admin, 0, 1);
    assert_eq!(before[..16], after[..16], "NSZE and NCAP");
    assert_eq!((&after[16..24], &after[48..64]), (&[0; 8][..], &[0; 16][..]), "NUSE and NVMCAP");
    assert_ne!((&before[16..24], &before[48..64]), (&[0; 8][..], &[0; 16][..]));
    let feature = |admin: &mut Host, opc: u8, fid: u32, nsid: u32| {
        admin.run(Sqe { cdw10: fid, ..of(opc, nsid) }, &[], 0).0.status()
    };
    for (opc, fid, nsid, status) in [
        (0xa, 0x05, 1, INACCESSIBLE),
        (0xa, 0x82, 1, INACCESSIBLE),
        (0xa, 0x83, 1, INACCESSIBLE),
        (9, 0x05, 1, INACCESSIBLE),
        (9, 0x82, u32::MAX, INACCESSIBLE),
        (9, 0x84, u32::MAX, INACCESSIBLE),
        (0xa, 0x84, 1, Status::SUCCESS),
        (0xa, 0x07, 0, Status::SUCCESS),
        (9, 0x0b, 0, Status::SUCCESS),
    ] {
        assert_eq!(feature(&mut admin, opc, fid, nsid), status, "opcode {opc}, feature {fid:#x}");
    }
    let mut smart = of(2, u32::MAX);
    GetLogPage::new(LogId::Smart, 0, 512).put(&mut smart);
    assert_eq!(admin.run(smart, &[], 512).0.status(), Status::SUCCESS);
    assert_eq!(other_io.read(0, 4096).1, vec![0; 4096], "nothing was written");
    set(&rig, rig.addr, Optimized);
    assert_eq!(io.write(0, &data).status(), Status::SUCCESS);
    assert_eq!(identify(&mut admin, 0, 1), before);
}

#[test]
fn what_is_with_the_volume_ends_well_and_what_waits_for_its_data_is_refused() {
    const STALLED: u32 = 7;
    let rig = Rig::new();
    let volume = Stall::new(true);
    let (uuid, nguid, eui64) = ([7; 16], [0; 16], [0; 8]);
    let namespace = Namespace { nsid: STALLED, uuid, nguid, eui64, volume: volume.clone() };
    rig.subsystem.add_namespace(namespace).unwrap();
    settle(&rig);
    let (_admin, mut io) = rig.connect(0);
    let mut at_work = Sqe { cid: 100, nsid: STALLED, ..rw(1, 0, 512) };
    at_work.set_sgl(SglDescriptor::in_capsule(512));
    let bytes = io.capsule(at_work, &pattern(1, 512));
    io.send(&bytes);
    until(|| volume.held() == 1);
    let data = pattern(2, 32 << 10);
    let mut waits = Sqe { cid: 101, ..rw(1, 0, data.len()) };
    waits.set_sgl(SglDescriptor::transport(data.len() as u32));
    let bytes = io.capsule(waits, &[]);
    io.send(&bytes);
    let asked = io.receive().unwrap();
    assert_eq!(asked.ch.pdu_type, PduType::R2t);
    let mut registers = Sqe { opc: 0xd, nsid: 1, cid: 102, ..Sqe::default() };
    registers.set_sgl(SglDescriptor::transport(16));
    let bytes = io.capsule(registers, &[]);
    io.send(&bytes);
    let asked_too = io.receive().unwrap();
    set(&rig, rig.addr, Inaccessible);
    for (asked, cid) in [(asked, 101), (asked_too, 102)] {
        for bytes in io.h2c(&asked.read::<R2t>(), &data, 32 << 10) {
            io.send(&bytes);
        }
        let (cqe, _) = io.complete(&[]);
        assert_eq!((cqe.cid, cqe.status()), (cid, INACCESSIBLE));
    }
    assert_eq!((volume.held(), volume.revoked()), (1, 0));
    volume.release(Ok(()));
    let (cqe, _) = io.complete(&[]);
    assert_eq!((cqe.cid, cqe.status()), (100, Status::SUCCESS));
    set(&rig, rig.addr, Optimized);
    assert_eq!(io.read(0, data.len()).1, vec![0; data.len()], "it was not written");
}

#[test]
fn a_fused_pair_is_refused_as_one() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    set(&rig, rig.addr, Inaccessible);
    for (opc, fuse, cid) in [(5, 1, 200), (1, 2, 201)] {
        let sqe = rw(opc, 0, 512);
        let mut sqe = Sqe { cid, flags: sqe.flags.with_fuse(fuse), ..sqe };
        sqe.set_sgl(SglDescriptor::in_capsule(512));
        let bytes = io.capsule(sqe, &pattern(3, 512));
        io.send(&bytes);
    }
    let mut ended: Vec<_> = (0..2).map(|_| io.complete(&[]).0).map(|cqe| (cqe.cid, cqe.status())).collect();
    ended.sort_by_key(|(cid, _)| *cid);
    assert_eq!(ended, [(200, INACCESSIBLE), (201, Status::ABORTED_FAILED_FUSED)]);
}
