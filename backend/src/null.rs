//! A volume without blocks: reads give zeroes, writes vanish. What is measured over it is the layers above.

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
                sgl.zero(0, sgl.len());
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
