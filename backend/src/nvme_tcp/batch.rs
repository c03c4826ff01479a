//! What one send carries: headers in one buffer, data straight from its owners' memory, as one vectored send per
//! connection and turn.

use std::collections::VecDeque;

use engine::mem::{Buf, Sgl};
use nvme_proto::tcp::{self, CapsuleCmd, CommonHdr, DataHdr, PduType, flags};
use nvme_proto::zerocopy::IntoBytes;

use super::queue::{Item, Queue};
use super::wire::Agreed;

/// Bytes of headers in a batch.
const HEADS: usize = 16 << 10;
/// The most that one PDU adds to them: its header, digests and padding to the alignment.
const LARGEST_HEAD: usize = 72 + 4 + 128 + 4;
/// Bytes of data after which a batch is full: more than a socket takes at once.
const FULL: usize = 1 << 20;
/// PDUs after which a batch is full: the rest waits as commands, and not as data that has left the caches before it is
/// received here, or at a target on this machine.
const PDUS: usize = 32;
/// Runs after which a batch is full.
const MAX_RUNS: usize = 512;

enum Part {
    /// Bytes of the header buffer.
    Heads { at: usize, len: usize },
    /// Memory of a command, or a private copy of it.
    Data { sgl: Sgl, lent_by: Option<u16> },
}

/// A run of bytes in the order of sending.
struct Run {
    len: usize,
    /// The command whose memory it is.
    lent_by: Option<u16>,
}

/// A batch: being written, or with the kernel.
pub(super) struct Batch {
    heads: Buf,
    used: usize,
    parts: Vec<Part>,
    bytes: usize,
    runs: VecDeque<Run>,
    /// Bytes of the first run that are sent.
    pub skip: usize,
    /// The lists of `runs`, when the kernel has none of them.
    pub sgls: Vec<Sgl>,
}

impl Batch {
    pub fn new() -> Self {
        Batch {
            heads: Buf::new(HEADS),
            used: 0,
            parts: Vec::new(),
            bytes: 0,
            runs: VecDeque::new(),
            skip: 0,
            sgls: Vec::new(),
        }
    }

    /// Whether everything is sent.
    pub fn is_sent(&self) -> bool {
        self.runs.is_empty()
    }

    /// Writes what `queue` has to send, up to a budget. Only when the last batch is sent.
    pub fn fill(&mut self, queue: &mut Queue) {
        self.used = 0;
        self.bytes = 0;
        if !self.heads.is_unique() {
            self.heads = Buf::new(HEADS);
        }
        let mut pdus = 0;
        while pdus < PDUS
            && self.used + LARGEST_HEAD <= HEADS
            && self.bytes < FULL
            && self.parts.len() < MAX_RUNS
        {
            let Some(item) = queue.outbox.pop_front() else { break };
            let before = self.used;
            match item {
                Item::Capsule(cid) => self.capsule(queue, cid),
                Item::Data { cid, ttag, offset, left } => {
                    if let Some(rest) = self.data(queue, cid, ttag, offset, left) {
                        queue.outbox.push_front(rest);
                    }
                }
            }
            // What was taken back meanwhile is none: an empty batch means that nothing waits.
            pdus += usize::from(self.used > before);
        }
        for part in self.parts.drain(..) {
            let (sgl, lent_by) = match part {
                Part::Heads { at, len } => (self.heads.sgl(at, len), None),
                Part::Data { sgl, lent_by } => (sgl, lent_by),
            };
            self.runs.push_back(Run { len: sgl.len(), lent_by });
            self.sgls.push(sgl);
        }
    }

    fn capsule(&mut self, queue: &mut Queue, cid: u16) {
        let agreed = queue.agreed;
        let Some(command) = queue.command(cid).filter(|c| !c.written) else { return };
        command.written = true;
        let len = if command.inline { command.len } else { 0 };
        command.sent = len;
        let ch = common(&agreed, PduType::CapsuleCmd, 72, len, 0);
        let pdu = CapsuleCmd { ch, sqe: command.sqe };
        self.header(&agreed, pdu.as_bytes(), usize::from(ch.pdo));
        if len > 0 {
            self.payload(queue, cid, 0, len);
        }
    }

    /// Writes one H2CData PDU; what of the R2T is left.
    fn data(&mut self, queue: &mut Queue, cid: u16, ttag: u16, offset: u32, left: u32) -> Option<Item> {
        let agreed = queue.agreed;
        let command = queue.command(cid)?;
        let len = left.min(agreed.max_h2c_data);
        command.sent = offset + len;
        let last = if len == left { flags::LAST_PDU } else { 0 };
        let ch = common(&agreed, PduType::H2cData, 24, len, last);
        let pdu = DataHdr { ch, cccid: cid, ttag, datao: offset, datal: len, reserved: 0 };
        self.header(&agreed, pdu.as_bytes(), usize::from(ch.pdo));
        self.payload(queue, cid, offset, len);
        if len == left {
            queue.r2t_done(cid);
            return None;
        }
        Some(Item::Data { cid, ttag, offset: offset + len, left: left - len })
    }

    /// A header, its digest, and zeroes up to the data.
    fn header(&mut self, agreed: &Agreed, header: &[u8], pdo: usize) {
        self.heads(header);
        let mut len = header.len();
        if agreed.header_digest {
            self.heads(&tcp::digest(header).to_le_bytes());
            len += 4;
        }
        self.heads(&[0; 128][..pdo.saturating_sub(len)]);
    }

    fn payload(&mut self, queue: &mut Queue, cid: u16, at: u32, len: u32) {
        let agreed = queue.agreed;
        let Some(command) = queue.command(cid) else { return };
        let data = command.data(at, len);
        self.bytes += data.len();
        if !agreed.data_digest {
            command.lent += 1;
            self.parts.push(Part::Data { sgl: data, lent_by: Some(cid) });
            return;
        }
        // A guest may change the bytes between the checksum and the send: both are of one private copy.
        let mut staged = Buf::new(data.len());
        let mut crc = 0;
        if let Some(bytes) = staged.get_mut() {
            let bytes = &mut bytes[..data.len()];
            data.copy_out(0, bytes);
            crc = tcp::digest(bytes);
        }
        self.parts.push(Part::Data { sgl: staged.into_sgl(data.len()), lent_by: None });
        self.heads(&crc.to_le_bytes());
    }

    fn heads(&mut self, bytes: &[u8]) {
        let at = self.used;
        let Some(heads) = self.heads.get_mut() else { return };
        heads[at..at + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        match self.parts.last_mut() {
            Some(Part::Heads { len, .. }) => *len += bytes.len(),
            _ => self.parts.push(Part::Heads { at, len: bytes.len() }),
        }
    }

    /// The kernel sent `n` bytes more: lets go of the memory of what is sent whole.
    pub fn sent(&mut self, n: usize, queue: &mut Queue) {
        self.skip += n;
        let mut whole = 0;
        while let Some(run) = self.runs.front() {
            if self.skip < run.len {
                break;
            }
            self.skip -= run.len;
            whole += 1;
            if let Some(cid) = run.lent_by {
                queue.gave_back(cid);
            }
            self.runs.pop_front();
        }
        self.sgls.drain(..whole.min(self.sgls.len()));
    }

    /// Lets go of everything: the connection is gone.
    pub fn forget(&mut self) {
        self.runs.clear();
        self.sgls.clear();
        self.skip = 0;
    }

    /// Copies what is still to be sent of a command's memory; only while the kernel has none of it.
    pub fn stage(&mut self, cid: u16, queue: &mut Queue) {
        for (run, sgl) in self.runs.iter_mut().zip(&mut self.sgls) {
            if run.lent_by == Some(cid) {
                let copy = Buf::new(run.len).into_sgl(run.len);
                copy.copy_from(sgl);
                *sgl = copy;
                run.lent_by = None;
                queue.gave_back(cid);
            }
        }
    }
}

/// A common header: PDO and PLEN for `len` bytes of data.
fn common(agreed: &Agreed, pdu_type: PduType, hlen: u8, len: u32, more: u8) -> CommonHdr {
    let header = usize::from(hlen) + agreed.hdgst();
    let pdo = if len > 0 { header.next_multiple_of(agreed.align) } else { 0 };
    let mut flags = more;
    if agreed.header_digest {
        flags |= flags::HDGSTF;
    }
    if agreed.data_digest && len > 0 {
        flags |= flags::DDGSTF;
    }
    let digest = if len > 0 { agreed.ddgst() } else { 0 };
    // At most 128 bytes before the data, since CPDA is at most 31.
    let pdo = u8::try_from(pdo).unwrap_or(u8::MAX);
    let plen = if len > 0 { u32::from(pdo) + len + digest as u32 } else { header as u32 };
    CommonHdr { pdu_type, flags, hlen, pdo, plen }
}
