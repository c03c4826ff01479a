//! What the specifications demand of registers, features and Identify that no driver here misses, and a program that
//! checks conformance does.

use std::sync::Arc;
use std::time::Duration;

use backend::ram::RamVolume;
use engine::stats::Kind;
use engine::{IoError, Volume};
use frontend::Doorbells;
use middleend::fault::{FaultVolume, Faults};
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, command, rw};
use crate::rig::Rig;
use crate::stall::Stall;

const CC: u64 = 0x14;
const CSTS: u32 = 0x1c;
const ENABLED: u32 = 4 << 20 | 6 << 16 | 1;
/// CC.SHN of a normal shutdown.
const SHUTDOWN: u32 = 1 << 14;

/// Current value of a feature.
fn feature(c: &mut Client, fid: u32) -> u32 {
    let cqe = c.admin(Sqe { opc: 0xa, cdw10: fid, dptr: [DATA, 0], ..Sqe::default() });
    assert_eq!(cqe.status(), Status::SUCCESS);
    cqe.dw0
}

fn cached(below: &Arc<dyn Volume>) -> Arc<FaultVolume> {
    Arc::new(FaultVolume::new(below.clone(), Faults { volatile_cache: true, ..Faults::default() }))
}

/// A host looks once, and namespaces come later: it must flush what it did not know of then.
#[test]
fn identify_controller_tells_the_same_whatever_namespaces_there_are() {
    let rig = Rig::new("promises", Doorbells::Trapped);
    let subsystem = rig.handle().controller().subsystem().clone();
    let mut c = rig.host();
    let mut promises = || {
        let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
        assert_eq!(c.admin(identify).status(), Status::SUCCESS);
        // ONCS and FUSES, VWC, and then WCE.
        (c.get(DATA + 520, 4), c.get(DATA + 525, 1)[0], feature(&mut c, 6))
    };
    let (oncs_fuses, vwc, wce) = promises();
    assert_eq!((oncs_fuses[0] & 0b1101, oncs_fuses[2]), (0b1101, 1), "Compare, DSM, Write Zeroes; fused");
    assert_eq!((vwc & 1, wce), (1, 0), "a cache may be there; that of a medium in memory is not");
    subsystem.remove_namespace(1).unwrap();
    while promises().2 != 0 || !subsystem.namespaces().is_empty() {}
    assert_eq!(promises(), (oncs_fuses.clone(), vwc, 0));
    let below: Arc<dyn Volume> = RamVolume::new(512, 2048).unwrap();
    rig.add(2, cached(&below));
    assert_eq!(promises(), (oncs_fuses, vwc, 1), "WCE follows the medium");
}

/// FUA of what reads: what is read is on the medium.
#[test]
fn reads_with_fua_find_on_the_medium_what_they_read() {
    let below: Arc<dyn Volume> = RamVolume::new(512, 2048).unwrap();
    let rig = Rig::over("read-fua", Doorbells::Trapped, cached(&below));
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    let written = || below.stats().snapshot().of(Kind::Write).bytes;
    for (opcode, i) in [(2, 0), (5, 1), (0xc, 2)] {
        c.put(DATA, &[i + 1; 512]);
        assert_eq!(c.run(&mut q, rw(true, i.into(), 1, DATA, 0)).status(), Status::SUCCESS);
        assert_eq!(written(), u64::from(i) * 512, "in the cache");
        let plain = Sqe { opc: opcode, ..rw(false, i.into(), 1, DATA, 0) };
        assert_eq!(c.run(&mut q, plain).status(), Status::SUCCESS);
        assert_eq!(written(), u64::from(i) * 512, "and read from there");
        let fua = Sqe { cdw12: plain.cdw12 | 1 << 30, ..plain };
        assert_eq!(c.run(&mut q, fua).status(), Status::SUCCESS);
        assert_eq!(written(), u64::from(i + 1) * 512, "opcode {opcode:#x}");
        assert_eq!(c.get(DATA, 512), [i + 1; 512]);
    }
}

/// A shutdown whose flush ends after the controller was reset, or shut down once more, says nothing of what is now.
#[test]
fn a_late_end_of_a_shutdown_concerns_nobody() {
    let volume = Stall::new(false);
    let rig = Rig::over("late-shutdown", Doorbells::Trapped, volume.clone());
    let mut c = rig.host();
    let settle = |held: usize| {
        while volume.held() != held {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let end = || {
        volume.release(Err(IoError::WriteFault));
        settle(0);
    };
    // Reset, and enabled again.
    c.post(CC, ENABLED | SHUTDOWN);
    c.wait_csts(0xc, 4);
    settle(1);
    c.post(CC, 0);
    c.wait_csts(0xf, 0);
    c.enable();
    end();
    assert_eq!(c.register(CSTS), 1, "ready, and not failed");
    // Reset, and left so: the function's reset is complete.
    c.post(CC, ENABLED | SHUTDOWN);
    settle(1);
    c.post(CC, 0);
    c.wait_csts(0xf, 0);
    end();
    assert_eq!(c.register(CSTS), 0);
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    // Two at once: the first one's end is not the second's.
    c.enable();
    c.post(CC, ENABLED | SHUTDOWN);
    settle(1);
    c.post(CC, ENABLED);
    c.post(CC, ENABLED | SHUTDOWN);
    settle(2);
    assert_eq!(c.register(CSTS) & 0xc, 4);
    // Its own flush that fails is told.
    end();
    c.wait_csts(0xe, 0xa);
    // A shutdown of a controller that is disabled, and a reset that nothing is left of.
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    c.post(CC, SHUTDOWN);
    settle(1);
    end();
    c.wait_csts(0xf, 0xa);
    c.post(0x0c, u32::MAX);
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    assert_eq!([CSTS, CC as u32, 0x0c].map(|at| c.register(at)), [0, 0, 0], "as after power on");
}

#[test]
fn what_is_reserved_stays_zero_and_a_reset_leaves_nothing_of_cc() {
    let rig = Rig::new("reserved", Doorbells::Trapped);
    let mut c = rig.host();
    c.post(CC, ENABLED | 0xfe00_000e);
    assert_eq!(c.register(CC as u32), ENABLED);
    c.post(CC, ENABLED & !1);
    c.wait_csts(1, 0);
    assert_eq!(c.register(CC as u32), 0);
    c.post(0x24, u32::MAX);
    assert_eq!(c.register(0x24), 0x0fff_0fff);
    c.enable();
    let set = |fid, value| Sqe { opc: 9, cdw10: fid, cdw11: value, ..Sqe::default() };
    for (fid, kept) in [(1, 0xffff_ff07), (0xb, 0x093f)] {
        assert_eq!(c.admin(set(fid, u32::MAX)).status(), Status::SUCCESS);
        assert_eq!(feature(&mut c, fid), kept, "feature {fid:#x}");
    }
}

#[test]
fn number_of_queues_is_settled_by_a_completion_queue_alone() {
    let rig = Rig::new("queues-settled", Doorbells::Trapped);
    let mut c = rig.host();
    let ask = Sqe { opc: 9, cdw10: 7, cdw11: 3 << 16 | 3, ..Sqe::default() };
    assert_eq!(c.admin(ask).status(), Status::SUCCESS);
    let cq = Sqe { opc: 5, dptr: [DATA, 0], cdw10: 15 << 16 | 1, cdw11: 1, ..Sqe::default() };
    assert_eq!(c.admin(cq).status(), Status::SUCCESS);
    assert_eq!(c.admin(ask).status(), Status::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(c.admin(Sqe { opc: 4, cdw10: 1, ..Sqe::default() }).status(), Status::SUCCESS);
    assert_eq!(c.admin(ask).status(), Status::SUCCESS);
}

#[test]
fn the_timestamp_counts_from_the_reset_until_it_is_set() {
    let rig = Rig::new("timestamp", Doorbells::Trapped);
    let mut c = rig.host();
    let now = |c: &mut Client| {
        feature(c, 0xe);
        let bytes: [u8; 8] = c.get(DATA, 8).try_into().unwrap();
        (u64::from_le_bytes(bytes) & 0xffff_ffff_ffff, bytes[6] >> 1 & 7)
    };
    let (first, origin) = now(&mut c);
    assert!(first < 600_000 && origin == 0, "{first} ms since the reset");
    std::thread::sleep(Duration::from_millis(20));
    assert!(now(&mut c).0 >= first + 20);
    c.put(DATA, &[0, 0, 0, 0, 0, 0x40, 0, 0]);
    assert_eq!(
        c.admin(Sqe { opc: 9, cdw10: 0xe, dptr: [DATA, 0], ..Sqe::default() }).status(),
        Status::SUCCESS
    );
    let (set, origin) = now(&mut c);
    assert!(set >= 0x4000_0000_0000 && origin == 1);
    c.post(CC, 0);
    c.wait_csts(1, 0);
    c.enable();
    assert!(now(&mut c).0 < 600_000);
}

/// What a log page tells is told when it was told: not by a command whose memory is none.
#[test]
fn a_log_page_that_does_not_come_leaves_its_news() {
    let rig = Rig::new("log-news", Doorbells::Trapped);
    let mut c = rig.host();
    let changed = |prp1| Sqe { opc: 2, cdw10: 3 << 16 | 4, dptr: [prp1, 0], ..Sqe::default() };
    assert_eq!(c.admin(changed(DATA)).status(), Status::SUCCESS);
    rig.add(2, RamVolume::new(512, 2048).unwrap());
    for _ in 0..3 {
        assert_ne!(c.admin(changed(DATA + 1)).status(), Status::SUCCESS);
    }
    let mut told = || {
        assert_eq!(c.admin(changed(DATA)).status(), Status::SUCCESS);
        c.get(DATA, 8)
    };
    let first = (0..1000).map(|_| told()).find(|list| list[0] != 0).expect("the news");
    assert_eq!(first, [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(told(), [0; 8], "once");
}
