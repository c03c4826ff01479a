//! Doorbells: a page that the host may have mapped, or words that its trapped writes set; and shadow doorbells in guest
//! memory (Base 2.1, 5.2.5: Doorbell Buffer Config).

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::mem::{GuestMemory, Mapping};
use engine::ring::Fd;
use nvme_proto::register::offset;

/// Bytes of doorbells in BAR0: 512 queue pairs.
pub(crate) const PAGE: usize = 4096;
/// Where they begin in the file that a host maps: as in the BAR, since clients add the two offsets.
const IN_FILE: usize = offset::DOORBELLS as usize;

/// How hosts ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// The host writes to a page that it shares with us. A write costs it a store, and us a look from time to time.
    #[default]
    Mapped,
    /// Each write comes as a message, unless shadow doorbells spare it: nothing is looked at in idleness.
    Trapped,
}

enum Words {
    Shared { map: Mapping, file: Fd },
    Private(Box<[Cell<u32>]>),
}

impl Words {
    fn new(kind: Doorbells) -> std::io::Result<Self> {
        Ok(match kind {
            Doorbells::Mapped => {
                let (map, file) = Mapping::memfd("isthmus-doorbells", IN_FILE + PAGE)?;
                Words::Shared { map, file: Arc::new(file) }
            }
            Doorbells::Trapped => Words::Private(vec![Cell::new(0); PAGE / 4].into()),
        })
    }
}

/// Where shadow doorbells lie in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shadow {
    /// The doorbells.
    pub doorbells: u64,
    /// The event indexes.
    pub events: u64,
}

/// The doorbells of one function.
pub(crate) struct Bells {
    kind: Doorbells,
    words: RefCell<Words>,
    pub shadow: Cell<Option<Shadow>>,
}

/// Which doorbell of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bell {
    Tail(u16),
    Head(u16),
}

impl Bell {
    fn at(self) -> usize {
        match self {
            Bell::Tail(qid) => usize::from(qid) * 8,
            Bell::Head(qid) => usize::from(qid) * 8 + 4,
        }
    }

    /// Shadow doorbells are for I/O queues alone.
    fn has_shadow(self) -> bool {
        !matches!(self, Bell::Tail(0) | Bell::Head(0))
    }
}

impl Bells {
    /// Doorbells that read zero.
    pub fn new(kind: Doorbells) -> std::io::Result<Self> {
        Ok(Bells { kind, words: RefCell::new(Words::new(kind)?), shadow: Cell::new(None) })
    }

    /// Doorbells that nobody else shares any more: for another host.
    pub fn renew(&self) -> std::io::Result<()> {
        self.words.replace(Words::new(self.kind)?);
        self.shadow.set(None);
        Ok(())
    }

    /// The file whose page at the doorbells' offset in BAR0 the host may map.
    pub fn file(&self) -> Option<Fd> {
        match &*self.words.borrow() {
            Words::Shared { file, .. } => Some(file.clone()),
            Words::Private(_) => None,
        }
    }

    /// Whether nothing tells of a write.
    pub fn is_silent(&self) -> bool {
        self.kind == Doorbells::Mapped
    }

    /// The value that the host wrote last; `None` if its shadow doorbells cannot be read any more.
    pub fn load(&self, memory: &GuestMemory, bell: Bell) -> Option<u32> {
        match self.shadow.get() {
            Some(shadow) if bell.has_shadow() => memory.load_u32(shadow.doorbells + bell.at() as u64).ok(),
            _ => Some(self.word(bell)),
        }
    }

    fn word(&self, bell: Bell) -> u32 {
        match &*self.words.borrow() {
            Words::Shared { map, .. } => {
                map.word(IN_FILE + bell.at()).map_or(0, |w| w.load(Ordering::Acquire))
            }
            Words::Private(words) => words.get(bell.at() / 4).map_or(0, Cell::get),
        }
    }

    /// A trapped write, or a queue's first value.
    pub fn store(&self, bell: Bell, value: u32) {
        match &*self.words.borrow() {
            Words::Shared { map, .. } => {
                if let Some(word) = map.word(IN_FILE + bell.at()) {
                    word.store(value, Ordering::Release);
                }
            }
            Words::Private(words) => {
                if let Some(word) = words.get(bell.at() / 4) {
                    word.set(value);
                }
            }
        }
    }

    /// Begins to use shadow doorbells for a queue: they take over the doorbell's value.
    pub fn adopt(&self, memory: &GuestMemory, bell: Bell, value: u32) -> bool {
        match self.shadow.get() {
            Some(shadow) if bell.has_shadow() => {
                let at = bell.at() as u64;
                memory.store_u32(shadow.doorbells + at, value).is_ok()
                    && memory.store_u32(shadow.events + at, value).is_ok()
            }
            _ => true,
        }
    }

    /// Asks the host to ring for real with the first write after the one that made the doorbell `seen`.
    pub fn arm(&self, memory: &GuestMemory, bell: Bell, seen: u32) {
        if let Some(shadow) = self.shadow.get().filter(|_| bell.has_shadow()) {
            // An event index that cannot be written means that its page is gone, and the doorbells' with it.
            let _ = memory.store_u32(shadow.events + bell.at() as u64, seen);
        }
    }

    /// As after a reset.
    pub fn clear(&self) {
        self.shadow.set(None);
        for qid in 0..(PAGE / 8) as u16 {
            self.store(Bell::Tail(qid), 0);
            self.store(Bell::Head(qid), 0);
        }
    }
}
