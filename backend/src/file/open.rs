//! Finding, locking and measuring the file.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use engine::ring::direct_alignment;
use engine::{Limits, VolumeStats};
use nix::fcntl::{FallocateFlags, OFlag, OpenHow, ResolveFlag, fallocate, open, openat2};
use nix::sys::stat::Mode;

use super::FileVolume;

/// How a file becomes a volume.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes in a block: a power of two, 512 to 65536.
    pub block_size: u32,
    /// Blocks in the volume; zero for as many as the file has.
    pub blocks: u64,
    /// The volume takes no writes, and shares the file with other volumes that take none.
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { block_size: 512, blocks: 0, read_only: false }
    }
}

impl FileVolume {
    /// Opens and locks `path`, a regular file or block device that exists and is large enough.
    ///
    /// With `dir`, only what lies beneath that directory is opened (openat2(2), RESOLVE_BENEATH): an absolute `path`
    /// must begin with it, a relative one is taken from it, and neither `..` nor a symbolic link leads out.
    ///
    /// # Errors
    /// In words that name the file: `InvalidInput` for a block size or count that cannot be, a file that is too small
    /// or no file, or a path outside `dir`; `ResourceBusy` when another process or volume holds it; those of open(2).
    pub fn open(dir: Option<&Path>, path: &Path, options: Options) -> io::Result<Arc<Self>> {
        open_volume(dir, path, options)
            .map(Arc::new)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, what)
}

fn open_volume(dir: Option<&Path>, path: &Path, options: Options) -> io::Result<FileVolume> {
    let Options { block_size, read_only, .. } = options;
    crate::bytes_of(block_size, options.blocks.max(1))?;
    // Without waiting: nobody may be at the other end of a fifo.
    let mut file = File::from(find(dir, path, flags(read_only, false) | OFlag::O_NONBLOCK)?);
    let meta = file.metadata()?;
    if meta.file_type().is_block_device() {
        // O_EXCL on a block device: not while it is mounted, or part of something that is.
        let exclusive = if read_only { OFlag::empty() } else { OFlag::O_EXCL };
        file = again(file.as_fd(), flags(read_only, false) | exclusive)?.into();
    } else if !meta.is_file() {
        return Err(invalid("neither a regular file nor a block device".into()));
    }
    lock(&file, read_only)?;

    let size = file.seek(SeekFrom::End(0))?;
    let has = size / u64::from(block_size);
    let blocks = if options.blocks == 0 { has } else { options.blocks };
    if blocks == 0 || blocks > has {
        return Err(invalid(format!(
            "the file has {size} bytes, less than {} blocks of {block_size} bytes",
            blocks.max(1)
        )));
    }
    crate::bytes_of(block_size, blocks)?;

    let direct = direct(&file, block_size, read_only);
    // A device with larger blocks than these goes by the page cache: there the kernel zeroes and discards whole blocks of
    // the device alone, and none that are dirty.
    let whole = meta.is_file() || direct.is_some();
    let unmap = !read_only && whole && can_unmap(&file, size);
    let preferred = u32::try_from(meta.blksize()).unwrap_or(0);
    let mut limits = Limits {
        volatile_cache: true,
        write_zeroes: !read_only,
        unmap,
        unmapped_reads_zero: unmap,
        write_granularity: if preferred.is_power_of_two() { (preferred / block_size).max(1) } else { 1 },
        ..Limits::full(block_size, blocks)
    };
    if read_only {
        limits = limits.because("write_zeroes", "file", "the volume is read-only");
    }
    if !unmap {
        let why = if read_only { "the volume is read-only" } else { "the file cannot have holes" };
        limits = limits.because("unmap", "file", why).because("unmapped_reads_zero", "file", why);
    }
    Ok(FileVolume {
        path: path.to_path_buf(),
        file,
        direct,
        read_only,
        device: !meta.is_file(),
        limits,
        zero_range: AtomicBool::new(whole),
        failed: AtomicBool::new(false),
        stats: VolumeStats::default(),
    })
}

/// Flags of open(2).
pub(super) fn flags(read_only: bool, direct: bool) -> OFlag {
    let mode = if read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    let direct = if direct { OFlag::O_DIRECT } else { OFlag::empty() };
    mode | direct | OFlag::O_CLOEXEC | OFlag::O_NOCTTY
}

/// A new open file description of the very same file, whatever its path names by now.
pub(super) fn again(file: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(open(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), flags, Mode::empty())?)
}

fn find(dir: Option<&Path>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let Some(dir) = dir else { return Ok(open(path, flags, Mode::empty())?) };
    let outside = || invalid(format!("outside {}, where volumes may open files", dir.display()));
    let beneath = if path.is_absolute() { path.strip_prefix(dir).map_err(|_| outside())? } else { path };
    if beneath.components().any(|c| matches!(c, Component::ParentDir)) {
        return Err(outside());
    }
    let root = open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("{}: {e}", dir.display())))?;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&root, beneath, how) {
        Err(nix::Error::EXDEV) => Err(outside()),
        other => Ok(other?),
    }
}

/// Takes the advisory lock (flock(2)) for as long as the file is open.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(ErrorKind::ResourceBusy, "another process or volume has locked the file"))
        }
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// The alignment of direct I/O in blocks of `block_size`; `None` where the file does not do it, or asks more of memory
/// than pool buffers have.
fn direct(file: &File, block_size: u32, read_only: bool) -> Option<usize> {
    let asked = direct_alignment(file.as_fd()).filter(|a| a.offset <= block_size && a.memory <= 4096)?;
    again(file.as_fd(), flags(read_only, true)).ok()?;
    usize::try_from(asked.memory.max(asked.offset)).ok()
}

/// Whether holes can be punched: asked beyond the end of a regular file, where nothing is lost, and of sysfs for a
/// device.
fn can_unmap(file: &File, size: u64) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    if meta.is_file() {
        let Ok(beyond) = i64::try_from(size.next_multiple_of(4096)) else { return false };
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        return fallocate(file, mode, beyond, 4096).is_ok();
    }
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has no queue of its own: its disk's is one directory up.
    let found = ["queue", "../queue"].map(|queue| device.join(queue).join("write_zeroes_max_bytes"));
    let limit = found.iter().find_map(|path| std::fs::read_to_string(path).ok());
    limit.and_then(|text| text.trim().parse().ok()).is_some_and(|bytes: u64| bytes > 0)
}
