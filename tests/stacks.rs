//! Volumes on volumes by name, as a client declares them: every order of every layer on every kind of ground; and a
//! volume whose faults reach the host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::grpc::Grpc;
use common::host::{command, connect_vfio_user, fill, load};
use common::server::Server;
use common::{count, free_port};
use engine::mem::Sgl;
use host::workload::Amount;
use host::{Command, Kind, Queue};
use proto::isthmus::{FaultError, FaultOperation, FaultRule, FaultVolume, fault_rule::Effect};

const MIB: u64 = 1 << 20;
const NQN: &str = "nqn.2024-01.com.example:stacks";
const FAR: &str = "nqn.2024-01.com.example:far";

const ORDERS: [[&str; 3]; 6] = [
    ["crypt", "calm", "faulty"],
    ["crypt", "faulty", "calm"],
    ["calm", "crypt", "faulty"],
    ["calm", "faulty", "crypt"],
    ["faulty", "crypt", "calm"],
    ["faulty", "calm", "crypt"],
];

/// Puts the layers of an order on `ground`, and returns the name of the highest.
fn stack(grpc: &Grpc, ground: &str, order: [&str; 3]) -> String {
    let mut below = ground.to_owned();
    for layer in order {
        let name = format!("{ground}-{layer}");
        match layer {
            "crypt" => drop(grpc.encrypted_volume(&name, &below).unwrap()),
            "calm" => drop(grpc.qos_volume(&name, &below, 1000).unwrap()),
            _ => {
                let faults = FaultVolume { volatile_cache: true, ..Default::default() };
                drop(grpc.fault_volume(&name, &below, faults).unwrap());
            }
        }
        below = name;
    }
    below
}

#[test]
fn every_order_on_every_ground() {
    let far = Server::start(&["--shards", "2"]);
    let mut near = Server::start(&["--shards", "2"]);
    let port = free_port();
    let (there, here) = (Grpc::connect(far.grpc()), Grpc::connect(near.grpc()));
    there.subsystem("far0", FAR).unwrap();
    there.tcp_controller("far0", "tcp0", port).unwrap();
    // Each order once, on one ground after the other; in the soak, every order on every ground.
    let stacks = (0..count(6, 18) as usize).map(|at| (at % 6, ["disk", "file", "away"][(at + at / 6) % 3]));
    here.subsystem("subsys0", NQN).unwrap();
    let mut names = Vec::new();
    for (nsid, (order, ground)) in (1..).zip(stacks) {
        let name = format!("{ground}{nsid}");
        let ground = match ground {
            "file" => here.aio_volume(&name, &near.aio_file(&name, 2 * MIB), 4096).unwrap().name,
            "disk" => here.malloc_volume(&name, 512, 4096).unwrap().name,
            _ => {
                there.aio_volume(&name, &far.aio_file(&name, 2 * MIB), 512).unwrap();
                there.namespace_at("far0", &name, &name, nsid).unwrap();
                format!("awayn{nsid}")
            }
        };
        names.push((name, ground, order));
    }
    here.remote("away", port, FAR).unwrap();
    for (nsid, (name, ground, order)) in (1..).zip(&names) {
        let ground = ground.strip_prefix("volumes/").unwrap_or(ground);
        let highest = stack(&here, ground, ORDERS[*order]);
        here.namespace_at("subsys0", name, &highest, nsid).unwrap();
    }
    here.pcie_controller("subsys0", "pcie0").unwrap();
    let socket = near.path("ctrlr/subsys0/cntrl");
    let mut ledgers = Vec::new();
    for nsid in 1..=names.len() as u32 {
        let (_controller, mut queue) = connect_vfio_user(&socket, nsid);
        let mut ledger = fill(&mut queue);
        load(&mut queue, &mut ledger, 100, false, Amount::Once);
        assert!(command(&mut queue, Command { kind: Kind::Flush, lba: 0, blocks: 1 }).is_success());
        ledgers.push(ledger);
    }
    // A crash loses what no flush moved; here everything was flushed. Memory alone is forgotten.
    near.kill();
    near.launch();
    for (nsid, (ledger, (name, ..))) in (1..).zip(ledgers.iter_mut().zip(&names)) {
        let (_controller, mut queue) = connect_vfio_user(&socket, nsid);
        if !name.starts_with("disk") {
            assert_eq!(load(&mut queue, ledger, 100, false, Amount::Once), 2 * MIB, "{name}");
        }
    }
    assert!(near.terminate().success(), "{}", near.log());
}

/// Fills the buffer that commands carry.
fn set(queue: &dyn Queue, byte: u8) {
    queue.buffer(0).copy_in(0, &[byte; 4096]);
}

/// The first byte of a block.
fn read(queue: &mut dyn Queue, lba: u64) -> Option<u8> {
    let status = command(queue, Command { kind: Kind::Read, lba, blocks: 1 });
    status.is_success().then(|| first(queue.buffer(0)))
}

fn first(data: &Sgl) -> u8 {
    let mut byte = [0];
    data.copy_out(0, &mut byte);
    byte[0]
}

fn write(queue: &mut dyn Queue, lba: u64, fua: bool) {
    assert!(command(queue, Command { kind: Kind::Write { fua }, lba, blocks: 1 }).is_success());
}

#[test]
fn a_power_cut_loses_what_was_not_flushed_and_nothing_else() {
    let server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    grpc.aio_volume("file", &server.aio_file("disk", MIB), 4096).unwrap();
    let cached = FaultVolume { volatile_cache: true, ..Default::default() };
    grpc.fault_volume("faulty", "file", cached.clone()).unwrap();
    grpc.encrypted_volume("crypt", "faulty").unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "crypt").unwrap();
    grpc.pcie_controller("subsys0", "pcie0").unwrap();
    let (_controller, mut queue) = connect_vfio_user(&server.path("ctrlr/subsys0/cntrl"), 1);
    let queue: &mut dyn Queue = &mut queue;
    set(queue, 7);
    (0..4).for_each(|lba| write(queue, lba, false));
    assert_eq!(grpc.fault_stats("faulty").unwrap().unflushed_blocks, 4);
    assert!(command(queue, Command { kind: Kind::Flush, lba: 0, blocks: 1 }).is_success());
    assert_eq!(grpc.fault_stats("faulty").unwrap().unflushed_blocks, 0);
    set(queue, 8);
    write(queue, 0, false);
    write(queue, 1, true);
    // Seed 0 loses all that may be lost.
    grpc.cut_power("faulty", 0).unwrap();
    assert_eq!((0..4).map(|lba| read(queue, lba)).collect::<Vec<_>>(), [7, 8, 7, 7].map(Some));

    let bad = FaultRule {
        operations: vec![FaultOperation::Read.into()],
        first_block: 2,
        blocks_count: 1,
        times: 1,
        effect: Some(Effect::Error(FaultError::ReadFault.into())),
        ..Default::default()
    };
    grpc.set_faults("faulty", "file", FaultVolume { rules: vec![bad], ..cached }).unwrap();
    let reads = [1, 2, 2].map(|lba| read(queue, lba));
    assert_eq!(reads, [Some(8), None, Some(7)], "one read of block 2 fails");
}
