//! `isthmus demo`: ends well by itself, and leaves nothing when it is interrupted at any moment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::server::{as_ordinary_user, reachable_program};
use common::{Random, count};

/// Names the processes of one run: every descendant inherits it.
const MARK: &str = "ISTHMUS_TEST_RUN";

/// A run of the demo with a directory of its own for whatever it puts into temporary places.
fn demo(directory: &Path) -> Command {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    let places = directory.join("temporary");
    fs::create_dir_all(&places).unwrap();
    fs::set_permissions(&places, fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = as_ordinary_user(&reachable_program(directory));
    command.args(["demo", "--seconds", "1", "--size", "16"]).current_dir(&places).env(MARK, directory);
    command.env("TMPDIR", &places).env("XDG_RUNTIME_DIR", &places).env("HOME", &places).stdin(Stdio::null());
    command
}

/// What a run left: files in its directory, and processes.
fn left(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory.join("temporary")).unwrap();
    let mut left: Vec<String> = files.map(|entry| entry.unwrap().path().display().to_string()).collect();
    let mark = format!("{MARK}={}", directory.display());
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes()) {
            left.push(format!("process {}", process.file_name().to_string_lossy()));
        }
    }
    left
}

#[test]
fn it_verifies_every_byte_and_ends_well() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path()).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("verified"), "{said}");
    assert_eq!(left(directory.path()), Vec::<String>::new());
}

#[test]
fn interrupted_at_any_moment_it_leaves_nothing() {
    let mut random = Random::from_seed();
    for _ in 0..count(6, 60) {
        let directory = tempfile::tempdir().unwrap();
        let mut child = demo(directory.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let after = Duration::from_millis(random.below(4000));
        std::thread::sleep(after);
        if child.try_wait().unwrap().is_none() {
            let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("interrupted after {after:?}, the demo does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(left(directory.path()), Vec::<String>::new(), "interrupted after {after:?}");
    }
}
