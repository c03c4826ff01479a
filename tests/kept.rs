//! What hosts set of a namespace and that is to outlive the process does, a kill included, and ends with the namespace:
//! reservations and write protection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::free_port;
use common::grpc::Grpc;
use common::server::Server;
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{CNTLID_DYNAMIC, Cattr, Connect, ConnectData, Property};
use nvme_proto::register::offset;
use nvme_proto::reservation::RegisterData;
use nvme_proto::tcp::{CapsuleCmd, CapsuleResp, CommonHdr, DataHdr, IcReq, PduType, flags};
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Cqe, Nqn, Sqe, Status};

const NQN: &str = "nqn.2024-01.com.example:disk";
/// CPTPL of Reservation Register: persist.
const PERSIST: u32 = 3 << 30;
const CONFLICT: Status = Status::RESERVATION_CONFLICT;
const SUCCESS: Status = Status::SUCCESS;

/// A queue of a host that sends single commands.
struct Queue(TcpStream);

/// A host: its admin and its I/O queue.
struct Host {
    admin: Queue,
    io: Queue,
}

impl Queue {
    fn open(port: u16, connect: Connect, data: &ConnectData) -> (Self, Cqe) {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut queue = Queue(stream);
        let mut request = IcReq::new_zeroed();
        request.ch = CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 };
        queue.0.write_all(request.as_bytes()).unwrap();
        assert_eq!(queue.receive().0, PduType::IcResp);
        let (cqe, _) = queue.run(connect.to_sqe(0), data.as_bytes(), 0);
        assert!(cqe.status().is_success(), "{:?}", cqe.status());
        (queue, cqe)
    }

    fn receive(&mut self) -> (PduType, Vec<u8>) {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).unwrap();
        let common = CommonHdr::read_from_bytes(&header).unwrap();
        let mut bytes = header.to_vec();
        bytes.resize(common.plen as usize, 0);
        self.0.read_exact(&mut bytes[8..]).unwrap();
        (common.pdu_type, bytes)
    }

    fn run(&mut self, mut sqe: Sqe, write: &[u8], read: usize) -> (Cqe, Vec<u8>) {
        sqe.set_sgl(match write.len() {
            0 => SglDescriptor::transport(read as u32),
            len => SglDescriptor::in_capsule(len as u32),
        });
        let mut capsule = CapsuleCmd::new_zeroed();
        let pdo = if write.is_empty() { 0 } else { 72 };
        let plen = 72 + write.len() as u32;
        capsule.ch = CommonHdr { pdu_type: PduType::CapsuleCmd, flags: 0, hlen: 72, pdo, plen };
        capsule.sqe = sqe;
        self.0.write_all(&[capsule.as_bytes(), write].concat()).unwrap();
        let mut data = Vec::new();
        loop {
            let (kind, bytes) = self.receive();
            if kind == PduType::CapsuleResp {
                return (CapsuleResp::read_from_bytes(&bytes[..24]).unwrap().cqe, data);
            }
            let header = DataHdr::read_from_bytes(&bytes[..24]).unwrap();
            data.extend_from_slice(&bytes[header.ch.pdo.into()..]);
            if header.ch.flags & flags::SUCCESS != 0 {
                return (Cqe::default(), data);
            }
        }
    }
}

impl Host {
    fn connect(port: u16, id: u8) -> Self {
        let data = |cntlid| {
            let mut data = ConnectData::new_zeroed();
            (data.hostid, data.cntlid) = ([id; 16], cntlid);
            data.subnqn = Nqn::new(NQN).unwrap().to_field();
            data.hostnqn = Nqn::new(&format!("nqn.2024-01.com.example:host{id}")).unwrap().to_field();
            data
        };
        let cattr = Cattr::new().with_disable_sqfc(true);
        let connect = |qid| Connect { recfmt: 0, qid, sqsize_z: 31, cattr, kato: 0 };
        let (mut admin, cqe) = Queue::open(port, connect(0), &data(CNTLID_DYNAMIC));
        let enable = Property { offset: offset::CC, size: 0, value: 0x46_0001 };
        assert!(admin.run(enable.set(0), &[], 0).0.status().is_success());
        let (io, _) = Queue::open(port, connect(1), &data(cqe.dw0 as u16));
        Host { admin, io }
    }

    fn register(&mut self, cdw10: u32, crkey: u64, nrkey: u64) -> Status {
        let sqe = Sqe { opc: 0x0d, nsid: 1, cdw10, ..Sqe::default() };
        self.io.run(sqe, RegisterData { crkey, nrkey }.as_bytes(), 0).0.status().code()
    }

    fn acquire(&mut self, rtype: u32, key: u64) -> Status {
        let sqe = Sqe { opc: 0x11, nsid: 1, cdw10: rtype << 8, ..Sqe::default() };
        self.io.run(sqe, &[key.to_le_bytes(), [0; 8]].concat(), 0).0.status().code()
    }

    fn write(&mut self) -> Status {
        let sqe = Sqe { opc: 1, nsid: 1, ..Sqe::default() };
        self.io.run(sqe, &[1; 512], 0).0.status().code()
    }

    /// Sets Namespace Write Protection Config.
    fn protect(&mut self, nsid: u32, state: u32) -> Status {
        let sqe = Sqe { opc: 9, nsid, cdw10: 0x84, cdw11: state, ..Sqe::default() };
        self.admin.run(sqe, &[], 0).0.status().code()
    }

    /// What it is, and whether a write is refused for it.
    fn protected(&mut self) -> (u32, bool) {
        let sqe = Sqe { opc: 10, nsid: 1, cdw10: 0x84, ..Sqe::default() };
        let cqe = self.admin.run(sqe, &[], 0).0;
        assert!(cqe.status().is_success());
        let refused = match self.write() {
            SUCCESS => false,
            status => status == Status::NAMESPACE_WRITE_PROTECTED,
        };
        (cqe.dw0, refused)
    }

    /// RTYPE, registrants, PTPLS.
    fn report(&mut self) -> (u8, u8, u8) {
        let sqe = Sqe { opc: 0x0e, nsid: 1, cdw10: 15, cdw11: 1, ..Sqe::default() };
        let (cqe, report) = self.io.run(sqe, &[], 64);
        assert!(cqe.status().is_success());
        (report[4], report[5], report[9])
    }
}

#[test]
fn a_reservation_with_ptpl_outlives_a_kill_and_ends_with_its_namespace() {
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.aio_volume("file", &server.aio_file("disk", 1 << 20), 512).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    let (mut a, mut b) = (Host::connect(port, 1), Host::connect(port, 2));
    assert_eq!((a.register(PERSIST, 0, 11), a.acquire(1, 11)), (SUCCESS, SUCCESS));
    assert_eq!((a.write(), b.write()), (SUCCESS, CONFLICT));

    server.kill();
    server.launch();
    let (mut a, mut b) = (Host::connect(port, 1), Host::connect(port, 2));
    assert_eq!((a.write(), b.write(), b.report()), (SUCCESS, CONFLICT, (1, 1, 1)));
    // Without PTPL nothing is kept.
    assert_eq!((a.register(2 << 30, 0, 11), b.report()), (SUCCESS, (1, 1, 0)));
    server.kill();
    server.launch();
    let mut a = Host::connect(port, 1);
    assert_eq!(a.report(), (0, 0, 0));

    assert_eq!((a.register(PERSIST, 0, 11), a.acquire(1, 11)), (SUCCESS, SUCCESS));
    let grpc = Grpc::connect(server.grpc());
    grpc.delete_namespace("subsys0", "disk").unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    assert_eq!(Host::connect(port, 2).report(), (0, 0, 0), "another namespace");
    server.kill();
    server.launch();
    assert_eq!(Host::connect(port, 2).report(), (0, 0, 0));
}

#[test]
fn write_protection_outlives_a_kill_or_ends_with_the_power_and_with_its_namespace() {
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.aio_volume("file", &server.aio_file("disk", 1 << 20), 512).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    grpc.tcp_controller("subsys0", "over-tcp", port).unwrap();
    let again = |server: &mut Server| {
        server.kill();
        server.launch();
        Host::connect(port, 1)
    };
    let mut host = Host::connect(port, 1);
    assert_eq!(host.protected(), (0, false));
    assert_eq!((host.protect(1, 1), host.protected()), (SUCCESS, (1, true)));
    let mut host = again(&mut server);
    assert_eq!(host.protected(), (1, true), "Write Protect");
    assert_eq!((host.protect(u32::MAX, 0), host.protected()), (SUCCESS, (0, false)));
    let mut host = again(&mut server);
    assert_eq!(host.protected(), (0, false), "No Write Protect");

    // Until Power Cycle, from Write Protect: nothing of either is left.
    assert_eq!((host.protect(1, 1), host.protect(1, 2), host.protected()), (SUCCESS, SUCCESS, (2, true)));
    assert_eq!(host.protect(1, 0), Status::FEATURE_NOT_CHANGEABLE);
    assert_eq!(host.protect(1, 3), Status::INVALID_FIELD, "Permanent Write Protect");
    let mut host = again(&mut server);
    assert_eq!(host.protected(), (0, false), "Write Protect Until Power Cycle");

    assert_eq!(host.protect(1, 1), SUCCESS);
    let grpc = Grpc::connect(server.grpc());
    grpc.delete_namespace("subsys0", "disk").unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    assert_eq!(Host::connect(port, 2).protected(), (0, false), "another namespace");
    assert_eq!(again(&mut server).protected(), (0, false));
}
