//! Just enough of an NVMe driver: queues in guest memory, and what came of the commands.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use engine::mem::Mapping;
use engine::testing::fuzz::Trace;
use nvme_proto::zerocopy::{FromBytes, IntoBytes};
use nvme_proto::{Cqe, Sqe};

use super::client::Client;
use crate::world::is_valid;

/// Where queue pair `qid` lies: its submission queue; a page on, its completion queue.
pub fn base(qid: u16) -> u64 {
    0x1000 + u64::from(qid) * 0x2000
}

/// Queue pairs that have a place of their own.
pub const QUEUES: u16 = 4;
/// Where lists and segments lie.
pub const LISTS: u64 = 0xa000;
/// Where data lies: from here on memory is mapped by itself.
pub const DATA: u64 = 0x10000;

/// A queue pair as the driver sees it.
#[derive(Debug)]
pub struct Pair {
    pub qid: u16,
    /// Of the submission queue, and of the completion queue.
    entries: u32,
    cq_entries: u32,
    pub tail: u32,
    pub head: u32,
    phase: bool,
    /// Commands that were told of, and completions that came.
    pub told: usize,
    pub placed: usize,
    pub done: usize,
    cids: HashSet<u16>,
    /// Commands that may wait for ever.
    pub patient: usize,
}

impl Pair {
    pub fn new(qid: u16, entries: u32, cq_entries: u32) -> Self {
        Pair {
            qid,
            entries,
            cq_entries,
            tail: 0,
            head: 0,
            phase: true,
            told: 0,
            placed: 0,
            done: 0,
            cids: HashSet::new(),
            patient: 0,
        }
    }

    /// Whether another command has room.
    pub fn has_room(&self) -> bool {
        self.placed.saturating_sub(self.done) < self.entries as usize - 1
    }

    /// Puts a command into the queue; it is told of later.
    pub fn place(&mut self, client: &Client, mut sqe: Sqe) {
        sqe.cid = self.placed as u16;
        client.put(base(self.qid) + u64::from(self.tail) * 64, sqe.as_bytes());
        self.tail = (self.tail + 1) % self.entries;
        self.placed += 1;
        self.cids.insert(sqe.cid);
        if sqe.opc == 0x0c && self.qid == 0 {
            self.patient += 1;
        }
    }

    /// The next completion. What a guest that keeps to the rules may count on is asserted if `strict`.
    pub fn poll(&mut self, client: &Client, strict: bool, trace: &mut Trace) -> Option<Cqe> {
        let at = base(self.qid) + 0x1000 + u64::from(self.head) * 16;
        let cqe = Cqe::read_from_bytes(&client.get(at, 16)).unwrap();
        if cqe.status.phase() != self.phase {
            return None;
        }
        self.done += 1;
        if strict {
            is_valid(cqe.status());
            assert!(self.done <= self.told, "more completions than commands: {cqe:?}");
            assert!(cqe.sqid == self.qid && u32::from(cqe.sqhd) < self.entries, "{cqe:?}");
            assert!(self.cids.remove(&cqe.cid), "a completion of nothing: {cqe:?}");
        }
        trace.note(("cqe", self.qid == 0, cqe.status().code().0));
        self.head += 1;
        if self.head == self.cq_entries {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(cqe)
    }

    pub fn outstanding(&self) -> usize {
        self.told.saturating_sub(self.done)
    }
}

/// A doorbell page that the guest has mapped.
pub fn ring(page: &Mapping, at: usize, value: u32) {
    if let Some(word) = page.word(at & 0xffc) {
        word.store(value, Ordering::Release);
    }
}
