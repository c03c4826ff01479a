//! Interrupt coalescing (Base 2.1, 5.1.25.1.6 and .7): interrupts of I/O completion queues wait until enough entries have
//! come, or long enough.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use engine::{OnTimer, Shard, TimerId};
use nvme_proto::feature::InterruptCoalescing;

use super::function::Function;

/// The unit of TIME.
const TIME_UNIT: Duration = Duration::from_micros(100);

/// What a vector has to tell.
#[derive(Clone, Copy)]
struct Vector {
    /// CD: it is raised at once.
    prompt: bool,
    /// Entries that came since it was raised.
    held: u32,
}

/// The interrupts that are held back.
#[derive(Default)]
pub(crate) struct Coalescing {
    setting: Cell<InterruptCoalescing>,
    vectors: RefCell<Vec<Vector>>,
    timer: Cell<Option<TimerId>>,
}

impl Coalescing {
    /// Whether anything is ever held back.
    pub fn is_on(&self) -> bool {
        let setting = self.setting.get();
        setting.time() != 0 && setting.thr_z() != 0
    }

    /// As after a reset: nothing is held back.
    pub fn forget(&self, shard: &Shard) {
        self.setting.set(InterruptCoalescing::new());
        self.vectors.borrow_mut().clear();
        self.stop(shard);
    }

    fn stop(&self, shard: &Shard) {
        if let Some(timer) = self.timer.take() {
            shard.cancel_timer(timer);
        }
    }

    fn with<R>(&self, vector: u16, f: impl FnOnce(&mut Vector) -> R) -> R {
        let mut vectors = self.vectors.borrow_mut();
        let at = usize::from(vector);
        while vectors.len() <= at {
            // The admin queue's is not coalesced, unless the host wants it.
            let first = vectors.is_empty();
            vectors.push(Vector { prompt: first, held: 0 });
        }
        f(&mut vectors[at])
    }

    fn set_prompt(&self, vector: u16, prompt: bool) {
        self.with(vector, |v| v.prompt = prompt);
    }

    /// Whether a vector that has `fresh` more entries to tell of waits.
    pub fn holds(&self, function: &Rc<Function>, vector: u16, fresh: u32) -> bool {
        if !self.is_on() {
            return false;
        }
        let setting = self.setting.get();
        let due = self.with(vector, |v| {
            v.held = v.held.saturating_add(fresh);
            let due = v.prompt || v.held > u32::from(setting.thr_z());
            if due {
                v.held = 0;
            }
            due
        });
        if due {
            return false;
        }
        if self.timer.get().is_none() {
            let time = TIME_UNIT * u32::from(setting.time());
            self.timer.set(Some(function.shard.timer(time, function.clone(), 0)));
        }
        true
    }

    /// The vectors that waited; they do no longer.
    fn let_go(&self, shard: &Shard) -> Vec<u16> {
        self.stop(shard);
        let mut vectors = self.vectors.borrow_mut();
        let held = |(at, v): (usize, &mut Vector)| (std::mem::take(&mut v.held) > 0).then_some(at as u16);
        vectors.iter_mut().enumerate().filter_map(held).collect()
    }
}

impl Function {
    /// Interrupt Coalescing was set; what waited by the setting before waits no more.
    pub fn set_coalescing(self: &Rc<Self>, setting: InterruptCoalescing) {
        self.raise_held();
        self.coalescing.setting.set(setting);
    }

    /// Interrupt Vector Configuration was set.
    pub fn set_prompt(self: &Rc<Self>, vector: u16, prompt: bool) {
        self.raise_held();
        self.coalescing.set_prompt(vector, prompt);
    }

    fn raise_held(self: &Rc<Self>) {
        let vectors = self.coalescing.let_go(&self.shard);
        if self.interrupts.uses_msix() {
            vectors.into_iter().for_each(|vector| self.interrupts.raise(vector));
        } else {
            self.release_pin();
        }
    }
}

impl OnTimer for Function {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.raise_held();
    }
}
