//! C: data that was asked for, and data that was not.

use frontend::tcp::TargetConfig;
use nvme_proto::Sqe;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::register::offset;
use nvme_proto::tcp::{DataHdr, PduType, R2t, flags};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::common::{Rig, pattern, rw};
use super::{HEADER_FIELD, OUT_OF_RANGE, asked, others_live};

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
