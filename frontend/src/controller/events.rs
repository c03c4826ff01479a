//! Asynchronous events (Base 2.1, 5.1.2): each is told once, and again only after the host has read its log page.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use nvme_proto::Status;
use nvme_proto::aen::{AsyncEventConfiguration, ErrorInfo, Event, HealthInfo};
use nvme_proto::log::LogId;

use super::Controller;
use super::identify::EVENTS_Z;
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};

/// Events that are told and those that wait for a request.
#[derive(Default)]
pub(super) struct Events {
    requests: VecDeque<(Rc<dyn AdminQueue>, Ticket)>,
    waiting: VecDeque<Event>,
    /// Pages whose event was raised, and that the host has not read since.
    unread: BTreeSet<u8>,
    /// Which notices the host wants.
    pub configuration: AsyncEventConfiguration,
}

impl Controller {
    /// Asynchronous Event Request.
    pub(super) fn await_event(&self, queue: Rc<dyn AdminQueue>, ticket: Ticket) -> Result<Outcome, Status> {
        let mut events = self.events.borrow_mut();
        if let Some(event) = events.waiting.pop_front() {
            return Ok(Reply::value(event.into_bits()).into());
        }
        if events.requests.len() > usize::from(EVENTS_Z) {
            return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED);
        }
        events.requests.push_back((queue, ticket));
        Ok(Outcome::Later)
    }

    pub(super) fn raise(&self, event: Event) {
        let request = {
            let mut events = self.events.borrow_mut();
            if !events.unread.insert(event.lid().0) {
                return;
            }
            let request = events.requests.pop_front();
            if request.is_none() {
                events.waiting.push_back(event);
            }
            request
        };
        if let Some((queue, ticket)) = request {
            queue.finish(ticket, Reply::value(event.into_bits()));
        }
    }

    /// The host has read a log page, and let its event be raised again.
    pub(super) fn event_seen(&self, page: LogId) {
        let mut events = self.events.borrow_mut();
        events.unread.remove(&page.0);
        events.waiting.retain(|e| e.lid() != page);
    }

    /// A namespace came, went, or changed.
    pub(crate) fn namespace_changed(self: &Rc<Self>, nsid: u32) {
        self.note_namespace(nsid);
        self.forget_mask(nsid);
        if self.events.borrow().configuration.nan() {
            self.raise(Event::NAMESPACES_CHANGED);
        }
    }

    /// The temperature is outside the thresholds: told, if the host wants that critical warning (SHCW).
    pub(super) fn temperature_event(self: &Rc<Self>) {
        if self.events.borrow().configuration.shcw().ttc() {
            self.raise(Event::health(HealthInfo::TemperatureThreshold));
        }
    }

    /// The discovery log changed.
    pub(crate) fn discovery_changed(self: &Rc<Self>) {
        if self.events.borrow().configuration.dlpcn() {
            self.raise(Event::DISCOVERY_CHANGED);
        }
    }

    /// The host did what it must not: an event of type error, such as a doorbell that does not exist.
    pub fn error_event(self: &Rc<Self>, info: ErrorInfo) {
        self.shared.errors().note_event(Status::INTERNAL_ERROR);
        self.raise(Event::error(info));
    }

    /// Ends an event request that the host wants back; whether there is one with that identifier.
    pub(super) fn abort_event_request(&self, cid: u16) -> bool {
        let found = {
            let mut events = self.events.borrow_mut();
            let at = events.requests.iter().position(|(queue, ticket)| queue.cid(*ticket) == Some(cid));
            at.and_then(|at| events.requests.remove(at))
        };
        let Some((queue, ticket)) = found else { return false };
        queue.finish(ticket, Status::ABORT_REQUESTED.into());
        true
    }

    /// A reset, or the admin queue closes: requests end, nothing is waiting, and the host wants no notices.
    pub(crate) fn forget_events(&self) {
        self.forget_aborts();
        self.forget_protecting();
        let forgotten = self.events.take();
        for (queue, ticket) in forgotten.requests {
            queue.finish(ticket, Status::ABORT_REQUESTED.into());
        }
    }
}
