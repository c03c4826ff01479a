//! A volume in memory: nothing of it outlives the process, and it takes room only for what was written, in huge pages
//! where the kernel gives them.
//!
//! A transfer costs little but waiting for memory. So those of a turn gather, and are done at its end: what each begins with
//! is fetched into the caches when it comes, the rest of a block shortly before it is done. A write to a large volume waits
//! for nothing: it goes past the caches.
//!
//! Where one shard alone uses the volume, whoever may borrow what he reads ([`Io::borrows`]) gets the volume's own memory.
//! While any of it is out nothing is written: writes wait, for a turn as a rule, and meanwhile reads are copied, so that
//! they do not wait for ever.
//!
//! All shards share one mapping. So that no block is ever seen half written, whoever touches a stripe of 64 KiB (the
//! largest block there is) holds one of a table of locks while it copies: one uncontended compare-and-swap in most
//! I/Os, and a sleep of one copy's length at worst. Never two stripes at a time, but for the discard of many: it
//! takes the locks in the order of the table, and gives all of a piece back in one call to the kernel.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use engine::mem::{Holder, Lender, PREFETCH, Sgl, Writing};
use engine::{Channel, Io, IoError, IoResult, Limits, OnTimer, Op, Scope, Shard, Volume, VolumeStats};

/// Bytes that one lock covers.
const STRIPE: usize = 64 << 10;
/// Locks in the table; stripes take them in turn.
const LOCKS: usize = 1024;
/// What one turn of a shard discards of a larger range, in bytes: some hundred microseconds' work at most, so that its
/// other work goes on.
const PIECE: usize = 4 << 20;
/// A volume of more bytes is not in the processor's caches, as a rule: fetching lines of it to overwrite them whole, and
/// keeping them, costs a quarter of a write. Where the blocks in use happen to fit, going past them costs a fifth.
const CACHED: usize = 64 << 20;
/// Writes of fewer bytes are not worth going past the caches.
const PAST_CACHES: usize = 4096;
/// So many I/Os before it is done, as far as there are others, the second part of one is fetched.
const AHEAD: usize = 2;

/// A lock on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(RwLock<()>);

/// See the module.
#[derive(Debug)]
pub struct RamVolume {
    lender: Arc<Lender>,
    locks: Box<[Line]>,
    limits: Limits,
    stats: VolumeStats,
}

impl RamVolume {
    /// `blocks` blocks of `block_size` bytes, all zero.
    ///
    /// # Errors
    /// `InvalidInput`: a block size that is no power of two from 512 to 65536, no blocks, or too many. Those of
    /// mmap(2) when the address space has no such room.
    pub fn new(block_size: u32, blocks: u64) -> io::Result<Arc<Self>> {
        let bytes = crate::bytes_of(block_size, blocks)?;
        let lender = Lender::new(usize::try_from(bytes).map_err(io::Error::other)?)?;
        let locks = (0..LOCKS).map(|_| Line::default()).collect();
        let limits = Limits::full(block_size, blocks);
        Ok(Arc::new(RamVolume { lender, locks, limits, stats: VolumeStats::default() }))
    }

    fn lock(&self, stripe: usize) -> &RwLock<()> {
        &self.locks[stripe % LOCKS].0
    }

    /// Calls `f` with each part of `range` that lies in one stripe, while nobody writes it.
    fn reading(&self, range: Range<usize>, mut f: impl FnMut(Range<usize>)) {
        for part in parts(range) {
            let _shared = self.lock(part.start / STRIPE).read().unwrap_or_else(PoisonError::into_inner);
            f(part);
        }
    }

    /// As [`RamVolume::reading`], while nobody else reads or writes it.
    fn writing(&self, range: Range<usize>, mut f: impl FnMut(Range<usize>)) {
        for part in parts(range) {
            let _alone = self.lock(part.start / STRIPE).write().unwrap_or_else(PoisonError::into_inner);
            f(part);
        }
    }

    /// Zeroes `range`, at most [`PIECE`] bytes, and gives its whole pages back.
    fn discard(&self, range: Range<usize>, to: &Writing<'_>) {
        if range.len() <= STRIPE {
            return self.writing(range, |part| to.discard(part.start, part.len()));
        }
        let touched = range.start / STRIPE..=(range.end - 1) / STRIPE;
        let mut locks: Vec<usize> = touched.map(|stripe| stripe % LOCKS).collect();
        locks.sort_unstable();
        locks.dedup();
        let take = |lock: &usize| self.locks[*lock].0.write().unwrap_or_else(PoisonError::into_inner);
        let _alone: Vec<_> = locks.iter().map(take).collect();
        to.discard(range.start, range.len());
    }
}

/// `range`, cut at the ends of stripes.
fn parts(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min((start / STRIPE + 1) * STRIPE);
        (start < at).then_some(start..at)
    })
}

impl Volume for RamVolume {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        Rc::new(RamChannel {
            bytes: self.lender.hold(),
            volume: self,
            shard: shard.clone(),
            reads: RefCell::default(),
            writes: RefCell::default(),
            noted: Cell::new(false),
            discards: RefCell::default(),
            armed: Cell::new(false),
        })
    }
}

/// A discard too large for one turn.
struct Discard {
    io: Io,
    left: Range<usize>,
}

type Batch = Vec<(Io, Range<usize>)>;

struct RamChannel {
    volume: Arc<RamVolume>,
    bytes: Holder,
    shard: Shard,
    /// What is to be done at the turn's end, and where its bytes are: what only looks at the blocks, and what changes them.
    reads: RefCell<Batch>,
    writes: RefCell<Batch>,
    /// The shard has been told of it.
    noted: Cell<bool>,
    discards: RefCell<VecDeque<Discard>>,
    /// A timer will go on with them.
    armed: Cell<bool>,
}

impl RamChannel {
    /// The bytes of the volume that `io` names; `None` beyond its end.
    fn range(&self, io: &Io) -> Option<Range<usize>> {
        let size = self.volume.limits.block_size as usize;
        let start = usize::try_from(io.lba()).ok()?.checked_mul(size)?;
        let end = start.checked_add((io.blocks() as usize).checked_mul(size)?)?;
        let fits = end <= self.bytes.len() && (!io.op().has_data() || io.sgl().len() == end - start);
        fits.then_some(start..end)
    }

    /// Does a read or a compare.
    fn look(&self, io: &Io, range: Range<usize>) -> IoResult {
        let (sgl, start, mut same) = (io.sgl(), range.start, true);
        self.volume.reading(range, |part| match io.op() {
            Op::Compare => same = same && self.bytes.same(part.start, part.len(), sgl, part.start - start),
            _ => self.bytes.read(part.start, part.len(), sgl, part.start - start),
        });
        if same { Ok(()) } else { Err(IoError::Miscompare) }
    }

    /// Whether a write of `len` bytes goes past the caches.
    fn passes_caches(&self, len: usize) -> bool {
        self.bytes.len() > CACHED && len >= PAST_CACHES
    }

    /// Has the processor fetch the blocks of an I/O from byte `skip` on, as many as it takes at once, unless they are written
    /// past the caches.
    fn fetch(&self, (io, range): &(Io, Range<usize>), skip: usize) {
        let past = io.op().modifies() && self.passes_caches(range.len());
        if io.op().has_data() && range.len() > skip && !past {
            self.bytes.prefetch(range.start + skip, range.len() - skip);
        }
    }

    /// Empties `batch` into `done`. What was not fetched when an I/O came is fetched just in time; what there is beyond
    /// that, the processor fetches by itself.
    fn each(&self, batch: &mut Batch, mut done: impl FnMut(Io, Range<usize>)) {
        let mut batch = batch.drain(..);
        let fetch = |next: &(Io, Range<usize>)| self.fetch(next, PREFETCH);
        batch.as_slice().iter().take(AHEAD).for_each(fetch);
        while let Some((io, range)) = batch.next() {
            batch.as_slice().get(AHEAD - 1).into_iter().for_each(fetch);
            done(io, range);
        }
    }

    /// Does what changes blocks.
    fn change(&self, io: &Io, range: Range<usize>, to: &Writing<'_>) {
        let (sgl, start) = (io.sgl(), range.start);
        match io.op() {
            Op::Write { .. } if self.passes_caches(range.len()) => self.volume.writing(range, |part| {
                to.copy_past_caches(part.start, part.len(), sgl, part.start - start);
            }),
            Op::Write { .. } => self.volume.writing(range, |part| {
                to.copy(part.start, part.len(), sgl, part.start - start);
            }),
            _ if range.is_empty() => {}
            _ => self.volume.discard(range, to),
        }
    }

    /// All of the memory, lent, if it may be lent now: nothing that changes it waits.
    fn loan(&self) -> Option<Sgl> {
        if !self.writes.borrow().is_empty() || !self.discards.borrow().is_empty() {
            return None;
        }
        self.bytes.lend(0, self.bytes.len())
    }

    fn note(self: Rc<Self>) {
        if !self.noted.replace(true) {
            self.shard.clone().dirty(self);
        }
    }

    fn arm(self: &Rc<Self>) {
        if !self.discards.borrow().is_empty() && !self.armed.replace(true) {
            // The shortest delay there is: the next turn.
            self.shard.timer(Duration::from_nanos(1), self.clone(), 0);
        }
    }
}

impl Channel for RamChannel {
    fn submit(self: Rc<Self>, io: Io) {
        let Some(range) = self.range(&io) else { return io.complete(Err(IoError::OutOfRange)) };
        let batch = match io.op() {
            Op::Flush => return io.complete(Ok(())),
            Op::WriteZeroes { .. } | Op::Unmap if range.len() > PIECE => {
                self.discards.borrow_mut().push_back(Discard { io, left: range });
                return self.arm();
            }
            op if op.modifies() => &self.writes,
            _ => &self.reads,
        };
        let one = (io, range);
        self.fetch(&one, 0);
        batch.borrow_mut().push(one);
        self.note();
    }

    fn revoke(&self, scope: Scope) {
        let mut revoked = Vec::new();
        for batch in [&self.reads, &self.writes] {
            revoked.extend(batch.borrow_mut().extract_if(.., |(io, _)| scope.covers(io)).map(|(io, _)| io));
        }
        let (discards, rest): (VecDeque<_>, _) =
            self.discards.take().into_iter().partition(|d| scope.covers(&d.io));
        self.discards.replace(rest);
        for io in revoked.into_iter().chain(discards.into_iter().map(|d| d.io)) {
            io.complete(Err(IoError::Aborted));
        }
    }

    fn kick(self: Rc<Self>) {
        self.noted.set(false);
        // Those that write first: what is lent after them comes back before the next.
        if !self.writes.borrow().is_empty()
            && let Some(to) = self.bytes.write()
        {
            let mut writes = self.writes.take();
            self.each(&mut writes, |io, range| {
                self.change(&io, range, &to);
                io.complete(Ok(()));
            });
            self.writes.replace(writes);
        }
        let mut reads = self.reads.take();
        let mut loan = None;
        self.each(&mut reads, |mut io, range| {
            if io.borrows()
                && let Some(all) = loan.get_or_insert_with(|| self.loan())
            {
                io.request_mut().sgl = all.slice(range.start, range.len());
                return io.complete(Ok(()));
            }
            let result = self.look(&io, range);
            io.complete(result);
        });
        self.reads.replace(reads);
        if !self.writes.borrow().is_empty() {
            self.note();
        }
    }
}

impl OnTimer for RamChannel {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.armed.set(false);
        let Some(to) = self.bytes.write() else { return self.arm() };
        let Some(mut first) = self.discards.borrow_mut().pop_front() else { return };
        let end = first.left.end.min(first.left.start + PIECE);
        self.volume.discard(first.left.start..end, &to);
        first.left.start = end;
        if first.left.is_empty() {
            first.io.complete(Ok(()));
        } else {
            self.discards.borrow_mut().push_back(first);
        }
        self.arm();
    }
}

#[cfg(test)]
mod tests {
    use engine::testing::{Collector, bytes, filled};
    use engine::{ChannelRef, Config, IoId, Issuer, Request, Shards, Sim};

    use super::*;

    #[test]
    fn ranges_are_cut_at_stripes() {
        let cut = |range| parts(range).collect::<Vec<_>>();
        assert_eq!(cut(5..STRIPE + 1), [5..STRIPE, STRIPE..STRIPE + 1]);
        assert_eq!(cut(STRIPE..2 * STRIPE), [STRIPE..2 * STRIPE; 1]);
        assert!(cut(7..7).is_empty());
    }

    #[test]
    fn a_large_discard_leaves_room_for_others_and_can_be_revoked() {
        const UNMAP: Op = Op::Unmap;
        let blocks = 4 * (PIECE / 4096) as u32;
        let volume: Arc<dyn Volume> = RamVolume::new(4096, u64::from(blocks)).unwrap();
        let sim = Sim::new(1).unwrap();
        let channel = sim.on(0, |shard| ChannelRef::open(&volume, shard));
        let c = Collector::new();
        let last = u64::from(blocks) - 1;
        let write = |tag, lba| c.submit(&channel, tag, Op::Write { fua: false }, lba, 1, filled(4096, 3));
        sim.on(0, |_| [(1, 0), (2, last)].map(|(tag, lba)| write(tag, lba)));
        assert!(sim.run_until(|| c.count() == 2));

        sim.on(0, |_| c.submit(&channel, 3, UNMAP, 0, blocks, Sgl::empty()));
        sim.on(0, |_| c.submit(&channel, 4, Op::Flush, 0, 0, Sgl::empty()));
        assert!(sim.run_until(|| c.count() == 4));
        assert_eq!(c.results()[2..], [(4, Ok(())), (3, Ok(()))], "the flush did not wait for the discard");
        let back = [(5, 0), (6, last)].map(|(tag, lba)| {
            let memory = filled(4096, 9);
            sim.on(0, |_| c.submit(&channel, tag, Op::Read, lba, 1, memory.clone()));
            memory
        });
        assert!(sim.run_until(|| c.count() == 6));
        assert!(back.iter().all(|memory| bytes(memory) == [0; 4096]));

        sim.on(0, |_| c.submit(&channel, 7, UNMAP, 0, blocks, Sgl::empty()));
        sim.on(0, |_| channel.revoke(Scope::Io(IoId { origin: c.origin(), tag: 7 })));
        assert!(sim.run_until(|| c.count() == 7));
        assert_eq!(c.result(7), Some(Err(IoError::Aborted)));
    }

    /// Writes and reads one block over and over, and says whether it was ever half of one write and half of another.
    struct Hammer {
        channel: ChannelRef,
        memory: Sgl,
        patterns: [Sgl; 2],
        left: Cell<u64>,
        whole: Cell<bool>,
        tell: std::sync::mpsc::Sender<bool>,
    }

    impl Hammer {
        fn go(self: Rc<Self>, mut io: Io) {
            let left = self.left.replace(self.left.get() - 1);
            let op = if left.is_multiple_of(2) { Op::Write { fua: false } } else { Op::Read };
            if op != Op::Read {
                self.memory.copy_from(&self.patterns[left as usize / 2 % 2]);
            }
            *io.request_mut() = Request { op, lba: 0, blocks: 1, sgl: self.memory.clone() };
            io.forward(&self.channel.clone(), self, 0);
        }
    }

    impl Issuer for Hammer {
        fn resume(self: Rc<Self>, io: Io, _cookie: u64, _result: IoResult) {
            let [first, middle, last] = [0, 32768, 65535].map(|at| bytes(&self.memory.slice(at, 1)));
            self.whole.set(self.whole.get() && first == middle && middle == last);
            if self.left.get() > 0 { self.go(io) } else { self.tell.send(self.whole.get()).unwrap() }
        }
    }

    #[test]
    fn shards_never_see_half_a_write_of_each_other() {
        [1, CACHED as u64 / 65536 + 1].into_iter().for_each(hammered);
    }

    fn hammered(blocks: u64) {
        let volume: Arc<dyn Volume> = RamVolume::new(65536, blocks).unwrap();
        let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        for handle in shards.handles() {
            let (volume, tell) = (volume.clone(), tell.clone());
            handle.run(move |shard| {
                let (channel, memory) = (ChannelRef::open(&volume, shard), filled(65536, 0));
                let (left, whole) = (Cell::new(20_000), Cell::new(true));
                let patterns = [1, 2].map(|byte| filled(65536, byte));
                Rc::new(Hammer { channel, memory, patterns, left, whole, tell }).go(Io::new(IoId::default()));
            });
        }
        assert!(told.iter().take(2).all(|whole| whole));
        shards.stop();
    }

    /// Keeps what its reads come back with.
    #[derive(Default)]
    struct Borrower(RefCell<Vec<Sgl>>);

    impl Borrower {
        fn read(self: &Rc<Self>, channel: &ChannelRef, lba: u64) {
            let mut io = Io::new(IoId::default());
            *io.request_mut() = Request { op: Op::Read, lba, blocks: 1, sgl: filled(4096, 0) };
            io.forward_to_borrow(channel, self.clone(), 0);
        }
    }

    impl Issuer for Borrower {
        fn resume(self: Rc<Self>, mut io: Io, _cookie: u64, result: IoResult) {
            result.unwrap();
            self.0.borrow_mut().push(std::mem::take(&mut io.request_mut().sgl));
        }
    }

    #[test]
    fn while_something_is_lent_nothing_is_written() {
        let blocks = 2 * (PIECE / 4096) as u32;
        let volume: Arc<dyn Volume> = RamVolume::new(4096, u64::from(blocks)).unwrap();
        let sim = Sim::new(2).unwrap();
        let channel = sim.on(0, |shard| ChannelRef::open(&volume, shard));
        let (c, borrower) = (Collector::new(), Rc::new(Borrower::default()));
        let read = |lba| {
            let had = borrower.0.borrow().len();
            sim.on(0, |_| borrower.read(&channel, lba));
            assert!(sim.run_until(|| borrower.0.borrow().len() > had));
            borrower.0.borrow_mut().pop().unwrap()
        };
        let idle = |turns: u32| {
            let mut left = turns;
            sim.run_until(|| {
                left -= 1;
                left == 0
            });
        };
        sim.on(0, |_| c.submit(&channel, 1, Op::Write { fua: false }, 0, 1, filled(4096, 7)));
        assert!(sim.run_until(|| c.count() == 1));
        let lent = read(0);
        assert!(lent.is_lent() && bytes(&lent) == [7; 4096]);

        sim.on(0, |_| c.submit(&channel, 2, Op::Write { fua: false }, 0, 1, filled(4096, 9)));
        idle(5);
        let copied = read(0);
        assert!(!copied.is_lent(), "more loans would make the write wait longer");
        assert!(c.count() == 1 && bytes(&copied) == [7; 4096] && bytes(&lent) == [7; 4096]);
        drop(lent);
        assert!(sim.run_until(|| c.count() == 2));

        let lent = read(0);
        sim.on(0, |_| c.submit(&channel, 3, Op::Unmap, 0, blocks, Sgl::empty()));
        idle(5);
        assert!(lent.is_lent() && c.count() == 2 && bytes(&lent) == [9; 4096]);
        assert!(!read(1).is_lent());
        drop(lent);
        assert!(sim.run_until(|| c.count() == 3));

        let other = sim.on(1, |shard| ChannelRef::open(&volume, shard));
        assert!(!read(0).is_lent(), "another shard would have to wait");
        sim.on(1, |_| drop(other));
        assert!(read(0).is_lent());
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let volume: Arc<dyn Volume> = RamVolume::new(512, 8).unwrap();
        let sim = Sim::new(1).unwrap();
        let channel = sim.on(0, |shard| ChannelRef::open(&volume, shard));
        let c = Collector::new();
        for (tag, lba) in [(1, 8), (2, u64::MAX)] {
            sim.on(0, |_| c.submit(&channel, tag, Op::Read, lba, 1, filled(512, 0)));
        }
        assert!(sim.run_until(|| c.count() == 2));
        assert!(c.results().iter().all(|(_, result)| *result == Err(IoError::OutOfRange)));
    }
}
