//! Hosts that do not keep to the specification: what they are told, and that nobody else notices.
//! Tests are named after the part of the catalogue of hostile input that they cover.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::time::Duration;

use common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, icreq, pattern, rw};
use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::fabrics::{Cattr, Connect, Property, invalid_parameter};
use nvme_proto::register::offset;
use nvme_proto::tcp::{DataHdr, PduType, R2t, dgst, flags};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

const HEADER_FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const HEADER_DIGEST: u16 = 3;
const OUT_OF_RANGE: u16 = 4;
const LIMIT: u16 = 5;
const UNSUPPORTED: u16 = 6;

/// Another host can still do I/O.
fn others_live(rig: &Rig) {
    let (_admin, mut io) = rig.connect(0);
    let data = pattern(1, 4096);
    assert!(io.write(0, &data).status().is_success());
    assert_eq!(io.read(0, 4096).1, data);
}

#[test]
fn a1_to_a5_bad_icreq() {
    let rig = Rig::new();
    let sent = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut host = Host::raw(rig.addr);
        let mut bytes = icreq(0).as_bytes().to_vec();
        edit(&mut bytes);
        host.send(&bytes);
        host
    };
    for plen in [0u32, 7, 127, 129, u32::MAX] {
        let t = sent(&|b| b[4..8].copy_from_slice(&plen.to_le_bytes())).terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 4), "plen {plen}");
    }
    for hlen in [0, 7, 24, 127, 255] {
        let t = sent(&|b| b[2] = hlen).terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 2), "hlen {hlen}");
    }
    assert_eq!(sent(&|b| b[8] = 1).terminated().fes, UNSUPPORTED, "PFV");
    for hpda in [32, 255] {
        let t = sent(&|b| b[10] = hpda).terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 10), "HPDA {hpda}");
    }
    // Reserved bits and any MAXR2T are no reason to refuse.
    let mut host = sent(&|b| {
        b[11] = 0xfc;
        b[12..].fill(0xff);
    });
    assert_eq!(host.receive().unwrap().ch.pdu_type, PduType::IcResp);
    others_live(&rig);
}

#[test]
fn a6_a_second_icreq() {
    let rig = Rig::new();
    let mut host = Host::open(rig.addr, dgst::HDGST_ENABLE | dgst::DDGST_ENABLE);
    host.send(icreq(3).as_bytes());
    assert_eq!(host.terminated().fes, SEQUENCE);
    others_live(&rig);
}

#[test]
fn a7_commands_before_icreq() {
    let rig = Rig::new();
    for pdu_type in [PduType::CapsuleCmd, PduType::H2cData] {
        let mut host = Host::raw(rig.addr);
        let mut bytes = vec![0u8; pdu_type.hlen().unwrap().into()];
        bytes[0] = pdu_type.0;
        let bytes = host.pdu(&bytes, &[1; 16]);
        host.send(&bytes);
        assert_eq!(host.terminated().fes, SEQUENCE);
    }
    others_live(&rig);
}

#[test]
fn a8_half_open_connections_make_room() {
    let config = TargetConfig { max_half_open: 4, ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    let mut slow: Vec<_> = (0..20).map(|_| Host::raw(rig.addr)).collect();
    others_live(&rig);
    assert!(rig.target.rejections().count(Reason::TooManyConnections) >= 10);
    assert!(slow[0].is_closed());
}

#[test]
fn a8_who_never_connects_is_closed() {
    let config = TargetConfig { connect_timeout: Duration::from_millis(100), ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    let mut silent = Host::raw(rig.addr);
    let mut polite = Host::open(rig.addr, 0);
    assert!(silent.is_closed() && polite.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::HalfOpen), 2);
}

#[test]
fn a9_a10_types_that_hosts_do_not_send() {
    let rig = Rig::new();
    for pdu_type in [1u8, 3, 5, 7, 8, 9, 0x0a, 0x80, 0xff] {
        let mut host = Host::open(rig.addr, 0);
        let mut bytes = [0u8; 24];
        (bytes[0], bytes[2], bytes[4]) = (pdu_type, 24, 24);
        host.send(&bytes);
        let t = host.terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 0), "type {pdu_type:#x}");
    }
    assert_eq!(rig.target.rejections().count(Reason::PduType), 9);
    others_live(&rig);
}

#[test]
fn a11_digest_flags_must_be_as_agreed() {
    let rig = Rig::new();
    for (digests, flip) in [(0, flags::HDGSTF), (0, flags::DDGSTF), (1, flags::HDGSTF), (2, flags::DDGSTF)] {
        let mut host = Host::open(rig.addr, digests);
        let mut bytes = host.capsule(Sqe::default(), &[0; 64]);
        bytes[1] ^= flip;
        host.send(&bytes);
        let t = host.terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 1), "digests {digests} flip {flip}");
    }
    others_live(&rig);
}

#[test]
fn a12_to_a14_lengths_and_offsets() {
    let rig = Rig::new();
    let sent = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut host = Host::open(rig.addr, 0);
        let mut bytes = host.capsule(Sqe::default(), &[0; 64]);
        edit(&mut bytes);
        host.send(&bytes);
        host.terminated()
    };
    for plen in [0u32, 71, 72 + 8193, 1 << 20, u32::MAX] {
        // A PDU that is shorter than its own PDO is one whose PDO is wrong.
        let t = sent(&|b| b[4..8].copy_from_slice(&plen.to_le_bytes()));
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, if plen < 72 { 3 } else { 4 }), "plen {plen}");
    }
    for pdo in [0u8, 1, 71, 73, 74, 136, 140, 255] {
        let t = sent(&|b| b[3] = pdo);
        let fei = if pdo == 136 { 4 } else { 3 };
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, fei), "pdo {pdo}");
    }
    others_live(&rig);
}

#[test]
fn a15_wrong_digests() {
    let rig = Rig::new();
    // A wrong data digest fails the command, and the connection goes on: in the capsule, and by R2T.
    let (_admin, mut io) = rig.connect(dgst::DDGST_ENABLE);
    let data = pattern(3, 4096);
    let mut sqe = rw(1, 0, 4096);
    sqe.cid = 9;
    sqe.set_sgl(SglDescriptor::in_capsule(4096));
    let mut bytes = io.capsule(sqe, &data);
    *bytes.last_mut().unwrap() ^= 1;
    io.send(&bytes);
    assert_eq!(io.complete(&[]).0.status(), Status::TRANSIENT_TRANSPORT_ERROR);
    let data = pattern(4, 65536);
    let mut sqe = rw(1, 0, data.len());
    sqe.cid = 10;
    sqe.set_sgl(SglDescriptor::transport(65536));
    let capsule = io.capsule(sqe, &[]);
    io.send(&capsule);
    let r2t: R2t = io.receive().unwrap().read();
    let mut pdus = io.h2c(&r2t, &data, 16384);
    *pdus[1].last_mut().unwrap() ^= 0x80;
    for pdu in pdus {
        io.send(&pdu);
    }
    assert_eq!(io.complete(&[]).0.status(), Status::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(io.read(0, 4096).1, vec![0; 4096], "nothing of it was written");
    assert_eq!(rig.target.rejections().count(Reason::DataDigest), 2);
    // A wrong header digest ends the connection.
    let mut host = Host::open(rig.addr, dgst::HDGST_ENABLE);
    let mut bytes = host.capsule(Sqe::default(), &[]);
    *bytes.last_mut().unwrap() ^= 1;
    host.send(&bytes);
    assert_eq!(host.terminated().fes, HEADER_DIGEST);
}

#[test]
fn a16_termination_by_the_host() {
    let rig = Rig::new();
    for (plen, fes) in [(24u32, 0u16), (24, 6), (152, 7), (152, 0xffff)] {
        let mut host = Host::open(rig.addr, 0);
        let mut bytes = vec![0u8; plen as usize];
        (bytes[0], bytes[2]) = (2, 24);
        bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        bytes[8..10].copy_from_slice(&fes.to_le_bytes());
        host.send(&bytes);
        assert!(host.receive().is_none(), "it is closed without an answer");
    }
    let mut host = Host::open(rig.addr, 0);
    let mut bytes = [0u8; 24];
    (bytes[0], bytes[2], bytes[4]) = (2, 24, 153);
    host.send(&bytes);
    assert_eq!(host.terminated().fes, HEADER_FIELD);
    assert_eq!(rig.target.rejections().count(Reason::HostTerminated), 4);
    others_live(&rig);
}

#[test]
fn a17_bytes_come_one_by_one_or_all_at_once() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(3);
    let data = pattern(5, 1024);
    let mut sqe = rw(1, 8, 1024);
    sqe.cid = 100;
    sqe.set_sgl(SglDescriptor::in_capsule(1024));
    let bytes = io.capsule(sqe, &data);
    for byte in &bytes {
        io.send(std::slice::from_ref(byte));
    }
    assert!(io.complete(&[]).0.status().is_success());
    let mut all = Vec::new();
    for cid in 0..64 {
        let mut sqe = rw(2, 8, 1024);
        sqe.cid = cid;
        sqe.set_sgl(SglDescriptor::transport(1024));
        all.extend(io.capsule(sqe, &[]));
    }
    io.send(&all);
    let mut seen: Vec<u16> = (0..64)
        .map(|_| {
            let (cqe, back) = io.complete(&[]);
            assert!(back == data);
            cqe.cid
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..64).collect::<Vec<_>>());
}

#[test]
fn a17_connections_break_anywhere() {
    let rig = Rig::new();
    let whole = {
        let host = Host::raw(rig.addr);
        let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
        let mut sqe = connect.to_sqe(1);
        sqe.set_sgl(SglDescriptor::in_capsule(1024));
        let data = connect_data(SUBNQN, HOSTNQN, 0xffff);
        [icreq(0).as_bytes(), &host.capsule(sqe, data.as_bytes())].concat()
    };
    for cut in (0..whole.len()).step_by(53) {
        Host::raw(rig.addr).stream.write_all(&whole[..cut]).unwrap();
    }
    others_live(&rig);
}

/// A write of 64 KiB on an I/O queue, up to its R2T.
fn asked(rig: &Rig) -> (Host, Host, R2t) {
    let (admin, mut io) = rig.connect(0);
    let mut sqe = rw(1, 0, 65536);
    sqe.cid = 77;
    sqe.set_sgl(SglDescriptor::transport(65536));
    let capsule = io.capsule(sqe, &[]);
    io.send(&capsule);
    let pdu = io.receive().unwrap();
    assert_eq!(pdu.ch.pdu_type, PduType::R2t);
    (admin, io, pdu.read())
}

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
    for nsid in [0, 2, 33, 0xffff_fffe, 0xffff_ffff] {
        assert_eq!(
            status(&|s| s.nsid = nsid, &block),
            Status::INVALID_NAMESPACE_OR_FORMAT.dnr(),
            "{nsid:#x}"
        );
    }
    for opc in (0x0a..0x7f).chain(0x80..=0xff) {
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

#[test]
fn c28_to_c35_data_that_was_not_asked_for() {
    let rig = Rig::new();
    type Edit = fn(&mut DataHdr);
    let cases: [(&str, u16, Edit); 10] = [
        ("no such tag", HEADER_FIELD, |h| h.ttag = 1),
        ("the largest tag", HEADER_FIELD, |h| h.ttag = 0xffff),
        ("another command", HEADER_FIELD, |h| h.cccid = 78),
        ("a gap", OUT_OF_RANGE, |h| h.datao = 4096),
        ("an offset beyond", OUT_OF_RANGE, |h| h.datao = u32::MAX),
        ("no length", HEADER_FIELD, |h| h.datal = 0),
        ("another length", HEADER_FIELD, |h| h.datal = 512),
        ("the largest length", HEADER_FIELD, |h| h.datal = u32::MAX),
        ("last too early", HEADER_FIELD, |h| h.ch.flags = flags::LAST_PDU),
        ("misaligned", OUT_OF_RANGE, |h| h.datao = 1),
    ];
    for (what, fes, edit) in cases {
        let (_admin, mut io, r2t) = asked(&rig);
        let mut header = DataHdr::new_zeroed();
        header.ch.pdu_type = PduType::H2cData;
        (header.cccid, header.ttag, header.datal) = (r2t.cccid, r2t.ttag, 4096);
        edit(&mut header);
        let bytes = io.pdu(header.as_bytes(), &[1; 4096]);
        io.send(&bytes);
        assert_eq!(io.terminated().fes, fes, "{what}");
    }
    // Never the last, too much, and again after the end.
    let (_admin, mut io, r2t) = asked(&rig);
    let data = pattern(6, 65536);
    let mut pdus = io.h2c(&r2t, &data, 65536);
    pdus[0][1] &= !flags::LAST_PDU;
    io.send(&pdus[0]);
    assert_eq!(io.terminated().fes, HEADER_FIELD, "the last is not marked");
    let (_admin, mut io, r2t) = asked(&rig);
    let pdus = io.h2c(&r2t, &data, 65536);
    io.send(&pdus[0]);
    assert!(io.complete(&[]).0.status().is_success());
    io.send(&pdus[0]);
    assert_eq!(io.terminated().fes, HEADER_FIELD, "the transfer is over");
    // Longer than MAXH2CDATA.
    let (_admin, mut io, _) = asked(&rig);
    let mut header = DataHdr::new_zeroed();
    header.ch.pdu_type = PduType::H2cData;
    let mut bytes = io.pdu(header.as_bytes(), &[]);
    bytes[3] = 24;
    bytes[4..8].copy_from_slice(&(24 + (128 << 10) + 4u32).to_le_bytes());
    io.send(&bytes);
    assert_eq!(io.terminated().fes, HEADER_FIELD);
    others_live(&rig);
}

#[test]
fn c36_c37_hosts_that_vanish_owing_data() {
    let config = TargetConfig { shard_budget: 128 << 10, ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    for _ in 0..20 {
        let (mut admin, mut io, r2t) = asked(&rig);
        let part = io.h2c(&r2t, &[1; 65536], 4096);
        io.send(&part[0]);
        // A reset while data is owed ends all the same.
        admin.property_set(offset::CC, 0x46_0000);
        admin.wait_csts(1, 0);
        assert!(io.is_closed());
    }
    others_live(&rig);
}

#[test]
fn d38_to_d42_bad_connects() {
    let rig = Rig::new();
    let refused = |connect: Connect, subnqn: &str, hostnqn: &str, cntlid: u16| {
        let mut host = Host::open(rig.addr, 0);
        let cqe = host.connect(connect, &connect_data(subnqn, hostnqn, cntlid));
        (cqe.status(), cqe.dw0)
    };
    let admin = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let io = Connect { qid: 1, ..admin };
    let parameter = Status::CONNECT_INVALID_PARAMETERS.dnr();
    for cntlid in [0, 1, 0xffef, 0xfffe, 0xffff] {
        let got = refused(io, SUBNQN, HOSTNQN, cntlid);
        assert_eq!(got, (parameter, invalid_parameter(true, 16)), "I/O queue of controller {cntlid:#x}");
    }
    for cntlid in [0, 1, 0xfffe] {
        assert_eq!(refused(admin, SUBNQN, HOSTNQN, cntlid), (parameter, invalid_parameter(true, 16)));
    }
    for sqsize_z in [0, 1024, 65535] {
        let connect = Connect { sqsize_z, ..admin };
        assert_eq!(refused(connect, SUBNQN, HOSTNQN, 0xffff), (parameter, invalid_parameter(false, 44)));
    }
    let format = Connect { recfmt: 1, ..admin };
    assert_eq!(refused(format, SUBNQN, HOSTNQN, 0xffff).0, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    // D.49: a subsystem that is not there, and one that this host may not see.
    let unknown = refused(admin, "nqn.2024-01.test:nothing", HOSTNQN, 0xffff);
    rig.subsystem.set_allowed_hosts(vec![nvme_proto::Nqn::new("nqn.2024-01.test:friend").unwrap()]);
    assert_eq!(refused(admin, SUBNQN, HOSTNQN, 0xffff), unknown);
    assert!(refused(admin, SUBNQN, "nqn.2024-01.test:friend", 0xffff).0.is_success());
    rig.subsystem.set_allowed_hosts(Vec::new());
    // D.41: names that are none.
    let mut host = Host::open(rig.addr, 0);
    let mut data = connect_data(SUBNQN, HOSTNQN, 0xffff);
    for (field, offset) in [(0, 256), (1, 512)] {
        for junk in [[b'n'; 256], [0; 256], [0xff; 256], [b'\n'; 256]] {
            let mut bad = data;
            *(if field == 0 { &mut bad.subnqn } else { &mut bad.hostnqn }) = junk;
            let cqe = host.connect(admin, &bad);
            assert_eq!((cqe.status(), cqe.dw0), (parameter, invalid_parameter(true, offset)));
        }
    }
    assert_eq!(rig.target.rejections().count(Reason::ConnectHostNqn), 4);
    // After all this the same connection may still connect.
    data.hostid = [0; 16];
    assert!(host.connect(admin, &data).status().is_success());
}

#[test]
fn d38_a_controller_of_another_host() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    let connect = Connect { recfmt: 0, qid: 1, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let parameter = (Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(true, 16));
    let mut other = Host::open(rig.addr, 0);
    let cqe = other.connect(connect, &connect_data(SUBNQN, "nqn.2024-01.test:other", cntlid));
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    let mut data = connect_data(SUBNQN, HOSTNQN, cntlid);
    data.hostid = [8; 16];
    let cqe = other.connect(connect, &data);
    assert_eq!((cqe.status(), cqe.dw0), parameter);
    // D.39: a queue beyond what there is.
    let cqe = other.connect(Connect { qid: 1000, ..connect }, &connect_data(SUBNQN, HOSTNQN, cntlid));
    assert_eq!((cqe.status(), cqe.dw0), (parameter.0, invalid_parameter(false, 42)));
}

#[test]
fn d43_commands_out_of_place() {
    let rig = Rig::new();
    let sequence = Status::COMMAND_SEQUENCE_ERROR.dnr();
    let get = Property { offset: offset::CAP, size: 1, value: 0 };
    let mut host = Host::open(rig.addr, 0);
    assert_eq!(host.run(get.get(0), &[], 0).0.status(), sequence, "before Connect");
    assert_eq!(host.read(0, 512).0.status(), sequence, "before Connect");
    let (mut admin, mut io) = rig.connect(0);
    assert_eq!(io.run(get.get(0), &[], 0).0.status(), Status::INVALID_OPCODE.dnr(), "on an I/O queue");
    let again = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    for queue in [&mut admin, &mut io] {
        let cqe = queue.connect(again, &connect_data(SUBNQN, HOSTNQN, 0xffff));
        assert_eq!(cqe.status(), sequence, "twice");
    }
}

#[test]
fn d45_properties() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let invalid = Status::INVALID_FIELD.dnr();
    let bad_gets = [
        (offset::CAP, 0),
        (offset::CC, 1),
        (offset::CSTS + 1, 0),
        (offset::ASQ, 1),
        (offset::NSSD, 0),
        (0x1000, 0),
        (u32::MAX, 0),
        (offset::VS, 2),
        (offset::VS, 7),
    ];
    for (offset, size) in bad_gets {
        let sqe = Property { offset, size, value: 0 }.get(0);
        assert_eq!(admin.run(sqe, &[], 0).0.status(), invalid, "get {offset:#x} {size}");
    }
    for offset in [offset::CAP, offset::VS, offset::CSTS, offset::NSSR, offset::AQA] {
        assert_eq!(admin.property_set(offset, 1).status(), invalid, "set {offset:#x}");
    }
    // Enabling with what it cannot do makes the controller fail, until it is reset.
    for cc in [0x46_0081u64, 0x46_0801, 0x46_0011, 0x66_0001, 0x36_0001] {
        admin.property_set(offset::CC, 0);
        admin.wait_csts(1, 0);
        admin.property_set(offset::CC, cc);
        assert_eq!(admin.property_get(offset::CSTS, 0) & 3, 2, "CC {cc:#x}");
    }
    admin.property_set(offset::CC, 0);
    for _ in 0..50 {
        admin.property_set(offset::CC, 0x46_0001);
        admin.property_set(offset::CC, 0x46_0000);
    }
    admin.wait_csts(1, 0);
    admin.enable();
}

#[test]
fn d44_a_silent_host_loses_its_controller() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 1);
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    assert!(admin.is_closed() && io.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::KeepAlive), 1);
    others_live(&rig);
}

#[test]
fn d46_controllers_come_and_go() {
    let rig = Rig::new();
    for _ in 0..200 {
        let mut host = Host::open(rig.addr, 0);
        host.connect_admin(SUBNQN, 0);
    }
    others_live(&rig);
    for _ in 0..2000 {
        if rig.subsystem.controllers().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("controllers are left: {:?}", rig.subsystem.controllers());
}

#[test]
fn c36_what_a_host_pins_is_bounded() {
    let config = TargetConfig { shard_budget: 1 << 20, ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    // A host that asks for much and sends nothing gets R2Ts for its quarter, and no more.
    let (_admin, mut greedy) = rig.connect(0);
    for cid in 0..100 {
        let mut sqe = Sqe { cid, ..rw(1, 0, 65536) };
        sqe.set_sgl(SglDescriptor::transport(65536));
        let bytes = greedy.capsule(sqe, &[]);
        greedy.send(&bytes);
    }
    let r2ts: Vec<R2t> = (0..4).map(|_| greedy.receive().unwrap().read()).collect();
    others_live(&rig);
    let mut flush = Sqe { opc: 0, nsid: 1, cid: 500, ..Sqe::default() };
    flush.set_sgl(SglDescriptor::transport(0));
    let bytes = greedy.capsule(flush, &[]);
    greedy.send(&bytes);
    assert_eq!(greedy.receive().unwrap().ch.pdu_type, PduType::CapsuleResp, "no more than its quarter");
    // As it sends its data, the others follow: all hundred end.
    let data = pattern(8, 65536);
    for r2t in r2ts {
        let pdus = greedy.h2c(&r2t, &data, 65536);
        greedy.send(&pdus[0]);
    }
    let mut ended = 0;
    while ended < 100 {
        assert!(greedy.complete(&data).0.status().is_success());
        ended += 1;
    }
}

#[test]
fn e55_events_end_with_a_reset() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    admin.connect_admin(SUBNQN, 0);
    for round in 0..20 {
        admin.enable();
        // One more than AERL allows.
        for cid in 500..505 {
            let mut sqe = Sqe { opc: 0xc, cid, ..Sqe::default() };
            sqe.set_sgl(SglDescriptor::transport(0));
            let bytes = admin.capsule(sqe, &[]);
            admin.send(&bytes);
        }
        let (cqe, _) = admin.complete(&[]);
        assert_eq!((cqe.cid, cqe.status()), (504, Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.dnr()));
        let mut sqe = Property { offset: offset::CC, size: 0, value: 0x46_0000 }.set(round);
        sqe.set_sgl(SglDescriptor::transport(0));
        let bytes = admin.capsule(sqe, &[]);
        admin.send(&bytes);
        let ended: Vec<_> = (0..5).map(|_| admin.complete(&[]).0).collect();
        let aborted = ended.iter().filter(|c| c.cid >= 500 && c.status() == Status::ABORT_REQUESTED);
        assert_eq!(aborted.count(), 4);
        admin.wait_csts(1, 0);
    }
}

/// Sessions with bytes changed at random: whatever becomes of them, the target and its other hosts go on.
#[test]
fn a_to_e_mutated_sessions() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let mut seed = 0x1234_5678u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let connect = |qid| {
        let connect = Connect { recfmt: 0, qid, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
        let mut sqe = connect.to_sqe(qid);
        sqe.set_sgl(SglDescriptor::in_capsule(1024));
        sqe
    };
    let cntlid = rig.subsystem.controllers()[0].cntlid();
    for round in 0..400u16 {
        let mut host = Host::raw(rig.addr);
        let (data, first) = match round % 2 {
            0 => (connect_data(SUBNQN, HOSTNQN, 0xffff), connect(0)),
            _ => (connect_data(SUBNQN, HOSTNQN, cntlid), connect(2 + round)),
        };
        let mut pdus = vec![icreq(0).as_bytes().to_vec(), host.capsule(first, data.as_bytes())];
        if round % 2 == 0 {
            let enable = Property { offset: offset::CC, size: 0, value: 0x46_0001 };
            pdus.push(host.capsule(enable.set(1), &[]));
        }
        for cid in 10..20 {
            let mut sqe = Sqe { cid, ..rw([0, 1, 2, 5, 8, 9, 6, 0xa, 0xc, 2][random(10)], 0, 4096) };
            (sqe.cdw10, sqe.cdw11) = (random(300) as u32, random(8) as u32);
            let in_capsule = random(2) == 0;
            sqe.set_sgl(match in_capsule {
                true => SglDescriptor::in_capsule(4096),
                false => SglDescriptor::transport(4096),
            });
            pdus.push(host.capsule(sqe, if in_capsule { &[7; 4096] } else { &[] }));
        }
        // The session as far as the last good response, then the rest with changed bytes.
        for pdu in &mut pdus[usize::from(round % 3)..] {
            for _ in 0..random(3) {
                let at = random(pdu.len().min(128));
                pdu[at] ^= 1 << random(8);
            }
        }
        // The target may hang up at any point.
        let _ = host.stream.write_all(&pdus.concat());
    }
    assert_eq!(admin.property_get(offset::CSTS, 0) & 3, 1);
    others_live(&rig);
}

/// Every CNS, log page, and feature, with sensible and with absurd parameters: each is answered.
#[test]
fn e52_to_e54_every_code() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let mut run = |sqe: Sqe, write: &[u8], read: usize| {
        let (cqe, data) = admin.run(sqe, write, read);
        assert!(cqe.status().is_success() || data.is_empty(), "data with an error: {sqe:?}");
        cqe.status()
    };
    for code in 0..256u32 {
        for (nsid, high) in [(0, 0), (1, 0), (1, 0xffff_ff00), (2, 1 << 8), (33, 0), (u32::MAX, u32::MAX)] {
            let cdw10 = code | high << 8;
            run(Sqe { opc: 6, nsid, cdw10, cdw11: high, ..Sqe::default() }, &[], 4096);
            // Set Features with and without data; KATO is left alone, for it would end us.
            if code != 0xf {
                run(Sqe { opc: 9, nsid, cdw10, cdw11: high, ..Sqe::default() }, &[0xff; 4096], 0);
                run(Sqe { opc: 9, nsid, cdw10: code, cdw11: high, ..Sqe::default() }, &[0; 512], 0);
            }
            run(Sqe { opc: 0xa, nsid, cdw10: code | (high & 7) << 8, ..Sqe::default() }, &[], 4096);
            // NUMD, LPO and the rest of a log page.
            for (numd, lpo, cdw14) in
                [(0u32, 0u64, 0u32), (1023, 0, 0), (3, 4, 1 << 23), (63, 0x1000, 0), (u32::MAX, 0, 0)]
            {
                let sqe = Sqe {
                    opc: 2,
                    nsid,
                    cdw10: code | numd << 16,
                    cdw11: numd >> 16,
                    cdw12: lpo as u32,
                    cdw13: high,
                    cdw14,
                    ..Sqe::default()
                };
                run(sqe, &[], 4096);
            }
        }
        if code != 0xc && code != 9 && code != 0x7f {
            run(Sqe { opc: code as u8, nsid: 1, ..Sqe::default() }, &[], 4096);
        }
    }
    // Buffers that are too small for what is asked.
    for len in [0, 4, 4092] {
        let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
        assert_eq!(run(Sqe { opc: 6, cdw10: 1, ..Sqe::default() }, &[], len), length);
    }
    assert!(run(Sqe { opc: 6, cdw10: 1, ..Sqe::default() }, &[], 8192).is_success(), "longer than needed");
    others_live(&rig);
}
