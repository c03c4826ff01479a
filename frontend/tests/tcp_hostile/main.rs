//! Hosts that do not keep to the specification: what they are told, and that nobody else notices.
//! Tests are named after the part of the catalogue of hostile input that they cover, and their files after its letters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod a_framing;
mod a_stream;
mod b_sgl;
mod c_r2t;
#[path = "../common/mod.rs"]
mod common;
mod d_connect;
mod d_names;
mod d_static;
mod e_commands;
mod e_controller;
mod e_features;
mod e_fused;

use std::io::Write;
use std::time::Duration;

use common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, icreq, pattern, rw};
use frontend::tcp::{Reason, TargetConfig};
use nvme_proto::Sqe;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect, Property};
use nvme_proto::register::offset;
use nvme_proto::tcp::{PduType, R2t};
use nvme_proto::zerocopy::IntoBytes;

/// FES of C2HTermReq.
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

/// Each reason to turn a host away is counted where it can be read.
#[test]
fn every_reason_is_counted() {
    let config = TargetConfig {
        connect_timeout: Duration::from_millis(200),
        data_timeout: Duration::from_millis(200),
        max_half_open: 16,
        ..TargetConfig::default()
    };
    let rig = Rig::with(config, "127.0.0.1:0");
    let counted = |reason| rig.target.rejections().count(reason);
    let header = |host: &mut Host, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = host.capsule(Sqe::default(), &[0; 64]);
        edit(&mut bytes);
        host.send(&bytes);
        host.is_closed();
    };
    header(&mut Host::raw(rig.addr), &|_| {});
    header(&mut Host::open(rig.addr, 0), &|b| b[0] = 0x55);
    header(&mut Host::open(rig.addr, 0), &|b| b[2] = 71);
    header(&mut Host::open(rig.addr, 0), &|b| b[4..8].copy_from_slice(&u32::MAX.to_le_bytes()));
    header(&mut Host::open(rig.addr, 1), &|b| b[72] ^= 1);
    let mut host = Host::raw(rig.addr);
    let mut request = icreq(0);
    request.pfv = 1;
    host.send(request.as_bytes());
    host.is_closed();
    let mut host = Host::open(rig.addr, 0);
    let mut term = [0u8; 24];
    (term[0], term[2], term[4]) = (2, 24, 24);
    host.send(&term);
    host.is_closed();
    // Connect: its parameters, its names, and a host that may not.
    let admin = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::new(), kato: 0 };
    let mut host = Host::open(rig.addr, 2);
    host.connect(Connect { recfmt: 7, ..admin }, &connect_data(SUBNQN, HOSTNQN, 0xffff));
    host.connect(admin, &connect_data("nqn.2024-01.test:none", HOSTNQN, 0xffff));
    let mut data = connect_data(SUBNQN, HOSTNQN, 0xffff);
    data.hostnqn.fill(b'x');
    host.connect(admin, &data);
    // A wrong data digest, then a controller, with a keep-alive that ends it.
    let mut sqe = admin.to_sqe(1);
    sqe.set_sgl(SglDescriptor::in_capsule(1024));
    let mut bytes = host.capsule(sqe, data.as_bytes());
    *bytes.last_mut().unwrap() ^= 1;
    host.send(&bytes);
    host.complete(&[]);
    let alive = Connect { kato: 1, ..admin };
    assert!(host.connect(alive, &connect_data(SUBNQN, HOSTNQN, 0xffff)).status().is_success());
    host.is_closed();
    // Data that was not asked for, that does not come, and more commands than the queue has.
    let (_admin, mut io, r2t) = asked(&rig);
    let pdus = io.h2c(&R2t { ttag: 9, ..r2t }, &[0; 65536], 4096);
    io.send(&pdus[0]);
    io.is_closed();
    let (_admin, mut io, _) = asked(&rig);
    io.is_closed();
    let (_admin, mut io) = rig.connect(0);
    for cid in 0..300 {
        let mut sqe = Sqe { cid, ..rw(1, 0, 16384) };
        sqe.set_sgl(SglDescriptor::transport(16384));
        let bytes = io.capsule(sqe, &[]);
        if io.stream.write_all(&bytes).is_err() {
            break;
        }
    }
    io.is_closed();
    // Connections that are nothing yet: too many, and for too long.
    let many: Vec<Host> = (0..40).map(|_| Host::raw(rig.addr)).collect();
    for mut host in many {
        host.is_closed();
    }
    for &reason in Reason::ALL {
        // Its own test takes a thousand controllers.
        if reason != Reason::ConnectBusy {
            assert!(counted(reason) > 0, "{reason:?}");
        }
    }
}
