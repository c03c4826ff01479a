//! Hosts that do not keep to the specification: what they are told, and that nobody else notices.
//! Tests are named after the part of the catalogue of hostile input that they cover, and their files after its letters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod a_framing;
mod b_sgl;
mod c_r2t;
#[path = "../common/mod.rs"]
mod common;
mod d_connect;
mod e_commands;
mod e_controller;
mod e_features;
mod e_fused;

use std::io::Write;

use common::{HOSTNQN, Host, Rig, SUBNQN, connect_data, icreq, pattern, rw};
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
