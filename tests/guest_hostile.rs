//! The catalogue of hostile input against peers that are not Isthmus: the same bytes go to the Linux kernel's target and
//! to ours, which must tell hosts the same and let nobody else notice, and the kernel's host meets a target that lies.
//! Cases carry the numbers that `frontend`'s tests of hostile hosts and `backend`'s of hostile targets have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use ::host::workload::Amount;
use common::grpc::Grpc;
use common::host::{connect_tcp, fill, load};
use common::server::Server;
use guest::{Builder, HOST};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Connect, ConnectData};
use nvme_proto::tcp::{CapsuleCmd, CapsuleResp, CommonHdr, PduType};
use nvme_proto::zerocopy::{FromBytes, FromZeros, IntoBytes};
use nvme_proto::{Nqn, Sqe, Status};

const NQN: &str = "nqn.2025-01.test.isthmus:hostile";
const HOSTNQN: &str = "nqn.2025-01.test.isthmus:evil";

const SCRIPT: &str = "
modprobe nvme_tcp
modprobe brd rd_nr=1 rd_size=4096
export_nvmet $NQN /dev/ram0
[ \"$(ask exported)\" = attacked ]
# A target that lies, in a different way each time.
for lie in $(seq $LIES); do
    nvme connect -t tcp -a $HOST -s $PORT -n $NQN 2>/tmp/said && { echo lie $lie was believed; exit 1; }
    cat /tmp/said
done
if dmesg | grep -E 'BUG|WARNING|Oops|Call Trace'; then exit 1; fi
";

/// How far a host behaves before it does not.
#[derive(Clone, Copy)]
enum Stage {
    /// It has connected its socket.
    Raw,
    /// It has its ICResp.
    Open,
    /// It has an admin queue.
    Admin,
}

/// What becomes of it.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Its connection ends.
    Ended,
    /// Its command ends with an error.
    Refused,
    /// Its command succeeds.
    Taken,
}
use Outcome::{Ended, Refused, Taken};
use Stage::{Admin, Open, Raw};

/// A host's bytes, and what must become of them at every target.
struct Case {
    name: &'static str,
    stage: Stage,
    bytes: Vec<u8>,
    expected: Outcome,
}

/// ICReq (NVMe TCP Transport 1.1, 3.6.2.2): format 0, no digest, one R2T.
fn icreq() -> Vec<u8> {
    let mut pdu = vec![0; 128];
    (pdu[2], pdu[4]) = (128, 128);
    pdu
}

/// A PDU of nothing but a header of `hlen` bytes.
fn header(pdu_type: u8, hlen: u8, plen: u32) -> Vec<u8> {
    let ch = CommonHdr { pdu_type: PduType(pdu_type), flags: 0, hlen, pdo: 0, plen };
    let mut bytes = ch.as_bytes().to_vec();
    bytes.resize(hlen.max(24).into(), 0);
    bytes
}

fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let mut capsule = CapsuleCmd::new_zeroed();
    let (pdo, plen) = (if data.is_empty() { 0 } else { 72 }, 72 + data.len() as u32);
    capsule.ch = CommonHdr { pdu_type: PduType::CapsuleCmd, flags: 0, hlen: 72, pdo, plen };
    capsule.sqe = sqe;
    [capsule.as_bytes(), data].concat()
}

/// A Connect whose data `change` has changed.
fn connect(qid: u16, change: impl FnOnce(&mut ConnectData)) -> Vec<u8> {
    let mut data = ConnectData::new_zeroed();
    (data.hostid, data.cntlid) = ([9; 16], 0xffff);
    data.subnqn = Nqn::new(NQN).unwrap().to_field();
    data.hostnqn = Nqn::new(HOSTNQN).unwrap().to_field();
    change(&mut data);
    let connect = Connect { recfmt: 0, qid, sqsize_z: 31, cattr: Default::default(), kato: 0 };
    let mut sqe = connect.to_sqe(1);
    sqe.set_sgl(SglDescriptor::in_capsule(1024));
    capsule(sqe, data.as_bytes())
}

fn cases() -> Vec<Case> {
    let changed = |at: usize, to: u8| {
        let mut pdu = icreq();
        pdu[at] = to;
        pdu
    };
    let mut h2c = header(6, 24, 24 + 512);
    (h2c[3], h2c[10], h2c[11]) = (24, 0xff, 0xff);
    h2c[16..20].copy_from_slice(&512u32.to_le_bytes());
    h2c.resize(24 + 512, 0x66);
    let mut identify = Sqe { opc: 6, cid: 5, cdw10: 1, ..Sqe::default() };
    identify.set_sgl(SglDescriptor::transport(4096));
    let mut offset = Sqe { opc: 6, cid: 5, cdw10: 1, ..Sqe::default() };
    offset.set_sgl(SglDescriptor::in_capsule(4096));
    let case = |name, stage, bytes, expected| Case { name, stage, bytes, expected };
    let unterminated = |name: &mut [u8; 256]| name.fill(b'q');
    vec![
        case("a01 PLEN 64", Raw, changed(4, 64), Ended),
        case("a01 PLEN 0", Raw, changed(4, 0), Ended),
        case("a02 PFV 1", Raw, changed(8, 1), Ended),
        case("a06 a second ICReq", Open, icreq(), Ended),
        case("a07 a capsule before ICReq", Raw, capsule(identify, &[]), Ended),
        case("a09 ICResp", Open, header(1, 128, 128), Ended),
        case("a09 C2HTermReq", Open, header(3, 24, 24), Ended),
        case("a09 CapsuleResp", Open, header(5, 24, 24), Ended),
        case("a09 C2HData", Open, header(7, 24, 24), Ended),
        case("a09 R2T", Open, header(9, 24, 24), Ended),
        case("a10 type 0Ah", Open, header(0x0a, 24, 24), Ended),
        case("a10 type FFh", Open, header(0xff, 24, 24), Ended),
        case("a12 HLEN 71", Open, header(4, 71, 72), Ended),
        case("a12 HLEN 255", Open, header(4, 255, 72), Ended),
        case("a16 H2CTermReq", Open, header(2, 24, 24), Ended),
        case("a17 a Connect", Open, connect(0, |_| {}), Taken),
        case("b19 data in a capsule that has none", Admin, capsule(offset, &[]), Refused),
        case("c28 H2CData with no R2T", Admin, h2c, Ended),
        case("d38 CNTLID of no controller", Open, connect(1, |data| data.cntlid = 0x7777), Refused),
        case("d38 a CNTLID for an admin queue", Open, connect(0, |data| data.cntlid = 3), Refused),
        case("d41 an unterminated SUBNQN", Open, connect(0, |data| unterminated(&mut data.subnqn)), Refused),
        case("d41 an empty SUBNQN", Open, connect(0, |data| data.subnqn.fill(0)), Refused),
        case("d43 Identify before Connect", Open, capsule(identify, &[]), Refused),
        case("e52 Identify of CNS FFh", Admin, capsule(Sqe { cdw10: 0xff, ..identify }, &[]), Refused),
        case("e61 an opcode that there is not", Admin, capsule(Sqe { opc: 0x78, ..identify }, &[]), Refused),
    ]
}

/// The next PDU; `None` when the connection has ended.
fn receive(stream: &mut TcpStream) -> Option<(CommonHdr, Vec<u8>)> {
    let alive = |error: std::io::Error| {
        assert!(
            !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "no answer, and no end"
        );
    };
    let mut bytes = vec![0; 8];
    stream.read_exact(&mut bytes).map_err(alive).ok()?;
    let ch = CommonHdr::read_from_bytes(&bytes).unwrap();
    bytes.resize(ch.plen as usize, 0);
    stream.read_exact(&mut bytes[8..]).map_err(alive).ok()?;
    Some((ch, bytes))
}

/// What becomes of a host that says `case` to the target at `port`, all at once or, `slowly`, byte by byte.
fn attack(port: u16, case: &Case, slowly: bool) -> Outcome {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let say = |stream: &mut TcpStream, bytes: &[u8]| {
        let pieces = bytes.chunks(if slowly { 1 } else { bytes.len() });
        // The target may have heard enough.
        pieces.map(|piece| stream.write_all(piece)).take_while(Result::is_ok).count();
    };
    if matches!(case.stage, Open | Admin) {
        say(&mut stream, &icreq());
        assert_eq!(receive(&mut stream).expect("an ICResp").0.pdu_type, PduType::IcResp);
    }
    if matches!(case.stage, Admin) {
        say(&mut stream, &connect(0, |_| {}));
        assert_eq!(receive(&mut stream).expect("an answer").0.pdu_type, PduType::CapsuleResp);
        let cc = nvme_proto::fabrics::Property { offset: 0x14, size: 0, value: 0x46_0001 };
        let mut enable = cc.set(2);
        enable.set_sgl(SglDescriptor::transport(0));
        say(&mut stream, &capsule(enable, &[]));
        assert_eq!(receive(&mut stream).expect("an answer").0.pdu_type, PduType::CapsuleResp);
    }
    say(&mut stream, &case.bytes);
    while let Some((ch, bytes)) = receive(&mut stream) {
        if ch.pdu_type == PduType::CapsuleResp {
            let response = CapsuleResp::read_from_bytes(&bytes[..24]).unwrap();
            return if response.cqe.status() == Status::SUCCESS { Taken } else { Refused };
        }
        assert_eq!(ch.pdu_type, PduType::C2hTermReq, "{}", case.name);
    }
    Ended
}

/// Every case, and a neighbour who does not notice.
fn survives(who: &str, port: u16) {
    let (_neighbour, mut queue) = connect_tcp(port, NQN);
    let mut ledger = fill(&mut queue);
    for case in cases() {
        for slowly in [false, true] {
            assert_eq!(attack(port, &case, slowly), case.expected, "{who}: {}, slowly {slowly}", case.name);
        }
        load(&mut queue, &mut ledger, 50, true, Amount::Commands(20));
    }
    load(&mut queue, &mut ledger, 100, false, Amount::Once);
}

/// Answers to ICReq that no host may take.
fn lies() -> Vec<Vec<u8>> {
    let changed = |at: usize, to: u8| {
        let mut pdu = icreq();
        (pdu[0], pdu[14]) = (1, 2); // ICResp, MAXH2CDATA of 128 KiB
        pdu[at] = to;
        pdu
    };
    vec![
        changed(0, 5),     // a type that it is not
        changed(4, 64),    // PLEN
        changed(8, 1),     // PFV
        changed(11, 1),    // a digest that nobody asked for
        changed(10, 255),  // CPDA
        header(3, 24, 24), // C2HTermReq
        vec![0xff; 128],
        Vec::new(),
    ]
}

/// Tells each host that comes another lie.
fn liar(listener: &TcpListener) {
    for lie in lies() {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.read_exact(&mut [0; 128]).unwrap();
        let _ = stream.write_all(&lie);
        // Only the liar of no words ends first.
        if !lie.is_empty() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 128]);
        }
    }
}

#[test]
fn targets_agree_and_the_kernels_host_believes_no_lie() {
    let Some(guest) = Builder::new("hostile", "") else { return };
    let server = Server::start(&[]);
    let (ours, theirs) = (common::free_port(), common::free_port());
    let grpc = Grpc::connect(server.grpc());
    grpc.malloc_volume("disk", 512, 8192).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "disk").unwrap();
    grpc.tcp_controller("subsys0", "tcp0", ours).unwrap();
    survives("Isthmus", ours);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("HOST={HOST}\nPORT={port}\nNQN={NQN}\nLIES={}\n{SCRIPT}", lies().len());
    guest.script(&script).forward(theirs, 4420).run_with(|guest| {
        guest.wait_for_mark("exported")?;
        survives("Linux", theirs);
        guest.answer("attacked");
        liar(&listener);
        Ok(())
    });
}
