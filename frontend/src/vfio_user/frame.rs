//! Cutting a stream into messages: first a header, then exactly the rest, so that descriptors stay with their message.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::message::{HEADER, Header};
use super::reject::Reject;

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What followed.
    pub body: Vec<u8>,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// Collects one message after the other.
#[derive(Debug)]
pub struct Receiver {
    header: Header,
    have: usize,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    max_body: usize,
    max_fds: usize,
}

impl Receiver {
    /// A receiver of messages with at most `max_body` bytes after the header and `max_fds` descriptors.
    pub fn new(max_body: usize, max_fds: usize) -> Self {
        Receiver {
            header: Header::new_zeroed(),
            have: 0,
            body: Vec::new(),
            fds: Vec::new(),
            max_body,
            max_fds,
        }
    }

    /// Where the next bytes go: as many as belong to this message's header or body, and no more.
    pub fn space(&mut self) -> &mut [u8] {
        match self.have.checked_sub(HEADER) {
            None => self.header.as_mut_bytes().get_mut(self.have..).unwrap_or_default(),
            Some(in_body) => self.body.get_mut(in_body..).unwrap_or_default(),
        }
    }

    /// `n` bytes were put into [`Receiver::space`], and `fds` came with them. The message, when it is whole.
    ///
    /// # Errors
    /// The stream cannot be followed any further.
    pub fn filled(
        &mut self,
        n: usize,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Option<Message>, Reject> {
        self.fds.extend(fds);
        if self.fds.len() > self.max_fds {
            return Err(Reject::Descriptors);
        }
        self.have = self.have.saturating_add(n);
        if self.have < HEADER {
            return Ok(None);
        }
        if self.have == HEADER && self.body.is_empty() {
            let body = self.header.body(self.max_body).ok_or(Reject::Size)?;
            if !self.header.is_command() && !self.header.is_reply() {
                return Err(Reject::Type);
            }
            self.body = vec![0; body];
        }
        if self.have < HEADER.saturating_add(self.body.len()) {
            return Ok(None);
        }
        self.have = 0;
        let (body, fds) = (std::mem::take(&mut self.body), std::mem::take(&mut self.fds));
        Ok(Some(Message {
            header: Header::read_from_bytes(self.header.as_bytes()).map_err(|_| Reject::Type)?,
            body,
            fds,
        }))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::super::message::Command;
    use super::*;

    fn feed(to: &mut Receiver, bytes: &[u8], step: usize) -> Result<Vec<Message>, Reject> {
        let mut got = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let space = to.space();
            let n = space.len().min(step).min(bytes.len() - at);
            space[..n].copy_from_slice(&bytes[at..at + n]);
            got.extend(to.filled(n, [])?);
            at += n;
        }
        Ok(got)
    }

    #[test]
    fn messages_cut_at_every_byte() {
        let one = Header::command(1, Command::REGION_READ, &[&[5; 16]]);
        let two = Header::command(2, Command::DEVICE_RESET, &[]);
        let stream = [one, two.clone(), two].concat();
        for step in 1..stream.len() {
            let got = feed(&mut Receiver::new(64, 1), &stream, step).unwrap();
            let ids: Vec<_> = got.iter().map(|m| (m.header.id, m.body.len())).collect();
            assert_eq!(ids, [(1, 16), (2, 0), (2, 0)]);
        }
    }

    #[test]
    fn f63_and_f65_end_the_stream() {
        let mut header = Header { id: 0, command: Command::VERSION, size: 15, flags: 0, error: 0 };
        let try_it = |h: &Header| feed(&mut Receiver::new(64, 1), h.as_bytes(), 16).map(|_| ());
        assert_eq!(try_it(&header), Err(Reject::Size));
        header.size = u32::MAX;
        assert_eq!(try_it(&header), Err(Reject::Size));
        header.size = 16;
        header.flags = 2;
        assert_eq!(try_it(&header), Err(Reject::Type));
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut receiver = Receiver::new(64, 1);
        assert!(receiver.filled(1, [fd()]).is_ok());
        assert_eq!(receiver.filled(1, [fd()]).map(|_| ()), Err(Reject::Descriptors));
    }
}
