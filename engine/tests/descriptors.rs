//! Descriptors over a socket. A process of its own: one test lowers its limit of open files.
#![allow(clippy::unwrap_used)]

use std::fs::{File, read_dir};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use engine::ring::{MAX_FDS, receive_with_fds, send_with_fds};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

fn open_files() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_descriptor_that_comes_is_owned_or_closed() {
    let (a, b) = UnixStream::pair().unwrap();
    let (mut bytes, mut fds) = ([0; 64], Vec::<OwnedFd>::new());
    let mut receive = |fds: &mut Vec<OwnedFd>| receive_with_fds(b.as_fd(), &mut bytes, fds);
    assert_eq!(receive(&mut fds).unwrap_err().kind(), ErrorKind::WouldBlock);

    let file = tempfile().unwrap();
    let all = [file.as_fd(); MAX_FDS];
    let before = open_files();
    assert_eq!(send_with_fds(a.as_fd(), b"many", &all).unwrap(), 4);
    assert_eq!(receive(&mut fds).unwrap(), 4);
    assert_eq!((fds.len(), open_files()), (MAX_FDS, before + MAX_FDS));
    File::from(fds.pop().unwrap()).write_all(b"the same file").unwrap();
    fds.truncate(1);
    let mut text = String::new();
    (&file).rewind().unwrap();
    (&file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "the same file");

    // Room for a few of them only: the kernel installs these and drops the rest.
    let before = open_files();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, before as u64 + 5, hard).unwrap();
    assert_eq!(send_with_fds(a.as_fd(), b"more", &all[..16]).unwrap(), 4);
    let error = receive(&mut fds).unwrap_err();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
    assert_eq!(
        (fds.len(), open_files()),
        (1, before),
        "those that came are closed, the caller keeps its own"
    );

    drop(a);
    assert_eq!(receive(&mut fds).unwrap(), 0, "the peer's end");
}

fn tempfile() -> nix::Result<File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    nix::sys::memfd::memfd_create("file", flags).map(File::from)
}
