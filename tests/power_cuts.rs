//! Power cuts: a host stamps blocks, notes what was acknowledged, and finds after each cut that nothing of what Flush and
//! FUA promised is lost. The disk that loses its power is a volatile cache over a file, in a target behind NVMe/TCP and
//! encryption; at times the whole target loses it. The same test over a disk whose Flush lies finds the loss.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::grpc::Grpc;
use common::host::{connect_tcp, connect_vfio_user};
use common::server::Server;
use common::{Random, count, free_port};
use host::{Command, Done, Kind, Queue};
use proto::isthmus::{FaultOperation, FaultRule, FaultVolume, fault_rule::Effect};

const FAR: &str = "nqn.2024-01.com.example:far";
const NEAR: &str = "nqn.2024-01.com.example:near";
const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
/// Commands in flight; their tags are the numbers below.
const DEPTH: u16 = 8;

/// What the host knows of a block.
#[derive(Clone, Default)]
struct Block {
    /// The stamp that a power cut must not undo.
    durable: u64,
    /// The stamp whose write was acknowledged last.
    acknowledged: u64,
    /// Every stamp that was sent since `durable`: any may be found.
    sent: Vec<u64>,
}

/// What a command was sent for.
enum Sent {
    Write {
        block: usize,
        stamp: u64,
        fua: bool,
    },
    /// With what was acknowledged when it was sent, and how many flushes had failed.
    Flush(Vec<u64>, u64),
}

/// A block that a power cut took although it was promised, or that holds what was never written there.
#[derive(Debug)]
struct Lost(#[expect(dead_code, reason = "it is printed")] String);

struct Writer<'a> {
    queue: &'a mut dyn Queue,
    random: &'a mut Random,
    blocks: Vec<Block>,
    stamp: u64,
    in_flight: Vec<Option<Sent>>,
    /// Promises that were kept so far: a run without any would prove nothing.
    promises: usize,
    /// Flushes that failed. After one, another that was sent before it failed promises nothing either.
    failed: u64,
}

impl<'a> Writer<'a> {
    fn new(queue: &'a mut dyn Queue, random: &'a mut Random) -> Self {
        let in_flight = (0..DEPTH).map(|_| None).collect();
        Writer {
            queue,
            random,
            blocks: vec![Block::default(); BLOCKS],
            stamp: 0,
            in_flight,
            promises: 0,
            failed: 0,
        }
    }

    /// Writes and flushes until `cut` is done.
    fn write_until(&mut self, cut: &mpsc::Receiver<()>) {
        while cut.try_recv() == Err(mpsc::TryRecvError::Empty) {
            for tag in 0..DEPTH {
                if self.in_flight[usize::from(tag)].is_none() {
                    self.send(tag);
                }
            }
            self.poll();
        }
        while self.in_flight.iter().any(Option::is_some) {
            self.poll();
        }
    }

    fn send(&mut self, tag: u16) {
        let (kind, block) = match self.random.below(20) {
            0 => (Kind::Flush, 0),
            1 | 2 => (Kind::Write { fua: true }, self.random.below(BLOCKS as u64) as usize),
            _ => (Kind::Write { fua: false }, self.random.below(BLOCKS as u64) as usize),
        };
        let sent = match kind {
            Kind::Write { fua } => {
                let taken =
                    |sent: &Option<Sent>| matches!(sent, Some(Sent::Write { block: b, .. }) if *b == block);
                if self.in_flight.iter().any(taken) {
                    return;
                }
                self.stamp += 1;
                self.blocks[block].sent.push(self.stamp);
                self.queue.buffer(tag).copy_in(0, &content(block, self.stamp));
                Sent::Write { block, stamp: self.stamp, fua }
            }
            _ => Sent::Flush(self.blocks.iter().map(|block| block.acknowledged).collect(), self.failed),
        };
        self.queue.submit(tag, Command { kind, lba: block as u64, blocks: 1 }).unwrap();
        self.in_flight[usize::from(tag)] = Some(sent);
    }

    fn poll(&mut self) {
        let mut done: Vec<Done> = Vec::new();
        self.queue.poll(&mut done).unwrap();
        for Done { tag, status } in done {
            let sent = self.in_flight[usize::from(tag)].take().unwrap();
            match sent {
                // A write that failed may have happened.
                Sent::Write { .. } if !status.is_success() => {}
                // What was acknowledged may be lost, and no later flush says otherwise.
                Sent::Flush(..) if !status.is_success() => {
                    self.failed += 1;
                    self.blocks.iter_mut().for_each(|block| block.acknowledged = block.durable);
                }
                Sent::Flush(_, failed) if failed != self.failed => {}
                Sent::Write { block, stamp, fua } => {
                    let block = &mut self.blocks[block];
                    block.acknowledged = stamp;
                    if fua {
                        self.promises += usize::from(block.durable < stamp);
                        block.durable = stamp;
                    }
                }
                Sent::Flush(acknowledged, _) => {
                    for (block, stamp) in self.blocks.iter_mut().zip(acknowledged) {
                        self.promises += usize::from(block.durable < stamp);
                        block.durable = block.durable.max(stamp);
                    }
                }
            }
        }
    }

    /// Reads every block after a cut.
    fn check(&mut self) -> Result<(), Lost> {
        for number in 0..BLOCKS {
            let command = Command { kind: Kind::Read, lba: number as u64, blocks: 1 };
            assert!(common::host::command(self.queue, command).is_success(), "block {number} cannot be read");
            let mut bytes = vec![0; BLOCK];
            self.queue.buffer(0).copy_out(0, &mut bytes);
            let found = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            let block = &mut self.blocks[number];
            let known = found == block.durable || (found > block.durable && block.sent.contains(&found));
            if !known || bytes != content(number, found) {
                return Err(Lost(format!("block {number}: stamp {found}, promised {}", block.durable)));
            }
            *block = Block { durable: found, acknowledged: found, sent: Vec::new() };
        }
        // What was written after the cut is in the cache again. The first flush may be the one that tells of the loss.
        let flush = Command { kind: Kind::Flush, lba: 0, blocks: 1 };
        assert!((0..2).any(|_| common::host::command(self.queue, flush).is_success()));
        Ok(())
    }
}

/// A block's bytes; all zeroes before the first write.
fn content(block: usize, stamp: u64) -> Vec<u8> {
    match stamp {
        0 => vec![0; BLOCK],
        _ => [stamp, block as u64].iter().flat_map(|n| n.to_le_bytes()).cycle().take(BLOCK).collect(),
    }
}

/// The target with the disk, and the bridge; the host's way to it is over TCP or vfio-user.
struct House {
    far: Server,
    near: Server,
    port: u16,
}

impl House {
    fn new(rules: Vec<FaultRule>) -> Self {
        // Writes that were out when the target is killed wait for as long.
        let near = Server::start(&["--shards", "2", "--remote-kato", "1"]);
        let far = Server::start(&["--shards", "2"]);
        let (there, here) = (Grpc::connect(far.grpc()), Grpc::connect(near.grpc()));
        let (far_port, port) = (free_port(), free_port());
        there.aio_volume("file", &far.aio_file("disk", (BLOCK * BLOCKS) as u64), BLOCK as i64).unwrap();
        let faults = FaultVolume { volatile_cache: true, rules, ..Default::default() };
        there.fault_volume("faulty", "file", faults).unwrap();
        there.subsystem("far0", FAR).unwrap();
        there.namespace("far0", "disk", "faulty").unwrap();
        there.tcp_controller("far0", "tcp0", far_port).unwrap();
        here.remote("away", far_port, FAR).unwrap();
        here.encrypted_volume("crypt", "awayn1").unwrap();
        here.subsystem("near0", NEAR).unwrap();
        here.namespace("near0", "disk", "crypt").unwrap();
        here.tcp_controller("near0", "tcp0", port).unwrap();
        here.pcie_controller("near0", "pcie0").unwrap();
        House { far, near, port }
    }

    /// Cuts the power `cuts` times under a writer, and looks after each cut.
    fn cut(&mut self, over_tcp: bool, cuts: u32) -> Result<(), Lost> {
        let mut random = Random::from_seed();
        let (_tcp, _pcie, mut over_tcp_queue, mut over_pcie_queue);
        let queue: &mut dyn Queue = if over_tcp {
            (_tcp, over_tcp_queue) = connect_tcp(self.port, NEAR);
            &mut over_tcp_queue
        } else {
            (_pcie, over_pcie_queue) = connect_vfio_user(&self.near.path("ctrlr/near0/cntrl"), 1);
            &mut over_pcie_queue
        };
        // Every block is written once, since what an encrypted disk reads as before that is nobody's.
        for number in 0..BLOCKS {
            queue.buffer(0).copy_in(0, &content(number, 0));
            let command = Command { kind: Kind::Write { fua: true }, lba: number as u64, blocks: 1 };
            assert!(common::host::command(queue, command).is_success());
        }
        let mut choice = Random::from_seed();
        let mut writer = Writer::new(queue, &mut random);
        for cut in 0..cuts {
            let (done, cut_is_done) = mpsc::channel();
            let (pause, seed, whole) = (choice.below(60), choice.below(1 << 32), cut % 8 == 7);
            std::thread::scope(|scope| {
                let far = &mut self.far;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(10 + pause));
                    if whole {
                        far.kill();
                        far.launch();
                    } else {
                        Grpc::connect(far.grpc()).cut_power("faulty", seed).unwrap();
                    }
                    done.send(()).unwrap();
                });
                writer.write_until(&cut_is_done);
            });
            writer.check()?;
        }
        assert!(writer.promises > cuts as usize, "only {} promises", writer.promises);
        Ok(())
    }
}

#[test]
fn nothing_promised_is_lost() {
    let mut house = House::new(Vec::new());
    for over_tcp in [false, true] {
        if let Err(lost) = house.cut(over_tcp, count(12, 100)) {
            panic!("over {}: {lost:?}", if over_tcp { "TCP" } else { "vfio-user" });
        }
    }
}

#[test]
fn a_flush_that_lies_is_found_out() {
    let ignored = Some(Effect::Ignored(true));
    let operations = vec![FaultOperation::Flush.into()];
    let mut house = House::new(vec![FaultRule { operations, effect: ignored, ..Default::default() }]);
    assert!(house.cut(false, 40).is_err(), "the loss of what was flushed is not seen");
}
