//! Two controllers of one subsystem, one over vfio-user and one over TCP, and what resets both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use backend::ram::RamVolume;
use engine::{Config, Shards};
use frontend::tcp::{Target, TargetConfig};
use frontend::vfio_user::{Handle, Options, Server};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use host::{Command, Done, Kind, Queue, tcp, vfio_user};
use nvme_proto::register::{Csts, NSSR_KEY, offset};
use nvme_proto::{Nqn, Status};

const NQN: &str = "nqn.2024-01.org.isthmus:shared";
const BLOCK: usize = 512;
/// Blocks of the namespace: few, so that commands meet.
const BLOCKS: u64 = 24;
/// Most blocks of a command.
const MOST: u64 = 8;
/// One command to its end.
fn run(queue: &mut dyn Queue, command: Command) -> Status {
    queue.submit(0, command).unwrap();
    let mut done: Vec<Done> = Vec::new();
    while done.is_empty() {
        queue.poll(&mut done).unwrap();
    }
    done[0].status
}

/// One subsystem on two shards, with a controller over vfio-user and listeners over TCP.
struct House {
    shards: Shards,
    target: Target,
    addr: SocketAddr,
    handle: Handle,
    directory: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
        let config = SubsystemConfig {
            nqn: Nqn::new(NQN).unwrap(),
            serial: "1".into(),
            model: "Isthmus".into(),
            max_namespaces: 8,
            allowed_hosts: vec![],
        };
        let subsystem = Subsystem::new(config, shards.handles()).unwrap();
        let volume = RamVolume::new(BLOCK as u32, BLOCKS).unwrap();
        let namespace = Namespace { nsid: 1, uuid: [7; 16], nguid: [0; 16], eui64: [0; 8], volume };
        subsystem.add_namespace(namespace).unwrap();
        let target = Target::new(shards.handles(), TargetConfig::default()).unwrap();
        let addr = target.listen(SocketAddr::from(([127, 0, 0, 1], 0)), &subsystem).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cntrl");
        let handle = Server::listen(&shards.handles()[1], &subsystem, &socket, Options::default()).unwrap();
        House { shards, target, addr, handle, directory }
    }

    fn over_tcp(&self) -> (tcp::Controller, tcp::IoQueue) {
        let options = tcp::Options {
            subnqn: Nqn::new(NQN).unwrap(),
            hostnqn: Nqn::new("nqn.2024-01.org.isthmus:host").unwrap(),
            hostid: [1; 16],
            digests: tcp::Digests { header: true, data: true },
            max_transfer: MOST as usize * BLOCK,
            queues: 1,
            depth: 2,
            kato: 0,
            flow_control: true,
            among: None,
        };
        let mut controller = tcp::Controller::connect(self.addr, options).unwrap();
        let queue = controller.io_queue(1).unwrap();
        (controller, queue)
    }

    fn over_pcie(&self) -> (vfio_user::Controller, vfio_user::IoQueue) {
        let options = vfio_user::Options { max_transfer: MOST as usize * BLOCK, queues: 1, depth: 2 };
        let mut controller = vfio_user::Controller::connect(self.directory.path(), options).unwrap();
        let queue = controller.io_queue(1).unwrap();
        (controller, queue)
    }

    fn end(self) {
        assert!(self.handle.close(Duration::from_secs(10)));
        self.target.close();
        self.shards.stop();
    }
}

#[test]
fn a_subsystem_reset_is_everyone_s() {
    let house = House::new();
    let write = Command { kind: Kind::Write { fua: false }, lba: 3, blocks: 1 };
    let (over_pcie, mut pcie_queue) = house.over_pcie();
    let (over_tcp, mut tcp_queue) = house.over_tcp();
    tcp_queue.buffer(0).copy_in(0, &[7; BLOCK]);
    assert!(run(&mut tcp_queue, write).is_success());
    assert!(run(&mut pcie_queue, write).is_success());
    over_pcie.write32(offset::NSSR, 1).unwrap();
    assert!(run(&mut pcie_queue, write).is_success(), "only one word resets");
    over_pcie.write32(offset::NSSR, NSSR_KEY).unwrap();
    let mut csts = Csts::from_bits(over_pcie.read32(offset::CSTS).unwrap());
    while csts.rdy() {
        csts = Csts::from_bits(over_pcie.read32(offset::CSTS).unwrap());
    }
    assert!(csts.nssro() && over_pcie.read32(offset::CC).unwrap() == 0, "{csts:?}");
    over_pcie.write32(offset::CSTS, csts.into_bits()).unwrap();
    assert!(!Csts::from_bits(over_pcie.read32(offset::CSTS).unwrap()).nssro(), "the host has seen it");
    // The other host's association ends; a command that is faster than the news still succeeds.
    let mut done = Vec::new();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut lost = false;
    while !lost {
        assert!(std::time::Instant::now() < until, "the association stays");
        done.clear();
        lost = tcp_queue.submit(0, write).is_err();
        while !lost && done.is_empty() {
            lost = tcp_queue.poll(&mut done).is_err();
        }
    }
    drop((pcie_queue, over_pcie, tcp_queue, over_tcp));
    // Both come back, and nothing is lost.
    let (over_tcp, mut tcp_queue) = house.over_tcp();
    let (over_pcie, mut pcie_queue) = house.over_pcie();
    let read = Command { kind: Kind::Read, lba: 3, blocks: 1 };
    assert!(run(&mut pcie_queue, read).is_success() && run(&mut tcp_queue, read).is_success());
    drop((pcie_queue, over_pcie, tcp_queue, over_tcp));
    house.end();
}
