//! A controller that does what none may (H.86): its connection ends, another is made, and the I/O succeeds on it.

use std::io::Write;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use nvme_proto::identify::{Cns, ControllerType, IdentifyController, Sgls};
use nvme_proto::tcp::{CommonHdr, DataHdr, Fes, PduType, R2t, TermReq, flags};
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::target::{IdentifyHook, Peer};
use super::*;
use crate::nvme_tcp::{Reason, Resend, State};

/// Does `evil` in answer to one I/O command; the connection must end with `fes`, and the I/O succeed on another.
fn survives(what: &str, request: Request, fes: u16, evil: impl Fn(&mut Peer, &Sqe) + Send + Sync + 'static) {
    let world = World::new(Manner::default(), |c| c.resend = Resend::Fast);
    let first = AtomicBool::new(true);
    let hook = move |peer: &mut Peer, sqe: &Sqe| {
        let now = first.swap(false, SeqCst);
        if now {
            evil(peer, sqe);
        }
        now
    };
    world.target.set(|m| m.io = Some(Arc::new(hook)));
    assert_eq!(world.one(0, request).0, Ok(()), "{what}");
    until(what, || world.target.shared.associations.load(SeqCst) == 2);
    if fes != 0 {
        until(what, || world.target.shared.terminated.lock().unwrap().contains(&fes));
    }
}

fn raw(pdu_type: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Vec<u8> {
    let ch = CommonHdr { pdu_type: PduType(pdu_type), flags, hlen, pdo, plen };
    let mut bytes = ch.as_bytes().to_vec();
    bytes.resize(64, 0);
    bytes
}

const FIELD: u16 = Fes::InvalidHeaderField.0;
const SEQUENCE: u16 = Fes::PduSequenceError.0;
const RANGE: u16 = Fes::DataOutOfRange.0;
const LIMIT: u16 = Fes::LimitExceeded.0;

#[test]
fn h86_malformed_headers() {
    for (what, fes, bytes) in [
        ("an unknown type", FIELD, raw(0x0a, 0, 24, 0, 24)),
        ("type FFh", FIELD, raw(0xff, 0, 24, 0, 24)),
        ("a host's type", FIELD, raw(4, 0, 72, 0, 72)),
        ("a second ICResp", SEQUENCE, raw(1, 0, 128, 0, 128)),
        ("HLEN 0", FIELD, raw(5, 0, 0, 0, 24)),
        ("HLEN 255", FIELD, raw(5, 0, 255, 0, 24)),
        ("PLEN 0", FIELD, raw(5, 0, 24, 0, 0)),
        ("PLEN 4 GiB", FIELD, raw(5, 0, 24, 0, u32::MAX)),
        ("R2T with data", FIELD, raw(9, 0, 24, 24, 28)),
        ("an empty C2HData", FIELD, raw(7, 0, 24, 24, 24)),
        ("PDO 0", FIELD, raw(7, 0, 24, 0, 64)),
        ("PDO unaligned", FIELD, raw(7, 0, 24, 26, 64)),
        ("PDO beyond", FIELD, raw(7, 0, 24, 255, 64)),
        ("HDGSTF not agreed", FIELD, raw(5, flags::HDGSTF, 24, 0, 24)),
        ("DDGSTF not agreed", FIELD, raw(7, flags::DDGSTF, 24, 24, 64)),
        ("a long TermReq", FIELD, raw(3, 0, 24, 0, 153)),
    ] {
        survives(what, read(0, 8), fes, move |peer, _| peer.stream.write_all(&bytes).unwrap());
    }
}

#[test]
fn h86_termination_with_any_status() {
    for fes in [0, 1, 6, 7, 0xffff] {
        survives("TermReq", read(0, 8), 0, move |peer, _| {
            let mut term = TermReq::new_zeroed();
            term.ch = CommonHdr { pdu_type: PduType::C2hTermReq, flags: 0, hlen: 24, pdo: 0, plen: 24 };
            term.fes = Fes(fes);
            peer.stream.write_all(term.as_bytes()).unwrap();
        });
    }
}

#[test]
fn h86_data_that_was_not_asked_for() {
    let data = |len: usize| vec![0x66; len];
    survives("data for a write", write(0, &data(64 * BLOCK)), SEQUENCE, move |p, s| {
        p.c2h(s.cid, 0, &data(512), 0)
    });
    survives("an unknown CID", read(0, 8), SEQUENCE, move |p, s| p.c2h(s.cid ^ 0x40, 0, &data(512), 0));
    survives("a CID of another round", read(0, 8), SEQUENCE, move |p, s| {
        p.c2h(s.cid ^ 0x4000, 0, &data(512), 0)
    });
    survives("CID FFFFh", read(0, 8), SEQUENCE, move |p, _| p.c2h(0xffff, 0, &data(512), 0));
    survives("beyond the end", read(0, 8), RANGE, move |p, s| p.c2h(s.cid, 0, &data(4097), 0));
    survives("an offset beyond", read(0, 8), RANGE, move |p, s| p.c2h(s.cid, u32::MAX, &data(512), 0));
    survives("a gap", read(0, 8), RANGE, move |p, s| p.c2h(s.cid, 512, &data(512), 0));
    survives("twice", read(0, 8), RANGE, move |p, s| {
        p.c2h(s.cid, 0, &data(512), 0);
        p.c2h(s.cid, 0, &data(512), 0);
    });
    survives("SUCCESS without LAST", read(0, 8), FIELD, move |p, s| {
        p.c2h(s.cid, 0, &data(4096), flags::SUCCESS)
    });
    survives("SUCCESS too early", read(0, 8), SEQUENCE, move |p, s| {
        p.c2h(s.cid, 0, &data(512), flags::SUCCESS | flags::LAST_PDU);
    });
    survives("DATAL other than PLEN", read(0, 8), FIELD, move |p, s| {
        let mut h = DataHdr::new_zeroed();
        h.ch = CommonHdr { pdu_type: PduType::C2hData, flags: 0, hlen: 24, pdo: 24, plen: 24 + 512 };
        (h.cccid, h.datal) = (s.cid, u32::MAX - 23);
        p.stream.write_all(h.as_bytes()).unwrap();
    });
}

#[test]
fn h86_answers_that_cannot_be() {
    survives("an unknown CID", read(0, 8), SEQUENCE, |p, s| p.respond(s.cid ^ 1, Status::SUCCESS, 0));
    survives("before the data", read(0, 8), SEQUENCE, |p, s| p.respond(s.cid, Status::SUCCESS, 0));
    survives("before it had the data", write(0, &[1; 64 * BLOCK]), SEQUENCE, |p, s| {
        p.respond(s.cid, Status::SUCCESS, 0);
    });
    survives("twice", read(0, 8), SEQUENCE, |p, s| {
        let cid = s.cid;
        p.answer(cid, &[0; 4096]);
        p.respond(cid, Status::SUCCESS, 0);
    });
}

#[test]
fn h86_r2ts_that_cannot_be() {
    let big = || write(0, &[1; 64 * BLOCK]);
    let len = 64 * BLOCK as u32;
    survives("for a read", read(0, 8), SEQUENCE, |p, s| p.r2t(s.cid, 1, 0, 4096));
    survives("for data in the capsule", write(0, &[1; BLOCK]), SEQUENCE, |p, s| p.r2t(s.cid, 1, 0, 512));
    survives("an unknown CID", big(), SEQUENCE, |p, s| p.r2t(s.cid ^ 2, 1, 0, 512));
    survives("of nothing", big(), RANGE, |p, s| p.r2t(s.cid, 1, 0, 0));
    survives("too long", big(), RANGE, move |p, s| p.r2t(s.cid, 1, 0, len + 1));
    survives("wrapping", big(), RANGE, |p, s| p.r2t(s.cid, 1, 512, u32::MAX));
    // Several in one segment, so that none is answered between.
    let burst = |p: &mut Peer, cid, r2ts: &[(u32, u32)]| {
        let pdu = |&(r2to, r2tl): &(u32, u32)| {
            let ch = CommonHdr { pdu_type: PduType::R2t, flags: 0, hlen: 24, pdo: 0, plen: 24 };
            R2t { ch, cccid: cid, ttag: 1, r2to, r2tl, reserved: 0 }.as_bytes().to_vec()
        };
        p.stream.write_all(&r2ts.iter().flat_map(pdu).collect::<Vec<_>>()).unwrap();
    };
    survives("overlapping", big(), RANGE, move |p, s| burst(p, s.cid, &[(0, 1024), (512, 1024)]));
    survives("a gap", big(), RANGE, move |p, s| burst(p, s.cid, &[(0, 512), (1024, 512)]));
    survives("too many", big(), LIMIT, move |p, s| {
        burst(p, s.cid, &[(0, 4), (4, 4), (8, 4), (12, 4), (16, 4)]);
    });
}

#[test]
fn h86_icresp() {
    type Change = fn(&mut [u8; 128]);
    let changes: [(&str, Change); 12] = [
        ("type", |b| b[0] = 5),
        ("HLEN", |b| b[2] = 127),
        ("PLEN", |b| b[4] = 0),
        ("PFV", |b| b[8] = 1),
        ("CPDA 255", |b| b[10] = 255),
        ("a digest", |b| b[11] = 1),
        ("MAXH2CDATA 0", |b| b[12..16].fill(0)),
        ("MAXH2CDATA 1", |b| b[12..16].copy_from_slice(&1u32.to_le_bytes())),
        ("MAXH2CDATA 2", |b| b[12..16].copy_from_slice(&2u32.to_le_bytes())),
        ("MAXH2CDATA 3", |b| b[12..16].copy_from_slice(&3u32.to_le_bytes())),
        ("MAXH2CDATA unaligned", |b| b[12] = 3),
        ("reserved DGST bits", |b| b[11] = 0x80),
    ];
    let world = World::unready(Manner { icresp: Some(Arc::new(|b| b[0] = 9)), ..Manner::default() }, |_| {});
    for (what, change) in changes {
        let answered = Arc::new(AtomicUsize::new(0));
        let theirs = answered.clone();
        let hook = move |b: &mut [u8; 128]| {
            change(b);
            theirs.fetch_add(1, SeqCst);
        };
        world.target.set(|m| m.icresp = Some(Arc::new(hook)));
        // Another try comes only where the one before was given up.
        until(what, || answered.load(SeqCst) > 2);
        assert!(matches!(world.remote.state(), State::Connecting(Some(_))), "{what}");
    }
    world.target.set(|m| m.icresp = None);
    world.remote.wait_live(LONG).unwrap();
}

#[test]
fn h86_a_wrong_header_digest() {
    let world = World::new(Manner::default(), |c| c.hdgst = true);
    let first = AtomicBool::new(true);
    world.target.set(|m| {
        m.io = Some(Arc::new(move |peer: &mut Peer, _: &Sqe| {
            let now = first.swap(false, SeqCst);
            if now {
                peer.stream.write_all(&raw(5, flags::HDGSTF, 24, 0, 28)[..28]).unwrap();
            }
            now
        }));
    });
    assert_eq!(world.one(0, read(0, 8)).0, Ok(()));
    until("told", || world.target.shared.terminated.lock().unwrap().contains(&Fes::HeaderDigestError.0));
}

#[test]
fn h86_identify() {
    type Change = fn(&mut IdentifyController);
    let changes: [(&str, Change); 5] = [
        ("another CNTLID", |id| id.cntlid ^= 1),
        ("a discovery controller", |id| id.cntrltype = ControllerType::Discovery),
        ("no SGLs", |id| id.sgls = Sgls::new()),
        ("a SUBNQN without its NUL", |id| id.subnqn = [b'x'; 256]),
        ("everything FFh", |id| id.as_mut_bytes().fill(0xff)),
    ];
    let hook = |change: Change| {
        Some(Arc::new(move |cns, data: &mut Vec<u8>| {
            if cns == Cns::Controller {
                let mut id = IdentifyController::read_from_bytes(data).unwrap();
                change(&mut id);
                data.copy_from_slice(id.as_bytes());
            }
        }) as IdentifyHook)
    };
    for (what, change) in changes {
        let world = World::unready(Manner { identify: hook(change), ..Manner::default() }, |_| {});
        until(what, || matches!(world.remote.state(), State::Connecting(Some(Reason::Unfit(_)))));
        world.target.set(|m| m.identify = None);
        world.remote.wait_live(LONG).unwrap();
    }
    // Values that only bound what is done.
    let wild: [(&str, Change); 3] = [
        ("IOCCSZ 0", |id| id.ioccsz = 0),
        ("IOCCSZ and CRDT without bounds", |id| (id.ioccsz, id.crdt1) = (u32::MAX, u16::MAX)),
        ("ICDOFF", |id| id.icdoff = u16::MAX),
    ];
    for (what, change) in wild {
        let world = World::new(Manner { identify: hook(change), ..Manner::default() }, |_| {});
        assert_eq!(world.one(0, write(0, &[3; 64 * BLOCK])).0, Ok(()), "{what}");
    }
}

#[test]
fn h86_namespace_lists() {
    for (what, list) in [("not in order", [5u32, 4, 0]), ("one twice", [1, 1, 0])] {
        let change = move |cns, data: &mut Vec<u8>| {
            if cns == Cns::ActiveNamespaces {
                data[..12].copy_from_slice(list.as_bytes());
            }
        };
        let world = World::unready(Manner { identify: Some(Arc::new(change)), ..Manner::default() }, |_| {});
        until(what, || matches!(world.remote.state(), State::Connecting(Some(Reason::Violation(_)))));
        assert!(world.remote.namespaces().is_empty());
    }
    let full = |cns, data: &mut Vec<u8>| {
        if cns == Cns::ActiveNamespaces {
            for (nsid, field) in (1u32..).zip(data.chunks_exact_mut(4)) {
                field.copy_from_slice(&nsid.to_le_bytes());
            }
        }
    };
    let world = World::new(Manner { identify: Some(Arc::new(full)), ..Manner::default() }, |_| {});
    assert_eq!(world.remote.namespaces().len(), 1024);
}
