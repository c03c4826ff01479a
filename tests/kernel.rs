//! A kernel that refuses, or gives little: errors name the cure, and what can be done with less is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::free_port;
use common::grpc::Grpc;
use common::host::{connect_tcp, connect_vfio_user, fill, load};
use common::server::{Server, reachable_program};
use host::workload::Amount;

const NQN: &str = "nqn.2024-01.com.example:disk";

/// The number of io_uring_setup(2), the same on all architectures.
const IO_URING_SETUP: i32 = 425;

#[test]
fn io_uring_that_is_refused_is_named_with_its_cure() {
    if common::peer("python").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = reachable_program(directory.path());
    for (errno, cure) in [
        (nix::libc::EPERM, "a seccomp filter refuses it: allow io_uring_setup"),
        (nix::libc::ENOSYS, "or a seccomp filter hides it: allow io_uring_setup"),
        (nix::libc::EACCES, "a security policy refuses it"),
    ] {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/refuse.py"));
        command.arg(IO_URING_SETUP.to_string()).arg(errno.to_string()).arg(&program);
        command
            .args(["serve", "--grpc-addr", "127.0.0.1:0", "--state-dir"])
            .arg(directory.path().join("state"));
        let output = command.arg("--ctrlr-dir").arg(directory.path().join("ctrlr")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(cure), "errno {errno}: {said}");
    }
}

#[test]
fn little_locked_memory_is_enough() {
    // Four rings of 8 KiB.
    let Some(mut server) = Server::start_confined("memlock=32768", &["--shards", "4"]) else { return };
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.aio_volume("file", &server.aio_file("disk", 4 << 20), 4096).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    grpc.pcie_controller("subsys0", "over-pcie").unwrap();
    let (_first, mut over_tcp) = connect_tcp(port, NQN);
    let mut ledger = fill(&mut over_tcp);
    let (_second, mut over_pcie) = connect_vfio_user(&server.path("ctrlr/subsys0/cntrl"), 1);
    assert_eq!(load(&mut over_pcie, &mut ledger, 100, false, Amount::Once), 4 << 20);
    assert!(server.log().contains("raise RLIMIT_MEMLOCK"), "{}", server.log());
    drop((over_tcp, over_pcie));
    assert!(server.terminate().success(), "{}", server.log());
}
