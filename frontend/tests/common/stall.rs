//! A volume that keeps its I/O until it is told: what a dead backend looks like from above.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::{Channel, Io, IoError, IoResult, Limits, Scope, Shard, ShardHandle, Volume, VolumeStats};

/// The control half.
pub struct Stall {
    stats: VolumeStats,
    /// Where its channels are.
    shards: Mutex<Vec<ShardHandle>>,
    held: AtomicUsize,
    revoked: AtomicUsize,
    /// Whether what is taken back ends at once.
    pub obedient: bool,
}

struct StallChannel {
    volume: Arc<Stall>,
    held: RefCell<Vec<(Io, bool)>>,
}

impl Stall {
    pub fn new(obedient: bool) -> Arc<Self> {
        Arc::new(Stall {
            stats: VolumeStats::default(),
            shards: Mutex::default(),
            held: AtomicUsize::new(0),
            revoked: AtomicUsize::new(0),
            obedient,
        })
    }

    /// I/O that it holds.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// I/O that was taken back so far.
    pub fn revoked(&self) -> usize {
        self.revoked.load(Ordering::SeqCst)
    }

    /// Lets everything go: what was taken back ends as aborted, the rest with `result`.
    pub fn release(self: &Arc<Self>, result: IoResult) {
        for shard in self.shards.lock().unwrap().iter() {
            let key = Arc::as_ptr(self) as u64;
            shard.run(move |shard| {
                let channel = shard.local::<StallChannel>(key).unwrap();
                for (io, revoked) in channel.held.take() {
                    channel.volume.held.fetch_sub(1, Ordering::SeqCst);
                    io.complete(if revoked { Err(IoError::Aborted) } else { result });
                }
            });
        }
    }
}

impl Volume for Stall {
    fn limits(&self) -> Limits {
        Limits::full(512, 2048)
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        self.shards.lock().unwrap().push(shard.handle());
        let key = Arc::as_ptr(&self) as u64;
        let channel = Rc::new(StallChannel { volume: self, held: RefCell::default() });
        shard.put_local(key, channel.clone());
        channel
    }
}

impl Channel for StallChannel {
    fn submit(self: Rc<Self>, io: Io) {
        self.held.borrow_mut().push((io, false));
        self.volume.held.fetch_add(1, Ordering::SeqCst);
    }

    fn revoke(&self, scope: Scope) {
        let mut ended = Vec::new();
        {
            let mut held = self.held.borrow_mut();
            for (io, revoked) in held.iter_mut().filter(|(io, revoked)| !revoked && scope.covers(io)) {
                io.request_mut().sgl = Default::default();
                *revoked = true;
                self.volume.revoked.fetch_add(1, Ordering::SeqCst);
            }
            if self.volume.obedient {
                ended.extend(held.extract_if(.., |(_, revoked)| *revoked));
            }
        }
        for (io, _) in ended {
            self.volume.held.fetch_sub(1, Ordering::SeqCst);
            io.complete(Err(IoError::Aborted));
        }
    }
}
