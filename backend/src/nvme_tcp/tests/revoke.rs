//! I/O that is taken back: it ends at once, its memory is let go, and no old write lands over a new one.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use nvme_proto::Sqe;
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::tcp::{CommonHdr, DataHdr, PduType, flags};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::target::Peer;
use super::*;

/// Holds commands back until it is opened; they are then done in order, by the connection's own thread.
#[derive(Default)]
struct Gate {
    held: Mutex<Vec<Sqe>>,
    open: AtomicBool,
}

impl Gate {
    /// Holds commands of `opcode` back; the next command that passes does what is held, if the gate is open.
    fn hold(world: &World, opcode: NvmOpcode) -> Arc<Gate> {
        let gate = Arc::<Gate>::default();
        let theirs = gate.clone();
        let hook = move |peer: &mut Peer, sqe: &Sqe| {
            if theirs.open.load(SeqCst) {
                for held in theirs.held.lock().unwrap().drain(..) {
                    peer.io(&held, Vec::new());
                }
                return false;
            }
            let mine = sqe.nvm() == opcode;
            if mine {
                theirs.held.lock().unwrap().push(*sqe);
            }
            mine
        };
        world.target.set(|m| m.io = Some(Arc::new(hook)));
        gate
    }
}

#[test]
fn a_parked_io_ends_at_once() {
    let world = World::new(Manner::default(), |c| c.queue_size = 2);
    Gate::hold(&world, NvmOpcode::Read);
    let answers = world.submit(0, (0..5).map(|i| read(i, 1)).collect());
    until("one is out", || world.target.seen(NvmOpcode::Read) == 1);
    let id = IoId { origin: world.origin(), tag: 3 };
    world.revoke(0, Scope::Io(id));
    let [(tag, result, _)] = &answers.take(1)[..] else { panic!() };
    assert_eq!((*tag, *result), (3, ABORTED));
    world.revoke(0, Scope::Io(IoId { origin: Origin::new(), tag: 4 }));
    world.revoke(0, Scope::All);
    let mut rest = answers.take(4);
    rest.sort_by_key(|(tag, ..)| *tag);
    assert_eq!(rest.iter().map(|(t, r, _)| (*t, *r)).collect::<Vec<_>>(), [0, 1, 2, 4].map(|t| (t, ABORTED)));
}

#[test]
fn a_read_that_is_out_ends_at_once_and_its_memory_stays_as_it_is() {
    for blocks in [1, 256] {
        let world = World::new(Manner::default(), |_| {});
        assert_eq!(world.one(0, write(0, &pattern(256 * BLOCK, 1))).0, Ok(()));
        let gate = Gate::hold(&world, NvmOpcode::Read);
        let memory = memory(&vec![0xaa; blocks as usize * BLOCK]);
        let request = Request { op: Op::Read, lba: 0, blocks, sgl: memory.clone() };
        let answers = world.submit(0, vec![request]);
        until("it is out", || gate.held.lock().unwrap().len() == 1);
        world.revoke(0, Scope::All);
        assert_eq!(answers.take(1)[0].1, ABORTED);
        gate.open.store(true, SeqCst);
        // The flush lets the old answer go first.
        assert_eq!(world.one(0, bare(Op::Flush, 0, 0)).0, Ok(()));
        assert!(engine::testing::bytes(&memory).iter().all(|&b| b == 0xaa));
        assert_eq!(world.target.shared.associations.load(SeqCst), 1);
    }
}

#[test]
fn a_write_taken_back_before_its_data_is_sent_sends_what_it_held_then() {
    let world = World::new(Manner { r2t: 64 << 10, ..Manner::default() }, |_| {});
    let gate = Gate::hold(&world, NvmOpcode::Write);
    let old = pattern(512 * BLOCK, 1);
    let memory = memory(&old);
    let request = Request { op: Op::Write { fua: false }, lba: 0, blocks: 512, sgl: memory.clone() };
    let answers = world.submit(0, vec![request]);
    until("it is out", || gate.held.lock().unwrap().len() == 1);
    world.revoke(0, Scope::All);
    assert_eq!(answers.take(1)[0].1, ABORTED);
    // The issuer uses its memory for something else now.
    memory.zero(0, memory.len());
    gate.open.store(true, SeqCst);
    assert_eq!(world.one(0, bare(Op::Flush, 0, 0)).0, Ok(()));
    until("the old write", || world.target.shared.disk.lock().unwrap()[..old.len()] == old);
}

#[test]
fn a_newer_write_waits_for_the_ghost_of_an_older_one() {
    let world = World::new(Manner::default(), |_| {});
    let gate = Gate::hold(&world, NvmOpcode::Write);
    let answers = world.submit(0, vec![write(8, &pattern(64 * BLOCK, 1))]);
    until("it is out", || gate.held.lock().unwrap().len() == 1);
    world.revoke(0, Scope::All);
    assert_eq!(answers.take(1)[0].1, ABORTED);
    gate.open.store(true, SeqCst);
    let new = pattern(16 * BLOCK, 2);
    let newer = world.submit(0, vec![write(20, &new)]);
    // It is held on this side; what does not overlap passes.
    assert_eq!(world.target.seen(NvmOpcode::Write), 1);
    assert_eq!(world.one(0, write(100, &new)).0, Ok(()));
    assert_eq!(newer.take(1)[0].1, Ok(()));
    assert!(world.one(0, read(20, 16)).1 == new, "the newer write stands");
    assert!(world.one(0, read(8, 12)).1 == pattern(64 * BLOCK, 1)[..12 * BLOCK]);
}

#[test]
fn a_write_is_taken_back_while_the_kernel_has_its_memory() {
    // The target asks for everything and then reads nothing: the socket fills up with the data half sent.
    let (stall, stalled) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let world = World::new(Manner { maxh2cdata: 1 << 20, ..Manner::default() }, |_| {});
    let (theirs, told) = (stall.clone(), stalled.clone());
    let hook = move |peer: &mut Peer, sqe: &Sqe| {
        if sqe.nvm() == NvmOpcode::Write && sqe.slba() < 4096 * 4 && theirs.load(SeqCst) {
            peer.io(sqe, Vec::new());
            if sqe.slba() >= 6144 {
                told.store(true, SeqCst);
                while theirs.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            return true;
        }
        false
    };
    world.target.set(|m| m.io = Some(Arc::new(hook)));
    let old: Vec<_> = (0..4).map(|i| pattern(2048 * BLOCK, i)).collect();
    let memories: Vec<_> = old.iter().map(|b| memory(b)).collect();
    let requests = memories.iter().enumerate().map(|(i, m)| Request {
        op: Op::Write { fua: false },
        lba: i as u64 * 2048,
        blocks: 2048,
        sgl: m.clone(),
    });
    let answers = world.submit(0, requests.collect());
    until("stalled", || stalled.load(SeqCst));
    std::thread::sleep(Duration::from_millis(20));
    world.revoke(0, Scope::All);
    assert!(answers.take(4).iter().all(|(_, r, _)| *r == ABORTED));
    for memory in &memories {
        memory.zero(0, memory.len());
    }
    stall.store(false, SeqCst);
    until("the old writes", || {
        let disk = world.target.shared.disk.lock().unwrap();
        old.iter().enumerate().all(|(i, b)| disk[i * b.len()..][..b.len()] == *b)
    });
    assert_eq!(world.one(0, write(0, &pattern(BLOCK, 9))).0, Ok(()), "the ghosts are gone");
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}

#[test]
fn a_read_is_taken_back_while_its_data_comes() {
    let (stall, stalled) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let world = World::new(Manner::default(), |_| {});
    let (theirs, told) = (stall.clone(), stalled.clone());
    let data = pattern(512 * BLOCK, 1);
    let sent = data.clone();
    let hook = move |peer: &mut Peer, sqe: &Sqe| {
        if sqe.nvm() != NvmOpcode::Read {
            return false;
        }
        let mut header = DataHdr::new_zeroed();
        let plen = 24 + sent.len() as u32;
        let flags = flags::LAST_PDU | flags::SUCCESS;
        header.ch = CommonHdr { pdu_type: PduType::C2hData, flags, hlen: 24, pdo: 24, plen };
        (header.cccid, header.datal) = (sqe.cid, sent.len() as u32);
        peer.stream.write_all(header.as_bytes()).unwrap();
        let (first, rest) = sent.split_at(100_000);
        peer.stream.write_all(first).unwrap();
        told.store(true, SeqCst);
        while theirs.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        peer.stream.write_all(rest).unwrap();
        true
    };
    world.target.set(|m| m.io = Some(Arc::new(hook)));
    let memory = memory(&vec![0xaa; data.len()]);
    let request = Request { op: Op::Read, lba: 0, blocks: 512, sgl: memory.clone() };
    let answers = world.submit(0, vec![request]);
    until("stalled", || {
        stalled.load(SeqCst) && engine::testing::bytes(&memory)[..100_000] == data[..100_000]
    });
    world.revoke(0, Scope::All);
    assert_eq!(answers.take(1)[0].1, ABORTED);
    memory.zero(0, memory.len());
    stall.store(false, SeqCst);
    assert_eq!(world.one(0, bare(Op::Flush, 0, 0)).0, Ok(()));
    assert!(engine::testing::bytes(&memory).iter().all(|&b| b == 0), "the rest went nowhere");
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}
