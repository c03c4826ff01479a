//! What a connection receives: chunks for headers and small data, and the commands' own memory for large data.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use engine::mem::{Buf, Sgl};

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
    chunk: Buf,
    /// Bytes received and not taken yet.
    start: usize,
    end: usize,
    /// Where the data of the present PDU goes, and how much is there.
    sink: Option<(Sgl, usize)>,
    /// The receive under way goes to the sink.
    direct: bool,
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
            chunk: Buf::new(CHUNK),
            start: 0,
            end: 0,
            sink: None,
            direct: false,
            filled: false,
            asked: false,
            after_asked: false,
        }
    }

    /// Bytes received and not taken yet.
    fn available(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Bytes that the chunk can still take.
    fn room(&self) -> usize {
        self.chunk.capacity().saturating_sub(self.end)
    }

    /// Bytes that a command holds at least, whose data is in a chunk beside what else came.
    pub fn share(&self) -> usize {
        self.chunk.capacity() / PART
    }

    fn took(&mut self, n: usize) {
        self.start = self.start.saturating_add(n);
    }

    /// Takes as much as one part of a PDU.
    pub fn step(&mut self) -> Result<Step, Fatal> {
        let available = self.available();
        let take = |n: usize| n.min(available);
        match self.framer.want() {
            Want::Whole => Ok(Step::Whole),
            _ if available == 0 => Ok(Step::Starved),
            Want::Header(_) => self.header(),
            Want::Pad(n) => {
                self.took(take(n));
                self.framer.passed(take(n));
                Ok(Step::Again)
            }
            Want::Data(n) => {
                self.data(n, take(n));
                Ok(Step::Again)
            }
            Want::Digest(n) => {
                let mut bytes = [0u8; 4];
                let n = take(n);
                self.copy(&mut bytes[..n]);
                self.framer.digest(&bytes[..n]);
                Ok(Step::Again)
            }
        }
    }

    /// The common header and then what it says is left, at once where both have come.
    fn header(&mut self) -> Result<Step, Fatal> {
        let mut bytes = [0u8; 256];
        while let Want::Header(n) = self.framer.want()
            && self.available() > 0
        {
            let n = n.min(self.available());
            self.copy(&mut bytes[..n]);
            if self.framer.header(&bytes[..n])? {
                return Ok(Step::Header);
            }
        }
        Ok(Step::Again)
    }

    fn copy(&mut self, to: &mut [u8]) {
        self.chunk.copy_out(self.start, to);
        self.took(to.len());
    }

    /// Takes `n` of the `wanted` bytes of data.
    fn data(&mut self, wanted: usize, n: usize) {
        let here = self.chunk.sgl(self.start, n);
        match &mut self.sink {
            None if n == wanted => self.sink = Some((here, n)),
            None => {
                let sgl = Buf::new(wanted).sgl(0, wanted);
                sgl.copy_from(&here);
                self.sink = Some((sgl, n));
            }
            Some((sgl, got)) => {
                sgl.slice(*got, n).copy_from(&here);
                *got = got.saturating_add(n);
            }
        }
        self.took(n);
        self.framer.passed(n);
    }

    /// Throws away what is there, and what comes next.
    pub fn discard(&mut self) {
        (self.sink, self.asked, self.after_asked) = (None, false, false);
        self.start = self.end;
        self.framer.next();
    }

    /// Says where the data of the present PDU goes.
    pub fn sink(&mut self, sgl: Sgl) {
        (self.sink, self.asked) = (Some((sgl, 0)), true);
    }

    /// The data of the PDU that is whole.
    pub fn take_data(&mut self) -> Option<Sgl> {
        self.asked = false;
        self.sink.take().map(|(sgl, _)| sgl)
    }

    /// Where the next bytes are to be received, and how many of it to pass over.
    pub fn target(&mut self) -> (Sgl, usize) {
        if let (Some((sgl, got)), Want::Data(left)) = (&self.sink, self.framer.want())
            && left >= DIRECT
        {
            self.direct = true;
            return (sgl.clone(), *got);
        }
        self.direct = false;
        // What was there has been taken: nothing else is starved.
        let size = if self.filled { LARGE } else { CHUNK };
        let fits = self.chunk.capacity() == size;
        if !fits || !self.chunk.is_unique() && self.room() < size / PART {
            self.chunk = Buf::new(size);
        }
        if self.chunk.is_unique() {
            (self.start, self.end) = (0, 0);
        }
        let most = if self.after_asked { HEADS } else { size };
        (self.chunk.sgl(self.end, self.room().min(most)), 0)
    }

    /// `n` bytes have come to the last target.
    pub fn received(&mut self, n: usize) {
        self.after_asked = self.direct && self.asked;
        if !self.direct {
            self.filled = n == self.room() || self.filled && n > CHUNK;
            self.end = self.end.saturating_add(n);
            return;
        }
        // Data that is received where it belongs must not come in a chunk, to be copied.
        self.filled = false;
        if let Some((_, got)) = &mut self.sink {
            *got = got.saturating_add(n);
            self.framer.passed(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use nvme_proto::tcp::PduType;

    use super::*;

    #[test]
    fn chunks_grow_with_what_comes() {
        let mut rx = Receiver::new(Framer::new(0, 0));
        let mut come = |n: usize| {
            let room = rx.target().0.len();
            rx.received(n.min(room));
            rx.discard();
            room
        };
        assert_eq!(come(72), CHUNK);
        assert_eq!(come(CHUNK), CHUNK);
        assert_eq!(come(CHUNK + 1), LARGE, "as much as there was room for");
        assert_eq!(come(72), LARGE, "more than the little one takes");
        assert_eq!(come(72), CHUNK);
        // A chunk that a command has a part of is used on while it has room.
        rx.target();
        let part = rx.chunk.sgl(0, 1);
        for (parts, left) in [(6, 16), (8, 10), (1, 2), (1, 16)] {
            assert_eq!(rx.target().0.len(), CHUNK / 16 * left);
            rx.received(CHUNK / 16 * parts);
            rx.discard();
        }
        drop(part);
    }
    /// Feeds the header of a PDU with 8 KiB of data, and one byte of those.
    fn begin(rx: &mut Receiver, pdu_type: PduType, hlen: u8) {
        let mut bytes = [0; 73];
        bytes[..4].copy_from_slice(&[pdu_type.0, 0, hlen, hlen]);
        bytes[4..8].copy_from_slice(&(8192 + u32::from(hlen)).to_le_bytes());
        let n = usize::from(hlen) + 1;
        let (to, _) = rx.target();
        to.copy_in(0, &bytes[..n]);
        rx.received(n);
        while rx.step().unwrap() != Step::Header {}
    }

    #[test]
    fn little_is_received_with_the_header_after_data_that_was_asked_for() {
        let mut framer = Framer::new(16 << 10, 128 << 10);
        framer.initialised(Default::default());
        let mut rx = Receiver::new(framer);
        for (pdu_type, hlen, then) in [(PduType::H2cData, 24, HEADS), (PduType::CapsuleCmd, 72, CHUNK)] {
            begin(&mut rx, pdu_type, hlen);
            if pdu_type == PduType::H2cData {
                rx.sink(Buf::new(8192).sgl(0, 8192));
            }
            while rx.step().unwrap() == Step::Again {}
            let (to, skip) = rx.target();
            assert_eq!((to.len(), skip), (8192, 1), "the rest of the data comes directly");
            rx.received(8191);
            assert_eq!(rx.step().unwrap(), Step::Whole);
            rx.take_data();
            rx.framer.next();
            assert_eq!(rx.target().0.len(), then);
            rx.discard();
        }
    }
}
