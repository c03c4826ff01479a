//! I/O on the file, from one shard.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::mem::{Buf, Sgl};
use engine::ring::{Completion, Fd, RingClient, RingOp};
use engine::{Channel, Io, IoError, IoResult, Op, Scope, Shard};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use slab::Slab;

use super::FileVolume;

/// Zeroes that are written at a time where the file cannot zero a range by itself.
const ZEROES: usize = 256 << 10;
/// Interruptions in a row, without progress, after which an I/O is given up.
const TRIES: u8 = 16;
/// The ring's cookie of fdatasync; others are keys of jobs.
const SYNC: u64 = u64::MAX;

/// What is under way for an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Bytes move between the file and the I/O's memory, or what it is bounced through.
    Transfer,
    /// fallocate(2) over the whole range.
    Allocate(FallocateFlags),
    /// Zeroes are written, piece after piece.
    Zeroes,
}

/// An I/O that the kernel works on.
struct Job {
    io: Io,
    step: Step,
    /// What memory that direct I/O does not take is bounced through.
    bounce: Option<Sgl>,
    /// Bytes of the range that are done.
    at: u64,
    tries: u8,
    /// Goes no further than the operation that is under way.
    revoked: bool,
}

/// Flushes, and writes that need one: all that wait share the next fdatasync, which begins after the one under way.
#[derive(Default)]
struct Syncs {
    waiting: Vec<Io>,
    covered: Vec<Io>,
    tries: u8,
}

pub(super) struct FileChannel {
    volume: Arc<FileVolume>,
    /// Its own open file description; `None` if there was none to be had.
    fd: Option<Fd>,
    shard: Shard,
    jobs: RefCell<Slab<Job>>,
    syncs: RefCell<Syncs>,
    /// The shard will call `kick`.
    dirty: Cell<bool>,
    zeroes: OnceCell<Sgl>,
}

/// What becomes of a job after an operation.
enum Next {
    Go,
    End(IoResult),
}

impl FileChannel {
    pub(super) fn new(volume: Arc<FileVolume>, fd: Option<Fd>, shard: Shard) -> Self {
        FileChannel {
            volume,
            fd,
            shard,
            jobs: RefCell::default(),
            syncs: RefCell::default(),
            dirty: Cell::new(false),
            zeroes: OnceCell::new(),
        }
    }

    /// Why `io` cannot even begin.
    fn refusal(&self, io: &Io) -> Option<IoError> {
        let (volume, op) = (&self.volume, io.op());
        let bytes = u64::from(io.blocks()) * u64::from(volume.limits.block_size);
        if !volume.limits.contains(io.lba(), io.blocks()) || (op.has_data() && io.sgl().len() as u64 != bytes)
        {
            return Some(IoError::OutOfRange);
        }
        if op.modifies() && volume.read_only {
            return Some(IoError::ReadOnly);
        }
        let writes = op.modifies() || op == Op::Flush;
        if self.fd.is_none() || (writes && volume.has_failed()) {
            return Some(IoError::Failed);
        }
        (op == Op::Unmap && !volume.limits.unmap).then_some(IoError::Unsupported)
    }

    fn job(&self, io: Io) -> Job {
        let limits = &self.volume.limits;
        let zero_range = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let step = match io.op() {
            Op::Unmap => Step::Allocate(punch),
            Op::WriteZeroes { deallocate: true, .. } if limits.unmap => Step::Allocate(punch),
            Op::WriteZeroes { .. } if self.volume.zero_range.load(Ordering::Relaxed) => {
                Step::Allocate(zero_range)
            }
            Op::WriteZeroes { .. } => Step::Zeroes,
            _ => Step::Transfer,
        };
        let direct = self.volume.direct;
        let bounced = step == Step::Transfer
            && (io.op() == Op::Compare || direct.is_some_and(|align| !io.sgl().is_aligned(align)));
        let bounce = bounced.then(|| {
            let len = io.sgl().len();
            let memory = Buf::new(len.max(direct.unwrap_or(1))).sgl(0, len);
            if matches!(io.op(), Op::Write { .. }) {
                memory.copy_from(io.sgl());
            }
            memory
        });
        Job { io, step, bounce, at: 0, tries: 0, revoked: false }
    }

    /// Hands the job's next operation to the ring.
    fn go(self: &Rc<Self>, key: usize) {
        let Some(fd) = self.fd.clone() else { return };
        let block_size = u64::from(self.volume.limits.block_size);
        let op = {
            let jobs = self.jobs.borrow();
            let Some(job) = jobs.get(key) else { return };
            let start = job.io.lba() * block_size;
            let len = u64::from(job.io.blocks()) * block_size;
            let (offset, skip) = (start + job.at, job.at as usize);
            match (job.step, job.io.op()) {
                (Step::Transfer, Op::Write { .. }) => {
                    let dsync = self.is_durable(job);
                    RingOp::Write { fd, offset, sgl: job.memory().clone(), skip, dsync }
                }
                (Step::Transfer, _) => RingOp::Read { fd, offset, sgl: job.memory().clone(), skip },
                (Step::Allocate(mode), _) => RingOp::Fallocate { fd, mode: mode.bits(), offset: start, len },
                (Step::Zeroes, _) => {
                    let zeroes = self.zeroes.get_or_init(|| Buf::zeroed(ZEROES).into_sgl(ZEROES));
                    let piece = (len - job.at).min(ZEROES as u64) as usize;
                    RingOp::Write { fd, offset, sgl: zeroes.slice(0, piece), skip: 0, dsync: false }
                }
            }
        };
        self.shard.ring().start(op, self.clone(), key as u64);
    }

    /// Whether the job's operation is a write that the kernel syncs itself.
    fn is_durable(&self, job: &Job) -> bool {
        job.step == Step::Transfer && job.io.op() == Op::Write { fua: true } && self.volume.is_direct()
    }

    fn judge(&self, job: &mut Job, result: io::Result<u32>) -> Next {
        let op = job.io.op();
        let done = match result {
            Ok(bytes) => u64::from(bytes),
            Err(_) if job.revoked => return Next::End(Err(IoError::Aborted)),
            Err(e) if interrupted(&e) && job.tries < TRIES => {
                job.tries += 1;
                return Next::Go;
            }
            Err(e) => {
                if self.is_durable(job) && is(&e, Errno::EIO) && !self.volume.device {
                    self.volume.fail(&e);
                }
                if matches!(job.step, Step::Allocate(_))
                    && matches!(op, Op::WriteZeroes { .. })
                    && is(&e, Errno::EOPNOTSUPP)
                {
                    self.volume.zero_range.store(false, Ordering::Relaxed);
                    job.step = Step::Zeroes;
                    return Next::Go;
                }
                return Next::End(Err(error(&e, op)));
            }
        };
        if matches!(job.step, Step::Allocate(_)) {
            return Next::End(Ok(()));
        }
        let len = u64::from(job.io.blocks()) * u64::from(self.volume.limits.block_size);
        let reached = job.at + done;
        if reached >= len {
            return Next::End(job.finish());
        }
        if job.revoked {
            return Next::End(Err(IoError::Aborted));
        }
        // It stopped short: on from the last place where direct I/O may begin. Nothing at all is the file's end.
        let align = self.volume.direct.unwrap_or(1) as u64;
        let on = reached / align * align;
        job.tries = if on > job.at { 0 } else { job.tries + 1 };
        if done == 0 || job.tries > TRIES {
            return Next::End(Err(fault(op)));
        }
        job.at = on;
        Next::Go
    }

    fn end(self: &Rc<Self>, key: usize, result: IoResult) {
        let Some(Job { io, step, revoked, .. }) = self.jobs.borrow_mut().try_remove(key) else { return };
        let synced = step == Step::Transfer && self.volume.is_direct();
        let fua = matches!(io.op(), Op::Write { fua: true } | Op::WriteZeroes { fua: true, .. });
        if result.is_ok() && fua && !synced {
            return if revoked { io.complete(Err(IoError::Aborted)) } else { self.sync(io) };
        }
        io.complete(result);
    }

    /// Completes `io` when all that the file holds now is on the medium.
    fn sync(self: &Rc<Self>, io: Io) {
        self.syncs.borrow_mut().waiting.push(io);
        if !self.dirty.replace(true) {
            self.shard.dirty(self.clone());
        }
    }

    fn begin_sync(self: &Rc<Self>) {
        let Some(fd) = self.fd.clone() else { return };
        let mut syncs = self.syncs.borrow_mut();
        if syncs.covered.is_empty() && !syncs.waiting.is_empty() {
            syncs.covered = std::mem::take(&mut syncs.waiting);
            self.shard.ring().start(RingOp::Fdatasync { fd }, self.clone(), SYNC);
        }
    }

    fn synced(self: &Rc<Self>, result: io::Result<u32>) {
        let mut ended = std::mem::take(&mut self.syncs.borrow_mut().covered);
        let mut answer = Ok(());
        match result {
            Ok(_) => self.syncs.borrow_mut().tries = 0,
            Err(e) if interrupted(&e) && self.syncs.borrow().tries < TRIES => {
                let mut syncs = self.syncs.borrow_mut();
                syncs.tries += 1;
                syncs.waiting.append(&mut ended);
            }
            Err(e) if is(&e, Errno::ECANCELED) => answer = Err(IoError::Aborted),
            Err(e) => self.volume.fail(&e),
        }
        if self.volume.has_failed() {
            ended.append(&mut self.syncs.borrow_mut().waiting);
            answer = Err(IoError::Failed);
        }
        for io in ended {
            io.complete(answer);
        }
        self.begin_sync();
    }
}

impl Job {
    /// What the kernel reads into or writes from.
    fn memory(&self) -> &Sgl {
        self.bounce.as_ref().unwrap_or(self.io.sgl())
    }

    /// All bytes have moved.
    fn finish(&self) -> IoResult {
        match (self.io.op(), &self.bounce) {
            (Op::Read, Some(_)) if self.revoked => return Err(IoError::Aborted),
            (Op::Read, Some(bounce)) => self.io.sgl().copy_from(bounce),
            (Op::Compare, _) if !self.io.sgl().same_bytes(self.memory()) => return Err(IoError::Miscompare),
            _ => {}
        }
        Ok(())
    }
}

impl Channel for FileChannel {
    fn submit(self: Rc<Self>, io: Io) {
        if let Some(refusal) = self.refusal(&io) {
            return io.complete(Err(refusal));
        }
        if io.op() == Op::Flush {
            return if self.volume.read_only { io.complete(Ok(())) } else { self.sync(io) };
        }
        if io.blocks() == 0 {
            return io.complete(Ok(()));
        }
        let job = self.job(io);
        let key = self.jobs.borrow_mut().insert(job);
        self.go(key);
    }

    /// What the kernel works on ends by itself; what waits for an fdatasync to begin ends now.
    fn revoke(&self, scope: Scope) {
        for (_, job) in self.jobs.borrow_mut().iter_mut() {
            job.revoked |= scope.covers(&job.io);
        }
        let waiting = std::mem::take(&mut self.syncs.borrow_mut().waiting);
        let (revoked, rest): (Vec<Io>, Vec<Io>) = waiting.into_iter().partition(|io| scope.covers(io));
        self.syncs.borrow_mut().waiting = rest;
        for io in revoked {
            io.complete(Err(IoError::Aborted));
        }
    }

    /// One fdatasync for all flushes of a turn.
    fn kick(self: Rc<Self>) {
        self.dirty.set(false);
        self.begin_sync();
    }
}

impl RingClient for FileChannel {
    fn done(self: Rc<Self>, completion: Completion, cookie: u64) {
        let Completion { op, result } = completion;
        // The memory is let go before the I/O completes.
        drop(op);
        if cookie == SYNC {
            return self.synced(result);
        }
        let key = cookie as usize;
        let next = match self.jobs.borrow_mut().get_mut(key) {
            Some(job) => self.judge(job, result),
            None => return,
        };
        match next {
            Next::Go => self.go(key),
            Next::End(result) => self.end(key, result),
        }
    }
}

fn is(e: &io::Error, errno: Errno) -> bool {
    e.raw_os_error() == Some(errno as i32)
}

fn interrupted(e: &io::Error) -> bool {
    is(e, Errno::EINTR) || is(e, Errno::EAGAIN)
}

fn fault(op: Op) -> IoError {
    if op.modifies() { IoError::WriteFault } else { IoError::ReadFault }
}

/// What an error of the kernel means for `op`.
fn error(e: &io::Error, op: Op) -> IoError {
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => IoError::NoSpace,
        Some(Errno::EROFS | Errno::EPERM) => IoError::ReadOnly,
        Some(Errno::EOPNOTSUPP | Errno::ENOSYS) => IoError::Unsupported,
        // What a block device says when a persistent reservation is in the way.
        Some(Errno::EBADE) => IoError::Conflict,
        Some(Errno::ECANCELED) => IoError::Aborted,
        // The I/O's memory has gone from under it.
        Some(Errno::EFAULT) => IoError::Transfer,
        Some(Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM | Errno::ETIMEDOUT) => IoError::Transient,
        _ => fault(op),
    }
}
