//! A client's share of the maps that can be watched: as many as it likes, but never so many that another cannot start.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Maps that each client has for certain, while there are at most [`CLIENTS`] of them.
const OWN: usize = 64;
/// Clients that have theirs for certain.
const CLIENTS: usize = 256;
/// Maps beyond their own that all clients have together.
const BEYOND: usize = 16384;
/// Maps of all clients.
pub(super) const ALL: usize = OWN * CLIENTS + BEYOND;

/// How many of [`BEYOND`] are taken. What clients hold changes under this lock.
static TAKEN: Mutex<usize> = Mutex::new(0);

fn taken() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one client has mapped, counted over all its maps, whoever still holds them. The first 64 are its own; of what
/// is there beyond, it gets at most half of what the others have left.
#[derive(Clone, Debug, Default)]
pub struct MapShare(Arc<AtomicUsize>);

impl MapShare {
    /// One map more; `None` if the client has its share.
    pub(super) fn take(&self) -> Option<Counted> {
        let mut taken = taken();
        let held = self.0.load(Ordering::Relaxed);
        if held >= OWN {
            let beyond = held - OWN;
            let left = BEYOND - (*taken - beyond);
            if beyond + 1 > left / 2 {
                return None;
            }
            *taken += 1;
        }
        self.0.store(held + 1, Ordering::Relaxed);
        Some(Counted(self.clone()))
    }
}

/// A map that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Counted(MapShare);

impl Drop for Counted {
    fn drop(&mut self) {
        let mut taken = taken();
        let left = self.0.0.load(Ordering::Relaxed) - 1;
        self.0.0.store(left, Ordering::Relaxed);
        if left >= OWN {
            *taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mapping;
    use super::*;

    /// What a vfio-user client may have at most.
    const MOST: usize = 4096;

    #[test]
    fn who_takes_all_that_it_can_leaves_a_newcomer_room() {
        let (_, fd) = Mapping::memfd("shared", 4096).unwrap();
        let take = |client: &MapShare, most: usize| -> Vec<Mapping> {
            (0..most).map_while(|_| Mapping::of_client(client, &fd, 0, 4096, true).ok()).collect()
        };
        let first = MapShare::default();
        let mut held = vec![take(&first, MOST)];
        assert_eq!(held[0].len(), MOST, "one alone has all that it may ask for");
        held.extend((0..20).map(|_| take(&MapShare::default(), MOST)));
        assert!(held.iter().all(|maps| maps.len() >= OWN), "{:?}", held.iter().map(Vec::len).max());
        let newcomer = MapShare::default();
        let maps = take(&newcomer, OWN + 1);
        assert_eq!(maps.len(), OWN);
        assert!(take(&newcomer, 1).is_empty() && take(&first, 1).is_empty());
        // What was counted is given back.
        drop((held, maps));
        assert_eq!(take(&newcomer, MOST).len(), MOST);
    }
}
