//! An I/O queue of an NVMe/TCP controller.

use std::cell::Cell;

use engine::mem::{Buf, Sgl};
use nvme_proto::dptr::SglDescriptor;

use super::connection::{Connection, Event, data_digest};
use crate::{Command, Done, Error, Kind, Namespace, Queue, Result};

/// An I/O queue: one connection.
pub struct IoQueue {
    connection: Connection,
    namespace: Namespace,
    max_transfer: usize,
    in_capsule: usize,
    buffers: Vec<Sgl>,
    /// Of each, how many of its first bytes have been digested since it was handed out, and their digest: a load that sends the
    /// same again and again need not be slower than its target.
    digests: Vec<Cell<Option<(usize, u32)>>>,
    /// Bytes that each tag's command carries; `None` when it is free.
    busy: Vec<Option<usize>>,
    events: Vec<Event>,
}

impl IoQueue {
    pub(super) fn new(
        connection: Connection,
        namespace: Namespace,
        depth: u16,
        max_transfer: usize,
        in_capsule: usize,
    ) -> Self {
        let digests = (0..depth).map(|_| Cell::default()).collect();
        let buffers = (0..depth).map(|_| Buf::zeroed(max_transfer).sgl(0, max_transfer)).collect();
        let busy = vec![None; usize::from(depth)];
        IoQueue {
            connection,
            namespace,
            max_transfer,
            in_capsule,
            buffers,
            digests,
            busy,
            events: Vec::new(),
        }
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
        self.digests[usize::from(tag)].take();
        &self.buffers[usize::from(tag)]
    }

    fn discard_reads(&mut self) {
        self.connection.discard();
    }

    fn submit(&mut self, tag: u16, command: Command) -> Result<()> {
        let mut sqe = command.sqe(tag, self.namespace.nsid);
        let len = command.data_len(self.namespace.block_size);
        let data = &self.buffers[usize::from(tag)];
        if command.kind == Kind::Deallocate {
            self.digests[usize::from(tag)].take();
            data.copy_in(0, &command.dsm_range());
        }
        let inside = if command.sends() && len <= self.in_capsule { len } else { 0 };
        sqe.set_sgl(if inside > 0 {
            SglDescriptor::in_capsule(len as u32)
        } else {
            SglDescriptor::transport(len as u32)
        });
        self.busy[usize::from(tag)] = Some(len);
        let digest = (inside > 0 && self.connection.digests_data()).then(|| {
            let known = self.digests[usize::from(tag)].get().filter(|(digested, _)| *digested == inside);
            known.map_or_else(|| data_digest(data, 0, inside), |(_, digest)| digest)
        });
        // Of a read none: other bytes will be there.
        self.digests[usize::from(tag)].set(digest.map(|digest| (inside, digest)));
        self.connection.command(&sqe, data, inside, digest);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()> {
        let (buffers, busy) = (&self.buffers, &self.busy);
        let buffer = |cid: u16| Some((buffers.get(usize::from(cid))?, (*busy.get(usize::from(cid))?)?));
        self.connection.poll(buffer, &mut self.events)?;
        for event in self.events.drain(..) {
            match event {
                Event::Response(cqe) => {
                    let expected = self.busy.get_mut(usize::from(cqe.cid)).and_then(Option::take);
                    if expected.is_none() {
                        return Err(Error::Protocol(format!(
                            "a response for command {} that is not there",
                            cqe.cid
                        )));
                    }
                    done.push(Done { tag: cqe.cid, status: cqe.status() });
                }
                Event::Ready { cid, ttag, at, len } => {
                    let tag = usize::from(cid);
                    let size = self.busy.get(tag).copied().flatten().unwrap_or(0);
                    if (at as usize).checked_add(len as usize).is_none_or(|end| end > size) {
                        return Err(Error::Protocol("an R2T beyond its command".into()));
                    }
                    self.connection.h2c_data(cid, ttag, &self.buffers[tag], at as usize, len as usize);
                }
            }
        }
        Ok(())
    }
}
