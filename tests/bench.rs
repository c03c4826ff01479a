//! `isthmus bench` on several controllers at once, and with a reader that goes away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::Stdio;

use common::free_port;
use common::grpc::Grpc;
use common::server::Server;
use serde_json::Value;

const NQN: &str = "nqn.2024-01.com.example:disk";

fn serve() -> (Server, Grpc, [String; 4]) {
    let server = Server::start(&[]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.null_volume("null", 4096, 1 << 10).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "null").unwrap();
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    let reach = ["--tcp", &format!("127.0.0.1:{port}"), "--nqn", NQN].map(str::to_owned);
    (server, grpc, reach)
}

/// What bench says of a load, and how many connections or controllers the server saw it have.
fn bench(server: &Server, arguments: &[&str]) -> Value {
    let mut bench = server.command();
    bench.arg("bench").args(arguments).args(["--quiet", "--output-format", "json"]);
    let output = bench.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn many_controllers_are_loaded_together_and_no_faster_than_the_rate() {
    let (server, grpc, reach) = serve();
    let over_tcp: Vec<&str> = reach.iter().map(String::as_str).collect();
    grpc.pcie_controller("subsys0", "first").unwrap();
    grpc.pcie_controller("subsys0", "second").unwrap();
    let sockets = ["subsys0", "subsys0.second"].map(|name| server.path(format!("ctrlr/{name}")));
    let sockets = sockets.map(|path| path.display().to_string());
    let over_pcie = ["--vfio-user", &sockets[0], "--vfio-user", &sockets[1]];

    let load = ["--seconds", "1", "--depth", "2", "--queues", "2", "--rate", "2000"];
    for (reach, more) in [(&over_tcp[..], &["--controllers", "3"][..]), (&over_pcie[..], &[])] {
        let said = bench(&server, &[reach, more, &load].concat());
        let commands = said["jobs"][0]["read"]["total_ios"].as_u64().unwrap();
        assert!((1..=2001).contains(&commands), "{commands} commands in a second at 2000");
    }
    // Each of them had its share.
    let reads = |id| grpc.controller_stats("subsys0", id).unwrap().read_ops_count;
    let (first, second) = (reads("first"), reads("second"));
    assert!(first.min(second) > (first + second) / 4, "{first} {second}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (server, _grpc, reach) = serve();
    let questions = [
        [&["bench", "--seconds", "0", "--quiet"][..], &reach.each_ref().map(String::as_str)].concat(),
        vec!["identify", &reach[1], NQN],
        vec!["discover", &reach[1]],
    ];
    for question in questions {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = server.command().args(&question).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{question:?}: {} {said}", output.status);
    }
}
