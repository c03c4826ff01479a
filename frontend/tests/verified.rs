//! A load from the user-space host, verified byte by byte: a RAM volume over NVMe/TCP (in capsules, by R2T, with
//! digests) and over vfio-user (mapped and trapped doorbells, resets in between), both block sizes, on two shards; and
//! the chain in one process: host ─ TCP ─ QoS ─ encryption ─ initiator ─ TCP ─ RAM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backend::nvme_tcp::{self, Remote};
use backend::ram::RamVolume;
use engine::{Config, Shards, Volume};
use frontend::tcp::{Target, TargetConfig};
use frontend::vfio_user::{Options, Server};
use frontend::{Doorbells, Namespace, Subsystem, SubsystemConfig};
use host::workload::{self, Amount, Job, Ledger, Pattern};
use host::{Queue, tcp, vfio_user};
use nvme_proto::Nqn;

const NQN: &str = "nqn.2024-01.org.isthmus:test";
const SIZE: u64 = 16 << 20;
const DEPTH: u16 = 16;

fn shards() -> Shards {
    Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap()
}

fn ram(block_size: u32) -> Arc<dyn Volume> {
    RamVolume::new(block_size, SIZE / u64::from(block_size)).unwrap()
}

/// A subsystem with one namespace.
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

fn ledger(block_size: u32) -> Ledger {
    Ledger::new(5, SIZE / u64::from(block_size), block_size)
}

/// Small, large and very large I/O, and at last every byte; `fresh` where nothing was written yet.
fn load<Q: Queue>(queues: &mut [Q; 2], ledger: &mut Ledger, fresh: bool) {
    let small = queues[0].namespace().block_size as usize;
    let mut run = |random, reads, io_size, amount| {
        let pattern = Pattern { random, reads, trims: false };
        let job = Job { pattern, io_size, amount, depth: DEPTH, seed: 3, ..Job::default() };
        let mut queues = queues.each_mut().map(|queue| queue as &mut dyn Queue);
        workload::run(&mut queues, &job, Some(ledger), |_| true).unwrap().verified
    };
    if fresh {
        run(false, 0, 128 << 10, Amount::Once);
    }
    run(true, 50, small, Amount::Commands(4000));
    run(true, 50, 64 << 10, Amount::Commands(500));
    run(true, 50, 1 << 20, Amount::Commands(50));
    assert_eq!(run(false, 100, 128 << 10, Amount::Once), SIZE);
}

/// Loads a subsystem from a host over TCP.
fn over_tcp(addr: SocketAddr, nqn: &str, block_size: u32, digests: bool) {
    let options = tcp::Options {
        subnqn: Nqn::new(nqn).unwrap(),
        hostnqn: Nqn::new("nqn.2024-01.org.isthmus:host").unwrap(),
        hostid: [1; 16],
        digests: tcp::Digests { header: digests, data: digests },
        max_transfer: 1 << 20,
        queues: 2,
        depth: DEPTH,
        kato: 0,
        flow_control: true,
        among: None,
    };
    let mut controller = tcp::Controller::connect(addr, options).unwrap();
    assert_eq!(controller.namespaces().unwrap(), [1]);
    let mut queues = [controller.io_queue(1).unwrap(), controller.io_queue(1).unwrap()];
    load(&mut queues, &mut ledger(block_size), true);
    // Nobody stamps these: what is written is what the buffer's last read or list of ranges left there.
    for trims in [false, true, false] {
        let pattern = Pattern { random: true, reads: if trims { 0 } else { 50 }, trims };
        let io_size = block_size as usize;
        let job = Job { pattern, io_size, amount: Amount::Commands(1000), depth: DEPTH, ..Job::default() };
        let mut queues = queues.each_mut().map(|queue| queue as &mut dyn Queue);
        let report = workload::run(&mut queues, &job, None, |_| true).unwrap();
        assert_eq!((report.commands(), report.errors), (1000, 0));
    }
}

fn listen(target: &Target, subsystem: &Arc<Subsystem>) -> SocketAddr {
    target.listen(SocketAddr::from(([127, 0, 0, 1], 0)), subsystem).unwrap()
}

fn tcp(block_size: u32, digests: bool) {
    let shards = shards();
    let target = Target::new(shards.handles(), TargetConfig::default()).unwrap();
    let addr = listen(&target, &subsystem(&shards, NQN, ram(block_size)));
    over_tcp(addr, NQN, block_size, digests);
    target.close();
    shards.stop();
}

#[test]
fn over_tcp_in_blocks_of_512() {
    tcp(512, false);
}

#[test]
fn over_tcp_in_blocks_of_4096_with_digests() {
    tcp(4096, true);
}

fn chain(block_size: u32, digests: bool) {
    let shards = shards();
    let target = Target::new(shards.handles(), TargetConfig::default()).unwrap();
    let far = "nqn.2024-01.org.isthmus:far";
    let addr = listen(&target, &subsystem(&shards, far, ram(block_size)));

    let hostnqn = Nqn::new("nqn.2024-01.org.isthmus:bridge").unwrap();
    let mut config = nvme_tcp::Config::new("far", addr, Nqn::new(far).unwrap(), hostnqn, [9; 16]);
    (config.hdgst, config.ddgst) = (digests, digests);
    let remote = Remote::start(config, vec![], shards.handles()).unwrap();
    remote.wait_live(Duration::from_secs(10)).unwrap();
    let key: Vec<u8> = (0..64).collect();
    let crypt = middleend::CryptVolume::new(remote.namespace(1).unwrap(), &key).unwrap();
    let maxima = middleend::Maxima { rw_iops_kiops: 1000, ..Default::default() };
    let qos = middleend::QosVolume::new(Arc::new(crypt), maxima);
    let addr = listen(&target, &subsystem(&shards, NQN, Arc::new(qos)));

    over_tcp(addr, NQN, block_size, false);
    target.close();
    remote.close();
    shards.stop();
}

#[test]
fn through_every_layer() {
    chain(4096, false);
}

#[test]
fn through_every_layer_with_digests() {
    chain(512, true);
}

fn vfio_user(block_size: u32, doorbells: Doorbells) {
    let shards = shards();
    let subsystem = subsystem(&shards, NQN, ram(block_size));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cntrl");
    let options = Options { doorbells, ..Options::default() };
    let handle = Server::listen(&shards.handles()[1], &subsystem, &path, options).unwrap();
    let mut ledger = ledger(block_size);
    for round in 0..3 {
        let options = vfio_user::Options { max_transfer: 1 << 20, queues: 2, depth: DEPTH };
        let mut controller = vfio_user::Controller::connect(directory.path(), options).unwrap();
        assert_eq!(controller.namespaces().unwrap(), [1]);
        let mut queues = [controller.io_queue(1).unwrap(), controller.io_queue(1).unwrap()];
        load(&mut queues, &mut ledger, round == 0);
        match round {
            0 => controller.disable().unwrap(),
            1 => controller.shutdown().unwrap(),
            _ => {}
        }
    }
    assert!(handle.close(Duration::from_secs(10)));
    assert!(!path.exists());
    shards.stop();
}

#[test]
fn over_vfio_user_with_mapped_doorbells() {
    vfio_user(4096, Doorbells::Mapped);
}

#[test]
fn over_vfio_user_with_trapped_doorbells() {
    vfio_user(512, Doorbells::Trapped);
}
