//! Connections that are lost, and namespaces that are not what they were.

use std::net::TcpListener;
use std::sync::atomic::Ordering::SeqCst;

use nvme_proto::opcode::NvmOpcode;

use super::*;
use crate::nvme_tcp::{Reason, Resend, State};

/// Cuts every connection again and again under I/O; nothing fails, and every block is right.
fn cuts(change: impl FnOnce(&mut Config)) {
    let manner = Manner { r2t: 16 << 10, r2ts: 2, c2h: 8 << 10, ..Manner::default() };
    // What may still land is waited for in each round.
    let kato = Duration::from_millis(150);
    let world = World::new(manner, |c| {
        c.kato = kato;
        change(c);
    });
    for round in 0..12 {
        let bytes: Vec<_> = (0..40).map(|i| pattern([8, 64, 200][i % 3] * BLOCK, i + round)).collect();
        let writes = |at: usize| {
            bytes[at..at + 20].iter().enumerate().map(|(i, b)| write((at + i) as u64 * 200, b)).collect()
        };
        let (a, b) = (world.submit(0, writes(0)), world.submit(1, writes(20)));
        std::thread::sleep(Duration::from_micros(round as u64 * 300));
        world.target.cut();
        for (tag, result, _) in a.take(20).into_iter().chain(b.take(20)) {
            assert_eq!(result, Ok(()), "{tag}");
        }
        let reads =
            bytes.iter().enumerate().map(|(i, b)| read(i as u64 * 200, (b.len() / BLOCK) as u32)).collect();
        let answers = world.submit(round % 2, reads);
        world.target.cut();
        for (tag, result, back) in answers.take(40) {
            assert!(result.is_ok() && back == bytes[tag as usize], "{tag}");
        }
    }
    assert!(world.target.shared.associations.load(SeqCst) > 5);
}

#[test]
fn cut_connections_cost_time_and_no_error() {
    cuts(|_| {});
}

#[test]
fn cut_connections_with_digests() {
    cuts(|c| (c.hdgst, c.ddgst) = (true, true));
}

#[test]
fn io_is_parked_until_the_remote_is_there() {
    // Nobody listens at first; what the namespace is was promised earlier.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let pin = World::new(Manner::default(), |_| {}).remote.namespace(1).unwrap().pin();
    drop(listener);
    let shards = Shards::start(&ShardConfig::default()).unwrap();
    let nqn = |n| Nqn::new(n).unwrap();
    let mut config = Config::new("r1", addr, nqn("nqn.x:sub"), nqn("nqn.x:host"), [9; 16]);
    (config.first_pause, config.longest_pause) = (Duration::from_millis(5), Duration::from_millis(20));
    let remote = Remote::start(config, vec![pin], shards.handles()).unwrap();
    until("a reason", || matches!(remote.state(), State::Connecting(Some(Reason::Socket { .. }))));
    let volume = remote.namespace(1).unwrap();
    assert_eq!(volume.limits().blocks, 8192, "a volume at once");
    let world = World {
        target: Target::at(TcpListener::bind(addr).unwrap(), Manner::default()),
        remote,
        shards: Some(shards),
        origin: Origin::new(),
    };
    assert_eq!(world.one(0, write(1, &pattern(BLOCK, 1))).0, Ok(()));
}

#[test]
fn another_namespace_under_the_nsid_is_refused_until_the_first_is_back() {
    let world = World::new(Manner::default(), |_| {});
    assert_eq!(world.one(0, write(1, &pattern(BLOCK, 1))).0, Ok(()));
    let namespace = world.remote.namespace(1).unwrap();
    let (pinned, written) = (namespace.pin(), world.target.seen(NvmOpcode::Write));
    for change in [
        (|m: &mut Manner| m.uuid = [8; 16]) as fn(&mut Manner),
        |m| m.blocks = 100,
        |m| m.mdts = 1,
        |m| m.lbaf.ms = 8,
        |m| m.lbaf.lbads = 63,
        |m| m.lbaf.lbads = 0,
        |m| m.blocks = u64::MAX,
    ] {
        world.target.set(change);
        world.remote.reset();
        until("refused", || namespace.refused().is_some());
        let answers = world.submit(0, vec![write(1, &pattern(BLOCK, 2))]);
        std::thread::sleep(Duration::from_millis(5));
        assert!(answers.none_yet());
        assert_eq!(world.target.seen(NvmOpcode::Write), written, "nothing reached the other namespace");
        world.revoke(0, Scope::Origin(world.origin()));
        assert_eq!(answers.take(1)[0].1, ABORTED);
        world.target.set(|m| *m = Manner::default());
        world.remote.reset();
        until("back", || namespace.refused().is_none());
    }
    assert_eq!(namespace.pin(), pinned);
    assert_eq!(world.one(0, write(1, &pattern(BLOCK, 3))).0, Ok(()));
}

#[test]
fn a_namespace_that_grew_is_the_same() {
    let world = World::new(Manner { blocks: 1000, ..Manner::default() }, |_| {});
    world.target.set(|m| m.blocks = 2000);
    world.remote.reset();
    until("grown", || world.remote.namespace(1).unwrap().limits().blocks == 2000);
}

#[test]
fn h86_an_unanswered_keep_alive_ends_the_association() {
    let world = World::new(Manner::default(), |c| c.kato = Duration::from_millis(100));
    until("keep alives", || world.target.shared.keep_alives.load(SeqCst) > 3);
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
    world.target.set(|m| m.mute = true);
    until("a new association", || world.target.shared.associations.load(SeqCst) > 1);
    world.target.set(|m| m.mute = false);
    assert_eq!(world.one(0, read(0, 1)).0, Ok(()));
}

/// A world in which a write of the first eight blocks was out when the connection was cut; when that was.
fn with_a_write_out(resend: Resend, kato: Duration) -> (World, Answers, Instant) {
    let world = World::new(Manner::default(), |c| (c.resend, c.kato) = (resend, kato));
    world.target.set(|m| m.io = Some(Arc::new(|_, _| true)));
    let answers = world.submit(0, vec![write(0, &pattern(8 * BLOCK, 1))]);
    until("it is out", || world.target.seen(NvmOpcode::Write) == 1);
    world.target.set(|m| m.io = None);
    let lost = Instant::now();
    world.target.cut();
    until("a new association", || world.target.shared.associations.load(SeqCst) == 2);
    (world, answers, lost)
}

#[test]
fn a_write_that_may_still_land_waits_with_its_blocks_alone() {
    let kato = Duration::from_secs(1);
    let (world, answers, lost) = with_a_write_out(Resend::Strict, kato);
    let touching = world.submit(0, vec![read(7, 2)]);
    let flush = bare(Op::Flush, 0, 0);
    let others = world.submit(1, vec![write(8, &pattern(BLOCK, 2)), read(8, 1), flush]);
    assert!(others.take(3).iter().all(|(_, result, _)| result.is_ok()));
    let early = lost.elapsed() < kato;
    assert!(!early || answers.none_yet() && touching.none_yet(), "not before the keep-alive timeout");
    assert_eq!(answers.take(1)[0].1, Ok(()));
    assert_eq!(touching.take(1)[0].2[..BLOCK], pattern(8 * BLOCK, 1)[7 * BLOCK..]);
    assert!(lost.elapsed() >= 2 * kato);
}

#[test]
fn one_that_is_taken_back_keeps_its_blocks_closed() {
    let kato = Duration::from_secs(1);
    let (world, answers, lost) = with_a_write_out(Resend::Strict, kato);
    world.revoke(0, Scope::Origin(world.origin()));
    assert_eq!(answers.take(1)[0].1, ABORTED);
    // A second loss does not open them either.
    world.target.cut();
    assert_eq!(world.one(1, write(0, &pattern(BLOCK, 2))).0, Ok(()));
    assert!(lost.elapsed() >= 2 * kato);
}

/// A remote that is lost again and again holds a write back for its own time, and not for that of each loss.
#[test]
fn later_losses_do_not_hold_it_longer() {
    let (world, answers, _) = with_a_write_out(Resend::Strict, Duration::from_millis(500));
    let mut losses = 0;
    while answers.none_yet() {
        assert!(losses < 60, "it is never sent");
        losses += 1;
        let before = world.target.shared.associations.load(SeqCst);
        world.target.cut();
        until("a new association", || world.target.shared.associations.load(SeqCst) > before);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(losses > 1, "it was held");
    assert_eq!(world.one(0, read(0, 8)), (Ok(()), pattern(8 * BLOCK, 1)));
}

/// The controller grants fewer queues than before: what the shard without one had out is over like everything else.
#[test]
fn a_write_of_a_queue_that_does_not_come_again_is_laid_to_rest() {
    let world = World::new(Manner::default(), |c| c.kato = Duration::from_millis(200));
    world.target.set(|m| m.io = Some(Arc::new(|_, _| true)));
    let answers = world.submit(1, vec![write(0, &pattern(8 * BLOCK, 1))]);
    until("it is out", || world.target.seen(NvmOpcode::Write) == 1);
    world.target.set(|m| (m.io, m.queues) = (None, 1));
    for associations in 2..4 {
        world.target.cut();
        until("a new association", || world.target.shared.associations.load(SeqCst) == associations);
    }
    assert_eq!(answers.take(1)[0].1, Ok(()));
    assert_eq!(world.one(1, read(0, 8)), (Ok(()), pattern(8 * BLOCK, 1)));
}

#[test]
fn fast_sends_again_at_once() {
    let (_world, answers, _) = with_a_write_out(Resend::Fast, Duration::from_secs(3600));
    assert_eq!(answers.take(1)[0].1, Ok(()));
}

#[test]
fn a_write_that_was_not_sent_waits_for_nothing() {
    // Nothing but the first command fits into the queue.
    let change = |c: &mut Config| (c.queue_size, c.kato) = (2, Duration::from_secs(3600));
    let world = World::new(Manner::default(), change);
    world.target.set(|m| m.io = Some(Arc::new(|_, _| true)));
    let first = world.submit(0, vec![read(0, 1)]);
    until("it is out", || world.target.seen(NvmOpcode::Read) == 1);
    let parked = world.submit(0, vec![write(1, &pattern(BLOCK, 2))]);
    world.target.set(|m| m.io = None);
    world.target.cut();
    assert_eq!((first.take(1)[0].1, parked.take(1)[0].1), (Ok(()), Ok(())));
}

#[test]
fn a_closed_remote_fails_its_io() {
    let world = World::new(Manner::default(), |_| {});
    world.target.set(|m| m.io = Some(Arc::new(|_, _| true)));
    let answers = world.submit(0, (0..200).map(|i| read(i, 1)).collect());
    until("some are out", || world.target.seen(NvmOpcode::Read) > 100);
    world.remote.close();
    assert!(answers.take(200).iter().all(|(_, r, _)| *r == Err(IoError::Failed)));
    assert_eq!(world.remote.wait_live(LONG), Err(State::Closed));
    until("goodbye", || world.target.shared.shutdowns.load(SeqCst) == 1);
}

#[test]
fn a_notice_makes_the_namespaces_looked_at_anew() {
    // The target tells of events when a Keep Alive comes; a late answer to one must not end the association.
    let change = |c: &mut Config| c.kato = Duration::from_secs(3);
    let world = World::new(Manner { blocks: 1000, ..Manner::default() }, change);
    let mine = world.remote.namespace(1).unwrap();
    world.target.set(|m| (m.blocks, m.nsids) = (2000, vec![1, 2, 9]));
    world.target.notify();
    until("grown", || mine.limits().blocks == 2000);
    until("more", || world.remote.namespaces().len() == 3);
    world.target.set(|m| m.nsids = vec![2]);
    world.target.notify();
    until("gone", || mine.refused().is_some());
    until("forgotten", || world.remote.namespace(9).is_none());
    assert!(world.remote.namespace(1).is_some(), "somebody holds it");
    assert_eq!(world.target.shared.associations.load(SeqCst), 1);
}

#[test]
fn a_refused_namespace_holds_up_no_other() {
    let world = World::new(Manner { nsids: vec![1, 2], ..Manner::default() }, |_| {});
    let other = world.remote.namespace(2).unwrap();
    assert_eq!(world.submit_to(other.clone(), 0, vec![read(0, 1)]).take(1)[0].1, Ok(()));
    world.target.set(|m| m.nsids = vec![1]);
    world.remote.reset();
    until("refused", || other.refused().is_some());
    assert_eq!(world.one(0, read(0, 1)).0, Ok(()));
    let parked = world.submit_to(other.clone(), 0, vec![read(0, 1)]);
    assert_eq!(world.one(0, read(0, 1)).0, Ok(()), "with I/O of the other parked");
    assert!(parked.none_yet());
    world.target.set(|m| m.nsids = vec![1, 2]);
    world.remote.reset();
    assert_eq!(parked.take(1)[0].1, Ok(()));
}

#[test]
fn what_was_promised_before_is_held_against_what_is_there() {
    let world = World::new(Manner::default(), |_| {});
    let there = world.remote.namespace(1).unwrap();
    assert!(Arc::ptr_eq(&there, &world.remote.promise(there.pin())), "the same");
    let mut other = there.pin();
    other.identity.uuid = Some([1; 16]);
    let promised = world.remote.promise(other.clone());
    assert!(matches!(promised.refused(), Some(Reason::Changed(_))));
    let parked = world.submit_to(promised.clone(), 0, vec![read(0, 1)]);
    assert!(Arc::ptr_eq(&promised, &world.remote.namespace(1).unwrap()));
    // It comes back as it was.
    world.target.set(|m| m.uuid = [1; 16]);
    world.remote.reset();
    assert_eq!(parked.take(1)[0].1, Ok(()));
    assert_eq!(promised.pin(), other);
}
