//! Interrupts: MSI-X vectors and the INTx pin, each an event descriptor that the client gave.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use engine::Shard;
use engine::mem::{Buf, Sgl};
use engine::ring::{Completion, Fd, OpId, RingClient, RingOp};

use super::config::MAX_VECTORS;

/// A bit for each vector.
type PendingBits = [u8; MAX_VECTORS as usize / 8];
const NONE_PENDING: PendingBits = [0; MAX_VECTORS as usize / 8];

/// An event descriptor that is signalled through the ring: the write goes with everything else at the end of the turn,
/// and one that a hostile client makes block holds up nobody.
struct Line {
    shard: Shard,
    fd: Fd,
    one: Sgl,
    writing: Cell<Option<OpId>>,
    again: Cell<bool>,
}

impl Line {
    fn signal(self: &Rc<Self>) {
        if self.writing.get().is_some() {
            // It may have been carried out before what this signal announces.
            self.again.set(true);
            return;
        }
        let op =
            RingOp::Write { fd: self.fd.clone(), offset: 0, sgl: self.one.clone(), skip: 0, dsync: false };
        self.writing.set(Some(self.shard.ring().start(op, self.clone(), 0)));
    }
}

impl RingClient for Line {
    fn done(self: Rc<Self>, _: Completion, _: u64) {
        self.writing.set(None);
        if self.again.replace(false) {
            self.signal();
        }
    }
}

/// Whether a descriptor is an eventfd, as far as that can be seen. One that is not does no harm: it is written eight
/// bytes. Its mode is its owner's and stays: the ring waits where a write would.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).map_or(true, |to| to.as_os_str() == "anon_inode:[eventfd]")
}

#[derive(Default)]
struct Intx {
    line: Option<Rc<Line>>,
    /// Signalled and not unmasked since, or masked by the client.
    masked: bool,
    /// What the pin is now.
    asserted: bool,
}

/// The interrupts of one function.
pub(crate) struct Interrupts {
    shard: Shard,
    one: Sgl,
    msix: RefCell<Vec<Option<Rc<Line>>>>,
    /// A bit for each vector: it was raised while it had no descriptor.
    pending: Cell<PendingBits>,
    /// The client set up MSI-X: the pin is not used.
    msix_on: Cell<bool>,
    /// Vectors wait: their messages are writes of memory, which the function may not make.
    held: Cell<bool>,
    intx: RefCell<Intx>,
    /// INTMS: vectors that software masked while it uses the pin.
    pub mask: Cell<u32>,
}

/// A descriptor that is no eventfd.
#[derive(Debug)]
pub(crate) struct NotAnEvent;

impl Interrupts {
    pub fn new(shard: &Shard, vectors: u16) -> Self {
        let one = Buf::zeroed(8).into_sgl(8);
        one.copy_in(0, &1u64.to_ne_bytes());
        Interrupts {
            shard: shard.clone(),
            one,
            msix: RefCell::new(vec![None; usize::from(vectors)]),
            pending: Cell::new(NONE_PENDING),
            msix_on: Cell::new(false),
            held: Cell::new(true),
            intx: RefCell::default(),
            mask: Cell::new(0),
        }
    }

    /// MSI-X vectors.
    pub fn vectors(&self) -> usize {
        self.msix.borrow().len()
    }

    /// Whether completions raise MSI-X vectors.
    pub fn uses_msix(&self) -> bool {
        self.msix_on.get()
    }

    fn line(&self, fd: Option<OwnedFd>) -> Result<Option<Rc<Line>>, NotAnEvent> {
        let Some(fd) = fd else { return Ok(None) };
        if !is_eventfd(&fd) {
            return Err(NotAnEvent);
        }
        Ok(Some(Rc::new(Line {
            shard: self.shard.clone(),
            fd: Arc::new(fd),
            one: self.one.clone(),
            writing: Cell::new(None),
            again: Cell::new(false),
        })))
    }

    /// Vectors from `start` on are signalled by these descriptors; `None` takes one away.
    pub fn set_msix(
        &self,
        start: usize,
        fds: impl Iterator<Item = Option<OwnedFd>>,
    ) -> Result<(), NotAnEvent> {
        let lines = fds.map(|fd| self.line(fd)).collect::<Result<Vec<_>, _>>()?;
        self.msix_on.set(true);
        let mut msix = self.msix.borrow_mut();
        for ((vector, to), line) in msix.iter_mut().enumerate().skip(start).zip(lines) {
            replace(to, line);
            if let Some(line) = to.as_ref().filter(|_| !self.held.get() && self.set_pending(vector, false)) {
                line.signal();
            }
        }
        Ok(())
    }

    /// Takes all vectors away: the pin is used from now on.
    pub fn clear_msix(&self) {
        self.msix_on.set(false);
        self.pending.set(NONE_PENDING);
        self.msix.borrow_mut().iter_mut().for_each(|line| replace(line, None));
    }

    /// The descriptor of the pin; `None` takes it away.
    pub fn set_intx(&self, fd: Option<OwnedFd>) -> Result<(), NotAnEvent> {
        let line = self.line(fd)?;
        let mut intx = self.intx.borrow_mut();
        replace(&mut intx.line, line);
        intx.masked = false;
        Ok(())
    }

    /// Vectors are pending until they are no longer held.
    pub fn hold(&self, held: bool) {
        self.held.set(held);
        if held {
            return;
        }
        for (vector, line) in self.msix.borrow().iter().enumerate() {
            if let Some(line) = line.as_ref().filter(|_| self.set_pending(vector, false)) {
                line.signal();
            }
        }
    }

    /// Signals a vector; one that is held or has no descriptor now is pending.
    pub fn raise(&self, vector: u16) {
        match self.msix.borrow().get(usize::from(vector)) {
            Some(Some(line)) if !self.held.get() => line.signal(),
            Some(_) => drop(self.set_pending(vector.into(), true)),
            None => {}
        }
    }

    /// Changes a vector's pending bit; what it was.
    fn set_pending(&self, vector: usize, pending: bool) -> bool {
        let (at, bit) = (vector / 8, 1 << (vector % 8));
        let mut all = self.pending.get();
        let Some(byte) = all.get_mut(at) else { return false };
        let before = *byte & bit != 0;
        *byte = if pending { *byte | bit } else { *byte & !bit };
        self.pending.set(all);
        before
    }

    /// The pending bits, as they lie in the function's memory.
    pub fn pending(&self) -> PendingBits {
        self.pending.get()
    }

    /// The pin's level. A level that stays up is signalled anew after each unmask.
    pub fn set_level(&self, asserted: bool) {
        let mut intx = self.intx.borrow_mut();
        intx.asserted = asserted;
        if !asserted || intx.masked {
            return;
        }
        if let Some(line) = &intx.line {
            line.signal();
            intx.masked = true;
        }
    }

    /// Signals the pin, whatever its level.
    pub fn pulse_intx(&self) {
        if let Some(line) = &self.intx.borrow().line {
            line.signal();
        }
    }

    /// The client masks or unmasks the pin; after an unmask, tell the level again.
    pub fn mask_intx(&self, masked: bool) {
        self.intx.borrow_mut().masked = masked;
    }

    /// After a reset of the controller: nothing is pending, nothing is masked by INTMS.
    pub fn forget(&self) {
        self.pending.set(NONE_PENDING);
        self.mask.set(0);
    }

    /// Takes everything away.
    pub fn clear(&self) {
        self.clear_msix();
        replace(&mut self.intx.borrow_mut().line, None);
        *self.intx.borrow_mut() = Intx::default();
        self.mask.set(0);
    }
}

/// Puts another line in a line's place. A write of the old one that hangs is taken back, lest its descriptor stay; the
/// new one signals in its stead.
fn replace(to: &mut Option<Rc<Line>>, line: Option<Rc<Line>>) {
    if let Some(old) = std::mem::replace(to, line) {
        let owes = old.again.replace(false) | old.writing.get().is_some();
        if let Some(op) = old.writing.get() {
            old.shard.ring().cancel(op);
        }
        if let Some(new) = to.as_ref().filter(|_| owes) {
            new.signal();
        }
    }
}
