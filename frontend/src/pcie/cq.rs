//! Completion queues in guest memory (Base 2.1, 3.3.3.2).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use engine::mem::{Access, GuestMemory, MemError};
use nvme_proto::Cqe;
use nvme_proto::zerocopy::IntoBytes;

use super::doorbell::{Bell, Bells};
use super::memory::QueueMemory;

const ENTRY: u64 = size_of::<Cqe>() as u64;

/// A completion queue.
pub(crate) struct Cq {
    pub qid: u16,
    base: u64,
    entries: u32,
    memory: QueueMemory,
    /// The interrupt vector, if it interrupts.
    pub vector: Option<u16>,
    /// Where the next entry goes, and its phase.
    tail: Cell<u32>,
    phase: Cell<bool>,
    /// What the host has consumed.
    head: Cell<u32>,
    /// Entries that commands in flight will need.
    reserved: Cell<u32>,
    /// Completions of commands that reserved none (event requests), which found the queue full.
    overflow: RefCell<VecDeque<Cqe>>,
    /// Entries that were added since the last turn's end.
    pub fresh: Cell<u32>,
    /// The pin does not tell of its entries yet.
    pub held: Cell<bool>,
    /// A value of the head doorbell that made no sense: reported once.
    rejected: Cell<Option<u32>>,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Posted {
    /// It is in the queue, or waits for room there.
    There,
    /// It has its place, and must be brought there by a message.
    Message {
        /// The place.
        gpa: u64,
        /// The entry, with its phase tag.
        cqe: Cqe,
    },
}

/// The host wrote a value that the doorbell cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidValue;

impl Cq {
    pub fn new(qid: u16, base: u64, entries: u32, vector: Option<u16>) -> Self {
        Cq {
            qid,
            base,
            entries,
            memory: QueueMemory::default(),
            vector,
            tail: Cell::new(0),
            phase: Cell::new(true),
            head: Cell::new(0),
            reserved: Cell::new(0),
            overflow: RefCell::default(),
            fresh: Cell::new(0),
            held: Cell::new(false),
            rejected: Cell::new(None),
        }
    }

    /// The guest's memory is another now.
    pub fn memory_changed(&self) {
        self.memory.forget();
    }

    fn waiting(&self) -> u32 {
        let (tail, head) = (self.tail.get(), self.head.get());
        if tail >= head { tail - head } else { tail + self.entries - head }
    }

    fn free(&self) -> u32 {
        self.entries - 1 - self.waiting()
    }

    /// Whether the host has entries to consume, as far as is known.
    pub fn is_pending(&self) -> bool {
        self.tail.get() != self.head.get()
    }

    /// The last head that was seen.
    pub fn head(&self) -> u32 {
        self.head.get()
    }

    /// Looks at the head doorbell.
    pub fn look(&self, memory: &GuestMemory, bells: &Bells) -> Result<(), InvalidValue> {
        let Some(head) = bells.load(memory, Bell::Head(self.qid)) else { return Ok(()) };
        if head == self.head.get() {
            self.rejected.set(None);
            return Ok(());
        }
        // It moves towards the tail and not past it.
        let moved = (head.wrapping_add(self.entries).wrapping_sub(self.head.get())) % self.entries;
        if head >= self.entries || moved > self.waiting() {
            return match self.rejected.replace(Some(head)) {
                Some(before) if before == head => Ok(()),
                _ => Err(InvalidValue),
            };
        }
        self.rejected.set(None);
        self.head.set(head);
        Ok(())
    }

    /// Whether the head doorbell has a value that [`Cq::look`] has not seen.
    pub fn has_moved(&self, memory: &GuestMemory, bells: &Bells) -> bool {
        let head = bells.load(memory, Bell::Head(self.qid));
        head.is_some() && head != Some(self.head.get()) && head != self.rejected.get()
    }

    /// Entries, of which one stays empty.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Whether [`Cq::reserve`] would succeed.
    pub fn has_room(&self) -> bool {
        self.free() > self.reserved.get()
    }

    /// Whether [`Cq::reserve`] would succeed so many times.
    pub fn has_room_for(&self, entries: u32) -> bool {
        self.free() >= self.reserved.get() + entries
    }

    /// Keeps an entry for a command; [`Cq::release`] or [`Cq::post`] gives it back.
    pub fn reserve(&self) -> bool {
        let room = self.has_room();
        if room {
            self.reserved.set(self.reserved.get() + 1);
        }
        room
    }

    pub fn release(&self) {
        self.reserved.set(self.reserved.get().saturating_sub(1));
    }

    /// Adds an entry. One that was not reserved waits if there is no room.
    pub fn post(&self, memory: &GuestMemory, cqe: Cqe, reserved: bool) -> Result<Posted, MemError> {
        if reserved {
            self.release();
        } else if self.free() <= self.reserved.get() {
            self.overflow.borrow_mut().push_back(cqe);
            return Ok(Posted::There);
        }
        self.write(memory, cqe)
    }

    /// Adds one entry that waited, if there is room now.
    pub fn drain(&self, memory: &GuestMemory) -> Result<Option<Posted>, MemError> {
        let waited = self.has_room().then(|| self.overflow.borrow_mut().pop_front()).flatten();
        waited.map(|cqe| self.write(memory, cqe)).transpose()
    }

    /// Whether completions wait for room.
    pub fn has_waiting(&self) -> bool {
        !self.overflow.borrow().is_empty()
    }

    /// Whether something waits for the host to consume entries.
    pub fn is_starved(&self) -> bool {
        !self.overflow.borrow().is_empty() || !self.has_room()
    }

    fn write(&self, memory: &GuestMemory, mut cqe: Cqe) -> Result<Posted, MemError> {
        let tail = self.tail.get();
        let offset = u64::from(tail) * ENTRY;
        let gpa = self.base + offset;
        cqe.status = cqe.status.status().with_phase(self.phase.get());
        let own = self.memory.get(memory, self.base, u64::from(self.entries) * ENTRY, Access::Write);
        let stored = match &own {
            Some(own) => {
                own.publish(offset as usize, cqe.words());
                Ok(())
            }
            None => store(memory, gpa, &cqe),
        };
        let posted = match stored {
            Ok(()) => {
                self.fresh.set(self.fresh.get().saturating_add(1));
                Posted::There
            }
            Err(MemError::ByMessage { .. }) => Posted::Message { gpa, cqe },
            Err(error) => return Err(error),
        };
        let next = tail + 1;
        let wraps = next == self.entries;
        if wraps {
            self.phase.set(!self.phase.get());
        }
        self.tail.set(if wraps { 0 } else { next });
        Ok(posted)
    }
}

/// Writes an entry. The phase tag is in its last word, which is stored after the others, in one access.
fn store(memory: &GuestMemory, gpa: u64, cqe: &Cqe) -> Result<(), MemError> {
    let [words @ .., w0, w1, w2, w3] = cqe.as_bytes() else { return Ok(()) };
    memory.write(gpa, words)?;
    memory.store_u32(gpa + words.len() as u64, u32::from_le_bytes([*w0, *w1, *w2, *w3]))
}

#[cfg(test)]
mod tests {
    use super::super::doorbell::Doorbells;
    use super::super::runs::testing::memory;
    use super::*;
    use nvme_proto::Status;
    use nvme_proto::zerocopy::FromBytes;

    fn entry(m: &GuestMemory, at: u64) -> Cqe {
        let mut bytes = [0; 16];
        m.read(0x1000 + at * 16, &mut bytes).unwrap();
        Cqe::read_from_bytes(&bytes).unwrap()
    }

    #[test]
    fn phases_turn_and_a_full_queue_takes_nothing() {
        let (m, bells) = (memory(0x10000), Bells::new(Doorbells::Trapped).unwrap());
        let cq = Cq::new(1, 0x1000, 4, Some(0));
        let mut cid = 0;
        for round in 0..4 {
            for at in 0..4u64 {
                assert!(cq.reserve());
                assert_eq!(cq.post(&m, Cqe::new(cid, Status::LBA_OUT_OF_RANGE), true), Ok(Posted::There));
                let got = entry(&m, at);
                assert_eq!((got.cid, got.status.phase()), (cid, round % 2 == 0));
                assert_eq!(got.status(), Status::LBA_OUT_OF_RANGE);
                bells.store(Bell::Head(1), (at as u32 + 1) % 4);
                cq.look(&m, &bells).unwrap();
                cid += 1;
            }
        }
        assert!((0..3).all(|_| cq.reserve()) && !cq.reserve());
    }

    #[test]
    fn g82_an_event_waits_for_room() {
        let (m, bells) = (memory(0x10000), Bells::new(Doorbells::Trapped).unwrap());
        let cq = Cq::new(1, 0x1000, 2, None);
        assert!(cq.post(&m, Cqe::new(1, Status::SUCCESS), false).is_ok());
        assert!(cq.post(&m, Cqe::new(2, Status::SUCCESS), false).is_ok());
        assert!(cq.is_starved() && cq.drain(&m).unwrap().is_none());
        bells.store(Bell::Head(1), 1);
        cq.look(&m, &bells).unwrap();
        assert!(cq.drain(&m).unwrap().is_some());
        assert_eq!(entry(&m, 1).cid, 2);
    }

    #[test]
    fn g74_heads_that_make_no_sense_are_reported_once() {
        let (m, bells) = (memory(0x10000), Bells::new(Doorbells::Mapped).unwrap());
        let cq = Cq::new(1, 0x1000, 8, None);
        for cid in 0..3 {
            assert!(cq.post(&m, Cqe::new(cid, Status::SUCCESS), false).is_ok());
        }
        for bad in [4, 7, 8, u32::MAX] {
            bells.store(Bell::Head(1), bad);
            assert_eq!(cq.look(&m, &bells), Err(InvalidValue), "{bad}");
            assert_eq!(cq.look(&m, &bells), Ok(()));
            assert_eq!(cq.head(), 0);
        }
        bells.store(Bell::Head(1), 2);
        cq.look(&m, &bells).unwrap();
        assert_eq!(cq.head(), 2);
        bells.store(Bell::Head(1), 1);
        assert_eq!(cq.look(&m, &bells), Err(InvalidValue), "backwards");
    }
}
