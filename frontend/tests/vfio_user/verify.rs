//! Verify (E.57), and what the error and health logs say of commands that fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use backend::ram::RamVolume;
use engine::IoError;
use engine::stats;
use frontend::Doorbells;
use middleend::fault::{Effect, FaultVolume, Faults, Kind, Rule};
use nvme_proto::log::{ErrorEntry, GetLogPage, LogId, Smart};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Sqe, Status};

use crate::abort::{rig, until};
use crate::client::{Client, DATA, rw};
use crate::rig::Rig;

fn verify(lba: u64, blocks: u32) -> Sqe {
    Sqe { opc: 0x0c, ..rw(false, lba, blocks, 0, 0) }
}

/// A rig whose blocks 1000 to 1007 cannot be read, nor 2000 to 2007 written.
fn faulty(name: &str) -> Rig {
    let rule = |kind, lbas, error| Rule { lbas, ..Rule::new(&[kind], Effect::Fail(error)) };
    let rules = vec![
        rule(Kind::Read, 1000..1008, IoError::ReadFault),
        rule(Kind::Write, 2000..2008, IoError::WriteFault),
    ];
    let below = RamVolume::new(512, (64 << 20) / 512).unwrap();
    let faults = Faults { rules, ..Faults::default() };
    Rig::over(name, Doorbells::Trapped, Arc::new(FaultVolume::new(below, faults)))
}

pub fn log_page<const N: usize>(c: &mut Client, lid: LogId) -> [u8; N] {
    let mut sqe = Sqe { opc: 2, dptr: [DATA + 0x7000, DATA + 0x8000], ..Sqe::default() };
    GetLogPage::new(lid, 0, N as u32).put(&mut sqe);
    assert!(c.admin(sqe).status().is_success());
    c.get(DATA + 0x7000, N).try_into().unwrap()
}

fn errors(c: &mut Client) -> Vec<ErrorEntry> {
    let page = log_page::<4096>(c, LogId::ErrorInformation);
    let entries = page.chunks(64).map(|e| ErrorEntry::read_from_bytes(e).unwrap());
    entries.take_while(|e| e.ecnt != 0).collect()
}

#[test]
fn e57_verify() {
    let rig = faulty("verify");
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let oncs = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
    assert!(c.admin(oncs).status().is_success());
    assert_ne!(c.get(DATA + 520, 2)[0] & 0x80, 0, "ONCS.NVMVFYS");
    assert!(c.admin(Sqe { cdw10: 6, ..oncs }).status().is_success());
    let vsl = c.get(DATA, 1)[0];
    let most = (4096u32 << vsl) / 512;
    let mut status = |sqe| c.run(&mut q, sqe).status();
    assert_eq!(status(verify(0, 1)), Status::SUCCESS);
    assert_eq!(status(verify(3000, most)), Status::SUCCESS, "in many pieces");
    assert_eq!(status(verify(3000, most + 1)), Status::INVALID_FIELD.dnr(), "beyond VSL");
    assert_eq!(status(verify((64 << 20) / 512 - 1, 2)), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(status(verify(u64::MAX, 0x10000)), Status::LBA_OUT_OF_RANGE.dnr());
    let checks = Sqe { cdw12: 1 << 28, ..verify(0, 1) };
    assert_eq!(status(checks), Status::SUCCESS, "there is no protection information to check");
    assert_eq!(status(Sqe { nsid: 0, ..verify(0, 1) }), Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
    assert_eq!(status(verify(1007, 1)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(status(verify(1008, 1)), Status::SUCCESS);
    assert_eq!(status(verify(100, 2000)), Status::UNRECOVERED_READ_ERROR, "in a later piece");
    let entry = errors(&mut c)[0];
    assert!((100 + 256..=1000).contains(&entry.lba), "the piece that failed: {}", entry.lba);
}

#[test]
fn e57_one_verify_of_a_queue_at_a_time_and_each_can_be_aborted() {
    let (rig, volume) = rig("verifies");
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let cids: Vec<u16> = (0..8).map(|i| c.submit(&mut q, verify(i * 512, 512))).collect();
    // Others pass them.
    let read = c.submit(&mut q, rw(false, 0, 8, DATA, 0));
    until(|| volume.has.load(Ordering::SeqCst) == 2);
    for cid in [cids[5], cids[0], cids[1], read] {
        let abort = Sqe { opc: 8, cdw10: u32::from(cid) << 16 | 1, ..Sqe::default() };
        assert_eq!(c.admin(abort).dw0, 0);
        let cqe = c.wait(&mut q);
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::ABORT_REQUESTED));
    }
    until(|| volume.has.load(Ordering::SeqCst) == 1);
    // The queue goes with the rest.
    assert!(c.admin(Sqe { cdw10: 1, ..Sqe::default() }).status().is_success());
    let mut left: Vec<u16> = (0..5).map(|_| c.wait(&mut q).cid).collect();
    left.sort_unstable();
    assert_eq!(left, [2, 3, 4, 6, 7].map(|i| cids[i]));
    assert_eq!(volume.has.load(Ordering::SeqCst), 0);
}

#[test]
fn e53_failed_commands_are_in_the_error_log_and_media_errors_are_counted() {
    let rig = faulty("errors");
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    assert_eq!(errors(&mut c).len(), 0);
    let mut expected = Vec::new();
    let none = 0xffff;
    let end = (64 << 20) / 512;
    for (sqe, status, lba, pel) in [
        (Sqe { opc: 0x7e, ..rw(false, 5, 1, DATA, 0) }, Status::INVALID_OPCODE.dnr(), 0, 0),
        (Sqe { nsid: 77, ..rw(false, 5, 1, DATA, 0) }, Status::INVALID_NAMESPACE_OR_FORMAT.dnr(), 5, 4),
        (rw(false, end, 1, DATA, 0), Status::LBA_OUT_OF_RANGE.dnr(), end, 40),
        (Sqe { cdw12: 1 << 21, ..rw(true, 9, 1, DATA, 0) }, Status::INVALID_FIELD.dnr(), 9, 5 << 8 | 50),
        (rw(false, 996, 8, DATA, 0), Status::UNRECOVERED_READ_ERROR, 996, none),
        (rw(true, 2000, 8, DATA, 0), Status::WRITE_FAULT, 2000, none),
    ] {
        let cqe = c.run(&mut q, sqe);
        assert_eq!(cqe.status(), status);
        expected.push((1, cqe.cid, sqe.nsid, sqe.opc, status, lba, pel));
    }
    let bad = c.admin(Sqe { opc: 6, cdw10: 0xfe, dptr: [DATA, 0], ..Sqe::default() });
    expected.push((0, bad.cid, 0, 6, Status::INVALID_FIELD.dnr(), 0, none));
    expected.reverse();
    let found: Vec<_> =
        errors(&mut c).iter().map(|e| (e.sqid, e.cid, e.nsid, e.opc, e.sts.status(), e.lba, e.pel)).collect();
    assert_eq!(found, expected);
    assert_eq!(errors(&mut c)[0].ecnt, 7, "the newest first");
    for _ in 0..100 {
        c.run(&mut q, rw(false, 1000, 1, DATA, 0));
    }
    let entries = errors(&mut c);
    assert_eq!((entries.len(), entries[0].ecnt, entries[63].ecnt), (64, 107, 44));
    let smart = Smart::read_from_bytes(&log_page::<512>(&mut c, LogId::Smart)).unwrap();
    assert_eq!((smart.mdie.get(), smart.pwrc.get()), (102, 1));
}

#[test]
fn e53_health_counts_what_hosts_did() {
    let rig = Rig::new("smart", Doorbells::Mapped);
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let list: Vec<u64> = (1..256).map(|page| DATA + page * 4096).collect();
    c.put(0x400000, &crate::client::longs(&list));
    for i in 0..3 {
        assert!(c.run(&mut q, rw(true, i * 2048, 2048, DATA, 0x400000)).status().is_success());
        assert!(c.run(&mut q, rw(false, 0, 8, DATA, 0)).status().is_success());
    }
    assert!(c.run(&mut q, Sqe { opc: 5, ..rw(false, 0, 8, DATA, 0) }).status().is_success());
    // In two pieces.
    assert!(c.run(&mut q, verify(0, 512)).status().is_success());
    c.put(0x600000, &crate::client::longs(&[8 << 32, 0, 8 << 32, 64, 8 << 32, 128]));
    let deallocate = Sqe { opc: 9, nsid: 1, cdw10: 2, cdw11: 4, dptr: [0x600000, 0], ..Sqe::default() };
    assert!(c.run(&mut q, deallocate).status().is_success());
    let refused = c.run(&mut q, Sqe { opc: 0x7e, ..rw(false, 0, 8, DATA, 0) });
    assert!(!refused.status().is_success());
    let smart = Smart::read_from_bytes(&log_page::<512>(&mut c, LogId::Smart)).unwrap();
    // Three reads and a compare of 4 KiB, a verify of 256 KiB; three writes of 1 MiB, in thousands of 512 bytes, rounded
    // up.
    assert_eq!((smart.hrc.get(), smart.dur.get()), (4, 1));
    assert_eq!((smart.hwc.get(), smart.duw.get()), (3, 7));
    assert_eq!((smart.neile.get(), smart.mdie.get(), smart.upl.get(), smart.cw.into_bits()), (1, 0, 0, 0));
    assert_eq!((smart.cbt.get(), smart.pwrc.get()), (0, 1), "less than a minute");
    let counted = rig.handle().controller().stats().snapshot();
    let of = |kind| (counted.of(kind).ops, counted.of(kind).bytes >> 9);
    assert_eq!(
        [stats::Kind::Verify, stats::Kind::Unmap, stats::Kind::Read].map(of),
        [(1, 512), (1, 24), (3, 24)],
        "commands, not pieces"
    );
    // What another controller's host did is not this one's, and what was done stays when the namespace goes.
    rig.neighbour().is_well();
    rig.handle().controller().subsystem().remove_namespace(1).unwrap();
    let later = Smart::read_from_bytes(&log_page::<512>(&mut c, LogId::Smart)).unwrap();
    assert_eq!((later.hrc.get(), later.hwc.get(), later.duw.get()), (4, 3, 7));
    // Of the controller as a whole, not of a namespace.
    let mut sqe = Sqe { opc: 2, nsid: 1, dptr: [DATA, 0], ..Sqe::default() };
    GetLogPage::new(LogId::Smart, 0, 512).put(&mut sqe);
    assert_eq!(c.admin(sqe).status(), Status::INVALID_FIELD.dnr());
}
