//! Flushing volumes from outside the shards, before the process ends.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use engine::{ChannelRef, Io, IoId, IoResult, Issuer, Op, Origin, Request, ShardHandle, Volume};

/// Tells a thread how a flush ended.
struct Told(Sender<IoResult>);

impl Issuer for Told {
    fn resume(self: Rc<Self>, _io: Io, _cookie: u64, result: IoResult) {
        let _ = self.0.send(result);
    }
}

/// Flushes all of `volumes` at once, and waits for them until `end`. What failed or took too long is logged: hosts were
/// never told that it is on the medium. Whether all succeeded.
pub(super) fn all(
    shards: &[ShardHandle],
    volumes: impl Iterator<Item = Arc<dyn Volume>>,
    end: Instant,
) -> bool {
    let (to, answers) = channel();
    let (mut waiting, mut flushed) = (0, true);
    for (number, volume) in volumes.enumerate() {
        let Some(shard) = shards.get(number % shards.len().max(1)) else { return false };
        let to = to.clone();
        waiting += 1;
        shard.run(move |shard| {
            let mut io = Io::new(IoId { origin: Origin::new(), tag: 0 });
            *io.request_mut() = Request { op: Op::Flush, ..Request::default() };
            io.forward(&ChannelRef::open(&volume, shard), Rc::new(Told(to)), 0);
        });
    }
    drop(to);
    while waiting > 0 {
        match answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                flushed = false;
                tracing::error!(%error, "a volume could not be flushed");
            }
            Err(_) => {
                tracing::warn!(volumes = waiting, "gave up waiting for flushes");
                return false;
            }
        }
        waiting -= 1;
    }
    flushed
}
