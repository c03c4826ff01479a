//! The framing of PDUs, without a socket: what the next bytes of the stream are (NVMe/TCP Transport 1.1, 3.3 and 3.6).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nvme_proto::tcp::{self, CommonHdr, DIGEST_LEN, Fes, PDA_MAX_Z, PduType, TERM_REQ_MAX, flags};
use nvme_proto::zerocopy::FromBytes;

use super::reject::Reason;

/// Bytes of the longest header.
const HEADER_MAX: usize = 128;
const COMMON: usize = size_of::<CommonHdr>();

/// What ends a connection: the C2HTermReq that says so, and the counter it counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal {
    pub fes: Fes,
    pub fei: u32,
    pub reason: Reason,
}

impl Fatal {
    pub fn new(fes: Fes, fei: u32, reason: Reason) -> Self {
        Fatal { fes, fei, reason }
    }

    /// A field of the header, by its byte offset.
    pub fn field(offset: u32, reason: Reason) -> Self {
        Self::new(Fes::InvalidHeaderField, offset, reason)
    }

    pub fn sequence(reason: Reason) -> Self {
        Self::new(Fes::PduSequenceError, 0, reason)
    }
}

/// What a side of the connection has agreed to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreed {
    /// Header digests.
    pub hdgst: bool,
    /// Data digests.
    pub ddgst: bool,
    /// Alignment of data that the host wants, in bytes.
    pub hpda: usize,
    /// Alignment of data that this side wants, in bytes.
    pub cpda: usize,
    /// R2Ts of one command that the host takes at once.
    pub r2ts: u32,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// That many of the header (and its digest): [`Framer::header`].
    Header(usize),
    /// That many that mean nothing: [`Framer::passed`].
    Pad(usize),
    /// That many of the data: [`Framer::passed`].
    Data(usize),
    /// That many of the data digest: [`Framer::digest`].
    Digest(usize),
    /// None: the PDU is whole: [`Framer::next`].
    Whole,
}

/// Finds PDUs in a stream.
pub(super) struct Framer {
    /// Before ICReq nothing else is taken, after it never again.
    initialised: bool,
    agreed: Agreed,
    /// Bytes of data at most in a command capsule, and in an H2CData.
    max_data: (usize, usize),
    raw: [u8; HEADER_MAX + DIGEST_LEN],
    have: usize,
    layout: Option<Layout>,
}

/// A PDU whose common header has been checked: what is still to come of it.
#[derive(Clone, Copy, Debug)]
struct Layout {
    pdu_type: PduType,
    /// Header and its digest.
    header: usize,
    pad: usize,
    data: usize,
    digest: usize,
    received_digest: [u8; DIGEST_LEN],
    data_len: usize,
}

impl Framer {
    /// A framer for the start of a connection. A capsule carries at most the first, an H2CData the second number of
    /// bytes.
    pub fn new(max_capsule: usize, max_h2cdata: usize) -> Self {
        Framer {
            initialised: false,
            agreed: Agreed::default(),
            max_data: (max_capsule, max_h2cdata),
            raw: [0; HEADER_MAX + DIGEST_LEN],
            have: 0,
            layout: None,
        }
    }

    /// ICReq has been answered.
    pub fn initialised(&mut self, agreed: Agreed) {
        self.initialised = true;
        self.agreed = agreed;
    }

    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// From now on a capsule carries at most that many bytes.
    pub fn set_max_capsule(&mut self, bytes: usize) {
        self.max_data.0 = bytes;
    }

    /// What the next bytes are.
    pub fn want(&self) -> Want {
        let Some(l) = &self.layout else { return Want::Header(COMMON.saturating_sub(self.have)) };
        match (l.header.saturating_sub(self.have), l.pad, l.data, l.digest) {
            (0, 0, 0, 0) => Want::Whole,
            (0, 0, 0, digest) => Want::Digest(digest),
            (0, 0, data, _) => Want::Data(data),
            (0, pad, _, _) => Want::Pad(pad),
            (header, _, _, _) => Want::Header(header),
        }
    }

    /// Takes bytes of the header: no more than were wanted. Whether the header is now complete and right.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn header(&mut self, bytes: &[u8]) -> Result<bool, Fatal> {
        let end = self.have.saturating_add(bytes.len());
        if let Some(to) = self.raw.get_mut(self.have..end) {
            to.copy_from_slice(bytes);
        }
        self.have = end;
        if self.layout.is_none() {
            if self.have < COMMON {
                return Ok(false);
            }
            self.layout = Some(self.check_common()?);
        }
        if self.layout.is_some_and(|l| self.have < l.header) {
            return Ok(false);
        }
        self.check_digest()?;
        Ok(true)
    }

    /// The checks that need no more than the common header. Nothing is ever allocated from PLEN.
    fn check_common(&self) -> Result<Layout, Fatal> {
        let Ok(ch) = CommonHdr::read_from_bytes(self.raw.get(..COMMON).unwrap_or_default()) else {
            return Err(Fatal::field(0, Reason::PduType));
        };
        let t = ch.pdu_type;
        match t {
            PduType::IcReq if self.initialised => return Err(Fatal::sequence(Reason::PduSequence)),
            PduType::IcReq | PduType::H2cTermReq => {}
            PduType::CapsuleCmd | PduType::H2cData if self.initialised => {}
            PduType::CapsuleCmd | PduType::H2cData => return Err(Fatal::sequence(Reason::PduSequence)),
            _ => return Err(Fatal::field(0, Reason::PduType)),
        }
        if t.hlen() != Some(ch.hlen) {
            return Err(Fatal::field(2, Reason::PduHeader));
        }
        let hlen = usize::from(ch.hlen);
        let plen = usize::try_from(ch.plen).unwrap_or(usize::MAX);
        let bad_plen = Err(Fatal::field(4, Reason::PduLength));
        let layout = |header, pad, data_len, digest| Layout {
            pdu_type: t,
            header,
            pad,
            data: data_len,
            digest,
            received_digest: [0; DIGEST_LEN],
            data_len,
        };
        if !t.has_data() {
            // ICReq; TermReq carries the header of a PDU of ours, which nobody reads. One of another length ends the
            // connection as any does (3.5).
            return match plen.checked_sub(hlen) {
                Some(0) => Ok(layout(hlen, 0, 0, 0)),
                Some(quoted) if t == PduType::H2cTermReq && plen <= TERM_REQ_MAX as usize => {
                    Ok(layout(hlen, quoted, 0, 0))
                }
                _ if t == PduType::H2cTermReq => Ok(layout(hlen, 0, 0, 0)),
                _ => bad_plen,
            };
        }
        let hdgstf = ch.flags & flags::HDGSTF != 0;
        let ddgstf = ch.flags & flags::DDGSTF != 0;
        if hdgstf != self.agreed.hdgst {
            return Err(Fatal::field(1, Reason::PduHeader));
        }
        let header = hlen.saturating_add(if hdgstf { DIGEST_LEN } else { 0 });
        if plen == header && t == PduType::CapsuleCmd {
            return Ok(layout(header, 0, 0, 0));
        }
        if ddgstf != self.agreed.ddgst {
            return Err(Fatal::field(1, Reason::PduHeader));
        }
        let (pdo, digest) = (usize::from(ch.pdo), if ddgstf { DIGEST_LEN } else { 0 });
        let (Some(pad), Some(rest)) = (pdo.checked_sub(header), plen.checked_sub(pdo)) else {
            return Err(Fatal::field(3, Reason::PduHeader));
        };
        if !pdo.is_multiple_of(self.agreed.cpda.max(4))
            || pad > (usize::from(PDA_MAX_Z).saturating_add(1)).saturating_mul(4)
        {
            return Err(Fatal::field(3, Reason::PduHeader));
        }
        let most = if t == PduType::CapsuleCmd { self.max_data.0 } else { self.max_data.1 };
        match rest.checked_sub(digest) {
            Some(data_len) if data_len > 0 && data_len <= most => Ok(layout(header, pad, data_len, digest)),
            Some(1..) if t == PduType::H2cData => Err(Fatal::new(Fes::LimitExceeded, 0, Reason::PduLength)),
            _ => bad_plen,
        }
    }

    fn check_digest(&self) -> Result<(), Fatal> {
        let Some(l) = self.layout.filter(|l| self.agreed.hdgst && l.pdu_type.has_data()) else {
            return Ok(());
        };
        let at = l.header.saturating_sub(DIGEST_LEN);
        let (Some(header), Some(digest)) = (self.raw.get(..at), self.raw.get(at..l.header)) else {
            return Ok(());
        };
        let received = u32::from_le_bytes(digest.try_into().unwrap_or_default());
        if tcp::digest(header) == received {
            return Ok(());
        }
        Err(Fatal::new(Fes::HeaderDigestError, received, Reason::HeaderDigest))
    }

    /// That many bytes of padding or data have been passed over or put where they belong.
    pub fn passed(&mut self, n: usize) {
        if let Some(l) = &mut self.layout {
            let left = if l.pad > 0 { &mut l.pad } else { &mut l.data };
            *left = left.saturating_sub(n);
        }
    }

    /// Takes bytes of the data digest.
    pub fn digest(&mut self, bytes: &[u8]) {
        if let Some(l) = &mut self.layout {
            let at = DIGEST_LEN.saturating_sub(l.digest);
            for (to, from) in l.received_digest.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
            l.digest = l.digest.saturating_sub(bytes.len());
        }
    }

    /// The type of the PDU whose header is complete.
    pub fn pdu_type(&self) -> Option<PduType> {
        self.layout.map(|l| l.pdu_type)
    }

    /// Bytes of data in this PDU.
    pub fn data_len(&self) -> usize {
        self.layout.map_or(0, |l| l.data_len)
    }

    /// The header as one of its structures; `None` before it is complete.
    pub fn read<H: FromBytes>(&self) -> Option<H> {
        H::read_from_bytes(self.raw.get(..size_of::<H>())?).ok()
    }

    /// The bytes of the header that have come: what a C2HTermReq quotes.
    pub fn quote(&self) -> &[u8] {
        self.raw.get(..self.have.min(HEADER_MAX)).unwrap_or_default()
    }

    /// The data digest that came with this PDU, if it has one.
    pub fn data_digest(&self) -> Option<u32> {
        let l = self.layout.filter(|l| self.agreed.ddgst && l.data_len > 0)?;
        Some(u32::from_le_bytes(l.received_digest))
    }

    /// Begins the next PDU.
    pub fn next(&mut self) {
        self.have = 0;
        self.layout = None;
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use nvme_proto::tcp::{CapsuleCmd, DataHdr, IcReq};
    use nvme_proto::zerocopy::{FromZeros, IntoBytes};

    use super::*;

    const CAPSULE: usize = 8192;
    const H2CDATA: usize = 128 << 10;

    /// Feeds a stream in pieces of at most `piece` bytes; the types and data of the PDUs that it holds.
    fn frames(framer: &mut Framer, mut stream: &[u8], piece: usize) -> Result<Vec<(u8, Vec<u8>)>, Fatal> {
        let mut found = Vec::new();
        let mut data = Vec::new();
        loop {
            let want = framer.want();
            if want == Want::Whole {
                found.push((framer.pdu_type().unwrap().0, std::mem::take(&mut data)));
                let agreed = Agreed { hdgst: true, ddgst: true, hpda: 4, cpda: 4, r2ts: 1 };
                if found.last().unwrap().0 == PduType::IcReq.0 {
                    framer.initialised(agreed);
                }
                framer.next();
                continue;
            }
            if stream.is_empty() {
                return Ok(found);
            }
            let (Want::Header(n) | Want::Pad(n) | Want::Data(n) | Want::Digest(n)) = want else { panic!() };
            let (now, rest) = stream.split_at(n.min(piece).min(stream.len()));
            stream = rest;
            match want {
                Want::Header(_) => drop(framer.header(now)?),
                Want::Pad(_) => framer.passed(now.len()),
                Want::Digest(_) => framer.digest(now),
                _ => {
                    data.extend_from_slice(now);
                    framer.passed(now.len());
                }
            }
        }
    }

    fn icreq() -> Vec<u8> {
        let mut request = IcReq::new_zeroed();
        request.ch = CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 };
        request.as_bytes().to_vec()
    }

    /// A PDU with both digests, its data after `pad` bytes of junk.
    fn pdu(header: &[u8], pdu_type: PduType, pad: usize, data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        let pdo = bytes.len() + 4 + pad;
        let digest = if data.is_empty() { 0 } else { 4 };
        bytes[0] = pdu_type.0;
        bytes[1] = flags::HDGSTF | if digest > 0 { flags::DDGSTF } else { 0 };
        bytes[2] = header.len() as u8;
        bytes[3] = if digest > 0 { pdo as u8 } else { 0 };
        let plen = if digest > 0 { pdo + data.len() + digest } else { header.len() + 4 };
        bytes[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        if digest > 0 {
            bytes.extend(vec![0xaa; pad]);
            bytes.extend_from_slice(data);
            bytes.extend(crc32c::crc32c(data).to_le_bytes());
        }
        bytes
    }

    fn stream() -> Vec<u8> {
        let (command, data) = (CapsuleCmd::new_zeroed(), DataHdr::new_zeroed());
        [
            icreq(),
            pdu(command.as_bytes(), PduType::CapsuleCmd, 0, &[]),
            pdu(command.as_bytes(), PduType::CapsuleCmd, 12, &[1; 100]),
            pdu(data.as_bytes(), PduType::H2cData, 0, &[2; 5000]),
            pdu(command.as_bytes(), PduType::CapsuleCmd, 0, &[3; CAPSULE]),
        ]
        .concat()
    }

    /// A.17
    #[test]
    fn pdus_are_found_wherever_segments_end() {
        let want = [(0, vec![]), (4, vec![]), (4, vec![1; 100]), (6, vec![2; 5000]), (4, vec![3; CAPSULE])];
        for piece in [1, 2, 3, 7, 8, 71, 72, 73, 4096, usize::MAX] {
            let mut framer = Framer::new(CAPSULE, H2CDATA);
            assert_eq!(frames(&mut framer, &stream(), piece).unwrap(), want, "pieces of {piece}");
        }
    }

    #[test]
    fn the_data_digest_is_kept() {
        let mut framer = Framer::new(CAPSULE, H2CDATA);
        frames(&mut framer, &icreq(), 5).unwrap();
        let command = CapsuleCmd::new_zeroed();
        let bytes = pdu(command.as_bytes(), PduType::CapsuleCmd, 0, &[9; 512]);
        let (most, last) = bytes.split_at(bytes.len() - 1);
        frames(&mut framer, most, usize::MAX).unwrap();
        assert_eq!(framer.want(), Want::Digest(1));
        framer.digest(last);
        assert_eq!(framer.want(), Want::Whole);
        assert_eq!(framer.data_digest(), Some(crc32c::crc32c(&[9; 512])));
    }

    /// A.14
    #[test]
    fn data_begins_where_this_side_wants_it() {
        for (cpda, pad, right) in
            [(4, 0, true), (4, 52, true), (64, 0, false), (64, 52, true), (128, 52, true)]
        {
            let mut framer = Framer::new(CAPSULE, H2CDATA);
            frames(&mut framer, &icreq(), usize::MAX).unwrap();
            framer.initialised(Agreed { cpda, ..framer.agreed() });
            let bytes = pdu(CapsuleCmd::new_zeroed().as_bytes(), PduType::CapsuleCmd, pad, &[1; 64]);
            let found = frames(&mut framer, &bytes, usize::MAX).map(|found| found.len());
            let want = if right { Ok(1) } else { Err(Fatal::field(3, Reason::PduHeader)) };
            assert_eq!(found, want, "PDO {} where CPDA wants {cpda}", 76 + pad);
        }
    }

    /// A: every byte of a stream changed to other values: it is refused or it is taken, and what is taken never
    /// exceeds what capsules and H2CData may carry.
    #[test]
    fn changed_bytes_never_make_more_than_the_limits() {
        let whole = stream();
        for at in (0..whole.len()).filter(|at| *at < 128 + 400 || at % 997 == 0) {
            for change in [1u8, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                let mut framer = Framer::new(CAPSULE, H2CDATA);
                if let Ok(found) = frames(&mut framer, &bytes, 61) {
                    assert!(found.iter().all(|(_, data)| data.len() <= H2CDATA));
                    assert!(found.iter().all(|(t, data)| *t != 4 || data.len() <= CAPSULE));
                }
            }
        }
    }
}
