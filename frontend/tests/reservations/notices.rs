//! The Reservation Notification log page, its event, and what masks them.

use nvme_proto::Sqe;

use crate::common::BEYOND;
use crate::hosts::{Actor, Rig, until};
use crate::{CONFLICT, INVALID, SUCCESS};

/// Waits until a host has that many notifications, and gives the oldest: LPC, RNLPT, NALP and NSID.
fn notice(host: &mut Actor, keep: bool, nalp: u8) -> (u64, u8, u8, u32) {
    for _ in 0..20_000 {
        let page = page(host, true);
        if (page.1 != 0 && page.2 >= nalp) || nalp == u8::MAX && page.0 == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    page(host, keep)
}

fn page(host: &mut Actor, keep: bool) -> (u64, u8, u8, u32) {
    let cdw10 = 0x80 | u32::from(keep) << 15 | 15 << 16;
    let (status, _, page) = host.admin(Sqe { opc: 2, cdw10, ..Sqe::default() }, &[], 64);
    assert_eq!(status, SUCCESS);
    let lpc = u64::from_le_bytes(page[..8].try_into().unwrap());
    (lpc, page[8], page[9], u32::from_le_bytes(page[12..16].try_into().unwrap()))
}

/// Set Features 82h.
fn mask(host: &mut Actor, nsid: u32, mask: u32) {
    let sqe = Sqe { opc: 9, nsid, cdw10: 0x82, cdw11: mask, ..Sqe::default() };
    assert_eq!(host.admin(sqe, &[], 0).0, SUCCESS);
}

#[test]
fn each_notification_is_told_to_whom_it_concerns() {
    let rig = Rig::new("resv-notices");
    let (mut a, mut b, mut c) = (rig.tcp(1), rig.pcie_as(2), rig.tcp(3));
    for (host, key) in [(&mut a, 1), (&mut b, 2)] {
        assert_eq!(host.register(0, 0, key), SUCCESS);
        assert_eq!(page(host, false), (0, 0, 0, 0), "the empty page");
    }
    // Released: of the types that registrants share, and to the others.
    for (rtype, told) in [(1, false), (3, true), (2, false), (6, true)] {
        assert_eq!((a.acquire(0, rtype, 1, 0), a.release(0, rtype, 1)), (SUCCESS, SUCCESS));
        if told {
            assert_eq!(notice(&mut b, true, 0).1, 2, "it stays while RAE says so");
            let (_, what, waiting, nsid) = notice(&mut b, false, 0);
            assert_eq!((what, waiting, nsid), (2, 0, 1));
        }
    }
    // By unregistering.
    assert_eq!((a.acquire(0, 4, 1, 0), a.register(1, 1, 0)), (SUCCESS, SUCCESS));
    assert_eq!(notice(&mut b, false, 0).1, 2);
    // Registration preempted; the type changes for who stays.
    assert_eq!((a.register(0, 0, 1), c.register(0, 0, 3)), (SUCCESS, SUCCESS));
    assert_eq!((a.acquire(0, 3, 1, 0), b.acquire(1, 4, 2, 1)), (SUCCESS, SUCCESS));
    assert_eq!(notice(&mut a, false, 0).1, 1);
    assert_eq!(notice(&mut c, false, 0).1, 2);
    // Cleared: reservation preempted.
    assert_eq!(b.release(1, 0, 2), SUCCESS);
    assert_eq!(notice(&mut c, false, 0).1, 3);
    for host in [&mut a, &mut b, &mut c] {
        assert_eq!(page(host, false).1, 0, "nobody hears of anything else");
    }
    assert_eq!(a.acquire(0, 1, 1, 0), CONFLICT);
}

#[test]
fn masks_are_a_controllers_own() {
    let rig = Rig::new("resv-masks");
    let (mut a, mut b) = (rig.tcp(1), rig.pcie_as(2));
    assert_eq!((a.register(0, 0, 1), b.register(0, 0, 2)), (SUCCESS, SUCCESS));
    let get = |host: &mut Actor, nsid, sel: u32| {
        let sqe = Sqe { opc: 10, nsid, cdw10: 0x82 | sel << 8, ..Sqe::default() };
        let (status, value, _) = host.admin(sqe, &[], 0);
        (status, value)
    };
    mask(&mut b, 1, 1 << 2);
    mask(&mut a, u32::MAX, 1 << 1);
    assert_eq!((get(&mut b, 1, 0), get(&mut a, 1, 0)), ((SUCCESS, 4), (SUCCESS, 2)));
    assert_eq!((get(&mut b, 1, 1), get(&mut b, 1, 3)), ((SUCCESS, 0), (SUCCESS, 6)));
    assert_eq!(get(&mut b, u32::MAX, 0).0, INVALID);
    for nsid in [0, BEYOND] {
        assert_eq!(get(&mut b, nsid, 0).0, nvme_proto::Status::INVALID_NAMESPACE_OR_FORMAT);
    }
    assert_eq!((a.acquire(0, 3, 1, 0), a.release(0, 3, 1)), (SUCCESS, SUCCESS));
    assert_eq!(a.acquire(1, 3, 1, 2), SUCCESS);
    // The first would have come before the second.
    assert_eq!(notice(&mut b, false, 0), (1, 1, 0, 1));
    assert!(rig.subsystem.remove_namespace(1).unwrap().wait(std::time::Duration::from_secs(10)));
    // The news of it, which comes after it.
    let changed = Sqe { opc: 2, cdw10: 4 | 1 << 15 | 15 << 16, ..Sqe::default() };
    until(|| b.admin(changed, &[], 64).2[..4] != [0; 4]);
    rig.subsystem.add_namespace(crate::common::namespace(1, 512, 1 << 20)).unwrap();
    until(|| get(&mut b, 1, 0).0 == SUCCESS);
    assert_eq!(get(&mut b, 1, 0), (SUCCESS, 0), "another namespace");
}

#[test]
fn events_come_once_each_and_lost_pages_are_counted() {
    let rig = Rig::new("resv-events");
    let (mut a, mut b) = (rig.tcp(1), rig.pcie_as(2));
    assert_eq!((a.register(0, 0, 1), b.register(0, 0, 2)), (SUCCESS, SUCCESS));
    let Actor::Pcie(client, _) = &mut b else { unreachable!() };
    let first = client.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() });
    let second = client.submit_admin(Sqe { opc: 0x0c, ..Sqe::default() });
    for _ in 0..300 {
        assert_eq!((a.acquire(0, 5, 1, 0), a.release(0, 5, 1)), (SUCCESS, SUCCESS));
    }
    let Actor::Pcie(client, _) = &mut b else { unreachable!() };
    let mut admin = std::mem::replace(&mut client.admin, crate::client::none());
    let cqe = client.wait(&mut admin);
    assert_eq!((cqe.cid, cqe.dw0), (first, 0x80_0006));
    let read = Sqe { opc: 2, cdw10: 0x80 | 15 << 16, dptr: [crate::client::DATA, 0], ..Sqe::default() };
    let log = client.submit(&mut admin, read);
    // The read brings the event of the next page.
    let mut seen = [client.wait(&mut admin), client.wait(&mut admin)];
    seen.sort_by_key(|cqe| cqe.cid);
    assert_eq!([seen[0].cid, seen[1].cid], [second, log]);
    assert_eq!(client.get(crate::client::DATA, 10), [1, 0, 0, 0, 0, 0, 0, 0, 2, 255]);
    client.admin = admin;
    let counts: Vec<u64> = (0..255).map(|_| page(&mut b, false).0).collect();
    assert_eq!(counts, (2..=256).collect::<Vec<_>>());
    assert_eq!(page(&mut b, false), (0, 0, 0, 0), "the last 44 are lost");
    assert_eq!((a.acquire(0, 5, 1, 0), a.release(0, 5, 1)), (SUCCESS, SUCCESS));
    assert_eq!(notice(&mut b, false, 0), (301, 2, 0, 1), "and it shows");
}
