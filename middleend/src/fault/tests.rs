use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use engine::mem::Sgl;
use engine::{IoError, Op, Scope};

use super::random::Random;
use super::*;
use crate::testing::{BLOCK, Host, Ram, content, pattern};

const WRITE: Op = Op::Write { fua: false };
const ZEROES: Op = Op::WriteZeroes { deallocate: true, fua: false };

fn faulty(rules: Vec<Rule>) -> (Arc<FaultVolume>, Arc<Ram>, Host) {
    let ram = Ram::new(256);
    let volume = Arc::new(FaultVolume::new(ram.clone(), Faults { rules, ..Faults::default() }));
    let host = Host::new(volume.clone());
    (volume, ram, host)
}

fn cached(limits: Limits) -> (Arc<FaultVolume>, Arc<Ram>, Host) {
    let ram = Ram::with(limits);
    let volume = FaultVolume::new(ram.clone(), Faults { volatile_cache: true, ..Faults::default() });
    let volume = Arc::new(volume);
    let host = Host::new(volume.clone());
    (volume, ram, host)
}

fn small() -> Limits {
    Limits::full(BLOCK as u32, 256)
}

fn bytes(byte: u8, blocks: usize) -> Vec<u8> {
    vec![byte; blocks * BLOCK]
}

#[test]
fn without_faults_everything_passes_on_both_shards() {
    let (volume, ram, host) = faulty(Vec::new());
    let plain = pattern(1, 4 * BLOCK);
    host.write(0, 3, &plain).unwrap();
    assert_eq!(host.read(1, 3, 4).unwrap(), plain);
    host.compare(1, 3, &plain).unwrap();
    for op in [Op::Flush, Op::Unmap, ZEROES] {
        host.ask(1, op, 0, if op == Op::Flush { 0 } else { 1 }).unwrap();
    }
    assert_eq!(ram.asked().len(), 6);
    assert_eq!(volume.limits(), ram.limits);
}

#[test]
fn rules_fail_io_on_every_shard_before_it_does_anything() {
    let rule = Rule { lbas: 8..16, times: 2, ..Rule::new(&[Kind::Write], Effect::Fail(IoError::WriteFault)) };
    let (volume, ram, host) = faulty(vec![rule]);
    assert_eq!(host.write(0, 8, &bytes(1, 1)), Err(IoError::WriteFault));
    assert_eq!(host.write(1, 15, &bytes(1, 4)), Err(IoError::WriteFault));
    assert!(ram.asked().is_empty());
    assert_eq!(host.write(0, 8, &bytes(1, 1)), Ok(()));
    volume.set_rules(vec![Rule::new(&[], Effect::Fail(IoError::Failed))], 0);
    assert_eq!(host.ask(1, Op::Flush, 0, 0), Err(IoError::Failed));
}

/// What memory held before is nobody's, also where nothing is read.
#[test]
fn a_read_that_is_ignored_reads_zeroes() {
    let (_, ram, host) = faulty(vec![Rule::new(&[Kind::Read], Effect::Ignore)]);
    assert_eq!(host.read(0, 3, 4), Ok(bytes(0, 4)));
    assert!(ram.asked().is_empty());
}

#[test]
fn delays_hold_io_back_until_it_is_due_or_revoked() {
    let delay = Duration::from_secs(5);
    let (_, ram, host) = faulty(vec![Rule { times: 2, ..Rule::new(&[Kind::Read], Effect::Delay(delay)) }]);
    let (late, revoked) = (host.send_read(0, 0, 1), host.send_read(0, 1, 1));
    host.read(0, 2, 1).unwrap();
    host.revoke(0, Scope::Io(revoked.id));
    assert_eq!(revoked.wait(), Err(IoError::Aborted));
    assert!(late.result().is_none());
    assert_eq!(late.finished_at(), delay);
    assert_eq!(ram.asked(), [(Op::Read, 2, 1), (Op::Read, 0, 1)]);
}

#[test]
fn a_cached_write_is_read_back_everywhere_and_is_not_below() {
    let (volume, ram, host) = cached(small());
    let plain = pattern(2, 4 * BLOCK);
    host.write(0, 10, &plain).unwrap();
    assert!(ram.asked().is_empty());
    assert_eq!(volume.unflushed(), 4);
    assert_eq!(host.read(1, 10, 4).unwrap(), plain);
    assert!(ram.asked().is_empty(), "all of it is in the cache");
    let around = host.read(1, 9, 6).unwrap();
    assert_eq!(around, [bytes(0, 1), plain.clone(), bytes(0, 1)].concat());
    host.compare(0, 9, &around).unwrap();
    host.compare(0, 10, &plain).unwrap();
    assert_eq!(host.compare(0, 9, &bytes(0, 6)), Err(IoError::Miscompare));
    host.ask(0, ZEROES, 11, 2).unwrap();
    assert_eq!(host.read(0, 10, 4).unwrap()[BLOCK..3 * BLOCK], bytes(0, 2));
}

#[test]
fn flush_moves_everything_below_and_fua_its_own_blocks() {
    let (volume, ram, host) = cached(Limits { max_blocks: 4, ..small() });
    for lba in [20, 0, 4, 30] {
        host.write(0, lba, &bytes(lba as u8 + 1, 4)).unwrap();
    }
    host.write(1, 30, &bytes(99, 1)).unwrap();
    host.send_write(1, 21, &bytes(98, 2), true).wait().unwrap();
    assert_eq!(ram.asked(), [(Op::Write { fua: true }, 21, 2)]);
    assert_eq!(volume.unflushed(), 14);
    host.ask(1, Op::Flush, 0, 0).unwrap();
    let order = [(0, 4), (4, 4), (20, 1), (23, 1), (30, 4)].map(|(lba, n)| (WRITE, lba, n));
    assert_eq!(ram.asked(), [&order[..], &[(Op::Flush, 0, 0)]].concat());
    assert_eq!(volume.unflushed(), 0);
    assert_eq!([ram.block(30)[0], ram.block(31)[0], ram.block(22)[0], ram.block(23)[0]], [99, 31, 98, 21]);
    host.ask(0, Op::Flush, 0, 0).unwrap();
    assert_eq!(ram.asked(), [(Op::Flush, 0, 0)]);
}

#[test]
fn unmap_discards_what_is_cached() {
    let (volume, ram, host) = cached(small());
    host.write(0, 0, &bytes(1, 4)).unwrap();
    host.ask(0, Op::Unmap, 1, 2).unwrap();
    assert_eq!(ram.asked(), [(Op::Unmap, 1, 2)]);
    assert_eq!(volume.unflushed(), 2);
    assert_eq!(host.read(0, 0, 4).unwrap(), [bytes(1, 1), bytes(0, 2), bytes(1, 1)].concat());
}

#[test]
fn a_flush_that_fails_or_is_revoked_keeps_what_it_has_not_moved() {
    let (volume, ram, host) = cached(small());
    host.write(0, 0, &bytes(1, 2)).unwrap();
    ram.stuck.store(true, Relaxed);
    let (flush, second) =
        (host.send(0, Op::Flush, 0, 0, Sgl::empty()), host.send(1, Op::Flush, 0, 0, Sgl::empty()));
    host.sim.run_until(|| false);
    host.revoke(1, Scope::Io(second.id));
    assert_eq!(second.wait(), Err(IoError::Aborted), "it waited for the first");
    host.revoke(0, Scope::Origin(host.origin));
    assert_eq!(flush.wait(), Err(IoError::Aborted));
    assert_eq!(volume.unflushed(), 2);
    ram.stuck.store(false, Relaxed);

    // Revoked when the blocks have been written below, before the flush itself.
    let flush = host.send(0, Op::Flush, 0, 0, Sgl::empty());
    host.revoke(0, Scope::Io(flush.id));
    assert_eq!(flush.wait(), Err(IoError::Aborted));
    assert_eq!(ram.asked(), [(WRITE, 0, 2)]);
}

#[test]
fn a_full_cache_writes_through() {
    let blocks = CACHE as u64 / 65536 + 64;
    let (volume, ram, host) = cached(Limits::full(65536, blocks));
    host.ask(0, ZEROES, 0, blocks as u32 - 64).unwrap();
    assert!(ram.asked().is_empty());
    host.write(0, 0, &[7; 65536]).unwrap();
    assert_eq!(ram.asked(), [(WRITE, 0, 1)]);
    assert_eq!(host.read(0, 0, 1).unwrap(), [7; 65536]);
    assert_eq!(volume.unflushed() as u64, blocks - 65);
}

#[test]
fn limits_say_what_the_cache_takes_away() {
    let (volume, _, _) = cached(Limits { atomic_blocks: 8, fua: false, ..small() });
    let limits = volume.limits();
    assert!(limits.volatile_cache && limits.fua && limits.atomic_blocks == 1);
    let why: Vec<_> = limits.reasons.iter().map(|r| (r.limit, r.layer)).collect();
    assert_eq!(why, [("volatile_cache", "fault"), ("atomic_blocks", "fault")]);
}

#[test]
fn a_power_cut_loses_what_was_not_flushed() {
    let mut fates = BTreeSet::new();
    for seed in 0..64 {
        let (volume, _, host) = cached(small());
        host.write(0, 0, &bytes(1, 4)).unwrap();
        host.ask(1, Op::Flush, 0, 0).unwrap();
        host.write(0, 0, &bytes(2, 2)).unwrap();
        host.write(1, 1, &bytes(3, 1)).unwrap();
        host.send_write(1, 3, &bytes(4, 1), true).wait().unwrap();
        volume.power_cut(seed);
        let after = host.read(1, 0, 4).unwrap();
        let fate = [0, 1, 2, 3].map(|block| after[block * BLOCK]);
        assert!([1, 2].contains(&fate[0]) && [1, 2, 3].contains(&fate[1]), "{fate:?}");
        assert_eq!(fate[2..], [1, 4], "flushed, and written with FUA");
        fates.insert(fate);
        // After the reboot all of it stays as it is.
        volume.power_cut(seed + 1);
        assert_eq!(host.read(0, 0, 4).unwrap(), after);
        assert_eq!(host.ask(0, Op::Flush, 0, 0), Err(IoError::WriteFault), "writes are lost: said once");
        host.ask(0, Op::Flush, 0, 0).unwrap();
        assert_eq!(host.read(0, 0, 4).unwrap(), after);
    }
    assert_eq!(fates.len(), 6, "also the later write without the earlier one");
}

#[test]
fn a_power_cut_fails_what_is_on_its_way_and_holds_what_follows() {
    let (volume, ram, host) = cached(small());
    host.write(0, 0, &bytes(1, 1)).unwrap();
    let late = Rule { times: 1, ..Rule::new(&[Kind::Write], Effect::Delay(Duration::from_secs(60))) };
    volume.set_rules(vec![late], 0);
    ram.stuck.store(true, Relaxed);
    let victims = [
        host.send_write(0, 9, &bytes(2, 1), false),
        host.send_read(0, 5, 1),
        host.send(0, Op::Flush, 0, 0, Sgl::empty()),
        host.send(0, Op::Flush, 0, 0, Sgl::empty()),
    ];
    volume.power_cut(0);
    ram.stuck.store(false, Relaxed);
    let after = host.send_read(0, 9, 1);
    host.sim.advance(Duration::from_secs(1));
    // What never went below failed at once; the rest waits for the layer below, and so does what came after.
    let results = victims.each_ref().map(|io| io.result());
    let aborted = Some(Err(IoError::Aborted));
    assert_eq!(results, [aborted, None, None, Some(Err(IoError::WriteFault))]);
    assert_eq!(after.result(), None);
    host.revoke(0, Scope::Io(victims[1].id));
    host.revoke(0, Scope::Io(victims[2].id));
    after.wait().unwrap();
    assert_eq!(content(&after.sgl), bytes(0, 1));
    let [write, read, flush, _] = &victims;
    assert_eq!([write, read].map(|io| io.wait()), [Err(IoError::Aborted); 2]);
    assert_eq!(flush.wait(), Err(IoError::WriteFault), "an aborted one may be tried again");
    assert_eq!(host.read(0, 0, 1).unwrap(), bytes(0, 1));
}

/// Random operations on two shards, flushes and power cuts, against what the contract allows each block to be.
#[test]
fn whatever_happens_a_block_is_what_it_may_be() {
    for seed in 0..20 {
        let (volume, _, host) = cached(Limits { max_blocks: 3, ..Limits::full(BLOCK as u32, 8) });
        let mut random = Random::new(seed);
        // What a cut may leave of each block, the newest last.
        let mut may_be = vec![vec![0u8]; 8];
        for step in 1..=200u8 {
            let (shard, lba) = (random.below(2), random.below(8) as u64);
            let blocks = 1 + random.below(3.min(8 - lba as usize));
            let covered = lba as usize..lba as usize + blocks;
            match random.below(10) {
                0..4 => {
                    host.write(shard, lba, &bytes(step, blocks)).unwrap();
                    may_be[covered].iter_mut().for_each(|block| block.push(step));
                }
                4 => {
                    host.send_write(shard, lba, &bytes(step, blocks), true).wait().unwrap();
                    may_be[covered].iter_mut().for_each(|block| *block = vec![step]);
                }
                5 => {
                    host.ask(shard, ZEROES, lba, blocks as u32).unwrap();
                    may_be[covered].iter_mut().for_each(|block| block.push(0));
                }
                6 => {
                    // The first after a cut may tell of the loss.
                    host.ask(shard, Op::Flush, 0, 0).or_else(|_| host.ask(shard, Op::Flush, 0, 0)).unwrap();
                    may_be.iter_mut().for_each(|block| *block = vec![block[block.len() - 1]]);
                }
                7 => {
                    volume.power_cut(random.next());
                    for (lba, block) in may_be.iter_mut().enumerate() {
                        let found = host.read(shard, lba as u64, 1).unwrap()[0];
                        assert!(
                            block.contains(&found),
                            "seed {seed}: block {lba} is {found}, not of {block:?}"
                        );
                        *block = vec![found];
                    }
                }
                _ => {
                    let newest: Vec<u8> =
                        may_be[covered].iter().flat_map(|b| bytes(b[b.len() - 1], 1)).collect();
                    assert_eq!(
                        host.read(shard, lba, blocks as u32).unwrap(),
                        newest,
                        "seed {seed}, step {step}"
                    );
                    host.compare(shard, lba, &newest).unwrap();
                }
            }
        }
    }
}
