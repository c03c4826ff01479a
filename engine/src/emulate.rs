//! What a volume cannot do and the engine can do for it: FUA by a flush after the write.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;

use crate::io::{Io, IoError, IoId, IoResult, Op, Request, Scope};
use crate::mem::RegionId;
use crate::volume::{Channel, ChannelRef, Issuer, Volume};

/// `channel`, wrapped where `volume` has a cache that it cannot write through.
pub(crate) fn complete_abilities(volume: &Arc<dyn Volume>, channel: Rc<dyn Channel>) -> Rc<dyn Channel> {
    let limits = volume.limits();
    if limits.volatile_cache && !limits.fua {
        Rc::new(FlushAfterWrite {
            below: ChannelRef::uncounted(volume, channel),
            writing: RefCell::default(),
        })
    } else {
        channel
    }
}

/// A write that a flush is to follow.
struct Writing {
    id: IoId,
    regions: SmallVec<[RegionId; 2]>,
    /// The flush must not begin: it might wait long, and hold the write's memory.
    revoked: bool,
}

struct FlushAfterWrite {
    below: ChannelRef,
    writing: RefCell<Slab<Writing>>,
}

/// Other cookies are keys of writes.
const PASSED: u64 = u64::MAX;

impl Channel for FlushAfterWrite {
    fn submit(self: Rc<Self>, io: Io) {
        let below = self.below.clone();
        let op = match io.op() {
            Op::Write { fua: true } => Op::Write { fua: false },
            Op::WriteZeroes { fua: true, deallocate } => Op::WriteZeroes { fua: false, deallocate },
            _ => return io.forward(&below, self, PASSED),
        };
        let request = Request { op, ..io.request().clone() };
        let writing = Writing { id: io.id(), regions: io.regions(), revoked: false };
        let key = self.writing.borrow_mut().insert(writing);
        io.forward_as(&below, self, key as u64, request);
    }

    fn revoke(&self, scope: Scope) {
        for (_, writing) in self.writing.borrow_mut().iter_mut() {
            writing.revoked |= match scope {
                Scope::Region(region) => writing.regions.contains(&region),
                _ => scope.names(writing.id),
            };
        }
        self.below.revoke(scope);
    }

    fn kick(self: Rc<Self>) {
        self.below.channel().kick();
    }
}

impl Issuer for FlushAfterWrite {
    fn resume(self: Rc<Self>, io: Io, cookie: u64, result: IoResult) {
        if cookie == PASSED {
            return io.complete(result);
        }
        let writing = self.writing.borrow_mut().try_remove(cookie as usize);
        match result {
            Ok(()) if writing.is_none_or(|w| w.revoked) => io.complete(Err(IoError::Aborted)),
            Ok(()) => {
                let below = self.below.clone();
                io.forward_as(&below, self, PASSED, Request { op: Op::Flush, ..Request::default() });
            }
            Err(_) => io.complete(result),
        }
    }
}
