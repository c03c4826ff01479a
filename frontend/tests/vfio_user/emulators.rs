//! What once was a real bug in other emulators, on PCIe: each is a line of its own. Lists, doorbells and queues have theirs
//! among G.72 to G.84.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use frontend::{Doorbells, Namespace};
use nvme_proto::command::SqeFlags;
use nvme_proto::feature::FeatureId as Fid;
use nvme_proto::log::{GetLogPage, LogId};
use nvme_proto::register::offset;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{self, Client, DATA, Queue, rw};
use crate::parked::Parked;
use crate::rig::Rig;
use crate::stall::Stall;

/// Blocks of the rig's namespace.
const BLOCKS: u64 = (64 << 20) / 512;

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::yield_now();
    }
}

/// NLB FFFFh is 65,536 blocks and not none; SLBA and NLB add up beyond 64 bits, and multiplied by a block's bytes too.
#[test]
fn ranges_at_every_edge() {
    let rig = Rig::new("edges", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    for opc in [1u8, 2, 5, 8, 0x0c] {
        for (slba, nlb_z) in [
            (BLOCKS, 0),
            (BLOCKS - 1, 1),
            (1, 0xffff_u32),
            (u64::MAX, 0),
            (u64::MAX, 0xffff),
            (u64::MAX - 0xffff, 0xffff),
            (u64::MAX / 512, 0),
            (u64::MAX / 512 + 1, 0),
            (1 << 55, 7),
            (1 << 63, 0xffff),
        ] {
            let mut sqe = Sqe { opc, nsid: 1, dptr: [DATA, 0], cdw12: nlb_z, ..Sqe::default() };
            sqe.set_slba(slba);
            let status = c.run(&mut q, sqe).status();
            // 32 MiB are there: too much for one transfer, and not for one that moves nothing.
            let want = match (slba, opc) {
                (1, 8) => Status::SUCCESS,
                (1, _) => Status::INVALID_FIELD.dnr(),
                _ => Status::LBA_OUT_OF_RANGE.dnr(),
            };
            assert_eq!(status, want, "{opc:#x} {slba:#x} {nlb_z:#x}");
        }
    }
    neighbour.is_well();
}

/// SGLs of admin commands and fused admin commands are refused; metadata pointers mean nothing where there is no metadata,
/// and protection information is refused (B.24, E.27, E.62).
#[test]
fn e62_what_a_command_may_not_ask_for() {
    let rig = Rig::new("e62", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    let invalid = Status::INVALID_FIELD.dnr();
    let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
    for opc in [0, 1, 2, 4, 5, 6, 9, 0xa] {
        for flags in [1u8, 2, 3].map(|psdt| SqeFlags::new().with_psdt(psdt)) {
            assert_eq!(c.admin(Sqe { opc, flags, ..identify }).status(), invalid, "{opc:#x} {flags:?}");
        }
        for flags in [1u8, 2, 3].map(|fuse| SqeFlags::new().with_fuse(fuse)) {
            assert_eq!(c.admin(Sqe { opc, flags, ..identify }).status(), invalid, "{opc:#x} {flags:?}");
        }
    }
    let flags = SqeFlags::new().with_psdt(3);
    assert_eq!(c.run(&mut q, Sqe { flags, ..rw(false, 0, 1, DATA, 0) }).status(), invalid);
    for mptr in [1, 0xfebd_0000, u64::MAX] {
        for write in [true, false] {
            let sqe = Sqe { mptr, cdw14: u32::MAX, cdw15: u32::MAX, ..rw(write, 0, 1, DATA, 0) };
            assert_eq!(c.run(&mut q, sqe).status(), Status::SUCCESS);
            for prinfo in 26..30 {
                let sqe = Sqe { cdw12: 1 << prinfo, ..sqe };
                assert_eq!(c.run(&mut q, sqe).status(), Status::SUCCESS, "{prinfo}");
            }
        }
    }
    neighbour.is_well();
}

/// 256 ranges, each over the end; none of them, and nothing of what lies before, is deallocated.
#[test]
fn deallocations_over_the_end() {
    let rig = Rig::new("over-the-end", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    c.put(DATA, &[0x5a; 4096]);
    assert!(c.run(&mut q, rw(true, BLOCKS - 8, 8, DATA, 0)).status().is_success());
    let range = |lba: u64, blocks: u32| [&[0; 4], &blocks.to_le_bytes()[..], &lba.to_le_bytes()].concat();
    let dsm = Sqe { opc: 9, nsid: 1, cdw10: 255, cdw11: 4, dptr: [DATA, 0], ..Sqe::default() };
    for (lba, blocks) in [(BLOCKS - 1, 2), (BLOCKS - 8, u32::MAX), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
        c.put(DATA, &range(lba, blocks).repeat(256));
        assert_eq!(c.run(&mut q, dsm).status(), Status::LBA_OUT_OF_RANGE.dnr());
    }
    c.put(DATA, &[range(BLOCKS - 8, 8).repeat(255), range(BLOCKS - 1, 2)].concat());
    assert_eq!(c.run(&mut q, dsm).status(), Status::LBA_OUT_OF_RANGE.dnr());
    assert!(c.run(&mut q, rw(false, BLOCKS - 8, 8, DATA, 0)).status().is_success());
    assert_eq!(c.get(DATA, 4096), [0x5a; 4096]);
    // The list's own memory: not there, and by a list that names nothing.
    for prp in [[1 << 40, 0], [DATA + 4092, 1 << 40], [DATA + 4092, 0x3004]] {
        assert!(!c.run(&mut q, Sqe { dptr: prp, ..dsm }).status().is_success());
    }
    neighbour.is_well();
}

/// Write protection comes and goes, and the namespace itself, while writes are under way.
#[test]
fn namespaces_that_change_under_io() {
    let rig = Rig::new("under-io", Doorbells::Mapped);
    let subsystem = rig.handle().controller().subsystem().clone();
    let volume = backend::ram::RamVolume::new(512, 4096).unwrap();
    let again =
        || Namespace { nsid: 5, uuid: [5; 16], nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.add(5, volume.clone());
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let protect = |value| Sqe {
        opc: 9,
        nsid: 5,
        cdw10: Fid::NamespaceWriteProtection.0.into(),
        cdw11: value,
        ..Sqe::default()
    };
    let refused = [Status::NAMESPACE_WRITE_PROTECTED.dnr(), Status::INVALID_NAMESPACE_OR_FORMAT.dnr()];
    // The feature's word, and whether a write after it is taken.
    for round in 0..60 {
        let queue = |c: &mut Client, q: &mut Queue| {
            for i in 0..40 {
                c.submit(q, Sqe { nsid: 5, ..rw(true, i * 8, 8, DATA, 0) });
            }
        };
        queue(&mut c, &mut q);
        match round % 3 {
            0 => assert!(c.admin(protect(1)).status().is_success()),
            1 => assert!(c.admin(protect(0)).status().is_success()),
            _ => {
                let drain = subsystem.remove_namespace(5).unwrap();
                (0..40).for_each(|_| {
                    let status = c.wait(&mut q).status();
                    assert!(
                        status.is_success()
                            || refused.contains(&status)
                            || status.code() == Status::INVALID_FIELD,
                        "{status:?}"
                    );
                });
                assert!(drain.wait(Duration::from_secs(20)));
                subsystem.add_namespace(again()).unwrap();
                until("it is there again", || {
                    c.run(&mut q, Sqe { nsid: 5, ..rw(false, 0, 8, DATA, 0) }).status().is_success()
                });
                continue;
            }
        }
        for _ in 0..40 {
            let status = c.wait(&mut q).status();
            assert!(status.is_success() || status == refused[0], "{status:?}");
        }
        let after = c.run(&mut q, Sqe { nsid: 5, ..rw(true, 0, 8, DATA, 0) }).status();
        assert_eq!(after.is_success(), round % 3 == 1, "{after:?}");
    }
    neighbour.is_well();
}

/// More event requests than AERL, an Abort of each of them, of queues that are not there, and of itself.
#[test]
fn events_and_aborts_without_end() {
    let rig = Rig::new("events", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut admin = std::mem::replace(&mut c.admin, client::none());
    let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
    assert!(c.run(&mut admin, identify).status().is_success());
    let most = usize::from(c.get(DATA + 259, 1)[0]) + 1;
    let waiting: Vec<u16> =
        (0..most).map(|_| c.submit(&mut admin, Sqe { opc: 0x0c, ..Sqe::default() })).collect();
    for _ in 0..200 {
        let status = c.run(&mut admin, Sqe { opc: 0x0c, ..Sqe::default() }).status();
        assert_eq!(status.code(), Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED);
    }
    for sqid in [1u32, 2, 256, 257, 65535] {
        for cid in [0u32, 1, 65535] {
            let cqe = c.run(&mut admin, Sqe { opc: 8, cdw10: cid << 16 | sqid, ..Sqe::default() });
            assert_eq!(cqe.dw0 & 1, 1, "nothing was aborted");
        }
    }
    for cid in waiting {
        let abort = c.submit(&mut admin, Sqe { opc: 8, cdw10: u32::from(cid) << 16, ..Sqe::default() });
        let ended = c.wait(&mut admin);
        assert_eq!((ended.cid, ended.status().code()), (cid, Status::ABORT_REQUESTED));
        let answered = c.wait(&mut admin);
        assert_eq!((answered.cid, answered.dw0 & 1), (abort, 0));
    }
    c.admin = admin;
    neighbour.is_well();
}

/// Logs read beyond their end, by any offset: QEMU gave its heap away so.
#[test]
fn logs_beyond_their_end() {
    let rig = Rig::new("logs", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    for lid in 0..=255u8 {
        for at in [4096u64, 65536, 1 << 32, u64::MAX - 3, u64::MAX - 4095, 2] {
            c.put(DATA, &[0xee; 4096]);
            let mut sqe = Sqe { opc: 2, dptr: [DATA, 0], ..Sqe::default() };
            GetLogPage::new(LogId(lid), at, 4096).put(&mut sqe);
            let cqe = c.admin(sqe);
            let bytes = c.get(DATA, 4096);
            // What lies beyond a page's end is zero, or refused and not written.
            let quiet = bytes.iter().all(|b| *b == 0) || bytes.iter().all(|b| *b == 0xee);
            assert!(quiet || cqe.status().is_success() && at == 4096, "{lid:#x} {at:#x}");
            if at > 1 << 20 {
                assert!(!cqe.status().is_success(), "{lid:#x} {at:#x}");
            }
        }
    }
    // More than there is of any page, and more than one transfer.
    for numd in [0xffff_u32, 0xffff_ffff] {
        let sqe = Sqe { opc: 2, dptr: [DATA, 0], cdw10: numd << 16 | 2, cdw11: numd >> 16, ..Sqe::default() };
        assert!(!c.admin(sqe).status().is_success() || numd == 0xffff);
    }
    neighbour.is_well();
}

/// CC.SHN: SHST says complete when everything that hosts wrote is on the media, and no earlier.
#[test]
fn a_shutdown_waits_for_its_flushes() {
    let rig = Rig::new("shutdown", Doorbells::Trapped);
    let volume = Stall::new(true);
    rig.add(7, volume.clone());
    let mut neighbour = rig.neighbour();
    for abrupt in [false, true] {
        let mut c = rig.host();
        let shn = if abrupt { 2 << 14 } else { 1 << 14 };
        c.post(offset::CC.into(), shn | 4 << 20 | 6 << 16 | 1);
        until("a flush is out", || volume.held() == 1);
        assert_eq!(c.register(offset::CSTS) >> 2 & 3, 1, "shutdown is occurring");
        neighbour.is_well();
        volume.release(Ok(()));
        c.wait_csts(0xc, 0x8);
        assert_eq!(c.register(offset::CSTS) & 2, 0);
    }
    // A shutdown that is complete keeps no namespace for the 15 s that it might have taken.
    drop(neighbour);
    let drain = rig.handle().controller().subsystem().remove_namespace(7).unwrap();
    assert!(drain.wait(Duration::from_secs(10)), "the shutdown holds the namespace");
}

/// A namespace can be taken away while a shutdown waits for its flush, which is then not waited for.
#[test]
fn a_namespace_goes_in_the_middle_of_a_shutdown() {
    let rig = Rig::new("shutdown-gone", Doorbells::Trapped);
    let volume = Arc::new(Parked::default());
    rig.add(7, volume.clone());
    let mut c = rig.host();
    c.post(offset::CC.into(), 1 << 14 | 4 << 20 | 6 << 16 | 1);
    until("a flush is out", || volume.has.load(Ordering::SeqCst) == 1);
    let drain = rig.handle().controller().subsystem().remove_namespace(7).unwrap();
    assert!(drain.wait(Duration::from_secs(10)), "the shutdown holds the namespace");
    c.wait_csts(0xc, 0x8);
    assert_eq!(c.register(offset::CSTS) & 2, 0, "nothing failed");
}

/// Identifiers used twice are the host's matter: both commands are answered.
#[test]
fn identifiers_used_twice() {
    let rig = Rig::new("twice", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    // Each in its place, with the same name: FFFFh too.
    for cid in [7, 0xffff] {
        for i in 0..30u64 {
            let at = c.place_at(&mut q);
            c.put(at, Sqe { cid, ..rw(i % 2 == 0, i, 1, DATA, 0) }.as_bytes());
        }
        let sqe = rw(false, 0, 1, DATA, 0);
        let last = c.submit(&mut q, sqe);
        let mut seen: Vec<u16> = (0..31).map(|_| c.wait(&mut q).cid).collect();
        seen.sort_unstable();
        let mut want = vec![cid; 30];
        want.push(last);
        want.sort_unstable();
        assert_eq!(seen, want);
    }
    // An Abort of a name that many have.
    let abort = Sqe { opc: 8, cdw10: 7 << 16 | 1, ..Sqe::default() };
    assert!(c.admin(abort).status().is_success());
    neighbour.is_well();
}
