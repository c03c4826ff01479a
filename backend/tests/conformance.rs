//! Every volume of this room passes the kit.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use backend::file::{FileVolume, Options as FileOptions};
use backend::null::NullVolume;
use backend::ram::RamVolume;
use engine::conformance::{Options, run};

#[test]
fn ram() {
    for (block_size, blocks) in
        [(512, 4096), (4096, 1000), (65536, 40), (512, 1), (512, 140_000), (4096, 17_000)]
    {
        run("ram", |_| RamVolume::new(block_size, blocks).unwrap(), Options::default());
    }
}

#[test]
fn null() {
    let options = Options { vanishes: true, ..Options::default() };
    run("null", |_| NullVolume::new(512, 4096).unwrap(), options);
}

fn file(dir: &Path, block_size: u32, options: Options) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let path = dir.path().join("disk");
    let made = std::cell::Cell::new(0);
    run(
        "file",
        |_| {
            let path = path.with_extension(made.replace(made.get() + 1).to_string());
            std::fs::File::create(&path).unwrap().set_len(2 << 20).unwrap();
            FileVolume::open(None, &path, FileOptions { block_size, ..FileOptions::default() }).unwrap()
        },
        options,
    );
}

#[test]
fn file_on_disk() {
    for block_size in [512, 4096] {
        file(Path::new(env!("CARGO_TARGET_TMPDIR")), block_size, Options::default());
    }
}

/// In memory, where ranges cannot be zeroed and the page cache may tear a block that is read while it is written.
#[test]
fn file_in_memory() {
    let dir = Path::new("/dev/shm");
    let dir = if dir.is_dir() { dir } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    file(dir, 512, Options { overlap: false, ..Options::default() });
}
