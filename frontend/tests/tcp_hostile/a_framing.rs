//! A: the stream and the framing of PDUs.

use std::io::Write;
use std::time::Duration;

use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::tcp::{PduType, R2t, dgst, flags};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, icreq, pattern, rw};
use super::{HEADER_DIGEST, HEADER_FIELD, SEQUENCE, UNSUPPORTED, asked, others_live};

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

#[test]
fn a17_every_pdu_byte_by_byte() {
    let rig = Rig::new();
    let dribble = |host: &mut Host, bytes: &[u8]| {
        bytes.iter().for_each(|byte| host.send(std::slice::from_ref(byte)));
    };
    let mut admin = Host::raw(rig.addr);
    dribble(&mut admin, icreq(3).as_bytes());
    assert_eq!(admin.receive().unwrap().ch.pdu_type, PduType::IcResp);
    admin.digests = 3;
    let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let mut sqe = connect.to_sqe(1);
    sqe.set_sgl(SglDescriptor::in_capsule(1024));
    let bytes = admin.capsule(sqe, connect_data(SUBNQN, HOSTNQN, 0xffff).as_bytes());
    dribble(&mut admin, &bytes);
    assert!(admin.complete(&[]).0.status().is_success());
    let (_admin, mut io) = rig.connect(3);
    let data = pattern(9, 9000 / 512 * 512);
    let mut sqe = rw(1, 0, data.len());
    sqe.cid = 2;
    sqe.set_sgl(SglDescriptor::transport(data.len() as u32));
    let bytes = io.capsule(sqe, &[]);
    dribble(&mut io, &bytes);
    let r2t: R2t = io.receive().unwrap().read();
    for pdu in io.h2c(&r2t, &data, 4096) {
        dribble(&mut io, &pdu);
    }
    assert!(io.complete(&[]).0.status().is_success());
    assert!(io.read(0, data.len()).1 == data);
}

/// FIN and RST wherever a connection may be.
#[test]
fn a17_hosts_leave_in_each_state() {
    let rig = Rig::new();
    for reset in [false, true] {
        let leave = |host: Host| {
            if reset {
                socket2::SockRef::from(&host.stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(host);
        };
        leave(Host::raw(rig.addr));
        leave(Host::open(rig.addr, 3));
        let mut partial = Host::open(rig.addr, 0);
        partial.send(&[4, 0, 72, 0, 72]);
        leave(partial);
        let (admin, io) = rig.connect(0);
        leave(io);
        leave(admin);
        let (admin, io) = rig.connect(0);
        leave(admin);
        leave(io);
        // Owing data, in the middle of it, and with reads on their way.
        let (admin, io, _) = asked(&rig);
        leave(io);
        leave(admin);
        let (admin, mut io, r2t) = asked(&rig);
        let pdu = &io.h2c(&r2t, &[1; 65536], 65536)[0];
        io.send(&pdu[..30000]);
        leave(io);
        leave(admin);
        let (admin, mut io) = rig.connect(0);
        for cid in 0..64 {
            let mut sqe = Sqe { cid, ..rw(2, 0, 65536) };
            sqe.set_sgl(SglDescriptor::transport(65536));
            let bytes = io.capsule(sqe, &[]);
            io.send(&bytes);
        }
        leave(io);
        leave(admin);
        others_live(&rig);
    }
    for _ in 0..4000 {
        if rig.subsystem.controllers().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("controllers are left: {:?}", rig.subsystem.controllers());
}
