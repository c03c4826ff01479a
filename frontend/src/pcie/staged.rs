//! Data that goes through a buffer of ours: guest memory that is reached by messages only, and bit buckets. The slow
//! way, one message at a time for each command.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use engine::mem::{Buf, MemError, Sgl};
use nvme_proto::Status;

use super::function::Function;
use super::runs::{Run, Runs, Step, Walk};
use super::sq::{DataWalk, Sq};
use crate::queue::{Completion, Direction, Queue, Reply, Ticket};

/// Bytes that the commands of one function may have in buffers at one time.
const BUDGET: usize = 16 << 20;
/// Bytes that one message moves.
const PIECE: usize = 64 << 10;

/// A future that ends on this shard.
pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T>>>;

/// Guest memory by messages.
pub(crate) trait Messages {
    /// Reads at most `len` bytes; `None` if the client refuses, or is gone.
    fn read(&self, gpa: u64, len: usize) -> Later<Option<Vec<u8>>>;

    /// Writes the first of these bytes; how many, none if the client refuses, or is gone.
    fn write(&self, gpa: u64, bytes: &[u8]) -> Later<usize>;
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
    let (function, to) = (function.clone(), staged.clone());
    let shard = function.shard.clone();
    let gather = async move {
        while function.staged.get() + len > BUDGET && function.queue(qid).is_some() {
            function.shard.sleep(Duration::from_millis(1)).await;
        }
        let hold = Hold::new(&function, len);
        let result = gather(&function, direction, len, walk, runs, &to).await;
        if let Some(queue) = function.queue(qid) {
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
    queue: Option<Rc<Queue<Sq>>>,
    to: Staged,
    mut completion: Completion,
    reserved: bool,
) {
    let Some(queue) = queue else { return };
    let function = function.clone();
    let shard = function.shard.clone();
    let deliver = async move {
        let data = std::mem::take(&mut completion.data);
        let hold = Hold::new(&function, data.len());
        if let Err(status) = scatter(&function, &data, &to.take()).await {
            completion.reply = Reply::from(status);
        }
        drop(hold);
        queue.transport().post(&completion, reserved);
    };
    shard.spawn(deliver).detach();
}

async fn scatter(function: &Rc<Function>, data: &Sgl, runs: &Runs) -> Result<(), Status> {
    let mut at = 0;
    let mut piece = Vec::new();
    for (gpa, len) in pieces(runs.as_slice()) {
        if let Some(gpa) = gpa {
            piece.resize(len, 0);
            data.copy_out(at, &mut piece);
            write(function, gpa, &piece).await?;
        }
        at += len;
    }
    Ok(())
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

/// Writes guest memory of either kind.
pub(crate) async fn write(function: &Rc<Function>, gpa: u64, from: &[u8]) -> Result<(), Status> {
    let mut done = 0;
    while done < from.len() {
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
