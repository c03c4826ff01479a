//! Every operation, over every way that data can take.

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
    let manner = Manner { cpda_z: 31, maxh2cdata: 8192, c2h: 24 << 10, ..Manner::default() };
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
