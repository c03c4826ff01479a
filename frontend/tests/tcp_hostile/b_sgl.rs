//! B: capsules and the descriptors of their data.

use frontend::tcp::Reason;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::tcp::R2t;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use super::common::{BEYOND, HOSTNQN, Host, Rig, SUBNQN, connect_data, pattern, rw};
use super::{HEADER_FIELD, LIMIT, others_live};

#[test]
fn b19_to_b24_data_pointers() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let mut status = |edit: &dyn Fn(&mut Sqe), data: &[u8]| {
        let mut sqe = rw(1, 0, 512);
        sqe.cid = 5;
        sqe.set_sgl(SglDescriptor::in_capsule(512));
        edit(&mut sqe);
        let bytes = io.capsule(sqe, data);
        io.send(&bytes);
        io.complete(&[]).0.status()
    };
    let block = [0u8; 512];
    // Every type and subtype but data in the capsule; keyed, bit bucket and segments among them.
    for identifier in (0..=255u8).filter(|identifier| *identifier != 1) {
        let mut sgl = SglDescriptor::in_capsule(512);
        sgl.identifier = identifier;
        let got = status(&|s| s.set_sgl(sgl), &block);
        assert_eq!(got, Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr(), "{identifier:#x}");
    }
    let offset = SglDescriptor::new(SglType::DataBlock, SglSubtype::Offset, 8, 512);
    assert_eq!(status(&|s| s.set_sgl(offset), &block), Status::SGL_OFFSET_INVALID.dnr());
    let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
    for len in [0, 511, 513, u32::MAX] {
        let got = status(&|s| s.set_sgl(SglDescriptor::in_capsule(len)), &block);
        assert_eq!(got, length, "{len}");
    }
    assert_eq!(status(&|_| {}, &[]), length, "no data came");
    for len in [0, 1, 511] {
        for opc in [1, 2, 5] {
            let got = status(&|s| (s.opc, _) = (opc, s.set_sgl(SglDescriptor::transport(len))), &[]);
            assert_eq!(got, length, "{opc} of {len}");
        }
    }
    let invalid = Status::INVALID_FIELD.dnr();
    for psdt in [0, 2, 3] {
        assert_eq!(status(&|s| s.flags = s.flags.with_psdt(psdt), &block), invalid);
    }
    // E.51: a transfer beyond MDTS.
    assert_eq!(status(&|s| s.cdw12 = 2048, &block), invalid);
    // Data in the capsule of a read.
    let got = status(&|s| s.opc = 2, &block);
    assert_eq!(got, Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
    // E.50, and commands that do not exist.
    for nsid in [0, BEYOND, 0xffff_fffe, 0xffff_ffff] {
        assert_eq!(
            status(&|s| s.nsid = nsid, &block),
            Status::INVALID_NAMESPACE_OR_FORMAT.dnr(),
            "{nsid:#x}"
        );
    }
    // Verify and reservations exist.
    let known = [0x0c, 0x0d, 0x0e, 0x11, 0x15];
    for opc in (0x0a..0x7f).chain(0x80..=0xff).filter(|opc| !known.contains(opc)) {
        assert_eq!(status(&|s| s.opc = opc, &block), Status::INVALID_OPCODE.dnr(), "{opc:#x}");
    }
    assert!(status(&|_| {}, &block).is_success());
    others_live(&rig);
}

#[test]
fn b26_more_commands_than_the_queue_has() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    // With SQ flow control and without: that leaves SQHD without a meaning, and the queue no larger.
    for (qid, free) in [(1, false), (2, true)] {
        let mut io = Host::open(rig.addr, 0);
        let cattr = Cattr::new().with_disable_sqfc(free);
        let connect = Connect { recfmt: 0, qid, sqsize_z: 3, cattr, kato: 0 };
        let cqe = io.connect(connect, &connect_data(SUBNQN, HOSTNQN, cntlid));
        assert!(cqe.status().is_success());
        for n in 2..20 {
            let sqhd = io.write(0, &[0; 512]).sqhd;
            assert!(free || sqhd == n % 4, "{sqhd} after {n} commands");
        }
        for cid in 0..5 {
            let mut sqe = rw(1, 0, 16384);
            sqe.cid = cid;
            sqe.set_sgl(SglDescriptor::transport(16384));
            let bytes = io.capsule(sqe, &[]);
            io.send(&bytes);
        }
        assert_eq!(io.terminated().fes, LIMIT);
        assert_eq!(rig.target.rejections().count(Reason::QueueOverrun), u64::from(qid));
    }
    others_live(&rig);
}

#[test]
fn b19_descriptors_of_fabrics_commands() {
    let rig = Rig::new();
    let mut host = Host::open(rig.addr, 0);
    let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let data = connect_data(SUBNQN, HOSTNQN, 0xffff);
    let mut status = |edit: &dyn Fn(&mut Sqe), data: &[u8]| {
        let mut sqe = connect.to_sqe(5);
        sqe.set_sgl(SglDescriptor::in_capsule(1024));
        edit(&mut sqe);
        let bytes = host.capsule(sqe, data);
        host.send(&bytes);
        host.complete(&[]).0.status()
    };
    let data = data.as_bytes();
    for kind in [SglType::BitBucket, SglType::Segment, SglType::LastSegment, SglType::KeyedDataBlock] {
        let sgl = SglDescriptor::new(kind, SglSubtype::Offset, 0, 1024);
        let got = status(&|s| s.set_sgl(sgl), data);
        assert_eq!(got, Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr(), "{kind:?}");
    }
    let transport = status(&|s| s.set_sgl(SglDescriptor::transport(1024)), &[]);
    assert_eq!(transport, Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
    let offset = SglDescriptor::new(SglType::DataBlock, SglSubtype::Offset, 4, 1024);
    assert_eq!(status(&|s| s.set_sgl(offset), data), Status::SGL_OFFSET_INVALID.dnr());
    let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
    for len in [0, 1023, 1025, u32::MAX] {
        assert_eq!(status(&|s| s.set_sgl(SglDescriptor::in_capsule(len)), data), length, "{len}");
    }
    assert_eq!(status(&|_| {}, &data[..1020]), length);
    assert_eq!(status(&|_| {}, &[]), length);
    for psdt in [0, 2, 3] {
        let got = status(&|s| s.flags = s.flags.with_psdt(psdt), data);
        assert_eq!(got, Status::INVALID_FIELD.dnr(), "PSDT {psdt}");
    }
    assert!(status(&|_| {}, data).is_success(), "the same connection may still connect");
    others_live(&rig);
}

#[test]
fn b21_more_data_than_a_capsule_has_room_for() {
    let rig = Rig::new();
    // Before Connect and on the admin queue 8 KiB, on an I/O queue 16 KiB.
    let (admin, io) = rig.connect(0);
    for (mut host, most) in [(Host::open(rig.addr, 0), 8192), (io, 16384), (admin, 8192)] {
        let sqe = Sqe { opc: 0x7e, ..Sqe::default() };
        let bytes = host.capsule(sqe, &vec![0; most]);
        host.send(&bytes);
        assert!(!host.complete(&[]).0.status().is_success(), "no such command");
        let bytes = host.capsule(sqe, &vec![0; most + 4]);
        host.send(&bytes);
        let terminated = host.terminated();
        assert_eq!((terminated.fes, terminated.fei), (HEADER_FIELD, 4), "{most}");
    }
    others_live(&rig);
}

/// By either descriptor, of whichever command that only reads.
#[test]
fn b23_data_in_the_capsule_of_what_reads() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    let page = [0u8; 4096];
    let identify = Sqe { opc: 6, cdw10: 1, ..Sqe::default() };
    let log = Sqe { opc: 2, cdw10: 1023 << 16 | 5, ..Sqe::default() };
    for (is_admin, sqe) in [(false, rw(2, 0, 4096)), (true, identify), (true, log)] {
        let queue = if is_admin { &mut admin } else { &mut io };
        for sgl in [SglDescriptor::in_capsule(4096), SglDescriptor::transport(4096)] {
            let mut sqe = Sqe { cid: 9, ..sqe };
            sqe.set_sgl(sgl);
            let bytes = queue.capsule(sqe, &page);
            queue.send(&bytes);
            let (cqe, data) = queue.complete(&[]);
            let got = (cqe.cid, cqe.status(), data.len());
            assert_eq!(got, (9, Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr(), 0), "{sgl:?}");
        }
        assert!(queue.run(sqe, &[], 4096).0.status().is_success());
    }
    others_live(&rig);
}

/// The length of an SGL is no measure of what is allocated or asked for.
#[test]
fn b22_an_sgl_of_four_gib() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let data = pattern(1, 512);
    let mut sqe = Sqe { cid: 1, ..rw(1, 0, 512) };
    sqe.set_sgl(SglDescriptor::transport(u32::MAX));
    let bytes = io.capsule(sqe, &[]);
    io.send(&bytes);
    let r2t: R2t = io.receive().unwrap().read();
    assert_eq!((r2t.r2to, r2t.r2tl), (0, 512));
    for pdu in io.h2c(&r2t, &data, 512) {
        io.send(&pdu);
    }
    assert!(io.complete(&[]).0.status().is_success());
    let mut sqe = Sqe { cid: 2, ..rw(2, 0, 512) };
    sqe.set_sgl(SglDescriptor::transport(u32::MAX));
    let bytes = io.capsule(sqe, &[]);
    io.send(&bytes);
    assert_eq!(io.complete(&[]).1, data);
}

/// Two commands of one identifier: each is answered, and a transfer's data goes by its tag.
#[test]
fn b25_identifiers_used_twice() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    for cid in [7, 0xffff] {
        let mut r2ts = Vec::new();
        for slba in [0, 128] {
            let mut sqe = Sqe { cid, ..rw(1, slba, 65536) };
            sqe.set_sgl(SglDescriptor::transport(65536));
            let bytes = io.capsule(sqe, &[]);
            io.send(&bytes);
            r2ts.push(io.receive().unwrap().read::<R2t>());
        }
        assert_ne!(r2ts[0].ttag, r2ts[1].ttag);
        let both = [pattern(1, 65536), pattern(2, 65536)];
        for (r2t, data) in r2ts.iter().zip(&both).rev() {
            for pdu in io.h2c(r2t, data, 65536) {
                io.send(&pdu);
            }
        }
        for _ in 0..2 {
            let (cqe, _) = io.complete(&[]);
            assert!(cqe.cid == cid && cqe.status().is_success());
        }
        assert!(io.read(0, 65536).1 == both[0] && io.read(128, 65536).1 == both[1]);
    }
    others_live(&rig);
}

/// From other emulators: sums of SLBA, NLB and block size that overflow.
#[test]
fn b_transfers_beyond_everything() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let last = (64 << 20) / 512;
    for opc in [1, 2, 5, 8] {
        for (slba, nlb_z) in [
            (0, 0xffff),
            (u64::MAX, 0),
            (u64::MAX, 0xffff),
            (u64::MAX - 0xffff, 0xffff),
            (u64::MAX / 512, 7),
            (last, 0),
            (last - 1, 1),
        ] {
            let mut sqe = Sqe { cid: 9, cdw12: nlb_z, ..rw(opc, slba, 512) };
            sqe.set_sgl(SglDescriptor::transport(u32::MAX));
            let bytes = io.capsule(sqe, &[]);
            io.send(&bytes);
            let (cqe, data) = io.complete(&[]);
            let fits = opc == 8 && slba == 0;
            assert!(cqe.status().is_success() == fits && data.is_empty(), "{opc} {slba:#x} {nlb_z:#x}");
        }
    }
    assert!(io.write(last - 1, &pattern(1, 512)).status().is_success());
    others_live(&rig);
}
