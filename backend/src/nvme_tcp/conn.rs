//! A connection: moves a queue's bytes. One receive and one send are out at a time; what a turn of the shard adds
//! goes as one vectored send at its end.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};

use engine::mem::{Buf, Sgl};
use engine::ring::{Completion, Fd, OpId, RingClient, RingOp};
use engine::{Channel, Io, IoError, Scope, Shard};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use nvme_proto::Sqe;

use super::batch::Batch;
use super::dial::terminate;
use super::issued::Issued;
use super::lane::Lane;
use super::promise::Promise;
use super::queue::{Answer, Owner, Place, Queue, Taken, Way};
use super::reason::Reason;

/// Bytes received at once, when they are to be copied: what a turn cannot receive waits for another. Measured: 64 KiB, of 15
/// reads, are a tenth slower at depth 32 and more.
const RECEIVE: usize = 256 << 10;
/// A batch of fewer commands waits for more, up to [`PATIENCE`] turns, while others are out: on a busy shard commands are in
/// several stages of their way at a time, and each stage would make a send and a receive of every turn. One that would
/// wait alone goes at once, and turns without work are short.
const GATHER: usize = 8;
const PATIENCE: u8 = 2;

const ECANCELED: i32 = Errno::ECANCELED as i32;
const EINTR: i32 = Errno::EINTR as i32;

const RX: u64 = 0;
const TX: u64 = 1;

/// A connection after ICResp.
pub(super) struct Conn {
    shard: Shard,
    fd: Fd,
    me: Weak<Conn>,
    /// Whose I/O it carries; none for an admin queue.
    lane: Weak<Lane>,
    /// The shard will kick it at the end of the turn.
    dirty: Cell<bool>,
    /// Kept once the connection is gone and the kernel has nothing of it any more.
    pub closed: Rc<Promise<Reason>>,
    inner: RefCell<Inner>,
}

struct Inner {
    queue: Queue,
    rx: Buf,
    rx_op: Option<OpId>,
    /// The command whose memory is being received into.
    rx_to: Option<u16>,
    tx: Batch,
    tx_op: Option<OpId>,
    /// Turns that the batch has waited.
    waited: u8,
    /// Commands that are taken back as soon as the kernel has none of their memory.
    taking: Vec<u16>,
    closing: Option<Reason>,
}

impl Inner {
    fn place(&self) -> Option<Place> {
        if self.closing.is_none() { self.queue.place() } else { None }
    }

    /// Whether the batch waits another turn for more.
    fn gathers(&mut self) -> bool {
        let waits =
            self.waited < PATIENCE && (1..GATHER).contains(&self.queue.outbox.len()) && self.queue.has_sent();
        self.waited = if waits { self.waited + 1 } else { 0 };
        waits
    }
}

/// What happened, told once nothing is borrowed.
#[derive(Default)]
struct News {
    aborted: Vec<Issued>,
    lost: Option<(Reason, Vec<Owner>)>,
}

impl Conn {
    /// Starts a queue on a connection.
    pub fn start(shard: &Shard, fd: Fd, queue: Queue, lane: Weak<Lane>) -> Rc<Self> {
        let conn = Rc::new_cyclic(|me| Conn {
            shard: shard.clone(),
            fd,
            me: me.clone(),
            lane,
            dirty: Cell::new(false),
            closed: Promise::new(),
            inner: RefCell::new(Inner {
                queue,
                rx: Buf::new(RECEIVE),
                rx_op: None,
                rx_to: None,
                tx: Batch::new(),
                tx_op: None,
                waited: 0,
                taking: Vec::new(),
                closing: None,
            }),
        });
        conn.receive(&mut conn.inner.borrow_mut());
        conn
    }

    /// Sends a command for a control sequence and waits for its answer.
    pub async fn run(&self, sqe: Sqe, way: Way, memory: Sgl) -> Result<Answer, Reason> {
        let promise = Promise::new();
        {
            let mut inner = self.inner.borrow_mut();
            let place = inner.place().ok_or(Reason::Hung)?;
            inner.queue.submit(place, sqe, way, Owner::Task(promise.clone(), memory));
        }
        self.mark();
        promise.wait().await.ok_or(Reason::Hung)
    }

    /// Whether a command can be issued.
    pub fn has_room(&self) -> bool {
        self.inner.borrow().place().is_some()
    }

    /// Sends an I/O's command with this turn's batch; gives the I/O back when there is no room.
    pub fn issue(&self, sqe: Sqe, way: Way, issued: Issued) -> Result<(), Issued> {
        {
            let mut inner = self.inner.borrow_mut();
            let Some(place) = inner.place() else { return Err(issued) };
            inner.queue.submit(place, sqe, way, Owner::Io(issued));
        }
        self.mark();
        Ok(())
    }

    /// Takes back the I/Os that `pick` chooses: those that are free at once are returned, the others are given to the
    /// lane when the kernel has let go of them.
    pub fn take_back(&self, pick: impl Fn(&Issued) -> bool) -> Vec<Issued> {
        let mut inner = self.inner.borrow_mut();
        let Inner { queue, rx_op, rx_to, tx_op, taking, .. } = &mut *inner;
        let mut back = Vec::new();
        for cid in queue.find(|owner| matches!(owner, Owner::Io(issued) if pick(issued))) {
            if taking.contains(&cid) {
                continue;
            }
            if *rx_to == Some(cid) {
                taking.push(cid);
                rx_op.iter().for_each(|op| self.shard.ring().cancel(*op));
                continue;
            }
            match queue.take_back(cid) {
                Some(Taken::Back(Owner::Io(issued))) => back.push(issued),
                Some(Taken::Lent) => {
                    taking.push(cid);
                    tx_op.iter().for_each(|op| self.shard.ring().cancel(*op));
                }
                _ => {}
            }
        }
        back
    }

    /// Ends the connection. Its commands come back once the kernel has let go of their memory.
    pub fn fail(&self, reason: Reason) {
        let mut inner = self.inner.borrow_mut();
        self.close(&mut inner, reason);
    }

    fn close(&self, inner: &mut Inner, reason: Reason) {
        if inner.closing.is_none() {
            inner.closing = Some(reason);
            let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
            for op in inner.rx_op.iter().chain(&inner.tx_op) {
                self.shard.ring().cancel(*op);
            }
        }
    }

    fn mark(&self) {
        if let Some(me) = self.me.upgrade()
            && !self.dirty.replace(true)
        {
            self.shard.dirty(me);
        }
    }

    fn receive(self: &Rc<Self>, inner: &mut Inner) {
        if inner.closing.is_some() || inner.rx_op.is_some() {
            return;
        }
        let sgl = match inner.queue.direct() {
            Some((cid, sgl)) => {
                inner.rx_to = Some(cid);
                sgl
            }
            None => inner.rx.sgl(0, inner.queue.window(RECEIVE)),
        };
        let op = RingOp::Receive { fd: self.fd.clone(), sgl, skip: 0 };
        inner.rx_op = Some(self.shard.ring().start(op, self.clone(), RX));
    }

    fn send(self: &Rc<Self>, inner: &mut Inner) {
        if inner.closing.is_some() || inner.tx_op.is_some() {
            return;
        }
        let Inner { tx, queue, .. } = inner;
        if tx.is_sent() {
            tx.fill(queue);
        }
        if !tx.is_sent() {
            let sgls = std::mem::take(&mut tx.sgls);
            let op = RingOp::Send { fd: self.fd.clone(), sgls, skip: tx.skip, now: false };
            inner.tx_op = Some(self.shard.ring().start(op, self.clone(), TX));
        }
    }

    fn received(&self, inner: &mut Inner, completion: Completion) {
        inner.rx_op = None;
        let direct = inner.rx_to.take();
        if inner.closing.is_some() {
            return;
        }
        let n = match ended(completion.result) {
            Ok(None) => return,
            Ok(Some(0)) => return self.close(inner, Reason::Hung),
            Ok(Some(n)) => n as usize,
            Err(e) => return self.close(inner, Reason::socket("receive", &e)),
        };
        let RingOp::Receive { sgl, .. } = completion.op else { return };
        let result = if direct.is_some() {
            inner.queue.received(&sgl, n)
        } else {
            drop(sgl);
            let Inner { queue, rx, .. } = inner;
            rx.get_mut().map_or(Ok(()), |bytes| queue.receive(&bytes[..n]))
        };
        if let Err(violation) = result {
            if inner.tx_op.is_none() && inner.tx.is_sent() && violation.fes.0 != 0 {
                terminate(&self.fd, &violation);
            }
            self.close(inner, Reason::Violation(violation.what));
        }
    }

    fn sent(&self, inner: &mut Inner, completion: Completion) {
        inner.tx_op = None;
        let RingOp::Send { sgls, .. } = completion.op else { return };
        let Inner { tx, queue, .. } = inner;
        tx.sgls = sgls;
        match ended(completion.result) {
            Ok(n) => tx.sent(n.unwrap_or(0) as usize, queue),
            Err(e) => self.close(inner, Reason::socket("send", &e)),
        }
    }

    /// Takes back what waited for the kernel.
    fn settle(&self, inner: &mut Inner) -> Vec<Issued> {
        let mut back = Vec::new();
        let Inner { queue, tx, tx_op, taking, rx_to, .. } = inner;
        taking.retain(|&cid| {
            if *rx_to == Some(cid) {
                return true;
            }
            if tx_op.is_none() {
                tx.stage(cid, queue);
            }
            match queue.take_back(cid) {
                Some(Taken::Lent) => return true,
                Some(Taken::Back(Owner::Io(issued))) => back.push(issued),
                _ => {}
            }
            false
        });
        back
    }

    fn news(&self, inner: &mut Inner) -> News {
        let aborted = self.settle(inner);
        let gone = inner.rx_op.is_none() && inner.tx_op.is_none();
        let lost = inner.closing.clone().filter(|_| gone).map(|reason| {
            inner.tx.forget();
            (reason, inner.queue.drain())
        });
        News { aborted, lost }
    }

    /// Tells owners what happened.
    fn tell(&self, news: News) {
        let lane = self.lane.upgrade();
        let mut ended = std::mem::take(&mut self.inner.borrow_mut().queue.ended);
        for (owner, answer) in ended.drain(..) {
            match (owner, &lane) {
                (Owner::Task(promise, _), _) => promise.set(Some(answer)),
                (Owner::Io(issued), Some(lane)) => lane.answered(issued, answer),
                (Owner::Nobody(ghost), Some(lane)) => lane.ghost_gone(&ghost),
                _ => {}
            }
        }
        self.inner.borrow_mut().queue.ended = ended;
        for issued in news.aborted {
            issued.io.complete(Err(IoError::Aborted));
        }
        if let Some((reason, owners)) = news.lost {
            let mut ios = Vec::new();
            for owner in owners {
                match (owner, &lane) {
                    (Owner::Task(promise, _), _) => promise.set(None),
                    (Owner::Io(issued), _) => ios.push(issued),
                    (Owner::Nobody(ghost), Some(lane)) => lane.ghost_lost(ghost),
                    (Owner::Nobody(_), None) => {}
                }
            }
            if let Some(lane) = &lane {
                lane.lost(ios);
            }
            self.closed.set(reason);
        } else if let Some(lane) = lane {
            lane.pump();
        }
    }
}

/// A result of the kernel: bytes, or none when the operation was taken back or interrupted.
fn ended(result: io::Result<u32>) -> io::Result<Option<u32>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.raw_os_error().is_some_and(|n| n == ECANCELED || n == EINTR) => Ok(None),
        Err(e) => Err(e),
    }
}

impl RingClient for Conn {
    fn done(self: Rc<Self>, completion: Completion, cookie: u64) {
        let news = {
            let mut inner = self.inner.borrow_mut();
            if cookie == RX {
                self.received(&mut inner, completion);
            } else {
                self.sent(&mut inner, completion);
            }
            let news = self.news(&mut inner);
            self.receive(&mut inner);
            if !inner.tx.is_sent() {
                self.send(&mut inner);
            }
            news
        };
        self.tell(news);
        let waiting = !self.inner.borrow().queue.outbox.is_empty();
        if waiting {
            self.mark();
        }
    }
}

/// For the shard alone: the end of its turn is when a batch goes out.
impl Channel for Conn {
    fn submit(self: Rc<Self>, io: Io) {
        io.complete(Err(IoError::Unsupported));
    }

    fn revoke(&self, _scope: Scope) {}

    fn kick(self: Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        if inner.gathers() {
            drop(inner);
            let shard = self.shard.clone();
            return shard.dirty_next_turn(self);
        }
        self.dirty.set(false);
        self.send(&mut inner);
    }
}
