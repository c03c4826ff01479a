//! NVMe/TCP from a host: connections, an Admin queue, I/O queues.

mod connection;
mod controller;
mod queue;
mod ready;

pub use connection::{Connection, Digests};
pub use controller::{Controller, Options};
pub use queue::IoQueue;
pub use ready::Ready;
