//! One I/O on its way through a stack of volumes.

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use crate::mem::{RegionId, Sgl};
use crate::shard;
use crate::volume::{ChannelRef, Issuer};

/// What an I/O asks of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// Blocks into memory.
    #[default]
    Read,
    /// Memory onto blocks.
    Write {
        /// Completes only when the medium holds the blocks.
        fua: bool,
    },
    /// Every write that completed before this one was submitted is on the medium when it completes.
    Flush,
    /// The blocks read as zeroes afterwards.
    WriteZeroes {
        /// The volume may give their room back.
        deallocate: bool,
        /// Completes only when the medium holds the zeroes.
        fua: bool,
    },
    /// The host no longer needs the blocks; what they read as afterwards is in the volume's limits.
    Unmap,
    /// Succeeds if memory equals the blocks, else [`IoError::Miscompare`].
    Compare,
}

impl Op {
    /// Whether completing it may change what the blocks read as.
    pub fn modifies(self) -> bool {
        matches!(self, Op::Write { .. } | Op::WriteZeroes { .. } | Op::Unmap)
    }

    /// Whether it carries data of its own: then the list is as long as the blocks.
    pub fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write { .. } | Op::Compare)
    }
}

/// Why an I/O failed. Small, so that it travels by value; what a peer said in more words is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// Beyond the volume's last block, or larger than it takes.
    #[error("outside the volume's limits")]
    OutOfRange,
    /// The medium cannot give the blocks back.
    #[error("unrecovered read error")]
    ReadFault,
    /// The medium did not take the blocks.
    #[error("write fault")]
    WriteFault,
    /// A compare found different bytes.
    #[error("compare failure")]
    Miscompare,
    /// The volume does not do this.
    #[error("not supported by the volume")]
    Unsupported,
    /// Taken back by its issuer, or lost with a part of the stack; it may or may not have happened.
    #[error("aborted")]
    Aborted,
    /// Nothing is wrong with the request, and it may succeed when it is sent again.
    #[error("transient failure")]
    Transient,
    /// The data was damaged on its way; it may succeed when it is sent again.
    #[error("data transfer error")]
    Transfer,
    /// No room left.
    #[error("capacity exceeded")]
    NoSpace,
    /// The volume takes no writes.
    #[error("write protected")]
    ReadOnly,
    /// Another host holds a reservation.
    #[error("reservation conflict")]
    Conflict,
    /// The volume has failed for good: a lost flush, a vanished namespace.
    #[error("volume failed")]
    Failed,
}

/// What an I/O came back with.
pub type IoResult = Result<(), IoError>;

/// Who issues I/O and may take it all back: a queue, a connection, a controller. Never used twice in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin(u64);

impl Origin {
    /// A new one.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Origin(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Names an I/O to its issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IoId {
    /// Who issued it.
    pub origin: Origin,
    /// Which of the issuer's it is.
    pub tag: u64,
}

/// Which I/Os are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Io(IoId),
    /// Everything its origin issued.
    Origin(Origin),
    /// Everything that holds memory of a guest region.
    Region(RegionId),
    /// Everything: the channel closes.
    All,
}

impl Scope {
    /// Whether `io` is one of them.
    pub fn covers(&self, io: &Io) -> bool {
        match *self {
            Scope::Region(region) => io.touches(region),
            _ => self.names(io.0.id),
        }
    }

    /// Whether the I/O of this name is one of them, as far as its name tells: for a layer that has sent it below, and
    /// that gives it no memory of the guest's.
    pub fn names(&self, id: IoId) -> bool {
        match *self {
            Scope::Io(one) => one == id,
            Scope::Origin(origin) => origin == id.origin,
            Scope::Region(_) => false,
            Scope::All => true,
        }
    }
}

/// An operation, its range and its memory.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What is asked.
    pub op: Op,
    /// First block, in the volume's block size.
    pub lba: u64,
    /// Blocks; zero for a flush.
    pub blocks: u32,
    /// The memory; empty unless [`Op::has_data`].
    pub sgl: Sgl,
}

/// One layer that waits for the I/O to come back.
struct Frame {
    issuer: Rc<dyn Issuer>,
    cookie: u64,
    /// The channel that the layer called: whose statistics the answer counts in.
    called: ChannelRef,
    started: u64,
    /// It asked something else below, and its own request waits in [`Body::own`].
    instead: bool,
}

#[derive(Default)]
struct Body {
    id: IoId,
    request: Request,
    below: Option<Request>,
    frames: SmallVec<[Frame; 4]>,
    /// Of the frames that say so, in their order. Few do: so a frame is small.
    own: SmallVec<[Request; 1]>,
    /// Of the read that it is now: see [`Io::forward_to_borrow`].
    borrows: bool,
}

/// An I/O: made by a frontend, owned by whichever layer has it at the moment, and given back exactly once by
/// [`Io::complete`]. An issuer keeps it and uses it again: no allocation per I/O.
///
/// If a layer drops it instead, it comes back to its issuer as [`IoError::Failed`].
pub struct Io(Box<Body>);

impl Io {
    /// A new I/O that nobody waits for.
    pub fn new(id: IoId) -> Self {
        let mut io = Io(Box::default());
        io.0.id = id;
        io
    }

    /// Names the I/O anew; only while it is its issuer's.
    pub fn set_id(&mut self, id: IoId) {
        self.0.id = id;
    }

    /// Its name.
    pub fn id(&self) -> IoId {
        self.0.id
    }

    /// What is asked of the layer that has it.
    pub fn request(&self) -> &Request {
        &self.0.request
    }

    /// As [`Io::request`], to be filled by its issuer, or to let go of its memory before completing it.
    pub fn request_mut(&mut self) -> &mut Request {
        &mut self.0.request
    }

    /// The operation.
    pub fn op(&self) -> Op {
        self.0.request.op
    }

    /// First block.
    pub fn lba(&self) -> u64 {
        self.0.request.lba
    }

    /// Blocks.
    pub fn blocks(&self) -> u32 {
        self.0.request.blocks
    }

    /// The memory.
    pub fn sgl(&self) -> &Sgl {
        &self.0.request.sgl
    }

    /// Passes the I/O down as it is; it comes back by `issuer.resume(io, cookie, …)`.
    pub fn forward(mut self, to: &ChannelRef, issuer: Rc<dyn Issuer>, cookie: u64) {
        self.0.borrows = false;
        self.push(to, issuer, cookie, false);
    }

    /// As [`Io::forward`], for a read whose issuer does without a copy: it may come back with memory of the layer below in
    /// place of its own ([`Sgl::is_lent`]). Nothing is written below until that is given back: so by the end of the turn in
    /// which it comes back the issuer has handed it to the kernel, which takes from it at once, or has copied it.
    pub fn forward_to_borrow(mut self, to: &ChannelRef, issuer: Rc<dyn Issuer>, cookie: u64) {
        self.0.borrows = self.op() == Op::Read;
        self.push(to, issuer, cookie, false);
    }

    /// As [`Io::forward`] or [`Io::forward_to_borrow`], as the layer above did: for one that looks at no data.
    pub fn pass(self, to: &ChannelRef, issuer: Rc<dyn Issuer>, cookie: u64) {
        self.push(to, issuer, cookie, false);
    }

    /// Whether a read may come back with memory that is lent.
    pub fn borrows(&self) -> bool {
        self.0.borrows
    }

    /// Asks `request` of the layer below in the I/O's place. When it comes back the I/O's own request stands again,
    /// and [`Io::take_below`] gives `request` with its memory.
    pub fn forward_as(mut self, to: &ChannelRef, issuer: Rc<dyn Issuer>, cookie: u64, request: Request) {
        let own = std::mem::replace(&mut self.0.request, request);
        self.0.own.push(own);
        self.0.borrows = false;
        self.push(to, issuer, cookie, true);
    }

    fn push(mut self, to: &ChannelRef, issuer: Rc<dyn Issuer>, cookie: u64, instead: bool) {
        let started = shard::now();
        let frame = || Frame { issuer, cookie, called: to.clone(), started, instead };
        let frames = &mut self.0.frames;
        // Where there is room for certain the frame is built in its place, and not copied there: the processor would wait
        // for each of its parts to be stored.
        match frames.len() < frames.capacity() {
            true => frames.push(frame()),
            false => push_cold(frames, frame()),
        }
        to.channel().submit(self);
    }

    /// What was asked of the layer below, after it came back; once.
    pub fn take_below(&mut self) -> Option<Request> {
        self.0.below.take()
    }

    /// Ends the I/O for the layer that has it. Its issuer resumes later in this turn of the shard, never inside.
    pub fn complete(self, result: IoResult) {
        if !self.0.frames.is_empty() {
            shard::completed(self, result);
        }
    }

    /// Drops the I/O with its memory and tells nobody.
    pub(crate) fn abandon(mut self) {
        self.0.frames.clear();
    }

    /// Whether any of the memory, here or of a layer above, belongs to a guest region.
    pub fn touches(&self, region: RegionId) -> bool {
        let in_request = |r: &Request| r.sgl.touches(region);
        in_request(&self.0.request) || self.0.own.iter().any(in_request)
    }

    /// The guest regions of which that is true.
    pub(crate) fn regions(&self) -> SmallVec<[RegionId; 2]> {
        let requests = self.0.own.iter().chain([&self.0.request]);
        requests.flat_map(|r| r.sgl.regions()).map(|region| region.id()).collect()
    }

    /// Lets the layer above have it: the second half of [`Io::complete`], called by the shard.
    pub(crate) fn deliver(mut self, result: IoResult) {
        let Some(frame) = self.0.frames.pop() else { return };
        let waited = shard::now().saturating_sub(frame.started);
        frame.called.stats().record(&self.0.request, frame.called.block_size(), waited, &result);
        if frame.instead {
            let own = self.0.own.pop();
            self.0.below = own.map(|own| std::mem::replace(&mut self.0.request, own));
        } else if self.0.below.is_some() {
            self.0.below = None;
        }
        frame.issuer.resume(self, frame.cookie, result);
    }
}

#[cold]
fn push_cold(frames: &mut SmallVec<[Frame; 4]>, frame: Frame) {
    frames.push(frame);
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        // A layer lost it. Its issuer must hear of it all the same.
        let lost = std::mem::take(self);
        shard::completed(Io(Box::new(lost)), Err(IoError::Failed));
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.request();
        write!(f, "Io({:?} {:?} lba {} blocks {})", self.0.id, r.op, r.lba, r.blocks)
    }
}
