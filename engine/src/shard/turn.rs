//! A turn of a shard, and its end.

use super::{CURRENT, Shard};

/// Completions of one turn, at most.
const COMPLETIONS: usize = 4096;
/// Nanoseconds after which a turn leaves the rest of them to the next, so that doorbells, sockets and timers are
/// looked at in between.
const TURN: u64 = 500_000;

/// Layers of a stack that gather what they send.
const LAYERS: usize = 4;

impl Shard {
    pub(super) fn tick(&self) {
        self.0.now.set(self.0.clock.read());
    }

    /// Runs `f` as this shard.
    pub(super) fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Leave(Option<Shard>);
        impl Drop for Leave {
            fn drop(&mut self) {
                drop(CURRENT.replace(self.0.take()));
            }
        }
        let _leave = Leave(CURRENT.replace(Some(self.clone())));
        f()
    }

    /// Takes everything back from the kernel.
    pub(super) fn drain(&self) {
        self.0.ring.drain(|| {
            self.0.ends.each(|end| end.turn_end());
        });
    }

    /// Lets go of all that the shard keeps, since much of that keeps the shard. Messages that it has not seen are
    /// dropped, and those who wait for their answers hear that there is none.
    pub(super) fn close(&self) {
        let shard = &self.0;
        shard.inbox.close();
        shard.tasks.clear();
        shard.pollers.clear();
        shard.timers.clear();
        shard.dirty.each(drop);
        shard.later.each(drop);
        shard.ends.each(drop);
        drop((shard.locals.take(), shard.completed.take()));
    }

    /// One turn, without the wait at its end. Whether anything happened.
    pub(super) fn turn(&self) -> bool {
        self.tick();
        self.0.later.each(|channel| self.0.dirty.push(channel));
        let mut busy = self.0.pollers.poll();
        if busy {
            self.0.polled.set(self.now());
        }
        busy |= self.0.ring.reap();
        let until = self.now().saturating_add(TURN);
        busy |= self.0.inbox.run(self, until);
        busy |= self.0.timers.fire(self.now());
        busy |= self.0.tasks.run();
        // Completions make I/O, and I/O makes completions: what this batch adds runs in it too, up to a budget, so
        // that a stack of layers costs one turn and a guest cannot hold one for ever.
        let mut budget = COMPLETIONS;
        loop {
            busy |= self.deliver(&mut budget, until);
            if !self.kick() || budget == 0 {
                break;
            }
        }
        self.0.ends.each(|end| end.turn_end());
        busy |= self.0.ring.submit();
        busy
    }

    /// Delivers what has completed, until the budget or the time is used up, and a few in any case.
    fn deliver(&self, budget: &mut usize, until: u64) -> bool {
        let mut any = false;
        if self.0.completed.borrow().is_empty() {
            return false;
        }
        self.tick();
        while *budget > 0 {
            let Some((io, result)) = self.0.completed.borrow_mut().pop_front() else { break };
            io.deliver(result);
            *budget -= 1;
            any = true;
            // Some do the work of a microsecond, others encrypt a megabyte.
            if budget.is_multiple_of(16) {
                self.tick();
                if self.now() >= until {
                    *budget = 0;
                }
            }
        }
        any
    }

    /// Kicks what is dirty, and the layers below that are dirty by that; whether completions are waiting afterwards. What
    /// cannot send now may be dirty again: it has its next chance in the next turn.
    fn kick(&self) -> bool {
        for _ in 0..LAYERS {
            self.0.dirty.each(|channel| channel.kick());
            if self.0.dirty.is_empty() {
                break;
            }
        }
        !self.0.completed.borrow().is_empty()
    }

    pub(super) fn has_work(&self) -> bool {
        self.has_local_work() || self.0.inbox.has_messages() || self.0.tasks.has_ready()
    }

    /// Whether the shard itself has made work: what comes from elsewhere rings the bell.
    pub(super) fn has_local_work(&self) -> bool {
        let shard = &self.0;
        let idle = shard.completed.borrow().is_empty()
            && shard.dirty.is_empty()
            && shard.later.is_empty()
            && shard.ends.is_empty();
        !idle
    }
}
