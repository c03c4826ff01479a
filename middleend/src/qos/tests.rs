use std::sync::atomic::Ordering::Relaxed;

use engine::mem::Sgl;

use super::*;
use crate::testing::{BLOCK, Host, Pending, Ram, pattern};

const BLOCKS: u64 = 4096;
const SECOND: Duration = Duration::from_secs(1);

fn limited(maxima: Maxima) -> (Arc<QosVolume>, Arc<Ram>, Host) {
    let ram = Ram::new(BLOCKS);
    let volume = Arc::new(QosVolume::new(ram.clone(), maxima));
    let host = Host::new(volume.clone());
    // Idle for long enough that the burst is there.
    host.sim.advance(SECOND);
    (volume, ram, host)
}

/// Seconds of virtual time from now until all of these have finished.
fn seconds(host: &Host, ios: &[Pending]) -> f64 {
    let start = host.sim.now();
    ios.iter().map(|io| io.finished_at().saturating_sub(start).as_secs_f64()).fold(0.0, f64::max)
}

fn reads(host: &Host, shard: usize, count: u64, blocks: u32) -> Vec<Pending> {
    (0..count).map(|i| host.send_read(shard, i % (BLOCKS - 1000), blocks)).collect()
}

fn writes(host: &Host, shard: usize, count: u64, blocks: u32) -> Vec<Pending> {
    let bytes = pattern(1, blocks as usize * BLOCK);
    (0..count).map(|i| host.send_write(shard, i % (BLOCKS - 1000), &bytes, false)).collect()
}

#[track_caller]
fn assert_near(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 0.02 * expected + 0.011, "{actual} s instead of {expected} s");
}

#[test]
fn without_maxima_nothing_waits() {
    let (_, _, host) = limited(Maxima::default());
    assert_eq!(seconds(&host, &reads(&host, 0, 1000, 8)), 0.0);
}

#[test]
fn each_maximum_limits_what_it_names() {
    let none = Maxima::default();
    let both = |host: &Host| {
        let (r, w) = (reads(host, 0, 2000, 8), writes(host, 1, 1000, 8));
        (seconds(host, &r), seconds(host, &w))
    };
    for (maxima, read, write) in [
        (Maxima { rd_iops_kiops: 1, ..none }, 2.0, 0.0),
        (Maxima { wr_iops_kiops: 1, ..none }, 0.0, 1.0),
        (Maxima { rw_iops_kiops: 1, ..none }, 2.0, 3.0),
        (Maxima { rd_bandwidth_mbs: 1, ..none }, 2000.0 / 256.0, 0.0),
        (Maxima { wr_bandwidth_mbs: 1, ..none }, 0.0, 1000.0 / 256.0),
        (Maxima { rw_bandwidth_mbs: 2, ..none }, 2000.0 / 512.0, 3000.0 / 512.0),
        (Maxima { rd_iops_kiops: 1, rd_bandwidth_mbs: 1, ..none }, 2000.0 / 256.0, 0.0),
    ] {
        let (_, _, host) = limited(maxima);
        let (r, w) = both(&host);
        assert_near(r, read);
        assert_near(w, (write - read).max(0.0));
    }
}

#[test]
fn all_users_on_all_shards_share_the_maxima_fairly() {
    let (_, _, host) = limited(Maxima { rd_iops_kiops: 1, ..Maxima::default() });
    let mut ios = [Vec::new(), Vec::new()];
    for i in 0..1000 {
        for (shard, ios) in ios.iter_mut().enumerate() {
            ios.push(host.send_read(shard, i, 1));
        }
    }
    host.sim.advance(SECOND);
    let done = ios.each_ref().map(|ios| ios.iter().filter(|io| io.result().is_some()).count());
    assert!(done.iter().all(|n| n.abs_diff(505) <= 6), "{done:?} of 1000 each");
}

#[test]
fn reads_do_not_wait_behind_writes() {
    let (_, _, host) = limited(Maxima { wr_iops_kiops: 1, rd_iops_kiops: 1, ..Maxima::default() });
    let writes = writes(&host, 0, 1000, 1);
    assert_eq!(host.read(0, 0, 1).map(drop), Ok(()));
    assert!(host.sim.now() < SECOND + SECOND / 50);
    assert!(writes.last().unwrap().result().is_none());
}

#[test]
fn flush_is_not_held_back_and_unmap_costs_no_bytes() {
    let (_, _, host) = limited(Maxima { wr_bandwidth_mbs: 1, ..Maxima::default() });
    let big = host.send(0, Op::WriteZeroes { deallocate: true, fua: false }, 0, 4096, Sgl::empty());
    let unmap = host.send(0, Op::Unmap, 0, 4096, Sgl::empty());
    let write = host.send_write(0, 0, &[1; BLOCK], false);
    assert_eq!(seconds(&host, &[big, unmap]), 0.0, "larger than a second's tokens, and no bytes");
    assert_eq!(host.ask(0, Op::Flush, 0, 0), Ok(()));
    assert!(write.result().is_none());
    assert_near(seconds(&host, &[write]), 2.0);
}

#[test]
fn order_is_kept() {
    let (_, ram, host) = limited(Maxima { rw_iops_kiops: 1, ..Maxima::default() });
    let ios = writes(&host, 0, 100, 1);
    assert_near(seconds(&host, &ios), 0.1);
    let lbas: Vec<u64> = ram.asked().iter().map(|a| a.1).collect();
    assert_eq!(lbas, (0..100).collect::<Vec<_>>());
}

#[test]
fn new_maxima_hold_for_what_waits_already() {
    let (volume, _, host) = limited(Maxima { wr_bandwidth_mbs: 1, ..Maxima::default() });
    let mut ios = writes(&host, 0, 50, 256);
    ios.extend(writes(&host, 1, 50, 256));
    host.sim.advance(SECOND);
    let faster = Maxima { wr_bandwidth_mbs: 10, ..Maxima::default() };
    volume.set_maxima(faster);
    assert_eq!(volume.maxima(), faster);
    let took = seconds(&host, &ios);
    assert!((1.1..1.4).contains(&took), "12.5 MiB, less what passed, at 10 MiB/s: {took}");
    let more = writes(&host, 0, 10, 256);
    host.sim.advance(SECOND / 100);
    volume.set_maxima(Maxima::default());
    assert!(seconds(&host, &more) <= 0.1);
}

#[test]
fn what_waits_is_given_back_with_its_tokens() {
    let (_, ram, host) = limited(Maxima { rd_iops_kiops: 1, ..Maxima::default() });
    let waiting = reads(&host, 0, 2000, 1);
    let passed = ram.asked().len();
    assert!((9..=12).contains(&passed));
    host.revoke(0, Scope::Io(waiting[1000].id));
    assert_eq!(waiting[1000].wait(), Err(IoError::Aborted));
    assert!(waiting[999].result().is_none());
    let start = host.sim.now();
    host.revoke(0, Scope::Origin(host.origin));
    assert!(waiting.iter().skip(passed).all(|io| io.wait() == Err(IoError::Aborted)));
    assert_eq!(host.sim.now(), start);
    assert!(ram.asked().is_empty());
    host.read(0, 0, 1).unwrap();
    assert!(host.sim.now() - start < SECOND / 50, "the tokens of what was revoked are there again");
}

#[test]
fn revoke_reaches_what_has_passed() {
    let (_, ram, host) = limited(Maxima::default());
    ram.stuck.store(true, Relaxed);
    let stuck = host.send_read(0, 0, 1);
    host.revoke(0, Scope::All);
    assert_eq!(stuck.wait(), Err(IoError::Aborted));
}

#[test]
fn limits_are_those_below() {
    let (volume, ram, _) = limited(Maxima { rw_iops_kiops: 1, ..Maxima::default() });
    assert_eq!(volume.limits(), ram.limits);
}
