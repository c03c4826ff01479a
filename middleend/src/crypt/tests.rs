use std::sync::atomic::Ordering::Relaxed;

use engine::mem::{Access, GuestMemory, Mapping, Region, Sgl};

use super::*;
use crate::testing::{BLOCK, Host, Ram, content, filled, pattern};

fn key(len: usize) -> Vec<u8> {
    pattern(99, len)
}

fn crypt(below: &Arc<Ram>) -> Host {
    Host::new(Arc::new(CryptVolume::new(below.clone(), &key(64)).unwrap()))
}

/// What the medium should hold.
fn encrypted(key: &[u8], unit: usize, lba: u64, plain: &[u8]) -> Vec<u8> {
    let mut bytes = plain.to_vec();
    Xts::new(key).unwrap().encrypt_in_place(unit, lba, &mut bytes);
    bytes
}

#[test]
fn the_medium_holds_raw_xts_of_every_block() {
    for (unit, key) in [(512, key(32)), (512, key(64)), (4096, key(32)), (4096, key(64))] {
        let ram = Ram::with(Limits::full(unit as u32, 64));
        let host = Host::new(Arc::new(CryptVolume::new(ram.clone(), &key).unwrap()));
        let plain = pattern(1, 9 * unit);
        host.write(0, 5, &plain).unwrap();
        assert_eq!(ram.bytes.lock().unwrap()[5 * unit..14 * unit], encrypted(&key, unit, 5, &plain));
        assert_eq!(host.read(1, 5, 9).unwrap(), plain, "from the other shard");
        assert_eq!(host.read(1, 7, 1).unwrap(), plain[2 * unit..3 * unit], "from the middle");
    }
}

#[test]
fn blocks_that_lie_in_several_segments_are_gathered_and_scattered() {
    let region = Region::new(0, 1 << 20, true, true, Some(Mapping::anonymous(1 << 20).unwrap())).unwrap();
    let memory = GuestMemory::default().with(region).unwrap();
    for cuts in
        [&[3, 1, 700, 832, 512][..], &[512, 1, 511, 1024], &[1536, 256, 256], &[100; 20], &[2048], &[2044, 4]]
    {
        let mut sgl = Sgl::empty();
        let (mut gpa, mut left) = (0, 4 * BLOCK);
        for cut in cuts {
            let len = left.min(*cut);
            sgl.push_guest(&memory, gpa, len, Access::Write).unwrap();
            gpa += len as u64 + 8;
            left -= len;
        }
        sgl.push_guest(&memory, gpa, left, Access::Write).unwrap();
        let plain = pattern(2, 4 * BLOCK);
        sgl.copy_in(0, &plain);

        let ram = Ram::new(64);
        let host = crypt(&ram);
        host.send(0, Op::Write { fua: false }, 3, 4, sgl.clone()).wait().unwrap();
        assert_eq!(
            ram.bytes.lock().unwrap()[3 * BLOCK..7 * BLOCK],
            encrypted(&key(64), BLOCK, 3, &plain),
            "{cuts:?}"
        );
        sgl.zero(0, sgl.len());
        host.send(0, Op::Read, 3, 4, sgl.clone()).wait().unwrap();
        assert_eq!(content(&sgl), plain, "{cuts:?}");
        host.send(0, Op::Compare, 3, 4, sgl).wait().unwrap();
    }
}

#[test]
fn zeroes_are_written_encrypted_in_bounded_pieces() {
    let ram = Ram::new(1000);
    let host = crypt(&ram);
    host.write(0, 0, &vec![0xff; 900 * BLOCK]).unwrap();
    ram.asked();
    host.ask(0, Op::WriteZeroes { deallocate: true, fua: true }, 1, 600).unwrap();
    let piece = ZEROES / BLOCK as u32;
    let fua = Op::Write { fua: true };
    assert_eq!(ram.asked(), [(fua, 1, piece), (fua, 257, piece), (fua, 513, 600 - 2 * piece)]);
    let plain = host.read(1, 0, 602).unwrap();
    assert!(plain[..BLOCK].iter().chain(&plain[601 * BLOCK..]).all(|&b| b == 0xff));
    assert!(plain[BLOCK..601 * BLOCK].iter().all(|&b| b == 0));
    assert_eq!(ram.block(300), encrypted(&key(64), BLOCK, 300, &[0; BLOCK]));
}

#[test]
fn a_revoked_write_zeroes_stops_after_its_piece() {
    let ram = Ram::new(1000);
    let host = crypt(&ram);
    let zeroes = Op::WriteZeroes { deallocate: false, fua: false };
    let (one, other) =
        (host.send(0, zeroes, 0, 900, Sgl::empty()), host.send(0, zeroes, 900, 100, Sgl::empty()));
    // Their first pieces have been written below, and their completions wait for the shard's turn.
    host.revoke(0, Scope::Io(one.id));
    assert_eq!(one.wait(), Err(IoError::Aborted));
    assert_eq!(other.wait(), Ok(()));
    assert_eq!(ram.asked().len(), 2);

    ram.stuck.store(true, Relaxed);
    let stuck = host.send(0, zeroes, 0, 900, Sgl::empty());
    host.revoke(0, Scope::Origin(host.origin));
    assert_eq!(stuck.wait(), Err(IoError::Aborted));
}

#[test]
fn compare_flush_and_unmap_reach_the_medium() {
    let ram = Ram::new(64);
    let host = crypt(&ram);
    let plain = pattern(3, 2 * BLOCK);
    host.write(0, 8, &plain).unwrap();
    ram.asked();
    assert_eq!(host.compare(0, 8, &plain), Ok(()));
    assert_eq!(host.compare(0, 9, &plain), Err(IoError::Miscompare));
    host.ask(0, Op::Flush, 0, 0).unwrap();
    host.ask(0, Op::Unmap, 8, 1).unwrap();
    host.send_write(0, 1, &plain, true).wait().unwrap();
    assert_eq!(
        ram.asked(),
        [
            (Op::Compare, 8, 2),
            (Op::Compare, 9, 2),
            (Op::Flush, 0, 0),
            (Op::Unmap, 8, 1),
            (Op::Write { fua: true }, 1, 2)
        ]
    );
    assert_ne!(host.read(0, 8, 1).unwrap(), [0; BLOCK], "which is why the limits do not promise zeroes");
}

#[test]
fn limits_say_what_encryption_takes_away() {
    let lower =
        Limits { write_zeroes: false, atomic_blocks: 8, volatile_cache: true, ..Limits::full(4096, 100) };
    let limits = CryptVolume::new(Ram::with(lower.clone()), &key(32)).unwrap().limits();
    assert!(!limits.unmapped_reads_zero && limits.write_zeroes && limits.unmap && limits.compare);
    assert_eq!((limits.max_blocks, limits.atomic_blocks, limits.volatile_cache), (512, 8, true));
    let why: Vec<_> = limits.reasons.iter().map(|r| (r.limit, r.layer)).collect();
    assert_eq!(why, [("max_blocks", "crypt"), ("unmapped_reads_zero", "crypt")]);

    let narrow = Limits { max_blocks: 16, unmapped_reads_zero: false, ..lower };
    let limits = CryptVolume::new(Ram::with(narrow), &key(32)).unwrap().limits();
    assert!(limits.max_blocks == 16 && limits.reasons.is_empty());
}

#[test]
fn the_hosts_memory_is_untouched_by_a_read_that_fails() {
    let ram = Ram::new(64);
    let host = crypt(&ram);
    ram.stuck.store(true, Relaxed);
    let read = host.send_read(0, 0, 4);
    host.revoke(0, Scope::All);
    assert_eq!(read.wait(), Err(IoError::Aborted));
    assert!(content(&read.sgl).iter().all(|&b| b == 0xee));
}

#[test]
fn a_buffer_that_the_layer_below_still_holds_is_not_decrypted_in_place() {
    let ram = Ram::new(64);
    let host = crypt(&ram);
    let plain = pattern(4, 4 * BLOCK);
    host.write(0, 0, &plain).unwrap();
    ram.hold.store(true, Relaxed);
    assert_eq!(host.read(0, 0, 4).unwrap(), plain);
}

#[test]
fn a_list_of_another_length_writes_nothing() {
    let ram = Ram::new(64);
    let host = crypt(&ram);
    let short = host.send(0, Op::Write { fua: false }, 0, 2, filled(&[1; BLOCK]));
    assert_eq!(short.wait(), Err(IoError::OutOfRange));
    assert!(ram.asked().is_empty());
}
