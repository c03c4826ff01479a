//! The contract between layers: volumes, and their channels on each shard.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::io::{Io, IoResult, Scope};
use crate::shard::Shard;
use crate::stats::{ChannelStats, VolumeStats};

/// Why a volume promises less than the one below it, in words for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The limit, by its field name in [`Limits`].
    pub limit: &'static str,
    /// The kind of volume that set it.
    pub layer: &'static str,
    /// Why.
    pub why: &'static str,
}

/// What a volume can do, exactly: hosts are told this and nothing else. Each layer maps what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a block: a power of two, 512 to 65536.
    pub block_size: u32,
    /// Blocks in the volume.
    pub blocks: u64,
    /// Largest I/O, in blocks; zero for no limit but the host's. Flush, Unmap and WriteZeroes have none.
    pub max_blocks: u32,
    /// I/O that does not cross multiples of this many blocks is faster; zero for none (NOIOB).
    pub optimal_boundary: u32,
    /// Writes of multiples of this many blocks are faster; at least 1 (NPWG, NPWA).
    pub write_granularity: u32,
    /// Blocks that a write changes all or none of, whatever fails; at least 1 (AWUPF).
    pub atomic_blocks: u32,
    /// Completed writes may be lost with the power until a flush (VWC).
    pub volatile_cache: bool,
    /// Write and WriteZeroes honour FUA. Where it is false the engine flushes in its place.
    pub fua: bool,
    /// WriteZeroes is done (ONCS).
    pub write_zeroes: bool,
    /// Unmap is done (ONCS, THINP).
    pub unmap: bool,
    /// Compare is done (ONCS).
    pub compare: bool,
    /// Blocks read as zeroes after Unmap (DLFEAT).
    pub unmapped_reads_zero: bool,
    /// Why some of the above are less than the layer below has.
    pub reasons: Vec<Reason>,
}

impl Limits {
    /// A volume of `blocks` blocks of `block_size` bytes with every ability, no bounds, and no cache to lose.
    pub fn full(block_size: u32, blocks: u64) -> Self {
        Limits {
            block_size,
            blocks,
            max_blocks: 0,
            optimal_boundary: 0,
            write_granularity: 1,
            atomic_blocks: 1,
            volatile_cache: false,
            fua: true,
            write_zeroes: true,
            unmap: true,
            compare: true,
            unmapped_reads_zero: true,
            reasons: Vec::new(),
        }
    }

    /// Bytes in the volume.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }

    /// Notes why the volume promises less.
    pub fn because(mut self, limit: &'static str, layer: &'static str, why: &'static str) -> Self {
        self.reasons.push(Reason { limit, layer, why });
        self
    }

    /// Whether `lba .. lba + blocks` lies in the volume.
    pub fn contains(&self, lba: u64, blocks: u32) -> bool {
        lba.checked_add(u64::from(blocks)).is_some_and(|end| end <= self.blocks)
    }

    /// Whether a volume with these limits can stand where one with `old` was promised to hosts: same blocks, nothing
    /// taken away. The error names the first limit that is narrower.
    ///
    /// # Errors
    /// The field's name.
    pub fn covers(&self, old: &Limits) -> Result<(), &'static str> {
        let max = |n: u32| if n == 0 { u32::MAX } else { n };
        for (field, narrower) in [
            ("block_size", self.block_size != old.block_size),
            ("blocks", self.blocks < old.blocks),
            ("max_blocks", max(self.max_blocks) < max(old.max_blocks)),
            ("atomic_blocks", self.atomic_blocks < old.atomic_blocks),
            ("volatile_cache", self.volatile_cache && !old.volatile_cache),
            ("write_zeroes", !self.write_zeroes && old.write_zeroes),
            ("unmap", !self.unmap && old.unmap),
            ("compare", !self.compare && old.compare),
            ("unmapped_reads_zero", !self.unmapped_reads_zero && old.unmapped_reads_zero),
        ] {
            if narrower {
                return Err(field);
            }
        }
        Ok(())
    }
}

/// Control half of a volume. Lives anywhere, cheap to share.
pub trait Volume: Send + Sync + 'static {
    /// What the volume can do.
    fn limits(&self) -> Limits;

    /// Its counters; the engine fills them.
    fn stats(&self) -> &VolumeStats;

    /// Whether what it needs is out of reach at the moment, so that its I/O is parked. A layer says what the layer below
    /// says.
    fn is_away(&self) -> bool {
        false
    }

    /// Its data half on `shard`. Immediate: a channel that is not connected yet parks its I/O. Called by
    /// [`ChannelRef::open`] alone, which keeps one channel per volume and shard.
    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel>;
}

/// Who sent an I/O down and gets it back.
pub trait Issuer {
    /// `io`, forwarded with `cookie`, has come back; its request is the issuer's own again.
    fn resume(self: Rc<Self>, io: Io, cookie: u64, result: IoResult);
}

/// Data half of a volume, one per shard. Never crosses threads, never blocks, never fails synchronously.
///
/// It is called with requests that fit its limits (range, size, ability, list as long as the blocks): the frontends
/// check what a host asked, and every layer asks only what the limits below allow.
pub trait Channel: 'static {
    /// Takes `io`, and completes it exactly once, never inside this call (completion is queued).
    fn submit(self: Rc<Self>, io: Io);

    /// Gives back the memory of these I/Os soon: a parked one ends as aborted at once; one that cannot be stopped
    /// lets its memory go before it completes. A layer passes the call on to the layer below. After an aborted write
    /// has come back it never lands over a write submitted later.
    fn revoke(&self, scope: Scope);

    /// The end of a batch: what [`Shard::dirty`] noted is sent now.
    fn kick(self: Rc<Self>) {}
}

struct Entry {
    channel: Rc<dyn Channel>,
    stats: Arc<ChannelStats>,
    block_size: u32,
    volume: Arc<dyn Volume>,
}

/// A user's hold on a volume's channel on this shard.
#[derive(Clone)]
pub struct ChannelRef(Rc<Entry>);

/// A hold that does not keep the channel open.
pub(crate) struct WeakChannelRef(std::rc::Weak<Entry>);

impl ChannelRef {
    /// Opens `volume` on `shard`, or shares the channel that is open there.
    pub fn open(volume: &Arc<dyn Volume>, shard: &Shard) -> Self {
        let key = Arc::as_ptr(volume).cast::<()>() as usize;
        if let Some(open) = shard.channel(key) {
            return open;
        }
        let stats = volume.stats().open(shard.id());
        let channel = crate::emulate::complete_abilities(volume, volume.clone().open(shard));
        let block_size = volume.limits().block_size;
        let opened = ChannelRef(Rc::new(Entry { channel, stats, block_size, volume: volume.clone() }));
        shard.keep_channel(key, &opened);
        opened
    }

    /// A channel that counts in nobody's statistics: the inner half of a wrapped one.
    pub(crate) fn uncounted(volume: &Arc<dyn Volume>, channel: Rc<dyn Channel>) -> Self {
        let (stats, block_size) = (Arc::default(), volume.limits().block_size);
        ChannelRef(Rc::new(Entry { channel, stats, block_size, volume: volume.clone() }))
    }

    /// The channel.
    pub fn channel(&self) -> Rc<dyn Channel> {
        self.0.channel.clone()
    }

    /// See [`Channel::revoke`].
    pub fn revoke(&self, scope: Scope) {
        self.0.channel.revoke(scope);
    }

    /// The volume it belongs to.
    pub fn volume(&self) -> &Arc<dyn Volume> {
        &self.0.volume
    }

    pub(crate) fn stats(&self) -> &ChannelStats {
        &self.0.stats
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.0.block_size
    }

    pub(crate) fn downgrade(&self) -> WeakChannelRef {
        WeakChannelRef(Rc::downgrade(&self.0))
    }
}

impl WeakChannelRef {
    pub(crate) fn upgrade(&self) -> Option<ChannelRef> {
        self.0.upgrade().map(ChannelRef)
    }
}

impl fmt::Debug for ChannelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelRef")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrower_limits_are_named() {
        let old = Limits::full(512, 100);
        assert_eq!(Limits::full(512, 200).covers(&old), Ok(()));
        assert_eq!(Limits::full(4096, 200).covers(&old), Err("block_size"));
        assert_eq!(Limits::full(512, 99).covers(&old), Err("blocks"));
        let bounded = Limits { max_blocks: 256, ..old.clone() };
        assert_eq!(bounded.covers(&old), Err("max_blocks"));
        assert_eq!(old.covers(&bounded), Ok(()));
    }

    #[test]
    fn ranges_do_not_wrap() {
        let l = Limits::full(512, 100);
        assert!(l.contains(99, 1) && l.contains(100, 0));
        assert!(!l.contains(99, 2) && !l.contains(u64::MAX, 2));
    }
}
