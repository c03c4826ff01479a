//! C: data that was asked for, and data that was not.

use std::time::Duration;

use frontend::Namespace;
use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::register::offset;
use nvme_proto::tcp::{DataHdr, PduType, R2t, flags};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::common::stall::Stall;
use super::common::{Host, Rig, pattern, rw};
use super::{HEADER_FIELD, LIMIT, OUT_OF_RANGE, SEQUENCE, asked, others_live};

#[test]
fn c28_to_c35_data_that_was_not_asked_for() {
    let rig = Rig::new();
    type Edit = fn(&mut DataHdr);
    let cases: [(&str, u16, Edit); 10] = [
        ("no such tag", HEADER_FIELD, |h| h.ttag = 1),
        ("the largest tag", HEADER_FIELD, |h| h.ttag = 0xffff),
        ("another command", HEADER_FIELD, |h| h.cccid = 78),
        ("a gap", SEQUENCE, |h| h.datao = 4096),
        ("an offset beyond", OUT_OF_RANGE, |h| h.datao = u32::MAX),
        ("no length", HEADER_FIELD, |h| h.datal = 0),
        ("another length", HEADER_FIELD, |h| h.datal = 512),
        ("the largest length", HEADER_FIELD, |h| h.datal = u32::MAX),
        ("last too early", HEADER_FIELD, |h| h.ch.flags = flags::LAST_PDU),
        ("misaligned", SEQUENCE, |h| h.datao = 1),
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
    assert_eq!(io.terminated().fes, LIMIT);
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

/// An H2CData of 4096 bytes whose header was changed, sent where an R2T for 64 KiB is outstanding.
fn sent(io: &mut Host, r2t: &R2t, edit: impl Fn(&mut DataHdr)) {
    let mut header = DataHdr::new_zeroed();
    header.ch.pdu_type = PduType::H2cData;
    (header.cccid, header.ttag, header.datal) = (r2t.cccid, r2t.ttag, 4096);
    edit(&mut header);
    let bytes = io.pdu(header.as_bytes(), &[1; 4096]);
    io.send(&bytes);
}

#[test]
fn c28_data_that_nobody_asked_for() {
    let rig = Rig::new();
    for ttag in [0, 1, 1023, 1024, 4095, 0xffff] {
        let (_admin, mut io) = rig.connect(0);
        let nothing = R2t { ttag, ..R2t::new_zeroed() };
        sent(&mut io, &nothing, |_| {});
        let terminated = io.terminated();
        assert_eq!((terminated.fes, terminated.fei), (HEADER_FIELD, 10), "{ttag}");
    }
    // Nor before Connect.
    let mut host = Host::open(rig.addr, 0);
    sent(&mut host, &R2t::new_zeroed(), |_| {});
    assert_eq!(host.terminated().fes, HEADER_FIELD);
    assert_eq!(rig.target.rejections().count(Reason::Transfer), 7);
    others_live(&rig);
}

#[test]
fn c29_c30_the_tag_of_another_command() {
    let rig = Rig::new();
    let (_admin, mut io, first) = asked(&rig);
    let mut sqe = Sqe { cid: 78, ..rw(1, 128, 65536) };
    sqe.set_sgl(SglDescriptor::transport(65536));
    let capsule = io.capsule(sqe, &[]);
    io.send(&capsule);
    let second: R2t = io.receive().unwrap().read();
    sent(&mut io, &first, |h| h.ttag = second.ttag);
    let terminated = io.terminated();
    assert_eq!((terminated.fes, terminated.fei), (HEADER_FIELD, 8));
    others_live(&rig);
}

#[test]
fn c31_overlaps_and_steps_back() {
    let rig = Rig::new();
    for datao in [0u32, 2048, 4095, 8192] {
        let (_admin, mut io, r2t) = asked(&rig);
        sent(&mut io, &r2t, |_| {});
        sent(&mut io, &r2t, |h| h.datao = datao);
        let terminated = io.terminated();
        assert_eq!((terminated.fes, terminated.fei), (SEQUENCE, 0), "{datao} after 0 to 4096");
    }
    let (_admin, mut io) = rig.connect(0);
    assert_eq!(io.read(0, 65536).1, vec![0; 65536], "nothing of it was written");
    others_live(&rig);
}

#[test]
fn c32_to_c34_ends_that_are_none() {
    let rig = Rig::new();
    // DATAO + DATAL wraps.
    let (_admin, mut io, r2t) = asked(&rig);
    sent(&mut io, &r2t, |h| h.datao = u32::MAX - 4095);
    assert_eq!(io.terminated().fes, OUT_OF_RANGE);
    // The last PDU twice.
    let (_admin, mut io, r2t) = asked(&rig);
    let pdus = io.h2c(&r2t, &[1; 65536], 32768);
    io.send(&pdus[0]);
    io.send(&pdus[1]);
    io.send(&pdus[1]);
    assert_eq!(io.terminated().fes, HEADER_FIELD);
    // More than was asked for.
    let (_admin, mut io) = rig.connect(0);
    let mut sqe = Sqe { cid: 77, ..rw(1, 0, 2048) };
    sqe.set_sgl(SglDescriptor::transport(2048));
    let capsule = io.capsule(sqe, &[]);
    io.send(&capsule);
    let r2t: R2t = io.receive().unwrap().read();
    sent(&mut io, &r2t, |h| h.ch.flags |= flags::LAST_PDU);
    assert_eq!(io.terminated().fes, OUT_OF_RANGE);
    others_live(&rig);
}

/// A read has no buffer that data could go to, nor has a command that has ended.
#[test]
fn c35_data_for_a_read_and_for_what_has_ended() {
    let rig = Rig::new();
    let volume = Stall::new(true);
    let stalled = Namespace { nsid: 7, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.subsystem.add_namespace(stalled).unwrap();
    let (mut bystander, _io) = rig.connect(0);
    for (cccid, ttag) in [(2u16, 1u16), (1, 0)] {
        let (mut admin, mut io) = rig.connect(0);
        // A read that is aborted, and one that is under way, in the slots from 0 on.
        for cid in [1, 2] {
            let mut sqe = Sqe { cid, nsid: 7, ..rw(2, 0, 4096) };
            sqe.set_sgl(SglDescriptor::transport(4096));
            let bytes = io.capsule(sqe, &[]);
            io.send(&bytes);
        }
        while volume.held() < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let abort = Sqe { opc: 8, cdw10: 1 | 1 << 16, ..Sqe::default() };
        assert!(admin.run(abort, &[], 0).0.status().is_success());
        assert_eq!(io.complete(&[]).0.status(), Status::ABORT_REQUESTED);
        let tag = R2t { cccid, ttag, ..R2t::new_zeroed() };
        sent(&mut io, &tag, |h| h.ch.flags |= flags::LAST_PDU);
        let terminated = io.terminated();
        assert_eq!((terminated.fes, terminated.fei), (HEADER_FIELD, 10));
        while volume.held() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(bystander.property_get(offset::CSTS, 0) & 1, 1);
    others_live(&rig);
}

#[test]
fn c36_data_that_never_comes() {
    let config = TargetConfig { data_timeout: Duration::from_millis(50), ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    let (mut bystander, mut other) = rig.connect(0);
    let (_admin, mut io, r2t) = asked(&rig);
    let part = io.h2c(&r2t, &[1; 65536], 4096);
    io.send(&part[0]);
    assert!(io.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::DataTimeout), 1);
    assert_eq!(bystander.property_get(offset::CSTS, 0) & 1, 1);
    assert!(other.write(0, &pattern(1, 512)).status().is_success(), "who owes nothing stays");
}
