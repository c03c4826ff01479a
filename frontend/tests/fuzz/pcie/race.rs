//! A guest with two processors: while one submits commands, the other changes entries of queues, lists, data and
//! shadow doorbells under the controller's eyes. What is looked at twice is seen differently.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use engine::mem::Mapping;
use engine::testing::fuzz::{Input, Record, Subject, Trace};

use super::client::MAPPED;
use super::guest::{Guest, Meanwhile};
use super::host::{DATA, LISTS, base};
use crate::world::{SECRET, THEIRS};

/// Guests whose memory changes while commands are at work.
pub struct Race {
    guest: Guest,
    other: Other,
}

/// A word of memory, and what it is in turns.
#[derive(Clone, Copy, Debug)]
struct Flip {
    at: usize,
    values: [u32; 2],
}

impl Flip {
    fn new(mut r: Record) -> Self {
        let (kind, n, m) = (r.below(8), usize::from(r.byte()), usize::from(r.byte()));
        let page = |r: &mut Record| DATA as u32 + u32::from(r.byte() % 0x1c) * 0x1000;
        let at = match kind {
            // The first entries of a submission queue, and of a completion queue.
            0..=2 => base((n % 3) as u16) as usize + (n / 3 % 16) * 64 + m % 16 * 4,
            3 => base((n % 3) as u16) as usize + 0x1000 + m * 4,
            4 => LISTS as usize + (n & 3) * 0x1000 + m * 8,
            5 => LISTS as usize + 0x4000 + n * 16 + m % 4 * 4,
            // Data, which may be shadow doorbells, ranges to deallocate, or what is compared.
            _ => DATA as usize + n % 0x1c * 0x1000 + m * 4,
        };
        let values = [(); 2].map(|()| match r.below(6) {
            0 | 1 => page(&mut r),
            2 => MAPPED as u32 - 0x1000 + u32::from(r.byte()) * 64,
            3 => r.odd() as u32,
            4 => u32::from(r.byte()),
            _ => 0,
        });
        let harmless = |byte: u8| if byte == SECRET { THEIRS } else { byte };
        Flip { at, values: values.map(|value| u32::from_le_bytes(value.to_le_bytes().map(harmless))) }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(Arc<Mapping>, Vec<Flip>)>,
    /// It has begun with the present one; and it is done with all.
    begun: bool,
    idle: bool,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.lock(), |state| !until(state)).unwrap_or_else(PoisonError::into_inner)
    }

    /// The other processor's life.
    fn live(&self) {
        loop {
            let mut state = self.wait(|state| !state.jobs.is_empty() || state.over);
            let Some((memory, flips)) = state.jobs.pop_front() else { return };
            drop(state);
            for round in 0usize.. {
                for flip in &flips {
                    if let Some(word) = memory.word(flip.at) {
                        word.store(flip.values[round % 2], Ordering::Relaxed);
                    }
                }
                if round == 0 {
                    self.lock().begun = true;
                    self.changed.notify_all();
                }
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            drop(memory);
            self.lock().idle = true;
            self.changed.notify_all();
        }
    }
}

/// The other processor: a thread that waits for work.
struct Other {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    flips: RefCell<Vec<Flip>>,
}

impl Other {
    fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = Some(std::thread::spawn(move || theirs.live()));
        Other { shared, thread, flips: RefCell::default() }
    }
}

impl Meanwhile for Other {
    /// Begins; it has changed everything once when this returns.
    fn begin(&self, memory: &Arc<Mapping>) {
        self.shared.stop.store(false, Ordering::Relaxed);
        let mut state = self.shared.lock();
        (state.begun, state.idle) = (false, false);
        state.jobs.push_back((memory.clone(), self.flips.take()));
        drop(state);
        self.shared.changed.notify_all();
        drop(self.shared.wait(|state| state.begun));
    }

    /// Ends; nothing is changed any more when this returns.
    fn end(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(self.shared.wait(|state| state.idle));
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Subject for Race {
    fn new() -> Self {
        // The thread is there before descriptors are counted.
        let other = Other::start();
        Race { guest: Guest::new(), other }
    }

    fn run(&mut self, input: &Input, trace: &mut Trace) {
        let Race { guest, other } = self;
        let flips: Vec<_> = input.records().skip(1).step_by(2).map(Flip::new).collect();
        *other.flips.borrow_mut() = flips;
        guest.attack(input.records().step_by(2), trace, Some(other));
    }

    fn check(&mut self) {
        self.guest.check();
    }

    fn close(self) {
        drop(self.other);
        self.guest.close();
    }
}
