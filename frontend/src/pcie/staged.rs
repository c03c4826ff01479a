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

    /// Writes the first of these bytes; how many, none if the client refuses, or is gone.
    fn write(self: Rc<Self>, gpa: u64, bytes: &[u8]) -> Later<usize>;
}

/// Where a command's data will go from its buffer; known when the data is there.
pub(crate) type Staged = Rc<RefCell<Runs>>;

const FAILED: Status = Status::DATA_TRANSFER_ERROR;

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
    let data = Buf::zeroed(len).sgl(0, len);
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
        // The queue has ended when nothing of it is out.
        let linger = queue.linger();
        let hold = Hold::new(&function, data.len());
        if let Err(status) = scatter(&function, &queue, &data, &to.take()).await {
            completion.reply = Reply::from(status);
        }
        drop((hold, linger));
        // A queue that closes has no host any more that would expect it, but its completion queue may have others.
        match queue.is_closing() {
            false => queue.transport().post(&completion, reserved),
            true if reserved => queue.transport().cq().release(),
            true => {}
        }
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

/// Completions on their way to queues that are reached by messages only, in their order.
#[derive(Default)]
pub(crate) struct Late {
    /// Those that have no place in their queue yet, and whether one is reserved: the function is no bus master.
    held: RefCell<Vec<(Rc<Cq>, Cqe, bool)>>,
    waiting: RefCell<VecDeque<(Rc<Cq>, u64, Cqe)>>,
    busy: Cell<bool>,
    /// The queue whose entry is out in a message.
    out: RefCell<Option<Rc<Cq>>>,
    /// The Delete I/O Completion Queue command that waits for that.
    deleting: Cell<Option<Ticket>>,
}

impl Late {
    /// Forgets what is not on its way yet.
    pub fn clear(&self) {
        self.held.borrow_mut().clear();
        self.waiting.borrow_mut().clear();
        self.deleting.set(None);
    }

    /// Keeps a completion until the function may write again.
    pub fn hold(&self, cq: &Rc<Cq>, cqe: Cqe, reserved: bool) {
        self.held.borrow_mut().push((cq.clone(), cqe, reserved));
    }

    /// Whether the deletion of a queue has to wait for an entry that is out. Its command is answered then.
    pub fn awaits(&self, cq: &Rc<Cq>, ticket: Ticket) -> bool {
        let is_out = self.out.borrow().as_ref().is_some_and(|out| Rc::ptr_eq(out, cq));
        if is_out {
            self.deleting.set(Some(ticket));
        }
        is_out
    }

    /// Brings an entry to its place.
    pub fn post(&self, function: &Rc<Function>, cq: &Rc<Cq>, gpa: u64, cqe: Cqe) {
        self.waiting.borrow_mut().push_back((cq.clone(), gpa, cqe));
        self.go_on(function);
    }

    /// The function may be a bus master again: what waited for that goes on.
    pub fn go_on(&self, function: &Rc<Function>) {
        if !function.is_bus_master() {
            return;
        }
        for (cq, cqe, reserved) in self.held.take() {
            function.post(&cq, cqe, reserved);
        }
        if self.waiting.borrow().is_empty() || self.busy.replace(true) {
            return;
        }
        let function = function.clone();
        let shard = function.shard.clone();
        let post = async move {
            let late = function.late();
            while function.is_bus_master() {
                let Some((cq, gpa, cqe)) = late.waiting.borrow_mut().pop_front() else { break };
                // A reset is complete when nothing of it is out.
                let linger = function.queue(0).map(|admin| admin.linger());
                late.out.replace(Some(cq.clone()));
                // An entry that its host refuses is lost to it, and to it alone; one of a queue that is gone is nobody's.
                let is_there = || function.cq(cq.qid).is_some_and(|now| Rc::ptr_eq(&now, &cq));
                if write(&function, gpa, cqe.as_bytes(), is_there).await.is_ok() {
                    function.arrived(&cq);
                }
                late.out.replace(None);
                drop(linger);
                if let (Some(ticket), Some(admin)) = (late.deleting.take(), function.queue(0)) {
                    admin.finish(ticket, Reply::default());
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
            Err(_) => return Err(FAILED.dnr()),
        }
    }
    Ok(())
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
                let ask = function.messages().map(|m| m.write(gpa, &from[done..done + n])).ok_or(FAILED)?;
                match ask.await {
                    0 => return Err(FAILED),
                    n => done += n,
                }
            }
            Err(_) => return Err(FAILED.dnr()),
        }
    }
    Ok(())
}
