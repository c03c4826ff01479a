//! Guards the rooms: who may import whom, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Every room and what it may import of ours. An arrow that is not here is one that nobody decided on.
const ROOMS: &[(&str, &[&str])] = &[
    ("nvme-proto", &[]),
    ("engine", &[]),
    ("xts", &[]),
    ("proto", &[]),
    ("backend", &["engine", "nvme-proto"]),
    ("middleend", &["engine", "xts"]),
    ("frontend", &["engine", "nvme-proto"]),
    ("host", &["engine", "nvme-proto"]),
    ("xtask", &[]),
    ("isthmus", &["backend", "engine", "frontend", "host", "middleend", "nvme-proto", "proto", "xts"]),
];

#[test]
fn rooms_import_what_they_may() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "a room without a rule, or a rule without a room");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            // Tests of a room may borrow from others; what it ships may not.
            if dependency["kind"].as_str() != Some("dev") && ours.contains(to) {
                assert!(allowed[name].contains(&to), "{name} imports {to}");
            }
        }
    }
}

#[test]
fn unsafe_stands_where_it_may() {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                walk(&path, found);
            } else if name.ends_with(".rs") {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    let top = env!("CARGO_MANIFEST_DIR");
    let mut files = Vec::new();
    walk(Path::new(top), &mut files);
    assert!(files.len() > 20);
    for file in files {
        let short = file[top.len() + 1..].to_owned();
        let may = ["engine/src/mem/", "engine/src/ring/", "xts/"].iter().any(|p| short.starts_with(p));
        let text = std::fs::read_to_string(&file).unwrap();
        let word = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//") && !l.contains('"'));
        assert!(may || !code.into_iter().any(|l| word.iter().any(|w| l.contains(w))), "unsafe in {short}");
    }
    for (room, _) in ROOMS.iter().filter(|(r, _)| !["engine", "xts"].contains(r)) {
        let dir = if *room == "isthmus" { top.to_owned() } else { format!("{top}/{room}") };
        let root = ["src/lib.rs", "src/main.rs"].map(|f| format!("{dir}/{f}"));
        for file in root.iter().filter(|f| Path::new(f).exists()) {
            assert!(std::fs::read_to_string(file).unwrap().contains("#![forbid(unsafe_code)]"), "{file}");
        }
    }
}
