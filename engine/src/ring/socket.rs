//! Sockets without the ring: descriptors over Unix sockets, the one kind of message that the ring's operations do not carry,
//! lists for programs that have no ring, and how much of a TCP stream the kernel keeps.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::op::{MAX_IOVECS, gather};
use crate::mem::Sgl;

/// Descriptors that one message may carry here; the kernel allows 253.
pub const MAX_FDS: usize = 253;

/// Bytes that [`widen_window`] makes room for: four large transfers, or what 10 Gb/s bring in 0.4 ms.
const WINDOW: libc::c_int = 512 << 10;

/// Room for the control message of so many descriptors, in words: what `CMSG_SPACE` asks.
const CONTROL: usize = 2 + MAX_FDS.div_ceil(2);

/// Receives what is there, without waiting, with the descriptors that came along; all are closed on exec, and all that
/// came are owned by the caller or closed.
///
/// # Errors
/// Those of recvmsg(2): `WouldBlock` when nothing is there. EMFILE when this process could not take every descriptor:
/// the bytes are lost with them.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = [0u64; CONTROL];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message describes `bytes` and `control`, which are ours for the length of the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let before = fds.len();
    // SAFETY: the kernel has set the length of `control` to what it wrote there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that the kernel wrote, within `control`.
        let libc::cmsghdr { cmsg_len, cmsg_level, cmsg_type, .. } = unsafe { header.read_unaligned() };
        if (cmsg_level, cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: plain arithmetic; the data of this header.
            let (data, head) =
                unsafe { (libc::CMSG_DATA(header).cast::<RawFd>(), libc::CMSG_LEN(0) as usize) };
            for i in 0..cmsg_len.saturating_sub(head) / size_of::<RawFd>() {
                // SAFETY: within the header's data. The kernel has just made this descriptor for us; nothing else
                // knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        fds.truncate(before);
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok(got)
}

/// Sends at most `most` bytes of lists in order, passing over the first `skip`, without waiting. May send less: what a
/// [`super::RingOp::Send`] does, for a program without a ring.
///
/// # Errors
/// Those of sendmsg(2): `WouldBlock` when the socket's buffer is full.
pub fn send_lists(socket: BorrowedFd<'_>, sgls: &[Sgl], skip: usize, most: usize) -> io::Result<usize> {
    let mut iovecs = Vec::with_capacity(sgls.len().min(MAX_IOVECS));
    gather(sgls, skip, &mut iovecs);
    let mut left = most;
    for run in &mut iovecs {
        run.iov_len = run.iov_len.min(left);
        left -= run.iov_len;
    }
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (iovecs.as_mut_ptr(), iovecs.len());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message describes memory that the lists keep alive for the length of the call, which only reads it.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Has the kernel take 512 KiB of a TCP stream ahead of its receiver, as far as net.ipv4.tcp_rmem lets it: a window that is
/// opened only as large transfers come is closed time and again, and costs a tenth of them. The kernel opens it further by
/// itself, and keeps memory only for what has come. On a socket that is no TCP stream nothing changes.
///
/// # Errors
/// Those of setsockopt(2).
pub fn widen_window(socket: BorrowedFd<'_>) -> io::Result<()> {
    // For a receiver that waits for so much there must be room for it. Unlike SO_RCVBUF this way is not limited by
    // net.core.rmem_max, and leaves the rest to the kernel. Nobody waits: one byte is enough again (socket(7)).
    for least in [WINDOW, 1] {
        let len = size_of_val(&least) as libc::socklen_t;
        // SAFETY: the option is an int, which outlives the call.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const least).cast(),
                len,
            )
        };
        nix::errno::Errno::result(done)?;
    }
    Ok(())
}

/// Sends bytes with descriptors, without waiting. May send less than all; the descriptors go with the first byte.
///
/// # Errors
/// Those of sendmsg(2): `WouldBlock` when the socket's buffer is full.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{getsockopt, sockopt};

    use super::*;

    #[test]
    fn a_wide_window_has_room_and_waits_for_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let room = || getsockopt(&receiver, sockopt::RcvBuf).unwrap();
        let before = room();
        sender.write_all(&[1]).unwrap();
        widen_window(receiver.as_fd()).unwrap();
        assert!(room() > before || before >= WINDOW as usize);
        let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::MAX).unwrap(), 1, "one byte is enough");
    }
}
