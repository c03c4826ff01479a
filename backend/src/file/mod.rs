//! A volume on a regular file or a block device, by io_uring.
//!
//! # Direct or buffered
//! A volume does *all* its I/O past the page cache (`O_DIRECT`), or *all* of it through the cache; it never mixes the
//! two, so there is nothing to keep coherent. Direct is chosen when the file takes it and the volume's blocks are
//! multiples of what it asks of offsets; memory that is not aligned is bounced through a pool buffer, one copy.
//! Buffered is what remains: tmpfs on older kernels, 512-byte blocks on a medium of 4096.
//! Before Linux 6.1 a file does not say what it asks, and is taken to ask for 4096.
//!
//! Through the cache, a read that overlaps a write in flight may see that write by halves, as the cache gives it.
//!
//! # Durability
//! Flush is fdatasync(2), which covers the writes of every shard. The kernel reports a failed write-back once for each
//! open file description, and forgets the data; so each channel has a description of its own, with one fdatasync
//! under way at a time, and a failure is never told to another. It fails the volume for good: what was lost is not
//! known, and a later flush that succeeds would be a lie.
//! FUA is `RWF_DSYNC` on direct writes, and a write with fdatasync after it elsewhere. In a regular file an I/O error of
//! the former may be the one report of a lost write-back, so it fails the volume too; a device has none to report.

mod channel;
mod open;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Channel, Limits, Shard, Volume, VolumeStats};

pub use open::Options;

/// See the module.
#[derive(Debug)]
pub struct FileVolume {
    /// For messages.
    path: PathBuf,
    /// Holds the lock.
    file: File,
    /// Alignment of memory and lengths for direct I/O, in bytes; `None` for buffered.
    direct: Option<usize>,
    read_only: bool,
    /// A block device, and no regular file.
    device: bool,
    limits: Limits,
    /// The file can zero a range without being sent zeroes, as far as is known.
    zero_range: AtomicBool,
    /// A write that had completed is lost.
    failed: AtomicBool,
    stats: VolumeStats,
}

impl FileVolume {
    /// Whether I/O goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether a completed write was lost, so that the volume takes no writes any more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn fail(&self, error: &std::io::Error) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(file = %self.path.display(), %error, "a sync failed: completed writes may be lost");
        }
    }
}

impl Volume for FileVolume {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        let file = open::again(self.file.as_fd(), open::flags(self.read_only, self.is_direct()));
        if let Err(error) = &file {
            tracing::error!(file = %self.path.display(), %error, "cannot open the file once more for a shard");
        }
        Rc::new(channel::FileChannel::new(self, file.ok().map(Arc::new), shard.clone()))
    }
}
