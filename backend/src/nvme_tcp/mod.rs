//! The NVMe/TCP initiator: namespaces of remote controllers as volumes (Base 2.1; NVMe/TCP Transport 1.1).
//!
//! A [`Remote`] is the control half. Its *session* lives on a home shard: it connects, identifies, keeps alive,
//! and connects again for ever. A [`RemoteNamespace`] is an [`engine::Volume`]; its channel on a shard sends over that
//! shard's *lane*, one I/O queue on a TCP connection of its own that all namespaces of the remote share. Where the
//! remote grants fewer queues than there are shards, the other shards' channels cross to one that has a queue.
//!
//! | module | what it does |
//! |---|---|
//! | `wire`, `queue`, `batch` | the protocol, sans I/O: PDUs, command identifiers, what to send |
//! | `dial`, `conn`, `admin`, `controller` | the handshake; a connection; commands of control sequences; from the socket to CSTS.RDY |
//! | `session`, `scan`, `identity` | the life of an association; what the controller says of itself |
//! | `discover` | questions to a controller outside any remote |
//! | `lane`, `channel`, `issued`, `ghosts`, `status` | the path of every I/O |
//!
//! **While there is no connection** I/O is parked, in order, and nothing fails. What was out on a connection that is lost
//! is sent again on the next one, in its first order and before everything newer. But the old association may still
//! execute a write that it had, and over a newer one on the same blocks: so such a write and all that touches its blocks
//! waits until that association must have ended ([`Resend::Strict`]: the keep-alive timeout plus the command quiesce time
//! after contact was lost). [`Resend::Fast`] does not wait, as Linux does not.
//!
//! A connection counts as lost when the kernel says so, when the controller breaks the protocol, or when it leaves a Keep
//! Alive unanswered; then all of the association goes. A controller that lives and never answers one command is not
//! suspected: that I/O waits until its issuer takes it back.
//!
//! **I/O that its issuer takes back** ends as aborted at once and its memory is let go: what is still to be sent is copied
//! first, what is still to come is passed over. The remote may still execute the command; until its answer is here, later
//! I/O on the same blocks is held back, so that no old write lands over a new one.
//!
//! **A namespace** keeps the identity and the limits with which it was first seen ([`Pin`]). If the controller shows another
//! one under its NSID, or one that can do less, it is refused with the reason, and its I/O stays parked.
//!
//! **A hostile controller** can make its own I/O fail or stall, and nothing else: every PDU is checked against the commands
//! that are out, a violation ends the connection with an H2CTermReq, and the next attempt waits longer.

mod admin;
mod batch;
mod channel;
mod config;
mod conn;
mod controller;
mod dial;
mod discover;
mod ghosts;
mod identity;
mod issued;
mod lane;
mod namespace;
mod promise;
mod queue;
mod reason;
mod remote;
mod scan;
mod session;
mod status;
mod wire;

#[cfg(test)]
mod tests;

pub use config::{Config, Resend};
pub use discover::{Discovered, Identified, discover, identify};
pub use identity::Identity;
pub use namespace::{Pin, RemoteNamespace};
pub use reason::Reason;
pub use remote::{Remote, State};
