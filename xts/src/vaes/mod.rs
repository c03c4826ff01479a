//! The engines for processors with VAES: with AVX-512 thirty-two blocks in flight, with AVX2 sixteen.
//!
//! A stride of 512 bytes never crosses a data unit, so units of 512 bytes run as fast as larger ones but for
//! the encryption of their tweaks, which is done for four units at once.

mod keys;
mod narrow;
mod wide;

use keys::{KEYS_128, Schedule};

use crate::portable::Portable;
use crate::{Direction, Run};

/// Data units must be multiples of so many bytes.
pub(crate) const STRIDE: usize = 512;

/// The expanded keys, in a place that never moves and is wiped in the end.
///
/// A value exists only where the processor has the instructions of its width.
pub(crate) struct Engine {
    schedule: Box<Schedule>,
    width: Width,
}

/// The registers that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// 64 bytes.
    Wide,
    /// 32 bytes.
    Narrow,
}

impl Width {
    fn available(self) -> bool {
        let both = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq");
        both && match self {
            Width::Wide => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"),
            Width::Narrow => is_x86_feature_detected!("avx2"),
        }
    }
}

impl Engine {
    /// Expands two keys of 16 or 32 bytes each; `None` where the processor lacks an instruction.
    pub(crate) fn new(data: &[u8], tweak: &[u8], width: Width) -> Option<Self> {
        if !width.available() {
            return None;
        }
        let mut schedule = Box::<Schedule>::default();
        // SAFETY: the processor has the instructions.
        unsafe { schedule.expand(data, tweak) };
        Some(Self { schedule, width })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.width {
            Width::Wide => "vaes-512",
            Width::Narrow => "vaes-256",
        }
    }

    /// Whether both engines turn the same bytes into the same bytes and back, under the same key.
    pub(crate) fn agrees_with(&self, portable: &Portable) -> bool {
        const UNIT: usize = 2 * STRIDE;
        const LEN: usize = 5 * UNIT;
        let sample: [u8; LEN] = std::array::from_fn(|i| (i * 167 + i / 251) as u8);
        [Direction::Encrypt, Direction::Decrypt].into_iter().all(|direction| {
            let (mut one, mut other) = ([0; LEN], [0; LEN]);
            let run = Run {
                direction,
                unit: UNIT,
                first: u64::from(u32::MAX) - 1,
                src: sample.as_ptr(),
                dst: one.as_mut_ptr(),
                len: LEN,
            };
            // SAFETY: both arrays are `LEN` bytes long, which is whole data units.
            unsafe { self.run(run) };
            // SAFETY: as above.
            unsafe { portable.run(Run { dst: other.as_mut_ptr(), ..run }) };
            one == other
        })
    }

    /// # Safety
    ///
    /// As [`Xts::run`](crate::Xts), and the run is made of whole data units of whole strides.
    pub(crate) unsafe fn run(&self, run: Run) {
        let schedule = &*self.schedule;
        let keys = match run.direction {
            Direction::Encrypt => &schedule.encrypt,
            Direction::Decrypt => &schedule.decrypt,
        };
        macro_rules! transform {
            ($width:ident) => {
                match (schedule.keys, run.direction) {
                    (KEYS_128, Direction::Encrypt) => $width::transform::<11, false>,
                    (KEYS_128, Direction::Decrypt) => $width::transform::<11, true>,
                    (_, Direction::Encrypt) => $width::transform::<15, false>,
                    (_, Direction::Decrypt) => $width::transform::<15, true>,
                }
            };
        }
        // SAFETY: the caller's promise; an engine exists only where the processor has the instructions.
        unsafe {
            match self.width {
                Width::Wide => transform!(wide)(keys, &schedule.tweak, run),
                Width::Narrow => transform!(narrow)(keys, &schedule.tweak, run),
            }
        }
    }
}
