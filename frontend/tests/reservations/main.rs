//! Reservations as hosts see them, over vfio-user and TCP at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "this program uses its share")]
#[path = "../vfio_user/client.rs"]
mod client;
#[path = "../common/mod.rs"]
mod common;
mod hosts;
mod kept;
mod mixed;
mod model;
mod notices;
mod preempt;

use nvme_proto::identify::{Ctratt, Oncs, Rescap};
use nvme_proto::{Sqe, Status};

use common::BEYOND;
use hosts::{Actor, Rig};

const SUCCESS: Status = Status::SUCCESS;
const CONFLICT: Status = Status::RESERVATION_CONFLICT;
const INVALID: Status = Status::INVALID_FIELD;
/// IEKEY of Reservation Register.
const IEKEY: u32 = 8;

/// Commands that read and commands that write, with their data.
fn commands() -> Vec<(bool, Sqe, Vec<u8>, usize)> {
    let block = vec![0x5a; 512];
    let mut range = vec![0; 16];
    range[4] = 1;
    vec![
        (true, common::rw(2, 0, 512), Vec::new(), 512),
        (true, common::rw(5, 0, 512), block.clone(), 0),
        (false, common::rw(1, 0, 512), block, 0),
        (false, common::rw(8, 8, 512), Vec::new(), 0),
        (false, Sqe { opc: 9, cdw11: 4, cdw10: 0, ..Sqe::default() }, range.clone(), 0),
        (false, Sqe { opc: 9, cdw11: 1, cdw10: 0, ..Sqe::default() }, range, 0),
        (false, Sqe { opc: 0, ..Sqe::default() }, Vec::new(), 0),
        (false, Sqe { opc: 0, nsid: u32::MAX, ..Sqe::default() }, Vec::new(), 0),
    ]
}

#[test]
fn what_each_command_may_do_under_each_type() {
    let rig = Rig::new("resv-access");
    let (mut holder, mut registrant, mut stranger) = (rig.tcp(1), rig.pcie_as(2), rig.tcp(3));
    assert_eq!(holder.write(), SUCCESS);
    assert_eq!(holder.register(0, 0, 10), SUCCESS);
    assert_eq!(registrant.register(0, 0, 20), SUCCESS);
    for rtype in 1..=6 {
        assert_eq!(holder.acquire(0, rtype, 10, 0), SUCCESS);
        assert_eq!(holder.acquire(0, rtype, 10, 0), SUCCESS, "again");
        assert_eq!(holder.acquire(0, rtype % 6 + 1, 10, 0), CONFLICT, "another type");
        let shared = rtype >= 5;
        assert_eq!(registrant.acquire(0, rtype, 20, 0), if shared { SUCCESS } else { CONFLICT });
        // Write Exclusive and Exclusive Access admit the holder alone, the others every registrant.
        let (alone, all_read) = (rtype <= 2, rtype % 2 == 1);
        for (reads, sqe, write, read) in commands() {
            let told = |actor: &mut Actor| actor.io(sqe, &write, read).0;
            let out = if reads && all_read { SUCCESS } else { CONFLICT };
            let what = format!("opcode {} under {rtype}", sqe.opc);
            assert_eq!(told(&mut holder), SUCCESS, "holder, {what}");
            assert_eq!(told(&mut registrant), if alone { out } else { SUCCESS }, "registrant, {what}");
            assert_eq!(told(&mut stranger), out, "stranger, {what}");
        }
        let report = stranger.report();
        assert_eq!(u32::from(report.rtype), rtype);
        let held: Vec<_> = report.registrants.iter().map(|r| (r.0, r.1)).collect();
        assert_eq!(held, [(0xffff, 1), (1, u8::from(shared))]);
        assert_eq!(stranger.release(0, rtype, 10), CONFLICT);
        assert_eq!(holder.release(0, rtype % 6 + 1, 10), INVALID, "another type");
        assert_eq!(holder.release(0, rtype, 11), CONFLICT, "another key");
        assert_eq!(holder.release(0, rtype, 10), SUCCESS);
        assert_eq!(stranger.write(), SUCCESS);
    }
    // Of another namespace nobody has heard.
    rig.subsystem.add_namespace(common::namespace(2, 512, 1 << 20)).unwrap();
    assert_eq!(holder.acquire(0, 2, 10, 0), SUCCESS);
    let (sqe, data) = (Sqe { nsid: 2, ..common::rw(1, 0, 512) }, [0; 512]);
    assert_eq!((stranger.io(sqe, &data, 0).0, stranger.write()), (SUCCESS, CONFLICT));
}

#[test]
fn a_controller_says_what_it_can() {
    let rig = Rig::new("resv-identify");
    for mut host in [rig.tcp(1), rig.pcie()] {
        let (status, _, id) = host.admin(Sqe { opc: 6, cdw10: 1, ..Sqe::default() }, &[], 4096);
        assert_eq!(status, SUCCESS);
        assert!(Oncs::from_bits(u16::from_le_bytes([id[520], id[521]])).reservs());
        assert!(Ctratt::from_bits(u32::from_le_bytes(id[96..100].try_into().unwrap())).rhii());
        let (_, _, id) = host.admin(Sqe { opc: 6, nsid: 1, ..Sqe::default() }, &[], 4096);
        assert_eq!(id[31], 0xfe, "all types and IEKEY, and nothing persists");
        assert!(!Rescap::from_bits(id[31]).ptpls());
        let (_, _, id) = host.admin(Sqe { opc: 6, nsid: 1, cdw10: 8, ..Sqe::default() }, &[], 4096);
        assert_eq!(id[2], 0xfe);
        let log = |lid: u32| Sqe { opc: 2, cdw10: lid | 1023 << 16, ..Sqe::default() };
        let (_, _, effects) = host.admin(log(5), &[], 4096);
        let (_, _, supported) = host.admin(log(0), &[], 4096);
        assert!([0x0d, 0x0e, 0x11, 0x15].iter().all(|opcode| effects[1024 + opcode * 4] & 1 == 1));
        assert_eq!(supported[0x80 * 4] & 1, 1);
    }
}

#[test]
fn a_host_without_an_identifier_has_no_part() {
    let rig = Rig::new("resv-nobody");
    let nobody = Status::HOST_ID_NOT_INITIALIZED;
    let mut zero = rig.tcp(0);
    assert_eq!((zero.register(0, 0, 1), zero.write()), (nobody, SUCCESS), "HOSTID 0");
    let mut host = rig.pcie();
    assert_eq!(host.register(0, 0, 1), nobody);
    assert_eq!(host.acquire(0, 1, 0, 0), nobody);
    assert_eq!(host.release(0, 1, 0), nobody);
    assert_eq!(host.io(Sqe { opc: 0x0e, cdw10: 15, cdw11: 1, ..Sqe::default() }, &[], 64).0, nobody);
    assert_eq!(host.write(), SUCCESS);
    assert_eq!(host.identify_as(&[9; 16]), SUCCESS);
    assert_eq!((host.register(0, 0, 1), host.acquire(0, 1, 1, 0)), (SUCCESS, SUCCESS));
    // Another host now, and after a reset nobody again.
    assert_eq!(host.identify_as(&[8; 16]), SUCCESS);
    assert_eq!((host.write(), host.read()), (CONFLICT, SUCCESS));
    assert_eq!(host.identify_as(&[9; 16]), SUCCESS);
    assert_eq!(host.write(), SUCCESS);
    let Actor::Pcie(mut client, _) = host else { unreachable!() };
    client.enable();
    let queue = client.create(1, 64);
    let mut host = Actor::Pcie(client, queue);
    assert_eq!((host.write(), host.register(0, 0, 1)), (CONFLICT, nobody));
    assert_eq!(host.identify_as(&[9; 16]), SUCCESS);
    assert_eq!((host.write(), host.release(0, 1, 1)), (SUCCESS, SUCCESS), "registered as before");
}

#[test]
fn identifiers_of_8_and_16_bytes_do_not_mix() {
    let rig = Rig::new("resv-format");
    let (mut short, mut long) = (rig.pcie(), rig.tcp(1));
    assert_eq!(short.identify_as(&[5; 8]), SUCCESS);
    assert_eq!((short.register(0, 0, 7), short.acquire(0, 2, 7, 0)), (SUCCESS, SUCCESS));
    assert_eq!(long.register(0, 0, 7), Status::HOST_ID_INCONSISTENT_FORMAT);
    let report = |eds| Sqe { opc: 0x0e, cdw10: 47 / 4, cdw11: eds, ..Sqe::default() };
    assert_eq!(short.io(report(1), &[], 48).0, Status::HOST_ID_INCONSISTENT_FORMAT);
    let (status, bytes) = short.io(report(0), &[], 48);
    assert_eq!(status, SUCCESS);
    assert_eq!((bytes[4], bytes[5], &bytes[24..27], &bytes[32..40]), (2, 1, &[1, 0, 1][..], &[5; 8][..]));
    assert_eq!(bytes[40..48], 7u64.to_le_bytes());
    assert_eq!((short.write(), long.write()), (SUCCESS, CONFLICT));
}

#[test]
fn e58_one_registrant_more_than_fits() {
    let rig = Rig::new("resv-many");
    let mut host = rig.pcie();
    for id in 1..=128 {
        assert_eq!((host.identify_as(&[id; 16]), host.register(0, 0, id.into())), (SUCCESS, SUCCESS));
    }
    assert_eq!((host.identify_as(&[200; 16]), host.register(0, 0, 1)), (SUCCESS, Status::INTERNAL_ERROR));
    assert_eq!(host.register(2 | IEKEY, 0, 1), Status::INTERNAL_ERROR);
    let report = host.report();
    assert_eq!((report.generation, report.registrants.len()), (128, 128));
    assert_eq!((report.registrants[127].2, report.registrants[127].3), (128, 128));
    assert_eq!((host.identify_as(&[7; 16]), host.register(1, 7, 0)), (SUCCESS, SUCCESS));
    assert_eq!((host.identify_as(&[200; 16]), host.register(0, 0, 1)), (SUCCESS, SUCCESS));
}

#[test]
fn e58_commands_that_ask_for_what_is_not() {
    let rig = Rig::new("resv-hostile");
    let mut host = rig.tcp(1);
    assert_eq!(host.register(2, 0, 5), CONFLICT, "replaces what is not there");
    assert_eq!(host.register(1 | IEKEY, 0, 0), CONFLICT);
    assert_eq!(host.register(2 | IEKEY, 0, 5), SUCCESS, "IEKEY: whatever it was before");
    assert_eq!(host.report().registrants, [(0xffff, 0, 5, 1)]);
    assert_eq!(host.register(2 | IEKEY, 99, 6), SUCCESS);
    assert_eq!(host.register(2, 5, 7), CONFLICT);
    assert_eq!((host.register(0, 0, 0), host.register(2, 6, 0)), (INVALID, INVALID), "key 0");
    for action in 3..8 {
        assert_eq!(host.register(action, 6, 6), INVALID);
        assert_eq!(host.acquire(action, 1, 6, 6), INVALID);
        assert_eq!(host.release(action, 1, 6), INVALID);
    }
    assert_eq!(host.release(2, 1, 6), INVALID);
    for rtype in (7..256).chain([0]) {
        assert_eq!(host.acquire(0, rtype, 6, 0), INVALID, "type {rtype}");
        assert_eq!(host.acquire(1, rtype, 6, 6), INVALID, "type {rtype}");
    }
    assert_eq!((host.acquire(IEKEY, 1, 6, 0), host.release(IEKEY, 1, 6)), (INVALID, INVALID));
    // CPTPL: nothing here persists, and 1 is no value.
    for (cptpl, status) in [(0, SUCCESS), (1, INVALID), (2, SUCCESS), (3, INVALID)] {
        assert_eq!(host.register(cptpl << 30, 0, 6), status, "CPTPL {cptpl}");
    }
    assert_eq!(host.report().generation, 4);
    // Nobody's key, no key, its own.
    assert_eq!((host.acquire(1, 1, 6, 77), host.acquire(1, 1, 6, 0)), (CONFLICT, INVALID));
    assert_eq!((host.acquire(0, 1, 6, 0), host.acquire(1, 4, 6, 6)), (SUCCESS, SUCCESS));
    let report = host.report();
    assert_eq!((report.rtype, report.registrants), (4, vec![(0xffff, 1, 6, 1)]), "preempts itself");
    assert_eq!((host.acquire(2, 6, 6, 6), host.report().rtype), (SUCCESS, 6));
    assert_eq!((host.acquire(2, 2, 6, 0), host.report().rtype), (SUCCESS, 2));
    // A report that is shorter than what there is to say, and one that is longer: zeroes follow.
    let asked = |dwords: u32| Sqe { opc: 0x0e, cdw10: dwords - 1, cdw11: 1, ..Sqe::default() };
    let whole = host.io(asked(32), &[], 128).1;
    for dwords in [1, 2, 16, 20, 32, 4096] {
        let (status, bytes) = host.io(asked(dwords), &[], dwords as usize * 4);
        assert_eq!((status, bytes.len()), (SUCCESS, dwords as usize * 4));
        let known = bytes.len().min(128);
        assert!(bytes[..known] == whole[..known] && bytes[known..].iter().all(|byte| *byte == 0));
    }
    assert_eq!(host.io(asked((1 << 18) + 1), &[], 128).0, INVALID, "more than MDTS");
    assert_eq!(host.io(Sqe { cdw10: u32::MAX, ..asked(1) }, &[], 128).0, INVALID);
    let none = Sqe { opc: 0x0e, nsid: BEYOND, cdw10: 15, cdw11: 1, ..Sqe::default() };
    assert_eq!(host.io(none, &[], 64).0, Status::INVALID_NAMESPACE_OR_FORMAT);
    // Without a reservation, who preempts its own key takes itself away.
    assert_eq!((host.release(0, 2, 6), host.acquire(1, 1, 6, 6)), (SUCCESS, SUCCESS));
    assert_eq!((host.report().registrants.len(), host.acquire(0, 1, 6, 0)), (0, CONFLICT));
}
