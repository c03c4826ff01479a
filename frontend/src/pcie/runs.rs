//! Where a command's data lies in guest memory: what the PRP and SGL walkers find, in order.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use engine::mem::{Access, GuestMemory, MemError, Sgl};
use nvme_proto::Status;
use smallvec::SmallVec;

/// Runs that one command may have: what the kernel takes at once.
pub(crate) const MAX_RUNS: usize = 1024;

/// A run of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Guest address; `None` in a bit bucket.
    pub gpa: Option<u64>,
    /// Bytes.
    pub len: usize,
}

/// The runs of one command's data.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: SmallVec<[Run; 4]>,
    buckets: bool,
}

impl Runs {
    /// Adds `len` bytes of guest memory; runs that touch are joined.
    pub fn push(&mut self, gpa: u64, len: usize) -> Result<(), Status> {
        if let Some(last) = self.runs.last_mut() {
            let end = last.gpa.and_then(|at| at.checked_add(last.len as u64));
            if end == Some(gpa) {
                last.len = last.len.saturating_add(len);
                return Ok(());
            }
        }
        self.add(Run { gpa: Some(gpa), len })
    }

    /// Adds `len` bytes that the host does not want.
    pub fn discard(&mut self, len: usize) -> Result<(), Status> {
        self.buckets = true;
        self.add(Run { gpa: None, len })
    }

    fn add(&mut self, run: Run) -> Result<(), Status> {
        if self.runs.len() >= MAX_RUNS {
            return Err(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.dnr());
        }
        self.runs.push(run);
        Ok(())
    }

    /// No runs, in the memory of those that were.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.buckets = false;
    }

    /// The runs, in order.
    pub fn as_slice(&self) -> &[Run] {
        &self.runs
    }

    /// Puts the guest's memory itself into `to`, for a device that does `access` to it. False when the data must be
    /// staged in a buffer, since some of it is reached by messages only or goes to a bit bucket; `to` is empty then.
    pub fn map(&self, memory: &GuestMemory, access: Access, to: &mut Sgl) -> Result<bool, Status> {
        if self.buckets {
            return Ok(false);
        }
        for run in &self.runs {
            let Some(gpa) = run.gpa else { continue };
            match to.push_guest(memory, gpa, run.len, access) {
                Ok(()) => {}
                Err(MemError::ByMessage { .. }) => {
                    to.clear();
                    return Ok(false);
                }
                Err(MemError::Unmapped(_) | MemError::Denied(_)) => {
                    to.clear();
                    return Err(Status::DATA_TRANSFER_ERROR.dnr());
                }
            }
        }
        Ok(true)
    }
}

/// What a walker needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: all runs are known.
    Done,
    /// These bytes of guest memory, which are reached by messages only.
    Need {
        /// Guest address.
        gpa: u64,
        /// Bytes, at most [`CHUNK`].
        len: usize,
    },
}

/// Bytes of a list or segment that a walker reads at once.
pub(crate) const CHUNK: usize = 512;

/// A walk over lists or segments of descriptors in guest memory. Each is read once, in chunks.
pub(crate) trait Walk {
    /// The next bytes to read; `None` when all runs are known.
    fn wants(&self) -> Option<(u64, usize)>;

    /// Takes the bytes that [`Walk::wants`] named.
    fn take(&mut self, bytes: &[u8], to: &mut Runs) -> Result<(), Status>;

    /// Goes on until all is known or a message is needed.
    #[inline]
    fn advance(&mut self, memory: &GuestMemory, to: &mut Runs) -> Result<Step, Status> {
        while let Some((gpa, len)) = self.wants() {
            let mut chunk = [0; CHUNK];
            let bytes = chunk.get_mut(..len).ok_or(Status::INTERNAL_ERROR)?;
            match memory.read(gpa, bytes) {
                Ok(()) => self.take(bytes, to)?,
                Err(MemError::ByMessage { .. }) => return Ok(Step::Need { gpa, len }),
                Err(_) => return Err(Status::DATA_TRANSFER_ERROR.dnr()),
            }
        }
        Ok(Step::Done)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
pub(crate) mod testing {
    use super::*;
    use engine::mem::{Mapping, Region};

    /// Guest memory of `len` bytes at address 0, and a page without a descriptor at 1 GiB.
    pub fn memory(len: usize) -> GuestMemory {
        let map = Mapping::anonymous(len).unwrap();
        GuestMemory::default()
            .with(Region::new(0, len as u64, true, true, Some(map)).unwrap())
            .and_then(|m| m.with(Region::new(1 << 30, 4096, true, true, None).unwrap()))
            .unwrap()
    }

    pub fn store(memory: &GuestMemory, gpa: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory.write(gpa, &bytes).unwrap();
    }

    /// A generator of numbers (xorshift) that are the same in each run.
    pub fn random(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    pub fn run(gpa: u64, len: usize) -> Run {
        Run { gpa: Some(gpa), len }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn runs_that_touch_are_joined() {
        let mut runs = Runs::default();
        runs.push(0x1000, 0x1000).unwrap();
        runs.push(0x2000, 0x1000).unwrap();
        runs.push(0x4000, 0x1000).unwrap();
        assert_eq!(runs.as_slice(), [run(0x1000, 0x2000), run(0x4000, 0x1000)]);
    }

    #[test]
    fn memory_that_cannot_be_mapped_is_staged_or_refused() {
        let m = memory(0x10000);
        let map = |gpa, len| {
            let mut runs = Runs::default();
            runs.push(gpa, len).unwrap();
            let mut sgl = Sgl::empty();
            runs.map(&m, Access::Write, &mut sgl).map(|mapped| mapped.then_some(sgl.len()))
        };
        assert_eq!(map(0x1000, 0x2000), Ok(Some(0x2000)));
        assert_eq!(map(1 << 30, 512), Ok(None));
        assert_eq!(map(0xf000, 0x2000), Err(Status::DATA_TRANSFER_ERROR.dnr()));
        let mut bucket = Runs::default();
        bucket.discard(512).unwrap();
        assert!(!bucket.map(&m, Access::Write, &mut Sgl::empty()).unwrap());
    }

    #[test]
    fn runs_are_bounded() {
        let mut runs = Runs::default();
        for i in 0..MAX_RUNS as u64 {
            runs.push(i * 0x2000, 1).unwrap();
        }
        assert!(runs.push(1, 1).is_err());
    }
}
