//! A volume without blocks: writes vanish, and reads give nothing. What is measured over it is the layers above.
//!
//! As with SPDK's null bdev and Linux' null_blk, a read leaves the memory of a guest as it was: it is the guest's own.
//! Any other memory is zeroed, since what it held may have been somebody else's. It promises what any volume does, zeroes
//! where blocks were deallocated too, and that is as true as that it keeps what is written.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use engine::{Channel, Io, IoError, Limits, Op, Scope, Shard, Volume, VolumeStats};

/// See the module.
#[derive(Debug)]
pub struct NullVolume {
    limits: Limits,
    stats: VolumeStats,
}

impl NullVolume {
    /// `blocks` blocks of `block_size` bytes.
    ///
    /// # Errors
    /// `InvalidInput`: a block size that is no power of two from 512 to 65536, no blocks, or too many.
    pub fn new(block_size: u32, blocks: u64) -> io::Result<Arc<Self>> {
        crate::bytes_of(block_size, blocks)?;
        Ok(Arc::new(NullVolume { limits: Limits::full(block_size, blocks), stats: VolumeStats::default() }))
    }
}

impl Volume for NullVolume {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
        Rc::new(Nothing)
    }
}

struct Nothing;

impl Channel for Nothing {
    fn submit(self: Rc<Self>, io: Io) {
        let sgl = io.sgl();
        let result = match io.op() {
            Op::Read => {
                if !sgl.is_guests() {
                    sgl.zero(0, sgl.len());
                }
                Ok(())
            }
            Op::Compare => {
                let mut zero = true;
                sgl.each_copy(0, sgl.len(), |bytes| zero &= bytes.iter().all(|&b| b == 0));
                if zero { Ok(()) } else { Err(IoError::Miscompare) }
            }
            Op::Write { .. } | Op::Flush | Op::WriteZeroes { .. } | Op::Unmap => Ok(()),
        };
        io.complete(result);
    }

    /// Nothing ever waits here.
    fn revoke(&self, _scope: Scope) {}
}

#[cfg(test)]
mod tests {
    use engine::mem::{Access, GuestMemory, Mapping, Region, Sgl};
    use engine::testing::{Collector, bytes, filled};
    use engine::{ChannelRef, Sim};

    use super::*;

    #[test]
    fn a_read_gives_nothing_to_a_guest_and_nothing_of_others_to_anybody() {
        let region = Region::new(0, 4096, true, true, Some(Mapping::anonymous(4096).unwrap())).unwrap();
        let mut guests = Sgl::empty();
        let memory = GuestMemory::default().with(region).unwrap();
        guests.push_guest(&memory, 0, 4096, Access::Write).unwrap();
        guests.copy_in(0, &[7; 4096]);
        let pools = filled(4096, 7);

        let volume: Arc<dyn Volume> = NullVolume::new(4096, 8).unwrap();
        let sim = Sim::new(1).unwrap();
        let channel = sim.on(0, |shard| ChannelRef::open(&volume, shard));
        let c = Collector::new();
        for (tag, sgl) in [(1, &guests), (2, &pools)] {
            sim.on(0, |_| c.submit(&channel, tag, Op::Read, 0, 1, sgl.clone()));
        }
        assert!(sim.run_until(|| c.count() == 2));
        assert!(c.results().iter().all(|(_, result)| result.is_ok()));
        assert_eq!(bytes(&guests), [7; 4096], "its own memory stays as it was");
        assert_eq!(bytes(&pools), [0; 4096]);
    }
}
