//! An NVMe/TCP controller as its host sees it: the Admin connection, and Connect for I/O queues.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::mem::{Buf, Sgl};
use nvme_proto::dptr::SglDescriptor;
use nvme_proto::fabrics::{CNTLID_DYNAMIC, Cattr, Connect, ConnectData, Property};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::register::{Cap, Csts, offset};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Cqe, Nqn, Sqe};

use super::connection::{Connection, Digests, Event};
use super::queue::IoQueue;
use super::ready::Ready;
use crate::{Error, Namespace, Result};

const PAGE: usize = 4096;
const ADMIN_ENTRIES: u16 = 32;
const PATIENCE: Duration = Duration::from_secs(30);

/// How a controller is driven.
#[derive(Clone, Debug)]
pub struct Options {
    /// The subsystem.
    pub subnqn: Nqn,
    /// This host's name.
    pub hostnqn: Nqn,
    /// This host's identifier.
    pub hostid: [u8; 16],
    /// Which digests are used.
    pub digests: Digests,
    /// Bytes of the largest command.
    pub max_transfer: usize,
    /// I/O queues that will be made.
    pub queues: u16,
    /// Commands in flight on each.
    pub depth: u16,
    /// Keep-alive timeout in milliseconds; 0 for none.
    pub kato: u32,
    /// SQ flow control on I/O queues. Without it a controller may spare the response capsule of a read (SUCCESS).
    pub flow_control: bool,
    /// The other connections that are polled in turns with the I/O queues of this controller, where there are many.
    pub among: Option<Arc<Ready>>,
}

/// A controller over NVMe/TCP, enabled.
pub struct Controller {
    addr: SocketAddr,
    options: Options,
    admin: Connection,
    cntlid: u16,
    in_capsule: usize,
    mdts: usize,
    next_qid: u16,
    /// What Identify Controller answered.
    pub identify: Vec<u8>,
}

/// Sends one command and waits for its answer. Data goes in the capsule or by R2T, or comes back into `data`.
fn call(connection: &mut Connection, what: &'static str, sqe: &Sqe, data: &Sgl, sends: usize) -> Result<Cqe> {
    connection.command(sqe, data, sends, None);
    let mut events = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        connection.poll(|cid| (cid == sqe.cid).then_some((data, data.len())), &mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Response(cqe) if cqe.cid != sqe.cid => {}
                Event::Response(cqe) if cqe.status().is_success() => return Ok(cqe),
                Event::Response(cqe) => return Err(Error::Status { what, status: cqe.status() }),
                Event::Ready { .. } => {
                    return Err(Error::Protocol("an R2T for a command without data".into()));
                }
            }
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout(what));
        }
        std::thread::yield_now();
    }
}

impl Controller {
    /// Connects the Admin queue, enables the controller and identifies it.
    ///
    /// # Errors
    /// The socket's, the protocol's, the controller's.
    pub fn connect(addr: SocketAddr, options: Options) -> Result<Self> {
        let mut admin = Connection::open(addr, options.digests)?;
        let cntlid = connect_queue(&mut admin, &options, 0, CNTLID_DYNAMIC, ADMIN_ENTRIES)?;
        let mut this = Controller {
            addr,
            options,
            admin,
            cntlid,
            in_capsule: 0,
            mdts: usize::MAX,
            next_qid: 1,
            identify: Vec::new(),
        };
        this.property_set(offset::CC, 0x46_0001)?;
        let deadline = Instant::now() + PATIENCE;
        // A queue of n entries holds n - 1 commands.
        let cap = Cap::from_bits(this.property_get(offset::CAP, 1)?);
        this.options.depth = this.options.depth.min(cap.mqes_z());
        while !Csts::from_bits(this.property_get(offset::CSTS, 0)? as u32).rdy() {
            if Instant::now() > deadline {
                return Err(Error::Timeout("CSTS.RDY"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let sqe = Sqe { opc: AdminOpcode::Identify.0, cdw10: 1, ..Sqe::default() };
        this.identify = this.admin_read("identify controller", sqe, PAGE)?;
        let id = &this.identify;
        let word = |at: usize| u32::from_le_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]) as usize;
        this.mdts = if id[77] == 0 { usize::MAX } else { PAGE << id[77].min(20) };
        this.in_capsule = (word(1792) * 16).saturating_sub(64);
        let want = u32::from(this.options.queues.max(1) - 1);
        if this.options.queues > 0 {
            let sqe =
                Sqe { opc: AdminOpcode::SetFeatures.0, cdw10: 7, cdw11: want << 16 | want, ..Sqe::default() };
            this.admin("set the number of queues", sqe)?;
        }
        Ok(this)
    }

    /// The controller's identifier.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }

    fn property_set(&mut self, offset: u32, value: u64) -> Result<()> {
        let sqe = Property { offset, size: 0, value }.set(1);
        call(&mut self.admin, "property set", &sqe, &Sgl::empty(), 0).map(drop)
    }

    /// A property of 4 bytes (`size` 0) or 8 (1).
    fn property_get(&mut self, offset: u32, size: u8) -> Result<u64> {
        let sqe = Property { offset, size, value: 0 }.get(1);
        Ok(call(&mut self.admin, "property get", &sqe, &Sgl::empty(), 0)?.result64())
    }

    /// Runs one Admin command without data; DW0 of its completion.
    ///
    /// # Errors
    /// Its status.
    pub fn admin(&mut self, what: &'static str, mut sqe: Sqe) -> Result<u32> {
        (sqe.cid, _) = (2, sqe.set_sgl(SglDescriptor::transport(0)));
        Ok(call(&mut self.admin, what, &sqe, &Sgl::empty(), 0)?.dw0)
    }

    /// Runs one Admin command that answers `len` bytes.
    ///
    /// # Errors
    /// Its status.
    pub fn admin_read(&mut self, what: &'static str, mut sqe: Sqe, len: usize) -> Result<Vec<u8>> {
        let data = Buf::zeroed(len).into_sgl(len);
        (sqe.cid, _) = (3, sqe.set_sgl(SglDescriptor::transport(len as u32)));
        call(&mut self.admin, what, &sqe, &data, 0)?;
        let mut bytes = vec![0; len];
        data.copy_out(0, &mut bytes);
        Ok(bytes)
    }

    /// Keeps the association alive.
    ///
    /// # Errors
    /// The connection's.
    pub fn keep_alive(&mut self) -> Result<()> {
        self.admin("keep alive", Sqe { opc: AdminOpcode::KeepAlive.0, ..Sqe::default() }).map(drop)
    }

    /// The namespaces that are attached.
    ///
    /// # Errors
    /// Identify's.
    pub fn namespaces(&mut self) -> Result<Vec<u32>> {
        let sqe = Sqe { opc: AdminOpcode::Identify.0, cdw10: 2, ..Sqe::default() };
        let list = self.admin_read("list namespaces", sqe, PAGE)?;
        let ids = list.chunks_exact(4).filter_map(|c| c.try_into().ok()).map(u32::from_le_bytes);
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// What namespace `nsid` is.
    ///
    /// # Errors
    /// Identify's; a namespace with metadata.
    pub fn namespace(&mut self, nsid: u32) -> Result<Namespace> {
        let sqe = Sqe { opc: AdminOpcode::Identify.0, nsid, ..Sqe::default() };
        let id = self.admin_read("identify namespace", sqe, PAGE)?;
        crate::queue::namespace_of(nsid, &id)
    }

    /// Connects an I/O queue for namespace `nsid`.
    ///
    /// # Errors
    /// The controller's.
    pub fn io_queue(&mut self, nsid: u32) -> Result<IoQueue> {
        let namespace = self.namespace(nsid)?;
        let mut connection = Connection::open(self.addr, self.options.digests)?;
        let depth = self.options.depth;
        connect_queue(&mut connection, &self.options, self.next_qid, self.cntlid, depth + 1)?;
        self.next_qid += 1;
        if let Some(ready) = &self.options.among {
            connection.join(ready)?;
        }
        let max = self.options.max_transfer.min(self.mdts);
        Ok(IoQueue::new(connection, namespace, depth, max, self.in_capsule))
    }
}

/// Sends Connect; the controller's identifier.
fn connect_queue(c: &mut Connection, options: &Options, qid: u16, cntlid: u16, entries: u16) -> Result<u16> {
    let data = ConnectData {
        hostid: options.hostid,
        cntlid,
        reserved18: [0; 238],
        subnqn: options.subnqn.to_field(),
        hostnqn: options.hostnqn.to_field(),
        reserved768: [0; 256],
    };
    let kato = if qid == 0 { options.kato } else { 0 };
    let cattr = Cattr::new().with_disable_sqfc(qid != 0 && !options.flow_control);
    let connect = Connect { recfmt: 0, qid, sqsize_z: entries - 1, cattr, kato };
    let mut sqe = connect.to_sqe(0);
    let bytes = data.as_bytes();
    sqe.set_sgl(SglDescriptor::in_capsule(bytes.len() as u32));
    let sgl = Buf::new(bytes.len()).into_sgl(bytes.len());
    sgl.copy_in(0, bytes);
    let cqe = call(c, "connect", &sqe, &sgl, bytes.len())?;
    Ok(cqe.dw0 as u16)
}
