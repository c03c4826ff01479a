//! Write protection of namespaces (Base 2.1, 8.1.16), the same for all hosts. Write Protect outlives the process: it is
//! stored before it holds, and before it ends. Write Protect Until Power Cycle ends with the process, which is why
//! nothing is kept of it.
//!
//! Changes are carried out one after the other, so that what is stored last is what holds last.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_proto::Status;

use super::{Answer, Hold, Kept, News, Persist, Stored, Subsystem};
use crate::namespace::Protection;

/// What is stored of a protected namespace: the format.
const PROTECTED: u8 = 1;

/// Changes that wait for the one before.
#[derive(Default)]
pub(super) struct Protecting(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    busy: bool,
    waiting: VecDeque<(u32, Protection, Answer)>,
}

impl Protecting {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a new namespace is protected.
///
/// # Errors
/// What is kept cannot be read, in words for a person.
pub(super) fn load(persist: Option<&Arc<dyn Persist>>) -> Result<Protection, String> {
    match persist.map_or(Ok(None), |persist| persist.load(Kept::Protection))?.as_deref() {
        None => Ok(Protection::None),
        Some([PROTECTED]) => Ok(Protection::Protected),
        Some(_) => Err("what is kept of its write protection is damaged".into()),
    }
}

impl Subsystem {
    /// Lets hosts write to a namespace, or not. Commands that come later find it so; hosts are told, and `answer` is
    /// called once, from any thread, when that holds on every shard, or with why it does not. One that has gone needs no
    /// protection.
    pub(crate) fn protect(self: &Arc<Self>, nsid: u32, wanted: Protection, answer: Answer) {
        {
            let mut queue = self.protecting.queue();
            queue.waiting.push_back((nsid, wanted, answer));
            if std::mem::replace(&mut queue.busy, true) {
                return;
            }
        }
        self.protect_next();
    }

    /// Carries out what waits, until one waits to be stored.
    fn protect_next(self: &Arc<Self>) {
        loop {
            let (nsid, wanted, answer) = {
                let mut queue = self.protecting.queue();
                match queue.waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        queue.busy = false;
                        return;
                    }
                }
            };
            let view = self.view();
            let now = view.protection(nsid);
            if now == Protection::UntilPowerCycle && wanted != now {
                answer(Status::FEATURE_NOT_CHANGEABLE);
                continue;
            }
            let kept = |protection| (protection == Protection::Protected).then(|| vec![PROTECTED]);
            let persist = view.persist(nsid).filter(|_| kept(now) != kept(wanted));
            let Some(persist) = persist else {
                self.set_protection(nsid, wanted, answer);
                continue;
            };
            let me = self.clone();
            let stored = Stored::new(move |durable| {
                match durable {
                    true => me.set_protection(nsid, wanted, answer),
                    false => answer(Status::INTERNAL_ERROR),
                }
                me.protect_next();
            });
            return persist.store(Kept::Protection, kept(wanted), stored);
        }
    }

    fn set_protection(self: &Arc<Self>, nsid: u32, protection: Protection, answer: Answer) {
        let news = News { done: Some(Arc::new(Hold::new(answer))), ..News::default() };
        // One that has gone meanwhile has let go of the news.
        let _ = self.change(nsid, news, |view| {
            view.has(nsid)?;
            view.protected.insert(nsid, protection);
            Ok(())
        });
    }
}
