//! Who asks for blocks: one NVMe controller model under its transports.
//!
//! A [`Subsystem`] is the control half: its namespaces, its hosts, its controllers; any thread may call it. A
//! [`Controller`] lives on its home shard, where its admin queue is; a [`Queue`] lives on the shard of its connection
//! or of its controller, and shares the namespaces' channels there with all other queues.

#![forbid(unsafe_code)]

mod controller;
mod gate;
mod namespace;
mod nvm;
mod pcie;
mod queue;
mod subsystem;
pub mod tcp;
pub mod vfio_user;

pub use controller::{
    AccessState, AttachError, Config, Controller, Host, Port, QueueLink, QueueToken, Shared, Way,
};
pub use namespace::{Attachment, Drain, Namespace, Protection};
pub use pcie::Doorbells;
pub use queue::{
    AdminQueue, Completion, Data, Direction, Outcome, Queue, QueueConfig, Reply, Ticket, Transport,
};
pub use subsystem::{
    HostId, Kept, Local, MAX_NAMESPACES, Mask, Persist, Power, Stored, Subsystem, SubsystemConfig,
    SubsystemError, Viewer,
};
