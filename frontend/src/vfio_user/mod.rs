//! The vfio-user transport of PCIe controllers: a Unix socket per controller, on which QEMU and other clients bring a
//! host's accesses, memory and interrupts.
//!
//! One client at a time; the next one is let in when everything of the last is gone. The socket is read on the
//! controller's home shard, message by message, and replies keep the order of requests.

mod dma;
mod frame;
mod listener;
mod mapper;
mod message;
mod oneshot;
mod reject;
mod request;
mod server;
mod session;
mod socket;
mod version;

pub use listener::{PathError, socket_path};
pub use reject::{Reject, Rejections};
pub use server::{Handle, Options, Server};
