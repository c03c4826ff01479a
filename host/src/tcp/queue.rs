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
    tags: Vec<Tag>,
    events: Vec<Event>,
}

struct Tag {
    buffer: Sgl,
    /// How many of the buffer's first bytes were digested since it was handed out, and their digest: a load that sends the same
    /// again and again need not be slower than its target.
    digest: Cell<Option<(usize, u32)>>,
    /// The command that is out: the bytes it carries, and whether they go to the target.
    out: Option<(usize, bool)>,
}

impl IoQueue {
    pub(super) fn new(
        connection: Connection,
        namespace: Namespace,
        depth: u16,
        max_transfer: usize,
        in_capsule: usize,
    ) -> Self {
        let tag = |_| Tag {
            buffer: Buf::zeroed(max_transfer).into_sgl(max_transfer),
            digest: Cell::default(),
            out: None,
        };
        let tags = (0..depth).map(tag).collect();
        IoQueue { connection, namespace, max_transfer, in_capsule, tags, events: Vec::new() }
    }
}

impl Queue for IoQueue {
    fn depth(&self) -> u16 {
        self.tags.len() as u16
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    fn buffer(&self, tag: u16) -> &Sgl {
        let tag = &self.tags[usize::from(tag)];
        tag.digest.take();
        &tag.buffer
    }

    fn discard_reads(&mut self) {
        self.connection.discard();
    }

    fn submit(&mut self, tag: u16, command: Command) -> Result<()> {
        let mut sqe = command.sqe(tag, self.namespace.nsid);
        let len = command.data_len(self.namespace.block_size);
        let Tag { buffer, digest, out } = &mut self.tags[usize::from(tag)];
        if command.kind == Kind::Deallocate {
            digest.take();
            buffer.copy_in(0, &command.dsm_range());
        }
        let inside = if command.sends() && len <= self.in_capsule { len } else { 0 };
        sqe.set_sgl(if inside > 0 {
            SglDescriptor::in_capsule(len as u32)
        } else {
            SglDescriptor::transport(len as u32)
        });
        *out = Some((len, command.sends()));
        let now = (inside > 0 && self.connection.digests_data()).then(|| {
            let known = digest.get().filter(|(digested, _)| *digested == inside);
            known.map_or_else(|| data_digest(buffer, 0, inside), |(_, digest)| digest)
        });
        // Of a read none: other bytes will be there.
        digest.set(now.map(|digest| (inside, digest)));
        self.connection.command(&sqe, buffer, inside, now);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()> {
        let tags = &self.tags;
        let buffer = |cid: u16| {
            let tag = tags.get(usize::from(cid))?;
            tag.out.filter(|(_, sends)| !sends).map(|(len, _)| (&tag.buffer, len))
        };
        self.connection.poll(buffer, &mut self.events)?;
        for event in self.events.drain(..) {
            match event {
                Event::Response(cqe) => {
                    let expected = self.tags.get_mut(usize::from(cqe.cid)).and_then(|tag| tag.out.take());
                    if expected.is_none() {
                        return Err(Error::Protocol(format!(
                            "a response for command {} that is not there",
                            cqe.cid
                        )));
                    }
                    done.push(Done { tag: cqe.cid, status: cqe.status() });
                }
                Event::Ready { cid, ttag, at, len } => {
                    let tag = self.tags.get(usize::from(cid));
                    let size = tag.and_then(|tag| tag.out).map_or(0, |(len, _)| len);
                    if (at as usize).checked_add(len as usize).is_none_or(|end| end > size) {
                        return Err(Error::Protocol("an R2T beyond its command".into()));
                    }
                    if let Some(tag) = tag {
                        self.connection.h2c_data(cid, ttag, &tag.buffer, at as usize, len as usize);
                    }
                }
            }
        }
        Ok(())
    }
}
