//! Scatter-gather lists (Base 2.1, 4.3.2): a descriptor in the command, and segments of further ones in guest memory.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nvme_proto::Status;
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::zerocopy::FromBytes;

use super::runs::{CHUNK, MAX_RUNS, Runs, Walk};

const DESCRIPTOR: u64 = size_of::<SglDescriptor>() as u64;

/// A segment of descriptors, from its next one on.
#[derive(Debug)]
struct Segment {
    at: u64,
    /// Bytes: a multiple of a descriptor's, not zero.
    left: u64,
    last: bool,
}

/// A walk over SGL segments, bounded by the number of descriptors.
#[derive(Debug)]
pub(crate) struct SglWalk {
    segment: Option<Segment>,
    /// Bytes of data that no descriptor has named yet.
    left: usize,
    /// Descriptors that may still come.
    budget: usize,
    /// The data goes to the host, so that a bit bucket swallows some of it.
    to_host: bool,
}

impl SglWalk {
    /// Begins a walk over `len` bytes at the command's descriptor.
    pub fn new(first: SglDescriptor, len: usize, to_host: bool, to: &mut Runs) -> Result<Self, Status> {
        let mut walk = SglWalk { segment: None, left: len, budget: MAX_RUNS, to_host };
        walk.descriptor(first, true, to)?;
        walk.end()?;
        Ok(walk)
    }

    /// When no segment is left, all data must have been named.
    fn end(&self) -> Result<(), Status> {
        if self.segment.is_none() && self.left != 0 {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        Ok(())
    }

    /// Takes one descriptor; `pointer` tells whether one to a segment may stand here.
    fn descriptor(&mut self, d: SglDescriptor, pointer: bool, to: &mut Runs) -> Result<(), Status> {
        self.budget = self.budget.checked_sub(1).ok_or(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.dnr())?;
        if d.subtype() != SglSubtype::Address {
            return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
        }
        match d.kind() {
            SglType::DataBlock => self.data(d, to),
            SglType::BitBucket if self.to_host => {
                let n = self.named(d.length)?;
                if n == 0 { Ok(()) } else { to.discard(n) }
            }
            SglType::BitBucket => Ok(()),
            SglType::Segment | SglType::LastSegment => {
                let wrong = d.length == 0 || u64::from(d.length) % DESCRIPTOR != 0 || !pointer;
                if wrong || d.address.checked_add(u64::from(d.length)).is_none() {
                    return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.dnr());
                }
                let last = d.kind() == SglType::LastSegment;
                self.segment = Some(Segment { at: d.address, left: u64::from(d.length), last });
                Ok(())
            }
            _ => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
        }
    }

    /// Counts bytes that a descriptor names, which may not be more than the command's.
    fn named(&mut self, length: u32) -> Result<usize, Status> {
        let n = usize::try_from(length).unwrap_or(usize::MAX);
        self.left = self.left.checked_sub(n).ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())?;
        Ok(n)
    }

    fn data(&mut self, d: SglDescriptor, to: &mut Runs) -> Result<(), Status> {
        match self.named(d.length)? {
            0 => Ok(()),
            n if d.address.checked_add(n as u64).is_none() => Err(Status::DATA_TRANSFER_ERROR.dnr()),
            n => to.push(d.address, n),
        }
    }
}

impl Walk for SglWalk {
    fn wants(&self) -> Option<(u64, usize)> {
        let segment = self.segment.as_ref()?;
        Some((segment.at, usize::try_from(segment.left).unwrap_or(CHUNK).min(CHUNK)))
    }

    fn take(&mut self, bytes: &[u8], to: &mut Runs) -> Result<(), Status> {
        for descriptor in bytes.as_chunks::<16>().0 {
            let descriptor =
                SglDescriptor::read_from_bytes(descriptor).map_err(|_| Status::INTERNAL_ERROR)?;
            let Some(mut segment) = self.segment.take() else { break };
            segment.at = segment.at.wrapping_add(DESCRIPTOR);
            segment.left = segment.left.saturating_sub(DESCRIPTOR);
            // All but the last segment end with a pointer to the next, and none has one elsewhere.
            let ends = segment.left == 0;
            self.descriptor(descriptor, ends && !segment.last, to)?;
            match (&self.segment, ends) {
                (None, false) => self.segment = Some(segment),
                (None, true) if !segment.last => {
                    return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.dnr());
                }
                (None, true) => {}
                (Some(_), _) => break,
            }
        }
        self.end()
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::super::runs::testing::*;
    use super::super::runs::{Run, Step};
    use super::*;
    use engine::mem::GuestMemory;
    use nvme_proto::zerocopy::IntoBytes;

    const BLOCK: SglType = SglType::DataBlock;
    const BUCKET: SglType = SglType::BitBucket;
    const SEGMENT: SglType = SglType::Segment;
    const LAST: SglType = SglType::LastSegment;

    fn d(kind: SglType, address: u64, length: u32) -> SglDescriptor {
        SglDescriptor::new(kind, SglSubtype::Address, address, length)
    }

    fn walk(m: &GuestMemory, first: SglDescriptor, len: usize) -> Result<Vec<Run>, Status> {
        let mut runs = Runs::default();
        let mut walk = SglWalk::new(first, len, true, &mut runs)?;
        assert_eq!(walk.advance(m, &mut runs)?, Step::Done);
        Ok(runs.as_slice().to_vec())
    }

    fn put(m: &GuestMemory, gpa: u64, descriptors: &[SglDescriptor]) {
        m.write(gpa, descriptors.as_bytes()).unwrap();
    }

    #[test]
    fn one_block_and_chained_segments() {
        let m = memory(0x10000);
        assert_eq!(walk(&m, d(BLOCK, 0x1003, 512), 512).unwrap(), [run(0x1003, 512)]);
        put(&m, 0x2000, &[d(BLOCK, 0x4000, 100), d(BLOCK, 0, 0), d(SEGMENT, 0x3000, 32)]);
        put(&m, 0x3000, &[d(BLOCK, 0x5000, 12), d(LAST, 0x3800, 16)]);
        put(&m, 0x3800, &[d(BLOCK, 0x6000, 400)]);
        let want = [run(0x4000, 100), run(0x5000, 12), run(0x6000, 400)];
        assert_eq!(walk(&m, d(SEGMENT, 0x2000, 48), 512).unwrap(), want);
    }

    #[test]
    fn a_long_last_segment() {
        let m = memory(0x10000);
        let all: Vec<_> = (0..100).map(|i| d(BLOCK, i * 256, 128)).collect();
        put(&m, 0x8000, &all);
        assert_eq!(walk(&m, d(LAST, 0x8000, 1600), 12800).unwrap().len(), 100);
    }

    #[test]
    fn bit_buckets_swallow_reads_only() {
        let m = memory(0x10000);
        put(&m, 0x2000, &[d(BLOCK, 0x4000, 256), d(BUCKET, 0, 128), d(BLOCK, 0x5000, 128)]);
        let first = d(LAST, 0x2000, 48);
        let want = [run(0x4000, 256), Run { gpa: None, len: 128 }, run(0x5000, 128)];
        assert_eq!(walk(&m, first, 512).unwrap(), want);
        let mut runs = Runs::default();
        let mut write = SglWalk::new(first, 384, false, &mut runs).unwrap();
        assert_eq!(write.advance(&m, &mut runs), Ok(Step::Done));
        assert_eq!(runs.as_slice(), [run(0x4000, 256), run(0x5000, 128)]);
    }

    #[test]
    fn g80_lengths_that_do_not_fit() {
        let m = memory(0x10000);
        let wrong = |first, len| walk(&m, first, len).unwrap_err();
        assert_eq!(wrong(d(BLOCK, 0, 511), 512).code(), Status::DATA_SGL_LENGTH_INVALID);
        assert_eq!(wrong(d(BLOCK, 0, 513), 512).code(), Status::DATA_SGL_LENGTH_INVALID);
        assert_eq!(wrong(d(BLOCK, 0, u32::MAX), 512).code(), Status::DATA_SGL_LENGTH_INVALID);
        assert_eq!(wrong(d(BLOCK, u64::MAX, 512), 512).code(), Status::DATA_TRANSFER_ERROR);
        let segment = Status::INVALID_SGL_SEGMENT_DESCRIPTOR;
        assert_eq!(wrong(d(SEGMENT, 0, 0), 512).code(), segment);
        assert_eq!(wrong(d(SEGMENT, 0, 17), 512).code(), segment);
        assert_eq!(wrong(d(SEGMENT, u64::MAX, 16), 512).code(), segment);
        assert_eq!(wrong(d(LAST, 0xfff0, 32), 512).code(), Status::DATA_TRANSFER_ERROR);
    }

    #[test]
    fn g80_pointers_in_wrong_places() {
        let m = memory(0x10000);
        let segment = Status::INVALID_SGL_SEGMENT_DESCRIPTOR;
        put(&m, 0x2000, &[d(LAST, 0x3000, 16), d(BLOCK, 0, 512)]);
        assert_eq!(walk(&m, d(SEGMENT, 0x2000, 32), 512).unwrap_err().code(), segment, "not at the end");
        assert_eq!(walk(&m, d(LAST, 0x2000, 16), 512).unwrap_err().code(), segment, "in the last");
        put(&m, 0x2000, &[d(BLOCK, 0, 512)]);
        assert_eq!(walk(&m, d(SEGMENT, 0x2000, 16), 512).unwrap_err().code(), segment, "none at the end");
    }

    #[test]
    fn g80_a_segment_that_names_itself_ends() {
        let m = memory(0x10000);
        put(&m, 0x2000, &[d(SEGMENT, 0x2000, 16)]);
        let many = Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS;
        assert_eq!(walk(&m, d(SEGMENT, 0x2000, 16), 512).unwrap_err().code(), many);
        put(&m, 0x2000, &[d(BLOCK, 0, 0), d(SEGMENT, 0x2000, 32)]);
        assert_eq!(walk(&m, d(SEGMENT, 0x2000, 32), 512).unwrap_err().code(), many);
    }

    #[test]
    fn g80_types_and_subtypes() {
        let m = memory(0x10000);
        for identifier in 0..=255u8 {
            let mut first = d(BLOCK, 0x1000, 512);
            first.identifier = identifier;
            let got = walk(&m, first, 512);
            match identifier {
                0x00 => assert!(got.is_ok()),
                0x10 => assert!(got.is_ok(), "a read into a bit bucket"),
                0x20 | 0x30 => assert!(got.is_err(), "a segment of nothing"),
                _ => assert_eq!(got.unwrap_err().code(), Status::SGL_DESCRIPTOR_TYPE_INVALID),
            }
        }
    }

    #[test]
    fn g80_whatever_segments_say_the_walk_ends_with_the_bytes_asked_or_a_status() {
        let m = memory(0x10000);
        let mut next = random(80);
        let mut good = 0;
        for _ in 0..20_000 {
            let mut any = || {
                let kind = SglType((next() % 5) as u8);
                let length = if kind == SEGMENT || kind == LAST { next() % 4 * 16 } else { next() % 512 };
                d(kind, next() % 0x40 * 16, length as u32)
            };
            let (first, one) = (any(), any());
            put(&m, next() % 0x40 * 16, &[one]);
            let len = 1 + (next() % 512) as usize;
            if let Ok(runs) = walk(&m, first, len) {
                assert_eq!(runs.iter().map(|r| r.len).sum::<usize>(), len);
                good += 1;
            }
        }
        assert!(good > 10, "{good}");
    }
}
