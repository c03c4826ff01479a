//! A host in user space: drives NVMe controllers over vfio-user and NVMe/TCP, any vendor's, for the demo, the
//! benchmark and the tests. It shares nothing with the server but the wire formats and the engine.
//!
//! [`vfio_user::Controller`] and [`tcp::Controller`] connect and identify; their queues are [`Queue`]s, which
//! [`workload`] drives by polling.
#![forbid(unsafe_code)]

pub mod tcp;
pub mod vfio_user;
pub mod workload;

mod command;
mod queue;

pub use command::{Command, Kind};
pub use queue::{Done, Namespace, Queue};

/// What went wrong between this host and a controller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The peer broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// A command of the set-up failed.
    #[error("{what}: {status}")]
    Status {
        /// Which one.
        what: &'static str,
        /// Its status.
        status: nvme_proto::Status,
    },
    /// The controller did not answer in time.
    #[error("{0}: no answer in time")]
    Timeout(&'static str),
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { what, source }
    }
}

/// What this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
