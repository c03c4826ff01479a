//! Every operation, over every way that data can take.

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use nvme_proto::nvm::RwCdw12;
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::tcp::{DataHdr, PduType, flags};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::target::Peer;
use super::*;

/// Writes and reads back, in many sizes, on both shards.
fn round_trips(manner: Manner, change: impl FnOnce(&mut Config)) {
    let world = World::new(manner, change);
    for (i, blocks) in [1usize, 7, 8, 9, 33, 64, 256, 512].into_iter().enumerate() {
        let bytes = pattern(blocks * BLOCK, i);
        let lba = 3 + i as u64 * 600;
        assert_eq!(world.one(i % 2, write(lba, &bytes)).0, Ok(()), "write {blocks}");
        let (result, back) = world.one((i + 1) % 2, read(lba, blocks as u32));
        assert_eq!(result, Ok(()), "read {blocks}");
        assert!(back == bytes, "{blocks} blocks differ");
        assert!(world.target.shared.disk.lock().unwrap()[lba as usize * BLOCK..][..bytes.len()] == bytes);
    }
    // Many at once.
    let sizes = [1usize, 8, 17, 64, 128];
    let bytes: Vec<_> = (0..60).map(|i| pattern(sizes[i % 5] * BLOCK, i)).collect();
    let writes = bytes.iter().enumerate().map(|(i, b)| write(i as u64 * 130, b)).collect();
    assert!(world.submit(0, writes).take(60).iter().all(|(_, r, _)| r.is_ok()));
    let reads =
        bytes.iter().enumerate().map(|(i, b)| read(i as u64 * 130, (b.len() / BLOCK) as u32)).collect();
    for (tag, result, back) in world.submit(0, reads).take(60) {
        assert!(result.is_ok() && back == bytes[tag as usize], "{tag}");
    }
}

#[test]
fn in_capsule_and_r2t() {
    round_trips(Manner::default(), |_| {});
}

#[test]
fn small_pieces_in_both_directions() {
    let manner =
        Manner { maxh2cdata: 4096, r2t: 5000, r2ts: 4, c2h: 1000, success: false, ..Manner::default() };
    round_trips(manner, |_| {});
}

#[test]
fn digests_and_alignment() {
    let manner = Manner { cpda_z: 31, maxh2cdata: 8192, c2h: 72 << 10, ..Manner::default() };
    round_trips(manner, |c| (c.hdgst, c.ddgst) = (true, true));
}

#[test]
fn header_digests_alone() {
    round_trips(Manner { success: false, ..Manner::default() }, |c| c.hdgst = true);
}

#[test]
fn nothing_in_the_capsule() {
    round_trips(Manner { ioccsz: 4, ..Manner::default() }, |c| c.ddgst = true);
}

#[test]
fn every_operation() {
    let world = World::new(Manner::default(), |_| {});
    let bytes = pattern(16 * BLOCK, 1);
    let disk = |lba: usize, blocks: usize| {
        world.target.shared.disk.lock().unwrap()[lba * BLOCK..][..blocks * BLOCK].to_vec()
    };
    assert_eq!(world.one(0, write(10, &bytes)).0, Ok(()));
    let compare = |bytes: &[u8]| Request { op: Op::Compare, ..write(10, bytes) };
    assert_eq!(world.one(0, compare(&bytes)).0, Ok(()));
    assert_eq!(world.one(1, compare(&pattern(16 * BLOCK, 2))).0, Err(IoError::Miscompare));
    assert_eq!(world.one(0, bare(Op::Flush, 0, 0)).0, Ok(()));
    assert_eq!(world.target.seen(NvmOpcode::Flush), 1);
    let zeroes = |deallocate| Op::WriteZeroes { deallocate, fua: true };
    assert_eq!(world.one(0, bare(zeroes(true), 11, 2)).0, Ok(()));
    assert!(disk(11, 2).iter().all(|&b| b == 0) && disk(10, 1) == bytes[..BLOCK]);
    assert_eq!(world.one(0, bare(Op::Unmap, 20, 3)).0, Ok(()));
    assert!(disk(20, 3).iter().all(|&b| b == 0) && disk(23, 1) == bytes[13 * BLOCK..14 * BLOCK]);
    assert_eq!(world.one(0, bare(Op::Read, 0, 0)).0, Ok(()), "no blocks");
}

#[test]
fn what_one_command_cannot_cover_is_covered_by_several() {
    // MDTS 2: 16 KiB, which bounds Write Zeroes where the controller tells no WZSL.
    let world = World::new(Manner { mdts: 2, ..Manner::default() }, |_| {});
    assert_eq!(world.remote.namespace(1).unwrap().limits().max_blocks, 32);
    assert_eq!(world.one(0, write(100, &[1; 32 * BLOCK])).0, Ok(()));
    let zeroes = Op::WriteZeroes { deallocate: false, fua: false };
    assert_eq!(world.one(0, bare(zeroes, 0, 4000)).0, Ok(()));
    assert_eq!(world.target.seen(NvmOpcode::WriteZeroes), 125);
    assert!(world.target.shared.disk.lock().unwrap().iter().all(|&b| b == 0));
}

#[test]
fn more_than_the_queue_holds_waits_in_order() {
    let world = World::new(Manner::default(), |c| c.queue_size = 2);
    let bytes: Vec<_> = (0..50).map(|i| pattern(BLOCK, i)).collect();
    // All on one block: with one command out at a time their order is kept, and the last one stands.
    let results = world.submit(0, bytes.iter().map(|b| write(5, b)).collect()).take(50);
    assert!(results.iter().enumerate().all(|(i, (tag, r, _))| *tag == i as u64 && r.is_ok()));
    assert_eq!(world.one(1, read(5, 1)).1, bytes[49]);
}

#[test]
fn a_remote_with_one_queue_serves_every_shard() {
    let world = World::new(Manner { queues: 1, ..Manner::default() }, |_| {});
    let bytes = pattern(64 * BLOCK, 3);
    for shard in [1, 0] {
        assert_eq!(world.one(shard, write(7, &bytes)).0, Ok(()));
        assert!(world.one(1 - shard, read(7, 64)) == (Ok(()), bytes.clone()));
    }
}

#[test]
fn a_transient_status_is_tried_again() {
    let world = World::new(Manner::default(), |_| {});
    let left = AtomicUsize::new(3);
    let hook = move |peer: &mut Peer, sqe: &Sqe| {
        let bad = left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        if bad {
            peer.respond(sqe.cid, Status::NAMESPACE_NOT_READY, 0);
        }
        bad
    };
    world.target.set(|m| m.io = Some(Arc::new(hook)));
    assert_eq!(world.one(0, read(0, 8)).0, Ok(()));
    assert_eq!(world.target.seen(NvmOpcode::Read), 4);
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}

#[test]
fn damaged_data_is_read_again() {
    let world = World::new(Manner { success: false, ..Manner::default() }, |c| c.ddgst = true);
    assert_eq!(world.one(0, write(0, &pattern(256 * BLOCK, 1))).0, Ok(()));
    for blocks in [1, 256] {
        let first = AtomicBool::new(true);
        let hook = move |peer: &mut Peer, sqe: &Sqe| {
            let bad = first.swap(false, SeqCst);
            if bad {
                // The digest is of other bytes.
                let len = sqe.nlb() as usize * BLOCK;
                let mut header = DataHdr::new_zeroed();
                header.ch.pdu_type = PduType::C2hData;
                header.ch.hlen = 24;
                (header.ch.flags, header.ch.pdo) = (flags::LAST_PDU | flags::DDGSTF, 24);
                (header.cccid, header.datal) = (sqe.cid, len as u32);
                header.ch.plen = 24 + len as u32 + 4;
                let mut pdu = header.as_bytes().to_vec();
                pdu.resize(24 + len, 0xbd);
                pdu.extend([1, 2, 3, 4]);
                peer.stream.write_all(&pdu).unwrap();
                peer.respond(sqe.cid, Status::SUCCESS, 0);
            }
            bad
        };
        world.target.set(|m| m.io = Some(Arc::new(hook)));
        let (result, bytes) = world.one(0, read(0, blocks));
        assert!(result.is_ok() && bytes == pattern(256 * BLOCK, 1)[..bytes.len()]);
    }
    assert_eq!(world.target.shared.associations.load(SeqCst), 1, "not the connection's end");
}

#[test]
fn limits_are_what_identify_says() {
    let world = World::new(Manner::default(), |_| {});
    let namespace = world.remote.namespace(1).unwrap();
    let limits = namespace.limits();
    assert_eq!((limits.block_size, limits.blocks, limits.max_blocks), (512, 8192, 2048));
    assert!(limits.volatile_cache && limits.compare && limits.unmap && limits.unmapped_reads_zero);
    assert_eq!(namespace.identity().uuid, Some([7; 16]));
    assert!(limits.reasons.iter().any(|r| r.limit == "max_blocks"));
}

#[test]
fn a_controller_is_asked_without_a_remote() {
    let world = World::new(Manner::default(), |_| {});
    let known = crate::nvme_tcp::identify(&world.shard(0), config(&world.target)).unwrap();
    assert_eq!(known.namespaces.len(), 1);
    assert_eq!(known.namespaces[0].2.uuid, Some([7; 16]));
    assert_eq!(known.controller.mdts, 8);
}

#[test]
fn a_discovery_service_is_asked() {
    let target = Target::start(Manner::default());
    let shards = Shards::start(&ShardConfig::default()).unwrap();
    let ask = || {
        let config = Config::discovery(target.addr, Nqn::new("nqn.x:host").unwrap(), [9; 16]);
        crate::nvme_tcp::discover(&shards.handles()[0], config)
    };
    let found = ask().unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].traddr.as_str(), found[0].trsvcid.as_str()), ("127.0.0.1", "4420"));
    assert_eq!(found[1].subnqn.unwrap().as_str(), "nqn.x:sub");
    target.set(|m| m.records = u64::MAX);
    assert_eq!(ask().unwrap().len(), 1024, "no more than that, whatever the service says");
    shards.stop();
}

#[test]
fn fua_reaches_the_command() {
    let world = World::new(Manner::default(), |_| {});
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let theirs = seen.clone();
    world.target.set(|m| {
        m.io = Some(Arc::new(move |_, sqe| {
            theirs.lock().unwrap().push(RwCdw12::from_bits(sqe.cdw12));
            false
        }));
    });
    for fua in [false, true] {
        let request = Request { op: Op::Write { fua }, ..write(0, &[1; 2 * BLOCK]) };
        assert_eq!(world.one(0, request).0, Ok(()));
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|c| (c.nlb_z(), c.fua())).collect::<Vec<_>>(), [(1, false), (1, true)]);
}

#[test]
fn over_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let target = Target::at(listener, Manner::default());
    let shards = Shards::start(&ShardConfig::default()).unwrap();
    let remote = Remote::start(config(&target), Vec::new(), shards.handles()).unwrap();
    remote.wait_live(LONG).unwrap();
    let world = World { target, remote, shards: Some(shards), origin: Origin::new() };
    assert_eq!(world.one(0, read(0, 8)).0, Ok(()));
}
