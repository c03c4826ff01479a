//! The chain in one process: host ─ TCP ─ QoS ─ encryption ─ initiator ─ TCP ─ RAM, on two shards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use backend::nvme_tcp::{self, Remote};
use backend::ram::RamVolume;
use engine::{Config, Shards, Volume};
use frontend::tcp::{Target, TargetConfig};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use host::workload::{self, Amount, Job, Ledger, Pattern};
use host::{Queue, tcp};
use nvme_proto::Nqn;

fn subsystem(shards: &Shards, nqn: &str, volume: Arc<dyn Volume>) -> Arc<Subsystem> {
    let config = SubsystemConfig {
        nqn: Nqn::new(nqn).unwrap(),
        serial: "1".into(),
        model: "Isthmus".into(),
        max_namespaces: 8,
        allowed_hosts: vec![],
    };
    let subsystem = Subsystem::new(config, shards.handles()).unwrap();
    let namespace = Namespace { nsid: 1, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume };
    subsystem.add_namespace(namespace).unwrap();
    subsystem
}

fn run(digests: bool, block_size: u32) {
    let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
    let ram = RamVolume::new(block_size, (16 << 20) / u64::from(block_size)).unwrap();
    let (far, near) = ("nqn.2024-01.org.isthmus:far", "nqn.2024-01.org.isthmus:near");
    let remote_subsystem = subsystem(&shards, far, ram);
    let target = Target::new(shards.handles(), TargetConfig::default()).unwrap();
    let addr = target.listen("127.0.0.1:0".parse().unwrap(), &remote_subsystem).unwrap();

    let hostnqn = Nqn::new("nqn.2024-01.org.isthmus:bridge").unwrap();
    let mut config = nvme_tcp::Config::new("far", addr, Nqn::new(far).unwrap(), hostnqn, [9; 16]);
    config.hdgst = digests;
    config.ddgst = digests;
    let remote = Remote::start(config, vec![], shards.handles()).unwrap();
    remote.wait_live(Duration::from_secs(10)).unwrap();
    let below: Arc<dyn Volume> = remote.namespace(1).unwrap();
    let key: Vec<u8> = (0..64).collect();
    let crypt = middleend::CryptVolume::new(below, &key).unwrap();
    let maxima = middleend::Maxima { rw_iops_kiops: 1000, ..Default::default() };
    let qos = middleend::QosVolume::new(Arc::new(crypt), maxima);
    let subsystem = subsystem(&shards, near, Arc::new(qos));
    let addr = target.listen("127.0.0.1:0".parse().unwrap(), &subsystem).unwrap();

    let options = tcp::Options {
        subnqn: Nqn::new(near).unwrap(),
        hostnqn: Nqn::new("nqn.2024-01.org.isthmus:host").unwrap(),
        hostid: [1; 16],
        digests: tcp::Digests::default(),
        max_transfer: 1 << 20,
        queues: 2,
        depth: 32,
        kato: 0,
    };
    let mut controller = tcp::Controller::connect(addr, options).unwrap();
    let mut queues = [controller.io_queue(1).unwrap(), controller.io_queue(1).unwrap()];
    let mut ledger = Ledger::new(5, queues[0].namespace().blocks, block_size);
    let mut run = |random, reads, io_size, amount| {
        let job =
            Job { pattern: Pattern { random, reads }, io_size, range: None, amount, depth: 32, seed: 3 };
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
    remote.close();
    shards.stop();
}

#[test]
fn verified_through_every_layer() {
    run(false, 4096);
}

#[test]
fn verified_through_every_layer_with_digests() {
    run(true, 512);
}
