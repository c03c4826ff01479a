//! A.17: PDUs in any pieces, and streams that end anywhere.

use std::io::Write;
use std::time::Duration;

use frontend::tcp::Reason;
use nvme_proto::Sqe;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::tcp::{PduType, R2t};
use nvme_proto::zerocopy::IntoBytes;

use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, icreq, pattern, rw};
use super::{asked, others_live};

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
    // By FIN and by RST in turn.
    for cut in 0..=whole.len() {
        let mut host = Host::raw(rig.addr);
        if cut % 2 == 0 {
            socket2::SockRef::from(&host.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        host.stream.write_all(&whole[..cut]).unwrap();
    }
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
    // And what ends a connection, with what it is about.
    let mut term = [0u8; 152];
    (term[0], term[2], term[4], term[8]) = (2, 24, 152, 1);
    dribble(&mut io, &term);
    assert!(io.is_closed());
    assert_eq!(rig.target.rejections().count(Reason::HostTerminated), 1);
    others_live(&rig);
}

/// RST and FIN wherever a connection may be: of a host that is gone, and of one that goes on listening.
#[test]
fn a17_hosts_leave_in_each_state() {
    let rig = Rig::new();
    for way in 0..3 {
        let leave = |mut host: Host| match way {
            0 => drop(host),
            1 => socket2::SockRef::from(&host.stream).set_linger(Some(Duration::ZERO)).unwrap(),
            _ => {
                // The target may have been there first.
                let _ = host.stream.shutdown(std::net::Shutdown::Write);
                assert!(host.is_closed());
            }
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
