//! The slow way: data that goes through a buffer of ours, since its guest memory is reached by messages only or since
//! some of it goes to a bit bucket, and queues in such memory. One message at a time for each command.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use engine::mem::{Buf, MemError, Sgl};
use nvme_proto::zerocopy::{FromBytes, IntoBytes};
use nvme_proto::{Cqe, Sqe, Status};

use super::cq::Cq;
use super::function::Function;
use super::runs::{Run, Runs, Step, Walk};
use super::sq::{DataWalk, Sq};
use crate::queue::{Completion, Direction, Queue, Reply, Ticket};

/// Bytes that the commands of one function may have in buffers at one time.
const BUDGET: usize = 16 << 20;
/// Bytes that one message moves.
const PIECE: usize = 32 << 10;

/// A future that ends on this shard.
pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T>>>;

/// Guest memory by messages.
pub(crate) trait Messages {
    /// Reads at most `len` bytes; `None` if the client refuses, or is gone.
    fn read(self: Rc<Self>, gpa: u64, len: usize) -> Later<Option<Vec<u8>>>;

    /// Learns what must be known of the client before it is asked for anything: nothing but the first time.
    fn meet(self: Rc<Self>, gpa: u64) -> Later<()>;

    /// Writes the first of these bytes; how many, none if the client refuses, or is gone.
    fn write(self: Rc<Self>, gpa: u64, bytes: &[u8]) -> Later<usize>;

    /// Whether anything may be asked; what is asked meanwhile is refused.
    fn allow(&self, allowed: bool);
}

/// Where a command's data will go from its buffer; known when the data is there.
pub(crate) type Staged = Rc<RefCell<Runs>>;

const FAILED: Status = Status::DATA_TRANSFER_ERROR;

/// Memory that is not there: not for now, while the function may use none.
fn unreachable(function: &Function) -> Status {
    if function.is_bus_master() { FAILED.dnr() } else { FAILED }
}

/// Finds the rest of a command's runs, fetches its data if it comes from the host, and then answers
/// [`Queue::data`].
pub(crate) fn begin(
    function: &Rc<Function>,
    qid: u16,
    ticket: Ticket,
    direction: Direction,
    len: usize,
    walk: DataWalk,
    runs: Runs,
) -> Staged {
    let staged = Staged::default();
    // This queue and no later one of its QID, whose tickets would be the same.
    let queue = function.queue(qid).map(|queue| Rc::downgrade(&queue)).unwrap_or_default();
    let (function, to) = (function.clone(), staged.clone());
    let shard = function.shard.clone();
    let gather = async move {
        let waits = || queue.upgrade().is_some_and(|queue| !queue.is_closing());
        while function.staged.get() + len > BUDGET && waits() {
            function.shard.sleep(Duration::from_millis(1)).await;
        }
        let hold = Hold::new(&function, len);
        let result = gather(&function, direction, len, walk, runs, &to).await;
        if let Some(queue) = queue.upgrade() {
            queue.data(ticket, result);
        }
        drop(hold);
    };
    shard.spawn(gather).detach();
    staged
}

/// A share of the budget, until the data has been handed on.
struct Hold {
    function: Rc<Function>,
    len: usize,
}

impl Hold {
    fn new(function: &Rc<Function>, len: usize) -> Self {
        function.staged.set(function.staged.get() + len);
        Hold { function: function.clone(), len }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.function.staged.set(self.function.staged.get() - self.len);
    }
}

async fn gather(
    function: &Rc<Function>,
    direction: Direction,
    len: usize,
    mut walk: DataWalk,
    mut runs: Runs,
    to: &Staged,
) -> Result<Sgl, Status> {
    loop {
        let step = walk.advance(&function.memory.borrow(), &mut runs)?;
        let Step::Need { gpa, len } = step else { break };
        let mut bytes = vec![0; len];
        read(function, gpa, &mut bytes).await?;
        walk.take(&bytes, &mut runs)?;
    }
    let data = Buf::zeroed(len).into_sgl(len);
    match direction {
        Direction::ToHost => {
            to.replace(runs);
        }
        Direction::FromHost => {
            let mut at = 0;
            let mut piece = Vec::new();
            for (gpa, len) in pieces(runs.as_slice()) {
                if let Some(gpa) = gpa {
                    piece.resize(len, 0);
                    read(function, gpa, &mut piece).await?;
                    data.copy_in(at, &piece);
                }
                at += len;
            }
        }
    }
    Ok(data)
}

/// Runs cut into what one message moves.
fn pieces(runs: &[Run]) -> impl Iterator<Item = (Option<u64>, usize)> + '_ {
    runs.iter().flat_map(|run| {
        let starts = (0..run.len).step_by(PIECE);
        starts.map(|at| (run.gpa.map(|gpa| gpa + at as u64), PIECE.min(run.len - at)))
    })
}

/// Brings a read's data to the guest and then completes its command.
pub(crate) fn deliver(
    function: &Rc<Function>,
    queue: Rc<Queue<Sq>>,
    to: Staged,
    mut completion: Completion,
    data: Sgl,
    reserved: bool,
) {
    let function = function.clone();
    let shard = function.shard.clone();
    let deliver = async move {
        let out = Out::of(&queue);
        let hold = Hold::new(&function, data.len());
        if let Err(status) = scatter(&function, &queue, &data, &to.take()).await {
            completion.reply = Reply::from(status);
        }
        drop(hold);
        // A queue that closes has no host any more that would expect it, but its completion queue may have others.
        match queue.is_closing() {
            false => queue.transport().post(&completion, reserved),
            true if reserved => queue.transport().cq().release(),
            true => {}
        }
        drop(out);
    };
    shard.spawn(deliver).detach();
}

async fn scatter(function: &Rc<Function>, queue: &Queue<Sq>, data: &Sgl, runs: &Runs) -> Result<(), Status> {
    let mut at = 0;
    let mut piece = Vec::new();
    for (gpa, len) in pieces(runs.as_slice()) {
        if let Some(gpa) = gpa {
            piece.resize(len, 0);
            data.copy_out(at, &mut piece);
            write(function, gpa, &piece, || !queue.is_closing()).await?;
        }
        at += len;
    }
    Ok(())
}

/// While it lives, something of a command that has ended is still on its way to the host by message, or waits to
/// be: its queue's deletion is answered later.
pub(crate) struct Out(Rc<Queue<Sq>>);

impl Out {
    pub fn of(queue: &Rc<Queue<Sq>>) -> Self {
        let out = &queue.transport().out;
        out.set(out.get() + 1);
        Out(queue.clone())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        let sq = self.0.transport();
        sq.out.set(sq.out.get() - 1);
        sq.function().settle_deletion(&self.0);
    }
}

/// A completion that has its place in a queue that is reached by messages only.
struct Entry {
    cq: Rc<Cq>,
    gpa: u64,
    cqe: Cqe,
    out: Option<Out>,
}

/// A completion that has no place yet, and whether one is reserved for it.
struct Held {
    cq: Rc<Cq>,
    cqe: Cqe,
    reserved: bool,
    out: Option<Out>,
}

/// Completions on their way to such queues, in their order.
#[derive(Default)]
pub(crate) struct Late {
    /// Those that have no place in their queue yet, and whether one is reserved: the function is no bus master.
    held: RefCell<Vec<Held>>,
    waiting: RefCell<VecDeque<Entry>>,
    busy: Cell<bool>,
}

impl Late {
    /// Forgets what is not on its way yet.
    pub fn clear(&self) {
        drop(self.held.take());
        drop(self.waiting.take());
    }

    /// Keeps a completion until the function may write again.
    pub fn hold(&self, function: &Rc<Function>, cq: &Rc<Cq>, cqe: Cqe, reserved: bool) {
        let out = function.queue(cqe.sqid).map(|queue| Out::of(&queue));
        self.held.borrow_mut().push(Held { cq: cq.clone(), cqe, reserved, out });
    }

    /// Brings an entry to its place.
    pub fn post(&self, function: &Rc<Function>, cq: &Rc<Cq>, gpa: u64, cqe: Cqe, out: Option<Out>) {
        let out = out.or_else(|| function.queue(cqe.sqid).map(|queue| Out::of(&queue)));
        self.waiting.borrow_mut().push_back(Entry { cq: cq.clone(), gpa, cqe, out });
        self.go_on(function);
    }

    /// The function may be a bus master again: what waited for that goes on.
    pub fn go_on(&self, function: &Rc<Function>) {
        if !function.may_post() {
            return;
        }
        for Held { cq, cqe, reserved, out } in self.held.take() {
            function.post(&cq, cqe, reserved, out);
        }
        if self.waiting.borrow().is_empty() || self.busy.replace(true) {
            return;
        }
        let function = function.clone();
        let shard = function.shard.clone();
        let post = async move {
            let late = function.late();
            while function.may_post() {
                let Some(Entry { cq, gpa, cqe, out }) = late.waiting.borrow_mut().pop_front() else { break };
                // An entry that its host refuses is lost to it, and to it alone; one of a queue that is gone is nobody's.
                let is_there = || function.cq(cq.qid).is_some_and(|now| Rc::ptr_eq(&now, &cq));
                let wanted = || is_there() && function.may_post();
                match write(&function, gpa, cqe.as_bytes(), wanted).await {
                    Ok(()) => function.arrived(&cq),
                    // It has its place, and waits as those behind it do.
                    Err(_) if !function.is_bus_master() => {
                        late.waiting.borrow_mut().push_front(Entry { cq, gpa, cqe, out });
                        break;
                    }
                    Err(_) => {}
                }
            }
            late.busy.set(false);
        };
        shard.spawn(post).detach();
    }
}

/// Fetches commands of a queue that is reached by messages only: `count` of them at `gpa`.
pub(crate) fn fetch(queue: &Rc<Queue<Sq>>, function: &Rc<Function>, gpa: u64, count: usize) {
    let (queue, function) = (queue.clone(), function.clone());
    let shard = function.shard.clone();
    let fetch = async move {
        let mut bytes = vec![0; count * size_of::<Sqe>()];
        let got = read(&function, gpa, &mut bytes).await;
        let sqes = got.ok().and_then(|()| <[Sqe]>::ref_from_bytes(&bytes).ok().map(<[Sqe]>::to_vec));
        queue.transport().fetched(&queue, sqes.unwrap_or_default());
    };
    shard.spawn(fetch).detach();
}

/// Reads guest memory of either kind.
pub(crate) async fn read(function: &Rc<Function>, gpa: u64, to: &mut [u8]) -> Result<(), Status> {
    let mut done = 0;
    while done < to.len() {
        let at = gpa.checked_add(done as u64).ok_or(FAILED.dnr())?;
        let got = function.memory.borrow().read(at, &mut to[done..]);
        match got {
            Ok(()) => return Ok(()),
            Err(MemError::ByMessage { gpa, len }) => {
                done += (gpa - at) as usize;
                let ask = function.messages().map(|m| m.read(gpa, len.min(PIECE))).ok_or(FAILED)?;
                let bytes =
                    ask.await.filter(|b| !b.is_empty() && b.len() <= to.len() - done).ok_or(FAILED)?;
                to[done..done + bytes.len()].copy_from_slice(&bytes);
                done += bytes.len();
            }
            Err(_) => return Err(unreachable(function)),
        }
    }
    Ok(())
}

/// A write of guest memory that its client has not answered: a reset is complete after it.
struct Sent<'a>(&'a Function);

impl<'a> Sent<'a> {
    fn new(function: &'a Function) -> Self {
        function.writes.set(function.writes.get() + 1);
        Sent(function)
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let left = self.0.writes.get() - 1;
        self.0.writes.set(left);
        if let Some(admin) = self.0.queue(0).filter(|_| left == 0) {
            admin.check_closed();
        }
    }
}

/// Writes guest memory of either kind, as long as it is `wanted`.
async fn write(
    function: &Rc<Function>,
    gpa: u64,
    from: &[u8],
    wanted: impl Fn() -> bool,
) -> Result<(), Status> {
    let mut done = 0;
    while done < from.len() {
        if !wanted() {
            return Err(Status::ABORTED_SQ_DELETION);
        }
        let at = gpa.checked_add(done as u64).ok_or(FAILED.dnr())?;
        let put = function.memory.borrow().write(at, &from[done..]);
        match put {
            Ok(()) => return Ok(()),
            Err(MemError::ByMessage { gpa, len }) => {
                done += (gpa - at) as usize;
                let n = len.min(PIECE).min(from.len() - done);
                let messages = function.messages().ok_or(FAILED)?;
                messages.clone().meet(gpa).await;
                if !wanted() {
                    return Err(Status::ABORTED_SQ_DELETION);
                }
                let _sent = Sent::new(function);
                match messages.write(gpa, &from[done..done + n]).await {
                    0 => return Err(FAILED),
                    n => done += n,
                }
            }
            Err(_) => return Err(unreachable(function)),
        }
    }
    Ok(())
}
