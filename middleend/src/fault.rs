//! Faults on purpose: errors, delays, and a volatile write cache that a power cut loses. For tests of everything else.
//!
//! In cache mode a write completes when it is in the cache. Only a flush, or FUA for its own blocks, moves it below
//! and is durable. [`FaultVolume::power_cut`] does to the rest what a power cut does to a disk: writes are lost, torn
//! between blocks, or outlive writes that came before them. Afterwards the volume behaves as after a reboot: what was
//! on its way has failed, and what it reads stays as it is.
//!
//! The volume's state is shared, so it has a home shard, the first to open it; others reach it by a proxy. Locks here
//! are for the control plane's calls only: a volume that exists to fail need not be fast.

mod cache;
mod channel;
mod random;
mod rules;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use engine::{Channel, Limits, Shard, ShardHandle, Volume, VolumeStats};

use cache::Cache;
use rules::Rules;
pub use rules::{Effect, Kind, Rule};

const LAYER: &str = "fault";
/// What the cache holds at most, in bytes.
const CACHE: usize = 64 << 20;

/// How a volume misbehaves; the default is not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Whether writes stay in a volatile cache until they are flushed.
    pub volatile_cache: bool,
    /// Errors and delays.
    pub rules: Vec<Rule>,
    /// What rules with a probability draw from.
    pub seed: u64,
}

/// A volume that misbehaves as it is told.
pub struct FaultVolume {
    below: Arc<dyn Volume>,
    rules: Mutex<Rules>,
    cache: Option<Mutex<Cache>>,
    /// Counts power cuts.
    epoch: AtomicU64,
    /// Completed writes are lost, and no flush has said so yet.
    lost: AtomicBool,
    home: OnceLock<ShardHandle>,
    stats: VolumeStats,
}

impl FaultVolume {
    /// Puts `faults` between `below` and its users.
    pub fn new(below: Arc<dyn Volume>, faults: Faults) -> Self {
        let blocks = CACHE / below.limits().block_size.max(1) as usize;
        FaultVolume {
            below,
            rules: Mutex::new(Rules::new(faults.rules, faults.seed)),
            cache: faults.volatile_cache.then(|| Mutex::new(Cache::new(blocks))),
            epoch: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            home: OnceLock::new(),
            stats: VolumeStats::default(),
        }
    }

    /// Puts other rules in the place of those in force, from the next I/O on.
    pub fn set_rules(&self, rules: Vec<Rule>, seed: u64) {
        *lock(&self.rules) = Rules::new(rules, seed);
    }

    /// Cuts the power and gives it back. What was not flushed is lost or survives in part, as `seed` has it; what is
    /// on its way comes back as aborted, and a flush as failed; what comes later waits until that is so. If anything was
    /// lost, the next flush fails too: nobody may take it for a promise about what came before. Called from any thread.
    pub fn power_cut(&self, seed: u64) {
        // Held meanwhile, so that nothing enters the cache between its loss and the announcement.
        let cache = self.cache();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if let Some(mut cache) = cache
            && cache.power_cut(seed)
        {
            self.lost.store(true, Ordering::SeqCst);
        }
    }

    /// Notes that the process that had the cache was killed: what it held is lost.
    pub fn note_loss(&self) {
        self.lost.store(self.has_cache(), Ordering::SeqCst);
    }

    /// Whether completed writes were lost, said once.
    fn admit_loss(&self) -> bool {
        self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::SeqCst)
    }

    /// Whether writes stay in a volatile cache.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Blocks that a power cut could lose now.
    pub fn unflushed(&self) -> usize {
        self.cache().map_or(0, |cache| cache.unflushed())
    }

    fn cache(&self) -> Option<MutexGuard<'_, Cache>> {
        self.cache.as_ref().map(lock)
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }
}

impl std::fmt::Debug for FaultVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultVolume").field("rules", &lock(&self.rules)).finish_non_exhaustive()
    }
}

impl Volume for FaultVolume {
    fn limits(&self) -> Limits {
        let mut limits = self.below.limits();
        if self.cache.is_none() {
            return limits;
        }
        // The engine turns FUA into a flush where the layer below has none.
        limits.fua = true;
        if !limits.volatile_cache {
            limits.volatile_cache = true;
            limits = limits.because("volatile_cache", LAYER, "writes stay in a cache until they are flushed");
        }
        if limits.atomic_blocks > 1 {
            limits.atomic_blocks = 1;
            limits = limits.because("atomic_blocks", LAYER, "a power cut tears writes between blocks");
        }
        limits
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn is_away(&self) -> bool {
        self.below.is_away()
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        let home = self.home.get_or_init(|| shard.handle()).clone();
        if home.id() == shard.id() { channel::open(self, shard) } else { engine::proxy(self, &home, shard) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
