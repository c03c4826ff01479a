//! The fault volume's channel on its home shard.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use engine::mem::{Buf, Sgl};
use engine::{Channel, ChannelRef, Io, IoError, IoId, IoResult, Issuer, OnTimer, Op, Request, Scope, Shard};

use super::cache::{Content, Image};
use super::{FaultVolume, lock};
/// Bytes that a flush writes below at a time.
const PUSH: usize = 128 << 10;

/// Cookies: what an I/O that comes back was sent below for. Any other is the key of a read's overlay.
const PASSED: u64 = 0;
const PUSHED: u64 = 1;
const LAST: u64 = 2;
const FIRST_KEY: u64 = 3;

/// One I/O that changes what is below. They go one at a time, so that an old content never lands over a newer one.
struct Job {
    id: IoId,
    revoked: bool,
    /// What a flush has still to write below.
    left: VecDeque<Image>,
    /// What is forgotten when the I/O below has succeeded.
    covered: Vec<Image>,
}

struct FaultChannel {
    me: Weak<Self>,
    volume: Arc<FaultVolume>,
    below: ChannelRef,
    shard: Shard,
    /// Bytes of a block.
    unit: usize,
    /// Blocks that a flush writes below at a time.
    push: usize,
    /// The power cut that the I/O in flight came after.
    epoch: Cell<u64>,
    in_flight: Cell<usize>,
    /// What came after a power cut whose victims are not all back.
    held: RefCell<VecDeque<Io>>,
    keys: Cell<u64>,
    /// What a rule holds back, and the end that it is to have.
    delayed: RefCell<BTreeMap<u64, (Io, Option<IoResult>)>>,
    /// What the cache knew of the blocks that are being read below.
    overlays: RefCell<BTreeMap<u64, Vec<Image>>>,
    job: RefCell<Option<Job>>,
    /// Jobs to come.
    jobs: RefCell<VecDeque<Io>>,
}

pub(super) fn open(volume: Arc<FaultVolume>, shard: &Shard) -> Rc<dyn Channel> {
    let below = ChannelRef::open(&volume.below, shard);
    let limits = volume.below.limits();
    let unit = limits.block_size as usize;
    let most = if limits.max_blocks == 0 { usize::MAX } else { limits.max_blocks as usize };
    Rc::new_cyclic(|me| FaultChannel {
        me: me.clone(),
        below,
        shard: shard.clone(),
        unit,
        push: (PUSH / unit).clamp(1, most),
        epoch: Cell::new(volume.epoch()),
        volume,
        in_flight: Cell::default(),
        held: RefCell::default(),
        keys: Cell::new(FIRST_KEY),
        delayed: RefCell::default(),
        overlays: RefCell::default(),
        job: RefCell::default(),
        jobs: RefCell::default(),
    })
}

impl Channel for FaultChannel {
    fn submit(self: Rc<Self>, io: Io) {
        self.notice_power_cut();
        if self.power_was_cut() {
            return self.held.borrow_mut().push_back(io);
        }
        self.in_flight.set(self.in_flight.get() + 1);
        let verdict = lock(&self.volume.rules).judge(io.request());
        if verdict.delay.is_zero() {
            return self.act(io, verdict.instead);
        }
        let key = self.key();
        self.delayed.borrow_mut().insert(key, (io, verdict.instead));
        self.shard.timer(verdict.delay, self.clone(), key);
    }

    fn revoke(&self, scope: Scope) {
        extract(&self.held, |io| scope.covers(io))
            .into_iter()
            .for_each(|io| io.complete(Err(IoError::Aborted)));
        let (delayed, rest): (BTreeMap<_, _>, _) =
            self.delayed.take().into_iter().partition(|(_, (io, _))| scope.covers(io));
        self.delayed.replace(rest);
        let delayed = delayed.into_values().map(|(io, _)| io);
        for io in delayed.chain(extract(&self.jobs, |io| scope.covers(io))) {
            self.finish(io, Err(IoError::Aborted));
        }
        if let Some(job) = &mut *self.job.borrow_mut() {
            job.revoked |= scope.names(job.id);
        }
        self.below.revoke(scope);
    }
}

impl OnTimer for FaultChannel {
    fn on_timer(self: Rc<Self>, key: u64) {
        self.notice_power_cut();
        let delayed = self.delayed.borrow_mut().remove(&key);
        if let Some((io, instead)) = delayed {
            self.act(io, instead);
        }
    }
}

impl Issuer for FaultChannel {
    fn resume(self: Rc<Self>, mut io: Io, cookie: u64, result: IoResult) {
        let result = if self.power_was_cut() { Err(cut(&io)) } else { result };
        match cookie {
            PASSED => self.finish(io, result),
            PUSHED | LAST => self.job_returned(io, cookie == LAST, result),
            key => {
                let overlay = self.overlays.borrow_mut().remove(&key).unwrap_or_default();
                let below = io.take_below();
                let result = result.and_then(|()| self.read_done(&io, below, &overlay));
                self.finish(io, result);
            }
        }
        self.notice_power_cut();
    }
}

impl FaultChannel {
    fn rc(&self) -> Option<Rc<Self>> {
        self.me.upgrade()
    }

    fn key(&self) -> u64 {
        self.keys.replace(self.keys.get() + 1)
    }

    /// Whether the I/O in flight is from before a power cut.
    fn power_was_cut(&self) -> bool {
        self.epoch.get() != self.volume.epoch()
    }

    /// After a power cut: ends what has not gone below, and when nothing of that time is left, begins anew.
    fn notice_power_cut(&self) {
        if !self.power_was_cut() {
            return;
        }
        let delayed = self.delayed.take().into_values().map(|(io, _)| io);
        for io in delayed.chain(self.jobs.take()) {
            let error = cut(&io);
            self.finish(io, Err(error));
        }
        self.begin_anew();
    }

    fn begin_anew(&self) {
        if self.in_flight.get() > 0 || !self.power_was_cut() {
            return;
        }
        self.epoch.set(self.volume.epoch());
        for io in self.held.take() {
            if let Some(me) = self.rc() {
                me.submit(io);
            }
        }
    }

    fn finish(&self, io: Io, result: IoResult) {
        self.in_flight.set(self.in_flight.get() - 1);
        io.complete(result);
        self.begin_anew();
    }

    fn send(&self, io: Io, cookie: u64, instead: Option<Request>) {
        let Some(me) = self.rc() else { return io.complete(Err(IoError::Aborted)) };
        match instead {
            Some(request) => io.forward_as(&self.below, me, cookie, request),
            None => io.forward(&self.below, me, cookie),
        }
    }

    /// Does what the I/O asks, or ends it as a rule says.
    fn act(&self, io: Io, instead: Option<IoResult>) {
        if let Some(result) = instead {
            // Nothing is read, and what the memory held before is nobody's.
            if result.is_ok() && io.op() == Op::Read {
                io.sgl().zero(0, io.sgl().len());
            }
            return self.finish(io, result);
        }
        if self.volume.cache.is_none() {
            return self.send(io, PASSED, None);
        }
        if io.op() == Op::Flush && self.volume.admit_loss() {
            return self.finish(io, Err(IoError::WriteFault));
        }
        match io.op() {
            Op::Read | Op::Compare => self.read(io),
            Op::Write { fua: false } | Op::WriteZeroes { fua: false, .. } if self.cached(&io) => {
                self.finish(io, Ok(()));
            }
            _ => {
                self.jobs.borrow_mut().push_back(io);
                self.next_job();
            }
        }
    }

    /// Writes into the cache, if there is room.
    fn cached(&self, io: &Io) -> bool {
        let Some(mut cache) = self.volume.cache() else { return false };
        if !cache.has_room(io.blocks()) {
            return false;
        }
        let zeroes: Content = vec![0; self.unit].into();
        for i in 0..io.blocks() {
            let content = if io.op().has_data() {
                let mut bytes = vec![0; self.unit];
                io.sgl().copy_out(i as usize * self.unit, &mut bytes);
                bytes.into()
            } else {
                // A copy: contents are told apart by their address.
                zeroes.to_vec().into()
            };
            cache.write(io.lba() + u64::from(i), content);
        }
        true
    }

    /// Reads below what the cache does not know; a compare does so into a buffer.
    fn read(&self, io: Io) {
        let overlay =
            self.volume.cache().map(|cache| cache.newest(io.lba(), io.blocks())).unwrap_or_default();
        let len = io.blocks() as usize * self.unit;
        let instead = (io.op() == Op::Compare).then(|| {
            let sgl = Buf::new(len).into_sgl(len);
            Request { op: Op::Read, lba: io.lba(), blocks: io.blocks(), sgl }
        });
        if overlay.len() == io.blocks() as usize {
            let result = self.read_done(&io, instead, &overlay);
            return self.finish(io, result);
        }
        let key = self.key();
        self.overlays.borrow_mut().insert(key, overlay);
        self.send(io, key, instead);
    }

    /// Adds to what was read below what the cache knew better. `below` is a compare's buffer.
    fn read_done(&self, io: &Io, below: Option<Request>, overlay: &[Image]) -> IoResult {
        let sgl: &Sgl = below.as_ref().map_or(io.sgl(), |below| &below.sgl);
        for (lba, content) in overlay {
            sgl.copy_in((lba - io.lba()) as usize * self.unit, content);
        }
        if io.op() == Op::Compare && !sgl.same_bytes(io.sgl()) {
            return Err(IoError::Miscompare);
        }
        Ok(())
    }

    /// Starts the next job if none is at work.
    fn next_job(&self) {
        if self.job.borrow().is_some() {
            return;
        }
        let Some(io) = self.jobs.borrow_mut().pop_front() else { return };
        let mut job = Job { id: io.id(), revoked: false, left: VecDeque::new(), covered: Vec::new() };
        if let Some(cache) = self.volume.cache() {
            match io.op() {
                Op::Flush => job.left = cache.all().into(),
                _ => job.covered = cache.newest(io.lba(), io.blocks()),
            }
        }
        self.job.replace(Some(job));
        self.go_on(io);
    }

    /// Writes the next of a flush's blocks below; when there are none left, and for other jobs, sends the I/O itself.
    fn go_on(&self, io: Io) {
        let run = match &mut *self.job.borrow_mut() {
            Some(job) if !job.left.is_empty() => {
                job.covered = run(&mut job.left, self.push);
                job.covered.clone()
            }
            _ => Vec::new(),
        };
        let Some((lba, _)) = run.first() else { return self.send(io, LAST, None) };
        let sgl = Buf::new(run.len() * self.unit).into_sgl(run.len() * self.unit);
        for (i, (_, content)) in run.iter().enumerate() {
            sgl.copy_in(i * self.unit, content);
        }
        let write = Request { op: Op::Write { fua: false }, lba: *lba, blocks: run.len() as u32, sgl };
        self.send(io, PUSHED, Some(write));
    }

    fn job_returned(&self, io: Io, last: bool, mut result: IoResult) {
        let mut job = self.job.borrow_mut();
        if let Some(job) = &mut *job {
            let covered = std::mem::take(&mut job.covered);
            if let (Ok(()), Some(mut cache)) = (result, self.volume.cache()) {
                covered.iter().for_each(|image| cache.pushed(image));
            }
            if job.revoked && !last && result.is_ok() {
                result = Err(IoError::Aborted);
            }
        }
        if result.is_ok() && !last {
            drop(job);
            return self.go_on(io);
        }
        *job = None;
        drop(job);
        self.finish(io, result);
        self.next_job();
    }
}

/// How what is on its way ends when the power goes. An aborted flush may be tried again; one that has lost writes not.
fn cut(io: &Io) -> IoError {
    if io.op() == Op::Flush { IoError::WriteFault } else { IoError::Aborted }
}

/// Takes blocks that follow one another, at most `most`.
fn run(left: &mut VecDeque<Image>, most: usize) -> Vec<Image> {
    let first = left.front().map_or(0, |(lba, _)| *lba);
    let follows = |(i, (lba, _)): &(usize, &Image)| *lba == first + *i as u64;
    let len = left.iter().enumerate().take(most).take_while(follows).count();
    left.drain(..len).collect()
}

fn extract(from: &RefCell<VecDeque<Io>>, taken: impl FnMut(&Io) -> bool) -> VecDeque<Io> {
    let (out, rest) = from.take().into_iter().partition(taken);
    from.replace(rest);
    out
}
