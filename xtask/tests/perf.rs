//! `cargo xtask perf` from its start to its page, with a target of ours in the place of another vendor's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NQN: &str = "nqn.2024-01.com.example:peer";

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The program: what `cargo xtask test` built, or this build's if there is one.
fn program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("isthmus");
    std::env::var_os("ISTHMUS_BIN").map(PathBuf::from).or(Some(beside)).filter(|program| program.exists())
}

fn start_peer(program: &Path, directory: &Path) -> (Peer, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let config = format!(
        "[[malloc_volumes]]\nid = \"disk\"\nblock_size = 4096\nblocks_count = 4096\n\n\
         [[nvme_subsystems]]\nid = \"peer\"\nspec = {{ nqn = \"{NQN}\" }}\n\n\
         [[nvme_namespaces]]\nid = \"disk\"\nparent = \"peer\"\nspec = {{ host_nsid = 1, volume_name_ref = \"disk\" }}\n\n\
         [[nvme_controllers]]\nid = \"tcp0\"\nparent = \"peer\"\nspec = {{ trtype = \"NVME_TRANSPORT_TYPE_TCP\", fabrics_id = \
         {{ traddr = \"127.0.0.1\", trsvcid = \"{}\", adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }} }}\n",
        address.port()
    );
    fs::write(directory.join("config.toml"), config).unwrap();
    let mut serve = Command::new(program);
    serve.args(["serve", "--die-with-parent", "--grpc-addr", &format!("127.0.0.1:{}", free_port())]);
    for (flag, name) in [("--config", "config.toml"), ("--ctrlr-dir", "ctrlr"), ("--state-dir", "state")] {
        serve.arg(flag).arg(directory.join(name));
    }
    serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(directory.join("log")).unwrap());
    let mut peer = Peer(serve.spawn().unwrap());
    while TcpStream::connect(address).is_err() {
        let ended = peer.0.try_wait().unwrap();
        assert!(ended.is_none(), "{}", fs::read_to_string(directory.join("log")).unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    (peer, address)
}

#[test]
fn a_comparison_in_pieces_makes_one_page() {
    let Some(program) = program() else {
        eprintln!("skipped: ISTHMUS_BIN names no program, and none lies beside xtask");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let (_peer, address) = start_peer(&program, directory.path());
    let (page, results) = (directory.path().join("page.html"), directory.path().join("results.json"));
    let perf = |row: &str| {
        let mut perf = Command::new(env!("CARGO_BIN_EXE_xtask"));
        perf.args(["perf", "--peer", &format!("nvmet={address}/{NQN}"), "--runs", "1", "--seconds", "1"]);
        perf.args(["--only", row, "--program"]).arg(&program);
        perf.arg("--output").arg(&page).arg("--results").arg(&results);
        let output = perf.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = perf("tcp-128k-write-8");
    assert!(first.contains("| tcp-128k-write-8 IOPS") && !first.contains("70%"), "{first}");
    let second = perf("tcp-randread-32-at-70%");
    for row in ["tcp-128k-write-8", "tcp-randread-32-at-70%"] {
        for name in ["Isthmus", "nvmet"] {
            assert!(second.contains(&format!("| {row} | {name} | ")), "{second}");
        }
    }
    let third = perf("waking-trapped-10000");
    assert!(third.contains("| waking-trapped-10000 p50, µs over ours without sleep | "), "{third}");
    for name in ["Isthmus", "Isthmus awake"] {
        assert!(third.contains(&format!("| waking-trapped-10000 | {name} | ")), "{third}");
    }
    let html = fs::read_to_string(&page).unwrap();
    for text in [
        "against nvmet,",
        "tcp-128k-write-8 IOPS",
        "at-70% p99.9 over p50",
        "<h2>The machine</h2>",
        "</html>",
    ] {
        assert!(html.contains(text), "no {text}: {html}");
    }
    assert!(!html.contains("http"), "it needs nothing but itself");
}
