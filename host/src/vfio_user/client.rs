//! A vfio-user client (protocol 0.1, as of QEMU's and libvfio-user's documents): synchronous, one
//! request at a time, but for writes that want no answer.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::mem::Mapping;
use engine::ring::{receive_with_fds, send_with_fds};

use crate::{Error, Result};

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_REGION_INFO: u16 = 5;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const DEVICE_RESET: u16 = 13;

const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;
/// The longest message that this client takes.
const MAX_MESSAGE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a vfio-user server.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    next_id: u16,
}

/// A region of the device: its size, and the parts of it that can be mapped.
#[derive(Debug)]
pub struct RegionInfo {
    /// Bytes.
    pub size: u64,
    /// Offsets and lengths that `fd` holds.
    pub areas: Vec<(u64, u64)>,
    /// Where the region begins in `fd`.
    pub offset: u64,
    /// The file behind the areas.
    pub fd: Option<OwnedFd>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// The body of a region write.
fn written(region: u32, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + bytes.len());
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&region.to_le_bytes());
    body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    body.extend_from_slice(bytes);
    body
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Client {
    /// Connects to the socket at `path`, or to `cntrl` in the directory at `path`, and agrees on a version.
    ///
    /// # Errors
    /// Those of the socket; a server that speaks another version.
    pub fn connect(path: &Path) -> Result<Self> {
        let inner = path.join("cntrl");
        let path = if path.is_dir() { inner.as_path() } else { path };
        let socket = UnixStream::connect(path).map_err(Error::io("connect to the vfio-user socket"))?;
        let mut client = Client { socket, next_id: 0 };
        let mut body = vec![0, 0, 1, 0];
        body.extend_from_slice(
            b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":4096}}}\0",
        );
        let (reply, _) = client.call(VERSION, &body, &[])?;
        if reply.get(..2) != Some(&[0, 0]) {
            return Err(Error::Protocol("the vfio-user server speaks another major version".into()));
        }
        Ok(client)
    }

    /// A message: its header, with these flags, and its body.
    fn message(&mut self, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
        self.next_id = self.next_id.wrapping_add(1);
        let size = 16 + body.len() as u32;
        let mut message = Vec::with_capacity(size as usize);
        message.extend_from_slice(&self.next_id.to_le_bytes());
        message.extend_from_slice(&command.to_le_bytes());
        message.extend_from_slice(&size.to_le_bytes());
        message.extend_from_slice(&flags.to_le_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        message
    }

    fn call(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let message = self.message(command, 0, body);
        self.send(&message, fds)?;
        let mut received = Vec::new();
        let header = self.receive(16, &mut received)?;
        let (id, size, flags) = (u32_at(&header, 0), u32_at(&header, 4) as usize, u32_at(&header, 8));
        if id & 0xffff != u32::from(self.next_id)
            || flags & 0xf != REPLY
            || !(16..=MAX_MESSAGE).contains(&size)
        {
            return Err(Error::Protocol(format!(
                "unexpected vfio-user message: id {id:#x} flags {flags:#x}"
            )));
        }
        let reply = self.receive(size - 16, &mut received)?;
        if flags & ERROR != 0 {
            let source = std::io::Error::from_raw_os_error(u32_at(&header, 12) as i32);
            return Err(Error::Io { what: "the vfio-user server refused a request", source });
        }
        Ok((reply, received))
    }

    fn send(&mut self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let (mut sent, mut fds) = (0, fds);
        let deadline = Instant::now() + PATIENCE;
        while sent < message.len() {
            match send_with_fds(self.socket.as_fd(), &message[sent..], fds) {
                Ok(n) => (sent, fds) = (sent + n, &[]),
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::yield_now()
                }
                Err(e) => return Err(Error::io("send to the vfio-user server")(e)),
            }
        }
        Ok(())
    }

    fn receive(&mut self, len: usize, fds: &mut Vec<OwnedFd>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut got = 0;
        let deadline = Instant::now() + PATIENCE;
        while got < len {
            match receive_with_fds(self.socket.as_fd(), &mut bytes[got..], fds) {
                Ok(0) => return Err(Error::Protocol("the vfio-user server closed the connection".into())),
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    let mut poll =
                        [nix::poll::PollFd::new(self.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut poll, 100u16);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(Error::Timeout("vfio-user")),
                Err(e) => return Err(Error::io("receive from the vfio-user server")(e)),
            }
        }
        Ok(bytes)
    }

    /// Lets the device use `len` bytes of `file` from `offset` on as memory at address `iova`.
    ///
    /// # Errors
    /// The server's.
    pub fn map_dma(&mut self, file: &OwnedFd, offset: u64, iova: u64, len: u64) -> Result<()> {
        let mut body = Vec::with_capacity(32);
        body.extend_from_slice(&32u32.to_le_bytes());
        body.extend_from_slice(&3u32.to_le_bytes());
        for word in [offset, iova, len] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        self.call(DMA_MAP, &body, &[file.as_fd()]).map(drop)
    }

    /// Takes memory back; when this returns the device no longer touches it.
    ///
    /// # Errors
    /// The server's.
    pub fn unmap_dma(&mut self, iova: u64, len: u64) -> Result<()> {
        let mut body = Vec::with_capacity(24);
        body.extend_from_slice(&24u32.to_le_bytes());
        body.extend_from_slice(&0u32.to_le_bytes());
        for word in [iova, len] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        self.call(DMA_UNMAP, &body, &[]).map(drop)
    }

    /// What region `index` of the device is.
    ///
    /// # Errors
    /// The server's.
    pub fn region_info(&mut self, index: u32) -> Result<RegionInfo> {
        let mut ask = |argsz: u32| {
            let mut body = Vec::with_capacity(32);
            for word in [argsz, 0, index, 0] {
                body.extend_from_slice(&word.to_le_bytes());
            }
            body.resize(32, 0);
            self.call(GET_REGION_INFO, &body, &[])
        };
        let (mut info, mut fds) = ask(32)?;
        let needed = u32_at(&info, 0);
        if (33..4096).contains(&needed) {
            (info, fds) = ask(needed)?;
        }
        let mut areas = Vec::new();
        // Region flag 3: capabilities follow. Each: id, version, next; the one with id 1 lists what can be mapped.
        let mut at = if u32_at(&info, 4) & 8 != 0 { u32_at(&info, 12) as usize } else { 0 };
        for _ in 0..16 {
            if at < 32 || at + 16 > info.len() {
                break;
            }
            if u32_at(&info, at) & 0xffff == 1 {
                let n = u32_at(&info, at + 8).min(256) as usize;
                areas = (0..n)
                    .map(|i| (u64_at(&info, at + 16 + i * 16), u64_at(&info, at + 24 + i * 16)))
                    .collect();
            }
            at = u32_at(&info, at + 4) as usize;
        }
        let (size, offset) = (u64_at(&info, 16), u64_at(&info, 24));
        // Region flag 2: all of it can be mapped, unless the areas say which parts.
        if u32_at(&info, 4) & 4 != 0 && areas.is_empty() {
            areas.push((0, size));
        }
        Ok(RegionInfo { size, areas, offset, fd: fds.pop() })
    }

    /// Reads `bytes.len()` bytes of a region.
    ///
    /// # Errors
    /// The server's, and an answer of another length.
    pub fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut body = Vec::with_capacity(16);
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&region.to_le_bytes());
        body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        let (reply, _) = self.call(REGION_READ, &body, &[])?;
        let data = reply.get(16..).filter(|d| d.len() == bytes.len());
        bytes.copy_from_slice(data.ok_or_else(|| Error::Protocol("a region read of another length".into()))?);
        Ok(())
    }

    /// Writes bytes to a region.
    ///
    /// # Errors
    /// The server's.
    pub fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        self.call(REGION_WRITE, &written(region, offset, bytes), &[]).map(drop)
    }

    /// As [`Client::write`], without an answer, as QEMU writes: for doorbells, which nobody waits for.
    ///
    /// # Errors
    /// The socket's.
    pub fn post(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let message = self.message(REGION_WRITE, NO_REPLY, &written(region, offset, bytes));
        self.send(&message, &[])
    }

    /// Has interrupts `start ..` of an index delivered to eventfds.
    ///
    /// # Errors
    /// The server's.
    pub fn set_irqs(&mut self, index: u32, start: u32, events: &[BorrowedFd<'_>]) -> Result<()> {
        // Data is eventfds (bit 2), action is to trigger (bit 5).
        let words = [20, 1 << 2 | 1 << 5, index, start, events.len() as u32];
        let body: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.call(SET_IRQS, &body, events).map(drop)
    }

    /// Resets the device.
    ///
    /// # Errors
    /// The server's.
    pub fn reset(&mut self) -> Result<()> {
        self.call(DEVICE_RESET, &[], &[]).map(drop)
    }

    /// Maps the part of a region that lies at `offset`, if the server offers it.
    pub fn map_region(&mut self, index: u32, offset: u64, len: u64) -> Result<Option<Arc<Mapping>>> {
        let info = self.region_info(index)?;
        let covers = |&&(at, n): &&(u64, u64)| at <= offset && offset + len <= at.saturating_add(n);
        let (Some(fd), Some(_)) = (&info.fd, info.areas.iter().find(covers)) else { return Ok(None) };
        let at = info.offset.saturating_add(offset);
        let map = Mapping::shared(fd, at, len as usize, true).map_err(Error::io("map the doorbells"))?;
        Ok(Some(Arc::new(map)))
    }

    /// The process that listened at the socket.
    pub fn server_pid(&self) -> Option<u32> {
        let peer = nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::PeerCredentials);
        u32::try_from(peer.ok()?.pid()).ok().filter(|&pid| pid != 0)
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        if self.socket.set_nonblocking(true).is_err() {
            return true;
        }
        let closed = match self.socket.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        let _ = self.socket.set_nonblocking(false);
        closed
    }
}
