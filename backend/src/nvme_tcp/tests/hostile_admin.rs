//! H.86, of what a controller says before and beside I/O: namespaces that cannot be, events without end, log pages of
//! nonsense, an end at any time. Nothing of it stops the remote for good, nor the namespaces beside it.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use nvme_proto::aen::Event;
use nvme_proto::identify::{Cns, IdentifyController, IdentifyNamespace, LbaFormat};
use nvme_proto::log::{GetLogPage, LogId};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::tcp::{CommonHdr, Fes, PduType, TermReq, flags};
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::target::Peer;
use super::*;
use crate::nvme_tcp::session::EVENT_PAUSE;

fn term_req(fes: u16) -> Vec<u8> {
    let mut term = TermReq::new_zeroed();
    term.ch = CommonHdr { pdu_type: PduType::C2hTermReq, flags: 0, hlen: 24, pdo: 0, plen: 24 };
    term.fes = Fes(fes);
    term.as_bytes().to_vec()
}

#[test]
fn h86_an_end_at_any_time() {
    // In place of the answer to each command in turn, from the first Connect on: a termination, an end of the stream,
    // bytes that are no PDU, and an answer to nobody.
    for way in 0..4 {
        let seen = Arc::new(AtomicUsize::new(0));
        let at = Arc::new(AtomicUsize::new(0));
        let (theirs, when) = (seen.clone(), at.clone());
        let hook = move |peer: &mut Peer, sqe: &Sqe| {
            if theirs.fetch_add(1, SeqCst) != when.load(SeqCst) {
                return false;
            }
            let _ = match way {
                0 => peer.stream.write_all(&term_req(1)),
                1 => peer.stream.shutdown(std::net::Shutdown::Both),
                2 => peer.stream.write_all(&[0xff; 64]),
                _ => {
                    peer.respond(sqe.cid ^ 0x2222, Status::SUCCESS, 0);
                    Ok(())
                }
            };
            true
        };
        let world = World::new(Manner { admin: Some(Arc::new(hook)), ..Manner::default() }, |_| {});
        let commands = seen.load(SeqCst);
        assert!(commands >= 8, "{commands}");
        for n in 0..commands {
            at.store(n, SeqCst);
            seen.store(0, SeqCst);
            world.remote.reset();
            until("it came to that", || seen.load(SeqCst) > n);
            world.remote.wait_live(LONG).unwrap();
            assert_eq!(world.one(n % 2, write(n as u64, &pattern(BLOCK, n))).0, Ok(()), "{way} {n}");
        }
    }
    // And in place of the ICResp.
    let as_icresp = |b: &mut [u8; 128]| {
        b.fill(0);
        b[..24].copy_from_slice(&term_req(2));
    };
    let world = World::unready(Manner { icresp: Some(Arc::new(as_icresp)), ..Manner::default() }, |_| {});
    assert!(world.remote.wait_live(Duration::from_millis(50)).is_err());
    world.target.set(|m| m.icresp = None);
    world.remote.wait_live(LONG).unwrap();
}

#[test]
fn h86_namespaces_that_cannot_be() {
    type Change = fn(&mut IdentifyNamespace);
    let changes: [(&str, Change); 9] = [
        ("NSZE of all ones", |ns| ns.nsze = u64::MAX),
        ("NSZE 0", |ns| ns.nsze = 0),
        ("NSZE beyond all bytes", |ns| ns.nsze = 1 << 54),
        ("LBADS 0", |ns| ns.lbaf[0] = LbaFormat::of_lbads(0)),
        ("LBADS 8", |ns| ns.lbaf[0] = LbaFormat::of_lbads(8)),
        ("LBADS 63", |ns| ns.lbaf[0] = LbaFormat::of_lbads(63)),
        ("LBADS 255", |ns| ns.lbaf[0] = LbaFormat::of_lbads(255)),
        ("metadata", |ns| ns.lbaf[0].ms = 8),
        ("all ones", |ns| ns.as_mut_bytes().fill(0xff)),
    ];
    for (what, change) in changes {
        // The first of two is so, each time that they are looked at.
        let turn = AtomicBool::new(false);
        let identify = move |cns, data: &mut Vec<u8>| {
            if cns == Cns::Namespace && !turn.fetch_xor(true, SeqCst) {
                let mut ns = IdentifyNamespace::read_from_bytes(data).unwrap();
                change(&mut ns);
                data.copy_from_slice(ns.as_bytes());
            }
        };
        let manner = Manner { nsids: vec![1, 2], identify: Some(Arc::new(identify)), ..Manner::default() };
        let world = World::new(manner, |_| {});
        assert!(world.remote.namespace(1).is_none(), "{what}");
        let other = world.remote.namespace(2).unwrap();
        assert_eq!(world.submit_to(other, 0, vec![read(0, 8)]).take(1)[0].1, Ok(()), "{what}");
    }
}

#[test]
fn h86_any_mdts() {
    for mdts in [0, 1, 2, 63, 255] {
        let identify = move |cns, data: &mut Vec<u8>| {
            if cns == Cns::Controller {
                let mut id = IdentifyController::read_from_bytes(data).unwrap();
                id.mdts = mdts;
                data.copy_from_slice(id.as_bytes());
            }
        };
        let world = World::new(Manner { identify: Some(Arc::new(identify)), ..Manner::default() }, |_| {});
        let most = world.remote.namespace(1).unwrap().limits().max_blocks;
        assert_eq!(most, if mdts == 1 || mdts == 2 { 8 << mdts } else { 2048 }, "MDTS {mdts}");
        let bytes = pattern(most as usize * BLOCK, mdts.into());
        assert_eq!(world.one(0, write(0, &bytes)).0, Ok(()));
        let (result, back) = world.one(1, read(0, most));
        assert!(result.is_ok() && back == bytes);
    }
}

#[test]
fn h86_events_without_end() {
    // Every event request is answered at once, by events of each kind, and the log of changes says anything.
    let asked = Arc::new(AtomicUsize::new(0));
    let theirs = asked.clone();
    let hook = move |peer: &mut Peer, sqe: &Sqe| match sqe.admin() {
        AdminOpcode::AsyncEventRequest => {
            let n = theirs.fetch_add(1, SeqCst);
            let changed = u64::from(Event::NAMESPACES_CHANGED.into_bits());
            let event = [changed, u64::MAX, 0, 0xff_ff07, changed][n % 5];
            peer.respond(sqe.cid, Status::SUCCESS, event);
            true
        }
        AdminOpcode::GetLogPage => {
            peer.answer(sqe.cid, &vec![0xff; 4096]);
            true
        }
        _ => false,
    };
    let began = Instant::now();
    let world = World::new(Manner { admin: Some(Arc::new(hook)), ..Manner::default() }, |_| {});
    until("some events", || asked.load(SeqCst) > 5);
    for i in 0..200 {
        let bytes = pattern(8 * BLOCK, i);
        assert_eq!(world.one(i % 2, write(8 * i as u64, &bytes)).0, Ok(()));
        assert!(world.one(0, read(8 * i as u64, 8)).1 == bytes);
    }
    // What it costs is bounded by a pause, not by how fast the controller is.
    let most = began.elapsed().as_nanos() / EVENT_PAUSE.as_nanos() + 2;
    assert!(asked.load(SeqCst) as u128 <= most, "{} events", asked.load(SeqCst));
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}

/// A controller that has ANA, tells of changes without end, and whose log would be all lies: none of it is read.
#[test]
fn h86_an_ana_log_that_lies() {
    let (events, read_ana) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let theirs = (events.clone(), read_ana.clone());
    let hook = move |peer: &mut Peer, sqe: &Sqe| match sqe.admin() {
        AdminOpcode::AsyncEventRequest => {
            theirs.0.fetch_add(1, SeqCst);
            peer.respond(sqe.cid, Status::SUCCESS, u64::from(Event::ANA_CHANGED.into_bits()));
            true
        }
        AdminOpcode::GetLogPage if GetLogPage::of(sqe).lid == LogId::Ana => {
            theirs.1.fetch_add(1, SeqCst);
            peer.answer(sqe.cid, &vec![0xff; GetLogPage::of(sqe).bytes() as usize]);
            true
        }
        _ => false,
    };
    let identify = |cns, data: &mut Vec<u8>| {
        if cns == Cns::Controller {
            let mut id = IdentifyController::read_from_bytes(data).unwrap();
            id.cmic = id.cmic.with_anars(true);
            id.oaes = id.oaes.with_anacn(true);
            (id.anagrpmax, id.nanagrpid) = (1, u32::MAX);
            data.copy_from_slice(id.as_bytes());
        }
    };
    let manner =
        Manner { admin: Some(Arc::new(hook)), identify: Some(Arc::new(identify)), ..Manner::default() };
    let world = World::new(manner, |_| {});
    until("some events", || events.load(SeqCst) > 5);
    for i in 0..50 {
        let bytes = pattern(8 * BLOCK, i);
        assert_eq!(world.one(i % 2, write(8 * i as u64, &bytes)).0, Ok(()));
        assert!(world.one(0, read(8 * i as u64, 8)).1 == bytes);
    }
    assert_eq!(read_ana.load(SeqCst), 0);
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}

#[test]
fn h86_log_pages_of_another_length() {
    for len in [0usize, 4, 4095, 8192] {
        let once = AtomicBool::new(true);
        let hook = move |peer: &mut Peer, sqe: &Sqe| {
            let now = sqe.admin() == AdminOpcode::GetLogPage && once.swap(false, SeqCst);
            if now && len == 0 {
                peer.respond(sqe.cid, Status::SUCCESS, 0);
            } else if now {
                peer.c2h(sqe.cid, 0, &vec![0xff; len], flags::LAST_PDU | flags::SUCCESS);
            }
            now
        };
        let kato = |c: &mut Config| c.kato = Duration::from_secs(3);
        let world = World::new(Manner { admin: Some(Arc::new(hook)), ..Manner::default() }, kato);
        world.target.notify();
        until("another association", || world.target.shared.associations.load(SeqCst) == 2);
        assert_eq!(world.one(0, read(0, 8)).0, Ok(()), "{len}");
    }
}

#[test]
fn h86_a_namespace_shrinks_under_io() {
    let world = World::new(Manner::default(), |c| c.kato = Duration::from_secs(3));
    let namespace = world.remote.namespace(1).unwrap();
    // Its controller refuses what lies beyond, and then tells of it.
    let end = Arc::new(Mutex::new(u64::MAX));
    let theirs = end.clone();
    let hook = move |peer: &mut Peer, sqe: &Sqe| {
        let beyond = sqe.slba() + u64::from(sqe.nlb()) > *theirs.lock().unwrap();
        if beyond {
            peer.respond(sqe.cid, Status::LBA_OUT_OF_RANGE.dnr(), 0);
        }
        beyond
    };
    world.target.set(|m| m.io = Some(Arc::new(hook)));
    let answers = world.submit(0, (0..200).map(|i| read(i * 40, 8)).collect());
    *end.lock().unwrap() = 4000;
    world.target.set(|m| m.blocks = 4000);
    assert!(answers.take(200).iter().all(|(_, r, _)| matches!(r, Ok(()) | Err(_))));
    assert!(world.one(0, read(8000, 8)).0.is_err(), "beyond its new end");
    assert_eq!(world.one(0, read(0, 8)).0, Ok(()), "below it");
    world.target.notify();
    until("refused", || namespace.refused().is_some());
    let parked = world.submit(0, vec![read(0, 8)]);
    std::thread::sleep(Duration::from_millis(5));
    assert!(parked.none_yet(), "it is not the namespace that was promised");
    *end.lock().unwrap() = u64::MAX;
    world.target.set(|m| m.blocks = Manner::default().blocks);
    world.target.notify();
    assert_eq!(parked.take(1)[0].1, Ok(()));
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}

#[test]
fn h86_headers_longer_than_any_with_digests() {
    // HLEN 255 where a digest follows the header: nothing is read or written beyond what a header has.
    for (pdu_type, hlen, plen) in
        [(7u8, 255u8, 300u32), (5, 255, 259), (9, 128, 132), (7, 28, 600), (1, 255, 259)]
    {
        let world = World::new(Manner::default(), |c| (c.hdgst, c.ddgst) = (true, true));
        let once = AtomicBool::new(true);
        let hook = move |peer: &mut Peer, _: &Sqe| {
            let now = once.swap(false, SeqCst);
            if now {
                let flags = flags::HDGSTF | flags::DDGSTF;
                let ch = CommonHdr { pdu_type: PduType(pdu_type), flags, hlen, pdo: hlen, plen };
                let mut bytes = ch.as_bytes().to_vec();
                bytes.resize(plen as usize, 0xff);
                let _ = peer.stream.write_all(&bytes);
            }
            now
        };
        world.target.set(|m| m.io = Some(Arc::new(hook)));
        assert_eq!(world.one(0, read(0, 8)).0, Ok(()), "{pdu_type} {hlen}");
        until("another association", || world.target.shared.associations.load(SeqCst) == 2);
    }
}
