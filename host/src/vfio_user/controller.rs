//! An NVMe driver: enables a controller through BAR0, identifies it, makes I/O queues.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::mem::{Mapping, Sgl};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::pci;
use nvme_proto::register::{Cap, Csts, doorbell_offset, offset};
use nvme_proto::{Cqe, Sqe};

use super::client::Client;
use super::queue::{IoQueue, Rings};
use crate::{Error, Namespace, Result};

const BAR0: u32 = 0;
const CONFIG: u32 = 7;
/// Where the command register lies in configuration space.
const COMMAND: u64 = 4;
const PAGE: usize = 4096;
/// Where this host's memory lies for the device: any address does, so one that is not the file's offset.
const IOVA: u64 = 0x1_0000_0000;
const ADMIN_ENTRIES: u16 = 32;
const PATIENCE: Duration = Duration::from_secs(30);

/// How a controller is driven.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the largest command.
    pub max_transfer: usize,
    /// I/O queues that will be made.
    pub queues: u16,
    /// Commands in flight on each.
    pub depth: u16,
}

/// A controller over vfio-user, enabled.
pub struct Controller {
    client: Arc<Mutex<Client>>,
    memory: Arc<Mapping>,
    used: usize,
    admin: Rings,
    options: Options,
    mdts: usize,
    next_qid: u16,
    /// What Identify Controller answered.
    pub identify: Vec<u8>,
}

impl Controller {
    /// Connects, maps memory, enables the controller and identifies it.
    ///
    /// # Errors
    /// The server's, the controller's, and those of memory.
    pub fn connect(path: &Path, options: Options) -> Result<Self> {
        let mut client = Client::connect(path)?;
        let per_tag = options.max_transfer.next_multiple_of(PAGE) + PAGE;
        let entries = usize::from(options.depth) + 1;
        let per_queue = (entries * 64).next_multiple_of(PAGE)
            + (entries * 16).next_multiple_of(PAGE)
            + usize::from(options.depth) * per_tag;
        let size = 16 * PAGE + usize::from(options.queues) * per_queue;
        let (memory, file) = Mapping::memfd("isthmus-host", size).map_err(Error::io("allocate memory"))?;
        client.map_dma(&file, 0, IOVA, size as u64)?;
        let doorbells = client.map_region(BAR0, u64::from(offset::DOORBELLS), PAGE as u64)?;
        let memory = Arc::new(memory);
        let client = Arc::new(Mutex::new(client));
        let mut used = 0;
        let admin = Rings::new(&client, &memory, &mut used, IOVA, 0, ADMIN_ENTRIES, doorbells)?;
        let mut this = Controller {
            client,
            memory,
            used,
            admin,
            options,
            mdts: 0,
            next_qid: 1,
            identify: vec![0; PAGE],
        };
        this.enable()?;
        let sqe = Sqe { opc: AdminOpcode::Identify.0, cdw10: 1, ..Sqe::default() };
        this.identify = this.admin_read("identify controller", sqe)?;
        let mdts = this.identify[77];
        this.mdts = if mdts == 0 { usize::MAX } else { PAGE << mdts.min(20) };
        let want = u32::from(this.options.queues.max(1) - 1);
        let sqe =
            Sqe { opc: AdminOpcode::SetFeatures.0, cdw10: 7, cdw11: want << 16 | want, ..Sqe::default() };
        this.admin("set the number of queues", sqe)?;
        Ok(this)
    }

    fn with_client<R>(&self, f: impl FnOnce(&mut Client) -> R) -> R {
        f(&mut self.client.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The vfio-user connection, for what this driver does not do.
    pub fn client(&self) -> Arc<Mutex<Client>> {
        self.client.clone()
    }

    /// The process behind the controller.
    pub fn server_pid(&self) -> Option<u32> {
        self.with_client(|client| client.server_pid())
    }

    /// Reads a register of 4 bytes.
    ///
    /// # Errors
    /// The server's.
    pub fn read32(&self, at: u32) -> Result<u32> {
        let mut bytes = [0; 4];
        self.with_client(|c| c.read(BAR0, u64::from(at), &mut bytes))?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes a register of 4 bytes.
    ///
    /// # Errors
    /// The server's.
    pub fn write32(&self, at: u32, value: u32) -> Result<()> {
        self.with_client(|c| c.write(BAR0, u64::from(at), &value.to_le_bytes()))
    }

    fn write64(&self, at: u32, value: u64) -> Result<()> {
        self.write32(at, value as u32)?;
        self.write32(at + 4, (value >> 32) as u32)
    }

    fn wait_ready(&self, ready: bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let csts = Csts::from_bits(self.read32(offset::CSTS)?);
            if csts.cfs() {
                return Err(Error::Protocol("the controller failed (CSTS.CFS)".into()));
            }
            if csts.rdy() == ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout("CSTS.RDY"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn enable(&mut self) -> Result<()> {
        let command = pci::Command::new().with_mse(true).with_bme(true).with_id(true);
        self.with_client(|c| c.write(CONFIG, COMMAND, &command.into_bits().to_le_bytes()))?;
        self.write32(offset::CC, 0)?;
        self.wait_ready(false)?;
        let mut cap = [0; 8];
        self.with_client(|c| c.read(BAR0, u64::from(offset::CAP), &mut cap))?;
        let cap = Cap::from_bits(u64::from_le_bytes(cap));
        if cap.dstrd() != 0 || cap.mpsmin() != 0 {
            return Err(Error::Protocol("a controller with another doorbell stride or page size".into()));
        }
        let most = self.options.depth.min(cap.mqes_z());
        self.options.depth = most;
        let size = u32::from(ADMIN_ENTRIES) - 1;
        self.write32(offset::AQA, size << 16 | size)?;
        self.write64(offset::ASQ, self.admin.sq_iova())?;
        self.write64(offset::ACQ, self.admin.cq_iova())?;
        self.write32(offset::CC, 0x46_0001)?;
        self.wait_ready(true)
    }

    /// Resets the controller by CC.EN and disables it.
    ///
    /// # Errors
    /// The server's, and a controller that does not become not ready.
    pub fn disable(&self) -> Result<()> {
        self.write32(offset::CC, 0)?;
        self.wait_ready(false)
    }

    /// Shuts the controller down in an orderly way: what it has cached is on the medium afterwards.
    ///
    /// # Errors
    /// The server's, and a controller that does not shut down.
    pub fn shutdown(&self) -> Result<()> {
        self.write32(offset::CC, 0x46_4001)?;
        let deadline = Instant::now() + PATIENCE;
        while Csts::from_bits(self.read32(offset::CSTS)?).shst() != 2 {
            if Instant::now() > deadline {
                return Err(Error::Timeout("CSTS.SHST"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Runs one Admin command and waits for it; DW0 of its completion.
    ///
    /// # Errors
    /// Its status.
    pub fn admin(&mut self, what: &'static str, sqe: Sqe) -> Result<u32> {
        self.admin.push(sqe)?;
        self.admin.ring_sq()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(cqe) = self.admin.pop() {
                self.admin.ring_cq()?;
                return finish(what, &cqe);
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout(what));
            }
            std::thread::yield_now();
        }
    }

    fn scratch(&self) -> (u64, Sgl) {
        // The last page of the admin area; see `connect`.
        let at = 15 * PAGE;
        (IOVA + at as u64, self.memory.sgl(at, PAGE).unwrap_or_default())
    }

    /// Runs one Admin command that answers a page.
    ///
    /// # Errors
    /// Its status.
    pub fn admin_read(&mut self, what: &'static str, mut sqe: Sqe) -> Result<Vec<u8>> {
        let (iova, page) = self.scratch();
        page.zero(0, PAGE);
        sqe.dptr = [iova, 0];
        self.admin(what, sqe)?;
        let mut bytes = vec![0; PAGE];
        page.copy_out(0, &mut bytes);
        Ok(bytes)
    }

    /// The namespaces that are attached.
    ///
    /// # Errors
    /// Identify's.
    pub fn namespaces(&mut self) -> Result<Vec<u32>> {
        let sqe = Sqe { opc: AdminOpcode::Identify.0, cdw10: 2, ..Sqe::default() };
        let list = self.admin_read("list namespaces", sqe)?;
        let ids = list.chunks_exact(4).filter_map(|c| c.try_into().ok()).map(u32::from_le_bytes);
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// What namespace `nsid` is.
    ///
    /// # Errors
    /// Identify's; a namespace with metadata.
    pub fn namespace(&mut self, nsid: u32) -> Result<Namespace> {
        let sqe = Sqe { opc: AdminOpcode::Identify.0, nsid, ..Sqe::default() };
        let id = self.admin_read("identify namespace", sqe)?;
        crate::queue::namespace_of(nsid, &id)
    }

    /// Makes an I/O queue pair for namespace `nsid`.
    ///
    /// # Errors
    /// The controller's; more queues than [`Options::queues`].
    pub fn io_queue(&mut self, nsid: u32) -> Result<IoQueue> {
        let namespace = self.namespace(nsid)?;
        let (qid, depth) = (self.next_qid, self.options.depth);
        let mapped = self.admin.doorbells();
        let rings = Rings::new(&self.client, &self.memory, &mut self.used, IOVA, qid, depth + 1, mapped)?;
        let size = u32::from(depth) << 16 | u32::from(qid);
        let cq = Sqe {
            opc: AdminOpcode::CreateIoCq.0,
            cdw10: size,
            cdw11: 1,
            dptr: [rings.cq_iova(), 0],
            ..Sqe::default()
        };
        self.admin("create a completion queue", cq)?;
        let cdw11 = u32::from(qid) << 16 | 1;
        let sq = Sqe {
            opc: AdminOpcode::CreateIoSq.0,
            cdw10: size,
            cdw11,
            dptr: [rings.sq_iova(), 0],
            ..Sqe::default()
        };
        self.admin("create a submission queue", sq)?;
        self.next_qid += 1;
        let max = self.options.max_transfer.min(self.mdts);
        IoQueue::new(rings, namespace, depth, max, &self.memory, &mut self.used, IOVA)
    }

    /// Where a queue's doorbell lies.
    pub fn doorbell(qid: u16, completion: bool) -> u32 {
        doorbell_offset(qid, completion)
    }
}

fn finish(what: &'static str, cqe: &Cqe) -> Result<u32> {
    if cqe.status().is_success() { Ok(cqe.dw0) } else { Err(Error::Status { what, status: cqe.status() }) }
}
