//! One client, from its first message to its last: what it asks is done and answered in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use engine::Task;
use engine::mem::{MapShare, Mapping, Region};
use engine::ring::Fd;
use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::dma::Dma;
use super::frame::{Message, Receiver};
use super::mapper;
use super::message::{Command, DeviceInfo, Header, IrqInfo, RawVersion, RegionInfo, SparseMmap, irq, region};
use super::reject::{Reject, Rejections};
use super::request::{Access, Action, DmaMap, DmaUnmap, IrqData, Request, SetIrqs, parse};
use super::socket::Socket;
use super::version::{Capabilities, MAJOR, MAX_DATA, MAX_DMA_MAPS, MAX_FDS, MINOR};
use crate::pcie::doorbell;
use crate::pcie::function::{Function, Space, Then};
use nvme_proto::register::offset;

/// Bytes after the header: those of a DMA_READ reply with the most data.
const MAX_BODY: usize = MAX_DATA + 64;
/// Requests that are received before an earlier one is answered.
const AHEAD: usize = 8;
/// Bytes of one region access: more is never needed.
const MAX_ACCESS: u32 = 64 << 10;
/// A client that is let in says its version within this.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// A DMA unmap is answered within this, since clients give up after 5 s.
const UNMAP_PATIENCE: Duration = Duration::from_secs(3);
/// A reset is answered within this.
const RESET_PATIENCE: Duration = Duration::from_secs(4);
/// Messages that are answered before others of the shard get their turn.
const BATCH: usize = 32;

/// A reply: what goes into its body, and the descriptors that go along.
struct Answer {
    body: Vec<u8>,
    fd: Option<Fd>,
}

impl From<Vec<u8>> for Answer {
    fn from(body: Vec<u8>) -> Self {
        Answer { body, fd: None }
    }
}

/// A client.
pub(super) struct Session<'a> {
    function: Rc<Function>,
    socket: Rc<Socket>,
    dma: Rc<Dma>,
    greeted: Rc<Cell<bool>>,
    /// Whether the client takes descriptors: without, it can map nothing.
    takes_fds: Cell<bool>,
    rejections: &'a Rejections,
    maps: RefCell<Vec<Arc<Region>>>,
    /// Of what the process can map.
    share: MapShare,
}

impl<'a> Session<'a> {
    pub fn new(function: &Rc<Function>, socket: &Rc<Socket>, rejections: &'a Rejections) -> Self {
        Session {
            function: function.clone(),
            socket: socket.clone(),
            dma: Dma::new(socket),
            greeted: Rc::default(),
            takes_fds: Cell::new(true),
            rejections,
            maps: RefCell::default(),
            share: MapShare::default(),
        }
    }

    /// Serves the client until it goes, and then takes back everything that it had.
    pub async fn run(self) {
        match self.function.attach_host(self.dma.clone()) {
            Ok(()) => {
                let hurry = self.hurry();
                let ended = self.serve().await;
                drop(hurry);
                if let Err(reject) = ended {
                    self.note(reject, "client let go");
                } else if !self.greeted.get() {
                    self.note(Reject::Silent, "client gone");
                }
            }
            Err(error) => tracing::warn!(%error, "no doorbells for a vfio-user client"),
        }
        self.socket.shut();
        self.dma.close();
        self.function.detach_host().await;
        // What was mapped is unmapped where it does not hold up the shard.
        let maps = self.maps.take();
        mapper::run(&self.function.shard, move || drop(maps)).await;
    }

    fn note(&self, reject: Reject, what: &'static str) {
        if self.rejections.note(reject) {
            let controller = self.function.controller().shared();
            tracing::warn!(?controller, reason = reject.text(), "vfio-user: {what}");
        }
    }

    /// Hangs up on a client that says nothing.
    fn hurry(&self) -> Task {
        let (greeted, socket) = (self.greeted.clone(), self.socket.clone());
        let patience = self.function.shard.sleep(GREETING_PATIENCE);
        self.function.shard.spawn(async move {
            patience.await;
            if !greeted.get() {
                socket.shut();
            }
        })
    }

    async fn serve(&self) -> Result<(), Reject> {
        let mut receiver = Receiver::new(MAX_BODY, MAX_FDS);
        let mut batch = 0;
        let mut requests = VecDeque::new();
        loop {
            let next = match requests.pop_front() {
                Some(request) => Some(request),
                None => self.socket.receive(&mut receiver).await?,
            };
            let Some(message) = next else { return Ok(()) };
            if message.header.is_reply() {
                self.dma.reply(message);
            } else {
                self.attend(message, &mut receiver, &mut requests).await?;
            }
            self.socket.has_room().await;
            batch += 1;
            if batch % BATCH == 0 {
                self.function.shard.sleep(Duration::ZERO).await;
            }
        }
    }

    /// Answers a request. One that takes its time may wait for replies, which are taken meanwhile; some requests that come
    /// then go to `requests`.
    async fn attend(
        &self,
        message: Message,
        receiver: &mut Receiver,
        requests: &mut VecDeque<Message>,
    ) -> Result<(), Reject> {
        let mut answer = pin!(self.answer(message));
        loop {
            let listens = requests.len() < AHEAD && !self.socket.is_full();
            let mut receive = pin!(self.socket.receive(receiver));
            let first = poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answered) => Poll::Ready(Err(answered)),
                Poll::Pending if listens => receive.as_mut().poll(cx).map(Ok),
                Poll::Pending => Poll::Pending,
            });
            match first.await {
                Err(answered) => return answered,
                Ok(Ok(Some(reply))) if reply.header.is_reply() => self.dma.reply(reply),
                Ok(Ok(Some(request))) => requests.push_back(request),
                // The client is gone, which is heard of again, or does not speak the protocol.
                Ok(other) => {
                    answer.await?;
                    return other.map(drop);
                }
            }
            self.function.shard.sleep(Duration::ZERO).await;
        }
    }

    async fn answer(&self, mut message: Message) -> Result<(), Reject> {
        let header = message.header;
        let is_version = header.command == Command::VERSION;
        if is_version == self.greeted.get() {
            self.refuse(&header, Errno::EINVAL);
            return if is_version { Ok(()) } else { Err(Reject::Version) };
        }
        let fds = std::mem::take(&mut message.fds);
        let answer = match parse(header.command, &message.body) {
            Ok(request) => self.execute(request, &message.body, fds).await,
            Err(errno) => Err(errno),
        };
        if is_version && answer.is_err() {
            self.refuse(&header, Errno::EINVAL);
            return Err(Reject::Version);
        }
        if !header.no_reply() {
            match answer {
                Ok(Answer { body, fd }) => self.socket.send(header.reply(&[&body]), fd.into_iter().collect()),
                Err(errno) => {
                    if self.rejections.note(Reject::Request) {
                        let controller = self.function.controller().shared();
                        tracing::info!(?controller, command = header.command.0, %errno, "vfio-user: refused");
                    }
                    self.refuse(&header, errno);
                }
            }
        }
        Ok(())
    }

    /// Refuses a message, unless its sender wants no reply.
    fn refuse(&self, header: &Header, errno: Errno) {
        if !header.no_reply() {
            self.socket.send(header.refusal(errno), Vec::new());
        }
    }

    async fn execute(&self, request: Request<'_>, body: &[u8], fds: Vec<OwnedFd>) -> Result<Answer, Errno> {
        match request {
            Request::Version { major, minor, capabilities } => self.greet(major, minor, capabilities),
            Request::DmaMap(map) => self.map(map, fds).await,
            Request::DmaUnmap(unmap) => {
                self.unmap(unmap).await?;
                Ok(body.to_vec().into())
            }
            Request::GetInfo => {
                const RESET_AND_PCI: u32 = 3;
                let info = DeviceInfo {
                    argsz: size_of::<DeviceInfo>() as u32,
                    flags: RESET_AND_PCI,
                    num_regions: region::COUNT,
                    num_irqs: irq::COUNT,
                };
                Ok(info.as_bytes().to_vec().into())
            }
            Request::GetRegionInfo { argsz, index } => Ok(self.region_info(argsz, index)),
            Request::GetIrqInfo { index } => {
                let (flags, count) = self.irq_info(index);
                let info = IrqInfo { argsz: size_of::<IrqInfo>() as u32, flags, index, count };
                Ok(info.as_bytes().to_vec().into())
            }
            Request::SetIrqs(set) => self.set_irqs(set, fds).map(|()| Vec::new().into()),
            Request::RegionRead(access) => self.read(access),
            Request::RegionWrite(access, data) => self.write(access, data).await,
            Request::Reset => match self.function.reset(RESET_PATIENCE).await {
                true => Ok(Vec::new().into()),
                false => Err(Errno::ETIMEDOUT),
            },
        }
    }

    fn greet(&self, major: u16, minor: u16, capabilities: Capabilities) -> Result<Answer, Errno> {
        if major != MAJOR {
            return Err(Errno::ENOTSUP);
        }
        self.greeted.set(true);
        self.dma.max_data.set(capabilities.max_data_xfer_size);
        self.takes_fds.set(capabilities.max_msg_fds > 0);
        let version = RawVersion { major, minor: minor.min(MINOR) };
        Ok([version.as_bytes(), &Capabilities::ours()].concat().into())
    }

    async fn map(&self, map: DmaMap, mut fds: Vec<OwnedFd>) -> Result<Answer, Errno> {
        if fds.len() > 1 {
            return Err(Errno::EINVAL);
        }
        if self.maps.borrow().len() >= MAX_DMA_MAPS {
            return Err(Errno::ENOSPC);
        }
        let DmaMap { gpa, size, readable, writable, .. } = map;
        let make = move |mapping| Region::new(gpa, size, readable, writable, mapping).ok_or(Errno::EINVAL);
        let region = match fds.pop() {
            None => make(None)?,
            Some(fd) => {
                let share = self.share.clone();
                let map = move || mapping(&share, &map, fd).and_then(|m| make(Some(m)));
                mapper::run(&self.function.shard, map).await.unwrap_or(Err(Errno::EIO))?
            }
        };
        if !self.function.add_region(region.clone()) {
            mapper::run(&self.function.shard, move || drop(region)).await;
            return Err(Errno::EEXIST);
        }
        self.maps.borrow_mut().push(region);
        Ok(Vec::new().into())
    }

    async fn unmap(&self, unmap: DmaUnmap) -> Result<(), Errno> {
        let gone: Vec<_> = {
            let mut maps = self.maps.borrow_mut();
            match unmap {
                DmaUnmap::All => std::mem::take(&mut *maps),
                DmaUnmap::One { gpa, size } => {
                    let at = maps.iter().position(|r| r.gpa() == gpa && r.len() == size);
                    vec![maps.swap_remove(at.ok_or(Errno::ENOENT)?)]
                }
            }
        };
        for region in &gone {
            self.function.remove_region(region.id());
        }
        // One is ours.
        self.let_go(&gone, 1).await;
        mapper::run(&self.function.shard, move || drop(gone)).await;
        Ok(())
    }

    /// Waits until no I/O holds these regions, which so many others do; a controller whose I/O does not let go has
    /// failed.
    async fn let_go(&self, regions: &[Arc<Region>], others: usize) {
        let shard = &self.function.shard;
        let until = shard.now().saturating_add(UNMAP_PATIENCE.as_nanos() as u64);
        let mut step = Duration::from_micros(50);
        while regions.iter().any(|region| Arc::strong_count(region) > others) {
            if shard.now() >= until {
                // Its memory goes when the I/O that holds it ends; the client may not wait for that.
                self.note(Reject::Unmap, "controller failed");
                self.function.fail();
                break;
            }
            shard.sleep(step).await;
            step = (step * 2).min(Duration::from_millis(5));
            // A command of several pieces may have begun another meanwhile.
            let held = |region: &&Arc<Region>| Arc::strong_count(region) > others;
            regions.iter().filter(held).for_each(|region| self.function.revoke(region.id()));
        }
    }

    fn region_info(&self, argsz: u32, index: u32) -> Answer {
        const READ: u32 = 1;
        const WRITE: u32 = 2;
        const MMAP: u32 = 4;
        const CAPS: u32 = 8;
        let plain = size_of::<RegionInfo>() as u32;
        let mut info = RegionInfo { argsz: plain, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        let Some(space) = space(index) else { return info.as_bytes().to_vec().into() };
        info.flags = READ | WRITE;
        info.size = space.len();
        let mappable = space == Space::Bar0 && self.takes_fds.get();
        let Some(file) = self.function.bells.file().filter(|_| mappable) else {
            return info.as_bytes().to_vec().into();
        };
        info.flags |= MMAP;
        info.argsz = plain + size_of::<SparseMmap>() as u32;
        if argsz < info.argsz {
            // It is asked again with room for the capability. Until then the flag is clear: QEMU refuses one without
            // an offset.
            return info.as_bytes().to_vec().into();
        }
        info.flags |= CAPS;
        info.cap_offset = plain;
        let sparse = SparseMmap {
            id: 1,
            version: 1,
            next: 0,
            nr_areas: 1,
            reserved: 0,
            offset: offset::DOORBELLS.into(),
            size: doorbell::PAGE as u64,
        };
        Answer { body: [info.as_bytes(), sparse.as_bytes()].concat(), fd: Some(file) }
    }

    /// Flags and count of an interrupt.
    fn irq_info(&self, index: u32) -> (u32, u32) {
        const EVENTFD: u32 = 1;
        const MASKABLE: u32 = 2;
        const AUTOMASKED: u32 = 4;
        const NORESIZE: u32 = 8;
        match index {
            irq::INTX => (EVENTFD | MASKABLE | AUTOMASKED, 1),
            irq::MSIX => (EVENTFD | NORESIZE, self.function.interrupts.vectors() as u32),
            // Clients complain when there is none; it is never raised.
            irq::ERR => (EVENTFD, 1),
            _ => (0, 0),
        }
    }

    fn set_irqs(&self, set: SetIrqs<'_>, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let (_, count) = self.irq_info(set.index);
        let end = set.start.checked_add(set.count).ok_or(Errno::EINVAL)?;
        if end > count {
            return Err(Errno::EINVAL);
        }
        let given = fds.len();
        if given != 0 && (set.data != IrqData::Eventfd || given != set.count as usize) {
            return Err(Errno::EINVAL);
        }
        match set.index {
            irq::INTX => self.set_intx(set, fds),
            irq::MSIX => self.set_msix(set, fds),
            irq::ERR if set.action == Action::Trigger => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn set_intx(&self, set: SetIrqs<'_>, mut fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let interrupts = &self.function.interrupts;
        let meant = match set.data {
            IrqData::Bool(flags) => flags.first().is_some_and(|f| *f != 0),
            _ => set.count == 1,
        };
        match (set.action, set.data) {
            (Action::Trigger, IrqData::Eventfd) => {
                interrupts.set_intx(fds.pop()).map_err(|_| Errno::EINVAL)?;
                self.function.update_pin();
            }
            (Action::Trigger, IrqData::None) if set.count == 0 => {
                interrupts.set_intx(None).map_err(|_| Errno::EINVAL)?;
            }
            (Action::Trigger, _) if meant => interrupts.pulse_intx(),
            (Action::Mask | Action::Unmask, IrqData::Eventfd) => return Err(Errno::ENOTSUP),
            (Action::Mask, _) if meant => interrupts.mask_intx(true),
            (Action::Unmask, _) if meant => {
                interrupts.mask_intx(false);
                self.function.update_pin();
            }
            _ => {}
        }
        Ok(())
    }

    fn set_msix(&self, set: SetIrqs<'_>, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let interrupts = &self.function.interrupts;
        if set.action != Action::Trigger {
            return Err(Errno::EINVAL);
        }
        let (start, count) = (set.start as usize, set.count as usize);
        match set.data {
            IrqData::None if count == 0 => {
                interrupts.clear_msix();
                self.function.update_pin();
            }
            IrqData::Eventfd => {
                // No descriptors at all: the vectors are there, and signal nothing yet.
                let mut fds = fds.into_iter();
                let each = (0..count).map(|_| fds.next());
                interrupts.set_msix(start, each).map_err(|_| Errno::EINVAL)?;
            }
            IrqData::None => (start..start + count).for_each(|v| interrupts.raise(v as u16)),
            IrqData::Bool(flags) => {
                let meant = (start..).zip(flags).filter(|(_, f)| **f != 0);
                meant.for_each(|(v, _)| interrupts.raise(v as u16));
            }
        }
        Ok(())
    }

    fn read(&self, access: Access) -> Result<Answer, Errno> {
        if access.count > MAX_ACCESS {
            return Err(Errno::EINVAL);
        }
        // What cannot be read is answered as a bus does, with ones: some clients wait for the bytes of even a refused
        // read.
        let mut body = vec![0xff; size_of::<Access>() + access.count as usize];
        let (head, data) = body.split_at_mut(size_of::<Access>());
        head.copy_from_slice(access.as_bytes());
        if let Some(space) = space(access.region) {
            self.function.read(space, access.offset, data);
        }
        Ok(body.into())
    }

    async fn write(&self, access: Access, data: &[u8]) -> Result<Answer, Errno> {
        let space = space(access.region).ok_or(Errno::EINVAL)?;
        let end = access.offset.checked_add(data.len() as u64).ok_or(Errno::EINVAL)?;
        if end > space.len() {
            return Err(Errno::EINVAL);
        }
        match self.function.write(space, access.offset, data) {
            Then::Done => {}
            Then::Reset => {
                self.function.reset(RESET_PATIENCE).await;
            }
            Then::LetGo => {
                let regions = self.maps.borrow().clone();
                // Ours twice, and the function's.
                self.let_go(&regions, 3).await;
            }
        }
        Ok(access.as_bytes().to_vec().into())
    }
}

fn space(index: u32) -> Option<Space> {
    match index {
        region::CONFIG => Some(Space::Config),
        region::BAR0 => Some(Space::Bar0),
        region::BAR4 => Some(Space::Bar4),
        _ => None,
    }
}

/// Maps the file that came with a DMA_MAP. A file that ends before its mapping is refused here; one that is truncated
/// later is the engine's matter.
fn mapping(share: &MapShare, map: &DmaMap, fd: OwnedFd) -> Result<Mapping, Errno> {
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
    let len = usize::try_from(map.size).map_err(|_| Errno::EINVAL)?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(errno)?;
    let end = map.offset.checked_add(map.size).ok_or(Errno::EINVAL)?;
    if !metadata.is_file() || metadata.len() < end {
        return Err(Errno::EINVAL);
    }
    Mapping::of_client(share, &OwnedFd::from(file), map.offset, len, map.writable).map_err(errno)
}
