//! Two controllers of one subsystem, one over vfio-user and one over TCP: random legal commands on either, against a model
//! of the namespace. `ISTHMUS_SOAK` runs a hundred thousand sequences, `ISTHMUS_SEED` chooses them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::VecDeque;
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
/// Commands of a sequence.
const STEPS: usize = 12;

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// One command to its end.
fn run(queue: &mut dyn Queue, command: Command) -> Status {
    queue.submit(0, command).unwrap();
    let mut done: Vec<Done> = Vec::new();
    while done.is_empty() {
        queue.poll(&mut done).unwrap();
    }
    done[0].status
}

/// What the blocks hold, and the last commands for the message of a failure.
struct Model {
    bytes: Vec<u8>,
    history: VecDeque<String>,
}

impl Model {
    /// Does one random command on `queue` and in the model, and compares.
    fn step(&mut self, random: &mut Random, name: &str, queue: &mut dyn Queue) -> Result<(), String> {
        let blocks = 1 + random.below(MOST);
        let lba = random.below(BLOCKS - blocks + 1);
        let at = lba as usize * BLOCK..(lba + blocks) as usize * BLOCK;
        let len = at.len();
        let kind = match random.below(12) {
            0..3 => Kind::Read,
            3..6 => Kind::Write { fua: random.below(2) == 0 },
            6 => Kind::WriteZeroes { deallocate: random.below(2) == 0 },
            7 => Kind::Deallocate,
            8..11 => Kind::Compare,
            _ => Kind::Flush,
        };
        self.history.push_back(format!("{name} {kind:?} {lba}+{blocks}"));
        if self.history.len() > 2 * STEPS {
            self.history.pop_front();
        }
        // Compared bytes are the right ones, or differ in one place.
        let mut given = vec![random.below(256) as u8; len];
        let mut expected = Status::SUCCESS;
        if kind == Kind::Compare {
            given.copy_from_slice(&self.bytes[at.clone()]);
            if random.below(2) == 0 {
                given[random.below(len as u64) as usize] ^= 1 << random.below(8);
                expected = Status::COMPARE_FAILURE;
            }
        }
        queue.buffer(0).copy_in(0, &given);
        let status = run(queue, Command { kind, lba, blocks: blocks as u32 });
        if status.code() != expected {
            return Err(format!("{status}, expected {expected}"));
        }
        match kind {
            Kind::Read => {
                let mut read = vec![0; len];
                queue.buffer(0).copy_out(0, &mut read);
                if read != self.bytes[at] {
                    return Err("other bytes than the model's".into());
                }
            }
            Kind::Write { .. } => self.bytes[at].copy_from_slice(&given),
            // A RAM volume's deallocated blocks read as zeroes, and its Identify says so.
            Kind::WriteZeroes { .. } | Kind::Deallocate => self.bytes[at].fill(0),
            Kind::Compare | Kind::Flush => {}
        }
        Ok(())
    }
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
fn they_agree_with_one_model_of_the_namespace() {
    let soak = std::env::var_os("ISTHMUS_SOAK").is_some();
    let given = std::env::var("ISTHMUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("ISTHMUS_SEED={seed}");

    let house = House::new();
    let ((over_tcp, mut tcp_queue), (over_pcie, mut pcie_queue)) = (house.over_tcp(), house.over_pcie());
    let mut model = Model { bytes: vec![0; BLOCKS as usize * BLOCK], history: VecDeque::new() };
    for sequence in 0..if soak { 100_000 } else { 1_000 } {
        let mut random = Random(seed.wrapping_add(sequence));
        for _ in 0..STEPS {
            let (name, queue): (&str, &mut dyn Queue) = match random.below(2) {
                0 => ("vfio-user", &mut pcie_queue),
                _ => ("tcp", &mut tcp_queue),
            };
            if let Err(difference) = model.step(&mut random, name, queue) {
                panic!("sequence {sequence}: {difference}\n{:#?}", model.history);
            }
        }
    }
    drop((tcp_queue, over_tcp, pcie_queue, over_pcie));
    house.end();
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
