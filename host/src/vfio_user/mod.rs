//! NVMe over vfio-user: the client half of the protocol, and an NVMe driver on top.

mod client;
mod controller;
mod queue;

pub use client::Client;
pub use controller::{Controller, Options};
pub use queue::IoQueue;
