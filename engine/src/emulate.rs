//! What a volume cannot do and the engine can do for it: FUA by a flush after the write.

use std::rc::Rc;
use std::sync::Arc;

use crate::io::{Io, IoResult, Op, Request, Scope};
use crate::volume::{Channel, ChannelRef, Issuer, Volume};

/// `channel`, wrapped where `volume` has a cache that it cannot write through.
pub(crate) fn complete_abilities(volume: &Arc<dyn Volume>, channel: Rc<dyn Channel>) -> Rc<dyn Channel> {
    let limits = volume.limits();
    if limits.volatile_cache && !limits.fua {
        Rc::new(FlushAfterWrite { below: ChannelRef::uncounted(volume, channel) })
    } else {
        channel
    }
}

struct FlushAfterWrite {
    below: ChannelRef,
}

const PASSED: u64 = 0;
const WRITTEN: u64 = 1;

impl Channel for FlushAfterWrite {
    fn submit(self: Rc<Self>, io: Io) {
        let below = self.below.clone();
        let op = match io.op() {
            Op::Write { fua: true } => Op::Write { fua: false },
            Op::WriteZeroes { fua: true, deallocate } => Op::WriteZeroes { fua: false, deallocate },
            _ => return io.forward(&below, self, PASSED),
        };
        let request = Request { op, ..io.request().clone() };
        io.forward_as(&below, self, WRITTEN, request);
    }

    fn revoke(&self, scope: Scope) {
        self.below.revoke(scope);
    }

    fn kick(self: Rc<Self>) {
        self.below.channel().kick();
    }
}

impl Issuer for FlushAfterWrite {
    fn resume(self: Rc<Self>, io: Io, cookie: u64, result: IoResult) {
        if cookie == WRITTEN && result.is_ok() {
            let below = self.below.clone();
            return io.forward_as(&below, self, PASSED, Request { op: Op::Flush, ..Request::default() });
        }
        io.complete(result);
    }
}
