//! A namespace that is shown to some hosts alone, declared over gRPC, through kills of the server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::free_port;
use common::grpc::Grpc;
use common::host::{command, connect_tcp_as};
use common::server::Server;
use host::{Command, Done, Kind, Queue, tcp, vfio_user};
use nvme_proto::Status;
use proto::isthmus::NamespaceMask;

const NQN: &str = "nqn.2024-01.com.example:disk";
const ALICE: &str = "nqn.2024-01.com.example:alice";
const BOB: &str = "nqn.2024-01.com.example:bob";
const PCIE: &str = "nvmeSubsystems/subsys0/nvmeControllers/pcie0";
const WRITE: Command = Command { kind: Kind::Write { fua: false }, lba: 0, blocks: 1 };
const READ: Command = Command { kind: Kind::Read, lba: 0, blocks: 1 };

fn mask(hosts: &[&str], controllers: &[&str]) -> NamespaceMask {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NamespaceMask {
        namespace_name_ref: "nvmeSubsystems/subsys0/nvmeNamespaces/name2".into(),
        hostnqns: owned(hosts),
        controller_name_refs: owned(controllers),
        ..Default::default()
    }
}

/// Two hosts over TCP and one over vfio-user.
struct Hosts {
    alice: tcp::Controller,
    bob: tcp::Controller,
    guest: vfio_user::Controller,
}

impl Hosts {
    fn connect(server: &Server, port: u16) -> Self {
        let options = vfio_user::Options { max_transfer: 64 << 10, queues: 2, depth: 8 };
        Hosts {
            alice: connect_tcp_as(ALICE, 1, port, NQN),
            bob: connect_tcp_as(BOB, 2, port, NQN),
            guest: vfio_user::Controller::connect(&server.path("ctrlr/subsys0/cntrl"), options).unwrap(),
        }
    }

    /// The namespaces that each finds active.
    fn see(&mut self) -> [Vec<u32>; 3] {
        [self.alice.namespaces(), self.bob.namespaces(), self.guest.namespaces()].map(Result::unwrap)
    }
}

/// Two namespaces on files, in a subsystem that no host can reach yet.
fn declare(server: &Server, grpc: &Grpc) {
    grpc.subsystem("subsys0", NQN).unwrap();
    for nsid in [1, 2] {
        let (volume, file) = (format!("file{nsid}"), format!("disk{nsid}"));
        grpc.aio_volume(&volume, &server.aio_file(&file, 1 << 20), 512).unwrap();
        grpc.namespace_at("subsys0", &format!("name{nsid}"), &volume, nsid).unwrap();
    }
}

#[test]
fn a_namespace_is_shown_to_whom_its_mask_names() {
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    declare(&server, &grpc);
    // Before any host can come.
    grpc.mask("mask2", mask(&[ALICE], &[])).unwrap();
    grpc.tcp_controller("subsys0", "tcp0", port).unwrap();
    grpc.pcie_controller("subsys0", "pcie0").unwrap();
    let (some, all) = (vec![1], vec![1, 2]);
    let mut hosts = Hosts::connect(&server, port);
    assert_eq!(hosts.see(), [all.clone(), some.clone(), some.clone()]);
    assert!(hosts.bob.io_queue(2).is_err() && hosts.guest.io_queue(2).is_err());
    let mut queue = hosts.alice.io_queue(2).unwrap();
    queue.buffer(0).copy_in(0, &[7; 512]);
    assert_eq!(command(&mut queue, WRITE), Status::SUCCESS);

    drop((queue, hosts));
    server.kill();
    server.launch();
    let grpc = Grpc::connect(server.grpc());
    let mut hosts = Hosts::connect(&server, port);
    assert_eq!(hosts.see(), [all.clone(), some.clone(), some.clone()]);

    // It goes over to the others, away from who is at it.
    let mut queue = hosts.alice.io_queue(2).unwrap();
    assert_eq!(command(&mut queue, READ), Status::SUCCESS);
    grpc.set_mask("mask2", mask(&[BOB], &[PCIE])).unwrap();
    assert_eq!(hosts.see(), [some.clone(), all.clone(), all.clone()]);
    for gone in [READ, WRITE] {
        assert_eq!(command(&mut queue, gone), Status::INVALID_FIELD.dnr(), "the namespace is inactive");
    }
    let mut theirs = hosts.bob.io_queue(2).unwrap();
    assert_eq!(command(&mut theirs, READ), Status::SUCCESS);
    let mut bytes = [0; 512];
    theirs.buffer(0).copy_out(0, &mut bytes);
    assert_eq!(bytes, [7; 512]);
    let mut guests = hosts.guest.io_queue(2).unwrap();
    assert_eq!(command(&mut guests, READ), Status::SUCCESS);
    drop((queue, theirs, guests, hosts));
    server.kill();
    server.launch();
    let grpc = Grpc::connect(server.grpc());
    let mut hosts = Hosts::connect(&server, port);
    assert_eq!(hosts.see(), [some, all.clone(), all.clone()]);

    grpc.delete_mask("mask2").unwrap();
    assert_eq!(hosts.see(), [all.clone(), all.clone(), all.clone()]);
    let mut queue = hosts.alice.io_queue(2).unwrap();
    assert_eq!(command(&mut queue, READ), Status::SUCCESS);
    drop((queue, hosts));
    server.kill();
    server.launch();
    assert_eq!(Hosts::connect(&server, port).see(), [all.clone(), all.clone(), all]);
}

#[test]
fn a_namespace_comes_under_open_controllers_behind_its_mask() {
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.tcp_controller("subsys0", "tcp0", port).unwrap();
    grpc.pcie_controller("subsys0", "pcie0").unwrap();
    let mut hosts = Hosts::connect(&server, port);
    grpc.mask("mask2", mask(&[ALICE], &[])).unwrap();
    grpc.aio_volume("file2", &server.aio_file("disk2", 1 << 20), 512).unwrap();
    // Bob looks all the while.
    let created = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bob = &mut hosts.bob;
        scope.spawn(|| {
            while !created.load(Ordering::Relaxed) {
                assert!(bob.namespaces().unwrap().is_empty());
            }
        });
        let _created = Ends(&created);
        grpc.namespace_at("subsys0", "name2", "file2", 2).unwrap();
    });
    assert_eq!(hosts.see(), [vec![2], vec![], vec![]]);
    let mut queue = hosts.alice.io_queue(2).unwrap();
    assert_eq!(command(&mut queue, WRITE), Status::SUCCESS);
    drop((queue, hosts));
    server.kill();
    server.launch();
    assert_eq!(Hosts::connect(&server, port).see(), [vec![2], vec![], vec![]]);
}

/// Ends the load, also when the test has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn it_comes_and_goes_under_load() {
    let server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    declare(&server, &grpc);
    grpc.mask("mask2", mask(&[ALICE], &[])).unwrap();
    grpc.tcp_controller("subsys0", "tcp0", port).unwrap();
    let mut alice = connect_tcp_as(ALICE, 1, port, NQN);
    let mut queue = alice.io_queue(2).unwrap();
    let [done, refused] = [const { AtomicU32::new(0) }; 2];
    let ended = AtomicBool::new(false);
    let write = |queue: &mut dyn Queue| {
        let mut free: Vec<u16> = (0..queue.depth()).collect();
        let mut ends: Vec<Done> = Vec::new();
        while !ended.load(Ordering::Relaxed) || free.len() < usize::from(queue.depth()) {
            if !ended.load(Ordering::Relaxed) {
                free.drain(..).for_each(|tag| queue.submit(tag, WRITE).unwrap());
            }
            queue.poll(&mut ends).unwrap();
            for Done { tag, status } in ends.drain(..) {
                match status.code() {
                    Status::SUCCESS => done.fetch_add(1, Ordering::Relaxed),
                    // Before it had begun, and on its way.
                    Status::INVALID_FIELD | Status::INVALID_NAMESPACE_OR_FORMAT => {
                        refused.fetch_add(1, Ordering::Relaxed)
                    }
                    other => panic!("{other}"),
                };
                free.push(tag);
            }
        }
    };
    // More of these than there are on their way.
    let wait = |count: &AtomicU32| {
        let (from, end) = (count.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(60));
        while count.load(Ordering::Relaxed) < from + 20 {
            assert!(Instant::now() < end, "{done:?} {refused:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(&mut queue));
        let _ends = Ends(&ended);
        for _ in 0..20 {
            wait(&done);
            grpc.set_mask("mask2", mask(&[BOB], &[])).unwrap();
            let before = done.load(Ordering::Relaxed);
            wait(&refused);
            // Those that had ended, and were not counted yet.
            assert!(done.load(Ordering::Relaxed) <= before + 8, "what is hidden takes no more writes");
            grpc.set_mask("mask2", mask(&[ALICE], &[])).unwrap();
        }
    });
    assert_eq!(command(&mut queue, READ), Status::SUCCESS);
}
