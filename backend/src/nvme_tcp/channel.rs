//! The data half of a namespace: its channel on one shard. Parks what cannot go, sends the rest over the shard's
//! [`Lane`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use engine::{Channel, Io, IoError, OnTimer, Op, Scope, Shard, Volume, proxy};

use super::issued::{Ghost, Issued};
use super::lane::Lane;
use super::namespace::RemoteNamespace;
use super::queue::Answer;
use super::status::{Verdict, judge};

pub(super) struct NamespaceChannel {
    me: Weak<NamespaceChannel>,
    shard: Shard,
    lane: Rc<Lane>,
    namespace: Arc<RemoteNamespace>,
    /// Where the I/O goes instead, when the remote has no queue for this shard.
    elsewhere: RefCell<Option<Rc<dyn Channel>>>,
    /// I/O that waits for a place or a connection, in order.
    parked: RefCell<VecDeque<Issued>>,
    /// The lane knows that something is parked.
    waiting: Cell<bool>,
    /// I/O that overlaps a ghost.
    held: RefCell<Vec<Issued>>,
    /// I/O that is tried again when the timer fires.
    pausing: RefCell<Vec<Issued>>,
    timer: Cell<bool>,
}

impl NamespaceChannel {
    pub fn open(namespace: Arc<RemoteNamespace>, lane: Rc<Lane>, shard: &Shard) -> Rc<Self> {
        let channel = Rc::new_cyclic(|me| NamespaceChannel {
            me: me.clone(),
            shard: shard.clone(),
            lane: lane.clone(),
            namespace,
            elsewhere: RefCell::default(),
            parked: RefCell::default(),
            waiting: Cell::new(false),
            held: RefCell::default(),
            pausing: RefCell::default(),
            timer: Cell::new(false),
        });
        lane.add(&channel);
        channel
    }

    /// The remote has no queue for this shard: everything crosses to `home`.
    pub fn go_elsewhere(&self, home: &engine::ShardHandle) {
        if self.elsewhere.borrow().is_some() {
            return;
        }
        self.elsewhere.replace(Some(proxy(self.namespace.clone(), home, &self.shard)));
        self.wake();
    }

    /// Puts I/O back before what is parked: a connection that had it is gone.
    pub fn park_first(&self, issued: Issued) {
        self.parked.borrow_mut().push_front(issued);
        self.wake();
    }

    /// Tells the lane that something is parked.
    pub fn wake(&self) {
        if self.lane.is_closed() {
            return self.close();
        }
        let there = self.elsewhere.borrow().clone();
        if let Some(there) = there {
            let parked = std::mem::take(&mut *self.parked.borrow_mut());
            return parked.into_iter().for_each(|issued| there.clone().submit(issued.io));
        }
        // A channel that cannot send does not stand in the way of those that can; it is looked at when that changes.
        if self.namespace.is_usable()
            && !self.parked.borrow().is_empty()
            && let Some(me) = self.me.upgrade()
            && !self.waiting.replace(true)
        {
            self.lane.wait(me);
        }
    }

    /// Sends one parked I/O; whether more are parked and the lane may go on with them.
    pub fn pump_one(&self) -> bool {
        self.waiting.set(false);
        if !self.namespace.is_usable() {
            return false;
        }
        let Some(issued) = self.parked.borrow_mut().pop_front() else { return false };
        if let Err(issued) = self.start(issued) {
            self.parked.borrow_mut().push_front(issued);
        }
        !self.parked.borrow().is_empty()
    }

    /// Sends the next command of an I/O, or holds it back for a ghost.
    fn start(&self, mut issued: Issued) -> Result<(), Issued> {
        if self.namespace.ghosts().hold(&issued.blocks(), || self.shard.handle()) {
            self.held.borrow_mut().push(issued);
            return Ok(());
        }
        let Some(conn) = self.lane.conn() else { return Err(issued) };
        let (sqe, way) = issued.command(self.namespace.nsid(), self.namespace.spans());
        conn.issue(sqe, way, issued)
    }

    /// A command came back with an answer.
    pub fn answered(&self, mut issued: Issued, answer: &Answer) {
        match judge(answer, issued.io.op(), issued.attempts, self.lane.retry_delays()) {
            Verdict::End(Ok(())) if issued.advance() => {
                issued.attempts = 0;
                self.park_first(issued);
            }
            Verdict::End(result) => issued.io.complete(result),
            Verdict::Again(pause) => {
                issued.attempts += 1;
                self.pausing.borrow_mut().push(issued);
                self.arm(pause);
            }
        }
    }

    fn arm(&self, pause: Duration) {
        if let Some(me) = self.me.upgrade()
            && !self.timer.replace(true)
        {
            self.shard.timer(pause, me, 0);
        }
    }

    /// A command that its issuer took back may still change these blocks.
    pub fn haunt(&self, blocks: Range<u64>) {
        self.namespace.ghosts().add(blocks);
    }

    /// What a taken-back command did is known now, or it can do nothing any more.
    pub fn ghost_gone(&self, ghost: &Ghost) {
        let Some(range) = &ghost.range else { return };
        for shard in self.namespace.ghosts().remove(range) {
            let remote = self.namespace.remote().clone();
            shard.run(move |shard| {
                if let Some(lane) = shard.local::<Lane>(remote.lane_key()) {
                    lane.look();
                }
            });
        }
    }

    /// Looks anew at what is parked or held back.
    pub fn look(&self) {
        let held = std::mem::take(&mut *self.held.borrow_mut());
        self.parked.borrow_mut().extend(held);
        self.wake();
    }

    /// Everything that is not sent ends as failed: the remote is closed.
    pub fn close(&self) {
        self.drain(|_| true, IoError::Failed);
    }

    /// Ends what is not sent and is covered.
    fn drain(&self, covered: impl Fn(&Io) -> bool, error: IoError) {
        let mut gone = Vec::new();
        {
            let mut parked = self.parked.borrow_mut();
            for _ in 0..parked.len() {
                match parked.pop_front() {
                    Some(issued) if covered(&issued.io) => gone.push(issued),
                    Some(issued) => parked.push_back(issued),
                    None => break,
                }
            }
            for list in [&self.held, &self.pausing] {
                gone.extend(list.borrow_mut().extract_if(.., |issued| covered(&issued.io)));
            }
        }
        for issued in gone {
            issued.io.complete(Err(error));
        }
    }
}

impl Channel for NamespaceChannel {
    fn submit(self: Rc<Self>, io: Io) {
        let there = self.elsewhere.borrow().clone();
        if let Some(there) = there {
            return there.submit(io);
        }
        if self.lane.is_closed() {
            return io.complete(Err(IoError::Failed));
        }
        let bytes = u64::from(io.blocks()) * u64::from(self.namespace.block_size());
        if io.op().has_data() && io.sgl().len() as u64 != bytes {
            return io.complete(Err(IoError::OutOfRange));
        }
        if io.blocks() == 0 && io.op() != Op::Flush {
            return io.complete(Ok(()));
        }
        let issued = Issued::new(io, self.clone());
        let first = self.parked.borrow().is_empty() && self.lane.has_room() && self.namespace.is_usable();
        let refused = if first { self.start(issued).err() } else { Some(issued) };
        if let Some(issued) = refused {
            self.parked.borrow_mut().push_back(issued);
            self.wake();
        }
    }

    fn revoke(&self, scope: Scope) {
        let there = self.elsewhere.borrow().clone();
        if let Some(there) = there {
            there.revoke(scope);
        }
        self.drain(|io| scope.covers(io), IoError::Aborted);
        let here = |issued: &Issued| std::ptr::eq(&*issued.channel, self) && scope.covers(&issued.io);
        for issued in self.lane.take_back(here) {
            issued.io.complete(Err(IoError::Aborted));
        }
        self.lane.pump();
    }

    fn kick(self: Rc<Self>) {}
}

impl OnTimer for NamespaceChannel {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.timer.set(false);
        let again = std::mem::take(&mut *self.pausing.borrow_mut());
        for issued in again.into_iter().rev() {
            self.park_first(issued);
        }
        self.lane.pump();
    }
}

impl Volume for RemoteNamespace {
    fn limits(&self) -> engine::Limits {
        self.pinned_limits()
    }

    fn stats(&self) -> &engine::VolumeStats {
        self.volume_stats()
    }

    fn is_away(&self) -> bool {
        !(self.is_usable() && self.remote().is_live())
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        let lane = Lane::of(self.remote(), shard);
        NamespaceChannel::open(self, lane, shard)
    }
}
