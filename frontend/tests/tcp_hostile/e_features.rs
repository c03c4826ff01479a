//! E.54: features, set and asked for in every way; and write protection, for every host of a subsystem.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use backend::ram::RamVolume;
use engine::{Channel, IoError, Limits, Shard, Volume, VolumeStats};
use frontend::Namespace;
use middleend::fault::{Effect, FaultVolume, Faults, Kind, Rule};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::feature::FeatureId as Fid;
use nvme_proto::log::{GetLogPage, LogId};
use nvme_proto::{Cqe, Sqe, Status};

use super::asked;
use super::common::{BEYOND, Host, Rig, pattern, rw};

const ALL: u32 = u32::MAX;

fn set(fid: Fid, nsid: u32, value: u32) -> Sqe {
    Sqe { opc: 9, nsid, cdw10: fid.0.into(), cdw11: value, ..Sqe::default() }
}

fn get(fid: Fid, nsid: u32, sel: u32) -> Sqe {
    Sqe { opc: 0xa, nsid, cdw10: u32::from(fid.0) | sel << 8, ..Sqe::default() }
}

fn run(host: &mut Host, sqe: Sqe) -> Cqe {
    host.run(sqe, &[], 0).0
}

/// Current, default, saved value.
fn values(admin: &mut Host, fid: Fid, nsid: u32) -> [u32; 3] {
    [0, 1, 2].map(|sel| {
        let cqe = run(admin, get(fid, nsid, sel));
        assert!(cqe.status().is_success(), "{fid:?}: {:?}", cqe.status());
        cqe.dw0
    })
}

#[test]
fn e54_each_feature() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let admin = &mut admin;
    for (fid, nsid, value, default) in [
        (Fid::Arbitration, 0, 3, 0),
        (Fid::PowerManagement, 0, 0x20, 0),
        (Fid::TemperatureThreshold, 0, 350, 343),
        (Fid::ErrorRecovery, 1, 7, 0),
        (Fid::WriteAtomicity, 0, 1, 0),
        (Fid::AsyncEventConfiguration, 0, 0x100, 0),
        (Fid::KeepAliveTimer, 0, 90_000, 120_000),
        (Fid::NamespaceWriteProtection, 1, 1, 0),
        (Fid::NamespaceWriteProtection, 1, 0, 0),
    ] {
        assert_eq!(run(admin, set(fid, nsid, value)).status(), Status::SUCCESS, "{fid:?}");
        assert_eq!(values(admin, fid, nsid), [value, default, default], "{fid:?}");
        let able = run(admin, get(fid, nsid, 3)).dw0;
        assert_eq!(able, if nsid == 1 { 6 } else { 4 }, "{fid:?}: changeable, and whose");
        let saved = Sqe { cdw10: 1 << 31 | u32::from(fid.0), ..set(fid, nsid, value) };
        assert_eq!(run(admin, saved).status(), Status::FEATURE_NOT_SAVEABLE.dnr());
        for sel in 4..8 {
            assert_eq!(run(admin, get(fid, nsid, sel)).status(), Status::INVALID_FIELD.dnr());
        }
        // Whose feature it is.
        let mut to = |nsid| run(admin, set(fid, nsid, value)).status();
        if nsid == 1 {
            assert_eq!(to(ALL), Status::SUCCESS, "every namespace");
            assert_eq!((to(0), to(BEYOND)), (NO_NAMESPACE.dnr(), NO_NAMESPACE.dnr()));
            assert_eq!(to(2), Status::INVALID_FIELD.dnr(), "inactive");
            assert_eq!(run(admin, get(fid, ALL, 0)).status(), NO_NAMESPACE.dnr());
        } else {
            assert_eq!((to(0), to(ALL)), (Status::SUCCESS, Status::SUCCESS));
            assert_eq!(to(1), Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr());
            assert_eq!(to(BEYOND), NO_NAMESPACE.dnr());
        }
    }
}

const NO_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT;

#[test]
fn e54_what_features_refuse() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    for (fid, nsid, value, status) in [
        (Fid::PowerManagement, 0, 1, Status::INVALID_FIELD),
        (Fid::TemperatureThreshold, 0, 1 << 16, Status::INVALID_FIELD),
        (Fid::TemperatureThreshold, 0, 2 << 20, Status::INVALID_FIELD),
        (Fid::ErrorRecovery, 1, 1 << 16, Status::INVALID_FIELD),
        (Fid::VolatileWriteCache, 0, 1, Status::FEATURE_NOT_CHANGEABLE),
        (Fid::InterruptCoalescing, 0, 0x101, Status::INVALID_FIELD),
        (Fid::NumberOfQueues, 0, 0xffff, Status::INVALID_FIELD),
        (Fid::NumberOfQueues, 0, 0xffff_0000, Status::INVALID_FIELD),
        (Fid::NumberOfQueues, 0, 0x1_0001, Status::COMMAND_SEQUENCE_ERROR),
        (Fid::NamespaceWriteProtection, 1, 3, Status::INVALID_FIELD),
        (Fid::NamespaceWriteProtection, 1, 7, Status::INVALID_FIELD),
    ] {
        assert_eq!(run(&mut admin, set(fid, nsid, value)).status(), status.dnr(), "{fid:?} {value:#x}");
    }
    // Every other identifier is unknown, to both commands.
    let known: Vec<u8> = vec![1, 2, 4, 5, 6, 7, 0xa, 0xb, 0xe, 0xf, 0x16, 0x81, 0x82, 0x83, 0x84];
    for fid in (0..=255).filter(|fid| !known.contains(fid)) {
        for sqe in [set(Fid(fid), 0, 0), get(Fid(fid), 0, 0), get(Fid(fid), 1, 3)] {
            assert_eq!(run(&mut admin, sqe).status(), Status::INVALID_FIELD.dnr(), "{fid:#x}");
        }
    }
    // Values that come in buffers, and buffers that are too short.
    for (fid, len) in [(Fid::Timestamp, 8), (Fid::HostBehavior, 512)] {
        let sqe = set(fid, 0, 0);
        assert_eq!(admin.run(sqe, &vec![0; len], 0).0.status(), Status::SUCCESS);
        for short in [0, len - 4] {
            let status = admin.run(sqe, &vec![0; short], 0).0.status();
            assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr(), "{fid:?} {short}");
        }
        assert_eq!(admin.run(get(fid, 0, 0), &[], len).1.len(), len);
    }
    let mut behavior = [0; 512];
    // ACRE, ETDAS and HDISNS are what a host knows of; LBAFEE and CDFE would be for us to do.
    for (at, value, status) in [
        (0, 1, Status::SUCCESS),
        (1, 1, Status::SUCCESS),
        (3, 1, Status::SUCCESS),
        (0, 2, Status::INVALID_FIELD.dnr()),
        (1, 2, Status::INVALID_FIELD.dnr()),
        (2, 1, Status::INVALID_FIELD.dnr()),
        (4, 1, Status::INVALID_FIELD.dnr()),
    ] {
        behavior.fill(0);
        behavior[at] = value;
        let sqe = set(Fid::HostBehavior, 0, 0);
        assert_eq!(admin.run(sqe, &behavior, 0).0.status(), status, "byte {at} {value}");
    }
    assert_eq!(run(&mut admin, get(Fid::HostIdentifier, 0, 3)).dw0, 0, "it came with Connect");
}

#[test]
fn e54_a_temperature_beyond_its_threshold_is_an_event() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let warning = |admin: &mut Host| {
        let mut sqe = Sqe { opc: 2, ..Sqe::default() };
        GetLogPage::new(LogId::Smart, 0, 512).put(&mut sqe);
        admin.run(sqe, &[], 512).1[0]
    };
    let expect = |admin: &mut Host, fid, value| {
        let mut aer = Sqe { opc: 0xc, cid: 999, ..Sqe::default() };
        aer.set_sgl(SglDescriptor::transport(0));
        let mut sqe = Sqe { cid: 998, ..set(fid, 0, value) };
        sqe.set_sgl(SglDescriptor::transport(0));
        let bytes = [admin.capsule(aer, &[]), admin.capsule(sqe, &[])].concat();
        admin.send(&bytes);
        let ended = [admin.complete(&[]).0, admin.complete(&[]).0];
        let event = ended.iter().find(|cqe| cqe.cid == 999).unwrap();
        assert_eq!(event.dw0, 0x02_0101, "SMART / Health: Temperature Threshold");
        assert_eq!(warning(admin), 2);
    };
    let wanted = |admin: &mut Host, value| {
        assert!(run(admin, set(Fid::AsyncEventConfiguration, 0, value)).status().is_success());
    };
    let under = 1 << 20;
    let (mut quiet, _) = rig.connect(0);
    assert!(run(&mut quiet, set(Fid::TemperatureThreshold, 0, 280)).status().is_success());
    assert_eq!(warning(&mut quiet), 2, "in the log, though it is no event");
    wanted(&mut admin, 2);
    expect(&mut admin, Fid::TemperatureThreshold, 280);
    // Read, so it is told again.
    expect(&mut admin, Fid::AsyncEventConfiguration, 2);
    expect(&mut admin, Fid::TemperatureThreshold, 293);
    expect(&mut admin, Fid::TemperatureThreshold, under | 300);
}

/// A namespace 7 whose writes fail for the moment.
#[test]
fn e54_interrupted_commands_tell_when_to_come_again() {
    let rig = Rig::new();
    let below = RamVolume::new(512, 2048).unwrap();
    let rules = vec![Rule::new(&[Kind::Write], Effect::Fail(IoError::Transient))];
    let volume = Arc::new(FaultVolume::new(below, Faults { rules, ..Faults::default() }));
    let namespace = Namespace { nsid: 7, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume };
    rig.subsystem.add_namespace(namespace).unwrap();
    let (mut admin, mut io) = rig.connect(0);
    let crdt1 = admin.run(Sqe { opc: 6, cdw10: 1, ..Sqe::default() }, &[], 4096).1[128];
    assert_ne!(crdt1, 0);
    let mut behavior = [0; 512];
    for acre in [0, 1, 0] {
        behavior[0] = acre;
        assert!(admin.run(set(Fid::HostBehavior, 0, 0), &behavior, 0).0.status().is_success());
        let write = Sqe { nsid: 7, ..rw(1, 0, 512) };
        let status = io.run(write, &[1; 512], 0).0.status();
        let expected = match acre {
            0 => Status::NAMESPACE_NOT_READY,
            _ => Status::COMMAND_INTERRUPTED.with_crd(1),
        };
        assert_eq!(status, expected, "ACRE {acre}");
    }
}

#[test]
fn e60_write_protection_holds_for_every_host() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    let (mut other_admin, mut other) = rig.connect(0);
    let data = pattern(3, 4096);
    assert!(io.write(0, &data).status().is_success());
    let events = set(Fid::AsyncEventConfiguration, 0, 0x100);
    assert!(run(&mut other_admin, events).status().is_success());
    let mut aer = Sqe { opc: 0xc, cid: 999, ..Sqe::default() };
    aer.set_sgl(SglDescriptor::transport(0));
    let capsule = other_admin.capsule(aer, &[]);
    other_admin.send(&capsule);

    let refused = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    assert!(run(&mut admin, set(Fid::NamespaceWriteProtection, 1, 1)).status().is_success());
    for io in [&mut io, &mut other] {
        assert_eq!(io.write(0, &[9; 4096]).status(), refused);
        assert_eq!(run(io, rw(8, 0, 4096)).status(), refused, "Write Zeroes");
        let mut range = [0; 16];
        range[4] = 8;
        let dsm = Sqe { opc: 9, nsid: 1, cdw11: 4, ..Sqe::default() };
        assert_eq!(io.run(dsm, &range, 0).0.status(), refused, "Dataset Management");
        assert!(io.run(Sqe { opc: 0, nsid: 1, ..Sqe::default() }, &[], 0).0.status().is_success(), "Flush");
        assert!(io.run(rw(5, 0, 4096), &data, 0).0.status().is_success(), "Compare");
        assert!(run(io, rw(0xc, 0, 4096)).status().is_success(), "Verify");
        assert!(io.read(0, 4096).1 == data);
    }
    let (cqe, _) = other_admin.complete(&[]);
    assert_eq!((cqe.cid, cqe.dw0), (999, 0x04_0002), "Namespace Attribute Changed");
    assert_eq!(values(&mut other_admin, Fid::NamespaceWriteProtection, 1), [1, 0, 0]);
    let nsattr = |admin: &mut Host| admin.run(Sqe { opc: 6, nsid: 1, ..Sqe::default() }, &[], 4096).1[99];
    assert_eq!(nsattr(&mut other_admin), 1);
    assert!(run(&mut other_admin, set(Fid::NamespaceWriteProtection, 1, 0)).status().is_success());
    assert_eq!(nsattr(&mut admin), 0);
    assert!(io.write(0, &data).status().is_success());
    // Until the end of this process: nobody takes that back.
    assert!(run(&mut admin, set(Fid::NamespaceWriteProtection, ALL, 2)).status().is_success());
    for value in [0, 1] {
        let status = run(&mut admin, set(Fid::NamespaceWriteProtection, 1, value)).status();
        assert_eq!(status, Status::FEATURE_NOT_CHANGEABLE.dnr());
    }
    assert_eq!(other.write(0, &[9; 4096]).status(), refused);
    assert!(other.read(0, 4096).1 == data);
}

/// Its data comes when the namespace has been protected, and when it has gone.
#[test]
fn e60_writes_that_wait_for_their_data_while_the_namespace_changes() {
    let rig = Rig::new();
    let (mut admin, mut io, r2t) = asked(&rig);
    assert!(run(&mut admin, set(Fid::NamespaceWriteProtection, 1, 1)).status().is_success());
    for pdu in io.h2c(&r2t, &[9; 65536], 65536) {
        io.send(&pdu);
    }
    assert_eq!(io.complete(&[]).0.status(), Status::NAMESPACE_WRITE_PROTECTED.dnr());
    assert!(run(&mut admin, set(Fid::NamespaceWriteProtection, 1, 0)).status().is_success());
    let (_admin, mut io, r2t) = asked(&rig);
    let drain = rig.subsystem.remove_namespace(1).unwrap();
    for pdu in io.h2c(&r2t, &[9; 65536], 65536) {
        io.send(&pdu);
    }
    assert_eq!(io.complete(&[]).0.status(), NO_NAMESPACE.dnr());
    assert!(drain.wait(Duration::from_secs(20)));
}

/// A volume in memory that says how large it is.
struct Sized {
    ram: Arc<RamVolume>,
    blocks: AtomicU64,
}

impl Volume for Sized {
    fn limits(&self) -> Limits {
        Limits { blocks: self.blocks.load(Ordering::SeqCst), ..self.ram.limits() }
    }

    fn stats(&self) -> &VolumeStats {
        self.ram.stats()
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        self.ram.clone().open(shard)
    }
}

#[test]
fn e60_a_namespace_changes_its_size_under_io() {
    let rig = Rig::new();
    let volume = Arc::new(Sized { ram: RamVolume::new(512, 2048).unwrap(), blocks: AtomicU64::new(2048) });
    rig.subsystem.remove_namespace(1).unwrap();
    let (uuid, shown) = ([1; 16], volume.clone());
    let namespace = Namespace { nsid: 1, uuid, nguid: [0; 16], eui64: [0; 8], volume: shown };
    rig.subsystem.add_namespace(namespace).unwrap();
    let resize = |blocks| {
        volume.blocks.store(blocks, Ordering::SeqCst);
        rig.subsystem.refresh_namespace(1).unwrap();
        rig.shards.handles().iter().for_each(|shard| assert!(shard.call(|_| ()).is_some()));
    };
    resize(2048);
    let beyond = Status::LBA_OUT_OF_RANGE.dnr();
    // A write whose data comes when its blocks are gone.
    let (mut admin, mut waiting, r2t) = asked(&rig);
    let ended = AtomicBool::new(false);
    let hosts: Vec<_> = (0..2).map(|_| rig.connect(0)).collect();
    std::thread::scope(|scope| {
        for (_admin, mut io) in hosts {
            let ended = &ended;
            scope.spawn(move || {
                let (data, mut written) = (pattern(5, 65536), [false; 4]);
                while !ended.load(Ordering::SeqCst) {
                    for (lba, written) in [0, 64, 1024, 1920].into_iter().zip(&mut written) {
                        let status = io.write(lba, &data[..8192]).status();
                        assert!(status.is_success() || status == beyond && lba >= 64, "{status:?}");
                        let (cqe, read) = io.read(lba, 4096);
                        *written |= status.is_success();
                        match cqe.status().is_success() {
                            true => assert!(read == data[..4096] || !*written && read == [0; 4096]),
                            false => assert_eq!(cqe.status(), beyond),
                        }
                    }
                }
                drop(_admin);
            });
        }
        for _ in 0..50 {
            resize(64);
            resize(1500);
            resize(2048);
        }
        resize(64);
        ended.store(true, Ordering::SeqCst);
    });
    for pdu in waiting.h2c(&r2t, &[9; 65536], 65536) {
        waiting.send(&pdu);
    }
    assert_eq!(waiting.complete(&[]).0.status(), beyond);
    assert_eq!(waiting.read(64, 512).0.status(), beyond);
    assert!(waiting.read(63, 512).0.status().is_success());
    let nsze = admin.run(Sqe { opc: 6, nsid: 1, ..Sqe::default() }, &[], 4096).1;
    assert_eq!(nsze[..8], 64u64.to_le_bytes());
    // It goes for good while both hosts still ask for it.
    let drain = rig.subsystem.remove_namespace(1).unwrap();
    assert!(drain.wait(Duration::from_secs(20)));
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while Arc::strong_count(&volume) > 1 {
        assert!(std::time::Instant::now() < until, "somebody keeps the volume");
        std::thread::yield_now();
    }
}
