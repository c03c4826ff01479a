//! What both transports' I/O queues have in common.

use engine::mem::Sgl;
use nvme_proto::Status;

use crate::{Command, Result};

/// A namespace as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
}

/// A command that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Which one.
    pub tag: u16,
    /// How.
    pub status: Status,
}

/// An I/O queue, driven by polling. Each tag, 0 to depth − 1, has one command at a time and a buffer of its own.
pub trait Queue: Send {
    /// Commands that can be in flight.
    fn depth(&self) -> u16;

    /// The namespace that commands go to.
    fn namespace(&self) -> &Namespace;

    /// Bytes that one command may carry.
    fn max_transfer(&self) -> usize;

    /// The buffer of `tag`, at least [`Queue::max_transfer`] bytes: filled before a write, read after a read. Who
    /// writes to it asks for it again first: what is sent may be digested once for each time.
    fn buffer(&self, tag: u16) -> &Sgl;

    /// Nobody will look at what reads bring: where it has to be copied, it may be thrown away instead.
    fn discard_reads(&mut self) {}

    /// Puts a command on the queue; [`Queue::poll`] sends it.
    ///
    /// # Errors
    /// When the connection is gone.
    fn submit(&mut self, tag: u16, command: Command) -> Result<()>;

    /// Sends what was put on the queue, and adds what ended to `done`. Does not wait.
    ///
    /// # Errors
    /// When the connection is gone or the peer broke the protocol.
    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()>;
}

/// Reads block size and capacity from Identify Namespace's data.
pub(crate) fn namespace_of(nsid: u32, id: &[u8]) -> Result<Namespace> {
    let blocks = id.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    let format = usize::from(id[26] & 0xf) * 4 + 128;
    let (metadata, lbads) = (u16::from_le_bytes([id[format], id[format + 1]]), id[format + 2]);
    if metadata != 0 || !(9..=16).contains(&lbads) || blocks == 0 {
        return Err(crate::Error::Protocol(format!(
            "namespace {nsid} has {blocks} blocks of 2^{lbads} bytes with {metadata} bytes of metadata"
        )));
    }
    Ok(Namespace { nsid, block_size: 1 << lbads, blocks })
}
