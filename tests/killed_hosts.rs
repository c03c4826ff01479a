//! Hosts that are killed at random moments under I/O, over vfio-user and over TCP: nothing leaks, and the next one works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::opi::Opi;
use common::server::Server;
use common::{Random, count, free_port, tail};

const NQN: &str = "nqn.2025-01.test.isthmus:disk";

/// A server with a RAM volume, and the arguments by which the load generator reaches it.
fn serve(tcp: bool) -> Option<(Server, Vec<String>)> {
    common::peer("python")?;
    let server = Server::start(&["--shards", "2"]);
    let mut opi = Opi::connect(server.grpc())?;
    opi.malloc_volume("disk", 512, 65536);
    opi.subsystem("subsys0", NQN);
    opi.namespace("subsys0", "disk0", 1, "disk");
    let reach = if tcp {
        let port = free_port();
        opi.tcp_controller("subsys0", "tcp0", port);
        vec!["--tcp".into(), format!("127.0.0.1:{port}"), "--nqn".into(), NQN.into()]
    } else {
        opi.pcie_controller("subsys0", "pcie0");
        vec!["--vfio-user".into(), server.path("ctrlr/subsys0/cntrl").to_str().unwrap().into()]
    };
    Some((server, reach))
}

fn kill_hosts(tcp: bool) {
    let Some((server, reach)) = serve(tcp) else { return };
    let unused = server.open_files();
    whole_run(&server, &reach);
    // A helper that the first host made the server open may stay.
    let files = open_files(&server, unused + 2);
    let mut random = Random::from_seed();
    let mut memory = 0;
    let rounds = count(100, 1000);
    for round in 0..rounds {
        let mut host = server.command();
        host.arg("bench").args(&reach).args(["--pattern", "randwrite", "--depth", "32", "--queues", "2"]);
        host.args(["--seconds", "60", "--quiet"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut host = host.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.below(250)));
        assert!(
            host.try_wait().unwrap().is_none(),
            "round {round}: the host ended by itself\n{}",
            tail(&server.log(), 30)
        );
        host.kill().unwrap();
        host.wait().unwrap();
        if round == rounds / 10 {
            memory = server.anonymous_memory();
        }
    }
    whole_run(&server, &reach);
    assert!(
        open_files(&server, files) <= files,
        "the server has {} open files, {files} before",
        server.open_files()
    );
    let grown = server.anonymous_memory().saturating_sub(memory);
    assert!(grown < 16 << 20, "the server's memory grew by {grown} bytes");
}

/// A host that lives: it writes, and verifies every byte.
fn whole_run(server: &Server, reach: &[String]) {
    let mut host = server.command();
    host.arg("bench").args(reach).args(["--pattern", "randrw", "--depth", "32", "--queues", "2", "--verify"]);
    let output = host.args(["--seconds", "1", "--quiet"]).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", tail(&server.log(), 30));
}

/// The server's open files once it has noticed that a host is gone: no more than `limit`, or what they are at last.
fn open_files(server: &Server, limit: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let files = server.open_files();
        if files <= limit || Instant::now() >= deadline {
            return files;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn over_vfio_user() {
    kill_hosts(false);
}

#[test]
fn over_tcp() {
    kill_hosts(true);
}
