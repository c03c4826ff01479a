//! A load from the user-space host, verified byte by byte, on a RAM volume over vfio-user: mapped and trapped doorbells,
//! both block sizes, resets in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use backend::ram::RamVolume;
use engine::{Config, Shards, Volume};
use frontend::Doorbells;
use frontend::vfio_user::{Options, Server};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use host::workload::{self, Amount, Job, Ledger, Pattern};
use host::{Queue, vfio_user};
use nvme_proto::Nqn;

fn verify(block_size: u32, doorbells: Doorbells) {
    let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
    let config = SubsystemConfig {
        nqn: Nqn::new("nqn.2024-01.org.isthmus:test").unwrap(),
        serial: "1".into(),
        model: "Isthmus".into(),
        max_namespaces: 8,
        allowed_hosts: vec![],
    };
    let subsystem = Subsystem::new(config, shards.handles()).unwrap();
    let volume: Arc<dyn Volume> = RamVolume::new(block_size, (16 << 20) / u64::from(block_size)).unwrap();
    let namespace = Namespace { nsid: 1, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume };
    subsystem.add_namespace(namespace).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cntrl");
    let options = Options { doorbells, ..Options::default() };
    let handle = Server::listen(&shards.handles()[1], &subsystem, &path, options).unwrap();

    let mut ledger = Ledger::new(5, (16 << 20) / u64::from(block_size), block_size);
    for round in 0..3 {
        let options = vfio_user::Options { max_transfer: 1 << 20, queues: 2, depth: 16 };
        let mut controller = vfio_user::Controller::connect(directory.path(), options).unwrap();
        assert_eq!(controller.namespaces().unwrap(), [1]);
        let mut queues = [controller.io_queue(1).unwrap(), controller.io_queue(1).unwrap()];
        let mut run = |random, reads, io_size, amount| {
            let job =
                Job { pattern: Pattern { random, reads }, io_size, range: None, amount, depth: 16, seed: 3 };
            let mut queues: Vec<&mut dyn Queue> = queues.iter_mut().map(|q| q as &mut dyn Queue).collect();
            workload::run(&mut queues, &job, Some(&mut ledger), |_| true).unwrap()
        };
        if round == 0 {
            run(false, 0, 128 << 10, Amount::Once);
        }
        run(true, 50, block_size as usize, Amount::Commands(4000));
        run(true, 50, 64 << 10, Amount::Commands(500));
        run(true, 50, 1 << 20, Amount::Commands(50));
        let last = run(false, 100, 128 << 10, Amount::Once);
        assert_eq!(last.verified, 16 << 20);
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
fn mapped_doorbells() {
    verify(4096, Doorbells::Mapped);
}

#[test]
fn trapped_doorbells() {
    verify(512, Doorbells::Trapped);
}
