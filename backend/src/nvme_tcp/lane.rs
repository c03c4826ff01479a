//! A shard's half of a remote controller: one I/O queue on a connection of its own, shared by all its namespaces.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::pending;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use engine::mem::Sgl;
use engine::{Shard, ShardHandle, Task};

use super::admin;
use super::channel::NamespaceChannel;
use super::conn::Conn;
use super::dial::dial;
use super::issued::{Ghost, Issued};
use super::promise::{either, within};
use super::queue::{Answer, Queue};
use super::reason::Reason;
use super::remote::{Event, Remote};

/// An association as its I/O queues need to know it.
#[derive(Clone, Debug)]
pub(super) struct Association {
    /// Counts the associations of a remote.
    pub generation: u64,
    pub cntlid: u16,
    /// I/O queues that the controller granted.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
    /// Bytes of data that a command's capsule has room for.
    pub in_capsule: u32,
    /// CRDT1 to CRDT3.
    pub crdt: [u16; 3],
    /// On the shards' clock: until when the association before may still execute what it had.
    pub fence: u64,
}

pub(super) struct Lane {
    me: Weak<Lane>,
    shard: Shard,
    remote: Arc<Remote>,
    conn: RefCell<Option<Rc<Conn>>>,
    /// The queue is connected and takes commands.
    live: Cell<bool>,
    closed: Cell<bool>,
    crdt: Cell<[u16; 3]>,
    elsewhere: RefCell<Option<ShardHandle>>,
    channels: RefCell<Vec<Weak<NamespaceChannel>>>,
    /// Channels that have something parked, first come first.
    waiting: RefCell<VecDeque<Rc<NamespaceChannel>>>,
    pumping: Cell<bool>,
    /// What lost connections had of writes, and until when, on the shards' clock, it may act: known when the association
    /// that it was of is over and there is another. A later loss moves none of these times.
    ghosts: RefCell<Vec<(Ghost, Option<u64>)>>,
    task: RefCell<Option<Task>>,
}

impl Lane {
    /// The lane of `remote` on this shard.
    pub fn of(remote: &Arc<Remote>, shard: &Shard) -> Rc<Self> {
        if let Some(lane) = shard.local::<Lane>(remote.lane_key()) {
            return lane;
        }
        let lane = Rc::new_cyclic(|me| Lane {
            me: me.clone(),
            shard: shard.clone(),
            remote: remote.clone(),
            conn: RefCell::default(),
            live: Cell::new(false),
            closed: Cell::new(remote.is_closed()),
            crdt: Cell::default(),
            elsewhere: RefCell::default(),
            channels: RefCell::default(),
            waiting: RefCell::default(),
            pumping: Cell::new(false),
            ghosts: RefCell::default(),
            task: RefCell::default(),
        });
        if !lane.is_closed() {
            shard.put_local(remote.lane_key(), lane.clone());
            remote.tell(Event::Lane(shard.handle()));
        }
        lane
    }

    pub fn add(&self, channel: &Rc<NamespaceChannel>) {
        let mut channels = self.channels.borrow_mut();
        channels.retain(|c| c.strong_count() > 0);
        channels.push(Rc::downgrade(channel));
        drop(channels);
        let home = self.elsewhere.borrow().clone();
        if let Some(home) = home {
            channel.go_elsewhere(&home);
        }
    }

    fn each(&self, f: impl Fn(&NamespaceChannel)) {
        let all: Vec<_> = self.channels.borrow().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|c| f(c));
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    pub fn retry_delays(&self) -> [u16; 3] {
        self.crdt.get()
    }

    /// The connection, when it takes commands.
    pub fn conn(&self) -> Option<Rc<Conn>> {
        if self.live.get() { self.conn.borrow().clone() } else { None }
    }

    /// Whether an I/O would find a place at once.
    pub fn has_room(&self) -> bool {
        self.waiting.borrow().is_empty() && self.conn().is_some_and(|c| c.has_room())
    }

    pub fn take_back(&self, pick: impl Fn(&Issued) -> bool) -> Vec<Issued> {
        let conn = self.conn.borrow().clone();
        conn.map_or(Vec::new(), |c| c.take_back(pick))
    }

    /// `channel` has something parked.
    pub fn wait(&self, channel: Rc<NamespaceChannel>) {
        self.waiting.borrow_mut().push_back(channel);
    }

    /// Sends what is parked, as far as there is room: one I/O of each channel in turn.
    pub fn pump(&self) {
        if self.pumping.replace(true) {
            return;
        }
        while self.conn().is_some_and(|c| c.has_room()) {
            let Some(channel) = self.waiting.borrow_mut().pop_front() else { break };
            if channel.pump_one() {
                channel.wake();
            }
        }
        self.pumping.set(false);
    }

    /// Looks at every channel anew: a namespace may be usable again, a ghost gone.
    pub fn look(&self) {
        self.each(NamespaceChannel::look);
        self.pump();
    }

    pub fn answered(&self, issued: Issued, answer: Answer) {
        let channel = issued.channel.clone();
        channel.answered(issued, &answer);
    }

    pub fn ghost_gone(&self, ghost: &Ghost) {
        ghost.channel.ghost_gone(ghost);
    }

    /// The connection is gone: what it had is parked again, in its order, before everything else. A write that was sent
    /// leaves a ghost, which holds it back itself.
    pub fn lost(&self, commands: Vec<Issued>) {
        self.live.set(false);
        self.conn.replace(None);
        for issued in commands.into_iter().rev() {
            if self.is_closed() {
                issued.io.complete(Err(engine::IoError::Failed));
                continue;
            }
            let channel = issued.channel.clone();
            if let Some(range) = issued.blocks_changed() {
                channel.haunt(range.clone());
                let ghost =
                    Ghost { data: Sgl::empty(), base: 0, channel: channel.clone(), range: Some(range) };
                self.ghosts.borrow_mut().push((ghost, None));
            }
            channel.park_first(issued);
        }
    }

    /// The connection that had a ghost's command is gone.
    pub fn ghost_lost(&self, ghost: Ghost) {
        if !self.is_closed() {
            self.ghosts.borrow_mut().push((ghost, None));
        }
    }

    /// Connects this shard's queue to a new association.
    pub fn connect(&self, association: Association) {
        if self.is_closed() {
            return;
        }
        let queue = self.remote.queue_of(self.shard.id());
        if self.elsewhere.borrow().is_none() && queue > association.queues {
            let home = self.remote.shard_of_queue((queue - 1) % association.queues + 1);
            self.each(|c| c.go_elsewhere(&home));
            self.elsewhere.replace(Some(home));
        }
        if self.elsewhere.borrow().is_some() {
            return self.lay_ghosts(association.fence);
        }
        let Some(me) = self.me.upgrade() else { return };
        let task = self.shard.spawn(async move {
            let generation = association.generation;
            let reason = me.run(queue, association).await;
            me.remote.tell(Event::LaneDown(generation, reason));
        });
        self.task.replace(Some(task));
    }

    /// There is no connection any more, and what the last one had of writes is over at `fence`.
    fn lay_ghosts(&self, fence: u64) {
        let Some(me) = self.me.upgrade() else { return };
        let task = self.shard.spawn(async move {
            me.leave().await;
            me.fence(fence);
            me.exorcise_in_time().await;
        });
        self.task.replace(Some(task));
    }

    /// Waits for the end of the connection before, which may still be on its way out.
    async fn leave(&self) {
        let before = self.conn.borrow().clone();
        if let Some(before) = before {
            before.fail(Reason::Reset);
            before.closed.wait().await;
        }
    }

    /// The life of one connection; how it ended.
    async fn run(&self, qid: u16, association: Association) -> Reason {
        self.leave().await;
        self.fence(association.fence);
        let wait = self.remote.config().connect_timeout;
        let conn = match within(&self.shard, wait, self.bring_up(qid, &association)).await {
            Some(Ok(conn)) => conn,
            Some(Err(reason)) => return self.give_up(reason),
            None => return self.give_up(Reason::Timeout("connecting an I/O queue")),
        };
        self.exorcise();
        self.crdt.set(association.crdt);
        self.live.set(true);
        self.look();
        let later = async {
            self.exorcise_in_time().await;
            pending().await
        };
        either(conn.closed.wait(), later).await
    }

    /// The association before is over at `fence`.
    fn fence(&self, fence: u64) {
        self.ghosts.borrow_mut().iter_mut().for_each(|(_, until)| *until = until.or(Some(fence)));
    }

    /// What the writes of associations that are over did has landed, or never will. When that is so of the next.
    fn exorcise(&self) -> Option<u64> {
        let now = self.shard.now();
        let is_over = |(_, until): &mut (Ghost, Option<u64>)| until.is_some_and(|until| until <= now);
        let gone: Vec<_> = self.ghosts.borrow_mut().extract_if(.., is_over).collect();
        gone.iter().for_each(|(ghost, _)| self.ghost_gone(ghost));
        self.ghosts.borrow().iter().filter_map(|(_, until)| *until).min()
    }

    /// The same, until it is so of all.
    async fn exorcise_in_time(&self) {
        while let Some(next) = self.exorcise() {
            self.shard.sleep(Duration::from_nanos(next.saturating_sub(self.shard.now()))).await;
        }
    }

    async fn bring_up(&self, qid: u16, association: &Association) -> Result<Rc<Conn>, Reason> {
        let config = self.remote.config();
        let (fd, agreed) = dial(&self.shard, config).await?;
        let queue = Queue::new(agreed, association.entries, association.in_capsule);
        let conn = Conn::start(&self.shard, fd, queue, self.me.clone());
        self.conn.replace(Some(conn.clone()));
        admin::connect(&conn, config, qid, association.entries, association.cntlid).await?;
        Ok(conn)
    }

    fn give_up(&self, reason: Reason) -> Reason {
        let conn = self.conn.borrow().clone();
        if let Some(conn) = conn {
            conn.fail(reason.clone());
        }
        reason
    }

    /// The association is over.
    pub fn disconnect(&self) {
        self.live.set(false);
        self.task.replace(None);
        self.give_up(Reason::Reset);
    }

    /// The remote is closed: nothing is sent any more.
    pub fn close(&self) {
        self.closed.set(true);
        self.disconnect();
        self.each(NamespaceChannel::close);
        // Each keeps its channel, and that this lane.
        drop((self.waiting.take(), self.ghosts.take()));
    }
}
