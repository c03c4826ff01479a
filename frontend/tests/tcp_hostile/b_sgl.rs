//! B: capsules and the descriptors of their data.

use frontend::tcp::Reason;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::{Sqe, Status};

use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, rw};
use super::{LIMIT, others_live};

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
    let kinds = [SglType::BitBucket, SglType::Segment, SglType::LastSegment, SglType::KeyedDataBlock];
    for kind in kinds {
        let sgl = SglDescriptor::new(kind, SglSubtype::Address, 0, 512);
        let got = status(&|s| s.set_sgl(sgl), &block);
        assert_eq!(got, Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr(), "{kind:?}");
    }
    let offset = SglDescriptor::new(SglType::DataBlock, SglSubtype::Offset, 8, 512);
    assert_eq!(status(&|s| s.set_sgl(offset), &block), Status::SGL_OFFSET_INVALID.dnr());
    let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
    for len in [0, 511, 513, u32::MAX] {
        let got = status(&|s| s.set_sgl(SglDescriptor::in_capsule(len)), &block);
        assert_eq!(got, length, "{len}");
    }
    assert_eq!(status(&|_| {}, &[]), length, "no data came");
    assert_eq!(status(&|s| s.set_sgl(SglDescriptor::transport(0)), &[]), length);
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
    for nsid in [0, 33, 0xffff_fffe, 0xffff_ffff] {
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
}

#[test]
fn b26_more_commands_than_the_queue_has() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    let connect = Connect { recfmt: 0, qid: 1, sqsize_z: 3, cattr: Cattr::new(), kato: 0 };
    let cqe = io.connect(connect, &connect_data(SUBNQN, HOSTNQN, cntlid));
    assert!(cqe.status().is_success());
    for cid in 0..5 {
        let mut sqe = rw(1, 0, 16384);
        sqe.cid = cid;
        sqe.set_sgl(SglDescriptor::transport(16384));
        let bytes = io.capsule(sqe, &[]);
        io.send(&bytes);
    }
    assert_eq!(io.terminated().fes, LIMIT);
    assert_eq!(rig.target.rejections().count(Reason::QueueOverrun), 1);
    others_live(&rig);
}
