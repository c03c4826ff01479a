//! The guest's initial file system: busybox as its first process, fio, nvme-cli, e2fsprogs with their libraries, and
//! the kernel modules of NVMe over TCP. A test appends its own segment with `/script`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cpio::Archive;
use super::{kernel, modules};
use crate::process::capture;

/// The packages the guest's programs come from.
pub const PACKAGES: [&str; 4] = ["busybox-static", "e2fsprogs", "fio", "nvme-cli"];

/// The metapackage of the guest's kernel.
pub const KERNEL: &str = "linux-image-cloud-amd64";

/// The first process's script.
pub const INIT: &str = include_str!("init.sh");

/// What the guest may load besides what its kernel has built in.
pub const MODULES: [&str; 8] =
    ["virtio_net", "nvme_tcp", "nvmet", "nvmet_tcp", "brd", "null_blk", "loop", "crc32c_intel"];

const PROGRAMS: [&str; 4] = ["usr/bin/fio", "usr/sbin/nvme", "usr/sbin/mkfs.ext4", "usr/sbin/fsck.ext4"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

/// The kernel's files: for QEMU to enter, and for firmware to load.
pub const KERNELS: [&str; 2] = ["vmlinux", "vmlinuz"];

/// Writes the kernel's files and `initrd.cpio` into `into` from a prefix with the unpacked packages.
pub fn build(prefix: &Path, into: &Path) -> Result<()> {
    let release = only_entry(&prefix.join("usr/lib/modules"))?;
    let image = fs::read(prefix.join(format!("boot/vmlinuz-{release}"))).context("the kernel's image")?;
    let [vmlinux, vmlinuz] = KERNELS.map(|name| into.join(name));
    fs::write(vmlinux, kernel::vmlinux(&image)?)?;
    fs::write(vmlinuz, &image)?;
    fs::write(into.join("initrd.cpio"), file_system(prefix, &release)?)?;
    Ok(())
}

fn file_system(prefix: &Path, release: &str) -> Result<Vec<u8>> {
    let mut files: BTreeMap<String, (u32, Vec<u8>)> = BTreeMap::new();
    let mut add = |path: &str, permissions: u32, content: Vec<u8>| {
        files.insert(path.to_owned(), (permissions, content))
    };

    add("init", 0o755, INIT.into());
    add("bin/busybox", 0o755, fs::read(prefix.join("usr/bin/busybox"))?);
    add("etc/mke2fs.conf", 0o644, fs::read(prefix.join("etc/mke2fs.conf"))?);
    add(LOADER, 0o755, fs::read(prefix.join(LOADER))?);
    for program in PROGRAMS {
        add(program, 0o755, fs::read(prefix.join(program)).context(program)?);
        for library in libraries(prefix, program)? {
            let content = fs::read(&library).with_context(|| library.display().to_string())?;
            let path = library.strip_prefix(prefix).context("a library outside the prefix")?;
            add(&path.to_string_lossy(), 0o755, content);
        }
    }
    let modules = modules::read(&prefix.join("usr/lib/modules").join(release), &MODULES)?;
    let directory = format!("usr/lib/modules/{release}");
    add(&format!("{directory}/modules.dep"), 0o644, modules::modules_dep(&modules).into());
    for (name, module) in modules {
        add(&format!("{directory}/{name}.ko"), 0o644, module.object);
    }

    let mut archive = Archive::default();
    let mut directories: BTreeSet<&Path> =
        ["dev", "etc/nvme", "proc", "run", "sys", "tmp", "mnt"].map(Path::new).into();
    for path in files.keys() {
        directories.extend(Path::new(path).ancestors().skip(1));
    }
    directories.extend(Path::new("etc/nvme").ancestors().skip(1));
    for directory in directories.iter().filter(|path| !path.as_os_str().is_empty()) {
        archive.directory(&directory.to_string_lossy());
    }
    archive.symlink("lib", "usr/lib");
    archive.symlink("lib64", "usr/lib64");
    archive.symlink("sbin", "bin");
    archive.character_device("dev/console", 5, 1);
    for (path, (permissions, content)) in &files {
        archive.file(path, *permissions, content);
    }
    Ok(archive.finish())
}

/// The libraries that a program loads, found by the prefix's own loader.
fn libraries(prefix: &Path, program: &str) -> Result<Vec<PathBuf>> {
    let place = prefix.join(LIBRARIES);
    // Debian keeps some libraries one level deeper and finds them by an absolute path, which is another here.
    let mut search = vec![place.clone()];
    for entry in place.read_dir()?.flatten() {
        if entry.file_type()?.is_dir() {
            search.push(entry.path());
        }
    }
    let search: Vec<_> = search.iter().map(|path| path.to_string_lossy()).collect();
    let listing = capture(
        Command::new(prefix.join(LOADER))
            .args(["--library-path", &search.join(":"), "--list"])
            .arg(prefix.join(program)),
    )?;
    // NAME => PATH (ADDRESS)
    ensure!(!listing.contains("not found"), "{program} lacks a library:\n{listing}");
    let paths = listing.lines().filter_map(|line| line.split_once(" => ")?.1.split(" (").next());
    Ok(paths.map(PathBuf::from).collect())
}

/// The name of the one entry of a directory.
fn only_entry(directory: &Path) -> Result<String> {
    let mut entries = directory.read_dir().with_context(|| directory.display().to_string())?;
    let entry = entries.next().context("an empty directory")??;
    ensure!(entries.next().is_none(), "{} holds more than one entry", directory.display());
    Ok(entry.file_name().to_string_lossy().into_owned())
}
