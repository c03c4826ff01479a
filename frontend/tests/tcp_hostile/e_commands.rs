//! E: admin and I/O commands.

use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::Property;
use nvme_proto::register::offset;
use nvme_proto::{Sqe, Status};

use super::common::stall::Stall;
use super::common::{BEYOND, Host, Rig, SUBNQN, rw};
use super::{asked, others_live};
use frontend::Namespace;

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

/// On whichever shard the command is; but one whose data the host was asked for is not taken back: the data comes.
#[test]
fn e55_abort_over_connections() {
    let (rig, volume) = (Rig::new(), Stall::new(true));
    let namespace =
        Namespace { nsid: 7, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume: volume.clone() };
    rig.subsystem.add_namespace(namespace).unwrap();
    let abort = |cid: u16| Sqe { opc: 8, cdw10: u32::from(cid) << 16 | 1, ..Sqe::default() };
    for round in 0..8 {
        let (mut admin, mut io) = rig.connect(0);
        let mut write = Sqe { cid: 40, nsid: 7, ..rw(1, round, 512) };
        write.set_sgl(SglDescriptor::in_capsule(512));
        let bytes = io.capsule(write, &[1; 512]);
        io.send(&bytes);
        while volume.held() == 0 {
            std::thread::yield_now();
        }
        let (answer, _) = admin.run(abort(40), &[], 0);
        assert_eq!((answer.status(), answer.dw0), (Status::SUCCESS, 0));
        assert_eq!(volume.held(), 0);
        assert_eq!(io.complete(&[]).0.status(), Status::ABORT_REQUESTED);
    }
    let (mut admin, mut io, r2t) = asked(&rig);
    assert_eq!(admin.run(abort(77), &[], 0).0.dw0, 1);
    for pdu in io.h2c(&r2t, &[9; 65536], 65536) {
        io.send(&pdu);
    }
    assert!(io.complete(&[]).0.status().is_success());
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
        for (nsid, high) in [(0, 0), (1, 0), (1, 0xffff_ff00), (2, 1 << 8), (BEYOND, 0), (u32::MAX, u32::MAX)]
        {
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
