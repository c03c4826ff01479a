//! A: the framing of PDUs.

use std::io::Write;
use std::time::Duration;

use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::tcp::{PduType, R2t, dgst, flags};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use super::common::{Host, Rig, icreq, pattern, rw};
use super::{HEADER_DIGEST, HEADER_FIELD, SEQUENCE, UNSUPPORTED, others_live};

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
    for pfv in [1u16, 0x100, 0xffff] {
        let t = sent(&|b| b[8..10].copy_from_slice(&pfv.to_le_bytes())).terminated();
        assert_eq!((t.fes, t.fei), (UNSUPPORTED, 8), "PFV {pfv}");
    }
    for hpda in 32..=255 {
        let t = sent(&|b| b[10] = hpda).terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 10), "HPDA {hpda}");
    }
    // Reserved bits and any MAXR2T are no reason to refuse, nor is any alignment that there is.
    for hpda in 0..32 {
        let mut host = sent(&|b| {
            b[1] = 0xff;
            (b[10], b[11]) = (hpda, 0xfc);
            b[12..].fill(0xff);
        });
        assert_eq!(host.receive().unwrap().ch.pdu_type, PduType::IcResp);
    }
    others_live(&rig);
}

#[test]
fn a6_a_second_icreq() {
    let rig = Rig::new();
    for digests in 0..4 {
        // As the first was, and longer by the digests that are on now.
        for second in
            [icreq(3).as_bytes().to_vec(), Host::open(rig.addr, digests).pdu(icreq(3).as_bytes(), &[1; 8])]
        {
            let mut host = Host::open(rig.addr, digests);
            host.send(&second);
            assert_eq!(host.terminated().fes, SEQUENCE, "digests {digests}");
            let (mut admin, _io) = rig.connect(digests);
            admin.send(&second);
            assert_eq!(admin.terminated().fes, SEQUENCE, "of a controller");
        }
    }
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
    let types = (1u8..=255).filter(|pdu_type| ![2, 4, 6].contains(pdu_type));
    for pdu_type in types.clone() {
        let mut host = Host::open(rig.addr, 0);
        let mut bytes = [0u8; 24];
        (bytes[0], bytes[2], bytes[4]) = (pdu_type, 24, 24);
        host.send(&bytes);
        let t = host.terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, 0), "type {pdu_type:#x}");
    }
    assert_eq!(rig.target.rejections().count(Reason::PduType), types.count() as u64);
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
    // With digests a PDU is as long as both of them too.
    for (plen, fei) in [(72u32, 3), (75, 3), (77, 4), (79, 4), (80, 4)] {
        let mut host = Host::open(rig.addr, 3);
        let mut bytes = host.capsule(Sqe::default(), &[0; 64]);
        bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        host.send(&bytes);
        let t = host.terminated();
        assert_eq!((t.fes, t.fei), (HEADER_FIELD, fei), "plen {plen}");
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
    let (_admin, mut io) = rig.connect(dgst::HDGST_ENABLE);
    let bytes = io.capsule(Sqe { cid: 11, ..sqe }, &[]);
    io.send(&bytes);
    let r2t: R2t = io.receive().unwrap().read();
    let mut pdus = io.h2c(&r2t, &data, 16384);
    pdus[0][24] ^= 1;
    io.send(&pdus[0]);
    assert_eq!(io.terminated().fes, HEADER_DIGEST, "of data");
    assert_eq!(rig.target.rejections().count(Reason::HeaderDigest), 2);
    others_live(&rig);
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
    for plen in [0, 23, 153, 255] {
        let mut host = Host::open(rig.addr, 0);
        let mut bytes = [0u8; 24];
        (bytes[0], bytes[2], bytes[4]) = (2, 24, plen);
        host.send(&bytes);
        assert!(host.receive().is_none() && host.is_closed(), "of a wrong length it is one as well (3.5)");
    }
    assert_eq!(rig.target.rejections().count(Reason::HostTerminated), 8);
    others_live(&rig);
}

#[test]
fn a7_termination_before_icreq() {
    let rig = Rig::new();
    let mut host = Host::raw(rig.addr);
    let mut bytes = [0u8; 24];
    (bytes[0], bytes[2], bytes[4]) = (2, 24, 24);
    host.send(&bytes);
    assert!(host.receive().is_none(), "it is closed without an answer");
    others_live(&rig);
}

#[test]
fn a8_an_icreq_byte_by_byte_takes_too_long() {
    let config = TargetConfig { connect_timeout: Duration::from_millis(50), ..TargetConfig::default() };
    let rig = Rig::with(config, "127.0.0.1:0");
    let mut slow = Host::raw(rig.addr);
    // Far fewer than make an ICReq, however late the clock is looked at.
    for byte in &icreq(0).as_bytes()[..120] {
        if slow.stream.write_all(std::slice::from_ref(byte)).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(slow.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::HalfOpen), 1);
}

#[test]
fn a11_a14_what_is_reserved_is_passed_over() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let data = pattern(2, 512);
    let mut sqe = rw(1, 0, 512);
    sqe.cid = 3;
    sqe.set_sgl(SglDescriptor::in_capsule(512));
    // Reserved flags, and junk in the padding before the data.
    let mut bytes = io.capsule(sqe, &data);
    bytes[1] |= 0xf0;
    bytes.splice(72..72, [0xee; 56]);
    bytes[3] = 128;
    bytes[4..8].copy_from_slice(&(128 + 512u32).to_le_bytes());
    io.send(&bytes);
    assert!(io.complete(&[]).0.status().is_success());
    assert_eq!(io.read(0, 512).1, data);
    // PDO where there is no data means nothing.
    let mut flush = Sqe { opc: 0, nsid: 1, cid: 4, ..Sqe::default() };
    flush.set_sgl(SglDescriptor::transport(0));
    let mut bytes = io.capsule(flush, &[]);
    bytes[3] = 200;
    io.send(&bytes);
    assert!(io.complete(&[]).0.status().is_success());
}

#[test]
fn a13_lengths_that_are_announced_and_never_come_cost_nothing() {
    let rig = Rig::new();
    let hosts: Vec<Host> = (0..16)
        .map(|_| {
            let mut host = Host::open(rig.addr, 0);
            let mut bytes = host.capsule(Sqe::default(), &[0; 64]);
            bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            host.send(&bytes);
            assert_eq!(host.terminated().fes, HEADER_FIELD);
            host
        })
        .collect();
    assert_eq!(rig.target.rejections().count(Reason::PduLength), 16);
    drop(hosts);
    others_live(&rig);
}

#[test]
fn a16_no_answer_to_an_answer() {
    let rig = Rig::new();
    let mut host = Host::open(rig.addr, 0);
    let mut term = [0u8; 24];
    (term[0], term[2], term[4], term[8]) = (2, 24, 24, 1);
    // A type that does not exist, and a termination of what terminates it, over and over.
    let mut bytes = [0u8; 24];
    (bytes[0], bytes[2], bytes[4]) = (0xff, 24, 24);
    host.send(&bytes);
    for _ in 0..100 {
        if host.stream.write_all(&term).is_err() {
            break;
        }
    }
    let mut answers = 0;
    while let Some(pdu) = host.receive() {
        assert_eq!(pdu.ch.pdu_type, PduType::C2hTermReq);
        answers += 1;
    }
    assert_eq!(answers, 1);
    others_live(&rig);
}
