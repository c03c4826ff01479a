//! Admin commands that only PCIe has: queues in guest memory, and shadow doorbells (NVMe over PCIe Transport 1.1; Base
//! 2.1, 5.2).

use std::rc::Rc;

use nvme_proto::opcode::AdminOpcode;
use nvme_proto::{Sqe, Status};

use super::cq::Cq;
use super::doorbell::{Bell, Shadow};
use super::function::Function;
use super::sq::{PAGE, Sq};
use crate::controller::AttachError;
use crate::queue::{Outcome, Queue, QueueConfig, Ticket};

/// Slots of a queue: commands of it that are at work at one time; more wait in guest memory.
const SLOTS: u32 = 256;

/// Executes a command of this transport; `None` leaves it to the controller.
pub(crate) fn intercept(
    function: &Rc<Function>,
    queue: &Rc<Queue<Sq>>,
    ticket: Ticket,
    sqe: &Sqe,
) -> Option<Outcome> {
    // Admin commands over PCIe use PRPs (PCIe Transport 1.1, 2.1).
    if sqe.flags.psdt() != 0 {
        return Some(Status::INVALID_FIELD.dnr().into());
    }
    let done = match sqe.admin() {
        AdminOpcode::CreateIoCq => create_cq(function, sqe),
        AdminOpcode::DeleteIoCq => delete_cq(function, sqe),
        AdminOpcode::CreateIoSq => create_sq(function, queue, sqe),
        AdminOpcode::DeleteIoSq => return Some(delete_sq(function, ticket, sqe)),
        AdminOpcode::DoorbellBufferConfig => doorbell_buffers(function, sqe),
        _ => return None,
    };
    Some(done.err().unwrap_or_default().into())
}

struct Create {
    qid: u16,
    entries: u32,
    base: u64,
    /// CDW11 31:16: the interrupt vector of a CQ, the CQ of an SQ.
    other: u16,
}

fn low(word: u32) -> u16 {
    (word & 0xffff) as u16
}

/// What Create I/O Submission Queue and Create I/O Completion Queue have in common; QIDs go to `most`.
fn create(function: &Function, sqe: &Sqe, entry: u64, most: u16) -> Result<Create, Status> {
    let (qid, size_z) = (low(sqe.cdw10), sqe.cdw10 >> 16);
    if qid == 0 || qid > most {
        return Err(Status::INVALID_QUEUE_IDENTIFIER.dnr());
    }
    if size_z == 0 || size_z + 1 > u32::from(function.controller().config().max_queue_entries) {
        return Err(Status::INVALID_QUEUE_SIZE.dnr());
    }
    // PC: CAP.CQR asks for contiguous queues.
    if sqe.cdw11 & 1 == 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let base = sqe.prp().prp1;
    if !base.is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET_INVALID.dnr());
    }
    let entries = size_z + 1;
    if !function.has_memory(base, u64::from(entries) * entry) {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(Create { qid, entries, base, other: low(sqe.cdw11 >> 16) })
}

fn create_cq(function: &Rc<Function>, sqe: &Sqe) -> Result<(), Status> {
    let new = create(function, sqe, 16, function.controller().shared().completion_queues())?;
    if function.cq(new.qid).is_some() {
        return Err(Status::INVALID_QUEUE_IDENTIFIER.dnr());
    }
    let interrupts = sqe.cdw11 & 2 != 0;
    if interrupts && usize::from(new.other) >= function.interrupts.vectors() {
        return Err(Status::INVALID_INTERRUPT_VECTOR.dnr());
    }
    function.begin_bell(Bell::Head(new.qid));
    let vector = interrupts.then_some(new.other);
    function.add_cq(Rc::new(Cq::new(new.qid, new.base, new.entries, vector)));
    Ok(())
}

fn delete_cq(function: &Function, sqe: &Sqe) -> Result<(), Status> {
    let qid = low(sqe.cdw10);
    let cq = function.cq(qid).filter(|_| qid != 0).ok_or(Status::INVALID_QUEUE_IDENTIFIER.dnr())?;
    if function.is_used(&cq) {
        return Err(Status::INVALID_QUEUE_DELETION.dnr());
    }
    function.remove_cq(qid);
    Ok(())
}

fn create_sq(function: &Rc<Function>, admin: &Rc<Queue<Sq>>, sqe: &Sqe) -> Result<(), Status> {
    let shared = function.controller().shared();
    let new = create(function, sqe, 64, shared.io_queues())?;
    if new.other == 0 || new.other > shared.completion_queues() {
        return Err(Status::INVALID_QUEUE_IDENTIFIER.dnr());
    }
    let cq = function.cq(new.other).ok_or(Status::COMPLETION_QUEUE_INVALID.dnr())?;
    if function.queue(new.qid).is_some() {
        return Err(Status::INVALID_QUEUE_IDENTIFIER.dnr());
    }
    function.begin_bell(Bell::Tail(new.qid));
    let sq = Sq::new(function, new.qid, new.base, new.entries, cq);
    attach(function, admin.local(), sq, new.entries).map_err(|e| match e {
        AttachError::NotEnabled => Status::COMMAND_SEQUENCE_ERROR,
        AttachError::QidRange | AttachError::QidInUse => Status::INVALID_QUEUE_IDENTIFIER.dnr(),
    })
}

/// Makes a submission queue one of its controller's.
pub(crate) fn attach(
    function: &Rc<Function>,
    local: &Rc<crate::subsystem::Local>,
    sq: Sq,
    entries: u32,
) -> Result<(), AttachError> {
    let controller = function.controller();
    let config = QueueConfig { qid: sq.qid(), depth: entries.min(SLOTS) as u16 };
    let owner = (config.qid == 0).then(|| controller.clone());
    let queue = Queue::attach(config, local, controller.shared(), owner, sq)?;
    function.add_queue(queue);
    Ok(())
}

fn delete_sq(function: &Rc<Function>, ticket: Ticket, sqe: &Sqe) -> Outcome {
    let qid = low(sqe.cdw10);
    let Some(queue) = function.queue(qid).filter(|q| qid != 0 && !q.is_closing()) else {
        return Status::INVALID_QUEUE_IDENTIFIER.dnr().into();
    };
    queue.close();
    match function.await_deletion(&queue, ticket) {
        true => Outcome::Later,
        false => Status::SUCCESS.into(),
    }
}

fn doorbell_buffers(function: &Rc<Function>, sqe: &Sqe) -> Result<(), Status> {
    let prp = sqe.prp();
    // They are read and written one word at a time, which is nothing for messages.
    let mapped = |gpa: u64| function.memory.borrow().load_u32(gpa).is_ok();
    let wrong = |gpa: u64| !gpa.is_multiple_of(PAGE) || !function.has_memory(gpa, PAGE) || !mapped(gpa);
    if wrong(prp.prp1) || wrong(prp.prp2) || prp.prp1 == prp.prp2 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    function.set_shadow(Shadow { doorbells: prp.prp1, events: prp.prp2 });
    Ok(())
}
