//! DMA_READ and DMA_WRITE: guest memory that has no descriptor, by asking the client.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use zerocopy::{FromBytes, IntoBytes};

use super::frame::Message;
use super::message::{Command, DmaAccess, Header};
use super::oneshot;
use super::socket::Socket;
use crate::pcie::staged::{Later, Messages};

struct Asked {
    command: Command,
    access: DmaAccess,
    to: oneshot::Sender<Vec<u8>>,
}

/// What a client is asked.
pub(super) struct Dma {
    socket: Rc<Socket>,
    next: Cell<u16>,
    asked: RefCell<HashMap<u16, Asked>>,
    /// Bytes of data that the client takes in one message.
    pub max_data: Cell<usize>,
    closed: Cell<bool>,
}

impl Dma {
    pub fn new(socket: &Rc<Socket>) -> Rc<Self> {
        Rc::new(Dma {
            socket: socket.clone(),
            next: Cell::new(0),
            asked: RefCell::default(),
            max_data: Cell::new(4096),
            closed: Cell::new(false),
        })
    }

    fn ask(&self, command: Command, gpa: u64, count: usize, data: &[u8]) -> oneshot::Receiver<Vec<u8>> {
        let (to, from) = oneshot::channel();
        let mut asked = self.asked.borrow_mut();
        // An identifier that no other question bears; there are far fewer questions than identifiers.
        let id = (0..=u16::MAX).map(|i| self.next.get().wrapping_add(i)).find(|id| !asked.contains_key(id));
        let Some(id) = id.filter(|_| !self.closed.get()) else { return from };
        self.next.set(id.wrapping_add(1));
        let access = DmaAccess { gpa, count: count as u64 };
        asked.insert(id, Asked { command, access, to });
        self.socket.send(Header::command(id, command, &[access.as_bytes(), data]), Vec::new());
        from
    }

    /// A reply came. What answers no question is passed over.
    pub fn reply(&self, message: Message) {
        let known = self.asked.borrow_mut().remove(&message.header.id);
        let Some(asked) = known.filter(|a| a.command == message.header.command) else { return };
        let Ok((access, data)) = DmaAccess::read_from_prefix(&message.body) else { return };
        let expected = if asked.command == Command::DMA_READ { asked.access.count } else { 0 };
        if !message.header.is_error() && access == asked.access && data.len() as u64 == expected {
            asked.to.send(data.to_vec());
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
    fn read(&self, gpa: u64, len: usize) -> Later<Option<Vec<u8>>> {
        let from = self.ask(Command::DMA_READ, gpa, len.min(self.max_data.get()), &[]);
        Box::pin(from)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Later<usize> {
        let bytes = &bytes[..bytes.len().min(self.max_data.get())];
        let (n, from) = (bytes.len(), self.ask(Command::DMA_WRITE, gpa, bytes.len(), bytes));
        Box::pin(async move { if from.await.is_some() { n } else { 0 } })
    }
}
