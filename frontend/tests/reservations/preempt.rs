//! Preempt and Abort: what a preempted host had in flight ends before the command does.

use std::sync::Arc;
use std::time::Duration;

use engine::Volume;
use frontend::Namespace;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::reservation::{AcquireData, RegisterData};
use nvme_proto::tcp::{CapsuleResp, PduType, R2t};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::common::stall::Stall;
use crate::common::{Host, rw};
use crate::hosts::{Actor, Rig, until};
use crate::{CONFLICT, SUCCESS};

const NSID: u32 = 7;

/// Registers with a key in NSID 7.
fn register(host: &mut Actor, key: u64) {
    let sqe = Sqe { opc: 0x0d, nsid: NSID, ..Sqe::default() };
    assert_eq!(host.io(sqe, RegisterData { crkey: 0, nrkey: key }.as_bytes(), 0).0, SUCCESS);
}

/// Reservation Acquire in NSID 7.
fn acquire(action: u32, crkey: u64, prkey: u64) -> (Sqe, AcquireData) {
    let sqe = Sqe { opc: 0x11, nsid: NSID, cdw10: action | 2 << 8, ..Sqe::default() };
    (sqe, AcquireData { crkey, prkey })
}

fn send(io: &mut Host, mut sqe: Sqe, cid: u16, data: &[u8]) {
    sqe.cid = cid;
    sqe.set_sgl(SglDescriptor::in_capsule(data.len() as u32));
    let bytes = io.capsule(sqe, data);
    io.send(&bytes);
}

fn stalled(rig: &Rig, obedient: bool) -> Arc<Stall> {
    let volume = Stall::new(obedient);
    let (uuid, below): (_, Arc<dyn Volume>) = ([7; 16], volume.clone());
    let namespace = Namespace { nsid: NSID, uuid, nguid: [0; 16], eui64: [0; 8], volume: below };
    rig.subsystem.add_namespace(namespace).unwrap();
    volume
}

#[test]
fn commands_of_the_preempted_end_before_the_preemption() {
    for obedient in [true, false] {
        let rig = Rig::new(&format!("resv-abort-{obedient}"));
        let volume = stalled(&rig, obedient);
        let (mut winner, mut loser, mut other) = (rig.pcie_as(1), rig.tcp(2), rig.tcp(3));
        register(&mut winner, 1);
        register(&mut loser, 2);
        register(&mut other, 3);
        let (sqe, data) = acquire(0, 2, 0);
        assert_eq!(loser.io(sqe, data.as_bytes(), 0).0, SUCCESS);
        let Actor::Tcp(_, io) = &mut loser else { unreachable!() };
        for cid in 100..104 {
            send(io, Sqe { nsid: NSID, ..rw(1, u64::from(cid), 512) }, cid, &[1; 512]);
        }
        until(|| volume.held() == 4);
        let (mut sqe, data) = acquire(2, 1, 2);
        let Actor::Pcie(client, queue) = &mut winner else { unreachable!() };
        client.put(crate::client::DATA, data.as_bytes());
        sqe.dptr = [crate::client::DATA, 0];
        client.submit(queue, sqe);
        until(|| volume.revoked() == 4);
        if !obedient {
            // The writes may still land: the preemption waits for them, and the fence is up already.
            std::thread::sleep(Duration::from_millis(20));
            assert!(client.peek(queue).is_none());
            let Actor::Tcp(_, io) = &mut loser else { unreachable!() };
            let write = Sqe { nsid: NSID, ..rw(1, 0, 512) };
            assert_eq!(io.run(write, &[1; 512], 0).0.status().code(), CONFLICT);
            volume.release(Ok(()));
        }
        assert_eq!(client.wait(queue).status(), SUCCESS);
        assert_eq!(volume.held(), 0);
        let Actor::Tcp(_, io) = &mut loser else { unreachable!() };
        for _ in 0..4 {
            let cqe = io.complete(&[]).0;
            assert_eq!(cqe.status().code(), Status::ABORTED_PREEMPT_AND_ABORT);
        }
        let (_, report) =
            winner.io(Sqe { opc: 0x0e, nsid: NSID, cdw10: 63, cdw11: 1, ..Sqe::default() }, &[], 256);
        assert_eq!((report[4], report[5]), (2, 2), "the winner holds it, and the third is still registered");
    }
}

/// Sends a write of 16 KiB at block 64, and gives what the target asks.
fn ask_to_write(host: &mut Actor, data: &[u8]) -> R2t {
    let Actor::Tcp(_, io) = host else { unreachable!() };
    let mut sqe = Sqe { cid: 500, ..rw(1, 64, data.len()) };
    sqe.set_sgl(SglDescriptor::transport(data.len() as u32));
    let capsule = io.capsule(sqe, &[]);
    io.send(&capsule);
    let pdu = io.receive().unwrap();
    assert_eq!(pdu.ch.pdu_type, PduType::R2t);
    pdu.read()
}

/// Sends what was asked for, and gives the write's status.
fn write_asked(host: &mut Actor, r2t: &R2t, data: &[u8]) -> Status {
    let Actor::Tcp(_, io) = host else { unreachable!() };
    for bytes in io.h2c(r2t, data, 8192) {
        io.send(&bytes);
    }
    let answer = io.receive().unwrap();
    assert_eq!(answer.ch.pdu_type, PduType::CapsuleResp);
    answer.read::<CapsuleResp>().cqe.status().code()
}

#[test]
fn a_namespace_that_changes_meanwhile_is_fenced_all_the_same() {
    let rig = Rig::new("resv-renewed");
    let (mut winner, mut loser) = (rig.pcie_as(1), rig.tcp(2));
    let data = vec![0xee; 16384];
    let r2t = ask_to_write(&mut loser, &data);
    for protection in [1, 0] {
        let set = Sqe { opc: 9, nsid: 1, cdw10: 0x84, cdw11: protection, ..Sqe::default() };
        assert_eq!(winner.admin(set, &[], 0).0, SUCCESS);
    }
    assert_eq!((winner.register(0, 0, 1), winner.acquire(0, 1, 1, 0)), (SUCCESS, SUCCESS));
    assert_eq!(write_asked(&mut loser, &r2t, &data), CONFLICT);
}

#[test]
fn verifies_that_wait_are_aborted_with_the_one_at_work() {
    let rig = Rig::new("resv-verify");
    let volume = stalled(&rig, true);
    let (mut winner, mut loser) = (rig.pcie_as(1), rig.tcp(2));
    register(&mut winner, 1);
    register(&mut loser, 2);
    let Actor::Tcp(_, io) = &mut loser else { unreachable!() };
    for cid in 100..103 {
        let mut sqe = Sqe { cid, opc: 0x0c, nsid: NSID, ..rw(2, 0, 512) };
        sqe.set_sgl(SglDescriptor::transport(0));
        let capsule = io.capsule(sqe, &[]);
        io.send(&capsule);
    }
    until(|| volume.held() == 1);
    // The others are behind it on the same connection: so they have come when this has.
    assert_eq!(io.run(rw(2, 0, 512), &[], 512).0.status(), SUCCESS);
    let (sqe, data) = acquire(2, 1, 2);
    assert_eq!(winner.io(sqe, data.as_bytes(), 0).0, SUCCESS);
    let Actor::Tcp(_, io) = &mut loser else { unreachable!() };
    for _ in 0..3 {
        assert_eq!(io.complete(&[]).0.status().code(), Status::ABORTED_PREEMPT_AND_ABORT);
    }
    assert_eq!(volume.held(), 0);
}

#[test]
fn a_write_whose_data_is_on_its_way_never_lands() {
    let rig = Rig::new("resv-r2t");
    let (mut winner, mut loser) = (rig.pcie_as(1), rig.tcp(2));
    for action in [1, 2] {
        assert_eq!((winner.register(0, 0, 1), loser.register(0, 0, 2)), (SUCCESS, SUCCESS));
        assert_eq!(loser.acquire(0, 1, 2, 0), SUCCESS);
        let data = vec![0xee; 16384];
        let r2t = ask_to_write(&mut loser, &data);
        assert_eq!(winner.acquire(action, 1, 1, 2), SUCCESS);
        let status = write_asked(&mut loser, &r2t, &data);
        assert_eq!(status, if action == 1 { CONFLICT } else { Status::ABORTED_PREEMPT_AND_ABORT });
        let (status, read) = winner.io(rw(2, 64, 4096), &[], 4096);
        assert!(status == SUCCESS && read.iter().all(|b| *b == 0));
        assert_eq!(winner.release(1, 0, 1), SUCCESS);
    }
}
