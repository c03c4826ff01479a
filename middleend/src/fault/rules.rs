//! Which I/O fails or is late.

use std::ops::Range;
use std::time::Duration;

use engine::{IoError, IoResult, Op, Request};

use super::random::Random;

/// What a rule looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, with and without FUA.
    Write,
    /// Flushes.
    Flush,
    /// Write Zeroes, with and without FUA.
    WriteZeroes,
    /// Unmaps.
    Unmap,
    /// Compares.
    Compare,
}

impl Kind {
    fn of(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write { .. } => Self::Write,
            Op::Flush => Self::Flush,
            Op::WriteZeroes { .. } => Self::WriteZeroes,
            Op::Unmap => Self::Unmap,
            Op::Compare => Self::Compare,
        }
    }
}

/// What happens to an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails and changes nothing.
    Fail(IoError),
    /// It is held back for this long, then done.
    Delay(Duration),
    /// It succeeds at once, and nothing is done: the disk lies.
    Ignore,
}

/// One way in which the volume misbehaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The operations that it applies to; empty for all.
    pub kinds: Vec<Kind>,
    /// The blocks that it applies to: an I/O that touches one of them matches, and every flush does.
    pub lbas: Range<u64>,
    /// How many matching I/Os pass first.
    pub skip: u64,
    /// How many are hit after that; `u64::MAX` for all.
    pub times: u64,
    /// How likely each of these is hit: 1.0 for every one.
    pub probability: f64,
    /// What happens to them.
    pub effect: Effect,
}

impl Rule {
    /// A rule for every I/O of these kinds; its fields narrow it.
    pub fn new(kinds: &[Kind], effect: Effect) -> Self {
        Rule { kinds: kinds.to_vec(), lbas: 0..u64::MAX, skip: 0, times: u64::MAX, probability: 1.0, effect }
    }

    fn matches(&self, request: &Request) -> bool {
        let end = request.lba.saturating_add(u64::from(request.blocks));
        let touches = request.op == Op::Flush || (request.lba < self.lbas.end && self.lbas.start < end);
        touches && (self.kinds.is_empty() || self.kinds.contains(&Kind::of(request.op)))
    }
}

/// What the rules have in store for an I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub delay: Duration,
    /// What it ends with, in the place of being done.
    pub instead: Option<IoResult>,
}

/// The rules in force, and how far each of them is.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<(Rule, u64)>,
    random: Random,
}

impl Rules {
    pub fn new(rules: Vec<Rule>, seed: u64) -> Self {
        Rules { rules: rules.into_iter().map(|rule| (rule, 0)).collect(), random: Random::new(seed) }
    }

    /// Every rule that matches adds its delay; the first that fails or ignores the I/O says how it ends.
    pub fn judge(&mut self, request: &Request) -> Verdict {
        let mut verdict = Verdict::default();
        for (rule, seen) in &mut self.rules {
            if !rule.matches(request) {
                continue;
            }
            let turn = *seen;
            *seen = seen.saturating_add(1);
            let hit =
                turn >= rule.skip && turn - rule.skip < rule.times && self.random.chance(rule.probability);
            match rule.effect {
                Effect::Fail(error) if hit => verdict.instead = verdict.instead.or(Some(Err(error))),
                Effect::Ignore if hit => verdict.instead = verdict.instead.or(Some(Ok(()))),
                Effect::Delay(delay) if hit => verdict.delay = verdict.delay.saturating_add(delay),
                _ => (),
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lba: u64) -> Request {
        Request { op: Op::Read, lba, blocks: 2, ..Request::default() }
    }

    #[test]
    fn kinds_and_blocks_are_matched() {
        let fail = Effect::Fail(IoError::ReadFault);
        let mut rules =
            Rules::new(vec![Rule { lbas: 10..12, ..Rule::new(&[Kind::Read, Kind::Flush], fail) }], 0);
        let mut fails = |request: Request| rules.judge(&request).instead.is_some();
        assert!(!fails(read(8)) && fails(read(9)) && fails(read(11)) && !fails(read(12)));
        assert!(!fails(Request { op: Op::Write { fua: true }, ..read(10) }));
        assert!(fails(Request { op: Op::Flush, ..Request::default() }));
    }

    #[test]
    fn some_pass_and_some_are_hit() {
        let fail = Effect::Fail(IoError::ReadFault);
        let late = Effect::Delay(Duration::from_secs(1));
        let rule = Rule { skip: 2, times: 3, ..Rule::new(&[], fail) };
        let mut rules = Rules::new(vec![rule, Rule::new(&[], late), Rule::new(&[], late)], 0);
        let verdicts: Vec<_> = (0..7).map(|_| rules.judge(&read(0))).collect();
        assert!(verdicts.iter().all(|v| v.delay == Duration::from_secs(2)));
        let failed: Vec<_> = verdicts.iter().map(|v| v.instead.is_some()).collect();
        assert_eq!(failed, [false, false, true, true, true, false, false]);
    }

    #[test]
    fn the_first_end_counts() {
        let [fail, lie] =
            [Effect::Fail(IoError::WriteFault), Effect::Ignore].map(|effect| Rule::new(&[], effect));
        let ends = |rules| Rules::new(rules, 0).judge(&read(0)).instead;
        assert_eq!(ends(vec![lie.clone(), fail.clone()]), Some(Ok(())));
        assert_eq!(ends(vec![fail, lie]), Some(Err(IoError::WriteFault)));
    }

    #[test]
    fn chance_follows_the_seed() {
        let hits = |seed| -> Vec<bool> {
            let rule = Rule { probability: 0.25, ..Rule::new(&[], Effect::Fail(IoError::Transient)) };
            let mut rules = Rules::new(vec![rule], seed);
            (0..1000).map(|_| rules.judge(&read(0)).instead.is_some()).collect()
        };
        assert_eq!(hits(1), hits(1));
        assert_ne!(hits(1), hits(2));
        let count = hits(3).iter().filter(|hit| **hit).count();
        assert!((200..300).contains(&count), "{count}");
    }
}
