//! Volumes that become larger under their hosts: a remote's namespaces. It is kept what hosts will be told, and then they
//! are told. A thread of its own does it, since a shard, which hears of it first, must not wait.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::lock;
use super::subsystems::SubsystemEntry;
use crate::control::plane::Failure;
use crate::control::plane::{PlaneError, PlaneResult};

/// What is done before hosts are told; whether it is.
type Keep = Box<dyn Fn() -> bool + Send + Sync>;

/// When it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

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
    let mut again = false;
    loop {
        let over = match again {
            true => from.recv_timeout(AGAIN) == Err(RecvTimeoutError::Disconnected),
            false => from.recv().is_err(),
        };
        if over {
            return;
        }
        // One look is enough for all that was said so far.
        while from.try_recv().is_ok() {}
        again = lock(keep).as_ref().is_some_and(|keep| !keep());
        if again {
            continue;
        }
        let Some(subsystems) = subsystems.upgrade() else { return };
        let all: Vec<_> = lock(&subsystems).values().cloned().collect();
        all.iter().for_each(|subsystem| subsystem.tell_limits());
    }
}
