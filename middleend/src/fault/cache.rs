//! A volatile write cache: what was written and is not on the medium yet, block by block.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::random::Random;

/// The bytes of a block as some write left them.
pub(super) type Content = Arc<[u8]>;

/// A block as it was at some moment: its address and content.
pub(super) type Image = (u64, Content);

/// What is known of a block beyond what the medium says.
#[derive(Default)]
struct Entry {
    /// What a power cut left of the block; as durable as the medium, but not moved there yet.
    survivor: Option<Content>,
    /// What was written since the last flush, oldest first: any of it, or nothing, may survive.
    versions: Vec<Content>,
}

impl Entry {
    fn newest(&self) -> Option<&Content> {
        self.versions.last().or(self.survivor.as_ref())
    }
}

/// The blocks that differ from the medium.
pub(super) struct Cache {
    entries: BTreeMap<u64, Entry>,
    /// Blocks' contents held, all versions counted.
    held: usize,
    /// The most of them.
    capacity: usize,
}

impl Cache {
    /// A cache of at most `capacity` contents of blocks.
    pub fn new(capacity: usize) -> Self {
        Cache { entries: BTreeMap::new(), held: 0, capacity }
    }

    /// Blocks whose newest content a power cut may lose.
    pub fn unflushed(&self) -> usize {
        self.entries.values().filter(|entry| !entry.versions.is_empty()).count()
    }

    /// Whether so many blocks can be written without a push.
    pub fn has_room(&self, blocks: u32) -> bool {
        self.capacity - self.held >= blocks as usize
    }

    /// Notes what was written.
    pub fn write(&mut self, lba: u64, content: Content) {
        self.entries.entry(lba).or_default().versions.push(content);
        self.held += 1;
    }

    /// The newest contents of those of the blocks that differ from the medium.
    pub fn newest(&self, lba: u64, blocks: u32) -> Vec<Image> {
        let end = lba.saturating_add(u64::from(blocks));
        self.entries
            .range(lba..end)
            .filter_map(|(lba, entry)| Some((*lba, entry.newest()?.clone())))
            .collect()
    }

    /// As [`Cache::newest`], of the whole volume.
    pub fn all(&self) -> Vec<Image> {
        self.entries.iter().filter_map(|(lba, entry)| Some((*lba, entry.newest()?.clone()))).collect()
    }

    /// The medium holds this content of the block now, or something newer: it and what is older is forgotten.
    pub fn pushed(&mut self, (lba, content): &Image) {
        let Some(entry) = self.entries.get_mut(lba) else { return };
        let held = entry.versions.len() + usize::from(entry.survivor.is_some());
        if let Some(at) = entry.versions.iter().position(|version| Arc::ptr_eq(version, content)) {
            entry.versions.drain(..=at);
            entry.survivor = None;
        } else if entry.survivor.as_ref().is_some_and(|survivor| Arc::ptr_eq(survivor, content)) {
            entry.survivor = None;
        }
        self.held -= held - entry.versions.len() - usize::from(entry.survivor.is_some());
        if entry.newest().is_none() {
            self.entries.remove(lba);
        }
    }

    /// The power goes. Of each block that was not flushed, one of its versions or none survives, independently of the
    /// others: writes are lost, torn between blocks, and seem to have happened in another order. Every fourth seed
    /// loses them all. Whether there was anything to lose.
    pub fn power_cut(&mut self, seed: u64) -> bool {
        let unflushed = self.unflushed();
        let mut random = Random::new(seed);
        let all_lost = seed.is_multiple_of(4);
        for entry in self.entries.values_mut() {
            let luck = random.below(entry.versions.len() + 1);
            if luck > 0 && !all_lost {
                entry.survivor = entry.versions.get(luck - 1).cloned();
            }
            entry.versions.clear();
        }
        self.entries.retain(|_, entry| entry.survivor.is_some());
        self.held = self.entries.len();
        unflushed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(byte: u8) -> Content {
        Arc::new([byte; 4])
    }

    fn bytes(images: &[Image]) -> Vec<(u64, u8)> {
        images.iter().map(|(lba, content)| (*lba, content[0])).collect()
    }

    #[test]
    fn pushing_forgets_the_version_and_what_is_older() {
        let mut cache = Cache::new(4);
        cache.write(7, content(1));
        cache.write(7, content(2));
        let before = cache.all();
        cache.write(7, content(3));
        cache.write(9, content(4));
        assert!(!cache.has_room(1));
        cache.pushed(&before[0]);
        assert!(cache.has_room(2) && !cache.has_room(3));
        assert_eq!(bytes(&cache.all()), [(7, 3), (9, 4)]);
        assert_eq!(bytes(&cache.newest(8, 2)), [(9, 4)]);
        cache.all().iter().for_each(|image| cache.pushed(image));
        assert!(cache.all().is_empty() && cache.has_room(4));
    }

    #[test]
    fn a_power_cut_leaves_one_version_or_none_of_each_block() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut cache = Cache::new(100);
            for lba in [1, 2] {
                cache.write(lba, content(10));
                cache.write(lba, content(20));
            }
            cache.power_cut(seed);
            assert_eq!(cache.unflushed(), 0);
            let left = bytes(&cache.all());
            assert!(seed % 4 != 0 || left.is_empty());
            seen.insert(left.clone());
            // What survived survives the next cut too, whatever was written over it.
            cache.write(1, content(30));
            cache.power_cut(0);
            assert_eq!(bytes(&cache.all()), left);
        }
        assert_eq!(seen.len(), 9, "three fates for each of two blocks");
    }
}
