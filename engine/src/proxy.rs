//! Crossing shards, once for all: a volume with shared mutable state has a home shard, and elsewhere its channel is a
//! proxy. The I/O parks here, its request crosses, a new I/O runs at home, the result crosses back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use slab::Slab;

use crate::io::{Io, IoError, IoId, IoResult, Origin, Request, Scope};
use crate::shard::{Shard, ShardHandle};
use crate::volume::{Channel, ChannelRef, Issuer, Volume};

/// A channel here for `volume`, whose own channel is on `home`. What [`Volume::open`] returns on any other shard.
pub fn proxy(volume: Arc<dyn Volume>, home: &ShardHandle, here: &Shard) -> Rc<dyn Channel> {
    static KEYS: AtomicU64 = AtomicU64::new(1 << 63);
    let key = KEYS.fetch_add(1, Ordering::Relaxed);
    let route = Arc::new(Route { key, home: home.clone(), back: here.handle(), origin: Origin::new() });
    let far = Rc::new(Far { route: route.clone(), parked: RefCell::default() });
    here.put_local(key, far.clone());
    home.run(move |shard| {
        let counted = ChannelRef::open(&volume, shard);
        let channel = ChannelRef::uncounted(&volume, counted.channel());
        shard.put_local(key, Rc::new(Home { route, channel, _counted: counted, spare: RefCell::default() }));
    });
    Rc::new(Proxy { far, here: here.clone() })
}

/// The way between the halves of one proxy.
struct Route {
    /// Of both halves, each among the objects of its shard.
    key: u64,
    home: ShardHandle,
    back: ShardHandle,
    origin: Origin,
}

impl Route {
    fn answer(&self, slot: usize, tag: u64, result: IoResult) {
        let key = self.key;
        self.back.run(move |shard| {
            if let Some(far) = shard.local::<Far>(key) {
                far.done(slot, tag, result);
            }
        });
    }
}

/// A request on its way home. One that does not arrive, since its home has ended, is answered all the same.
struct Crossing {
    route: Arc<Route>,
    slot: usize,
    tag: u64,
    request: Option<Request>,
}

impl Crossing {
    fn arrive(mut self, shard: &Shard) {
        if let Some(home) = shard.local::<Home>(self.route.key) {
            home.run(self.slot, self.tag, self.request.take().unwrap_or_default());
        }
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        if self.request.take().is_some() {
            self.route.answer(self.slot, self.tag, Err(IoError::Failed));
        }
    }
}

/// The channel that users hold; closing it closes both halves. What is parked in it holds it open.
struct Proxy {
    far: Rc<Far>,
    here: Shard,
}

/// The half on the user's shard.
struct Far {
    route: Arc<Route>,
    parked: RefCell<Slab<(u64, Io)>>,
}

/// The half on the volume's shard.
struct Home {
    route: Arc<Route>,
    channel: ChannelRef,
    /// Keeps the volume's channel there shared with its other users.
    _counted: ChannelRef,
    spare: RefCell<Vec<Io>>,
}

fn next_tag() -> u64 {
    static TAGS: AtomicU64 = AtomicU64::new(0);
    TAGS.fetch_add(1, Ordering::Relaxed)
}

impl Channel for Proxy {
    fn submit(self: Rc<Self>, io: Io) {
        let route = self.far.route.clone();
        let (tag, request) = (next_tag(), Some(io.request().clone()));
        let slot = self.far.parked.borrow_mut().insert((tag, io));
        let crossing = Crossing { route, slot, tag, request };
        self.far.route.home.run(move |shard| crossing.arrive(shard));
    }

    fn revoke(&self, scope: Scope) {
        let parked = self.far.parked.borrow();
        let covered: Vec<u64> =
            parked.iter().filter(|(_, (_, io))| scope.covers(io)).map(|(_, (tag, _))| *tag).collect();
        let route = &self.far.route;
        let (key, origin) = (route.key, route.origin);
        if !covered.is_empty() {
            route.home.run(move |shard| {
                let Some(home) = shard.local::<Home>(key) else { return };
                for tag in covered {
                    home.channel.revoke(Scope::Io(IoId { origin, tag }));
                }
            });
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let key = self.far.route.key;
        self.here.take_local(key);
        self.far.route.home.run(move |shard| drop(shard.take_local(key)));
    }
}

impl Home {
    fn run(self: Rc<Self>, slot: usize, tag: u64, request: Request) {
        let id = IoId { origin: self.route.origin, tag };
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
        self.route.answer(cookie as usize, tag, result);
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
