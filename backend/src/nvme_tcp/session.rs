//! The life of a remote on its home shard: connect, identify, keep alive, and again.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::{Shard, ShardHandle, Task};
use nvme_proto::aen;
use nvme_proto::identify::IdentifyController;
use nvme_proto::log::LogId;
use tracing::{info, warn};

use super::admin;
use super::config::Resend;
use super::controller::Controller;
use super::identity::ControllerFacts;
use super::lane::{Association, Lane};
use super::namespace::Pin;
use super::promise::{Mailbox, Promise, either, within};
use super::reason::Reason;
use super::remote::{Event, Remote, State};
use super::scan::{self, Seen};

/// Bytes of data in a capsule at most, whatever IOCCSZ allows: the largest I/O.
const MAX_IN_CAPSULE: u64 = 1 << 20;
/// The least time between two asynchronous events that are heeded: a remote cannot keep the shard busy with them.
pub(super) const EVENT_PAUSE: Duration = Duration::from_millis(100);
/// The least time between two lines on refused namespaces.
const COMPLAINTS: Duration = Duration::from_secs(1);
/// How long a controller has to say goodbye.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// What the home shard keeps: dropping it ends everything.
pub(super) struct Session {
    inner: Rc<Inner>,
    _task: Task,
}

struct Inner {
    shard: Shard,
    remote: Arc<Remote>,
    mailbox: Mailbox<Event>,
    close: Rc<Promise<()>>,
    /// Shards that have a lane.
    lanes: RefCell<Vec<ShardHandle>>,
    controller: RefCell<Option<Rc<Controller>>>,
    association: RefCell<Option<Association>>,
    generation: Cell<u64>,
    /// Until when, on the shards' clock, the last association may still execute what it had.
    fence: Cell<u64>,
    /// The namespaces that were last said to be refused, and when more may be said.
    refused: RefCell<(Vec<(u32, Reason)>, u64)>,
}

impl Session {
    pub fn start(remote: Arc<Remote>, shard: &Shard) {
        let key = remote.session_key();
        let inner = Rc::new(Inner {
            shard: shard.clone(),
            remote,
            mailbox: Mailbox::default(),
            close: Promise::new(),
            lanes: RefCell::default(),
            controller: RefCell::default(),
            association: RefCell::default(),
            generation: Cell::new(0),
            fence: Cell::new(0),
            refused: RefCell::default(),
        });
        let theirs = inner.clone();
        let task = shard.spawn(async move {
            either(theirs.close.wait(), theirs.run()).await;
            let controller = theirs.controller.take();
            if let Some(controller) = controller {
                within(&theirs.shard, SHUTDOWN, controller.shut_down()).await;
            }
            theirs.shard.take_local(key);
        });
        shard.put_local(key, Rc::new(Session { inner, _task: task }));
    }

    pub fn tell(&self, event: Event) {
        match event {
            Event::Lane(shard) => self.inner.add_lane(shard),
            Event::Close => self.inner.close.set(()),
            // Asked for twice, or while there is none, there is no other association to end.
            Event::Reset if self.inner.association.borrow().is_none() => {}
            Event::Reset => {
                let generation = self.inner.generation.get();
                self.inner.mailbox.push(Event::LaneDown(generation, Reason::Reset));
            }
            other => self.inner.mailbox.push(other),
        }
    }
}

/// How long after its loss a controller may still execute what it had, in nanoseconds: it may notice twice the keep-alive
/// timeout after it last heard of its host, three times that after the loss where any command counts as a Keep Alive, and
/// then takes CQT (Base 2.1, 9.6.2).
fn quiescence(kato: Duration, identify: &IdentifyController) -> u64 {
    let times = if identify.ctratt.tbkas() { 3 } else { 2 };
    let quiesce = kato * times + Duration::from_millis(identify.cqt.into());
    u64::try_from(quiesce.as_nanos()).unwrap_or(u64::MAX)
}

impl Inner {
    fn add_lane(&self, shard: ShardHandle) {
        if let Some(association) = &*self.association.borrow() {
            self.connect_lane(&shard, association.clone());
        }
        self.lanes.borrow_mut().push(shard);
    }

    fn connect_lane(&self, shard: &ShardHandle, association: Association) {
        let remote = self.remote.clone();
        shard.run(move |shard| {
            if let Some(lane) = shard.local::<Lane>(remote.lane_key()) {
                lane.connect(association);
            }
        });
    }

    fn each_lane(&self, f: impl Fn(&Lane) + Send + Copy + 'static) {
        for shard in self.lanes.borrow().iter() {
            let remote = self.remote.clone();
            shard.run(move |shard| {
                if let Some(lane) = shard.local::<Lane>(remote.lane_key()) {
                    f(&lane);
                }
            });
        }
    }

    /// Never ends by itself.
    async fn run(&self) {
        let config = self.remote.config();
        let (mut pause, mut was_live, mut said) = (config.first_pause, false, None);
        loop {
            self.generation.set(self.generation.get() + 1);
            let began = self.shard.now();
            let reason = match self.associate().await {
                Ok(facts) => {
                    (was_live, said) = (true, None);
                    let reason = self.serve(&facts).await;
                    let quiesce = quiescence(config.kato, &facts.identify);
                    self.fence.set(self.shard.now().saturating_add(quiesce));
                    reason
                }
                Err(reason) => reason,
            };
            let lasted = Duration::from_nanos(self.shard.now().saturating_sub(began));
            if lasted > config.longest_pause * 2 {
                pause = config.first_pause;
            }
            self.association.replace(None);
            self.controller.replace(None);
            self.each_lane(Lane::disconnect);
            // Attempts go on for ever; only what is new is worth a line.
            if said.replace(reason.clone()).as_ref() != Some(&reason) {
                warn!(remote = %config.name, %reason, "not connected; the next attempt in {pause:?}");
            }
            self.remote.set_state(match was_live {
                true => State::Reconnecting(reason),
                false => State::Connecting(Some(reason)),
            });
            self.shard.sleep(pause).await;
            pause = (pause * 2).min(config.longest_pause);
        }
    }

    /// Makes an association, up to the namespaces, and tells the lanes.
    async fn associate(&self) -> Result<ControllerFacts, Reason> {
        let config = self.remote.config();
        let controller = Rc::new(Controller::open(&self.shard, config).await?);
        self.controller.replace(Some(controller.clone()));
        let facts = self.patiently("identifying the controller", scan::controller(&controller)).await?;
        let queues = admin::set_queues(&controller.conn, self.remote.queues());
        let queues = self.patiently("Number of Queues", queues).await?;
        // With many namespaces far away this takes longer than the controller waits for a sign of life.
        let alive = async { Err(self.keep_alive(&controller).await) };
        either(self.scan(&controller, &facts), alive).await?;
        let id = &facts.identify;
        let in_capsule = (u64::from(id.ioccsz) * 16).saturating_sub(64).min(MAX_IN_CAPSULE);
        let association = Association {
            generation: self.generation.get(),
            cntlid: controller.cntlid,
            queues,
            entries: config.queue_size.min(controller.cap.mqes_z().saturating_add(1)).max(2),
            in_capsule: if id.icdoff == 0 { u32::try_from(in_capsule).unwrap_or(0) } else { 0 },
            crdt: [id.crdt1, id.crdt2, id.crdt3],
            fence: if config.resend == Resend::Strict { self.fence.get() } else { 0 },
        };
        for shard in self.lanes.borrow().iter() {
            self.connect_lane(shard, association.clone());
        }
        self.association.replace(Some(association));
        info!(remote = %config.name, cntlid = controller.cntlid, queues, "connected");
        self.remote.set_state(State::Live);
        Ok(facts)
    }

    /// Runs a step of a control sequence, but not for ever.
    async fn patiently<T>(
        &self,
        what: &'static str,
        step: impl Future<Output = Result<T, Reason>>,
    ) -> Result<T, Reason> {
        let wait = self.remote.config().connect_timeout;
        within(&self.shard, wait, step).await.unwrap_or(Err(Reason::Timeout(what)))
    }

    /// Keeps an association alive; why it ended.
    async fn serve(&self, facts: &ControllerFacts) -> Reason {
        let Some(controller) = self.controller.borrow().clone() else { return Reason::Closed };
        let alive = either(controller.conn.closed.wait(), self.keep_alive(&controller));
        let heed = either(self.heed(&controller, facts), self.listen(&controller, facts));
        either(alive, heed).await
    }

    /// Sends Keep Alives until one is not answered.
    async fn keep_alive(&self, controller: &Controller) -> Reason {
        let kato = self.remote.config().kato;
        if kato.is_zero() {
            return pending().await;
        }
        loop {
            self.shard.sleep(kato / 3).await;
            let answer = within(&self.shard, kato, admin::keep_alive(&controller.conn)).await;
            if let Err(reason) = answer.unwrap_or(Err(Reason::Timeout("Keep Alive"))) {
                return reason;
            }
        }
    }

    /// Does what the mailbox says until it says that the association is over.
    async fn heed(&self, controller: &Controller, facts: &ControllerFacts) -> Reason {
        loop {
            match self.mailbox.next().await {
                Event::LaneDown(generation, reason) if generation == self.generation.get() => return reason,
                Event::Notice => {
                    if let Err(reason) = self.look_again(controller, facts).await {
                        return reason;
                    }
                }
                _ => {}
            }
        }
    }

    /// Puts the controller's events into the mailbox; never ends.
    async fn listen(&self, controller: &Controller, facts: &ControllerFacts) -> Reason {
        let wanted = aen::AsyncEventConfiguration::new()
            .with_nan(facts.identify.oaes.nsan())
            .with_anacn(facts.identify.oaes.anacn());
        // A controller that has no notices is scanned when it is connected, and then never.
        if admin::set_events(&controller.conn, wanted).await.is_err() {
            return pending().await;
        }
        while let Ok(event) = admin::next_event(&controller.conn).await {
            if event.event_type() == aen::EventType::Notice {
                self.mailbox.push(Event::Notice);
            }
            self.shard.sleep(EVENT_PAUSE).await;
        }
        pending().await
    }

    /// Namespaces came, went or changed.
    async fn look_again(&self, controller: &Controller, facts: &ControllerFacts) -> Result<(), Reason> {
        let changed = admin::log_page(&controller.conn, LogId::ChangedNamespaces, 0, 4096);
        match self.patiently("the list of changed namespaces", changed).await {
            // Not every controller has it; it is read to be told again.
            Ok(_) | Err(Reason::Command { .. }) => {}
            Err(reason) => return Err(reason),
        }
        self.scan(controller, facts).await?;
        self.each_lane(Lane::look);
        Ok(())
    }

    /// Looks at every namespace of the controller.
    async fn scan(&self, controller: &Controller, facts: &ControllerFacts) -> Result<(), Reason> {
        let active = self.patiently("the namespace list", scan::active(controller)).await?;
        self.remote.drop_namespaces(|nsid| !active.contains(&nsid));
        for known in self.remote.namespaces() {
            if !active.contains(&known.nsid()) {
                let _ = known.refuse(Reason::Unfit("the controller has no such namespace"));
            }
        }
        let mut refused = Vec::new();
        for nsid in active {
            let seen =
                self.patiently("identifying a namespace", scan::namespace(controller, facts, nsid)).await;
            let taken = match seen {
                Ok(Seen { identity, limits, spans }) => {
                    let pin = Pin { nsid, identity, limits: limits.clone() };
                    self.remote.known_or(pin).seen(&identity, &limits, spans)
                }
                Err(reason @ (Reason::Hung | Reason::Timeout(_))) => return Err(reason),
                Err(reason) => match self.remote.namespace(nsid) {
                    Some(known) => known.refuse(reason),
                    None => Err(reason),
                },
            };
            if let Err(reason) = taken {
                refused.push((nsid, reason));
            }
        }
        self.complain(refused);
        self.remote.announce_namespaces();
        Ok(())
    }

    /// Says which namespaces are refused: when that changes, in one line, and not all the time.
    fn complain(&self, refused: Vec<(u32, Reason)>) {
        let mut said = self.refused.borrow_mut();
        if refused == said.0 || self.shard.now() < said.1 {
            return;
        }
        if let Some((nsid, reason)) = refused.first() {
            let (remote, more) = (&self.remote.config().name, refused.len() - 1);
            warn!(%remote, nsid, %reason, more, "namespaces refused");
        }
        let pause = u64::try_from(COMPLAINTS.as_nanos()).unwrap_or(u64::MAX);
        *said = (refused, self.shard.now().saturating_add(pause));
    }
}
