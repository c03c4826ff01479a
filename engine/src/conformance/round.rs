//! One run: a volume, one or two shards, random I/O, and a last look at every block.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::memory::Memory;
use super::rng::Rng;
use super::state::{Desk, Plan, fail, kind};
use crate::io::{Op, Origin, Scope};
use crate::shard::Sim;
use crate::stats::Kind;
use crate::volume::{ChannelRef, Limits, Volume};

/// I/Os in flight, at most.
const SLOTS: usize = 24;
/// Bytes of the largest I/O, where the volume sets no bound; and the largest that is tried where it does.
const UNBOUNDED: u32 = 256 << 10;
const BOUNDED: u32 = 1 << 20;
/// The longest that a revoke may take.
const SOON: Duration = Duration::from_secs(3);

struct Round<'a> {
    name: &'a str,
    options: Options,
    rng: Rng,
    sim: Sim,
    volume: Arc<dyn Volume>,
    limits: Limits,
    channels: Vec<ChannelRef>,
    origins: [Origin; 4],
    memory: Memory,
    desk: Rc<Desk>,
    /// Blocks of the largest I/O.
    max: u32,
    /// Shards that use the volume.
    shards: usize,
    /// I/Os in flight, at most: the fewer, the more is certain; the more, the more meet.
    depth: usize,
}

pub(super) fn run(name: &str, make: &dyn Fn(&Sim) -> Arc<dyn Volume>, options: Options) {
    let Ok(sim) = Sim::new(2) else { fail(name, "io_uring is not available") };
    let volume = make(&sim);
    let limits = volume.limits();
    let bound =
        if limits.max_blocks == 0 { UNBOUNDED / limits.block_size } else { BOUNDED / limits.block_size };
    let most = if limits.max_blocks == 0 { bound } else { bound.min(limits.max_blocks) };
    let max = u64::from(most.max(1)).min(limits.blocks) as u32;
    let Some(memory) = Memory::new(SLOTS, max as usize * limits.block_size as usize) else {
        fail(name, "no memory for the kit");
    };
    let desk = Desk::new(name, limits.block_size, options.vanishes, limits.unmapped_reads_zero);
    let origins = [(); 4].map(|()| Origin::new());
    let mut rng = Rng::new(options.seed);
    let depth = rng.pick(&[3, 8, SLOTS]);
    let shards = rng.pick(&[1, 2, 2]);
    let mut round = Round {
        name,
        options,
        rng,
        sim,
        volume,
        limits,
        channels: Vec::new(),
        origins,
        memory,
        desk,
        max,
        shards,
        depth,
    };
    round.open();
    for step in 0..options.steps {
        round.step(step);
    }
    round.finish();
}

impl Round<'_> {
    fn open(&mut self) {
        let open = |shard| self.sim.on(shard, |s| ChannelRef::open(&self.volume, s));
        self.channels = (0..self.shards).map(open).collect();
    }

    fn step(&mut self, step: u64) {
        if step == self.options.steps / 2 {
            self.reopen();
        }
        if self.rng.one_in(3) {
            self.desk.give_back();
        }
        match self.rng.below(20) {
            0 => self.revoke(),
            1 => self.drain(),
            2..=5 => self.turns(),
            _ => self.submit(),
        }
    }

    /// Lets a few turns pass.
    fn turns(&mut self) {
        let mut left = self.rng.below(4);
        let back = self.desk.state.borrow().back;
        self.sim.run_until(|| {
            let state = self.desk.state.borrow();
            let done = left == 0 || state.back > back || state.flights.is_empty();
            left = left.saturating_sub(1);
            done
        });
    }

    /// Waits for everything in flight.
    fn drain(&mut self) {
        let all_back = || {
            self.desk.give_back();
            self.desk.state.borrow().flights.is_empty()
        };
        if !self.sim.run_until(all_back) {
            fail(self.name, "an I/O never comes back");
        }
        self.desk.give_back();
        if !(self.memory.is_idle(0) && self.memory.is_idle(1)) {
            fail(self.name, "everything came back, and guest memory is still held");
        }
    }

    /// Closes the channels and opens them again: the volume keeps what it has.
    fn reopen(&mut self) {
        self.drain();
        for (shard, channel) in std::mem::take(&mut self.channels).into_iter().enumerate() {
            self.sim.on(shard, |_| drop(channel));
        }
        self.sim.advance(Duration::from_millis(1));
        self.open();
    }

    fn operation(&mut self) -> Op {
        let fua = self.rng.one_in(4);
        loop {
            let op = match self.rng.below(16) {
                0..=4 => Op::Read,
                5..=9 => Op::Write { fua },
                10 | 11 => Op::WriteZeroes { deallocate: self.rng.one_in(2), fua },
                12 => Op::Unmap,
                13 | 14 => Op::Compare,
                _ => Op::Flush,
            };
            let able = match op {
                Op::WriteZeroes { .. } => self.limits.write_zeroes,
                Op::Unmap => self.limits.unmap,
                Op::Compare => self.limits.compare,
                _ => true,
            };
            if able {
                return op;
            }
        }
    }

    /// A range at the start of the volume, in its middle or at its end, small or as large as may be.
    fn range(&mut self, op: Op) -> (u64, u32) {
        if op == Op::Flush {
            return (0, 0);
        }
        let (blocks, rng) = (self.limits.blocks, &mut self.rng);
        let most = u64::from(self.max) * if op.has_data() { 1 } else { 4 };
        let hot = blocks.min(64);
        let begin = rng.pick(&[0, (blocks - hot) / 2, blocks - hot]) + rng.below(hot);
        let len = match rng.below(20) {
            0..=8 => 1,
            9..=17 => 1 + rng.below(8),
            18 => most,
            _ => 1 + rng.below(most),
        };
        let len = len.min(most).min(blocks);
        // What would reach beyond the end is moved to end there.
        (begin.min(blocks - len), len as u32)
    }

    fn submit(&mut self) {
        let Some(slot) = self.free_slot() else { return self.turns() };
        let op = self.operation();
        let (lba, blocks) = self.range(op);
        let who = self.rng.index(4);
        let plan = Plan { shard: who % self.shards, origin: self.origins[who], op, lba, blocks, slot };
        if self.desk.may_go(&plan, self.options.overlap) {
            self.send(plan);
        } else {
            self.turns();
        }
    }

    fn free_slot(&mut self) -> Option<usize> {
        let state = self.desk.state.borrow();
        let free = |slot: &usize| state.flights.iter().all(|(_, f)| f.slot != *slot);
        (0..self.depth).find(free)
    }

    fn send(&mut self, plan: Plan) {
        let shard = plan.shard;
        let (desk, rng, memory) = (&self.desk, &mut self.rng, &self.memory);
        let channel = &self.channels[shard];
        self.sim.on(shard, |_| desk.submit(rng, channel, plan, memory));
    }

    /// Takes some I/O back. Half of the time, waits for it and sees that its memory is free.
    fn revoke(&mut self) {
        let shard = self.rng.index(self.shards);
        let which = self.rng.index(2);
        let some = {
            let state = self.desk.state.borrow();
            let here: Vec<_> = state.flights.iter().filter(|(_, f)| f.shard == shard).collect();
            if here.is_empty() { None } else { Some(here[self.rng.index(here.len())].1.id) }
        };
        let (scope, shards) = match (self.rng.below(6), some) {
            (0..=2, Some(id)) => (Scope::Io(id), shard..shard + 1),
            (3, _) => (Scope::Origin(self.origins[self.rng.index(4)]), shard..shard + 1),
            // As an unmap of guest memory does: on every shard.
            (4, _) => (Scope::Region(self.memory.region(which)), 0..self.shards),
            // As the end of a volume does: a proxy's I/O is on its volume's shard, too.
            _ => (Scope::All, 0..self.shards),
        };
        let mut covered = Vec::new();
        for (key, flight) in self.desk.state.borrow_mut().flights.iter_mut() {
            let taken = match scope {
                Scope::Io(id) => flight.id == id,
                Scope::Origin(origin) => flight.id.origin == origin,
                Scope::Region(_) => flight.touches[which],
                Scope::All => true,
            };
            if taken && shards.contains(&flight.shard) {
                flight.revoked = true;
                covered.push((key, flight.id));
            }
        }
        for shard in shards {
            self.sim.on(shard, |_| self.channels[shard].revoke(scope));
        }
        if self.rng.one_in(2) {
            return;
        }
        let deadline = self.sim.now() + SOON;
        let returned = || {
            self.desk.give_back();
            let state = self.desk.state.borrow();
            covered.iter().all(|(key, id)| state.flights.get(*key).is_none_or(|f| f.id != *id))
        };
        if !self.sim.run_until(|| returned() || self.sim.now() > deadline) || !returned() {
            fail(self.name, &format!("{scope:?} was revoked, and not all of it comes back"));
        }
        if matches!(scope, Scope::Region(_)) && !self.memory.is_idle(which) {
            fail(self.name, "a guest region was revoked, and its memory is still held");
        }
    }

    /// Reads back every block that was ever touched, then holds the counters against what was done.
    fn finish(mut self) {
        self.drain();
        let touched = self.desk.state.borrow().model.touched();
        let runs = touched.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(self.max as usize));
        let runs: Vec<(u64, u32)> = runs.map(|run| (run[0], run.len() as u32)).collect();
        for (lba, blocks) in runs {
            let slot = match self.free_slot() {
                Some(slot) => slot,
                None => {
                    self.drain();
                    0
                }
            };
            let who = self.rng.index(4);
            let origin = self.origins[who];
            self.send(Plan { shard: who % self.shards, origin, op: Op::Read, lba, blocks, slot });
        }
        self.drain();
        let counters = self.volume.stats().snapshot();
        let counts = self.desk.state.borrow().counts;
        for (op, counted) in [
            (Op::Read, Kind::Read),
            (Op::Write { fua: false }, Kind::Write),
            (Op::Unmap, Kind::Unmap),
            (Op::Flush, Kind::Flush),
            (Op::Compare, Kind::Compare),
        ] {
            let sums = counters.of(counted);
            let (done, counted) = (counts[kind(op)], (sums.ops, sums.bytes, sums.errors));
            if done != counted {
                fail(self.name, &format!("{op:?}: {done:?} were done, and {counted:?} were counted"));
            }
        }
        for (shard, channel) in std::mem::take(&mut self.channels).into_iter().enumerate() {
            self.sim.on(shard, |_| drop(channel));
        }
        self.sim.advance(Duration::from_secs(1));
    }
}
