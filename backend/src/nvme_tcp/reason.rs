//! Why there is no connection.

use std::io;

use nvme_proto::Status;

/// Why a remote controller is not connected, or a namespace not usable; its text is for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A socket call failed.
    #[error("{what}: {error}")]
    Socket {
        /// Which one.
        what: &'static str,
        /// The system's words.
        error: String,
    },
    /// The remote ended the connection.
    #[error("the remote closed the connection")]
    Hung,
    /// The remote broke the protocol.
    #[error("the remote broke the protocol: {0}")]
    Violation(&'static str),
    /// A command of the control sequence failed.
    #[error("{command}: {status}")]
    Command {
        /// Which one.
        command: &'static str,
        /// Its status.
        status: Status,
    },
    /// Nothing came in time.
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
    /// The remote cannot do what is needed.
    #[error("the remote is of no use: {0}")]
    Unfit(&'static str),
    /// What is under this NSID is not what was there before.
    #[error("another namespace than before: {0}")]
    Changed(&'static str),
    /// Asked for by this side.
    #[error("reset")]
    Reset,
    /// Closed by this side.
    #[error("closed")]
    Closed,
}

impl Reason {
    pub(super) fn socket(what: &'static str, error: &io::Error) -> Self {
        Reason::Socket { what, error: error.to_string() }
    }
}
