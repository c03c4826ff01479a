//! Queue pairs in this host's memory, and I/O queues on them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use engine::mem::{Mapping, Sgl};
use nvme_proto::register::{doorbell_offset, offset};
use nvme_proto::zerocopy::{FromBytes, IntoBytes};
use nvme_proto::{Cqe, Sqe};

use super::client::Client;
use crate::{Command, Done, Error, Kind, Namespace, Queue, Result};

const PAGE: usize = 4096;
/// Polls that find nothing between two looks at the socket.
const LOOK: u32 = 1 << 14;

/// A submission and a completion queue of equal size.
pub(super) struct Rings {
    client: Arc<Mutex<Client>>,
    doorbells: Option<Arc<Mapping>>,
    qid: u16,
    entries: u16,
    sq: Sgl,
    cq: Sgl,
    memory: Arc<Mapping>,
    cq_at: usize,
    iova: u64,
    sq_at: usize,
    tail: u16,
    head: u16,
    phase: bool,
    dirty: bool,
}

fn allocate(memory: &Arc<Mapping>, used: &mut usize, len: usize) -> Result<(usize, Sgl)> {
    let at = *used;
    let sgl = memory.sgl(at, len).ok_or_else(|| Error::Protocol("more queues than were asked for".into()))?;
    *used = at + len.next_multiple_of(PAGE);
    Ok((at, sgl))
}

impl Rings {
    pub(super) fn new(
        client: &Arc<Mutex<Client>>,
        memory: &Arc<Mapping>,
        used: &mut usize,
        iova: u64,
        qid: u16,
        entries: u16,
        doorbells: Option<Arc<Mapping>>,
    ) -> Result<Self> {
        let (sq_at, sq) = allocate(memory, used, usize::from(entries) * 64)?;
        let (cq_at, cq) = allocate(memory, used, usize::from(entries) * 16)?;
        if qid == 0 {
            // Admin keeps sixteen pages: the rings, and a scratch page at their end.
            *used = 16 * PAGE;
        }
        Ok(Rings {
            client: client.clone(),
            doorbells,
            qid,
            entries,
            sq,
            cq,
            memory: memory.clone(),
            cq_at,
            iova,
            sq_at,
            tail: 0,
            head: 0,
            phase: true,
            dirty: false,
        })
    }

    pub(super) fn sq_iova(&self) -> u64 {
        self.iova + self.sq_at as u64
    }

    pub(super) fn cq_iova(&self) -> u64 {
        self.iova + self.cq_at as u64
    }

    pub(super) fn doorbells(&self) -> Option<Arc<Mapping>> {
        self.doorbells.clone()
    }

    pub(super) fn push(&mut self, sqe: Sqe) -> Result<()> {
        self.sq.copy_in(usize::from(self.tail) * 64, sqe.as_bytes());
        self.tail = (self.tail + 1) % self.entries;
        self.dirty = true;
        Ok(())
    }

    fn ring(&self, completion: bool, value: u16) -> Result<()> {
        let at = doorbell_offset(self.qid, completion);
        if let Some(word) = self.doorbells.as_ref().and_then(|m| m.word((at - offset::DOORBELLS) as usize)) {
            word.store(u32::from(value), Ordering::Release);
            return Ok(());
        }
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.post(0, u64::from(at), &u32::from(value).to_le_bytes())
    }

    pub(super) fn ring_sq(&mut self) -> Result<()> {
        if std::mem::take(&mut self.dirty) { self.ring(false, self.tail) } else { Ok(()) }
    }

    fn is_closed(&self) -> bool {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).is_closed()
    }

    pub(super) fn ring_cq(&self) -> Result<()> {
        self.ring(true, self.head)
    }

    pub(super) fn pop(&mut self) -> Option<Cqe> {
        let at = usize::from(self.head) * 16;
        // The phase tag first, then the rest of the entry.
        let last = self.memory.word(self.cq_at + at + 12)?.load(Ordering::Acquire);
        if (last >> 16 & 1 == 1) != self.phase {
            return None;
        }
        let mut bytes = [0; 16];
        self.cq.copy_out(at, &mut bytes);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Cqe::read_from_bytes(&bytes).ok()
    }
}

/// An I/O queue pair of a vfio-user controller.
pub struct IoQueue {
    rings: Rings,
    namespace: Namespace,
    max_transfer: usize,
    /// Of each tag: its buffer, and where that and its PRP list lie for the device.
    buffers: Vec<(Sgl, u64, u64)>,
    busy: Vec<bool>,
    /// Polls in a row that found nothing.
    empty: u32,
}

impl IoQueue {
    pub(super) fn new(
        rings: Rings,
        namespace: Namespace,
        depth: u16,
        max_transfer: usize,
        memory: &Arc<Mapping>,
        used: &mut usize,
        iova: u64,
    ) -> Result<Self> {
        let len = max_transfer.next_multiple_of(PAGE);
        let pages = len / PAGE;
        if pages > 513 {
            return Err(Error::Protocol("a transfer of more than 2 MiB".into()));
        }
        let mut buffers = Vec::with_capacity(usize::from(depth));
        for _ in 0..depth {
            let (at, data) = allocate(memory, used, len)?;
            let (list_at, list) = allocate(memory, used, PAGE)?;
            let first = iova + at as u64;
            for page in 1..pages {
                list.copy_in((page - 1) * 8, &(first + (page * PAGE) as u64).to_le_bytes());
            }
            buffers.push((data, first, iova + list_at as u64));
        }
        Ok(IoQueue {
            rings,
            namespace,
            max_transfer,
            buffers,
            busy: vec![false; usize::from(depth)],
            empty: 0,
        })
    }
}

impl Queue for IoQueue {
    fn depth(&self) -> u16 {
        self.buffers.len() as u16
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    fn buffer(&self, tag: u16) -> &Sgl {
        &self.buffers[usize::from(tag)].0
    }

    fn submit(&mut self, tag: u16, command: Command) -> Result<()> {
        let (data, iova, list) = &self.buffers[usize::from(tag)];
        let mut sqe = command.sqe(tag, self.namespace.nsid);
        if command.kind == Kind::Deallocate {
            data.copy_in(0, &command.dsm_range());
        }
        let len = command.data_len(self.namespace.block_size);
        sqe.dptr = match len.div_ceil(PAGE) {
            0 => [0, 0],
            1 => [*iova, 0],
            2 => [*iova, *iova + PAGE as u64],
            _ => [*iova, *list],
        };
        self.busy[usize::from(tag)] = true;
        self.rings.push(sqe)
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()> {
        self.rings.ring_sq()?;
        let before = done.len();
        while let Some(cqe) = self.rings.pop() {
            let expected = self.busy.get_mut(usize::from(cqe.cid)).is_some_and(std::mem::take);
            if !expected {
                return Err(Error::Protocol(format!(
                    "a completion for command {} that is not there",
                    cqe.cid
                )));
            }
            done.push(Done { tag: cqe.cid, status: cqe.status() });
        }
        if done.len() > before {
            self.empty = 0;
            return self.rings.ring_cq();
        }
        // Memory does not tell that the server is gone: its socket does.
        self.empty = self.empty.wrapping_add(1);
        match self.empty.is_multiple_of(LOOK) && self.rings.is_closed() {
            true => Err(Error::Protocol("the server closed the connection".into())),
            false => Ok(()),
        }
    }
}
