//! What tests of layers need: an issuer that remembers what came back, and I/Os made in one line.

pub mod fuzz;
pub mod memory;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::io::{Io, IoId, IoResult, Op, Origin, Request};
use crate::mem::{Buf, Sgl};
use crate::volume::{ChannelRef, Issuer};

/// An issuer that keeps results in the order in which they came.
#[derive(Default)]
pub struct Collector {
    origin: Cell<Option<Origin>>,
    done: RefCell<Vec<(u64, IoResult)>>,
    ios: RefCell<Vec<Io>>,
}

impl Collector {
    /// A new one, with an origin of its own.
    pub fn new() -> Rc<Self> {
        let c = Collector::default();
        c.origin.set(Some(Origin::new()));
        Rc::new(c)
    }

    /// Whose the I/Os are.
    pub fn origin(&self) -> Origin {
        self.origin.get().unwrap_or_default()
    }

    /// Submits a request to `to`; its result is kept under `tag`.
    pub fn submit(self: &Rc<Self>, to: &ChannelRef, tag: u64, op: Op, lba: u64, blocks: u32, sgl: Sgl) {
        let mut io = Io::new(IoId { origin: self.origin(), tag });
        *io.request_mut() = Request { op, lba, blocks, sgl };
        io.forward(to, self.clone(), tag);
    }

    /// Results so far, oldest first.
    pub fn results(&self) -> Vec<(u64, IoResult)> {
        self.done.borrow().clone()
    }

    /// How many came back.
    pub fn count(&self) -> usize {
        self.done.borrow().len()
    }

    /// The result of `tag`.
    pub fn result(&self, tag: u64) -> Option<IoResult> {
        self.done.borrow().iter().find(|(t, _)| *t == tag).map(|(_, r)| *r)
    }
}

impl Issuer for Collector {
    fn resume(self: Rc<Self>, io: Io, cookie: u64, result: IoResult) {
        self.done.borrow_mut().push((cookie, result));
        self.ios.borrow_mut().push(io);
    }
}

/// Memory of `len` bytes, each `byte`.
pub fn filled(len: usize, byte: u8) -> Sgl {
    let sgl = Buf::new(len).into_sgl(len);
    sgl.copy_in(0, &vec![byte; len]);
    sgl
}

/// The bytes of a list.
pub fn bytes(sgl: &Sgl) -> Vec<u8> {
    let mut v = vec![0; sgl.len()];
    sgl.copy_out(0, &mut v);
    v
}
