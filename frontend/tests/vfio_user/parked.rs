//! A volume that ends no I/O of its own accord.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine::{Channel, Io, IoError, Limits, Scope, Shard, Volume, VolumeStats};

/// Parks every read and write until it is taken back, and even then while it is obstinate.
#[derive(Default)]
pub struct Parked {
    stats: VolumeStats,
    pub obstinate: AtomicBool,
    /// Whether it says that it is out of reach.
    pub away: AtomicBool,
    /// I/Os that it has.
    pub has: AtomicUsize,
}

impl Volume for Parked {
    fn limits(&self) -> Limits {
        Limits::full(512, 1 << 16)
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    fn open(self: Arc<Self>, _: &Shard) -> Rc<dyn Channel> {
        Rc::new(ParkedChannel { volume: self, ios: RefCell::default() })
    }
}

struct ParkedChannel {
    volume: Arc<Parked>,
    ios: RefCell<Vec<Io>>,
}

impl Channel for ParkedChannel {
    fn submit(self: Rc<Self>, io: Io) {
        self.volume.has.fetch_add(1, Ordering::SeqCst);
        self.ios.borrow_mut().push(io);
    }

    fn revoke(&self, scope: Scope) {
        if self.volume.obstinate.load(Ordering::SeqCst) {
            return;
        }
        let (back, kept) = self.ios.take().into_iter().partition(|io| scope.covers(io));
        self.ios.replace(kept);
        let back: Vec<Io> = back;
        self.volume.has.fetch_sub(back.len(), Ordering::SeqCst);
        back.into_iter().for_each(|io| io.complete(Err(IoError::Aborted)));
    }
}
