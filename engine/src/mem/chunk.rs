//! A buffer that a stream is received into: what has come is an ordinary slice until it is handed on.

use super::{Buf, Seg, Sgl};

/// A pool buffer in three parts: bytes that were handed on, which others may share; bytes that have come and are this one's
/// alone; and room for more.
#[derive(Debug)]
pub struct Chunk {
    buf: Buf,
    start: usize,
    end: usize,
    /// The room is out.
    out: bool,
}

/// Room of a [`Chunk`] that nobody else reaches: for [`crate::ring::RingOp::Fill`].
#[derive(Debug)]
pub struct Room {
    /// Whose part it is; it keeps that alive.
    buf: Buf,
    seg: Seg,
}

// SAFETY: the run lies in the buffer that `buf` keeps alive, whichever thread drops it.
unsafe impl Send for Room {}

impl Room {
    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.seg.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seg.is_empty()
    }

    /// The bytes: whatever was last stored there.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the buffer is alive and initialised (pool memory is allocated zeroed). A chunk has one room out at a time and
        // gives nobody else these bytes meanwhile, and a room cannot be cloned.
        unsafe { std::slice::from_raw_parts_mut(self.seg.as_ptr(), self.seg.len()) }
    }

    pub(crate) fn seg(&self) -> Seg {
        self.seg
    }
}

impl Chunk {
    /// An empty one with room for at least `len` bytes.
    pub fn new(len: usize) -> Self {
        Chunk { buf: Buf::new(len), start: 0, end: 0, out: false }
    }

    /// Bytes of it in all.
    pub fn capacity(&self) -> usize {
        self.buf.capacity()
    }

    /// Bytes for which there is room still, when that is not out.
    pub fn room_left(&self) -> usize {
        self.capacity() - self.end
    }

    /// What has come and was not handed on.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer is alive and initialised. Lists of it are of bytes before `start` (`take`), the room is behind
        // `end`, and both stay where they are while `self` is borrowed; `reuse` moves them only when nobody has a part.
        unsafe {
            std::slice::from_raw_parts(
                self.seg(self.start, self.end - self.start).as_ptr(),
                self.end - self.start,
            )
        }
    }

    /// Passes over the first `n` of [`Chunk::bytes`].
    ///
    /// # Panics
    /// If there are fewer.
    pub fn pass(&mut self, n: usize) {
        assert!(n <= self.end - self.start, "more than has come");
        self.start += n;
    }

    /// Hands on the first `n` of [`Chunk::bytes`].
    ///
    /// # Panics
    /// If there are fewer.
    pub fn take(&mut self, n: usize) -> Sgl {
        let at = self.start;
        self.pass(n);
        self.buf.sgl(at, n)
    }

    /// Begins at the front again, if nobody has a part of it and nothing is left. Whether that is so.
    pub fn reuse(&mut self) -> bool {
        let free = self.start == self.end && self.buf.is_unique();
        if free {
            // A room that was dropped is none any more.
            (self.start, self.end, self.out) = (0, 0, false);
        }
        free
    }

    /// Room for at most `most` more bytes, to be given back by [`Chunk::filled`].
    ///
    /// # Panics
    /// If it is out.
    pub fn room(&mut self, most: usize) -> Room {
        assert!(!self.out, "the room is out");
        self.out = true;
        let seg = self.seg(self.end, self.room_left().min(most));
        Room { buf: self.buf.clone(), seg }
    }

    /// Takes the room back, with so many bytes in it.
    ///
    /// # Panics
    /// If it is none of this one's, or has not so many.
    pub fn filled(&mut self, room: Room, n: usize) {
        assert!(self.out && room.buf.is(&self.buf) && n <= room.len(), "another's room");
        self.out = false;
        self.end += n;
    }

    fn seg(&self, at: usize, len: usize) -> Seg {
        self.buf.seg(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bytes;

    fn fill(chunk: &mut Chunk, with: &[u8]) {
        let mut room = chunk.room(with.len());
        room.bytes_mut().copy_from_slice(with);
        chunk.filled(room, with.len());
    }

    #[test]
    fn what_comes_is_read_and_handed_on() {
        let mut chunk = Chunk::new(512);
        fill(&mut chunk, b"abcdef");
        assert_eq!(chunk.bytes(), b"abcdef");
        chunk.pass(1);
        let part = chunk.take(2);
        let room = chunk.room(usize::MAX);
        assert_eq!((chunk.bytes(), bytes(&part), room.len()), (&b"def"[..], b"bc".to_vec(), 506));
        chunk.filled(room, 0);
        chunk.pass(3);
        assert!(!chunk.reuse() && chunk.room_left() == 506, "a part is out");
        drop(part);
        assert!(chunk.reuse() && chunk.room_left() == 512);
    }

    #[test]
    fn a_chunk_with_its_room_out_or_bytes_left_is_not_begun_again() {
        let mut chunk = Chunk::new(512);
        let room = chunk.room(8);
        assert!(!chunk.reuse());
        chunk.filled(room, 1);
        assert!(!chunk.reuse(), "a byte is left");
        drop(chunk.room(1));
        chunk.pass(1);
        assert!(chunk.reuse());
        fill(&mut chunk, b"x");
    }

    #[test]
    #[should_panic(expected = "the room is out")]
    fn nobody_shares_the_room() {
        let mut chunk = Chunk::new(512);
        let _room = chunk.room(8);
        chunk.room(8);
    }

    #[test]
    #[should_panic(expected = "another's room")]
    fn a_room_is_its_chunks() {
        let room = Chunk::new(512).room(8);
        let mut chunk = Chunk::new(512);
        let _own = chunk.room(8);
        chunk.filled(room, 8);
    }

    #[test]
    #[should_panic(expected = "more than has come")]
    fn no_more_is_handed_on_than_has_come() {
        Chunk::new(512).take(1);
    }
}
