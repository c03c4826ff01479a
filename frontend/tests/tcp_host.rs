//! A load from the user-space host, verified byte by byte, on RAM volumes over NVMe/TCP: in capsules, by R2T, with
//! digests, on two shards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backend::ram::RamVolume;
use engine::{Config, Shards, Volume};
use frontend::tcp::{Target, TargetConfig};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use host::workload::{self, Amount, Job, Ledger, Pattern};
use host::{Queue, tcp};
use nvme_proto::Nqn;

const NQN: &str = "nqn.2024-01.org.isthmus:test";

fn target(block_size: u32) -> (Shards, Target, Arc<Subsystem>, SocketAddr) {
    let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
    let config = SubsystemConfig {
        nqn: Nqn::new(NQN).unwrap(),
        serial: "1".into(),
        model: "Isthmus".into(),
        max_namespaces: 8,
        allowed_hosts: vec![],
    };
    let subsystem = Subsystem::new(config, shards.handles()).unwrap();
    let volume: Arc<dyn Volume> = RamVolume::new(block_size, (16 << 20) / u64::from(block_size)).unwrap();
    let namespace = Namespace { nsid: 1, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume };
    subsystem.add_namespace(namespace).unwrap();
    let target = Target::new(shards.handles(), TargetConfig::default()).unwrap();
    let addr = target.listen("127.0.0.1:0".parse().unwrap(), &subsystem).unwrap();
    (shards, target, subsystem, addr)
}

fn options(digests: bool, queues: u16) -> tcp::Options {
    tcp::Options {
        subnqn: Nqn::new(NQN).unwrap(),
        hostnqn: Nqn::new("nqn.2024-01.org.isthmus:host").unwrap(),
        hostid: [1; 16],
        digests: tcp::Digests { header: digests, data: digests },
        max_transfer: 1 << 20,
        queues,
        depth: 16,
        kato: 0,
    }
}

fn verify(block_size: u32, digests: bool) {
    let (shards, target, _subsystem, addr) = target(block_size);
    let mut controller = tcp::Controller::connect(addr, options(digests, 2)).unwrap();
    assert_eq!(controller.namespaces().unwrap(), [1]);
    let mut queues = [controller.io_queue(1).unwrap(), controller.io_queue(1).unwrap()];
    let blocks = queues[0].namespace().blocks;
    let mut ledger = Ledger::new(5, blocks, block_size);
    let mut run = |random, reads, io_size, amount| {
        let job =
            Job { pattern: Pattern { random, reads }, io_size, range: None, amount, depth: 16, seed: 3 };
        let mut queues: Vec<&mut dyn Queue> = queues.iter_mut().map(|q| q as &mut dyn Queue).collect();
        workload::run(&mut queues, &job, Some(&mut ledger), |_| true).unwrap()
    };
    run(false, 0, 128 << 10, Amount::Once);
    run(true, 50, block_size as usize, Amount::Commands(4000));
    run(true, 50, 64 << 10, Amount::Commands(500));
    run(true, 50, 1 << 20, Amount::Commands(50));
    let last = run(false, 100, 128 << 10, Amount::Once);
    assert_eq!(last.verified, 16 << 20);
    drop((queues, controller));
    target.close();
    std::thread::sleep(Duration::from_millis(1));
    shards.stop();
}

#[test]
fn blocks_of_512() {
    verify(512, false);
}

#[test]
fn blocks_of_4096_with_digests() {
    verify(4096, true);
}
