//! One connection of a host: bytes out, and answers that are held against what was asked.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use engine::Sim;
use engine::testing::fuzz::Trace;
use frontend::tcp::Target;
use nvme_proto::fabrics::CNTLID_DYNAMIC;
use nvme_proto::tcp::{
    CapsuleCmd, CapsuleResp, CommonHdr, DataHdr, IcReq, IcResp, PduType, R2t, TermReq, dgst, flags,
};
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Cqe, Sqe};
use socket2::{Domain, Socket, Type};

use crate::world::{is_valid, keeps_secrets, with_chunk};

/// What was asked under a CID and is not answered yet.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    times: usize,
    /// Bytes of the SGL.
    len: usize,
    /// Bytes of data that have come.
    got: usize,
    sqe: Sqe,
}

pub struct Peer {
    stream: TcpStream,
    received: Vec<u8>,
    /// What the target has not taken yet.
    unsent: Vec<u8>,
    /// [`Sim::stirred`] when everything was taken that had come; over TCP it says nothing.
    stirred: Option<u64>,
    /// What was asked for and what was granted.
    digests: u8,
    hpda: usize,
    max_r2t: u32,
    begun: bool,
    asked: HashMap<u16, Asked>,
    /// In the order in which they came.
    pub r2ts: VecDeque<R2t>,
    /// Every completion, and the data of reads, for a host that wants to know.
    pub completed: Vec<Cqe>,
    pub data: Vec<u8>,
    /// What was sent cannot be followed any more: answers are only looked at for their form.
    pub wild: bool,
    /// Something was sent after which the target must end the connection.
    pub doomed: bool,
    /// Commands were sent that may wait for ever.
    pub patient: bool,
    /// The target has closed it.
    pub ended: bool,
    terminated: bool,
    pub cntlid: u16,
    next_cid: u16,
}

impl Peer {
    /// A connection that the target is given, without a network in between, from an address of its own.
    pub fn admitted(target: &Target, to: SocketAddr, serial: u64) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let [a, b, c, d, ..] = serial.to_le_bytes();
        assert!(target.admit(to, SocketAddr::from(([127, b, c, d], u16::from(a))), theirs.into()));
        let mut peer = Self::new(OwnedFd::from(ours).into());
        peer.stirred = Some(u64::MAX);
        peer
    }

    /// Connects by TCP from an address of its own, so that ports do not run out.
    pub fn connect(to: SocketAddr, serial: u64) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let [a, b, ..] = serial.to_le_bytes();
        socket.bind(&SocketAddr::from(([127, 1, a, b.max(1)], 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        // A close is a reset: nothing of the connection stays behind in the kernel.
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        Self::new(socket.into())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Peer {
            stream,
            received: Vec::new(),
            unsent: Vec::new(),
            stirred: None,
            digests: 0,
            hpda: 4,
            max_r2t: 1,
            begun: false,
            asked: HashMap::new(),
            r2ts: VecDeque::new(),
            completed: Vec::new(),
            data: Vec::new(),
            wild: false,
            doomed: false,
            patient: false,
            ended: false,
            terminated: false,
            cntlid: CNTLID_DYNAMIC,
            next_cid: 0,
        }
    }

    pub fn next_cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    /// Sends bytes; what the target does not take at once goes later. One that hung up is no error.
    pub fn write(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.flush();
    }

    /// Whether anything went.
    fn flush(&mut self) -> bool {
        let mut any = false;
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.wild = true;
                    self.unsent.clear();
                }
            }
            any = true;
        }
        any
    }

    pub fn half_close(&mut self) {
        self.wild = true;
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    pub fn ic_req(&mut self, digests: u8, hpda_z: u8, maxr2t_z: u32) -> IcReq {
        let mut request = IcReq::new_zeroed();
        request.ch = CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 };
        (request.dgst, request.hpda_z, request.maxr2t_z) = (digests & 3, hpda_z, maxr2t_z);
        // What was agreed on holds for what is on its way when a second one ends the connection.
        if !self.begun {
            self.hpda = (usize::from(hpda_z) + 1) * 4;
            self.max_r2t = maxr2t_z.saturating_add(1);
        }
        request
    }

    /// A PDU with this header, whose lengths and flags are filled in, and this data.
    pub fn pdu(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut header = header.to_vec();
        let hdgst = if self.digests & dgst::HDGST_ENABLE != 0 { 4 } else { 0 };
        let ddgst = if self.digests & dgst::DDGST_ENABLE != 0 && !data.is_empty() { 4 } else { 0 };
        let pdo = header.len() + hdgst;
        let plen = pdo + data.len() + ddgst;
        header[1] |= if hdgst > 0 { flags::HDGSTF } else { 0 } | if ddgst > 0 { flags::DDGSTF } else { 0 };
        header[2] = header.len() as u8;
        header[3] = if data.is_empty() { 0 } else { pdo as u8 };
        header[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        let mut bytes = header.clone();
        if hdgst > 0 {
            bytes.extend(crc32c::crc32c(&header).to_le_bytes());
        }
        bytes.extend(data);
        if ddgst > 0 {
            bytes.extend(crc32c::crc32c(data).to_le_bytes());
        }
        bytes
    }

    /// A header that was changed gets its digest anew.
    pub fn seal(&self, pdu: &mut [u8], header: usize) {
        if self.digests & dgst::HDGST_ENABLE != 0 && pdu.len() >= header + 4 {
            let crc = crc32c::crc32c(&pdu[..header]);
            pdu[header..header + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }

    pub fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let mut capsule = CapsuleCmd::new_zeroed();
        capsule.ch.pdu_type = PduType::CapsuleCmd;
        capsule.sqe = sqe;
        self.pdu(capsule.as_bytes(), data)
    }

    /// Sends a capsule, and remembers what is asked by it.
    pub fn ask(&mut self, bytes: &[u8]) {
        self.expect(bytes);
        self.write(bytes);
    }

    /// Remembers what is asked by a capsule that is about to be sent.
    pub fn expect(&mut self, bytes: &[u8]) {
        let sqe = Sqe::read_from_bytes(&bytes[8..72]).unwrap();
        let asked = self.asked.entry(sqe.cid).or_default();
        asked.times += 1;
        asked.len = asked.len.max(sqe.sgl().length as usize);
        asked.sqe = sqe;
        // Event requests, and the first of two that are one.
        self.patient |= sqe.opc == 0x0c || sqe.flags.fuse() != 0 || asked.times > 1;
    }

    /// Whether ICResp has come.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The H2CData PDUs that answer an R2T.
    pub fn h2c(&self, r2t: &R2t, most: usize, fill: u8) -> Vec<Vec<u8>> {
        let len = r2t.r2tl as usize;
        let most = most.clamp(4, 128 << 10);
        let part = |at: usize| {
            let n = most.min(len - at);
            let mut header = DataHdr::new_zeroed();
            header.ch.pdu_type = PduType::H2cData;
            header.ch.flags = if at + n == len { flags::LAST_PDU } else { 0 };
            (header.cccid, header.ttag) = (r2t.cccid, r2t.ttag);
            (header.datao, header.datal) = (r2t.r2to + at as u32, n as u32);
            self.pdu(header.as_bytes(), &vec![fill; n])
        };
        (0..len).step_by(most).map(part).collect()
    }

    /// Takes what has come. Whether it was anything, or something went.
    pub fn receive(&mut self, sim: &Sim, trace: &mut Trace) -> bool {
        if self.stirred.is_some_and(|seen| seen == sim.stirred()) || self.ended {
            return false;
        }
        self.stirred = self.stirred.map(|_| sim.stirred());
        let mut any = self.flush();
        with_chunk(|chunk| {
            while !self.ended {
                match self.stream.read(chunk) {
                    Ok(0) => self.ended = true,
                    Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => self.ended = true,
                }
                any = true;
            }
        });
        if self.ended {
            trace.note("end");
        }
        let all = std::mem::take(&mut self.received);
        let mut rest = &all[..];
        while let Ok((ch, _)) = CommonHdr::read_from_prefix(rest) {
            let plen = ch.plen as usize;
            assert!((24..4 << 20).contains(&plen), "{ch:?}");
            if plen > rest.len() {
                break;
            }
            let (pdu, after) = rest.split_at(plen);
            self.pdu_came(ch, pdu, trace);
            rest = after;
        }
        self.received = rest.to_vec();
        any
    }

    fn pdu_came(&mut self, ch: CommonHdr, pdu: &[u8], trace: &mut Trace) {
        assert!(!self.terminated, "{ch:?} after C2HTermReq");
        assert_eq!(ch.pdu_type.hlen(), Some(ch.hlen), "{ch:?}");
        trace.note(("pdu", ch.pdu_type.0, ch.flags));
        let header = &pdu[..usize::from(ch.hlen)];
        if !self.begun {
            assert!(matches!(ch.pdu_type, PduType::IcResp | PduType::C2hTermReq), "{ch:?} before ICResp");
        }
        match ch.pdu_type {
            PduType::IcResp => {
                let response = IcResp::read_from_bytes(header).unwrap();
                assert!(!self.begun && response.maxh2cdata >= 4096 && response.cpda_z <= 31);
                (self.begun, self.digests) = (true, response.dgst);
            }
            PduType::C2hTermReq => {
                let term = TermReq::read_from_bytes(header).unwrap();
                assert!(matches!(term.fes.0, 1..=6) && pdu.len() <= 152);
                trace.note(("term", term.fes.0, term.fei_lo));
                self.terminated = true;
            }
            PduType::CapsuleResp => {
                assert_eq!((pdu.len(), ch.pdo), (24 + self.header_digest(header, pdu), 0));
                self.answered(&CapsuleResp::read_from_bytes(header).unwrap().cqe, trace);
            }
            PduType::R2t => {
                assert_eq!((pdu.len(), ch.pdo), (24 + self.header_digest(header, pdu), 0));
                let r2t = R2t::read_from_bytes(header).unwrap();
                let end = u64::from(r2t.r2to) + u64::from(r2t.r2tl);
                assert!(r2t.r2tl > 0, "an R2T of nothing");
                if !self.wild {
                    let asked = self.asked.get(&r2t.cccid).expect("an R2T for no command");
                    assert!(end <= asked.len as u64, "an R2T beyond the data");
                    let same = self.r2ts.iter().filter(|other| other.cccid == r2t.cccid).count();
                    assert!(same < self.max_r2t as usize * asked.times, "more R2Ts than MAXR2T");
                }
                self.r2ts.push_back(r2t);
            }
            PduType::C2hData => self.data_came(ch, header, pdu, trace),
            other => panic!("{other:?} from a target"),
        }
    }

    /// Bytes of the header digest, which must be right.
    fn header_digest(&self, header: &[u8], pdu: &[u8]) -> usize {
        let on = self.digests & dgst::HDGST_ENABLE != 0;
        assert_eq!(pdu[1] & flags::HDGSTF != 0, on);
        if on {
            assert_eq!(pdu[header.len()..][..4], crc32c::crc32c(header).to_le_bytes());
        }
        if on { 4 } else { 0 }
    }

    fn data_came(&mut self, ch: CommonHdr, header: &[u8], pdu: &[u8], trace: &mut Trace) {
        let h = DataHdr::read_from_bytes(header).unwrap();
        let head = 24 + self.header_digest(header, pdu);
        let ddgst = if self.digests & dgst::DDGST_ENABLE != 0 { 4 } else { 0 };
        assert_eq!(ch.flags & flags::DDGSTF != 0, ddgst > 0);
        let pdo = usize::from(ch.pdo);
        assert!(pdo >= head && pdo.is_multiple_of(self.hpda) && h.datal > 0, "{h:?}");
        assert_eq!(pdo + h.datal as usize + ddgst, pdu.len(), "{h:?}");
        let data = &pdu[pdo..pdo + h.datal as usize];
        assert!(pdu[head..pdo].iter().all(|byte| *byte == 0), "padding has a value");
        if ddgst > 0 {
            assert_eq!(pdu[pdu.len() - 4..], crc32c::crc32c(data).to_le_bytes());
        }
        self.data.extend_from_slice(data);
        if self.wild {
            return;
        }
        let asked = self.asked.get_mut(&h.cccid).expect("data for no command");
        assert_eq!(h.datao as usize, asked.got, "data out of order");
        asked.got += data.len();
        assert!(asked.got <= asked.len, "more data than asked for");
        let last = ch.flags & flags::LAST_PDU != 0;
        if ch.flags & flags::SUCCESS != 0 {
            assert!(last);
            self.answered(&Cqe { cid: h.cccid, ..Cqe::default() }, trace);
        }
    }

    fn answered(&mut self, cqe: &Cqe, trace: &mut Trace) {
        is_valid(cqe.status());
        assert!(!cqe.status.phase(), "a phase tag over Fabrics");
        let asked = self.asked.get_mut(&cqe.cid).filter(|asked| asked.times > 0);
        trace.note(("cqe", asked.as_ref().map(|a| (a.sqe.opc, a.sqe.cdw10 as u8)), cqe.status().code().0));
        match asked {
            Some(asked) => {
                asked.times -= 1;
                asked.got = 0;
                if asked.times == 0 {
                    self.r2ts.retain(|r2t| r2t.cccid != cqe.cid);
                    self.asked.remove(&cqe.cid);
                }
            }
            None => assert!(self.wild, "an answer to nothing: {cqe:?}"),
        }
        self.completed.push(*cqe);
    }

    /// Nothing of what it got was somebody else's.
    pub fn check_data(&self) {
        keeps_secrets(&self.data);
        keeps_secrets(&self.received);
    }

    /// After a long time: what could be answered was.
    pub fn check_answered(&self) {
        let waits = self.ended || self.wild || !self.unsent.is_empty() || self.patient || !self.begun;
        assert!(waits || self.asked.is_empty(), "never answered: {:?}", self.asked);
        let lives = !self.ended && !self.terminated && self.unsent.is_empty();
        assert!(!(self.doomed && lives), "the target goes on with a connection that it cannot follow");
    }

    /// Whether nothing is owed.
    pub fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }
}
