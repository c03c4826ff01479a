//! A run that does not end cannot be unwound: this thread says which input it was, and ends the process.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Input, hash};

/// How long a run may take: a thousand times as long as one does.
const PATIENCE: Duration = Duration::from_secs(60);

type Now = Arc<Mutex<Option<(Instant, Input)>>>;

fn lock(now: &Now) -> MutexGuard<'_, Option<(Instant, Input)>> {
    now.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at how long the present run takes.
pub(super) struct Watchdog {
    now: Now,
    _alive: Sender<()>,
}

impl Watchdog {
    pub fn start(name: &str) -> Self {
        let (alive, ended) = channel::<()>();
        let now = Now::default();
        let (theirs, name) = (now.clone(), name.to_owned());
        let watch = move || {
            while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let now = lock(&theirs);
                let Some((_, input)) = now.as_ref().filter(|(since, _)| since.elapsed() > PATIENCE) else {
                    continue;
                };
                let path = std::env::temp_dir().join(format!("isthmus-{name}-hang-{:016x}.txt", hash(input)));
                let _ = std::fs::write(&path, input.text());
                eprintln!("{name}: a run hangs; ISTHMUS_FUZZ_INPUT={}:\n{}", path.display(), input.text());
                std::process::abort();
            }
        };
        let _ = std::thread::Builder::new().name("watchdog".into()).spawn(watch);
        Watchdog { now, _alive: alive }
    }

    pub fn begin(&self, input: &Input) {
        *lock(&self.now) = Some((Instant::now(), input.clone()));
    }

    pub fn end(&self) {
        *lock(&self.now) = None;
    }
}
