//! What a controller tells its host of reservations: the Reservation Notification log page (Base 2.1, 5.1.12.1.28) and
//! features 82h and 83h.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use nvme_proto::aen::Event;
use nvme_proto::feature::{
    FeatureCapabilities, FeatureId, FeatureSelect, GetFeaturesCdw10, ReservationNotificationMask,
    ReservationPersistence, SetFeaturesCdw10,
};
use nvme_proto::identify::NSID_ALL;
use nvme_proto::log::{ReservationNotification, ReservationNotificationType as Notice};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::Controller;
use crate::namespace::Attachment;
use crate::queue::{AdminQueue, Outcome, Reply, Ticket};
use crate::subsystem::{Answer, Ask};

/// Notifications that wait to be read. Later ones are lost: LPC tells how many.
const WAITING_MAX: usize = 256;

/// What the host has not read yet, and what it does not want to hear.
#[derive(Default)]
pub(super) struct Notices {
    waiting: VecDeque<ReservationNotification>,
    /// LPC of the latest.
    count: u64,
    /// By NSID; without one, nothing is masked.
    masks: BTreeMap<u32, ReservationNotificationMask>,
    /// Set Features commands that wait for a namespace, by a number of their own.
    setting: BTreeMap<u64, (Rc<dyn AdminQueue>, Ticket)>,
    settings: u64,
}

/// Answers Set Features when the last namespace has: with the first refusal, if there was one.
struct Outcomes {
    refusal: Mutex<Status>,
    answer: Mutex<Option<Answer>>,
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        let refusal = *self.refusal.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = self.answer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            answer(refusal);
        }
    }
}

impl Controller {
    /// Something happened to a reservation.
    pub(crate) fn reservation_notice(&self, nsid: u32, notice: Notice) {
        {
            let mut notices = self.notices.borrow_mut();
            let mask = notices.masks.get(&nsid).copied().unwrap_or_default();
            let masked = match notice {
                Notice::RegistrationPreempted => mask.regpre(),
                Notice::ReservationReleased => mask.resrel(),
                Notice::ReservationPreempted => mask.respre(),
                _ => true,
            };
            if masked || !self.is_ready() {
                return;
            }
            notices.count = notices.count.wrapping_add(1).max(1);
            if notices.waiting.len() >= WAITING_MAX {
                return;
            }
            let mut page = ReservationNotification::new_zeroed();
            (page.lpc, page.rnlpt, page.nsid) = (notices.count, notice, nsid);
            notices.waiting.push_back(page);
        }
        self.raise(Event::RESERVATION);
    }

    /// The oldest notification, or the empty page.
    pub(super) fn notice_page(&self) -> Vec<u8> {
        let notices = self.notices.borrow();
        let mut page = notices.waiting.front().copied().unwrap_or(ReservationNotification::new_zeroed());
        page.nalp = u8::try_from(notices.waiting.len().saturating_sub(1)).unwrap_or(u8::MAX);
        page.as_bytes().to_vec()
    }

    /// The host has read it; the next one is told.
    pub(super) fn notice_seen(&self) {
        let more = {
            let mut notices = self.notices.borrow_mut();
            notices.waiting.pop_front();
            !notices.waiting.is_empty()
        };
        if more {
            self.raise(Event::RESERVATION);
        }
    }

    /// After a reset nothing waits and nothing is masked.
    pub(super) fn forget_notices(&self) {
        let mut notices = self.notices.borrow_mut();
        notices.waiting.clear();
        notices.masks.clear();
        notices.count = 0;
    }

    /// A namespace that is gone takes its mask along: another of its number begins without.
    pub(super) fn forget_mask(&self, nsid: u32) {
        if self.local().namespace(nsid).is_none() {
            self.notices.borrow_mut().masks.remove(&nsid);
        }
    }

    /// Whether a Set or Get Features command is about a feature of this module.
    pub(super) fn has_reservation_feature(&self, sqe: &Sqe) -> bool {
        let fid = match sqe.admin() {
            AdminOpcode::SetFeatures => SetFeaturesCdw10::from_bits(sqe.cdw10).fid(),
            _ => GetFeaturesCdw10::from_bits(sqe.cdw10).fid(),
        };
        let ours = matches!(fid, FeatureId::ReservationNotificationMask | FeatureId::ReservationPersistence);
        ours && !self.config().discovery
    }

    /// The namespaces that a command with that NSID is about.
    fn addressed(&self, nsid: u32) -> Result<Vec<Rc<Attachment>>, Status> {
        match nsid {
            NSID_ALL => Ok(self.local().namespaces()),
            _ => Ok(vec![self.reservable(nsid)?]),
        }
    }

    /// The namespace with that NSID; one that may exist but does not is another mistake than one that cannot.
    fn reservable(&self, nsid: u32) -> Result<Rc<Attachment>, Status> {
        let may_be = (1..=self.local().subsystem().max_namespaces()).contains(&nsid);
        let none = if may_be { Status::INVALID_FIELD } else { Status::INVALID_NAMESPACE_OR_FORMAT };
        self.local().namespace(nsid).ok_or(none)
    }

    /// Set Features 82h and 83h.
    pub(super) fn set_reservation_feature(
        self: &Rc<Self>,
        queue: Rc<dyn AdminQueue>,
        ticket: Ticket,
        sqe: &Sqe,
    ) -> Result<Outcome, Status> {
        let cdw10 = SetFeaturesCdw10::from_bits(sqe.cdw10);
        if cdw10.sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let namespaces = self.addressed(sqe.nsid)?;
        if cdw10.fid() == FeatureId::ReservationNotificationMask {
            let mask = ReservationNotificationMask::from_bits(sqe.cdw11);
            let nsids = namespaces.iter().map(|n| (n.namespace.nsid, mask));
            self.notices.borrow_mut().masks.extend(nsids);
            return Ok(Reply::default().into());
        }
        let ptpl = ReservationPersistence::from_bits(sqe.cdw11).ptpl();
        let able = |n: &Rc<Attachment>| !ptpl || n.reservations.rescap().ptpls();
        if !namespaces.iter().all(able) {
            return Err(Status::INVALID_FIELD);
        }
        let number = {
            let mut notices = self.notices.borrow_mut();
            notices.settings += 1;
            let number = notices.settings;
            notices.setting.insert(number, (queue, ticket));
            number
        };
        let shared = self.shared().clone();
        let answer = move |status: Status| shared.at_home(move |me| me.persistence_set(number, status));
        let outcomes = Arc::new(Outcomes {
            refusal: Mutex::new(Status::SUCCESS),
            answer: Mutex::new(Some(Box::new(answer))),
        });
        for namespace in namespaces {
            let outcomes = outcomes.clone();
            let note = move |status: Status| {
                if !status.is_success() {
                    *outcomes.refusal.lock().unwrap_or_else(PoisonError::into_inner) = status.dnr();
                }
            };
            namespace.reservations.ask(Ask::Ptpl(ptpl), Box::new(note));
        }
        Ok(Outcome::Later)
    }

    fn persistence_set(&self, number: u64, status: Status) {
        let setting = self.notices.borrow_mut().setting.remove(&number);
        if let Some((queue, ticket)) = setting {
            queue.finish(ticket, status.into());
        }
    }

    /// Get Features 82h and 83h.
    pub(super) fn get_reservation_feature(&self, sqe: &Sqe) -> Result<Outcome, Status> {
        let cdw10 = GetFeaturesCdw10::from_bits(sqe.cdw10);
        let current = match cdw10.sel() {
            FeatureSelect::Current => true,
            FeatureSelect::Default | FeatureSelect::Saved => false,
            FeatureSelect::SupportedCapabilities => {
                let able = FeatureCapabilities::new().with_changeable(true).with_namespace_specific(true);
                return Ok(Reply::value(able.into_bits()).into());
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        if sqe.nsid == NSID_ALL {
            return Err(Status::INVALID_FIELD);
        }
        let namespace = self.reservable(sqe.nsid)?;
        let value = match cdw10.fid() {
            _ if !current => 0,
            FeatureId::ReservationPersistence => {
                ReservationPersistence::new().with_ptpl(namespace.reservations.ptpl()).into_bits()
            }
            _ => self.notices.borrow().masks.get(&sqe.nsid).map_or(0, |mask| mask.into_bits() & 0xe),
        };
        Ok(Reply::value(value).into())
    }
}
