//! Crossing shards, once for all: a volume with shared mutable state has a home shard, and elsewhere its channel is a
//! proxy. The I/O parks here, its request crosses, a new I/O runs at home, the result crosses back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use slab::Slab;

use crate::io::{Io, IoId, IoResult, Origin, Request, Scope};
use crate::shard::{Shard, ShardHandle};
use crate::volume::{Channel, ChannelRef, Issuer, Volume};

/// A channel here for `volume`, whose own channel is on `home`. What [`Volume::open`] returns on any other shard.
pub fn proxy(volume: Arc<dyn Volume>, home: &ShardHandle, here: &Shard) -> Rc<dyn Channel> {
    static KEYS: AtomicU64 = AtomicU64::new(1 << 63);
    let key = KEYS.fetch_add(1, Ordering::Relaxed);
    let far = Rc::new(Far { key, home: home.clone(), origin: Origin::new(), parked: RefCell::default() });
    here.put_local(key, far.clone());
    let back = here.handle();
    home.run(move |shard| {
        let counted = ChannelRef::open(&volume, shard);
        let channel = ChannelRef::uncounted(&volume, counted.channel());
        shard.put_local(
            key,
            Rc::new(Home { key, channel, _counted: counted, back, spare: RefCell::default() }),
        );
    });
    Rc::new(Proxy { far, here: here.clone() })
}

/// The channel that users hold; closing it closes both halves.
struct Proxy {
    far: Rc<Far>,
    here: Shard,
}

/// The half on the user's shard.
struct Far {
    key: u64,
    home: ShardHandle,
    origin: Origin,
    parked: RefCell<Slab<(u64, Io)>>,
}

/// The half on the volume's shard.
struct Home {
    key: u64,
    channel: ChannelRef,
    /// Keeps the volume's channel there shared with its other users.
    _counted: ChannelRef,
    back: ShardHandle,
    spare: RefCell<Vec<Io>>,
}

fn next_tag() -> u64 {
    static TAGS: AtomicU64 = AtomicU64::new(0);
    TAGS.fetch_add(1, Ordering::Relaxed)
}

impl Channel for Proxy {
    fn submit(self: Rc<Self>, io: Io) {
        let far = &self.far;
        let request = io.request().clone();
        let tag = next_tag();
        let slot = far.parked.borrow_mut().insert((tag, io));
        let (key, id) = (far.key, IoId { origin: far.origin, tag });
        far.home.run(move |shard| {
            if let Some(home) = shard.local::<Home>(key) {
                home.run(slot, id, request);
            }
        });
    }

    fn revoke(&self, scope: Scope) {
        let far = &self.far;
        let parked = far.parked.borrow();
        let covered: Vec<u64> =
            parked.iter().filter(|(_, (_, io))| scope.covers(io)).map(|(_, (tag, _))| *tag).collect();
        let (key, origin) = (far.key, far.origin);
        far.home.run(move |shard| {
            if let Some(home) = shard.local::<Home>(key) {
                for tag in covered {
                    home.channel.revoke(Scope::Io(IoId { origin, tag }));
                }
            }
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let key = self.far.key;
        self.here.take_local(key);
        self.far.home.run(move |shard| drop(shard.take_local(key)));
    }
}

impl Home {
    fn run(self: Rc<Self>, slot: usize, id: IoId, request: Request) {
        let mut io = self.spare.borrow_mut().pop().unwrap_or_else(|| Io::new(id));
        io.set_id(id);
        *io.request_mut() = request;
        let channel = self.channel.clone();
        io.forward(&channel, self, slot as u64);
    }
}

impl Issuer for Home {
    fn resume(self: Rc<Self>, mut io: Io, cookie: u64, result: IoResult) {
        let tag = io.id().tag;
        // The memory is let go here before the answer crosses: its owner may be waiting for just that.
        *io.request_mut() = Request::default();
        let key = self.key;
        self.back.run(move |shard| {
            if let Some(far) = shard.local::<Far>(key) {
                far.done(cookie as usize, tag, result);
            }
        });
        self.spare.borrow_mut().push(io);
    }
}

impl Far {
    fn done(&self, slot: usize, tag: u64, result: IoResult) {
        let io = {
            let mut parked = self.parked.borrow_mut();
            match parked.get(slot) {
                Some((t, _)) if *t == tag => parked.remove(slot).1,
                _ => return,
            }
        };
        io.complete(result);
    }
}
