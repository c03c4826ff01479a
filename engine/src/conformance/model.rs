//! What each block may read as, given what was asked and what came back.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::rng::Rng;

/// What a block may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing is known.
    Any,
    Zero,
    /// The pattern of a write, which differs from block to block.
    Written(u64),
    /// What a read found where anything was allowed.
    Found(Rc<[u8]>),
}

impl Value {
    /// Fills `bytes` as block `lba` would read; false if that is not known.
    pub(super) fn fill(&self, lba: u64, bytes: &mut [u8]) -> bool {
        match self {
            Value::Any => return false,
            Value::Zero => bytes.fill(0),
            Value::Found(found) => bytes.copy_from_slice(found),
            Value::Written(id) => {
                let mut rng = Rng::new(id.rotate_left(32) ^ lba);
                for word in bytes.chunks_exact_mut(8) {
                    word.copy_from_slice(&rng.next().to_le_bytes());
                }
            }
        }
        true
    }

    pub(super) fn matches(&self, lba: u64, bytes: &[u8]) -> bool {
        let mut expected = vec![0; bytes.len()];
        !self.fill(lba, &mut expected) || expected == bytes
    }
}

/// A block: the values that it may hold, with the moment at which the write of each came back, and those on their way.
#[derive(Clone)]
struct Block {
    settled: Vec<(Value, u64)>,
    pending: Vec<(usize, Value)>,
}

pub(super) struct Model {
    blocks: BTreeMap<u64, Block>,
    untouched: Block,
}

impl Model {
    /// Blocks that hold `value` at first.
    pub(super) fn new(value: Value) -> Self {
        let untouched = Block { settled: vec![(value, 0)], pending: Vec::new() };
        Model { blocks: BTreeMap::new(), untouched }
    }

    fn block(&mut self, lba: u64) -> &mut Block {
        self.blocks.entry(lba).or_insert_with(|| self.untouched.clone())
    }

    /// Write `key` was submitted.
    pub(super) fn submit(&mut self, key: usize, lba: u64, blocks: u32, value: &Value) {
        for lba in lba..lba + u64::from(blocks) {
            self.block(lba).pending.push((key, value.clone()));
        }
    }

    /// Write `key`, submitted at moment `since`, came back at moment `now`. If it succeeded, what was there before it
    /// is gone; if it was aborted, it may have happened, and will not happen any more.
    pub(super) fn end(&mut self, key: usize, lba: u64, blocks: u32, since: u64, now: u64, done: bool) {
        for lba in lba..lba + u64::from(blocks) {
            let block = self.block(lba);
            if done {
                block.settled.retain(|(_, at)| *at > since);
            }
            if let Some(at) = block.pending.iter().position(|(k, _)| *k == key) {
                let (_, value) = block.pending.swap_remove(at);
                block.settled.push((value, now));
            }
        }
    }

    /// What a read of block `lba` that begins now may find.
    pub(super) fn allowed(&mut self, lba: u64) -> Vec<Value> {
        let block = self.block(lba);
        let settled = block.settled.iter().map(|(value, _)| value);
        settled.chain(block.pending.iter().map(|(_, value)| value)).cloned().collect()
    }

    /// The one value that block `lba` holds, if that is certain.
    pub(super) fn certain(&mut self, lba: u64) -> Option<Value> {
        match &self.allowed(lba)[..] {
            [Value::Any, ..] => None,
            [first, rest @ ..] if rest.iter().all(|value| value == first) => Some(first.clone()),
            _ => None,
        }
    }

    /// A read found `bytes` in block `lba` while nothing wrote it: so does every read until it is written.
    pub(super) fn found(&mut self, lba: u64, bytes: &[u8]) {
        let block = self.block(lba);
        block.settled.retain(|(value, _)| value.matches(lba, bytes));
        for (value, _) in &mut block.settled {
            if *value == Value::Any {
                *value = Value::Found(bytes.into());
            }
        }
    }

    /// Blocks that were ever touched, in order.
    pub(super) fn touched(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_write_may_have_happened_but_never_lands_later() {
        let mut m = Model::new(Value::Zero);
        m.submit(1, 5, 1, &Value::Written(1));
        assert_eq!(m.allowed(5), [Value::Zero, Value::Written(1)]);
        m.end(1, 5, 1, 1, 2, false);
        assert_eq!(m.allowed(5), [Value::Zero, Value::Written(1)]);
        m.submit(2, 5, 1, &Value::Written(2));
        m.end(2, 5, 1, 3, 4, true);
        assert_eq!(m.certain(5), Some(Value::Written(2)));
    }

    #[test]
    fn writes_at_the_same_time_leave_either() {
        let mut m = Model::new(Value::Any);
        m.submit(1, 0, 2, &Value::Written(1));
        m.submit(2, 1, 1, &Value::Written(2));
        m.end(1, 0, 2, 1, 3, true);
        m.end(2, 1, 1, 2, 4, true);
        assert_eq!(m.certain(0), Some(Value::Written(1)));
        assert_eq!(m.allowed(1), [Value::Written(1), Value::Written(2)]);
        let mut bytes = [0; 512];
        Value::Written(1).fill(1, &mut bytes);
        m.found(1, &bytes);
        assert_eq!(m.certain(1), Some(Value::Written(1)));
    }

    #[test]
    fn what_was_found_stays() {
        let mut m = Model::new(Value::Any);
        m.found(9, &[3; 512]);
        assert!(m.allowed(9).iter().all(|v| v.matches(9, &[3; 512]) && !v.matches(9, &[4; 512])));
    }
}
