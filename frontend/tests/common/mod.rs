//! A host by hand: bytes over a loopback socket, made from the specification's structures alone.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // each test uses its share

pub mod stall;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use engine::testing::memory;
use engine::{Config, ShardHandle, Shards};
use frontend::tcp::{Target, TargetConfig};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Connect, ConnectData, Property};
use nvme_proto::register::offset;
use nvme_proto::tcp::{
    CapsuleCmd, CapsuleResp, CommonHdr, DataHdr, IcReq, IcResp, PduType, R2t, dgst, flags,
};
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Cqe, Nqn, Sqe};

pub const SUBNQN: &str = "nqn.2024-01.test:disk";
pub const HOSTNQN: &str = "nqn.2024-01.test:host";
/// The first NSID that there cannot be.
pub const BEYOND: u32 = 257;

/// A target on two shards with one namespace of 64 MiB.
pub struct Rig {
    pub shards: Shards,
    pub target: Target,
    pub subsystem: Arc<Subsystem>,
    pub addr: SocketAddr,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(TargetConfig::default(), "127.0.0.1:0")
    }

    pub fn with(config: TargetConfig, addr: &str) -> Self {
        Self::on(2, config, addr)
    }

    /// On so many shards.
    pub fn on(shards: usize, config: TargetConfig, addr: &str) -> Self {
        memory::confine();
        let shards = Shards::start(&Config { cpus: vec![None; shards], ..Config::default() }).unwrap();
        let target = Target::new(shards.handles(), config).unwrap();
        let subsystem = subsystem(shards.handles(), SUBNQN);
        subsystem.add_namespace(namespace(1, 512, 64 << 20)).unwrap();
        // Every shard has the namespace before the first host comes, so that none hears of it as news.
        for shard in shards.handles() {
            shard.call(|_| ());
        }
        let addr = target.listen(addr.parse().unwrap(), &subsystem).unwrap();
        Rig { shards, target, subsystem, addr }
    }

    /// An admin queue and an I/O queue of an enabled controller.
    pub fn connect(&self, digests: u8) -> (Host, Host) {
        let mut admin = Host::open(self.addr, digests);
        let cntlid = admin.connect_admin(SUBNQN, 0);
        admin.enable();
        let mut io = Host::open(self.addr, digests);
        assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
        (admin, io)
    }
}

/// Whatever was sent, it was not kept.
impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            memory::assert_small();
        }
    }
}

pub fn subsystem(shards: &[ShardHandle], nqn: &str) -> Arc<Subsystem> {
    let config = SubsystemConfig {
        nqn: Nqn::new(nqn).unwrap(),
        serial: "TEST0001".into(),
        model: "Test disk".into(),
        max_namespaces: BEYOND - 1,
        allowed_hosts: Vec::new(),
    };
    Subsystem::new(config, shards).unwrap()
}

pub fn namespace(nsid: u32, block_size: u32, bytes: u64) -> Namespace {
    let volume = backend::ram::RamVolume::new(block_size, bytes / u64::from(block_size)).unwrap();
    let uuid = [nsid as u8; 16];
    Namespace { nsid, uuid, nguid: [0; 16], eui64: [0; 8], volume }
}

/// A PDU as it came.
pub struct Pdu {
    pub ch: CommonHdr,
    pub header: Vec<u8>,
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn read<H: FromBytes>(&self) -> H {
        H::read_from_bytes(&self.header[..size_of::<H>()]).unwrap()
    }
}

/// One connection of a host.
pub struct Host {
    pub stream: TcpStream,
    pub digests: u8,
    cid: u16,
}

impl Host {
    pub fn raw(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Host { stream, digests: 0, cid: 0 }
    }

    /// Connects and exchanges ICReq and ICResp.
    pub fn open(addr: SocketAddr, digests: u8) -> Self {
        let mut host = Self::raw(addr);
        host.stream.write_all(icreq(digests).as_bytes()).unwrap();
        let pdu = host.receive().unwrap();
        assert_eq!(pdu.ch.pdu_type, PduType::IcResp);
        let response: IcResp = pdu.read();
        assert_eq!((response.pfv, response.cpda_z, response.dgst), (0, 0, digests));
        assert!(response.maxh2cdata >= 4096);
        host.digests = digests;
        host
    }

    pub fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    /// The bytes of a PDU with a header whose lengths are filled in, and its data.
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
            bytes.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        }
        bytes.extend_from_slice(data);
        if ddgst > 0 {
            bytes.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
        }
        bytes
    }

    pub fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let mut capsule = CapsuleCmd::new_zeroed();
        capsule.ch.pdu_type = PduType::CapsuleCmd;
        capsule.sqe = sqe;
        self.pdu(capsule.as_bytes(), data)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next PDU, with its digests checked; `None` when the connection ended.
    pub fn receive(&mut self) -> Option<Pdu> {
        let mut common = [0u8; 8];
        self.stream.read_exact(&mut common).ok()?;
        let ch = CommonHdr::read_from_bytes(&common).unwrap();
        let mut rest = vec![0; ch.plen as usize - 8];
        self.stream.read_exact(&mut rest).ok()?;
        let bytes = [&common[..], &rest[..]].concat();
        let header = bytes[..usize::from(ch.hlen)].to_vec();
        if ch.flags & flags::HDGSTF != 0 && ch.pdu_type != PduType::C2hTermReq {
            let at = header.len();
            let digest = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(digest, crc32c::crc32c(&header), "header digest");
        }
        let ddgst = if ch.flags & flags::DDGSTF != 0 { 4 } else { 0 };
        let data = if ch.pdo == 0 { Vec::new() } else { bytes[ch.pdo.into()..bytes.len() - ddgst].to_vec() };
        if ddgst > 0 {
            let digest = u32::from_le_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
            assert_eq!(digest, crc32c::crc32c(&data), "data digest");
        }
        Some(Pdu { ch, header, data })
    }

    /// Waits for a command's completion; gives R2Ts their data, and collects what comes.
    pub fn complete(&mut self, write: &[u8]) -> (Cqe, Vec<u8>) {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive().expect("the connection ended");
            match pdu.ch.pdu_type {
                PduType::CapsuleResp => return (pdu.read::<CapsuleResp>().cqe, data),
                PduType::C2hData => {
                    let header: DataHdr = pdu.read();
                    assert_eq!(header.datao as usize, data.len());
                    data.extend_from_slice(&pdu.data);
                    if pdu.ch.flags & flags::SUCCESS != 0 {
                        return (Cqe { cid: header.cccid, ..Cqe::default() }, data);
                    }
                }
                PduType::R2t => {
                    let r2t: R2t = pdu.read();
                    for bytes in self.h2c(&r2t, write, 100 << 10) {
                        self.send(&bytes);
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The H2CData PDUs that answer an R2T.
    pub fn h2c(&self, r2t: &R2t, write: &[u8], most: usize) -> Vec<Vec<u8>> {
        let (from, len) = (r2t.r2to as usize, r2t.r2tl as usize);
        let mut at = 0;
        let mut pdus = Vec::new();
        while at < len {
            let n = most.min(len - at);
            let mut header = DataHdr::new_zeroed();
            header.ch.pdu_type = PduType::H2cData;
            header.ch.flags = if at + n == len { flags::LAST_PDU } else { 0 };
            (header.cccid, header.ttag) = (r2t.cccid, r2t.ttag);
            (header.datao, header.datal) = ((from + at) as u32, n as u32);
            pdus.push(self.pdu(header.as_bytes(), &write[from + at..from + at + n]));
            at += n;
        }
        pdus
    }

    /// Runs a command: writes go in the capsule up to 8 KiB, beyond by R2T.
    pub fn run(&mut self, mut sqe: Sqe, write: &[u8], read: usize) -> (Cqe, Vec<u8>) {
        sqe.cid = self.next_cid();
        let in_capsule = !write.is_empty() && write.len() <= 8192;
        sqe.set_sgl(match in_capsule {
            true => SglDescriptor::in_capsule(write.len() as u32),
            false => SglDescriptor::transport((write.len() + read) as u32),
        });
        let capsule = self.capsule(sqe, if in_capsule { write } else { &[] });
        self.send(&capsule);
        let (cqe, data) = self.complete(write);
        assert_eq!(cqe.cid, sqe.cid);
        (cqe, data)
    }

    pub fn connect(&mut self, connect: Connect, data: &ConnectData) -> Cqe {
        let sqe = connect.to_sqe(0);
        self.run(sqe, data.as_bytes(), 0).0
    }

    /// Connects the admin queue; the controller's identifier.
    pub fn connect_admin(&mut self, subnqn: &str, kato: u32) -> u16 {
        let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Default::default(), kato };
        let cqe = self.connect(connect, &connect_data(subnqn, HOSTNQN, 0xffff));
        assert!(cqe.status().is_success(), "{:?}", cqe.status());
        cqe.dw0 as u16
    }

    pub fn connect_queue(&mut self, subnqn: &str, qid: u16, cntlid: u16) -> Cqe {
        let cattr = nvme_proto::fabrics::Cattr::new().with_disable_sqfc(true);
        let connect = Connect { recfmt: 0, qid, sqsize_z: 127, cattr, kato: 0 };
        self.connect(connect, &connect_data(subnqn, HOSTNQN, cntlid))
    }

    pub fn property_get(&mut self, offset: u32, size: u8) -> u64 {
        let sqe = Property { offset, size, value: 0 }.get(0);
        let (cqe, _) = self.run(sqe, &[], 0);
        assert!(cqe.status().is_success());
        cqe.result64()
    }

    pub fn property_set(&mut self, offset: u32, value: u64) -> Cqe {
        self.run(Property { offset, size: 0, value }.set(0), &[], 0).0
    }

    /// CC.EN, and waits for CSTS.RDY.
    pub fn enable(&mut self) {
        assert!(self.property_set(offset::CC, 0x46_0001).status().is_success());
        self.wait_csts(1, 1);
    }

    pub fn wait_csts(&mut self, mask: u64, value: u64) {
        for _ in 0..2000 {
            if self.property_get(offset::CSTS, 0) & mask == value {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("CSTS never became {value:#x}");
    }

    pub fn write(&mut self, slba: u64, data: &[u8]) -> Cqe {
        self.run(rw(1, slba, data.len()), data, 0).0
    }

    pub fn read(&mut self, slba: u64, len: usize) -> (Cqe, Vec<u8>) {
        self.run(rw(2, slba, len), &[], len)
    }

    /// Whether the target has closed the connection, after what it still had to say. One that says nothing any more
    /// and stays is not closed.
    pub fn is_closed(&mut self) -> bool {
        while self.receive().is_some() {}
        let again = self.stream.read(&mut [0]);
        !again.is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

pub fn icreq(digests: u8) -> IcReq {
    let mut request = IcReq::new_zeroed();
    request.ch = CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 };
    request.dgst = digests;
    request
}

pub fn connect_data(subnqn: &str, hostnqn: &str, cntlid: u16) -> ConnectData {
    let mut data = ConnectData::new_zeroed();
    data.hostid = [7; 16];
    data.cntlid = cntlid;
    data.subnqn = Nqn::new(subnqn).unwrap().to_field();
    data.hostnqn = Nqn::new(hostnqn).unwrap().to_field();
    data
}

/// A Read (2) or Write (1) of NSID 1 in blocks of 512 bytes.
pub fn rw(opc: u8, slba: u64, len: usize) -> Sqe {
    let mut sqe = Sqe { opc, nsid: 1, cdw12: (len / 512 - 1) as u32, ..Sqe::default() };
    sqe.set_slba(slba);
    sqe
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let step = move |_| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..len).map(step).collect()
}

/// What a C2HTermReq says.
pub struct Terminated {
    pub fes: u16,
    pub fei: u32,
}

impl Host {
    /// The C2HTermReq that ends the connection, and its end; other PDUs before it are passed over.
    pub fn terminated(&mut self) -> Terminated {
        let mut found = None;
        while let Some(pdu) = self.receive() {
            if pdu.ch.pdu_type == PduType::C2hTermReq {
                let term: nvme_proto::tcp::TermReq = pdu.read();
                let fei = u32::from(term.fei_lo) | u32::from(term.fei_hi) << 16;
                found = Some(Terminated { fes: term.fes.0, fei });
            }
        }
        assert!(self.is_closed(), "the connection stays");
        found.expect("no C2HTermReq")
    }
}
