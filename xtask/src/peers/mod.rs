//! The real peers: fetched once per version, unpacked beside the system, found by tests through a directory of links.
//!
//! `$ISTHMUS_PEERS/qemu` is a prefix with QEMU and its libraries, `guest` holds `vmlinux`, `vmlinuz` and `initrd.cpio`,
//! `ovmf` UEFI firmware for a virtual machine, `python` is a site directory with OPI's stubs, `valgrind` a prefix with
//! valgrind alone.

mod apt;
#[path = "../../../tests/guest/cpio.rs"]
mod cpio;
mod guest;
mod kernel;
mod modules;
mod python;
mod sources;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::report::{Outcome, Report, first_line};

/// The packages of UEFI firmware, and of a shell that it can start from a disk.
const FIRMWARE: [&str; 2] = ["efi-shell-x64", "ovmf"];

/// Fetches every peer that can be had, adds a row for each, and returns the directory of links.
///
/// # Errors
/// Fails only when the cache itself cannot be written.
pub fn fetch(report: &mut Report) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let apt = apt_root(&cache);
    cache.row(report, "peer qemu", "qemu", || {
        let apt = apt.as_ref().map_err(again)?;
        let packages = ["qemu-system-x86"];
        let archives = apt.closure(Some(apt::BACKPORTS), &packages)?;
        let build = |into: &Path| apt.unpack_closure(Some(apt::BACKPORTS), &packages, into);
        let version = version_of("qemu-system-x86", &archives);
        Ok((version, cache.entry("qemu", &archives, build)?))
    });
    cache.row(report, "peer guest", "guest", || {
        let apt = apt.as_ref().map_err(again)?;
        let (package, version) = apt.stands_for(guest::KERNEL)?;
        let archives = apt.closure(None, &guest::PACKAGES)?;
        let build = |into: &Path| {
            let prefix = into.join("prefix");
            apt.unpack_closure(None, &guest::PACKAGES, &prefix)?;
            apt.unpack_one(&package, &prefix)?;
            guest::build(&prefix, into)?;
            Ok(fs::remove_dir_all(prefix)?)
        };
        let versions = ["fio", "nvme-cli"].map(|name| format!("{name} {}", version_of(name, &archives)));
        let key = (&archives, &package, &version, guest::INIT, guest::MODULES, guest::KERNELS);
        Ok((format!("linux {version}, {}", versions.join(", ")), cache.entry("guest", key, build)?))
    });
    cache.row(report, "peer ovmf", "ovmf", || {
        let apt = apt.as_ref().map_err(again)?;
        let archives = apt.closure(None, &FIRMWARE)?;
        let build = |into: &Path| {
            let prefix = into.join("prefix");
            for package in FIRMWARE {
                apt.unpack_one(package, &prefix)?;
            }
            for file in ["OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd", "efi-shell-x64/shellx64.efi"] {
                let file = prefix.join("usr/share").join(file);
                fs::copy(&file, into.join(file.file_name().context("a file")?)).context("the firmware")?;
            }
            Ok(fs::remove_dir_all(prefix)?)
        };
        Ok((version_of("ovmf", &archives), cache.entry("ovmf", &archives, build)?))
    });
    cache.row(report, "peer pydpu", "python", || {
        let interpreter = python::interpreter()?;
        let path = cache.entry("python", (&interpreter, python::REQUIREMENT), python::install)?;
        Ok((format!("{} for {interpreter}", python::REQUIREMENT), path))
    });
    valgrind(&cache, &apt, report);
    Ok(cache.links())
}

/// Fetches valgrind alone; the directory of links.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_valgrind(report: &mut Report) -> Result<PathBuf> {
    let cache = Cache::open()?;
    valgrind(&cache, &apt_root(&cache), report);
    Ok(cache.links())
}

fn valgrind(cache: &Cache, apt: &Result<apt::Apt>, report: &mut Report) {
    cache.row(report, "peer valgrind", "valgrind", || {
        let apt = apt.as_ref().map_err(again)?;
        let version = version_of("valgrind", &apt.closure(None, &["valgrind"])?);
        // Its tools are static programs: nothing that it depends on is needed.
        let path = cache.entry("valgrind", &version, |into| apt.unpack_one("valgrind", into))?;
        Ok((version, path))
    });
}

fn apt_root(cache: &Cache) -> Result<apt::Apt> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the guest and its QEMU are fetched for x86-64 alone");
    }
    eprintln!("reading the archive's package lists");
    apt::Apt::open(&cache.root.join("apt"))
}

/// The same error for another row.
fn again(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// The version in the archive name `PACKAGE_VERSION_ARCHITECTURE.deb`.
fn version_of(package: &str, archives: &[String]) -> String {
    let version =
        archives.iter().find_map(|name| name.strip_prefix(package)?.strip_prefix('_')?.split('_').next());
    version.unwrap_or("?").replace("%3a", ":")
}

/// A directory that several runs share, one at a time.
struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    fn open() -> Result<Self> {
        let root = match std::env::var_os("ISTHMUS_CACHE") {
            Some(root) => PathBuf::from(root),
            None => std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
                .context("none of ISTHMUS_CACHE, XDG_CACHE_HOME and HOME is set")?
                .join("isthmus"),
        };
        fs::create_dir_all(root.join("peers")).with_context(|| root.display().to_string())?;
        let root = root.canonicalize()?;
        let lock = File::create(root.join("lock"))?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another run to leave {}", root.display());
            lock.lock()?;
        }
        Ok(Self { root, _lock: lock })
    }

    /// The directory of links.
    fn links(&self) -> PathBuf {
        self.root.join("peers")
    }

    /// The entry of this kind and key; built first when there is none. An entry that exists is complete.
    fn entry(&self, kind: &str, key: impl Hash, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let path = self.root.join(format!("{kind}-{:016x}", hasher.finish()));
        if !path.exists() {
            eprintln!("fetching {kind}");
            let partial = self.root.join(format!("{kind}.partial"));
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            fs::create_dir(&partial)?;
            build(&partial)?;
            fs::rename(&partial, &path)?;
        }
        Ok(path)
    }

    /// Points a link at what `find` returns with its description, and adds the row. When it cannot be had now, what
    /// an earlier run linked serves again.
    fn row(
        &self,
        report: &mut Report,
        row: &str,
        link: &str,
        find: impl FnOnce() -> Result<(String, PathBuf)>,
    ) {
        let began = Instant::now();
        let link = self.links().join(link);
        let outcome = match find().and_then(|(version, path)| relink(&link, &path).map(|()| version)) {
            Ok(version) => Outcome::Passed(version),
            Err(error) if link.exists() => {
                eprintln!("{row}: {error:#}");
                Outcome::Passed(format!("from the cache; {}", first_line(&format!("{error:#}"))))
            }
            Err(error) => {
                eprintln!("{row}: {error:#}");
                Outcome::Skipped(first_line(&format!("{error:#}")))
            }
        };
        report.add(row, outcome, began.elapsed());
    }
}

/// Makes `link` point at `target`, in one step.
fn relink(link: &Path, target: &Path) -> Result<()> {
    let new = link.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)?;
    Ok(fs::rename(&new, link)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        fs::create_dir(root.join("peers")).unwrap();
        let lock = File::create(root.join("lock")).unwrap();
        (dir, Cache { root, _lock: lock })
    }

    #[test]
    fn an_entry_is_built_once_per_key_and_never_half() {
        let (_dir, cache) = cache();
        let write = |text: &'static str| move |into: &Path| Ok(fs::write(into.join("file"), text)?);
        let first = cache.entry("qemu", "11.1", write("one")).unwrap();
        assert!(cache.entry("qemu", "11.2", |_| bail!("no network")).is_err());
        assert_eq!(cache.entry("qemu", "11.1", write("two")).unwrap(), first);
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "one");
        assert_ne!(cache.entry("qemu", "11.2", write("three")).unwrap(), first);
    }

    #[test]
    fn what_cannot_be_had_is_skipped_unless_an_earlier_run_had_it() {
        let (_dir, cache) = cache();
        let mut report = Report::new();
        cache.row(&mut report, "peer", "peer", || bail!("no network"));
        assert!(!report.good(true) && report.good(false));
        let mut report = Report::new();
        cache.row(&mut report, "peer", "peer", || Ok(("1".into(), cache.entry("peer", 1, |_| Ok(()))?)));
        cache.row(&mut report, "peer", "peer", || bail!("no network"));
        assert!(report.good(true), "{report}");
    }

    #[test]
    fn reads_a_version_from_an_archive_name() {
        let archives =
            ["fio-x_1_all.deb".to_owned(), "fio_3.39-1_amd64.deb".into(), "q_1%3a11.1_amd64.deb".into()];
        assert_eq!(version_of("fio", &archives), "3.39-1");
        assert_eq!(version_of("q", &archives), "1:11.1");
    }
}
