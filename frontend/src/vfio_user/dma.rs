//! DMA_READ and DMA_WRITE: guest memory that has no descriptor, by asking the client.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Poll, Waker};

use zerocopy::IntoBytes;

use super::frame::Message;
use super::message::{Command, DmaAccess, Header};
use super::oneshot;
use super::socket::Socket;
use crate::pcie::staged::{Later, Messages};

/// How wide a client takes the count of DMA_READ and DMA_WRITE to be. The specification has 64 bits; older QEMU has 32
/// with the data right behind them, so that both replies are as long and their data is not in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Bits64,
    Bits32,
}

impl Count {
    /// Where the data begins after the header.
    fn data_at(self) -> usize {
        match self {
            Count::Bits64 => size_of::<DmaAccess>(),
            Count::Bits32 => size_of::<DmaAccess>() - 4,
        }
    }
}

/// Bytes that are asked for at one time: with more than a socket's buffer holds, QEMU loses its place in the stream.
const WINDOW: usize = 64 << 10;

/// A reply to DMA_READ or DMA_WRITE, without its header.
type Answer = Option<Vec<u8>>;

/// A question that was not answered yet.
struct Asked {
    command: Command,
    to: oneshot::Sender<Vec<u8>>,
}

/// What a client is asked.
pub(super) struct Dma {
    socket: Rc<Socket>,
    next: Cell<u16>,
    asked: RefCell<HashMap<u16, Asked>>,
    /// Bytes of data that the client takes in one message.
    pub max_data: Cell<usize>,
    count: Cell<Option<Count>>,
    closed: Cell<bool>,
    /// See [`Messages::allow`].
    allowed: Cell<bool>,
    /// Bytes that were asked for and have not come.
    awaited: Cell<usize>,
    waiters: RefCell<Vec<Waker>>,
}

/// A share of the window.
struct Share<'a>(&'a Dma, usize);

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.0.awaited.set(self.0.awaited.get() - self.1);
        self.0.waiters.take().into_iter().for_each(Waker::wake);
    }
}

impl Dma {
    pub fn new(socket: &Rc<Socket>) -> Rc<Self> {
        Rc::new(Dma {
            socket: socket.clone(),
            next: Cell::new(0),
            asked: RefCell::default(),
            max_data: Cell::new(4096),
            count: Cell::new(None),
            closed: Cell::new(false),
            allowed: Cell::new(false),
            awaited: Cell::new(0),
            waiters: RefCell::default(),
        })
    }

    /// Waits until `len` more bytes may be asked for.
    async fn share(&self, len: usize) -> Share<'_> {
        std::future::poll_fn(|cx| {
            let awaited = self.awaited.get();
            if awaited != 0 && awaited + len > WINDOW {
                self.waiters.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            self.awaited.set(awaited + len);
            Poll::Ready(())
        })
        .await;
        Share(self, len)
    }

    async fn ask(&self, command: Command, access: DmaAccess, after: &[&[u8]]) -> Answer {
        let (to, from) = oneshot::channel();
        {
            let mut asked = self.asked.borrow_mut();
            // An identifier that no other question bears; there are far fewer questions than identifiers.
            let ids = (0..=u16::MAX).map(|i| self.next.get().wrapping_add(i));
            let may = self.allowed.get() && !self.closed.get();
            let id = ids.into_iter().find(|id| !asked.contains_key(id)).filter(|_| may)?;
            self.next.set(id.wrapping_add(1));
            asked.insert(id, Asked { command, to });
            let body: Vec<&[u8]> = [access.as_bytes()].into_iter().chain(after.iter().copied()).collect();
            self.socket.send(Header::command(id, command, &body), Vec::new());
        }
        from.await
    }

    /// How wide the client's counts are. It is asked once for more than 4 GiB and 4 bytes: one that takes this for 4
    /// bytes gives them, any other refuses.
    async fn count(&self, gpa: u64) -> Count {
        if let Some(known) = self.count.get() {
            return known;
        }
        let probe = DmaAccess { gpa, count: 1 << 32 | 4 };
        let found = match self.ask(Command::DMA_READ, probe, &[]).await {
            Some(_) => Count::Bits32,
            None => Count::Bits64,
        };
        // A refusal of ours says nothing.
        self.count.set(Some(found).filter(|_| self.allowed.get()));
        found
    }

    /// A reply came. What answers no question is passed over.
    pub fn reply(&self, message: Message) {
        let known = self.asked.borrow_mut().remove(&message.header.id);
        let Some(asked) = known.filter(|asked| asked.command == message.header.command) else { return };
        if !message.header.is_error() {
            asked.to.send(message.body);
        }
    }

    /// The client is gone: nothing is answered any more.
    pub fn close(&self) {
        self.closed.set(true);
        let asked = std::mem::take(&mut *self.asked.borrow_mut());
        drop(asked);
    }
}

impl Messages for Dma {
    fn read(self: Rc<Self>, gpa: u64, len: usize) -> Later<Option<Vec<u8>>> {
        Box::pin(async move {
            let at = self.count(gpa).await.data_at();
            let len = len.min(self.max_data.get());
            let _share = self.share(len).await;
            let access = DmaAccess { gpa, count: len as u64 };
            let body = self.ask(Command::DMA_READ, access, &[]).await?;
            let same =
                body.get(..8) == Some(&gpa.to_le_bytes()[..]) && body.len() == size_of::<DmaAccess>() + len;
            same.then(|| body.get(at..at + len).map(<[u8]>::to_vec)).flatten()
        })
    }

    fn meet(self: Rc<Self>, gpa: u64) -> Later<()> {
        Box::pin(async move {
            self.count(gpa).await;
        })
    }

    fn write(self: Rc<Self>, gpa: u64, bytes: &[u8]) -> Later<usize> {
        let bytes = bytes[..bytes.len().min(self.max_data.get())].to_vec();
        Box::pin(async move {
            let n = bytes.len();
            let access = DmaAccess { gpa, count: n as u64 };
            let done = match self.count(gpa).await {
                Count::Bits64 => self.ask(Command::DMA_WRITE, access, &[&bytes]).await,
                Count::Bits32 => {
                    // The first four bytes lie where the count's upper half would be.
                    let mut head = [0; 4];
                    let in_head = n.min(4);
                    head[..in_head].copy_from_slice(&bytes[..in_head]);
                    let head = u64::from(u32::from_le_bytes(head)) << 32;
                    let access = DmaAccess { gpa, count: head | n as u64 };
                    self.ask(Command::DMA_WRITE, access, &[&bytes[in_head..], &[0; 4]]).await
                }
            };
            if done.is_some() { n } else { 0 }
        })
    }

    fn allow(&self, allowed: bool) {
        self.allowed.set(allowed);
    }
}
