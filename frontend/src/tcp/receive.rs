//! What a connection receives: chunks for headers and small data, and the commands' own memory for large data.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use engine::mem::{Buf, Chunk, Sgl};
use engine::ring::{Fd, RingOp};
use nvme_proto::tcp;

use super::pdu::{Fatal, Framer, Want};

/// Bytes of a receive chunk.
const CHUNK: usize = 32 << 10;
/// The same while more comes at a time than such a chunk takes: commands that come together cost one receive and one send,
/// and an idle connection has the little one.
const LARGE: usize = 256 << 10;
/// Part of a chunk: with less room than that for new bytes a new one is taken.
const PART: usize = 8;
/// Data of which more than this is still to come is received where it belongs, not in a chunk.
const DIRECT: usize = 4 << 10;
/// After data that the host was asked for as many bytes are received in a chunk: for the header of more like it, and little
/// that is to be copied.
const HEADS: usize = 1 << 10;

/// What became of the bytes that were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Some were taken; there may be more.
    Again,
    /// The header is complete.
    Header,
    /// The PDU is complete.
    Whole,
    /// More must be received.
    Starved,
}

/// The receiving half of a connection.
pub(super) struct Receiver {
    pub framer: Framer,
    chunk: Chunk,
    /// Where the data of the present PDU goes, and how much is there.
    sink: Option<(Sgl, usize)>,
    /// The digest of data that lay in the chunk whole, where digests are agreed.
    crc: Option<u32>,
    /// As much came as there was room for.
    filled: bool,
    /// The sink is memory of a command that asked for the data.
    asked: bool,
    /// The last receive went there.
    after_asked: bool,
}

impl Receiver {
    pub fn new(framer: Framer) -> Self {
        Receiver {
            framer,
            chunk: Chunk::new(CHUNK),
            sink: None,
            crc: None,
            filled: false,
            asked: false,
            after_asked: false,
        }
    }

    /// Bytes that a command holds at least, whose data is in a chunk beside what else came.
    pub fn share(&self) -> usize {
        self.chunk.capacity() / PART
    }

    /// Takes as much as one part of a PDU.
    pub fn step(&mut self) -> Result<Step, Fatal> {
        let available = self.chunk.bytes().len();
        let take = |n: usize| n.min(available);
        match self.framer.want() {
            Want::Whole => Ok(Step::Whole),
            _ if available == 0 => Ok(Step::Starved),
            Want::Header(_) => self.header(),
            Want::Pad(n) => {
                self.chunk.pass(take(n));
                self.framer.passed(take(n));
                Ok(Step::Again)
            }
            Want::Data(n) => {
                self.data(n, take(n));
                Ok(Step::Again)
            }
            Want::Digest(n) => {
                self.framer.digest(&self.chunk.bytes()[..take(n)]);
                self.chunk.pass(take(n));
                Ok(Step::Again)
            }
        }
    }

    /// The common header and then what it says is left, at once where both have come.
    fn header(&mut self) -> Result<Step, Fatal> {
        while let Want::Header(n) = self.framer.want()
            && let here = self.chunk.bytes()
            && !here.is_empty()
        {
            let n = n.min(here.len());
            let complete = self.framer.header(&here[..n]);
            self.chunk.pass(n);
            if complete? {
                return Ok(Step::Header);
            }
        }
        Ok(Step::Again)
    }

    /// Takes `n` of the `wanted` bytes of data.
    fn data(&mut self, wanted: usize, n: usize) {
        if self.sink.is_none() && n == wanted {
            // Before anyone else has it.
            self.crc = self.framer.agreed().ddgst.then(|| tcp::digest(&self.chunk.bytes()[..n]));
            self.sink = Some((self.chunk.take(n), n));
        } else {
            let (sgl, got) = self.sink.get_or_insert_with(|| (Buf::new(wanted).into_sgl(wanted), 0));
            sgl.copy_in(*got, &self.chunk.bytes()[..n]);
            *got = got.saturating_add(n);
            self.chunk.pass(n);
        }
        self.framer.passed(n);
    }

    /// Throws away what is there, and what comes next.
    pub fn discard(&mut self) {
        (self.sink, self.crc, self.asked, self.after_asked) = (None, None, false, false);
        self.chunk.pass(self.chunk.bytes().len());
        self.framer.next();
    }

    /// Says where the data of the present PDU goes.
    pub fn sink(&mut self, sgl: Sgl) {
        (self.sink, self.asked) = (Some((sgl, 0)), true);
    }

    /// The data of the PDU that is whole, and its digest if that is known already.
    pub fn take_data(&mut self) -> Option<(Sgl, Option<u32>)> {
        self.asked = false;
        let crc = self.crc.take();
        self.sink.take().map(|(sgl, _)| (sgl, crc))
    }

    /// The receive that what comes next goes by.
    pub fn receive(&mut self, fd: Fd) -> RingOp {
        if let (Some((sgl, got)), Want::Data(left)) = (&self.sink, self.framer.want())
            && left >= DIRECT
        {
            return RingOp::Receive { fd, sgl: sgl.clone(), skip: *got };
        }
        // What was there has been taken: nothing else is starved.
        let size = if self.filled { LARGE } else { CHUNK };
        let fits = self.chunk.capacity() == size;
        if !fits || !self.chunk.reuse() && self.chunk.room_left() < size / PART {
            self.chunk = Chunk::new(size);
        }
        let most = if self.after_asked { HEADS } else { size };
        RingOp::Fill { fd, room: self.chunk.room(most) }
    }

    /// A receive has ended, with `n` bytes.
    pub fn received(&mut self, by: RingOp, n: usize) {
        match by {
            RingOp::Fill { room, .. } => {
                self.after_asked = false;
                self.filled = n == self.chunk.room_left() || self.filled && n > CHUNK;
                self.chunk.filled(room, n);
            }
            _ => {
                self.after_asked = self.asked;
                // Data that is received where it belongs must not come in a chunk, to be copied.
                self.filled = false;
                if let Some((_, got)) = &mut self.sink {
                    *got = got.saturating_add(n);
                    self.framer.passed(n);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use nvme_proto::tcp::PduType;

    use super::super::pdu::Agreed;
    use super::*;

    /// The receive that is due, and the bytes that it may take.
    fn receive(rx: &mut Receiver) -> (RingOp, usize) {
        let fd: Fd = Arc::new(UnixStream::pair().unwrap().0.into());
        let by = rx.receive(fd);
        let room = match &by {
            RingOp::Fill { room, .. } => room.len(),
            RingOp::Receive { sgl, skip, .. } => sgl.len().saturating_sub(*skip),
            other => panic!("{other:?}"),
        };
        (by, room)
    }

    fn comes(rx: &mut Receiver, bytes: &[u8]) {
        let (by, _) = receive(rx);
        let RingOp::Fill { fd, mut room } = by else { panic!("{by:?}") };
        room.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        rx.received(RingOp::Fill { fd, room }, bytes.len());
    }

    #[test]
    fn chunks_grow_with_what_comes() {
        let mut rx = Receiver::new(Framer::new(0, 0));
        let mut come = |n: usize| {
            let (by, room) = receive(&mut rx);
            rx.received(by, n.min(room));
            rx.discard();
            room
        };
        assert_eq!(come(72), CHUNK);
        assert_eq!(come(CHUNK), CHUNK);
        assert_eq!(come(CHUNK + 1), LARGE, "as much as there was room for");
        assert_eq!(come(72), LARGE, "more than the little one takes");
        assert_eq!(come(72), CHUNK);
        // A chunk that a command has a part of is used on while it has room.
        let mut part = None;
        for (parts, left) in [(6, 16), (8, 10), (1, 2), (1, 16)] {
            let (by, room) = receive(&mut rx);
            assert_eq!(room, CHUNK / 16 * left);
            rx.received(by, CHUNK / 16 * parts);
            part.get_or_insert_with(|| rx.chunk.take(1));
            rx.discard();
        }
        drop(part);
    }

    /// Feeds the header of a PDU with `len` bytes of data, and the first of those.
    fn begin(rx: &mut Receiver, pdu_type: PduType, hlen: u8, len: u32, data: &[u8]) {
        let mut bytes = vec![0; usize::from(hlen)];
        let flags = if rx.framer.agreed().ddgst { tcp::flags::DDGSTF } else { 0 };
        bytes[..4].copy_from_slice(&[pdu_type.0, flags, hlen, hlen]);
        let plen = [len, u32::from(hlen), if flags == 0 { 0 } else { 4 }].iter().sum::<u32>();
        bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        bytes.extend(data);
        comes(rx, &bytes);
        while rx.step().unwrap() != Step::Header {}
    }

    #[test]
    fn little_is_received_with_the_header_after_data_that_was_asked_for() {
        let mut framer = Framer::new(16 << 10, 128 << 10);
        framer.initialised(Default::default());
        let mut rx = Receiver::new(framer);
        for (pdu_type, hlen, then) in [(PduType::H2cData, 24, HEADS), (PduType::CapsuleCmd, 72, CHUNK)] {
            begin(&mut rx, pdu_type, hlen, 8192, &[0]);
            if pdu_type == PduType::H2cData {
                rx.sink(Buf::new(8192).into_sgl(8192));
            }
            while rx.step().unwrap() == Step::Again {}
            let (by, room) = receive(&mut rx);
            assert!(matches!(by, RingOp::Receive { skip: 1, .. }), "the rest of the data comes directly");
            rx.received(by, room);
            assert_eq!(rx.step().unwrap(), Step::Whole);
            rx.take_data();
            rx.framer.next();
            let (by, room) = receive(&mut rx);
            assert_eq!(room, then);
            rx.received(by, 0);
            rx.discard();
        }
    }

    #[test]
    fn data_that_came_whole_has_its_digest_at_once() {
        let mut framer = Framer::new(16 << 10, 128 << 10);
        framer.initialised(Agreed { ddgst: true, ..Agreed::default() });
        let mut rx = Receiver::new(framer);
        let data = [7; 512];
        for (now, known) in [(512, Some(tcp::digest(&data))), (100, None)] {
            begin(&mut rx, PduType::CapsuleCmd, 72, 512, &data[..now]);
            while rx.step().unwrap() == Step::Again {}
            comes(&mut rx, &[&data[now..], &[1, 2, 3, 4]].concat());
            while rx.step().unwrap() != Step::Whole {}
            let (sgl, crc) = rx.take_data().unwrap();
            assert_eq!((engine::testing::bytes(&sgl), crc), (data.to_vec(), known));
            assert_eq!(rx.framer.data_digest(), Some(0x0403_0201));
            rx.framer.next();
        }
    }
}
