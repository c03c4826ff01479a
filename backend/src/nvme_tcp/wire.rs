//! The byte stream from a controller, cut into PDUs that are what they should be (NVMe/TCP Transport 1.1, 3.3 and 3.6).
//!
//! Sans I/O: bytes go in as they come, in pieces of any size, and [`Event`]s come out. Everything that a PDU's header
//! alone can get wrong is found here; what depends on a command is found in `queue`.
#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use engine::mem::Sgl;
use nvme_proto::Cqe;
use nvme_proto::tcp::{
    self, CapsuleResp, CommonHdr, DIGEST_LEN, DataHdr, Fes, IcReq, IcResp, MAXH2CDATA_MIN, PDA_MAX_Z, PFV,
    PduType, R2t, TERM_REQ_MAX, TermReq, dgst, flags,
};
use nvme_proto::zerocopy::{FromBytes, FromZeros};

/// Bytes of the common header.
const COMMON: usize = size_of::<CommonHdr>();
/// Bytes of every header that a controller sends after ICResp.
pub(super) const HEADER: usize = 24;
/// R2Ts of one command that may wait for their data at a time.
pub(super) const MAX_R2T: u32 = 4;

/// Offsets of fields in PDU headers, as FEI names them.
mod field {
    pub const TYPE: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HLEN: u32 = 2;
    pub const PDO: u32 = 3;
    pub const PLEN: u32 = 4;
    pub const PFV: u32 = 8;
    pub const CPDA: u32 = 10;
    pub const DGST: u32 = 11;
    pub const MAXH2CDATA: u32 = 12;
    pub const DATAL: u32 = 16;
}

/// What the controller did that it must not: the connection ends, and it is told why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// In words; never a peer's bytes.
    pub what: &'static str,
    /// FES of the H2CTermReq.
    pub fes: Fes,
    /// FEI: the field's offset.
    pub fei: u32,
}

impl Violation {
    pub fn new(fes: Fes, fei: u32, what: &'static str) -> Self {
        Violation { what, fes, fei }
    }

    fn field(fei: u32, what: &'static str) -> Self {
        Self::new(Fes::InvalidHeaderField, fei, what)
    }
}

/// What host and controller agreed on by ICReq and ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Every header is followed by its CRC32C.
    pub header_digest: bool,
    /// All data is followed by its CRC32C.
    pub data_digest: bool,
    /// Data to the controller begins at multiples of this many bytes (CPDA).
    pub align: usize,
    /// Bytes of data in one H2CData PDU at most.
    pub max_h2c_data: u32,
}

impl Agreed {
    /// Bytes of the header digest.
    pub fn hdgst(&self) -> usize {
        if self.header_digest { DIGEST_LEN } else { 0 }
    }

    /// Bytes of the data digest.
    pub fn ddgst(&self) -> usize {
        if self.data_digest { DIGEST_LEN } else { 0 }
    }
}

/// The ICReq of a host that wants these digests.
pub(super) fn ic_req(header_digest: bool, data_digest: bool) -> IcReq {
    let mut req = IcReq::new_zeroed();
    req.ch = CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 };
    req.pfv = PFV;
    req.dgst = wanted(header_digest, data_digest);
    req.maxr2t_z = MAX_R2T.saturating_sub(1);
    req
}

fn wanted(header_digest: bool, data_digest: bool) -> u8 {
    let bit = |on: bool, bit: u8| if on { bit } else { 0 };
    bit(header_digest, dgst::HDGST_ENABLE) | bit(data_digest, dgst::DDGST_ENABLE)
}

/// Reads an ICResp. A digest that was asked for must be granted, and no other.
pub(super) fn ic_resp(
    bytes: &[u8; 128],
    header_digest: bool,
    data_digest: bool,
) -> Result<Agreed, Violation> {
    let Ok(resp) = IcResp::read_from_bytes(bytes) else { return Err(Violation::field(0, "ICResp")) };
    let wrong = |fei, what| Err(Violation::field(fei, what));
    if resp.ch.pdu_type != PduType::IcResp {
        return wrong(field::TYPE, "another PDU instead of ICResp");
    }
    if resp.ch.hlen != 128 || resp.ch.plen != 128 {
        return wrong(field::HLEN, "the length of ICResp");
    }
    if resp.pfv != PFV {
        return wrong(field::PFV, "the PDU format version");
    }
    if resp.cpda_z > PDA_MAX_Z {
        return wrong(field::CPDA, "CPDA beyond 31");
    }
    if resp.maxh2cdata < MAXH2CDATA_MIN || resp.maxh2cdata % 4 != 0 {
        return wrong(field::MAXH2CDATA, "MAXH2CDATA below 4096 or not a multiple of 4");
    }
    let asked = wanted(header_digest, data_digest);
    if resp.dgst & !asked != 0 {
        return wrong(field::DGST, "a digest that was not asked for");
    }
    if resp.dgst != asked {
        return Err(Violation::new(Fes::UnsupportedParameter, field::DGST, "a digest was not granted"));
    }
    Ok(Agreed {
        header_digest,
        data_digest,
        align: usize::from(resp.cpda_z).saturating_add(1).saturating_mul(4),
        max_h2c_data: resp.maxh2cdata,
    })
}

/// What a stream of PDUs is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A response capsule.
    Response(Cqe),
    /// The header of a C2HData PDU; its payload follows, then [`Event::End`].
    Data(DataHdr),
    /// A run of the payload.
    Payload(&'a [u8]),
    /// The payload is complete, and equals its digest or does not.
    End {
        /// Whether it does.
        intact: bool,
    },
    /// An R2T.
    R2t(R2t),
    /// The controller ends the connection: FES.
    Terminated(Fes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Pad(usize),
    Payload(usize),
    Digest,
}

/// Cuts the stream.
pub(super) struct Framer {
    agreed: Agreed,
    head: [u8; HEADER + DIGEST_LEN],
    have: usize,
    state: State,
    crc: u32,
}

impl Framer {
    pub fn new(agreed: Agreed) -> Self {
        Framer { agreed, head: [0; HEADER + DIGEST_LEN], have: 0, state: State::Header, crc: 0 }
    }

    /// The next event, if `bytes` hold one; what belongs to it is taken from their start.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, Violation> {
        loop {
            match self.state {
                State::Header => {
                    let common = self.have < COMMON;
                    let want = if common { COMMON } else { self.header_len() };
                    if !self.gather(bytes, want) {
                        return Ok(None);
                    }
                    if common {
                        self.check_common()?;
                    } else {
                        self.have = 0;
                        return self.header().map(Some);
                    }
                }
                State::Pad(left) => {
                    let n = left.min(bytes.len());
                    *bytes = bytes.get(n..).unwrap_or_default();
                    self.state = match left.saturating_sub(n) {
                        0 => State::Payload(self.data_len()),
                        left => State::Pad(left),
                    };
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                }
                State::Payload(0) if self.agreed.data_digest => {
                    self.have = 0;
                    self.state = State::Digest;
                }
                State::Payload(0) => {
                    self.state = State::Header;
                    return Ok(Some(Event::End { intact: true }));
                }
                State::Payload(left) => {
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    *bytes = rest;
                    if now.is_empty() {
                        return Ok(None);
                    }
                    self.checksum(now);
                    self.state = State::Payload(left.saturating_sub(now.len()));
                    return Ok(Some(Event::Payload(now)));
                }
                State::Digest => {
                    if !self.gather(bytes, DIGEST_LEN) {
                        return Ok(None);
                    }
                    self.have = 0;
                    self.state = State::Header;
                    let intact = self.head.get(..DIGEST_LEN) == Some(&self.crc.to_le_bytes()[..]);
                    return Ok(Some(Event::End { intact }));
                }
            }
        }
    }

    /// Bytes of payload that come next.
    pub fn payload_left(&self) -> usize {
        match self.state {
            State::Payload(left) => left,
            _ => 0,
        }
    }

    /// Whether a header comes next, whole.
    pub fn at_header(&self) -> bool {
        self.state == State::Header && self.have == 0
    }

    /// The first `n` bytes of payload went elsewhere than through [`Framer::next`]: to byte `at` of `to`.
    pub fn received(&mut self, to: &Sgl, at: usize, n: usize) {
        if let State::Payload(left) = self.state {
            if self.agreed.data_digest {
                to.each_copy(at, n, |bytes| self.crc = tcp::digest_append(self.crc, bytes));
            }
            self.state = State::Payload(left.saturating_sub(n));
        }
    }

    fn checksum(&mut self, bytes: &[u8]) {
        if self.agreed.data_digest {
            self.crc = tcp::digest_append(self.crc, bytes);
        }
    }

    /// Fills `head` up to `want` bytes. Whether it is full.
    fn gather(&mut self, bytes: &mut &[u8], want: usize) -> bool {
        let n = want.saturating_sub(self.have).min(bytes.len());
        let (now, rest) = bytes.split_at(n);
        *bytes = rest;
        let end = self.have.saturating_add(n);
        if let Some(to) = self.head.get_mut(self.have..end) {
            to.copy_from_slice(now);
        }
        self.have = end;
        end >= want
    }

    fn common(&self) -> CommonHdr {
        CommonHdr::read_from_prefix(&self.head).map_or(CommonHdr::new_zeroed(), |(ch, _)| ch)
    }

    fn header_len(&self) -> usize {
        match self.common().pdu_type {
            PduType::C2hTermReq => HEADER,
            _ => HEADER.saturating_add(self.agreed.hdgst()),
        }
    }

    fn data_len(&self) -> usize {
        // The header is still in `head`: it is gathered anew only after the data.
        DataHdr::read_from_prefix(&self.head).map_or(0, |(h, _)| h.datal as usize)
    }

    /// What the first eight bytes tell, before more is believed.
    fn check_common(&self) -> Result<(), Violation> {
        let ch = self.common();
        let wrong = |fei, what| Err(Violation::field(fei, what));
        let (plen, head) = (ch.plen as usize, self.header_len());
        match ch.pdu_type {
            PduType::CapsuleResp | PduType::R2t if plen != head => return wrong(field::PLEN, "PLEN"),
            PduType::C2hData if plen <= head => return wrong(field::PLEN, "PLEN of C2HData"),
            PduType::C2hTermReq if plen < HEADER || ch.plen > TERM_REQ_MAX => {
                return wrong(field::PLEN, "PLEN of C2HTermReq");
            }
            PduType::CapsuleResp | PduType::R2t | PduType::C2hData | PduType::C2hTermReq => {}
            PduType::IcResp => {
                return Err(Violation::new(Fes::PduSequenceError, field::TYPE, "a second ICResp"));
            }
            _ => return wrong(field::TYPE, "a PDU type that no controller sends"),
        }
        if usize::from(ch.hlen) != HEADER {
            return wrong(field::HLEN, "HLEN");
        }
        let digests = self.agreed.header_digest && ch.pdu_type != PduType::C2hTermReq;
        if (ch.flags & flags::HDGSTF != 0) != digests {
            return wrong(field::FLAGS, "HDGSTF other than agreed");
        }
        if ch.pdu_type == PduType::C2hData && (ch.flags & flags::DDGSTF != 0) != self.agreed.data_digest {
            return wrong(field::FLAGS, "DDGSTF other than agreed");
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Event<'static>, Violation> {
        let ch = self.common();
        let (header, digest) = self.head.split_at(HEADER);
        if self.agreed.header_digest && ch.pdu_type != PduType::C2hTermReq {
            let crc = tcp::digest(header);
            if digest != crc.to_le_bytes() {
                return Err(Violation::new(Fes::HeaderDigestError, crc, "the header digest"));
            }
        }
        let malformed = Violation::field(0, "a header");
        match ch.pdu_type {
            PduType::CapsuleResp => {
                let resp = CapsuleResp::read_from_bytes(header).map_err(|_| malformed)?;
                Ok(Event::Response(resp.cqe))
            }
            PduType::R2t => R2t::read_from_bytes(header).map(Event::R2t).map_err(|_| malformed),
            PduType::C2hData => {
                let data = DataHdr::read_from_bytes(header).map_err(|_| malformed)?;
                let pad = self.check_data(&data)?;
                self.crc = 0;
                self.state = State::Pad(pad);
                Ok(Event::Data(data))
            }
            _ => {
                let term = TermReq::read_from_bytes(header).map_err(|_| malformed)?;
                Ok(Event::Terminated(term.fes))
            }
        }
    }

    /// Checks a C2HData PDU's header; how many bytes lie between it and the data.
    fn check_data(&self, data: &DataHdr) -> Result<usize, Violation> {
        let (ch, head) = (data.ch, self.header_len());
        let pdo = usize::from(ch.pdo);
        if pdo < head || pdo % 4 != 0 {
            return Err(Violation::field(field::PDO, "PDO of C2HData"));
        }
        let whole = u64::from(ch.pdo)
            .saturating_add(u64::from(data.datal))
            .saturating_add(if self.agreed.data_digest { 4 } else { 0 });
        if data.datal == 0 || u64::from(ch.plen) != whole {
            return Err(Violation::field(field::DATAL, "DATAL other than PLEN tells"));
        }
        if ch.flags & flags::SUCCESS != 0 && ch.flags & flags::LAST_PDU == 0 {
            return Err(Violation::field(field::FLAGS, "SUCCESS without LAST_PDU"));
        }
        Ok(pdo.saturating_sub(head))
    }
}
