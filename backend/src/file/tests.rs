//! What the conformance kit does not ask of every volume: opening, locking, durability.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use engine::mem::Sgl;
use engine::ring::{Completion, RingClient, RingOp};
use engine::testing::{Collector, bytes, filled};
use engine::{ChannelRef, IoError, IoId, IoResult, Op, Scope, Sim, Volume};

use super::{FileVolume, Options};

const WRITE: Op = Op::Write { fua: false };

fn file(dir: &Path, len: u64) -> PathBuf {
    let path = dir.join("disk");
    fs::File::create(&path).unwrap().set_len(len).unwrap();
    path
}

/// One user of a volume on one shard.
struct User {
    sim: Sim,
    channel: ChannelRef,
    issuer: Rc<Collector>,
}

impl User {
    fn new(volume: &Arc<FileVolume>) -> Self {
        let sim = Sim::new(1).unwrap();
        let volume: Arc<dyn Volume> = volume.clone();
        let channel = sim.on(0, |shard| ChannelRef::open(&volume, shard));
        User { sim, channel, issuer: Collector::new() }
    }

    fn send(&self, op: Op, lba: u64, blocks: u32, sgl: Sgl) -> u64 {
        let tag = self.issuer.count() as u64 + 1000 * u64::from(blocks) + lba;
        self.sim.on(0, |_| self.issuer.submit(&self.channel, tag, op, lba, blocks, sgl));
        tag
    }

    fn ask(&self, op: Op, lba: u64, blocks: u32, sgl: Sgl) -> IoResult {
        let before = self.issuer.count();
        self.send(op, lba, blocks, sgl);
        assert!(self.sim.run_until(|| self.issuer.count() > before));
        self.issuer.results()[before].1
    }
}

fn refused(dir: Option<&Path>, path: &Path, options: Options) -> (ErrorKind, String) {
    let e = FileVolume::open(dir, path, options).unwrap_err();
    assert!(e.to_string().contains(path.to_str().unwrap()), "{e} does not name the file");
    (e.kind(), e.to_string())
}

#[test]
fn a_file_that_cannot_be_a_volume_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), 8191);
    let blocks = |block_size, blocks| Options { block_size, blocks, read_only: false };
    assert_eq!(FileVolume::open(None, &path, blocks(4096, 0)).unwrap().limits().blocks, 1);
    let (kind, why) = refused(None, &path, blocks(4096, 2));
    assert!(
        kind == ErrorKind::InvalidInput && why.contains("8191 bytes, less than 2 blocks of 4096"),
        "{why}"
    );
    assert_eq!(refused(None, &path, blocks(16384, 0)).0, ErrorKind::InvalidInput);
    assert_eq!(refused(None, &path, blocks(1000, 0)).0, ErrorKind::InvalidInput);
    assert_eq!(refused(None, dir.path(), blocks(512, 0)).0, ErrorKind::IsADirectory);
    assert_eq!(refused(None, &dir.path().join("none"), blocks(512, 0)).0, ErrorKind::NotFound);
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refused(None, &fifo, blocks(512, 0)).1.contains("neither"));
}

#[test]
fn one_volume_has_the_file_or_several_that_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), 8192);
    let (write, read) = (Options::default(), Options { read_only: true, ..Options::default() });
    let first = FileVolume::open(None, &path, write).unwrap();
    assert!(refused(None, &path, write).1.contains("locked"));
    assert_eq!(refused(None, &path, read).0, ErrorKind::ResourceBusy);
    drop(first);
    let readers = [(); 2].map(|()| FileVolume::open(None, &path, read).unwrap());
    assert_eq!(refused(None, &path, write).0, ErrorKind::ResourceBusy);

    let user = User::new(&readers[0]);
    let limits = readers[0].limits();
    assert!(
        !limits.write_zeroes && !limits.unmap && limits.reasons.iter().all(|r| r.why.contains("read-only"))
    );
    assert_eq!(user.ask(WRITE, 0, 1, filled(512, 1)), Err(IoError::ReadOnly));
    assert_eq!(user.ask(Op::Flush, 0, 0, Sgl::empty()), Ok(()));
    assert_eq!(user.ask(Op::Read, 0, 1, filled(512, 1)), Ok(()));
}

#[test]
fn nothing_outside_the_directory_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("volumes"), dir.path().join("secret"));
    fs::create_dir_all(inside.join("deep")).unwrap();
    fs::create_dir(&outside).unwrap();
    file(&inside, 4096);
    let secret = file(&outside, 4096);
    symlink(&secret, inside.join("absolute")).unwrap();
    symlink("../secret/disk", inside.join("relative")).unwrap();
    symlink("../../secret", inside.join("deep/up")).unwrap();
    symlink("../disk", inside.join("deep/within")).unwrap();

    let options = Options::default();
    for name in ["absolute", "relative", "deep/up/disk", "../secret/disk", "deep/../../secret/disk"] {
        let (kind, why) = refused(Some(&inside), Path::new(name), options);
        assert!(kind == ErrorKind::InvalidInput && why.contains("outside"), "{why}");
    }
    assert!(refused(Some(&inside), &secret, options).1.contains("outside"));
    for path in [Path::new("disk"), Path::new("deep/within"), &inside.join("disk")] {
        FileVolume::open(Some(&inside), path, options).unwrap();
    }
}

#[test]
fn memory_that_is_not_aligned_is_bounced() {
    let dir = tempfile::tempdir().unwrap();
    let volume = FileVolume::open(None, &file(dir.path(), 65536), Options::default()).unwrap();
    let user = User::new(&volume);
    let odd = filled(1028, 0).slice(4, 1024);
    odd.copy_in(0, &[7; 1000]);
    assert_eq!(user.ask(WRITE, 3, 2, odd.clone()), Ok(()));
    assert_eq!(user.ask(Op::Compare, 3, 2, odd.clone()), Ok(()));
    let back = filled(1031, 9).slice(7, 1024);
    assert_eq!(user.ask(Op::Read, 3, 2, back.clone()), Ok(()));
    assert!(back.same_bytes(&odd));
    assert_eq!(user.ask(Op::Compare, 4, 2, odd), Err(IoError::Miscompare));
    assert_eq!(fs::read(dir.path().join("disk")).unwrap()[1536..2560], bytes(&back));
}

#[test]
fn a_file_cut_short_is_a_read_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), 65536);
    let volume = FileVolume::open(None, &path, Options::default()).unwrap();
    let user = User::new(&volume);
    fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(user.ask(Op::Read, 0, 16, filled(8192, 1)), Err(IoError::ReadFault));
    assert_eq!(user.ask(Op::Read, 0, 8, filled(4096, 1)), Ok(()));
}

/// Tells the channel what the kernel would if write-back had failed.
fn fail_fdatasync(user: &User, volume: &Arc<FileVolume>) {
    user.sim.on(0, |shard| {
        let fd = Arc::new(fs::File::open("/dev/null").unwrap().into());
        let channel =
            Rc::new(super::channel::FileChannel::new(volume.clone(), Some(Arc::clone(&fd)), shard.clone()));
        let failed = Completion { op: RingOp::Fdatasync { fd }, result: Err(nix::errno::Errno::EIO.into()) };
        channel.done(failed, u64::MAX);
    });
}

#[test]
fn a_failed_fdatasync_fails_the_volume_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let volume = FileVolume::open(None, &file(dir.path(), 65536), Options::default()).unwrap();
    let user = User::new(&volume);
    assert_eq!(user.ask(Op::Flush, 0, 0, Sgl::empty()), Ok(()));
    // A flush is under way on this shard when another shard learns of the failure: it fails as well.
    user.send(Op::Flush, 0, 0, Sgl::empty());
    fail_fdatasync(&user, &volume);
    assert!(user.sim.run_until(|| user.issuer.count() == 2) && volume.has_failed());
    assert_eq!(user.issuer.results()[1].1, Err(IoError::Failed));
    assert_eq!(user.ask(WRITE, 0, 1, filled(512, 1)), Err(IoError::Failed));
    assert_eq!(user.ask(Op::Flush, 0, 0, Sgl::empty()), Err(IoError::Failed));
    assert_eq!(user.ask(Op::Read, 0, 1, filled(512, 1)), Ok(()), "what is there can still be saved");
}

#[test]
fn a_flush_that_waits_can_be_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let volume = FileVolume::open(None, &file(dir.path(), 65536), Options::default()).unwrap();
    let user = User::new(&volume);
    let (first, second) = user.sim.on(0, |_| {
        user.issuer.submit(&user.channel, 1, Op::Flush, 0, 0, Sgl::empty());
        user.issuer.submit(&user.channel, 2, Op::Flush, 0, 0, Sgl::empty());
        user.channel.revoke(Scope::Io(IoId { origin: user.issuer.origin(), tag: 2 }));
        (1, 2)
    });
    assert!(user.sim.run_until(|| user.issuer.count() == 2));
    assert_eq!(user.issuer.result(first), Some(Ok(())));
    assert_eq!(user.issuer.result(second), Some(Err(IoError::Aborted)));
}

#[test]
fn a_revoked_write_waits_for_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let volume = FileVolume::open(None, &file(dir.path(), 65536), Options::default()).unwrap();
    let user = User::new(&volume);
    user.send(Op::WriteZeroes { deallocate: false, fua: true }, 0, 8, Sgl::empty());
    user.sim.on(0, |_| user.channel.revoke(Scope::Origin(user.issuer.origin())));
    assert!(user.sim.run_until(|| user.issuer.count() == 1));
    assert_eq!(user.issuer.results()[0].1, Err(IoError::Aborted));
}

#[test]
fn zeroes_are_written_where_the_file_cannot_zero_a_range() {
    let dir = tempfile::tempdir().unwrap();
    let volume = FileVolume::open(None, &file(dir.path(), 2 << 20), Options::default()).unwrap();
    volume.zero_range.store(false, std::sync::atomic::Ordering::Relaxed);
    let user = User::new(&volume);
    assert_eq!(user.ask(WRITE, 0, 4096, filled(2 << 20, 5)), Ok(()));
    let zeroes = Op::WriteZeroes { deallocate: false, fua: true };
    assert_eq!(user.ask(zeroes, 1, 2001, Sgl::empty()), Ok(()));
    let content = fs::read(dir.path().join("disk")).unwrap();
    assert!(content[512..2002 * 512].iter().all(|&b| b == 0));
    assert!(content[..512].iter().chain(&content[2002 * 512..]).all(|&b| b == 5));
}
