//! Reservations that outlive the process, kept in the state directory: a thread of its own writes them, since a shard
//! must not wait for a disk.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use frontend::{Persist, Stored};
use uuid::Uuid;

use super::store::{Store, StoreError};

/// A write that is asked for.
struct Write {
    uuid: Uuid,
    state: Option<Vec<u8>>,
    done: Stored,
}

/// Writes the reservations of all namespaces.
pub(super) struct Keeper {
    /// The directory is free for the next process when the registry is gone, whoever still has a namespace.
    store: Weak<Store>,
    to: Sender<Write>,
}

/// Keeps those of one namespace.
struct Kept {
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
        let thread = std::thread::Builder::new().name("reservations".into());
        thread.spawn(move || write(&from, &store_of_thread)).map_err(|e| store.failed(e))?;
        Ok(Keeper { store: weak, to })
    }

    /// For the namespace with that identity.
    pub fn of(&self, uuid: Uuid) -> Arc<dyn Persist> {
        Arc::new(Kept { uuid, store: self.store.clone(), to: self.to.clone() })
    }
}

fn write(from: &Receiver<Write>, store: &Weak<Store>) {
    for Write { uuid, state, done } in from {
        let kept = store.upgrade().map(|store| store.keep_reservations(uuid, state.as_deref()));
        if let Some(Err(error)) = &kept {
            tracing::error!("reservations cannot be kept: {error}");
        }
        done.done(matches!(kept, Some(Ok(()))));
    }
}

impl Persist for Kept {
    fn load(&self) -> Result<Option<Vec<u8>>, String> {
        let store = self.store.upgrade().ok_or("the state directory is closed")?;
        store.reservations(self.uuid).map_err(|e| e.to_string())
    }

    fn store(&self, state: Option<Vec<u8>>, done: Stored) {
        // When the thread is gone, what is dropped has failed.
        let _ = self.to.send(Write { uuid: self.uuid, state, done });
    }
}
