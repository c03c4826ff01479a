//! What the rooms below answer, in the control plane's words.

use std::fmt;
use std::io::{self, ErrorKind};

use frontend::SubsystemError;
use nix::errno::Errno;
use nvme_proto::Nqn;

use crate::control::plane::{Failure, PlaneError, PlaneResult};

/// Makes a refusal of a failure and anything that can be said.
pub(super) fn refuse<T>(failure: Failure, reason: impl fmt::Display) -> PlaneResult<T> {
    Err(PlaneError::new(failure, reason))
}

/// What a system call's failure means to the client; `what` names the file or address.
pub(super) fn system(what: impl fmt::Display) -> impl FnOnce(io::Error) -> PlaneError {
    move |e| PlaneError::new(meaning(&e), format!("{what}: {e}"))
}

/// As [`system`], for an error that names its object itself.
pub(super) fn named(e: io::Error) -> PlaneError {
    PlaneError::new(meaning(&e), e)
}

/// What a subsystem's refusal means to the client.
pub(super) fn subsystem(e: SubsystemError) -> PlaneError {
    PlaneError::new(of_subsystem(&e), e)
}

fn of_subsystem(e: &SubsystemError) -> Failure {
    match e {
        SubsystemError::NsidInUse | SubsystemError::CntlidInUse => Failure::Exists,
        SubsystemError::NoController => Failure::Exhausted,
        SubsystemError::NoNamespace => Failure::Precondition,
        SubsystemError::Kept(_) => Failure::Internal,
        _ => Failure::Invalid,
    }
}

fn meaning(e: &io::Error) -> Failure {
    if let Some(inner) = e.get_ref().and_then(|inner| inner.downcast_ref()) {
        return of_subsystem(inner);
    }
    let out_of_files = |code| matches!(Errno::from_raw(code), Errno::EMFILE | Errno::ENFILE);
    match e.kind() {
        _ if e.raw_os_error().is_some_and(out_of_files) => Failure::Exhausted,
        ErrorKind::InvalidInput | ErrorKind::InvalidFilename | ErrorKind::AddrNotAvailable => {
            Failure::Invalid
        }
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory => Failure::Precondition,
        ErrorKind::ResourceBusy | ErrorKind::AddrInUse => Failure::Busy,
        ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Failure::Exhausted,
        ErrorKind::Unsupported => Failure::Unsupported,
        _ => Failure::Internal,
    }
}

/// A name as NVMe has it; `field` names it to the client.
pub(super) fn nqn(field: &str, text: &str) -> PlaneResult<Nqn> {
    Nqn::new(text).map_err(|e| PlaneError::new(Failure::Invalid, format!("{field}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_learn_whether_it_is_their_fault() {
        for (e, failure) in [
            (Errno::EMFILE, Failure::Exhausted),
            (Errno::ENOENT, Failure::Precondition),
            (Errno::EADDRINUSE, Failure::Busy),
            (Errno::EADDRNOTAVAIL, Failure::Invalid),
            (Errno::ENOMEM, Failure::Exhausted),
            (Errno::EIO, Failure::Internal),
        ] {
            assert_eq!(system("x")(e.into()).failure, failure, "{e}");
        }
        assert_eq!(nqn("subnqn", "not a name").unwrap_err().failure, Failure::Invalid);
    }
}
