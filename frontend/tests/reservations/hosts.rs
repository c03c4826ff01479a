//! Hosts of one subsystem by hand, on vfio-user and on TCP, that send reservation commands and I/O.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::{Config, Shards};
use frontend::tcp::{Target, TargetConfig};
use frontend::vfio_user::{Handle, Options, Server, socket_path};
use frontend::{Doorbells, Persist, Subsystem};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{Cattr, Connect};
use nvme_proto::reservation::{AcquireData, RegisterData};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA, Queue, RAM};
use crate::common::{Host, SUBNQN, connect_data, namespace, subsystem};

/// A subsystem with NSID 1 of 64 MiB, shown over both transports, on two shards.
pub struct Rig {
    pub subsystem: Arc<Subsystem>,
    pub target: Target,
    addr: std::net::SocketAddr,
    dir: PathBuf,
    handle: Option<Handle>,
    shards: Option<Shards>,
}

impl Rig {
    pub fn new(name: &str) -> Self {
        Self::with(name, None)
    }

    pub fn with(name: &str, persist: Option<Arc<dyn Persist>>) -> Self {
        let shards = Shards::start(&Config { cpus: vec![None, None], ..Config::default() }).unwrap();
        let target = Target::new(shards.handles(), TargetConfig::default()).unwrap();
        let subsystem = subsystem(shards.handles(), SUBNQN);
        let first = namespace(1, 512, 64 << 20);
        match persist {
            Some(persist) => subsystem.add_persistent_namespace(first, persist).unwrap(),
            None => subsystem.add_namespace(first).unwrap(),
        }
        for shard in shards.handles() {
            shard.call(|_| ());
        }
        let addr = target.listen("127.0.0.1:0".parse().unwrap(), &subsystem).unwrap();
        let dir = std::env::temp_dir().join(format!("isthmus-{name}-{}", std::process::id()));
        let path = socket_path(&dir, "s", None).unwrap();
        let options = Options { doorbells: Doorbells::Trapped, ..Options::default() };
        let handle = Some(Server::listen(&shards.handles()[1], &subsystem, &path, options).unwrap());
        Rig { subsystem, target, addr, dir, handle, shards: Some(shards) }
    }

    /// A host over TCP whose identifier is that number.
    pub fn tcp(&self, id: u8) -> Actor {
        let data = |cntlid| {
            let mut data = connect_data(SUBNQN, &format!("nqn.2024-01.test:host{id}"), cntlid);
            data.hostid = [id; 16];
            data
        };
        let cattr = Cattr::new().with_disable_sqfc(true);
        let mut admin = Host::open(self.addr, 0);
        let connect = Connect { recfmt: 0, qid: 0, sqsize_z: 31, cattr: Cattr::default(), kato: 0 };
        let cqe = admin.connect(connect, &data(0xffff));
        assert!(cqe.status().is_success());
        admin.enable();
        // Connections go to the shards in turn: so the I/O queues of different hosts are on different ones.
        let _between = id.is_multiple_of(2).then(|| Host::open(self.addr, 0));
        let mut io = Host::open(self.addr, 0);
        let connect = Connect { recfmt: 0, qid: 1, sqsize_z: 127, cattr, kato: 0 };
        assert!(io.connect(connect, &data(cqe.dw0 as u16)).status().is_success());
        Actor::Tcp(Box::new(admin), Box::new(io))
    }

    /// The host over vfio-user, without an identifier.
    pub fn pcie(&self) -> Actor {
        let mut client = Client::connect(self.handle.as_ref().unwrap().path());
        assert_eq!(client.map(0, 0, RAM as u64, true), 0);
        client.enable();
        let queue = client.create(1, 64);
        Actor::Pcie(Box::new(client), queue)
    }

    /// The host over vfio-user, with an identifier of 16 bytes.
    pub fn pcie_as(&self, id: u8) -> Actor {
        let mut actor = self.pcie();
        assert_eq!(actor.identify_as(&[id; 16]), Status::SUCCESS);
        actor
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let closed = self.handle.take().unwrap().close(Duration::from_secs(10));
        self.target.close();
        self.shards.take().unwrap().stop();
        let _ = std::fs::remove_dir_all(&self.dir);
        assert!(closed || std::thread::panicking());
    }
}

pub enum Actor {
    Tcp(Box<Host>, Box<Host>),
    Pcie(Box<Client>, Queue),
}

pub fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it never came");
}

/// A place for a short command's data.
const PAGE: u64 = DATA + 0x10000;

impl Actor {
    /// An I/O command with its data, either way.
    pub fn io(&mut self, mut sqe: Sqe, write: &[u8], read: usize) -> (Status, Vec<u8>) {
        sqe.nsid = if sqe.nsid == 0 { 1 } else { sqe.nsid };
        match self {
            Actor::Tcp(_, io) => answer(io.run(sqe, write, read)),
            Actor::Pcie(client, queue) => {
                client.put(PAGE, write);
                client.put(
                    DATA + 0x20000,
                    &(1..8).flat_map(|i| (PAGE + i * 4096).to_le_bytes()).collect::<Vec<_>>(),
                );
                let second = if write.len().max(read) > 8192 { DATA + 0x20000 } else { PAGE + 4096 };
                sqe.dptr = [PAGE, second];
                let status = client.run(queue, sqe).status();
                (said(status), client.get(PAGE, read))
            }
        }
    }

    /// Two I/O commands as one, each with its data of at most a page; how each ends.
    pub fn fused(&mut self, mut sqes: [Sqe; 2], data: [&[u8]; 2]) -> [Status; 2] {
        for (sqe, fuse) in sqes.iter_mut().zip([1, 2]) {
            sqe.flags = sqe.flags.with_fuse(fuse);
        }
        let (cids, ends) = match self {
            Actor::Tcp(_, io) => {
                let mut cids = [0; 2];
                let mut both = Vec::new();
                for ((sqe, data), cid) in sqes.iter_mut().zip(data).zip(&mut cids) {
                    sqe.cid = io.next_cid();
                    *cid = sqe.cid;
                    sqe.set_sgl(SglDescriptor::in_capsule(data.len() as u32));
                    both.extend(io.capsule(*sqe, data));
                }
                io.send(&both);
                (cids, [io.complete(&[]).0, io.complete(&[]).0])
            }
            Actor::Pcie(client, queue) => {
                for ((sqe, data), page) in sqes.iter_mut().zip(data).zip([PAGE, PAGE + 4096]) {
                    client.put(page, data);
                    sqe.dptr = [page, 0];
                }
                let cids = [client.place(queue, sqes[0]), client.submit(queue, sqes[1])];
                (cids, [client.wait(queue), client.wait(queue)])
            }
        };
        cids.map(|cid| said(ends.iter().find(|end| end.cid == cid).expect("both end").status()))
    }

    pub fn admin(&mut self, mut sqe: Sqe, write: &[u8], read: usize) -> (Status, u32, Vec<u8>) {
        match self {
            Actor::Tcp(admin, _) => {
                let (cqe, data) = admin.run(sqe, write, read);
                (said(cqe.status()), cqe.dw0, data)
            }
            Actor::Pcie(client, _) => {
                client.put(PAGE, write);
                sqe.dptr = [PAGE, PAGE + 4096];
                let cqe = client.admin(sqe);
                (said(cqe.status()), cqe.dw0, client.get(PAGE, read))
            }
        }
    }

    /// Set Features Host Identifier.
    pub fn identify_as(&mut self, id: &[u8]) -> Status {
        let cdw11 = u32::from(id.len() == 16);
        self.admin(Sqe { opc: 9, cdw10: 0x81, cdw11, ..Sqe::default() }, id, 0).0
    }

    pub fn register(&mut self, cdw10: u32, crkey: u64, nrkey: u64) -> Status {
        let data = RegisterData { crkey, nrkey };
        self.io(Sqe { opc: 0x0d, cdw10, ..Sqe::default() }, data.as_bytes(), 0).0
    }

    /// `action` with a type.
    pub fn acquire(&mut self, action: u32, rtype: u32, crkey: u64, prkey: u64) -> Status {
        let data = AcquireData { crkey, prkey };
        let sqe = Sqe { opc: 0x11, cdw10: action | rtype << 8, ..Sqe::default() };
        self.io(sqe, data.as_bytes(), 0).0
    }

    pub fn release(&mut self, action: u32, rtype: u32, crkey: u64) -> Status {
        let sqe = Sqe { opc: 0x15, cdw10: action | rtype << 8, ..Sqe::default() };
        self.io(sqe, &crkey.to_le_bytes(), 0).0
    }

    /// The extended report.
    pub fn report(&mut self) -> Report {
        let sqe = Sqe { opc: 0x0e, cdw10: 8256 / 4 - 1, cdw11: 1, ..Sqe::default() };
        let (status, bytes) = self.io(sqe, &[], 8256);
        assert_eq!(status, Status::SUCCESS);
        Report::of(&bytes)
    }

    pub fn read(&mut self) -> Status {
        self.io(crate::common::rw(2, 0, 512), &[], 512).0
    }

    pub fn write(&mut self) -> Status {
        self.io(crate::common::rw(1, 0, 512), &[0x5a; 512], 0).0
    }
}

fn answer((cqe, data): (nvme_proto::Cqe, Vec<u8>)) -> (Status, Vec<u8>) {
    (said(cqe.status()), data)
}

/// What a status says. Who conflicts, or asks for what is not, is told not to try again (DNR).
fn said(status: Status) -> Status {
    let code = status.code();
    let for_good = [Status::RESERVATION_CONFLICT, Status::INVALID_FIELD].contains(&code);
    assert!(!for_good || status == code.dnr(), "{status:?} may be tried again");
    code
}

/// What a report says, read by offsets.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub generation: u32,
    pub rtype: u8,
    pub ptpls: u8,
    /// CNTLID, RCSTS, key and the first byte of the identifier.
    pub registrants: Vec<(u16, u8, u64, u8)>,
}

impl Report {
    pub fn of(bytes: &[u8]) -> Self {
        let count = usize::from(u16::from_le_bytes([bytes[5], bytes[6]]));
        let entry = |at: &[u8]| {
            let key = u64::from_le_bytes(at[8..16].try_into().unwrap());
            (u16::from_le_bytes([at[0], at[1]]), at[2], key, at[16])
        };
        Report {
            generation: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
            rtype: bytes[4],
            ptpls: bytes[9],
            registrants: bytes[64..].chunks(64).take(count).map(entry).collect(),
        }
    }
}
