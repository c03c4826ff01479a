//! `isthmus serve` from its start to its end, and what is left when it is killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::free_port;
use common::grpc::Grpc;
use common::host::{connect_tcp, connect_vfio_user, fill, load};
use common::server::Server;
use host::workload::Amount;
use host::{Queue, tcp};
use nvme_proto::Sqe;
use nvme_proto::log::{GetLogPage, LogId, Smart};
use nvme_proto::zerocopy::FromBytes;
use proto::storage as opi;
use tonic::Code;

const NQN: &str = "nqn.2024-01.com.example:disk";
const MIB: u64 = 1 << 20;

/// Declares a file, encrypted and rate-limited, in a subsystem.
fn declare(server: &Server, grpc: &Grpc) {
    let file = server.aio_file("disk", 8 * MIB);
    grpc.aio_volume("file", &file, 4096).unwrap();
    grpc.qos_volume("calm", "file", 1000).unwrap();
    grpc.encrypted_volume("secret", "calm").unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "secret").unwrap();
}

#[test]
fn all_that_is_declared_outlives_a_kill() {
    let mut server = Server::start(&["--shards", "2"]);
    let port = free_port();
    let grpc = Grpc::connect(server.grpc());
    declare(&server, &grpc);
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    grpc.pcie_controller("subsys0", "over-pcie").unwrap();
    let socket = server.path("ctrlr/subsys0/cntrl");

    let (mut controller, mut queue) = connect_tcp(port, NQN);
    assert_eq!(power(&mut controller), (1, 0));
    let mut ledger = fill(&mut queue);
    let stats = grpc.namespace_stats("subsys0", "disk").unwrap();
    assert!(stats.write_ops_count >= 512 && stats.read_ops_count > 100, "{stats:?}");
    let came_by = |controller: &str| grpc.controller_stats("subsys0", controller).unwrap().write_bytes_count;
    assert_eq!((came_by("over-tcp"), came_by("over-pcie")), (stats.write_bytes_count, 0));
    drop((queue, controller));

    server.kill();
    assert!(socket.exists(), "a killed server leaves its socket");
    server.launch();
    let (controller, mut queue) = connect_vfio_user(&socket, 1);
    assert_eq!(load(&mut queue, &mut ledger, 100, false, Amount::Once), 8 * MIB);
    load(&mut queue, &mut ledger, 50, true, Amount::Commands(300));
    drop((queue, controller));
    let (mut controller, mut queue) = connect_tcp(port, NQN);
    assert_eq!(power(&mut controller), (2, 1), "a kill is a loss of power");
    assert_eq!(load(&mut queue, &mut ledger, 100, false, Amount::Once), 8 * MIB);

    assert!(server.terminate().success(), "{}", server.log());
    let left: Vec<_> = std::fs::read_dir(server.path("ctrlr")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    server.launch();
    let (mut controller, _queue) = connect_tcp(port, NQN);
    assert_eq!(power(&mut controller), (3, 1), "an end in order is none");
}

/// Power cycles and unexpected power losses, from the health log.
fn power(controller: &mut tcp::Controller) -> (u128, u128) {
    let mut sqe = Sqe { opc: 2, nsid: u32::MAX, ..Sqe::default() };
    GetLogPage::new(LogId::Smart, 0, 512).put(&mut sqe);
    let page = controller.admin_read("health log", sqe, 512).unwrap();
    let smart = Smart::read_from_bytes(&page).unwrap();
    (smart.pwrc.get(), smart.upl.get())
}

#[test]
fn what_is_taken_away_can_be_made_again_at_once() {
    let server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    let file = server.aio_file("disk", MIB);
    grpc.subsystem("subsys0", NQN).unwrap();
    for _ in 0..3 {
        grpc.aio_volume("file", &file, 512).unwrap();
        let again = grpc.aio_volume("same-file", &file, 512).unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
        grpc.namespace("subsys0", "disk", "file").unwrap();
        grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
        grpc.pcie_controller("subsys0", "pcie0").unwrap();
        grpc.pcie_controller("subsys0", "pcie1").unwrap();
        let second = server.path("ctrlr/subsys0.pcie1/cntrl");
        let (_a, mut over_tcp) = connect_tcp(port, NQN);
        let (_b, mut over_pcie) = connect_vfio_user(&second, 1);
        let mut ledger = fill(&mut over_tcp);
        load(&mut over_pcie, &mut ledger, 100, false, Amount::Once);
        grpc.delete_controller("subsys0", "pcie1").unwrap();
        assert!(!second.exists() && server.path("ctrlr/subsys0/cntrl").exists());
        grpc.delete_controller("subsys0", "pcie0").unwrap();
        grpc.delete_controller("subsys0", "over-tcp").unwrap();
        let flush = host::Command { kind: host::Kind::Flush, lba: 0, blocks: 1 };
        over_tcp.submit(0, flush).unwrap();
        let ended = ends_in_error(|done| over_tcp.poll(done));
        assert!(ended, "the connection outlives the controller that it came through");
        grpc.delete_namespace("subsys0", "disk").unwrap();
        grpc.delete_aio_volume("file").unwrap();
    }
}

#[test]
fn it_ends_in_order_under_load() {
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    declare(&server, &grpc);
    let port = free_port();
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    grpc.pcie_controller("subsys0", "over-pcie").unwrap();
    let socket = server.path("ctrlr/subsys0/cntrl");
    let address = format!("127.0.0.1:{port}");
    let ways = [vec!["--tcp", &address, "--nqn", NQN], vec!["--vfio-user", socket.to_str().unwrap()]];
    let mut hosts = ways.map(|way| {
        let mut host = server.command();
        host.arg("bench").args(way).args([
            "--pattern",
            "randrw",
            "--depth",
            "32",
            "--seconds",
            "60",
            "--quiet",
        ]);
        host.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    let busy = |id| grpc.controller_stats("subsys0", id).unwrap().write_ops_count > 100;
    while !(busy("over-tcp") && busy("over-pcie")) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.terminate().success(), "{}", server.log());
    assert!(std::fs::read_dir(server.path("ctrlr")).unwrap().next().is_none());
    assert!(!server.log().contains("WARN") && !server.log().contains("ERROR"), "{}", server.log());
    for host in &mut hosts {
        assert!(!host.wait().unwrap().success(), "a host notices that its controller is gone");
    }
}

/// Who starts it by nohup(1) and leaves has not asked it to end.
#[test]
fn a_hang_up_that_is_ignored_ends_nothing() {
    let mut server = Server::start(&[]);
    assert!(server.terminate().success());
    let (inner, grpc) = (server.command(), server.grpc());
    let mut command = Command::new("nohup");
    command.arg(inner.get_program()).args(inner.get_args()).arg("serve");
    command.arg("--grpc-addr").arg(grpc.to_string());
    for (flag, name) in [("--ctrlr-dir", "ctrlr"), ("--state-dir", "state"), ("--aio-dir", "aio")] {
        command.arg(flag).arg(server.path(name));
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let signal = |name: &str| {
        let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    let answers = || TcpStream::connect(grpc).is_ok();
    while !answers() {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal("HUP");
    // It would have closed its socket within a few milliseconds.
    std::thread::sleep(Duration::from_millis(300));
    assert!(answers());
    signal("TERM");
    assert!(child.wait().unwrap().success());
}

#[test]
fn controllers_keep_their_identifiers_and_sockets() {
    let mut server = Server::start(&[]);
    let grpc = Grpc::connect(server.grpc());
    grpc.subsystem("subsys0", NQN).unwrap();
    let id = |controller: opi::NvmeController| controller.spec.and_then(|spec| spec.nvme_controller_id);
    assert_eq!(id(grpc.pcie_controller("subsys0", "pcie1").unwrap()), Some(1));
    assert_eq!(id(grpc.pcie_controller("subsys0", "pcie2").unwrap()), Some(2));
    grpc.delete_controller("subsys0", "pcie1").unwrap();
    server.kill();
    server.launch();
    let grpc = Grpc::connect(server.grpc());
    // Declared again in the same words, it is answered as it is: built, with its identifier.
    assert_eq!(id(grpc.pcie_controller("subsys0", "pcie2").unwrap()), Some(2));
    let sockets =
        || ["subsys0", "subsys0.pcie2"].map(|d| server.path("ctrlr").join(d).join("cntrl").exists());
    assert_eq!(sockets(), [false, true]);
    assert_eq!(id(grpc.pcie_controller("subsys0", "pcie3").unwrap()), Some(1));
    assert_eq!(sockets(), [true, true]);
}

#[test]
fn a_state_directory_serves_one_process() {
    let server = Server::start(&[]);
    let mut second = server.command();
    second.args(["serve", "--grpc-addr", "127.0.0.1:0"]);
    second.arg("--state-dir").arg(server.path("state")).arg("--ctrlr-dir").arg(server.path("ctrlr"));
    let output = second.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("in use by another process"), "{said}");
}

#[test]
fn a_remote_that_is_gone_does_not_hold_up_the_end() {
    let mut far = Server::start(&[]);
    let port = free_port();
    let grpc = Grpc::connect(far.grpc());
    declare(&far, &grpc);
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    let mut near = Server::start(&[]);
    let grpc = Grpc::connect(near.grpc());
    grpc.remote("away", port, NQN).unwrap();
    grpc.subsystem("subsys0", "nqn.2024-01.com.example:near").unwrap();
    grpc.namespace("subsys0", "disk", "awayn1").unwrap();
    grpc.pcie_controller("subsys0", "pcie0").unwrap();
    let (_controller, mut queue) = connect_vfio_user(&near.path("ctrlr/subsys0/cntrl"), 1);
    fill(&mut queue);

    far.kill();
    queue.submit(0, host::Command { kind: host::Kind::Write { fua: false }, lba: 0, blocks: 1 }).unwrap();
    queue.poll(&mut Vec::new()).unwrap();
    let begin = Instant::now();
    assert!(near.terminate().success(), "{}", near.log());
    assert!(begin.elapsed() < Duration::from_secs(25));
    // What was declared over the remote is there again, and waits for it.
    near.launch();
    far.launch();
    let (_controller, mut queue) = connect_vfio_user(&near.path("ctrlr/subsys0/cntrl"), 1);
    fill(&mut queue);
    assert!(near.terminate().success() && far.terminate().success());
}

#[test]
fn objects_of_a_file_are_declared_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("objects.toml");
    let port = free_port();
    let text = format!(
        r#"
        [[malloc_volumes]]
        id = "memory"
        block_size = 512
        blocks_count = 2048

        [[nvme_subsystems]]
        id = "subsys0"
        spec = {{ nqn = "{NQN}" }}

        [[nvme_namespaces]]
        id = "disk"
        parent = "subsys0"
        spec = {{ volume_name_ref = "memory" }}

        [[nvme_controllers]]
        id = "over-tcp"
        parent = "subsys0"
        [nvme_controllers.spec]
        trtype = "NVME_TRANSPORT_TYPE_TCP"
        fabrics_id = {{ traddr = "127.0.0.1", trsvcid = "{port}", adrfam = "NVME_ADDRESS_FAMILY_IPV4" }}
        "#
    );
    std::fs::write(&path, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode).unwrap();
    let mut server = Server::start(&["--config", path.to_str().unwrap()]);
    for _ in 0..2 {
        let (_controller, mut queue) = connect_tcp(port, NQN);
        fill(&mut queue);
        assert!(server.terminate().success());
        server.launch();
    }

    let address = format!("127.0.0.1:{port}");
    let found = answer(server.command().args(["discover", &address]));
    assert!(found.contains(NQN) && found.contains(&port.to_string()), "{found}");
    let found = answer(server.command().args(["identify", &address, NQN]));
    assert!(found.contains("Isthmus") && found.contains("2048"), "{found}");
    let found = answer(server.command().args(["identify", "--json", &address, NQN]));
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["namespaces"][0]["blocks"], 2048, "{found}");
}

/// Polls until a failure or an answer; whether it was a failure.
fn ends_in_error(mut poll: impl FnMut(&mut Vec<host::Done>) -> host::Result<()>) -> bool {
    let mut done = Vec::new();
    while done.is_empty() {
        if poll(&mut done).is_err() {
            return true;
        }
    }
    false
}

fn answer(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
