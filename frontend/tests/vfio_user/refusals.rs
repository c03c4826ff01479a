//! Each kind of refusal is counted where it can be read. `Unmap` has its test among the slow volumes.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use engine::ring::send_with_fds;
use frontend::Doorbells;
use frontend::vfio_user::Reject;

use crate::client::{command, event};
use crate::rig::Rig;

/// A message's header without a body.
fn header(command: u16, size: u32, flags: u32) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend(command.to_le_bytes());
    [size, flags, 0].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes
}

#[test]
fn every_kind_of_refusal_is_counted() {
    let rig = Rig::new("refusals", Doorbells::Mapped);
    let counted = |reject| rig.handle().rejections().count(reject);
    let open = || {
        let socket = UnixStream::connect(rig.handle().path()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    };
    let hung_up = |mut socket: UnixStream| while socket.read(&mut [0; 64]).is_ok_and(|n| n > 0) {};
    for (reject, bytes) in [
        (Reject::Size, header(command::VERSION, 15, 0)),
        (Reject::Type, header(command::VERSION, 16, 2)),
        (Reject::Version, header(command::RESET, 16, 0)),
    ] {
        let mut socket = open();
        socket.write_all(&bytes).unwrap();
        hung_up(socket);
        assert_eq!(counted(reject), 1, "{reject:?}");
    }
    // One descriptor more than a message may bring.
    let socket = open();
    let events: Vec<_> = (0..17).map(|_| event()).collect();
    let fds: Vec<BorrowedFd<'_>> = events.iter().map(AsFd::as_fd).collect();
    send_with_fds(socket.as_fd(), &header(command::VERSION, 64, 0), &fds).unwrap();
    hung_up(socket);
    assert_eq!(counted(Reject::Descriptors), 1);
    // Gone without a word; the next client is served after it.
    drop(open());
    let mut client = rig.connect();
    assert_eq!(counted(Reject::Silent), 1);
    // A request that is refused, and the client stays.
    assert_ne!(client.map(0, 0, 0, true), 0);
    assert_eq!(client.map(0, 0, 1 << 20, true), 0);
    assert_eq!(counted(Reject::Request), 1);
}
