//! The runtime under Isthmus, and the contract between its layers.
//!
//! A [`Volume`] is a named run of blocks; a [`Channel`] is its half on one shard, where [`Io`]s go down and come back.
//! A [`Shard`] is a thread with its own io_uring, timers and memory; shards send each other closures and share no
//! object of the data path. This room knows nothing of NVMe.
//!
//! `unsafe` lives in `mem` and `ring` alone.

pub mod conformance;
mod emulate;
mod io;
pub mod mem;
mod proxy;
pub mod ring;
mod shard;
pub mod stats;
pub mod testing;
mod volume;

pub use io::{Io, IoError, IoId, IoResult, Op, Origin, Request, Scope};
pub use proxy::proxy;
pub use shard::{
    Config, OnTimer, Poller, PollerId, Shard, ShardHandle, Shards, Sim, Task, TimerId, TurnEnd, Wake,
};
pub use stats::VolumeStats;
pub use volume::{Channel, ChannelRef, Issuer, Limits, Reason, Volume};
