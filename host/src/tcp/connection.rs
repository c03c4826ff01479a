//! One NVMe/TCP connection: PDUs in both directions, without waiting.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::mem::{Buf, Sgl};
use engine::ring::{Segment, send_lists};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nvme_proto::tcp::{
    self, CapsuleResp, CommonHdr, DataHdr, IcReq, IcResp, PduType, R2t, TermReq, dgst, flags,
};
use nvme_proto::zerocopy::{FromBytes, IntoBytes};
use nvme_proto::{Cqe, Sqe};

use super::ready::{Member, Ready};
use crate::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(30);
/// Received bytes that are looked at together.
const CHUNK: usize = 256 << 10;
/// Bytes of a buffer that headers are laid in.
const HEADS: usize = 32 << 10;
/// Bytes of a data PDU from which on dropping them in the kernel is worth the system calls that it takes.
const LEAN: usize = 16 << 10;
/// PDUs that are received one after the other before what they ask for is sent.
const BATCH: usize = 32;

/// Which digests are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Of headers.
    pub header: bool,
    /// Of data.
    pub data: bool,
}

/// What arrived.
#[derive(Debug)]
pub(super) enum Event {
    /// A response capsule, or the SUCCESS flag of the last data PDU.
    Response(Cqe),
    /// The controller wants `len` bytes of command `cid` from `at` on.
    Ready { cid: u16, ttag: u16, at: u32, len: u32 },
}

/// A connection that has exchanged ICReq and ICResp.
pub struct Connection {
    stream: TcpStream,
    /// Who knows whether there is something to receive, where there are many connections.
    member: Option<Member>,
    out: Outgoing,
    input: Vec<u8>,
    have: usize,
    digests: Digests,
    cpda: usize,
    maxh2cdata: usize,
    /// Data of reads is thrown away by the kernel, and its digests are not looked at.
    discard: bool,
    /// Bytes of a data PDU that are still to be thrown away.
    skip: usize,
    /// So many of the next PDUs are received by their headers alone. Two after one with data: its response may come before
    /// more of it.
    lean: u8,
    /// What a receive that throws away may not touch, for its length.
    nothing: Vec<u8>,
}

fn digest(parts: &[&[u8]]) -> [u8; 4] {
    parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)).to_le_bytes()
}

/// The data digest of bytes `at .. at + len`.
pub(super) fn data_digest(data: &Sgl, at: usize, len: usize) -> u32 {
    let mut crc = 0;
    data.each_copy(at, len, |bytes| crc = tcp::digest_append(crc, bytes));
    crc
}

/// What little of a send would need a TCP segment of its own goes with the next one, where it is at most one part in so many:
/// the last bytes of large writes.
const FEW: usize = 64;

/// What waits to be sent: headers, and the commands' own memory for data, which its owner leaves as it is until the
/// command has ended.
#[derive(Default)]
struct Outgoing {
    lists: Vec<Sgl>,
    /// Bytes of them that are sent.
    sent: usize,
    segment: Segment,
    /// Where headers are laid, and the ones that are not in `lists` yet.
    heads: Option<Buf>,
    from: usize,
    to: usize,
}

impl Outgoing {
    fn bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let heads = self.heads.get_or_insert_with(|| Buf::new(HEADS));
            let n = rest.len().min(heads.capacity() - self.to);
            heads.copy_in(self.to, &rest[..n]);
            (self.to, rest) = (self.to + n, &rest[n..]);
            if !rest.is_empty() {
                self.seal();
                (self.heads, self.from, self.to) = (None, 0, 0);
            }
        }
    }

    fn data(&mut self, data: Sgl) {
        self.seal();
        self.lists.push(data);
    }

    /// Puts the headers laid so far behind what waits.
    fn seal(&mut self) {
        if let Some(heads) = &self.heads
            && self.from < self.to
        {
            self.lists.push(heads.sgl(self.from, self.to - self.from));
            self.from = self.to;
        }
    }

    /// Lets go of the lists that are sent whole.
    fn forget_sent(&mut self) {
        let mut whole = 0;
        while let Some(list) = self.lists.get(whole).filter(|list| list.len() <= self.sent) {
            (self.sent, whole) = (self.sent - list.len(), whole + 1);
        }
        self.lists.drain(..whole);
    }

    /// Sends as much as the socket takes, but for what little waits for the next send (see [`FEW`]).
    fn send(&mut self, stream: &TcpStream) -> Result<()> {
        self.seal();
        let total: usize = self.lists.iter().map(Sgl::len).sum();
        let waiting = total - self.sent;
        let rest = self.segment.rest(stream.as_fd(), waiting);
        let until = if rest <= waiting / FEW { total - rest } else { total };
        while self.sent < until {
            match send_lists(stream.as_fd(), &self.lists, self.sent, until - self.sent) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.forget_sent();
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("send to the target")(e)),
            }
        }
        if until < total {
            self.forget_sent();
            return Ok(());
        }
        self.lists.clear();
        self.sent = 0;
        if self.heads.as_ref().is_some_and(Buf::is_unique) {
            (self.from, self.to) = (0, 0);
        }
        Ok(())
    }
}

impl Connection {
    /// Connects and initializes the connection.
    ///
    /// # Errors
    /// Those of the socket; an ICResp that is none, or that refuses a digest.
    pub fn open(addr: SocketAddr, digests: Digests) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)
            .map_err(Error::io("connect to the NVMe/TCP target"))?;
        stream.set_nodelay(true).map_err(Error::io("set TCP_NODELAY"))?;
        stream.set_nonblocking(true).map_err(Error::io("make the socket non-blocking"))?;
        let mut this = Connection {
            stream,
            member: None,
            out: Outgoing::default(),
            input: vec![0; 2 * CHUNK],
            have: 0,
            digests: Digests::default(),
            cpda: 0,
            maxh2cdata: 0,
            discard: false,
            skip: 0,
            lean: 0,
            nothing: Vec::new(),
        };
        let want =
            (u8::from(digests.header) * dgst::HDGST_ENABLE) | (u8::from(digests.data) * dgst::DDGST_ENABLE);
        let ch = CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 };
        let request = IcReq { ch, pfv: 0, hpda_z: 0, dgst: want, maxr2t_z: 0, reserved: [0; 112] };
        this.out.bytes(request.as_bytes());
        let deadline = Instant::now() + PATIENCE;
        while this.have < 128 {
            this.transfer()?;
            if Instant::now() > deadline {
                return Err(Error::Timeout("ICResp"));
            }
            std::thread::yield_now();
        }
        let response = IcResp::read_from_bytes(&this.input[..128]).map_err(|_| malformed("ICResp"))?;
        if response.ch.pdu_type != PduType::IcResp || response.ch.plen != 128 || response.pfv != 0 {
            return Err(malformed("ICResp"));
        }
        if response.dgst & want != want {
            return Err(Error::Protocol("the target refuses digests".into()));
        }
        this.consume(128);
        this.digests = digests;
        this.cpda = usize::from(response.cpda_z & 31) * 4 + 4;
        this.maxh2cdata = (response.maxh2cdata as usize).max(4096) / 4 * 4;
        Ok(this)
    }

    fn consume(&mut self, n: usize) {
        self.input.copy_within(n..self.have, 0);
        self.have -= n;
    }

    /// Sends what is queued and receives what is there. Whether anything arrived.
    fn transfer(&mut self) -> Result<bool> {
        self.out.send(&self.stream)?;
        self.receive()
    }

    /// Is polled in turns with many others from now on.
    pub(super) fn join(&mut self, ready: &Arc<Ready>) -> Result<()> {
        self.member = Some(ready.join(&self.stream)?);
        Ok(())
    }

    /// Nothing is left to receive.
    fn has_all(&self) {
        if let Some(member) = &self.member {
            member.has_all();
        }
    }

    /// Has the data of reads thrown away from now on.
    pub(super) fn discard(&mut self) {
        self.discard = true;
        self.nothing = vec![0; 1 << 20];
    }

    /// Receives what is there, or what is needed of it. Whether anything arrived.
    fn receive(&mut self) -> Result<bool> {
        if let Some(member) = &mut self.member
            && !member.may_receive()?
        {
            return Ok(false);
        }
        let mut any = false;
        while self.skip > 0 {
            let most = self.skip.min(self.nothing.len());
            // tcp(7): with MSG_TRUNC the bytes are dropped from the queue, and not copied.
            match nix::sys::socket::recv(
                self.stream.as_raw_fd(),
                &mut self.nothing[..most],
                MsgFlags::MSG_TRUNC,
            ) {
                Ok(0) => return Err(Error::Protocol("the target closed the connection".into())),
                Ok(n) => (self.skip, any) = (self.skip - n, true),
                Err(Errno::EINTR) => return Ok(any),
                Err(Errno::EAGAIN) => {
                    self.has_all();
                    return Ok(any);
                }
                Err(e) => return Err(Error::io("receive from the target")(e.into())),
            }
        }
        // With data to come after it a header is received alone: 24 bytes, and its digest.
        let header = if self.digests.header { 28 } else { 24 };
        let end = if self.lean > 0 { (self.have / header + 1) * header } else { self.input.len() };
        match self.stream.read(&mut self.input[self.have..end]) {
            Ok(0) => Err(Error::Protocol("the target closed the connection".into())),
            Ok(n) => {
                self.have += n;
                if self.have < end {
                    self.has_all();
                }
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(any),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.has_all();
                Ok(any)
            }
            Err(e) => Err(Error::io("receive from the target")(e)),
        }
    }

    fn header(&mut self, pdu_type: PduType, flag: u8, rest: &[u8], data_len: usize) {
        let hlen = 8 + rest.len();
        let hdgst = if self.digests.header { 4 } else { 0 };
        let ddgst = if self.digests.data && data_len > 0 { 4 } else { 0 };
        let pdo = if data_len > 0 { (hlen + hdgst).next_multiple_of(self.cpda.max(1)) } else { 0 };
        let plen = if data_len > 0 { pdo + data_len + ddgst } else { hlen + hdgst };
        let mut flag = flag;
        flag |= if hdgst > 0 { flags::HDGSTF } else { 0 };
        flag |= if ddgst > 0 { flags::DDGSTF } else { 0 };
        let ch = CommonHdr { pdu_type, flags: flag, hlen: hlen as u8, pdo: pdo as u8, plen: plen as u32 };
        self.out.bytes(ch.as_bytes());
        self.out.bytes(rest);
        if hdgst > 0 {
            self.out.bytes(&digest(&[ch.as_bytes(), rest]));
        }
        if pdo > 0 {
            self.out.bytes(&[0; 128][..pdo - hlen - hdgst]);
        }
    }

    fn data(&mut self, data: &Sgl, at: usize, len: usize, digest: Option<u32>) {
        if len == 0 {
            return;
        }
        self.out.data(data.slice(at, len));
        if self.digests.data {
            let crc = digest.unwrap_or_else(|| data_digest(data, at, len));
            self.out.bytes(&crc.to_le_bytes());
        }
    }

    /// Whether data has digests.
    pub(super) fn digests_data(&self) -> bool {
        self.digests.data
    }

    /// Queues a command, with the first `in_capsule` bytes of `data` in its capsule, and their digest if that is known.
    pub(super) fn command(&mut self, sqe: &Sqe, data: &Sgl, in_capsule: usize, digest: Option<u32>) {
        self.header(PduType::CapsuleCmd, 0, sqe.as_bytes(), in_capsule);
        self.data(data, 0, in_capsule, digest);
    }

    /// Queues what an R2T asks for.
    pub(super) fn h2c_data(&mut self, cid: u16, ttag: u16, data: &Sgl, at: usize, len: usize) {
        let mut done = 0;
        while done < len {
            let n = (len - done).min(self.maxh2cdata);
            let last = if done + n == len { flags::LAST_PDU } else { 0 };
            let mut rest = [0; 16];
            rest[..2].copy_from_slice(&cid.to_le_bytes());
            rest[2..4].copy_from_slice(&ttag.to_le_bytes());
            rest[4..8].copy_from_slice(&((at + done) as u32).to_le_bytes());
            rest[8..12].copy_from_slice(&(n as u32).to_le_bytes());
            self.header(PduType::H2cData, last, &rest, n);
            self.data(data, at + done, n, None);
            done += n;
        }
    }

    /// Sends, receives, and passes on what arrived; data goes to the buffer that `buffer` names for its command.
    pub(super) fn poll<'b>(
        &mut self,
        buffer: impl Fn(u16) -> Option<(&'b Sgl, usize)>,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let mut arrived = self.transfer()?;
        // Where headers come one by one, as many as there are, so that what follows from them is one batch.
        for _ in 0..BATCH {
            let mut at = 0;
            while self.skip == 0
                && let Some(used) = self.pdu(at, &buffer, events)?
            {
                at += used;
            }
            self.consume(at);
            if self.lean == 0 || !arrived {
                break;
            }
            arrived = self.receive()?;
        }
        Ok(())
    }

    fn pdu<'b>(
        &mut self,
        at: usize,
        buffer: &impl Fn(u16) -> Option<(&'b Sgl, usize)>,
        events: &mut Vec<Event>,
    ) -> Result<Option<usize>> {
        let bytes = &self.input[at..self.have];
        let Ok((ch, _)) = CommonHdr::read_from_prefix(bytes) else { return Ok(None) };
        let (hlen, plen) = (usize::from(ch.hlen), ch.plen as usize);
        let digest_len = if ch.flags & flags::HDGSTF != 0 { 4 } else { 0 };
        if ch.pdu_type.hlen() != Some(ch.hlen) || plen < hlen + digest_len {
            return Err(malformed("PDU header"));
        }
        if plen > self.input.len() {
            // A data PDU larger than the buffer: make room for it whole, within reason.
            if plen > 16 << 20 {
                return Err(malformed("PDU length"));
            }
            self.input.resize(plen + CHUNK, 0);
            return Ok(None);
        }
        if self.discard && ch.pdu_type == PduType::C2hData {
            return self.discarded(at, &ch, buffer, events);
        }
        self.lean = self.lean.saturating_sub(1);
        let Some(pdu) = bytes.get(..plen) else { return Ok(None) };
        if digest_len > 0 && pdu[hlen..hlen + 4] != digest(&[&pdu[..hlen]]) {
            return Err(Error::Protocol("a wrong header digest from the target".into()));
        }
        match ch.pdu_type {
            PduType::CapsuleResp => {
                let (capsule, _) =
                    CapsuleResp::read_from_prefix(pdu).map_err(|_| malformed("CapsuleResp"))?;
                events.push(Event::Response(capsule.cqe));
            }
            PduType::R2t => {
                let (r2t, _) = R2t::read_from_prefix(pdu).map_err(|_| malformed("R2T"))?;
                events.push(Event::Ready { cid: r2t.cccid, ttag: r2t.ttag, at: r2t.r2to, len: r2t.r2tl });
            }
            PduType::C2hData => {
                let (data, _) = DataHdr::read_from_prefix(pdu).map_err(|_| malformed("C2HData"))?;
                let (pdo, len, to) = (usize::from(ch.pdo), data.datal as usize, data.datao as usize);
                let payload = pdu.get(pdo..).and_then(|p| p.get(..len)).filter(|_| pdo >= hlen + digest_len);
                let payload = payload.ok_or_else(|| malformed("C2HData"))?;
                if ch.flags & flags::DDGSTF != 0
                    && pdu.get(pdo + len..pdo + len + 4) != Some(&digest(&[payload]))
                {
                    return Err(Error::Protocol("a wrong data digest from the target".into()));
                }
                let (buffer, expected) =
                    buffer(data.cccid).ok_or_else(|| malformed("C2HData for no read"))?;
                if to.checked_add(len).is_none_or(|end| end > expected) {
                    return Err(malformed("C2HData beyond its command"));
                }
                buffer.copy_in(to, payload);
                if ch.flags & flags::SUCCESS != 0 && ch.flags & flags::LAST_PDU != 0 {
                    events.push(Event::Response(Cqe { cid: data.cccid, ..Cqe::default() }));
                }
            }
            PduType::C2hTermReq => {
                let fes = TermReq::read_from_prefix(pdu).map(|(t, _)| t.fes.0).unwrap_or_default();
                return Err(Error::Protocol(format!("the target terminated the connection: FES {fes}")));
            }
            _ => return Err(malformed("PDU type")),
        }
        Ok(Some(plen))
    }
}

impl Connection {
    /// A data PDU that nobody looks at: its header, and as much of the rest as has arrived.
    fn discarded<'b>(
        &mut self,
        at: usize,
        ch: &CommonHdr,
        buffer: &impl Fn(u16) -> Option<(&'b Sgl, usize)>,
        events: &mut Vec<Event>,
    ) -> Result<Option<usize>> {
        let (plen, have) = (ch.plen as usize, self.have - at);
        let Ok((data, _)) = DataHdr::read_from_prefix(&self.input[at..self.have]) else { return Ok(None) };
        let (_, expected) = buffer(data.cccid).ok_or_else(|| malformed("C2HData for no read"))?;
        if (data.datao as usize).checked_add(data.datal as usize).is_none_or(|end| end > expected) {
            return Err(malformed("C2HData beyond its command"));
        }
        self.skip = plen.saturating_sub(have);
        if plen >= LEAN {
            // Its response may come before the next data.
            self.lean = 2;
        }
        if ch.flags & flags::SUCCESS != 0 && ch.flags & flags::LAST_PDU != 0 {
            events.push(Event::Response(Cqe { cid: data.cccid, ..Cqe::default() }));
        }
        Ok(Some(plen.min(have)))
    }
}

fn malformed(what: &str) -> Error {
    Error::Protocol(format!("malformed {what} from the target"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// More than a socket takes, of more lists than the kernel takes at once, and more headers than a buffer holds: all of it
    /// arrives in order, and what is sent is let go of.
    #[test]
    fn what_waits_is_sent_in_order() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let (mut out, mut want) = (Outgoing::default(), Vec::new());
        let mut full = false;
        for i in 0..3000u32 {
            let header: Vec<u8> = (0..72).map(|byte| (i + byte) as u8).collect();
            let data = vec![(i * 7) as u8; 4096];
            out.bytes(&header);
            want.extend_from_slice(&header);
            if i % 3 != 0 {
                let sgl = Buf::new(data.len()).into_sgl(data.len());
                sgl.copy_in(0, &data);
                out.data(sgl);
                want.extend_from_slice(&data);
            }
            out.send(&stream).unwrap();
            full |= !out.lists.is_empty();
        }
        assert!(full, "the socket was full");
        let mut got = vec![0; want.len()];
        for part in got.chunks_mut(64 << 10) {
            peer.read_exact(part).unwrap();
            out.send(&stream).unwrap();
        }
        assert!(got == want);
        assert!(out.lists.is_empty() && out.sent == 0);
    }

    #[test]
    fn the_last_bytes_of_a_large_write_go_with_the_next_send() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut out = Outgoing::default();
        let mut total = 0;
        while !(1..=total / FEW).contains(&Segment::default().rest(stream.as_fd(), total)) {
            out.data(Buf::zeroed(512).into_sgl(512));
            total += 512;
        }
        let mut got = vec![0; total];
        out.send(&stream).unwrap();
        let left: usize = out.lists.iter().map(Sgl::len).sum::<usize>() - out.sent;
        assert!((1..=total / FEW).contains(&left), "{left} of {total}");
        out.send(&stream).unwrap();
        assert!(out.lists.is_empty());
        peer.read_exact(&mut got).unwrap();
    }
}
