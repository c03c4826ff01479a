//! A small NVMe/TCP target on threads of its own, that can be told to behave in any way.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nvme_proto::aen::Event;
use nvme_proto::fabrics::{AddressFamily, Connect, ConnectData, Property, SubsystemType, TransportType};
use nvme_proto::identify::*;
use nvme_proto::log::{DiscoveryEntry, DiscoveryHeader, GetLogPage, LogId};
use nvme_proto::opcode::{AdminOpcode, FabricsType, NvmOpcode};
use nvme_proto::register::{Cap, Cc, offset};
use nvme_proto::tcp::*;
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Cqe, Sqe, Status};

pub const BLOCK: usize = 512;
pub const BLOCKS: u64 = 8192;

pub type IoHook = Arc<dyn Fn(&mut Peer, &Sqe) -> bool + Send + Sync>;
pub type IcRespHook = Arc<dyn Fn(&mut [u8; 128]) + Send + Sync>;
pub type IdentifyHook = Arc<dyn Fn(Cns, &mut Vec<u8>) + Send + Sync>;

/// How the target behaves.
#[derive(Clone)]
pub struct Manner {
    pub cpda_z: u8,
    pub maxh2cdata: u32,
    /// 16-byte units.
    pub ioccsz: u32,
    pub queues: u16,
    /// Bytes of each R2T at most.
    pub r2t: u32,
    /// R2Ts that are sent before data must come.
    pub r2ts: usize,
    /// Bytes of each C2HData at most.
    pub c2h: usize,
    /// The last C2HData ends the command.
    pub success: bool,
    pub uuid: [u8; 16],
    pub blocks: u64,
    pub nsids: Vec<u32>,
    pub lbaf: LbaFormat,
    pub mdts: u8,
    /// Keep Alives are not answered.
    pub mute: bool,
    /// Records of the discovery log.
    pub records: u64,
    /// Called for each I/O command; whether it dealt with it.
    pub io: Option<IoHook>,
    /// The same for each command of an admin queue and each fabrics command.
    pub admin: Option<IoHook>,
    /// May change the ICResp.
    pub icresp: Option<IcRespHook>,
    /// May change what Identify answers.
    pub identify: Option<IdentifyHook>,
}

impl Default for Manner {
    fn default() -> Self {
        Manner {
            cpda_z: 0,
            maxh2cdata: 128 << 10,
            ioccsz: (64 + 4096) / 16,
            queues: 16,
            r2t: u32::MAX,
            r2ts: 1,
            c2h: usize::MAX,
            success: true,
            uuid: [7; 16],
            blocks: BLOCKS,
            nsids: vec![1],
            lbaf: LbaFormat::of_lbads(9),
            mdts: 8,
            mute: false,
            records: 2,
            io: None,
            admin: None,
            icresp: None,
            identify: None,
        }
    }
}

/// What all connections share.
pub struct Shared {
    pub manner: Mutex<Manner>,
    pub disk: Mutex<Vec<u8>>,
    /// I/O commands seen, by opcode.
    pub seen: Mutex<HashMap<u8, usize>>,
    pub associations: AtomicUsize,
    pub keep_alives: AtomicUsize,
    pub terminated: Mutex<Vec<u16>>,
    pub shutdowns: AtomicUsize,
    /// Events to tell, each with the answer to the next Keep Alive.
    notices: AtomicUsize,
    next_cntlid: AtomicU16,
    streams: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
}

pub struct Target {
    pub addr: SocketAddr,
    pub shared: Arc<Shared>,
}

impl Target {
    pub fn start(manner: Manner) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").unwrap(), manner)
    }

    pub fn at(listener: TcpListener, manner: Manner) -> Self {
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            disk: Mutex::new(vec![0; manner.blocks.min(BLOCKS) as usize * BLOCK]),
            manner: Mutex::new(manner),
            seen: Mutex::default(),
            associations: AtomicUsize::new(0),
            keep_alives: AtomicUsize::new(0),
            terminated: Mutex::default(),
            shutdowns: AtomicUsize::new(0),
            notices: AtomicUsize::new(0),
            next_cntlid: AtomicU16::new(1),
            streams: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if theirs.stop.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                theirs.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = theirs.clone();
                std::thread::spawn(move || {
                    let _ = Peer::serve(stream, shared);
                });
            }
        });
        Target { addr, shared }
    }

    pub fn set(&self, f: impl FnOnce(&mut Manner)) {
        f(&mut self.shared.manner.lock().unwrap());
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        cut(&self.shared);
    }

    /// The controller tells its host that namespaces changed.
    pub fn notify(&self) {
        self.shared.notices.fetch_add(1, Ordering::SeqCst);
    }

    pub fn seen(&self, opcode: NvmOpcode) -> usize {
        self.shared.seen.lock().unwrap().get(&opcode.0).copied().unwrap_or(0)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        self.cut();
    }
}

/// Cuts every connection.
pub fn cut(shared: &Shared) {
    for stream in shared.streams.lock().unwrap().drain(..) {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

struct Pending {
    sqe: Sqe,
    data: Vec<u8>,
    got: usize,
    asked: usize,
    waiting: usize,
}

/// The target's end of one connection.
pub struct Peer {
    pub stream: TcpStream,
    pub shared: Arc<Shared>,
    pub manner: Manner,
    hdgst: bool,
    ddgst: bool,
    pub qid: u16,
    cntlid: u16,
    cc: u32,
    pending: HashMap<u16, Pending>,
    event: Option<u16>,
    /// The association that was the newest when the queue was connected.
    association: usize,
}

impl Peer {
    fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
        let mut req = [0; 128];
        stream.read_exact(&mut req)?;
        let req = IcReq::read_from_bytes(&req).unwrap();
        assert_eq!((req.ch.pdu_type, req.pfv, req.hpda_z), (PduType::IcReq, 0, 0));
        let manner = shared.manner.lock().unwrap().clone();
        let mut resp = IcResp::new_zeroed();
        resp.ch = CommonHdr { pdu_type: PduType::IcResp, flags: 0, hlen: 128, pdo: 0, plen: 128 };
        resp.cpda_z = manner.cpda_z;
        resp.dgst = req.dgst;
        resp.maxh2cdata = manner.maxh2cdata;
        let mut bytes: [u8; 128] = resp.as_bytes().try_into().unwrap();
        if let Some(change) = &manner.icresp {
            change(&mut bytes);
        }
        stream.write_all(&bytes)?;
        let mut peer = Peer {
            stream,
            shared,
            manner,
            hdgst: req.dgst & dgst::HDGST_ENABLE != 0,
            ddgst: req.dgst & dgst::DDGST_ENABLE != 0,
            qid: 0,
            cntlid: 0,
            cc: 0,
            pending: HashMap::new(),
            event: None,
            association: 0,
        };
        loop {
            peer.turn()?;
        }
    }

    /// Reads a PDU: its header, and its data.
    pub fn read(&mut self) -> io::Result<(CommonHdr, Vec<u8>, Vec<u8>)> {
        let mut head = vec![0; 8];
        self.stream.read_exact(&mut head)?;
        let ch = CommonHdr::read_from_bytes(&head).unwrap();
        let mut whole = vec![0; ch.plen as usize];
        whole[..8].copy_from_slice(&head);
        self.stream.read_exact(&mut whole[8..])?;
        let (hlen, pdo) = (usize::from(ch.hlen), usize::from(ch.pdo));
        let digests = self.hdgst && ch.pdu_type != PduType::H2cTermReq;
        assert_eq!(ch.flags & flags::HDGSTF != 0, digests);
        let header = whole[..hlen].to_vec();
        if digests {
            assert_eq!(whole[hlen..hlen + 4], crc32c::crc32c(&header).to_le_bytes());
        }
        let mut data = Vec::new();
        if pdo > 0 {
            assert_eq!(pdo % (4 * (usize::from(self.manner.cpda_z) + 1)), 0, "CPDA");
            let end = whole.len() - if self.ddgst { 4 } else { 0 };
            data = whole[pdo..end].to_vec();
            assert_eq!(ch.flags & flags::DDGSTF != 0, self.ddgst);
            if self.ddgst {
                assert_eq!(whole[end..], crc32c::crc32c(&data).to_le_bytes());
            }
        }
        Ok((ch, header, data))
    }

    /// Sends a PDU with digests as agreed.
    pub fn send(&mut self, header: &[u8], data: &[u8]) {
        let mut ch = CommonHdr::read_from_prefix(header).unwrap().0;
        let mut whole = header.to_vec();
        let head = whole.len() + if self.hdgst { 4 } else { 0 };
        if self.hdgst {
            ch.flags |= flags::HDGSTF;
        }
        ch.plen = (head + data.len()) as u32;
        if !data.is_empty() {
            ch.pdo = head as u8;
            if self.ddgst {
                ch.flags |= flags::DDGSTF;
                ch.plen += 4;
            }
        }
        whole[..8].copy_from_slice(ch.as_bytes());
        if self.hdgst {
            whole.extend(crc32c::crc32c(&whole).to_le_bytes());
        }
        whole.extend(data);
        if !data.is_empty() && self.ddgst {
            whole.extend(crc32c::crc32c(data).to_le_bytes());
        }
        let _ = self.stream.write_all(&whole);
    }

    pub fn respond(&mut self, cid: u16, status: Status, result: u64) {
        let mut cqe = Cqe::new(cid, status);
        (cqe.dw0, cqe.dw1) = (result as u32, (result >> 32) as u32);
        let ch = CommonHdr { pdu_type: PduType::CapsuleResp, flags: 0, hlen: 24, pdo: 0, plen: 24 };
        self.send(CapsuleResp { ch, cqe }.as_bytes(), &[]);
    }

    pub fn c2h(&mut self, cid: u16, offset: u32, data: &[u8], more: u8) {
        let ch = CommonHdr { pdu_type: PduType::C2hData, flags: more, hlen: 24, pdo: 0, plen: 0 };
        let header =
            DataHdr { ch, cccid: cid, ttag: 0, datao: offset, datal: data.len() as u32, reserved: 0 };
        self.send(header.as_bytes(), data);
    }

    pub fn r2t(&mut self, cid: u16, ttag: u16, offset: u32, len: u32) {
        let ch = CommonHdr { pdu_type: PduType::R2t, flags: 0, hlen: 24, pdo: 0, plen: 0 };
        let r2t = R2t { ch, cccid: cid, ttag, r2to: offset, r2tl: len, reserved: 0 };
        self.send(r2t.as_bytes(), &[]);
    }

    /// Data for a read, then success.
    pub fn answer(&mut self, cid: u16, data: &[u8]) {
        let (step, success) = (self.manner.c2h.min(data.len()), self.manner.success);
        let mut at = 0;
        for part in data.chunks(step) {
            let last = at + part.len() == data.len();
            let mut more = if last { flags::LAST_PDU } else { 0 };
            if last && success {
                more |= flags::SUCCESS;
            }
            self.c2h(cid, at as u32, part, more);
            at += part.len();
        }
        if !success {
            self.respond(cid, Status::SUCCESS, 0);
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let (ch, header, data) = self.read()?;
        self.manner = self.shared.manner.lock().unwrap().clone();
        match ch.pdu_type {
            PduType::CapsuleCmd => {
                let sqe = CapsuleCmd::read_from_bytes(&header).unwrap().sqe;
                assert_eq!(sqe.flags.psdt(), 1);
                let fabrics = sqe.admin() == AdminOpcode::Fabrics;
                let hook = self.manner.admin.clone().filter(|_| fabrics || self.qid == 0);
                if hook.is_some_and(|f| f(self, &sqe)) {
                    return Ok(());
                }
                if fabrics {
                    self.fabrics(&sqe, &data);
                } else if self.qid == 0 {
                    self.admin(&sqe);
                } else {
                    *self.shared.seen.lock().unwrap().entry(sqe.opc).or_default() += 1;
                    let hook = self.manner.io.clone();
                    if !hook.is_some_and(|f| f(self, &sqe)) {
                        self.io(&sqe, data);
                    }
                }
            }
            PduType::H2cData => {
                let d = DataHdr::read_from_bytes(&header).unwrap();
                assert!(d.datal <= self.manner.maxh2cdata);
                self.data(&d, &data);
            }
            PduType::H2cTermReq => {
                let term = TermReq::read_from_bytes(&header).unwrap();
                self.shared.terminated.lock().unwrap().push(term.fes.0);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    }

    fn fabrics(&mut self, sqe: &Sqe, data: &[u8]) {
        match sqe.fctype() {
            FabricsType::Connect => {
                let data = ConnectData::read_from_bytes(data).unwrap();
                self.qid = Connect::of(sqe).qid;
                if self.qid == 0 {
                    let _nobody_writes = self.shared.disk.lock().unwrap();
                    self.shared.associations.fetch_add(1, Ordering::SeqCst);
                    self.cntlid = self.shared.next_cntlid.fetch_add(1, Ordering::SeqCst);
                } else {
                    self.cntlid = data.cntlid;
                }
                self.association = self.shared.associations.load(Ordering::SeqCst);
                self.respond(sqe.cid, Status::SUCCESS, u64::from(self.cntlid));
            }
            FabricsType::PropertySet => {
                self.cc = Property::of(sqe).value as u32;
                if Cc::from_bits(self.cc).shn() == 1 {
                    self.shared.shutdowns.fetch_add(1, Ordering::SeqCst);
                }
                self.respond(sqe.cid, Status::SUCCESS, 0);
            }
            FabricsType::PropertyGet => {
                let value = match Property::of(sqe).offset {
                    offset::CAP => Cap::new().with_mqes_z(127).with_css_nvm(true).with_to(10).into_bits(),
                    offset::CSTS => u64::from(self.cc & 1),
                    _ => 0,
                };
                self.respond(sqe.cid, Status::SUCCESS, value);
            }
            _ => self.respond(sqe.cid, Status::INVALID_OPCODE.dnr(), 0),
        }
    }

    fn admin(&mut self, sqe: &Sqe) {
        match sqe.admin() {
            AdminOpcode::Identify => match self.identify(sqe) {
                Some(mut data) => {
                    if let Some(change) = &self.manner.identify {
                        change(IdentifyCdw10::from_bits(sqe.cdw10).cns(), &mut data);
                    }
                    self.answer(sqe.cid, &data);
                }
                None => self.respond(sqe.cid, Status::INVALID_FIELD.dnr(), 0),
            },
            AdminOpcode::SetFeatures => {
                let z = u64::from(self.manner.queues - 1);
                self.respond(sqe.cid, Status::SUCCESS, z | z << 16);
            }
            AdminOpcode::KeepAlive => {
                self.shared.keep_alives.fetch_add(1, Ordering::SeqCst);
                if !self.manner.mute {
                    self.respond(sqe.cid, Status::SUCCESS, 0);
                }
                if self.shared.notices.load(Ordering::SeqCst) > 0
                    && let Some(cid) = self.event.take()
                {
                    self.shared.notices.fetch_sub(1, Ordering::SeqCst);
                    self.respond(cid, Status::SUCCESS, u64::from(Event::NAMESPACES_CHANGED.into_bits()));
                }
            }
            AdminOpcode::GetLogPage => {
                let page = GetLogPage::of(sqe);
                let log = self.log(page.lid);
                let at = page.lpo as usize;
                self.answer(sqe.cid, &log[at..at + page.bytes() as usize]);
            }
            AdminOpcode::AsyncEventRequest => self.event = Some(sqe.cid),
            _ => self.respond(sqe.cid, Status::INVALID_OPCODE.dnr(), 0),
        }
    }

    fn log(&self, lid: LogId) -> Vec<u8> {
        if lid != LogId::Discovery {
            return vec![0; 4096];
        }
        let mut header = DiscoveryHeader::new_zeroed();
        header.numrec = self.manner.records;
        let mut entry = DiscoveryEntry::new_zeroed();
        (entry.trtype, entry.adrfam, entry.subtype) =
            (TransportType::Tcp, AddressFamily::Ipv4, SubsystemType::Nvm);
        entry.traddr[..9].copy_from_slice(b"127.0.0.1");
        entry.trsvcid[..6].copy_from_slice(b"4420  ");
        entry.subnqn[..9].copy_from_slice(b"nqn.x:sub");
        let mut log = header.as_bytes().to_vec();
        for _ in 0..self.manner.records.min(2000) {
            log.extend(entry.as_bytes());
        }
        log
    }

    fn identify(&self, sqe: &Sqe) -> Option<Vec<u8>> {
        let m = &self.manner;
        Some(match IdentifyCdw10::from_bits(sqe.cdw10).cns() {
            Cns::Controller => {
                let mut id = IdentifyController::new_zeroed();
                id.cntlid = self.cntlid;
                id.cntrltype = ControllerType::Io;
                id.mdts = m.mdts;
                id.ioccsz = m.ioccsz;
                id.iorcsz = 1;
                id.oaes = Oaes::new().with_nsan(true);
                id.sgls = Sgls::new().with_support(1);
                id.vwc = Vwc::new().with_vwcp(true);
                id.oncs = Oncs::new().with_nvmcmps(true).with_nvmdsmsv(true).with_nvmwzsv(true);
                id.subnqn[..9].copy_from_slice(b"nqn.x:sub");
                id.as_bytes().to_vec()
            }
            Cns::ActiveNamespaces => {
                let mut list = NamespaceList::new_zeroed();
                list.nsids[..m.nsids.len()].copy_from_slice(&m.nsids);
                list.as_bytes().to_vec()
            }
            Cns::Namespace => {
                let mut ns = IdentifyNamespace::new_zeroed();
                ns.nsze = m.blocks;
                ns.ncap = m.blocks;
                ns.lbaf[0] = m.lbaf;
                ns.dlfeat = Dlfeat::new().with_rb(1).with_wzds(true);
                ns.as_bytes().to_vec()
            }
            Cns::NamespaceIdDescriptors => {
                let mut list = vec![0; 4096];
                list[..4].copy_from_slice(&[3, 16, 0, 0]);
                list[4..20].copy_from_slice(&m.uuid);
                list
            }
            _ => return None,
        })
    }

    /// An I/O command, honestly done.
    pub fn io(&mut self, sqe: &Sqe, data: Vec<u8>) {
        let len = sqe.nlb() as usize * BLOCK;
        match sqe.nvm() {
            NvmOpcode::Read => {
                let at = sqe.slba() as usize * BLOCK;
                let data = self.shared.disk.lock().unwrap()[at..at + len].to_vec();
                self.answer(sqe.cid, &data);
            }
            NvmOpcode::Flush | NvmOpcode::WriteZeroes => self.done(sqe, &[]),
            NvmOpcode::Write | NvmOpcode::Compare | NvmOpcode::DatasetManagement => {
                let len = sqe.sgl().length as usize;
                if data.len() == len {
                    return self.done(sqe, &data);
                }
                assert!(data.is_empty());
                let pending = Pending { sqe: *sqe, data: vec![0; len], got: 0, asked: 0, waiting: 0 };
                self.pending.insert(sqe.cid, pending);
                self.ask(sqe.cid);
            }
            _ => self.respond(sqe.cid, Status::INVALID_OPCODE.dnr(), 0),
        }
    }

    fn ask(&mut self, cid: u16) {
        loop {
            let p = self.pending.get_mut(&cid).unwrap();
            let len = (p.data.len() - p.asked).min(self.manner.r2t as usize);
            if len == 0 || p.waiting >= self.manner.r2ts {
                return;
            }
            let at = p.asked;
            p.asked += len;
            p.waiting += 1;
            self.r2t(cid, cid ^ 0x5a5a, at as u32, len as u32);
        }
    }

    fn data(&mut self, d: &DataHdr, data: &[u8]) {
        let Some(p) = self.pending.get_mut(&d.cccid) else { return };
        assert_eq!(d.ttag, d.cccid ^ 0x5a5a);
        let at = d.datao as usize;
        assert_eq!(at, p.got, "data in order");
        p.data[at..at + data.len()].copy_from_slice(data);
        p.got += data.len();
        if d.ch.flags & flags::LAST_PDU != 0 {
            p.waiting -= 1;
        }
        if p.got == p.data.len() {
            let p = self.pending.remove(&d.cccid).unwrap();
            self.done(&p.sqe, &p.data);
        } else {
            self.ask(d.cccid);
        }
    }

    fn done(&mut self, sqe: &Sqe, data: &[u8]) {
        let mut disk = self.shared.disk.lock().unwrap();
        if self.shared.associations.load(Ordering::SeqCst) != self.association {
            // An association that the host has given up changes nothing any more.
            return;
        }
        let at = sqe.slba() as usize * BLOCK;
        let status = match sqe.nvm() {
            NvmOpcode::Write => {
                disk[at..at + data.len()].copy_from_slice(data);
                Status::SUCCESS
            }
            NvmOpcode::WriteZeroes => {
                disk[at..at + sqe.nlb() as usize * BLOCK].fill(0);
                Status::SUCCESS
            }
            NvmOpcode::Compare if disk[at..at + data.len()] != *data => Status::COMPARE_FAILURE.dnr(),
            NvmOpcode::DatasetManagement => {
                let nlb = u32::from_le_bytes(data[4..8].try_into().unwrap()) as usize;
                let at = u64::from_le_bytes(data[8..16].try_into().unwrap()) as usize * BLOCK;
                disk[at..at + nlb * BLOCK].fill(0);
                Status::SUCCESS
            }
            _ => Status::SUCCESS,
        };
        drop(disk);
        self.respond(sqe.cid, status, 0);
    }
}
