//! A subsystem on one shard: its namespaces' channels, shared by all queues there.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use engine::{Origin, Scope, Shard};

use super::seen::shows;
use super::{Fence, Hold, HostId, Reservations, Subsystem, View, Viewer};
use crate::namespace::Attachment;

/// A queue, as its subsystem knows it.
pub(crate) trait Member {
    /// Names its I/O.
    fn origin(&self) -> Origin;

    /// Whose it is.
    fn host(&self) -> Option<HostId>;

    /// Whose view of the namespaces it has.
    fn viewer(&self) -> &Viewer;

    /// Preempt and Abort: takes back what it has to do with that namespace, and keeps `hold` until that has ended.
    fn preempt(self: Rc<Self>, attachment: &Rc<Attachment>, hold: &Arc<Hold>);
}

/// The half of a subsystem that lives on one shard.
pub struct Local {
    shard: Shard,
    subsystem: Arc<Subsystem>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    view: Arc<View>,
    /// By ascending NSID.
    attached: Vec<Rc<Attachment>>,
    /// Queues that may have commands in flight.
    queues: Vec<(Origin, Weak<dyn Member>)>,
    /// Others that have I/O: shutdowns, which flush.
    others: Vec<Origin>,
}

impl Local {
    /// The subsystem's half on `shard`, made when it is first needed.
    pub fn of(subsystem: &Arc<Subsystem>, shard: &Shard) -> Rc<Local> {
        let key = subsystem.key();
        if let Some(local) = shard.local::<Local>(key) {
            return local;
        }
        let local =
            Rc::new(Local { shard: shard.clone(), subsystem: subsystem.clone(), state: RefCell::default() });
        local.update(subsystem.view(), None);
        for attachment in local.namespaces() {
            if let Some(range) = subsystem.locked_range(attachment.namespace.nsid) {
                attachment.gate().close(range, None);
            }
        }
        shard.put_local(key, local.clone());
        local
    }

    /// The control half.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }

    /// The shard that it lives on.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The namespace with that NSID.
    pub fn namespace(&self, nsid: u32) -> Option<Rc<Attachment>> {
        let state = self.state.borrow();
        let at = state.attached.binary_search_by_key(&nsid, |a| a.namespace.nsid).ok()?;
        state.attached.get(at).cloned()
    }

    /// All namespaces, by ascending NSID.
    pub fn namespaces(&self) -> Vec<Rc<Attachment>> {
        self.state.borrow().attached.clone()
    }

    /// Takes over what the subsystem has now. A namespace that is gone has its commands taken back; `gone` is held
    /// until the last of them has ended. From who sees a namespace no more, commands on it are taken back too.
    pub(super) fn update(&self, view: Arc<View>, gone: Option<Sender<Infallible>>) {
        let mut removed = Vec::new();
        let mut hidden = Vec::new();
        let (queues, others) = {
            let mut state = self.state.borrow_mut();
            if view.version < state.view.version {
                return;
            }
            // Both are in the order of their NSIDs.
            let mut before = std::mem::take(&mut state.attached).into_iter().peekable();
            for namespace in &view.namespaces {
                let Some(reservations) = view.reservations(namespace.nsid) else { continue };
                let protection = view.protection(namespace.nsid);
                let mask = view.mask(namespace.nsid);
                let mut older = None;
                while let Some(a) = before.next_if(|a| a.namespace.nsid <= namespace.nsid) {
                    match Arc::ptr_eq(&a.namespace, namespace) {
                        true => older = Some(a),
                        false => removed.push(a),
                    }
                }
                let same = |a: &Rc<Attachment>| {
                    a.protection == protection && a.mask == mask && a.limits == namespace.volume.limits()
                };
                state.attached.push(match older {
                    Some(older) if same(&older) => older,
                    Some(older) => {
                        let new = older.renewed(protection, mask);
                        hidden.push((older, new.mask.clone()));
                        new
                    }
                    None => Attachment::new(namespace.clone(), protection, mask, reservations.clone()),
                });
            }
            removed.extend(before);
            state.view = view;
            (state.queues.clone(), state.others.clone())
        };
        for attachment in removed {
            if let Some(hold) = &gone {
                attachment.going(hold.clone());
            }
            for origin in queues.iter().map(|(origin, _)| origin).chain(&others) {
                attachment.revoke(Scope::Origin(*origin));
            }
        }
        for (older, mask) in hidden {
            let lost = |viewer: &Viewer| shows(&older.mask, viewer) && !shows(&mask, viewer);
            for (origin, queue) in &queues {
                if queue.upgrade().is_some_and(|queue| lost(queue.viewer())) {
                    older.revoke(Scope::Origin(*origin));
                }
            }
        }
    }

    /// Takes back I/O in flight, on all namespaces.
    pub(crate) fn revoke(&self, scope: Scope) {
        for attachment in self.namespaces() {
            attachment.revoke(scope);
        }
    }

    /// A namespace's reservation is another now, and commands of these hosts are to be aborted.
    pub(super) fn reserved(
        &self,
        nsid: u32,
        reservations: &Arc<Reservations>,
        fence: (u64, Option<Arc<Fence>>),
        abort: &[HostId],
        hold: &Arc<Hold>,
    ) {
        let attachment = self.namespace(nsid);
        let Some(attachment) = attachment.filter(|a| Arc::ptr_eq(&a.reservations, reservations)) else {
            return;
        };
        attachment.set_fence(fence);
        if abort.is_empty() {
            return;
        }
        let queues: Vec<_> = self.state.borrow().queues.iter().filter_map(|(_, q)| q.upgrade()).collect();
        for queue in queues {
            if queue.host().is_some_and(|host| abort.contains(&host)) {
                queue.preempt(&attachment, hold);
            }
        }
    }

    pub(crate) fn enter(&self, queue: &Rc<impl Member + 'static>) {
        let member: Rc<dyn Member> = queue.clone();
        self.state.borrow_mut().queues.push((queue.origin(), Rc::downgrade(&member)));
    }

    /// Somebody who is no queue has I/O from now on, until [`Local::end`].
    pub(crate) fn begin(&self, origin: Origin) {
        self.state.borrow_mut().others.push(origin);
    }

    pub(crate) fn end(&self, origin: Origin) {
        self.state.borrow_mut().others.retain(|o| *o != origin);
    }

    /// How many of them there are.
    #[cfg(test)]
    pub(crate) fn others(&self) -> usize {
        self.state.borrow().others.len()
    }

    pub(crate) fn leave(&self, origin: Origin) {
        self.state.borrow_mut().queues.retain(|(o, _)| *o != origin);
    }
}
