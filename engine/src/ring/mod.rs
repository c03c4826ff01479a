#![allow(unsafe_code)] // the kernel shares memory with the ring: each block says why it is sound
//! The shard's io_uring. What a kernel operation uses moves into a slot of the ring and comes back with its
//! completion; nothing can be freed or moved under the kernel.

mod file;
mod op;
mod segment;
mod setup;
mod socket;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;

pub use file::{DirectAlignment, direct_alignment};
pub use op::{Completion, Fd, RingOp};
pub use segment::Segment;
pub use setup::MINIMUM_KERNEL;
pub(crate) use setup::of_fitting_size;
pub use socket::{MAX_FDS, receive_with_fds, send_lists, send_with_fds, widen_window};

use op::Slot;

/// The user data of what the ring itself asks for.
const BELL: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
const TIMEOUT: u64 = u64::MAX - 2;

/// Who is told of an operation's end.
pub trait RingClient {
    /// The operation ended: its result as the kernel gave it, and what had moved into the ring.
    fn done(self: Rc<Self>, completion: Completion, cookie: u64);
}

/// Names an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId {
    key: usize,
    seq: u64,
}

/// One io_uring and its slots.
pub struct Ring {
    uring: RefCell<IoUring>,
    slots: RefCell<Slab<Box<Slot>>>,
    #[expect(clippy::vec_box, reason = "a slot's address is its own for ever")]
    spare: RefCell<Vec<Box<Slot>>>,
    /// Slots whose entry did not fit yet.
    waiting: RefCell<VecDeque<usize>>,
    /// Receives of this turn: they follow what it sends, so that what a peer on this very shard is sent has come when it is asked
    /// for, and nobody waits for it.
    receives: RefCell<Vec<usize>>,
    /// Shared with futures, which cancel what they no longer wait for.
    cancels: Rc<RefCell<Vec<OpId>>>,
    in_flight: Cell<usize>,
    bell: RefCell<Option<Fd>>,
    /// The kernel watches the bell.
    armed: Cell<bool>,
    seq: Cell<u64>,
    reaped: RefCell<Vec<(u64, i32)>>,
}

impl Ring {
    /// A new ring on this thread with so many submission entries.
    ///
    /// # Errors
    /// Where the kernel refuses io_uring, the error says what refused it and what to change; `OutOfMemory` if fewer
    /// entries may succeed.
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = setup::build(entries)?;
        Ok(Ring {
            uring: RefCell::new(uring),
            slots: RefCell::default(),
            spare: RefCell::default(),
            waiting: RefCell::default(),
            receives: RefCell::default(),
            cancels: Rc::default(),
            in_flight: Cell::new(0),
            bell: RefCell::default(),
            armed: Cell::new(false),
            seq: Cell::new(0),
            reaped: RefCell::default(),
        })
    }

    /// Starts `op`; `client` is told of its end with `cookie`, in a later turn. It reaches the kernel at the end of
    /// this turn.
    pub fn start(&self, op: RingOp, client: Rc<dyn RingClient>, cookie: u64) -> OpId {
        let mut slot = self.spare.borrow_mut().pop().unwrap_or_default();
        let seq = self.seq.get() + 1;
        self.seq.set(seq);
        let receives = matches!(op, RingOp::Receive { .. } | RingOp::Fill { .. });
        slot.fill(op, client, cookie, seq);
        let key = self.slots.borrow_mut().insert(slot);
        self.in_flight.set(self.in_flight.get() + 1);
        if receives {
            self.receives.borrow_mut().push(key);
        } else {
            self.push_or_wait(key);
        }
        OpId { key, seq }
    }

    fn push_or_wait(&self, key: usize) {
        if !self.waiting.borrow().is_empty() || !self.push(key) {
            self.waiting.borrow_mut().push_back(key);
        }
    }

    fn push_receives(&self) {
        let mut receives = self.receives.take();
        receives.drain(..).for_each(|key| self.push_or_wait(key));
        self.receives.replace(receives);
    }

    /// As [`Ring::start`], as a future; dropped before its end it cancels the operation.
    pub fn run(&self, op: RingOp) -> impl Future<Output = Completion> + use<> {
        let waiter = Rc::new(op::Waiter::default());
        let id = self.start(op, waiter.clone(), 0);
        op::Wait { waiter, id, cancels: self.cancels.clone() }
    }

    /// Asks the kernel to end an operation early; its client hears of its end as always (ECANCELED, or a short
    /// result, or its ordinary end).
    pub fn cancel(&self, id: OpId) {
        self.cancels.borrow_mut().push(id);
    }

    /// Operations that the kernel has or will have.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    fn push(&self, key: usize) -> bool {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else { return true };
        let entry = slot.entry().user_data(key as u64);
        self.push_entry(&entry)
    }

    fn push_entry(&self, entry: &squeue::Entry) -> bool {
        let mut uring = self.uring.borrow_mut();
        // SAFETY: what the entry points to is in a slot (boxed, so it does not move) or lasts for ever, and stays
        // there until the completion is reaped.
        if unsafe { uring.submission().push(entry) }.is_ok() {
            return true;
        }
        let _ = uring.submit();
        // SAFETY: as above.
        unsafe { uring.submission().push(entry) }.is_ok()
    }

    /// Tells clients what ended. Whether anything did.
    pub(crate) fn reap(&self) -> bool {
        let mut reaped = std::mem::take(&mut *self.reaped.borrow_mut());
        {
            let mut uring = self.uring.borrow_mut();
            if uring.submission().taskrun() || uring.submission().cq_overflow() {
                // Completions wait for the kernel to run our task work. GETEVENTS without waiting does.
                // SAFETY: no argument is passed.
                let _ = unsafe { uring.submitter().enter::<libc::sigset_t>(0, 0, 1, None) };
            }
            reaped.extend(uring.completion().map(|c: cqueue::Entry| (c.user_data(), c.result())));
        }
        let mut any = false;
        for (user_data, result) in reaped.drain(..) {
            match user_data {
                CANCEL | TIMEOUT => continue,
                BELL => self.rang(),
                key => self.finish(key as usize, result),
            }
            any = true;
        }
        *self.reaped.borrow_mut() = reaped;
        self.push_waiting();
        any
    }

    fn finish(&self, key: usize, result: i32) {
        let Some(mut slot) = self.slots.borrow_mut().try_remove(key) else { return };
        self.in_flight.set(self.in_flight.get() - 1);
        let ended = slot.end(result);
        {
            let mut spare = self.spare.borrow_mut();
            if spare.len() < 1024 {
                spare.push(slot);
            }
        }
        if let Some((client, completion, cookie)) = ended {
            client.done(completion, cookie);
        }
    }

    fn push_waiting(&self) {
        loop {
            let Some(key) = self.waiting.borrow().front().copied() else { break };
            if !self.push(key) {
                break;
            }
            self.waiting.borrow_mut().pop_front();
        }
        self.arm_bell();
        if !self.waiting.borrow().is_empty() || !self.receives.borrow().is_empty() {
            // A cancel would overtake its operation, and find nothing.
            return;
        }
        let cancels = std::mem::take(&mut *self.cancels.borrow_mut());
        for id in cancels {
            // By now it may have ended, and another may have its slot.
            if self.slots.borrow().get(id.key).is_none_or(|slot| slot.seq() != id.seq) {
                continue;
            }
            let entry = opcode::AsyncCancel::new(id.key as u64).build().user_data(CANCEL);
            if !self.push_entry(&entry) {
                self.cancels.borrow_mut().push(id);
            }
        }
    }

    /// Hands the batch to the kernel. Whether there was one.
    pub(crate) fn submit(&self) -> bool {
        self.push_receives();
        if !self.cancels.borrow().is_empty() {
            self.push_waiting();
        }
        let mut uring = self.uring.borrow_mut();
        if uring.submission().is_empty() {
            return false;
        }
        // EBUSY or EAGAIN: what was not taken stays queued and goes with the next turn.
        let _ = uring.submit();
        true
    }

    /// Watches an eventfd: when it becomes readable, [`Ring::wait`] returns.
    pub(crate) fn watch(&self, bell: Fd) {
        self.bell.replace(Some(bell));
        self.arm_bell();
    }

    fn arm_bell(&self) {
        let Some(fd) = self.bell.borrow().as_ref().map(AsRawFd::as_raw_fd) else { return };
        if !self.armed.get() {
            let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build().user_data(BELL);
            self.armed.set(self.push_entry(&entry));
        }
    }

    /// The bell rang, perhaps long after the shard woke for another reason: it is silenced here, where every ring of
    /// it arrives, or it would ring in every turn from now on.
    fn rang(&self) {
        self.armed.set(false);
        if let Some(bell) = &*self.bell.borrow() {
            let _ = nix::unistd::read(bell, &mut [0; 8]);
        }
        self.arm_bell();
    }

    /// Hands the batch over and waits for a completion, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        self.push_receives();
        self.push_waiting();
        let uring = self.uring.borrow();
        let _ = match timeout {
            None => uring.submit_and_wait(1),
            Some(t) => {
                let t = types::Timespec::new().sec(t.as_secs()).nsec(t.subsec_nanos());
                uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&t))
            }
        };
    }

    /// Whether something has ended, or may have: [`Ring::reap`] tells.
    pub(crate) fn has_completions(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        let flags = uring.submission();
        let pending = flags.taskrun() || flags.cq_overflow();
        drop(flags);
        pending || !uring.completion().is_empty()
    }

    /// Cancels everything and waits until the kernel has let go of it. Clients still hear of each end, and `then` lets them
    /// do what they left for later.
    pub(crate) fn drain(&self, then: impl Fn()) {
        self.bell.take();
        for _ in 0..1000 {
            then();
            if self.in_flight() == 0 {
                return;
            }
            self.push_receives();
            let all = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build().user_data(CANCEL);
            let _ = self.push_entry(&all);
            self.wait(Some(Duration::from_millis(10)));
            self.reap();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Slots that the kernel still has must outlive it: closing the ring cancels, but not at once.
        if self.in_flight() > 0 {
            std::mem::take(&mut *self.slots.borrow_mut())
                .into_iter()
                .for_each(|(_, slot)| std::mem::forget(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    struct Deaf;
    impl RingClient for Deaf {
        fn done(self: Rc<Self>, _completion: Completion, _cookie: u64) {}
    }

    #[test]
    fn memory_outlives_a_ring_that_was_not_drained() {
        use std::io::Write;
        let (mut peer, end) = std::os::unix::net::UnixStream::pair().unwrap();
        let buf = crate::mem::Buf::new(4096);
        let ring = Ring::new(64).unwrap();
        let fd: Fd = Arc::new(end.into());
        ring.start(RingOp::Receive { fd, sgl: buf.sgl(0, 4096), skip: 0 }, Rc::new(Deaf), 0);
        ring.submit();
        drop(ring);
        let _ = peer.write_all(&[1; 4096]);
        assert!(!buf.is_unique(), "the kernel may have it still");
    }

    #[test]
    fn a_receive_follows_what_its_turn_sends() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let ring = Ring::new(64).unwrap();
        let receive = RingOp::Receive {
            fd: Arc::new(near.into()),
            sgl: crate::mem::Buf::new(64).into_sgl(64),
            skip: 0,
        };
        ring.start(receive, Rc::new(Deaf), 0);
        let sgls = vec![crate::mem::Buf::zeroed(64).into_sgl(64)];
        ring.start(RingOp::Send { fd: Arc::new(far.into()), sgls, skip: 0, now: false }, Rc::new(Deaf), 1);
        assert_eq!(ring.uring.borrow_mut().submission().len(), 1, "the receive comes after it");
        ring.submit();
        assert!(ring.reap());
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn a_bell_rings_once_however_late() {
        let ring = Ring::new(64).unwrap();
        let bell: Fd = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into());
        ring.watch(bell.clone());
        for _ in 0..3 {
            ring.submit();
            assert!(!ring.reap());
            nix::unistd::write(&bell, &1u64.to_ne_bytes()).unwrap();
            assert!(ring.reap(), "it is watched");
        }
    }
}
