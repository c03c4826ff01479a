//! What hosts set of a namespace that outlives the process.

/// What is kept of a namespace, each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// Reservations whose PTPL is set.
    Reservations,
    /// That it is write protected.
    Protection,
}

/// Keeps what hosts set of a namespace where power loss does not reach it.
pub trait Persist: Send + Sync + 'static {
    /// What was stored last; `None` for nothing. It may block.
    ///
    /// # Errors
    /// In words for a person.
    fn load(&self, kept: Kept) -> Result<Option<Vec<u8>>, String>;

    /// Stores `state` in the place of what was there; `None` forgets it. It never blocks: `done` is told when that is
    /// durable or has failed, from another thread, never inside this call.
    fn store(&self, kept: Kept, state: Option<Vec<u8>>, done: Stored);
}

/// Whom to tell that something is durable. If it is dropped, that has failed.
pub struct Stored(Option<Box<dyn FnOnce(bool) + Send>>);

impl Stored {
    /// `tell` gets whether it is durable.
    pub fn new(tell: impl FnOnce(bool) + Send + 'static) -> Self {
        Stored(Some(Box::new(tell)))
    }

    /// It is durable now, or not.
    pub fn done(mut self, durable: bool) {
        if let Some(tell) = self.0.take() {
            tell(durable);
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(false);
        }
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stored")
    }
}
