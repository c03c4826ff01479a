//! A job file runs unchanged in a guest's fio and in `isthmus bench`, and both print the same JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use common::opi::Opi;
use common::server::Server;
use guest::Builder;
use serde_json::Value;

const NQN: &str = "nqn.2024-01.org.isthmus:jobs";
const JOBS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fio-jobs");
const FILE: &str = include_str!("../fio-jobs/verify.fio");

/// The whole of what fio prints lies between two lines.
const SCRIPT: &str = r#"
for tries in $(seq 40); do [ -b /dev/nvme0n1 ] && break; sleep 0.5; done
DISK=/dev/nvme0n1 fio --output-format=json --output=/tmp/out.json --eta=never /tmp/verify.fio
echo JSON-BEGINS
cat /tmp/out.json
echo JSON-ENDS
"#;

/// What fio alone knows: its threads and the guest's block layer.
const FIO_ALONE: [&str; 4] = ["disk_util", "jobs.iodepth_submit", "jobs.iodepth_complete", "jobs.job_start"];

/// Every key of a value by its path, with the kind of what it holds; of a list its first element.
fn shape(value: &Value, at: &str, found: &mut Vec<(String, &'static str)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let kind = match value {
                    Value::Object(_) => "an object",
                    Value::Array(_) => "a list",
                    Value::String(_) => "a string",
                    _ => "a number",
                };
                found.push((path.clone(), kind));
                shape(value, &path, found);
            }
        }
        Value::Array(list) => list.iter().take(1).for_each(|value| shape(value, at, found)),
        _ => {}
    }
}

/// What `isthmus bench` says of a job file, where nobody listens: a file that it cannot follow is refused before.
fn refusal(file: &Path) -> String {
    let program = std::env::var_os("ISTHMUS_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_isthmus").into());
    let mut command = Command::new(program);
    command.arg("bench").arg("--job").arg(file).args(["--nsid", "1,2,3,4", "--vfio-user", "/nowhere"]);
    let out = command.output().unwrap();
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

/// The shape, without what the options of a job are and without what only one of both has.
fn comparable(value: &Value) -> BTreeSet<(String, &'static str)> {
    let mut found = Vec::new();
    shape(value, "", &mut found);
    let ours_or_theirs = |path: &str| {
        let alone = FIO_ALONE.iter().chain(&["jobs.isthmus"]);
        alone.into_iter().any(|alone| path.starts_with(alone)) || path.contains("options.")
    };
    found.into_iter().filter(|(path, _)| !ours_or_theirs(path)).collect()
}

fn bench(server: &Server, arguments: &[&str]) -> Value {
    let out = server.command().arg("bench").args(arguments).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_guests_fio_and_bench_run_the_same_file() {
    let Some(guest) = Builder::new("fio-jobs", "") else { return };
    let server = Server::start(&[]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    let port = common::free_port();
    opi.malloc_volume("disk", 4096, 0x4000);
    opi.subsystem("subsys0", NQN);
    opi.namespace("subsys0", "disk0", 1, "disk");
    opi.pcie_controller("subsys0", "pcie0");
    opi.tcp_controller("subsys0", "tcp0", port);
    let socket = server.path("ctrlr/subsys0/cntrl");
    let script = format!("cat >/tmp/verify.fio <<'JOBS'\n{FILE}\nJOBS\n{SCRIPT}");
    let printed = guest.script(&script).vfio_user(&socket).run();
    let json = printed.split_once("JSON-BEGINS").unwrap().1.split_once("JSON-ENDS").unwrap().0;
    let theirs: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));

    let (file, address) = (format!("{JOBS}/verify.fio"), format!("127.0.0.1:{port}"));
    let over_pcie = ["--vfio-user", socket.to_str().unwrap()];
    let over_tcp = ["--tcp", &address, "--nqn", NQN];
    for way in [&over_pcie[..], &over_tcp[..]] {
        let ours = bench(&server, &[&["--job", &file, "--output-format", "json"], way].concat());
        let (mine, fios) = (comparable(&ours), comparable(&theirs));
        let only =
            |a: &BTreeSet<_>, b: &BTreeSet<_>| a.difference(b).cloned().collect::<Vec<(String, &str)>>();
        assert_eq!(
            (only(&mine, &fios), only(&fios, &mine)),
            (vec![], vec![]),
            "in ours alone, in fio's alone"
        );
        for (ours, theirs) in ours["jobs"].as_array().unwrap().iter().zip(theirs["jobs"].as_array().unwrap())
        {
            for key in ["jobname", "groupid", "error"] {
                assert_eq!(ours[key], theirs[key], "{key}");
            }
            for (side, key) in [("write", "io_bytes"), ("write", "total_ios"), ("read", "total_ios")] {
                assert_eq!(ours[side][key], theirs[side][key], "{}: {side} {key}", ours["jobname"]);
            }
            assert_eq!(ours["isthmus"]["verified_bytes"], 16 << 20, "{ours}");
            assert!(
                ours["isthmus"]["target_cpu_us_per_io"].is_number(),
                "the target was found by its socket"
            );
        }
    }
}

#[test]
fn data_that_nobody_looks_at_is_thrown_away_between_what_matters() {
    let server = Server::start(&[]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    let port = common::free_port();
    opi.malloc_volume("disk", 4096, 0x4000);
    opi.subsystem("subsys0", NQN);
    opi.namespace("subsys0", "disk0", 1, "disk");
    opi.tcp_controller("subsys0", "tcp0", port);
    let address = format!("127.0.0.1:{port}");
    let way = ["--tcp", &address, "--nqn", NQN, "--output-format", "json", "--seconds", "1", "--depth", "8"];
    for load in [
        &["--pattern", "randrw", "--block-size", "128k"][..],
        &["--pattern", "randrw", "--block-size", "4k", "--hdgst", "--ddgst", "--queues", "3"],
        &["--pattern", "read", "--block-size", "1m", "--hdgst"],
        &["--pattern", "randtrim", "--block-size", "64k"],
    ] {
        let job = &bench(&server, &[&way[..], load].concat())["jobs"][0];
        let count = |side: &str| job[side]["total_ios"].as_u64().unwrap();
        let mixed = load[1] == "randrw";
        assert_eq!(count("read") > 0, load[1] != "randtrim", "{job}");
        assert_eq!((count("write") > 0, count("trim") > 0), (mixed, load[1] == "randtrim"), "{job}");
    }
}

#[test]
fn every_job_file_is_one_that_bench_follows() {
    for entry in std::fs::read_dir(JOBS).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "fio") {
            continue;
        }
        let said = refusal(&path);
        assert!(said.contains("connect to the vfio-user socket"), "{}: {said}", path.display());
    }
}

#[test]
fn what_bench_cannot_do_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("job.fio");
    std::fs::write(&file, "[odd]\nrw=randread\nrandom_distribution=zipf\n").unwrap();
    let said = refusal(&file);
    assert!(said.contains("[odd]") && said.contains("random_distribution"), "{said}");
}
