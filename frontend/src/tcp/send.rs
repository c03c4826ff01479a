//! What a connection has to say: PDUs gathered over a turn, and one send for all of them.
//!
//! Data may be a volume's own memory, lent for this turn: the kernel takes from it at the turn's end or not at all, and what
//! it did not take then is copied.

use std::os::fd::BorrowedFd;

use engine::mem::{Buf, Sgl};
use engine::ring::Segment;
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
    /// What holds the budget's bytes for data that waits, each with the byte of all that were ever added where its PDU ends.
    leases: Vec<(u64, Lease)>,
    added: u64,
    /// Bytes that wait or are with the kernel.
    bytes: usize,
    arena: Buf,
    /// Headers laid out but not in `pending` yet.
    from: usize,
    to: usize,
    /// While the kernel sends: what is given back when it has.
    sending: Option<Vec<(u64, Lease)>>,
    spare: Vec<Sgl>,
    /// Some of `pending` is lent.
    lent: bool,
    /// The last word is among what waits: nothing follows it.
    finished: bool,
    segment: Segment,
}

impl Sender {
    pub fn new() -> Self {
        Sender {
            pending: Vec::new(),
            leases: Vec::new(),
            added: 0,
            bytes: 0,
            arena: Buf::new(ARENA),
            from: 0,
            to: 0,
            sending: None,
            spare: Vec::new(),
            lent: false,
            finished: false,
            segment: Segment::default(),
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
        self.count(data_len);
        self.leases.extend(lease.map(|lease| (self.added, lease)));
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
        self.count(bytes.len());
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.added += bytes as u64;
    }

    /// Puts the headers laid out so far behind what waits.
    fn seal(&mut self) {
        if self.from < self.to {
            self.pending.push(self.arena.sgl(self.from, self.to - self.from));
            self.from = self.to;
        }
    }

    /// What is sent on `socket` now, if there is something and the kernel is free: all, or all but what little would need a
    /// segment of its own. Nothing that stays is lent.
    pub fn next(&mut self, socket: BorrowedFd<'_>) -> Option<Batch> {
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
            split_off(&mut lists, self.segment.rest(socket, self.bytes), &mut self.pending);
        } else {
            lists.extend(self.pending.drain(..LISTS));
        }
        let stays: usize = self.pending.iter().map(Sgl::len).sum();
        let goes = self.leases.partition_point(|(end, _)| *end <= self.added - stays as u64);
        let stay = self.leases.split_off(goes);
        self.sending = Some(std::mem::replace(&mut self.leases, stay));
        if lent {
            give_back(&mut self.pending);
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

/// Moves the last `bytes` of `lists` to the end of `to`, in their order.
///
/// # Panics
/// If there are fewer.
fn split_off(lists: &mut Vec<Sgl>, bytes: usize, to: &mut Vec<Sgl>) {
    let (mut at, mut left) = (lists.len(), bytes);
    while left > 0 {
        at -= 1;
        let len = lists[at].len();
        if len > left {
            to.push(lists[at].slice(len - left, left));
            lists[at] = lists[at].slice(0, len - left);
            at += 1;
            break;
        }
        left -= len;
    }
    to.extend(lists.drain(at..));
}

/// Copies what is lent of `lists`.
#[cold]
fn give_back(lists: &mut [Sgl]) {
    for list in lists.iter_mut().filter(|list| list.is_lent()) {
        let copy = Buf::new(list.len()).into_sgl(list.len());
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::rc::Rc;

    use engine::Sim;
    use engine::mem::Lender;
    use engine::testing::{bytes, filled};
    use nvme_proto::tcp::DataHdr;
    use nvme_proto::zerocopy::FromZeros;

    use super::super::budget::Budget;
    use super::*;

    const BLOCK: usize = 4096;

    fn stream() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    fn read(sender: &mut Sender, data: Sgl, lease: Option<Lease>) {
        let mut header = DataHdr::new_zeroed();
        header.ch = common(PduType::C2hData, 0);
        sender.pdu(header, Some((data, lease)), Agreed::default());
    }

    fn all(lists: &[Sgl]) -> Vec<u8> {
        lists.iter().flat_map(bytes).collect()
    }

    /// A sender that sends segments on `socket` and keeps a rest: how many PDUs that were, and the batch.
    fn segments_and_a_rest(
        socket: BorrowedFd<'_>,
        data: impl Fn(usize) -> (Sgl, Option<Lease>),
    ) -> (Sender, usize, Batch) {
        let mut sender = Sender::new();
        let mut count = 0;
        while Segment::default().rest(socket, sender.backlog()) == 0 {
            let (data, lease) = data(count);
            read(&mut sender, data, lease);
            count += 1;
        }
        let batch = sender.next(socket).unwrap();
        (sender, count, batch)
    }

    #[test]
    fn what_little_would_need_a_segment_goes_with_the_next_send() {
        let stream = stream();
        let socket = stream.as_fd();
        let (mut sender, count, first) = segments_and_a_rest(socket, |i| (filled(BLOCK, i as u8), None));
        let sent = all(&first.lists);
        assert!(sent.len() < count * (24 + BLOCK) && Segment::default().rest(socket, sent.len()) == 0);
        sender.sent(first.lists);
        assert!(!sender.is_idle());
        read(&mut sender, filled(BLOCK, 0xee), None);
        let second = sender.next(socket).unwrap();
        let stream = [sent, all(&second.lists)].concat();
        for (i, pdu) in stream.chunks(24 + BLOCK).enumerate() {
            let byte = if i == count { 0xee } else { i as u8 };
            assert!(pdu[24..] == [byte; BLOCK], "PDU {i}");
        }
        assert_eq!(stream.len(), (count + 1) * (24 + BLOCK));
        sender.sent(second.lists);
        assert!(sender.is_idle() && sender.backlog() == 0);
    }

    #[test]
    fn what_stays_is_not_lent() {
        let holder = Lender::new(BLOCK).unwrap().hold();
        holder.write().unwrap().copy(0, BLOCK, &filled(BLOCK, 7), 0);
        let stream = stream();
        let lend = |_| (holder.lend(0, BLOCK).unwrap(), None);
        let (mut sender, _, first) = segments_and_a_rest(stream.as_fd(), lend);
        assert!(first.lent && holder.write().is_none());
        sender.sent(first.lists);
        holder.write().expect("all came back").copy(0, BLOCK, &filled(BLOCK, 9), 0);
        let second = sender.next(stream.as_fd()).unwrap();
        assert!(!second.lent);
        assert!(!all(&second.lists).contains(&9));
    }

    #[test]
    fn what_is_sent_or_forgotten_holds_no_budget() {
        let sim = Sim::new(1).unwrap();
        sim.on(0, |shard| {
            for forgotten in [false, true] {
                let budget = Budget::new(shard, 1 << 30);
                let held = Rc::new(Cell::new(0));
                let lease = |_| (filled(BLOCK, 0), budget.lease(&held, BLOCK));
                let stream = stream();
                let (mut sender, count, first) = segments_and_a_rest(stream.as_fd(), lease);
                assert_eq!(held.get(), count * BLOCK);
                sender.sent(first.lists);
                assert_eq!(held.get(), BLOCK, "that of the last, of which a part waits");
                if forgotten {
                    sender.forget();
                } else {
                    let second = sender.next(stream.as_fd()).unwrap();
                    sender.sent(second.lists);
                }
                assert_eq!((held.get(), sender.backlog()), (0, 0));
            }
        });
    }

    #[test]
    fn lists_are_split_at_any_byte() {
        for left in 0..=12 {
            let mut lists = vec![filled(4, 1), filled(4, 2), filled(4, 3)];
            let mut to = vec![filled(1, 0)];
            split_off(&mut lists, 12 - left, &mut to);
            let of = |lists: &[Sgl]| lists.iter().flat_map(bytes).collect::<Vec<u8>>();
            let all = [of(&lists), of(&to[1..])].concat();
            assert_eq!(all, [[1; 4], [2; 4], [3; 4]].concat());
            assert_eq!(of(&lists).len(), left);
            assert!(lists.iter().chain(&to).all(|list| !list.is_empty()));
        }
    }
}
