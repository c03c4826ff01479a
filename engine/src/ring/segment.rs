//! How much of a TCP stream goes through the kernel as one.

use std::os::fd::BorrowedFd;

use nix::sys::socket::{getsockopt, sockopt};

/// Bytes of packets that the kernel hands to a network interface at once: 64 KiB with room for its headers (the GSO size of
/// an interface that has not been told otherwise). Several packets of them, or a single one that is larger.
const AT_ONCE: usize = (64 << 10) - 321;
/// Sends after which the kernel is asked again how long a packet is: on the loopback interface that grows with the window.
const AGAIN: u32 = 64;

/// The run of a TCP socket's bytes that the kernel moves as one, through TCP, IP and the interface, at nearly the same cost
/// whether it is long or short.
#[derive(Debug, Default)]
pub struct Segment {
    /// Its bytes; zero where there are no packets.
    len: usize,
    /// Sends that might have been cut.
    sends: u32,
}

impl Segment {
    /// Of `waiting` bytes for `socket`, how many had better wait for the next send, when that is to come anyway: the few that
    /// would need a segment of their own. None where the kernel does not say how long a packet is (TCP_MAXSEG, tcp(7)).
    pub fn rest(&mut self, socket: BorrowedFd<'_>, waiting: usize) -> usize {
        if waiting <= AT_ONCE / 2 {
            return 0;
        }
        if self.sends.is_multiple_of(AGAIN) {
            let packet = getsockopt(&socket, sockopt::TcpMaxSeg).unwrap_or(0) as usize;
            self.len = packet.max(AT_ONCE.checked_div(packet).unwrap_or(0) * packet);
        }
        self.sends = self.sends.wrapping_add(1);
        rest(waiting, self.len)
    }
}

fn rest(waiting: usize, len: usize) -> usize {
    let rest = waiting.checked_rem(len).unwrap_or(0);
    if waiting > len && rest <= len / 4 { rest } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_segment_is_whole_packets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut segment = Segment::default();
        for waiting in [1, 4096, AT_ONCE / 2] {
            assert_eq!(segment.rest(stream.as_fd(), waiting), 0, "it fits");
        }
        assert_eq!(segment.len, 0, "nobody was asked");
        let rests: Vec<usize> = (1 << 15..1 << 17).map(|n| segment.rest(stream.as_fd(), n)).collect();
        assert!(rests.iter().all(|rest| *rest <= segment.len / 4) && rests.contains(&1));
        let packet = getsockopt(&stream, sockopt::TcpMaxSeg).unwrap() as usize;
        assert!(segment.len.is_multiple_of(packet) && segment.len > 32000, "{segment:?} of {packet}");
    }

    #[test]
    fn what_has_no_packets_has_no_segments() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut segment = Segment::default();
        assert!((1 << 15..1 << 17).all(|waiting| segment.rest(one.as_fd(), waiting) == 0));
    }

    #[test]
    fn little_waits_and_much_does_not() {
        let rests = [0, 1, 1000, 1001, 1250, 1251, 2000, 2001, 2250, 2999].map(|n| rest(n, 1000));
        assert_eq!(rests, [0, 0, 0, 1, 250, 0, 0, 1, 250, 0]);
    }
}
