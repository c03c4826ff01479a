//! What hosts set of namespaces and that outlives the process, kept in the state directory: a thread of its own writes
//! it, since a shard must not wait for a disk.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use frontend::{Kept, Persist, Stored};
use uuid::Uuid;

use super::store::{Store, StoreError};

/// A write that is asked for.
struct Write {
    uuid: Uuid,
    kept: Kept,
    state: Option<Vec<u8>>,
    done: Stored,
}

/// Writes what is kept of all namespaces.
pub(super) struct Keeper {
    /// The directory is free for the next process when the registry is gone, whoever still has a namespace.
    store: Weak<Store>,
    to: Sender<Write>,
}

/// Keeps what is set of one namespace.
struct Of {
    uuid: Uuid,
    store: Weak<Store>,
    to: Sender<Write>,
}

impl Keeper {
    /// Starts the thread; it ends with the last namespace.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn new(store: &Arc<Store>) -> Result<Self, StoreError> {
        let (to, from) = channel();
        let weak = Arc::downgrade(store);
        let store_of_thread = weak.clone();
        let thread = std::thread::Builder::new().name("keeper".into());
        thread.spawn(move || write(&from, &store_of_thread)).map_err(|e| store.failed(e))?;
        Ok(Keeper { store: weak, to })
    }

    /// For the namespace with that identity.
    pub fn of(&self, uuid: Uuid) -> Arc<dyn Persist> {
        Arc::new(Of { uuid, store: self.store.clone(), to: self.to.clone() })
    }

    /// Forgets what is kept of a namespace that is gone, after what its hosts still asked for; waits for that. Whether
    /// it is forgotten.
    pub fn forget(&self, uuid: Uuid) -> bool {
        let forget = |kept| {
            let (done, is_done) = channel();
            let stored = Stored::new(move |durable| {
                let _ = done.send(durable);
            });
            let _ = self.to.send(Write { uuid, kept, state: None, done: stored });
            is_done.recv() == Ok(true)
        };
        let [reservations, protection] = [Kept::Reservations, Kept::Protection].map(forget);
        reservations && protection
    }
}

fn write(from: &Receiver<Write>, store: &Weak<Store>) {
    for Write { uuid, kept, state, done } in from {
        let written = store.upgrade().map(|store| store.keep(uuid, kept, state.as_deref()));
        if let Some(Err(error)) = &written {
            tracing::error!("{kept:?} cannot be kept: {error}");
        }
        done.done(matches!(written, Some(Ok(()))));
    }
}

impl Persist for Of {
    fn load(&self, kept: Kept) -> Result<Option<Vec<u8>>, String> {
        let store = self.store.upgrade().ok_or("the state directory is closed")?;
        store.kept(self.uuid, kept).map_err(|e| e.to_string())
    }

    fn store(&self, kept: Kept, state: Option<Vec<u8>>, done: Stored) {
        // When the thread is gone, what is dropped has failed.
        let _ = self.to.send(Write { uuid: self.uuid, kept, state, done });
    }
}
