//! Volumes that become larger under their hosts: a remote's namespaces. It is kept what hosts will be told, and then they
//! are told. A thread of its own does it, since a shard, which hears of it first, must not wait.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};

use super::lock;
use super::subsystems::SubsystemEntry;
use crate::control::plane::Failure;
use crate::control::plane::{PlaneError, PlaneResult};

/// What is done before hosts are told.
type Keep = Box<dyn Fn() + Send + Sync>;

type Subsystems = Mutex<BTreeMap<String, Arc<SubsystemEntry>>>;

/// The way to that thread.
pub(super) struct Growth {
    keep: Arc<Mutex<Option<Keep>>>,
    to: Sender<()>,
}

impl Growth {
    /// Starts the thread; it ends when nobody can tell it anything any more.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn watch(subsystems: &Arc<Subsystems>) -> PlaneResult<Self> {
        let (to, from) = channel();
        let keep = Arc::<Mutex<Option<Keep>>>::default();
        let (kept, subsystems) = (keep.clone(), Arc::downgrade(subsystems));
        let thread = std::thread::Builder::new().name("growth".into());
        thread
            .spawn(move || follow(&from, &kept, &subsystems))
            .map_err(|e| PlaneError::new(Failure::Internal, format!("start a thread: {e}")))?;
        Ok(Growth { keep, to })
    }

    /// Has `keep` called before hosts are told.
    pub fn keep_with(&self, keep: Keep) {
        lock(&self.keep).replace(keep);
        self.teller()();
    }

    /// What tells the thread that a volume may be another now; it never blocks.
    pub fn teller(&self) -> impl Fn() + Send + Sync + 'static {
        let to = self.to.clone();
        move || {
            let _ = to.send(());
        }
    }
}

fn follow(from: &Receiver<()>, keep: &Mutex<Option<Keep>>, subsystems: &Weak<Subsystems>) {
    while from.recv().is_ok() {
        // One look is enough for all that was said so far.
        while from.try_recv().is_ok() {}
        if let Some(keep) = &*lock(keep) {
            keep();
        }
        let Some(subsystems) = subsystems.upgrade() else { return };
        let all: Vec<_> = lock(&subsystems).values().cloned().collect();
        all.iter().for_each(|subsystem| subsystem.tell_limits());
    }
}
