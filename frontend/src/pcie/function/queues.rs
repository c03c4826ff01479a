//! The function's queues: which there are, what is fetched from them, and what tells the host of completions.

use std::rc::Rc;
use std::time::Duration;

use engine::mem::MemError;
use engine::{Poller, TurnEnd, Wake};
use nvme_proto::Cqe;
use nvme_proto::aen::ErrorInfo;

use super::Function;
use crate::pcie::cq::{Cq, Posted};
use crate::pcie::doorbell::{Bell, Shadow};
use crate::pcie::sq::Sq;
use crate::pcie::staged::{Late, Out};
use crate::queue::{Queue, Reply, Ticket};

/// Polls that find nothing after which a shard that does not sleep looks at what it else looks at before it sleeps.
const VAIN: u32 = 4096;

/// How long the deletion of a queue, or a reset, waits for what is out.
const PATIENCE: Duration = Duration::from_secs(3);

impl Function {
    /// The submission queue with that QID.
    pub fn queue(&self, qid: u16) -> Option<Rc<Queue<Sq>>> {
        self.sqs.borrow().iter().find(|q| q.qid() == qid).cloned()
    }

    /// The completion queue with that QID.
    pub fn cq(&self, qid: u16) -> Option<Rc<Cq>> {
        self.cqs.borrow().get(&qid).cloned()
    }

    pub fn add_queue(&self, queue: Rc<Queue<Sq>>) {
        self.sqs.borrow_mut().push(queue);
    }

    pub fn add_cq(&self, cq: Rc<Cq>) {
        self.cqs.borrow_mut().insert(cq.qid, cq);
    }

    pub fn remove_cq(&self, qid: u16) {
        self.cqs.borrow_mut().remove(&qid);
    }

    /// Whether a submission queue completes there.
    pub fn is_used(&self, cq: &Rc<Cq>) -> bool {
        self.sqs.borrow().iter().any(|q| Rc::ptr_eq(q.transport().cq(), cq))
    }

    /// Delete I/O Submission Queue is answered when the queue has ended and nothing of its commands is out any more.
    /// Whether that is to come.
    pub fn await_deletion(self: &Rc<Self>, queue: &Rc<Queue<Sq>>, ticket: Ticket) -> bool {
        if self.has_ended_queue(queue) && queue.transport().out.get() == 0 {
            return false;
        }
        self.deleting.borrow_mut().push((queue.clone(), ticket));
        self.limit_deletion(queue);
        true
    }

    /// A client that does not take what is out of a queue is not waited for for long.
    fn limit_deletion(self: &Rc<Self>, queue: &Rc<Queue<Sq>>) {
        let waits = self.deleting.borrow().iter().any(|(q, _)| Rc::ptr_eq(q, queue));
        if !waits || !self.has_ended_queue(queue) {
            return;
        }
        let (me, queue) = (self.clone(), queue.clone());
        let give_up = async move {
            // Nothing goes out before it is a bus master.
            let mut could = false;
            while !could && !me.deleting.borrow().is_empty() {
                could = me.is_bus_master();
                me.shard.sleep(PATIENCE).await;
                could &= me.is_bus_master();
            }
            queue.transport().given_up.set(true);
            me.settle_deletion(&queue);
        };
        self.shard.spawn(give_up).detach();
    }

    fn has_ended_queue(&self, queue: &Rc<Queue<Sq>>) -> bool {
        !self.sqs.borrow().iter().any(|q| Rc::ptr_eq(q, queue))
    }

    /// A submission queue has ended.
    pub fn forget_queue(self: &Rc<Self>, queue: &Rc<Queue<Sq>>) {
        self.sqs.borrow_mut().retain(|q| !Rc::ptr_eq(q, queue));
        self.settle_deletion(queue);
        self.limit_deletion(queue);
    }

    /// Answers the deletion of a queue if it is time.
    pub fn settle_deletion(self: &Rc<Self>, queue: &Rc<Queue<Sq>>) {
        let at = self.deleting.borrow().iter().position(|(q, _)| Rc::ptr_eq(q, queue));
        let Some(at) = at.filter(|_| self.has_ended_queue(queue)) else { return };
        let sq = queue.transport();
        if sq.out.get() > 0 && !sq.given_up.get() {
            return;
        }
        let (_, ticket) = self.deleting.borrow_mut().swap_remove(at);
        if let Some(admin) = self.queue(0) {
            admin.finish(ticket, Reply::default());
        }
    }

    /// A reset begins: it waits for writes of guest memory that are out, for some time.
    pub fn await_writes(self: &Rc<Self>) {
        self.patient_until.set(self.shard.now().saturating_add(PATIENCE.as_nanos() as u64));
        if self.writes.get() == 0 {
            return;
        }
        let me = self.clone();
        let give_up = async move {
            me.shard.sleep(PATIENCE).await;
            if let Some(admin) = me.queue(0) {
                admin.check_closed();
            }
        };
        self.shard.spawn(give_up).detach();
    }

    /// Whether a reset still waits for such writes.
    pub fn awaits_writes(&self) -> bool {
        self.writes.get() > 0 && self.shard.now() < self.patient_until.get()
    }

    /// The first value of a new queue's doorbell.
    pub fn begin_bell(&self, bell: Bell) {
        self.bells.store(bell, 0);
        self.bells.adopt(&self.memory.borrow(), bell, 0);
    }

    /// Doorbell Buffer Config.
    pub fn set_shadow(self: &Rc<Self>, shadow: Shadow) {
        // What was rung before is not to be lost.
        for queue in self.sqs.borrow().iter() {
            let _ = queue.transport().look();
        }
        self.cqs.borrow().values().for_each(|cq| self.look_at_head(cq));
        self.bells.shadow.set(Some(shadow));
        let memory = self.memory.borrow();
        for queue in self.sqs.borrow().iter() {
            self.bells.adopt(&memory, Bell::Tail(queue.qid()), queue.transport().tail());
        }
        for cq in self.cqs.borrow().values() {
            self.bells.adopt(&memory, Bell::Head(cq.qid), cq.head());
        }
    }

    /// Looks at a completion queue's head doorbell.
    pub fn look_at_head(self: &Rc<Self>, cq: &Cq) {
        let looked = cq.look(&self.memory.borrow(), &self.bells);
        if looked.is_err() {
            self.error_event(ErrorInfo::InvalidDoorbellValue);
        }
    }

    /// Adds a completion to a queue; the host hears of it at the end of this turn. A reset ends commands without one:
    /// it deletes the queues, and the host has forgotten them.
    pub fn post(self: &Rc<Self>, cq: &Rc<Cq>, cqe: Cqe, reserved: bool, out: Option<Out>) {
        if self.deaf.get() || self.controller().is_resetting() {
            return;
        }
        if !self.is_bus_master() {
            return self.late.hold(self, cq, cqe, reserved);
        }
        let posted = cq.post(&self.memory.borrow(), cqe, reserved);
        self.posted(cq, posted, out);
    }

    fn posted(self: &Rc<Self>, cq: &Rc<Cq>, posted: Result<Posted, MemError>, out: Option<Out>) {
        match posted {
            Ok(Posted::There) => self.note_end(),
            Ok(Posted::Message { gpa, cqe }) => self.late.post(self, cq, gpa, cqe, out),
            Err(_) => {
                self.complain("a completion queue is not in guest memory any more");
                self.fail();
            }
        }
    }

    /// Completions on their way by message.
    pub fn late(&self) -> &Late {
        &self.late
    }

    /// An entry is in its queue: the host hears of it at the end of this turn.
    pub fn arrived(self: &Rc<Self>, cq: &Cq) {
        cq.fresh.set(cq.fresh.get().saturating_add(1));
        self.note_end();
    }

    fn note_end(self: &Rc<Self>) {
        if !self.ending.replace(true) {
            self.shard.at_turn_end(self.clone());
        }
    }

    /// Event completions that waited for room.
    pub(super) fn drain_completions(self: &Rc<Self>) {
        if let Some(cq) = self.cq(0).filter(|cq| cq.is_starved() && self.is_bus_master()) {
            self.look_at_head(&cq);
            let waited = cq.drain(&self.memory.borrow()).transpose();
            if let Some(posted) = waited {
                self.posted(&cq, posted, None);
            }
        }
    }

    /// Whether [`Function::drain_completions`] has reason to look.
    fn can_drain(&self) -> bool {
        let can = |cq: &Cq| cq.has_room() || cq.has_moved(&self.memory.borrow(), &self.bells);
        self.cq(0).is_some_and(|cq| cq.has_waiting() && can(&cq))
    }

    /// Nobody tells of a mapped doorbell, and a completion queue with room is not asked for its head: whether a host
    /// has written one that makes no sense. Where completions wait, [`Function::drain_completions`] looks.
    fn has_invalid_head(&self) -> bool {
        let (memory, cqs) = (self.memory.borrow(), self.cqs.borrow());
        cqs.values().filter(|cq| !cq.has_waiting()).any(|cq| cq.look(&memory, &self.bells).is_err())
    }

    /// Whether commands are fetched.
    pub fn may_fetch(&self) -> bool {
        !self.failed.get() && self.is_bus_master()
    }

    /// Whether completions go to the host.
    pub fn may_post(&self) -> bool {
        self.is_bus_master() && !self.deaf.get() && !self.controller().is_resetting()
    }

    pub(super) fn fetch_all(self: &Rc<Self>) -> bool {
        let mut any = false;
        let mut at = 0;
        if !self.may_fetch() {
            return false;
        }
        loop {
            let queue = {
                let sqs = self.sqs.borrow();
                let Some(queue) = sqs.get(at) else { return any };
                queue.transport().has_work(queue).then(|| queue.clone())
            };
            if let Some(queue) = queue {
                any |= Sq::fetch(&queue);
            }
            at += 1;
        }
    }

    /// INTx: whether any queue that interrupts has entries to consume.
    pub fn update_pin(self: &Rc<Self>) {
        if self.interrupts.uses_msix() {
            return;
        }
        let masked = self.interrupts.mask.get();
        let mut level = false;
        for cq in self.cqs.borrow().values() {
            let Some(vector) = cq.vector.filter(|_| cq.is_pending()) else { continue };
            // The pin's client learns that it was served by a doorbell that is rung for real.
            loop {
                let head = cq.head();
                self.bells.arm(&self.memory.borrow(), Bell::Head(cq.qid), head);
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                self.look_at_head(cq);
                if cq.head() == head {
                    break;
                }
            }
            let held = cq.held.get();
            level |= cq.is_pending() && !held && masked & 1u32.wrapping_shl(vector.into()) == 0;
        }
        let mut config = self.config.borrow_mut();
        config.set_interrupt_status(level);
        self.interrupts.set_level(level && !config.intx_disabled());
    }

    /// The pin tells of all entries again.
    pub fn release_pin(self: &Rc<Self>) {
        self.cqs.borrow().values().for_each(|cq| cq.held.set(false));
        self.update_pin();
    }

    /// The host did what it must not: an event at the end of this turn, when nothing is borrowed.
    pub fn error_event(self: &Rc<Self>, info: ErrorInfo) {
        self.event.set(Some(info));
        self.note_end();
    }
}

impl Poller for Function {
    fn poll(self: Rc<Self>) -> bool {
        if self.event.get().is_some() {
            self.note_end();
        }
        self.check_memory();
        self.drain_completions();
        if self.fetch_all() {
            self.vain.set(0);
            return true;
        }
        let vain = self.vain.get().wrapping_add(1);
        self.vain.set(vain);
        let invalid = vain.is_multiple_of(VAIN) && self.bells.is_silent() && self.has_invalid_head();
        if invalid {
            self.error_event(ErrorInfo::InvalidDoorbellValue);
        }
        invalid
    }

    fn sleep(&self) -> Wake {
        if !self.is_bus_master() {
            return Wake::Event;
        }
        if self.bells.shadow.get().is_some() && !self.bells.is_silent() {
            // Arm, then look again: a host that missed the event index is seen by the second look.
            let memory = self.memory.borrow();
            let arm_head = |cq: &Cq| self.bells.arm(&memory, Bell::Head(cq.qid), cq.head());
            for queue in self.sqs.borrow().iter() {
                let sq = queue.transport();
                self.bells.arm(&memory, Bell::Tail(queue.qid()), sq.tail());
                // A fused pair may wait for more room than one entry.
                if sq.has_commands() {
                    arm_head(sq.cq());
                }
            }
            self.cqs.borrow().values().filter(|cq| cq.is_starved()).for_each(|cq| arm_head(cq));
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        let fetchable = || self.sqs.borrow().iter().any(|queue| queue.transport().has_work(queue));
        if self.may_fetch() && (fetchable() || self.can_drain()) {
            return Wake::Busy;
        }
        match self.bells.is_silent() {
            true if self.has_invalid_head() => {
                self.event.set(Some(ErrorInfo::InvalidDoorbellValue));
                Wake::Busy
            }
            true => Wake::Look,
            false => Wake::Event,
        }
    }
}

impl TurnEnd for Function {
    fn turn_end(self: Rc<Self>) {
        self.ending.set(false);
        if let Some(info) = self.event.take() {
            self.controller().error_event(info);
        }
        self.check_memory();
        let msix = self.interrupts.uses_msix();
        for cq in self.cqs.borrow().values() {
            let fresh = cq.fresh.take();
            let Some(vector) = cq.vector.filter(|_| fresh > 0) else { continue };
            let held = cq.qid != 0 && self.coalescing.holds(&self, vector, fresh);
            if !msix {
                cq.held.set(held);
            } else if !held {
                self.interrupts.raise(vector);
            }
        }
        if !msix {
            self.update_pin();
        }
    }
}
