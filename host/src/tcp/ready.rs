//! Which of many connections have something to receive: one system call asks for all of them.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::{Error, Result};

/// Connections that are asked about at once, at most.
const EVENTS: usize = 256;

/// The connections of one thread, which polls them in turns.
#[derive(Debug)]
pub struct Ready {
    epoll: Epoll,
    looks: Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    /// How often the kernel was asked.
    asked: u64,
    /// What each connection was last known to have.
    ready: Vec<bool>,
}

/// A connection among others.
#[derive(Debug)]
pub(super) struct Member {
    of: Arc<Ready>,
    index: usize,
    /// The look that it has had.
    seen: u64,
}

impl Ready {
    /// None yet.
    ///
    /// # Errors
    /// epoll_create1(2)'s.
    pub fn new() -> Result<Arc<Self>> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| Error::io("make an epoll")(e.into()))?;
        Ok(Arc::new(Ready { epoll, looks: Mutex::default() }))
    }

    /// Adds a connection.
    pub(super) fn join(self: &Arc<Self>, socket: impl AsFd) -> Result<Member> {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let index = looks.ready.len();
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll
            .add(socket, EpollEvent::new(events, index as u64))
            .map_err(|e| Error::io("watch a connection")(e.into()))?;
        looks.ready.push(false);
        Ok(Member { of: self.clone(), index, seen: looks.asked })
    }
}

impl Member {
    /// Whether there may be something to receive. The kernel is asked once for all that are polled in a round.
    pub fn may_receive(&mut self) -> Result<bool> {
        let mut looks = self.of.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.seen == looks.asked && !looks.ready[self.index] {
            let mut events = [EpollEvent::empty(); EVENTS];
            let n = match self.of.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(e) => return Err(Error::io("ask for what has come")(e.into())),
            };
            looks.asked += 1;
            for event in &events[..n] {
                if let Some(ready) = looks.ready.get_mut(event.data() as usize) {
                    *ready = true;
                }
            }
        }
        self.seen = looks.asked;
        Ok(looks.ready[self.index])
    }

    /// All that was there has been received.
    pub fn has_all(&self) {
        self.of.looks.lock().unwrap_or_else(PoisonError::into_inner).ready[self.index] = false;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_round_costs_one_look() {
        let ready = Ready::new().unwrap();
        let (mut peers, ends): (Vec<_>, Vec<_>) = (0..300).map(|_| UnixStream::pair().unwrap()).unzip();
        let mut members: Vec<Member> = ends.iter().map(|end| ready.join(end).unwrap()).collect();
        let asked = || ready.looks.lock().unwrap().asked;
        let round = |members: &mut Vec<Member>| -> Vec<usize> {
            (0..members.len()).filter(|&i| members[i].may_receive().unwrap()).collect()
        };
        assert!(round(&mut members).is_empty());
        let before = asked();
        peers[7].write_all(b"x").unwrap();
        peers[9].write_all(b"x").unwrap();
        assert_eq!(round(&mut members), [7, 9]);
        assert_eq!(asked(), before + 1);
        assert_eq!(round(&mut members), [7, 9], "until all was received");
        members[7].has_all();
        assert_eq!(round(&mut members), [9]);
        peers[7].write_all(b"x").unwrap();
        assert!(round(&mut members).contains(&7), "and more came");
        drop(peers);
        members.iter().for_each(Member::has_all);
        // More than one look takes.
        let mut gone = std::collections::BTreeSet::new();
        for _ in 0..4 {
            gone.extend(round(&mut members));
        }
        assert_eq!(gone.len(), 300);
    }
}
