//! What a connection has to say: PDUs gathered over a turn, and one send for all of them.
//!
//! Data may be a volume's own memory, lent for this turn: the kernel takes from it at the turn's end or not at all, and what
//! it did not take then is copied.

use engine::mem::{Buf, Sgl};
use nvme_proto::tcp::{self, CommonHdr, DIGEST_LEN, PduType, flags};
use nvme_proto::zerocopy::{FromBytes, Immutable, IntoBytes};

use super::budget::Lease;
use super::pdu::Agreed;

/// Bytes of a buffer that headers are laid in.
const ARENA: usize = 4096;
/// Bytes of the longest header with its digest and padding.
const LONGEST: usize = 256;
/// Lists in one send: the kernel takes 1024 runs.
const LISTS: usize = 512;

/// What is sent at once.
pub(super) struct Batch {
    pub lists: Vec<Sgl>,
    /// Some of it is lent: the send must not wait.
    pub lent: bool,
}

/// The sending half of a connection.
pub(super) struct Sender {
    /// Lists that wait, in order.
    pending: Vec<Sgl>,
    leases: Vec<Lease>,
    /// Bytes that wait or are with the kernel.
    bytes: usize,
    arena: Buf,
    /// Headers laid out but not in `pending` yet.
    from: usize,
    to: usize,
    /// While the kernel sends: what is given back when it has.
    sending: Option<Vec<Lease>>,
    spare: Vec<Sgl>,
    /// Some of `pending` is lent.
    lent: bool,
    /// The last word is among what waits: nothing follows it.
    finished: bool,
}

impl Sender {
    pub fn new() -> Self {
        Sender {
            pending: Vec::new(),
            leases: Vec::new(),
            bytes: 0,
            arena: Buf::new(ARENA),
            from: 0,
            to: 0,
            sending: None,
            spare: Vec::new(),
            lent: false,
            finished: false,
        }
    }

    /// Bytes that wait or are with the kernel.
    pub fn backlog(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits and nothing is with the kernel.
    pub fn is_idle(&self) -> bool {
        self.sending.is_none() && self.pending.is_empty() && self.from == self.to
    }

    /// Whether the kernel has a send of this connection.
    pub fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Adds a PDU: `header` with its common header filled but for lengths and digest flags, and its data.
    pub fn pdu<H: FromBytes + IntoBytes + Immutable>(
        &mut self,
        mut header: H,
        data: Option<(Sgl, Option<Lease>)>,
        agreed: Agreed,
    ) {
        if self.finished {
            return;
        }
        let mut raw = [0u8; LONGEST];
        let hlen = size_of::<H>();
        let hdgst = if agreed.hdgst { DIGEST_LEN } else { 0 };
        let data_len = data.as_ref().map_or(0, |(sgl, _)| sgl.len());
        let mut head = hlen + hdgst;
        let mut plen = head;
        let ch = &mut header.as_mut_bytes()[..size_of::<CommonHdr>()];
        if let Ok(ch) = CommonHdr::mut_from_bytes(ch) {
            ch.hlen = hlen as u8;
            if data_len > 0 {
                head = head.next_multiple_of(agreed.hpda.max(4));
                plen = head + data_len + if agreed.ddgst { DIGEST_LEN } else { 0 };
                ch.pdo = head as u8;
            }
            ch.plen = plen as u32;
            if agreed.hdgst {
                ch.flags |= flags::HDGSTF;
            }
            if agreed.ddgst && data_len > 0 {
                ch.flags |= flags::DDGSTF;
            }
        }
        raw[..hlen].copy_from_slice(header.as_bytes());
        if agreed.hdgst {
            let digest = tcp::digest(&raw[..hlen]);
            raw[hlen..hlen + DIGEST_LEN].copy_from_slice(&digest.to_le_bytes());
        }
        self.lay(&raw[..head]);
        let Some((mut sgl, lease)) = data else { return };
        self.seal();
        let digest = agreed.ddgst.then(|| digest(&mut sgl));
        self.lent |= sgl.is_lent();
        self.pending.push(sgl);
        if let Some(digest) = digest {
            self.lay(&digest.to_le_bytes());
        }
        self.bytes += data_len;
        self.leases.extend(lease);
    }

    /// Nothing is added any more: a C2HTermReq is the last PDU (NVMe/TCP 1.1, 3.5).
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Adds bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(LONGEST) {
            self.lay(part);
        }
    }

    /// Copies bytes (at most [`LONGEST`]) into the arena.
    fn lay(&mut self, bytes: &[u8]) {
        if self.to + bytes.len() > ARENA {
            self.seal();
            self.arena = Buf::new(ARENA);
            (self.from, self.to) = (0, 0);
        }
        self.arena.copy_in(self.to, bytes);
        self.to += bytes.len();
        self.bytes += bytes.len();
    }

    /// Puts the headers laid out so far behind what waits.
    fn seal(&mut self) {
        if self.from < self.to {
            self.pending.push(self.arena.sgl(self.from, self.to - self.from));
            self.from = self.to;
        }
    }

    /// What is sent now, if there is something and the kernel is free. Nothing that stays is lent.
    pub fn next(&mut self) -> Option<Batch> {
        let lent = std::mem::take(&mut self.lent);
        if self.sending.is_some() {
            if lent {
                give_back(&mut self.pending);
            }
            return None;
        }
        self.seal();
        if self.pending.is_empty() {
            return None;
        }
        let mut lists = std::mem::take(&mut self.spare);
        if self.pending.len() <= LISTS {
            std::mem::swap(&mut lists, &mut self.pending);
            self.sending = Some(std::mem::take(&mut self.leases));
        } else {
            // The leases stay until the rest is sent too.
            lists.extend(self.pending.drain(..LISTS));
            self.sending = Some(Vec::new());
            if lent {
                give_back(&mut self.pending);
            }
        }
        Some(Batch { lists, lent })
    }

    /// Lets go of what waits: nobody will have it.
    pub fn forget(&mut self) {
        self.seal();
        self.bytes -= self.pending.drain(..).map(|list| list.len()).sum::<usize>();
        let leases = std::mem::take(&mut self.leases);
        if let Some(sending) = &mut self.sending {
            // Some may be of what the kernel still has.
            sending.extend(leases);
        }
        self.lent = false;
    }

    /// The kernel has sent so many bytes of `lists`: what is left of them, to be sent from the byte that is returned on.
    pub fn sent_part(&mut self, lists: &mut Vec<Sgl>, sent: usize) -> usize {
        let (mut whole, mut skip) = (0, sent);
        while let Some(list) = lists.get(whole).filter(|list| list.len() <= skip) {
            (whole, skip) = (whole + 1, skip - list.len());
        }
        lists.drain(..whole);
        self.bytes -= sent - skip;
        give_back(lists);
        skip
    }

    /// The kernel has sent all of `lists`.
    pub fn sent(&mut self, mut lists: Vec<Sgl>) {
        self.bytes -= lists.iter().map(Sgl::len).sum::<usize>().min(self.bytes);
        lists.clear();
        self.spare = lists;
        self.sending = None;
    }
}

/// A common header whose lengths and digest flags [`Sender::pdu`] fills in.
pub(super) fn common(pdu_type: PduType, flags: u8) -> CommonHdr {
    CommonHdr { pdu_type, flags, hlen: 0, pdo: 0, plen: 0 }
}

/// Copies what is lent of `lists`.
#[cold]
fn give_back(lists: &mut [Sgl]) {
    for list in lists.iter_mut().filter(|list| list.is_lent()) {
        let copy = Buf::new(list.len()).sgl(0, list.len());
        copy.copy_from(list);
        *list = copy;
    }
}

/// The data digest of a list: over its bytes where nobody changes them, else over a copy.
pub(super) fn digest(sgl: &mut Sgl) -> u32 {
    if let Some(bytes) = sgl.bytes_mut() {
        return tcp::digest(bytes);
    }
    let mut crc = 0;
    if let Some(runs) = sgl.lent() {
        runs.for_each(|bytes| crc = tcp::digest_append(crc, bytes));
        return crc;
    }
    sgl.each_copy(0, sgl.len(), |bytes| crc = tcp::digest_append(crc, bytes));
    crc
}
