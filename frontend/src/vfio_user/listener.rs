//! The listening socket: its path, what may be in its place, who may connect.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::unistd::{Gid, chown};

/// Bytes that a socket's path may have, the NUL at its end not counted.
const MAX_PATH: usize = 107;

/// Why a controller can have no socket of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A name that is no file name.
    #[error("{0} is not usable in a path")]
    Name(&'static str),
    /// Longer than a socket address.
    #[error("the socket's path is {0} bytes long, and may have {MAX_PATH}")]
    TooLong(usize),
}

/// Where the socket of a controller of `subsystem` lies: `<dir>/<subsystem>/cntrl` for the first one, for which
/// `controller` is `None`, and `<dir>/<subsystem>.<controller>/cntrl` for further ones.
///
/// # Errors
/// A name that is none, or a path too long.
pub fn socket_path(dir: &Path, subsystem: &str, controller: Option<&str>) -> Result<PathBuf, PathError> {
    let usable = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if !usable(subsystem) {
        return Err(PathError::Name("the subsystem's name"));
    }
    let directory = match controller {
        None => dir.join(subsystem),
        Some(name) if usable(name) => dir.join(format!("{subsystem}.{name}")),
        Some(_) => return Err(PathError::Name("the controller's name")),
    };
    let path = directory.join("cntrl");
    match path.as_os_str().len() {
        len if len > MAX_PATH => Err(PathError::TooLong(len)),
        _ => Ok(path),
    }
}

/// A socket that clients find by a path, which goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    path: PathBuf,
    made_directory: bool,
}

impl Listener {
    /// Listens at `path`, whose directory is made. A socket that nobody answers at is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody answers; `AlreadyExists` for what is no socket; those of socket(2), bind(2), chown(2).
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> io::Result<(Self, OwnedFd)> {
        let address = UnixAddr::new(path)?;
        let new_directory = match path.parent() {
            Some(parent) if !parent.exists() => fs::create_dir_all(parent).map(|()| true)?,
            _ => false,
        };
        // A server that was killed left its directory too.
        let made_directory = clear_stale(path, &address)? || new_directory;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &address)?;
        let listener = Listener { path: path.to_owned(), made_directory };
        // Before anybody can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        if let Some(gid) = group {
            chown(path, None, Some(Gid::from_raw(gid)))?;
        }
        listen(&fd, Backlog::new(8)?)?;
        Ok((listener, fd))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(parent) = self.path.parent().filter(|_| self.made_directory) {
            // Only if nobody else has put anything there.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Removes a socket that nobody answers at; whether there was one.
fn clear_stale(path: &Path, address: &UnixAddr) -> io::Result<bool> {
    let kind = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
        Ok(metadata) => metadata.file_type(),
    };
    if !kind.is_socket() {
        let message = format!("{} exists and is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map(|()| true),
        Err(Errno::ENOENT) => Ok(false),
        _ => {
            let message = format!("another process serves {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let dir = Path::new("/run/isthmus");
        assert_eq!(socket_path(dir, "s0", None).unwrap(), dir.join("s0/cntrl"));
        assert_eq!(socket_path(dir, "s0", Some("c1")).unwrap(), dir.join("s0.c1/cntrl"));
        for bad in ["", "..", "a/b", ".a", "a\0"] {
            assert!(socket_path(dir, bad, None).is_err() && socket_path(dir, "s", Some(bad)).is_err());
        }
        let long = "x".repeat(MAX_PATH - "/run/isthmus//cntrl".len());
        assert!(socket_path(dir, &long, None).is_ok());
        assert_eq!(socket_path(dir, &(long + "x"), None), Err(PathError::TooLong(MAX_PATH + 1)));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = std::env::temp_dir().join(format!("isthmus-listener-{}", std::process::id()));
        let path = dir.join("s/cntrl");
        let (first, fd) = Listener::bind(&path, 0o600, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let live = Listener::bind(&path, 0o600, None).unwrap_err();
        assert_eq!(live.kind(), io::ErrorKind::AddrInUse);
        drop(fd);
        std::mem::forget(first);
        let (second, _fd) = Listener::bind(&path, 0o660, None).unwrap();
        drop(second);
        assert!(!path.parent().unwrap().exists());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "not ours").unwrap();
        let other = Listener::bind(&path, 0o600, None).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
