//! E.27: Compare and Write, fused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backend::ram::RamVolume;
use frontend::Namespace;
use middleend::fault::{Effect, FaultVolume, Faults, Kind, Rule};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect, Property};
use nvme_proto::register::offset;
use nvme_proto::tcp::{CapsuleResp, PduType, R2t};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Cqe, Sqe, Status};

use super::common::{BEYOND, HOSTNQN, Host, Rig, SUBNQN, connect_data, rw};
use super::others_live;

const LEN: usize = 512;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const MISSING: Status = Status::ABORTED_MISSING_FUSED;
const FAILED: Status = Status::ABORTED_FAILED_FUSED;

fn with(opc: u8, fuse: u8, cid: u16, lba: u64) -> Sqe {
    let mut sqe = Sqe { cid, ..rw(opc, lba, LEN) };
    sqe.flags = sqe.flags.with_fuse(fuse);
    sqe
}

fn capsule(io: &Host, mut sqe: Sqe, data: &[u8]) -> Vec<u8> {
    sqe.set_sgl(SglDescriptor::in_capsule(data.len() as u32));
    io.capsule(sqe, data)
}

/// Sends commands at once, and waits for all: their statuses, in the order of the commands.
fn run(io: &mut Host, commands: &[(Sqe, &[u8])]) -> Vec<Status> {
    let bytes: Vec<u8> = commands.iter().flat_map(|(sqe, data)| capsule(io, *sqe, data)).collect();
    io.send(&bytes);
    let ended: Vec<Cqe> = commands.iter().map(|_| io.complete(&[]).0).collect();
    let of = |sqe: &Sqe| ended.iter().find(|cqe| cqe.cid == sqe.cid).unwrap().status();
    commands.iter().map(|(sqe, _)| of(sqe)).collect()
}

/// A compare with `old` and a write of `new`.
fn swap(io: &mut Host, lba: u64, old: &[u8], new: &[u8]) -> [Status; 2] {
    run(io, &[(with(5, FIRST, 901, lba), old), (with(1, SECOND, 902, lba), new)]).try_into().unwrap()
}

fn block(byte: u8) -> Vec<u8> {
    vec![byte; LEN]
}

#[test]
fn e27_compare_and_write() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    let id = admin.run(Sqe { opc: 6, cdw10: 1, ..Sqe::default() }, &[], 4096).1;
    assert_eq!((id[522], &id[532..534]), (1, &[0, 0][..]), "FUSES, and an ACWU of one block");
    let (zero, one, two) = (block(0), block(1), block(2));
    assert_eq!(swap(&mut io, 7, &zero, &one), [Status::SUCCESS; 2]);
    assert!(io.read(7, LEN).1 == one);
    assert_eq!(swap(&mut io, 7, &zero, &two), [Status::COMPARE_FAILURE.dnr(), FAILED]);
    assert!(io.read(7, LEN).1 == one, "nothing is written");
    assert_eq!(swap(&mut io, 7, &one, &two), [Status::SUCCESS; 2]);
    // By R2T: each is asked for its data.
    let mut pair = [with(5, FIRST, 1, 7), with(1, SECOND, 2, 7)];
    for sqe in &mut pair {
        sqe.set_sgl(SglDescriptor::transport(LEN as u32));
        let bytes = io.capsule(*sqe, &[]);
        io.send(&bytes);
    }
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let pdu = io.receive().unwrap();
        if pdu.ch.pdu_type == PduType::R2t {
            let r2t: R2t = pdu.read();
            let data = if r2t.cccid == 1 { &two } else { &one };
            for bytes in io.h2c(&r2t, data, LEN) {
                io.send(&bytes);
            }
        } else {
            let cqe = pdu.read::<CapsuleResp>().cqe;
            ended.push((cqe.cid, cqe.status()));
        }
    }
    assert_eq!(ended, [(1, Status::SUCCESS), (2, Status::SUCCESS)], "in their order");
    assert!(io.read(7, LEN).1 == one);
    // A namespace that takes no writes.
    let protect = |value| Sqe { opc: 9, nsid: 1, cdw10: 0x84, cdw11: value, ..Sqe::default() };
    assert!(admin.run(protect(1), &[], 0).0.status().is_success());
    assert_eq!(swap(&mut io, 7, &one, &two), [FAILED, Status::NAMESPACE_WRITE_PROTECTED.dnr()]);
    assert!(admin.run(protect(0), &[], 0).0.status().is_success());
    assert_eq!(swap(&mut io, 7, &one, &two), [Status::SUCCESS; 2]);
}

#[test]
fn e27_pairs_that_are_none() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    let zero = block(0);
    let z = &zero[..];
    let (first, second) = (with(5, FIRST, 1, 7), with(1, SECOND, 2, 7));
    let read = Sqe { cid: 3, opc: 0, ..rw(2, 0, LEN) };
    let (ok, invalid) = (Status::SUCCESS, Status::INVALID_FIELD.dnr());
    // The first without the second, the second without the first, and another between them.
    assert_eq!(run(&mut io, &[(first, z), (read, z)]), [MISSING, ok]);
    assert_eq!(run(&mut io, &[(second, z)]), [MISSING]);
    assert_eq!(run(&mut io, &[(first, z), (read, z), (second, z)]), [MISSING, ok, MISSING]);
    let again = Sqe { cid: 4, ..first };
    assert_eq!(run(&mut io, &[(again, z), (first, z), (second, z)]), [MISSING, ok, ok]);
    let third = Sqe { cid: 4, ..second };
    assert_eq!(run(&mut io, &[(first, z), (second, z), (third, z)]), [ok, ok, MISSING]);
    // One between them that the transport itself refuses splits them too.
    let without_sgl = io.capsule(Sqe { cid: 3, ..rw(2, 0, LEN) }, &[]);
    let bytes = [capsule(&io, first, z), without_sgl, capsule(&io, second, z)].concat();
    io.send(&bytes);
    let mut ended = [(); 3].map(|()| io.complete(&[]).0).map(|cqe| (cqe.cid, cqe.status()));
    ended.sort_unstable_by_key(|(cid, _)| *cid);
    assert_eq!(ended, [(1, MISSING), (2, MISSING), (3, invalid)]);
    // 11b, alone and in a pair.
    let reserved = with(5, 3, 5, 7);
    assert_eq!(run(&mut io, &[(reserved, z)]), [invalid]);
    assert_eq!(run(&mut io, &[(first, z), (reserved, z), (second, z)]), [MISSING, invalid, MISSING]);
    // Not the same blocks, the wrong way round, and what cannot be fused.
    for (a, b) in [
        (first, with(1, SECOND, 2, 8)),
        (first, Sqe { cdw12: 1, ..second }),
        (first, Sqe { nsid: 2, ..second }),
        (with(1, FIRST, 1, 7), with(5, SECOND, 2, 7)),
        (with(5, FIRST, 1, 7), with(5, SECOND, 2, 7)),
        (with(8, FIRST, 1, 7), with(1, SECOND, 2, 7)),
        (with(0x7e, FIRST, 1, 7), with(0x7e, SECOND, 2, 7)),
        (Sqe { nsid: 2, ..first }, Sqe { nsid: 2, ..second }),
    ] {
        assert_eq!(run(&mut io, &[(a, z), (b, z)]), [invalid, invalid], "{a:?} {b:?}");
    }
    let both = |edit: &dyn Fn(&mut Sqe)| {
        let mut pair = (first, second);
        edit(&mut pair.0);
        edit(&mut pair.1);
        pair
    };
    let none = Status::INVALID_NAMESPACE_OR_FORMAT.dnr();
    for nsid in [0, BEYOND, u32::MAX] {
        let (a, b) = both(&|sqe| sqe.nsid = nsid);
        assert_eq!(run(&mut io, &[(a, z), (b, z)]), [none, none]);
    }
    let (a, b) = both(&|sqe| sqe.set_slba(u64::MAX));
    assert_eq!(run(&mut io, &[(a, z), (b, z)]), [Status::LBA_OUT_OF_RANGE.dnr(), FAILED]);
    let (a, b) = both(&|sqe| sqe.cdw12 = 1);
    assert_eq!(run(&mut io, &[(a, z), (b, z)]), [Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr(), FAILED]);
    // One of them has too little data.
    let short = Status::DATA_SGL_LENGTH_INVALID.dnr();
    assert_eq!(run(&mut io, &[(first, &z[..256]), (second, z)]), [short, FAILED]);
    assert_eq!(run(&mut io, &[(first, z), (second, &z[..256])]), [FAILED, short]);
    // The first waits, and is aborted; then the second has none.
    let bytes = capsule(&io, first, z);
    io.send(&bytes);
    let abort = Sqe { opc: 8, cdw10: 1 << 16 | 1, ..Sqe::default() };
    while admin.run(abort, &[], 0).0.dw0 == 1 {}
    assert_eq!(io.complete(&[]).0.status(), Status::ABORT_REQUESTED);
    assert_eq!(run(&mut io, &[(second, z)]), [MISSING]);
    for fuse in 1..4u8 {
        let mut sqe = Sqe { opc: 6, cdw10: 1, ..Sqe::default() };
        sqe.flags = sqe.flags.with_fuse(fuse);
        assert_eq!(admin.run(sqe, &[], 4096).0.status(), invalid, "an admin command");
        let mut sqe = Property { offset: offset::CSTS, size: 0, value: 0 }.get(0);
        sqe.flags = sqe.flags.with_fuse(fuse);
        assert_eq!(admin.run(sqe, &[], 0).0.status(), invalid, "a fabrics command");
        let mut sqe = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 }.to_sqe(0);
        sqe.flags = sqe.flags.with_fuse(fuse);
        let data = connect_data(SUBNQN, HOSTNQN, 0xffff);
        assert_eq!(Host::open(rig.addr, 0).run(sqe, data.as_bytes(), 0).0.status(), invalid, "Connect");
    }
    // The first, and then nothing any more.
    for _ in 0..20 {
        let (_admin, mut io) = rig.connect(0);
        let bytes = capsule(&io, first, z);
        io.send(&bytes);
        if rig.subsystem.controllers().len().is_multiple_of(2) {
            let bytes = capsule(&io, Sqe { cid: 9, ..second }, z);
            io.send(&bytes);
        }
    }
    others_live(&rig);
    assert!(swap(&mut io, 20, z, z).iter().all(|status| status.is_success()));
}

fn number(n: u64) -> Vec<u8> {
    let mut block = block(0);
    block[..8].copy_from_slice(&n.to_le_bytes());
    block
}

fn current(io: &mut Host) -> u64 {
    u64::from_le_bytes(io.read(0, LEN).1[..8].try_into().unwrap())
}

/// Hosts on several queues, shards and controllers count in one block; nobody's count is lost.
#[test]
fn e27_counters_lose_nothing() {
    let rig = Rig::new();
    let hosts: Vec<_> = (0..4).map(|_| rig.connect(0)).collect();
    let each = 200;
    let threads: Vec<_> = hosts
        .into_iter()
        .map(|(admin, mut io)| {
            std::thread::spawn(move || {
                let mut done = 0;
                while done < each {
                    let n = current(&mut io);
                    let [compared, written] = swap(&mut io, 0, &number(n), &number(n + 1));
                    assert_eq!(compared.is_success(), written.is_success());
                    assert!(compared.is_success() || compared.code() == Status::COMPARE_FAILURE);
                    done += u64::from(compared.is_success());
                }
                drop(admin);
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let (_admin, mut io) = rig.connect(0);
    assert_eq!(current(&mut io), 4 * each);
}

/// A write that completes while others swap is never undone by one that had compared what was there before it.
#[test]
fn e27_no_write_lands_between_compare_and_write() {
    const SWAPPED: u64 = 1 << 63;
    let rig = Rig::new();
    // Half of the writes take their time: others have every chance to land between.
    let late =
        Rule { probability: 0.5, ..Rule::new(&[Kind::Write], Effect::Delay(Duration::from_millis(1))) };
    let below = RamVolume::new(512, 2048).unwrap();
    let volume = FaultVolume::new(below, Faults { rules: vec![late], ..Faults::default() });
    rig.subsystem.remove_namespace(1).unwrap();
    let (uuid, volume) = ([1; 16], Arc::new(volume));
    let namespace = Namespace { nsid: 1, uuid, nguid: [0; 16], eui64: [0; 8], volume };
    rig.subsystem.add_namespace(namespace).unwrap();
    rig.shards.handles().iter().for_each(|shard| assert!(shard.call(|_| ()).is_some()));
    let hosts: Vec<_> = (0..3).map(|_| rig.connect(0)).collect();
    let (_admin, mut io) = rig.connect(0);
    let ended = AtomicBool::new(false);
    let undone = std::thread::scope(|scope| {
        for (_admin, mut io) in hosts {
            let ended = &ended;
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let n = current(&mut io);
                    swap(&mut io, 0, &number(n), &number(n | SWAPPED));
                }
                drop(_admin);
            });
        }
        let mut undone = Vec::new();
        for n in 1..150 {
            let (cqe, n) = match n % 3 {
                0 => (io.run(rw(8, 0, LEN), &[], 0).0, 0),
                _ => (io.write(0, &number(n)), n),
            };
            assert!(cqe.status().is_success());
            std::thread::sleep(Duration::from_millis(2));
            let found = current(&mut io) & !SWAPPED;
            undone.extend((found != n).then_some((n, found)));
        }
        ended.store(true, Ordering::Relaxed);
        undone
    });
    assert_eq!(undone, []);
}
