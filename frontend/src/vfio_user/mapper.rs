//! mmap(2) and munmap(2) on a thread of their own, one for the process: with gigabytes of guest memory they take too
//! long for a shard.

use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use engine::Shard;

use super::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The thread's queue; `None` if it cannot be started, and then jobs run where they are asked for.
fn jobs() -> Option<&'static Sender<Job>> {
    static JOBS: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let start = || {
        let (to, from) = channel::<Job>();
        let run = move || from.into_iter().for_each(|job| job());
        std::thread::Builder::new().name("mapper".into()).spawn(run).is_ok().then_some(to)
    };
    JOBS.get_or_init(start).as_ref()
}

/// Runs `f` there, after what was asked before; `None` if the thread is gone.
pub(super) async fn run<R: Send + 'static>(
    shard: &Shard,
    f: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (to, from) = oneshot::channel();
    let home = shard.handle();
    if shard.is_simulated() {
        home.run(move |_| to.send(f()));
        return from.await;
    }
    let Some(jobs) = jobs() else { return Some(f()) };
    let job = move || {
        let result = f();
        home.run(move |_| to.send(result));
    };
    jobs.send(Box::new(job)).ok()?;
    from.await
}
