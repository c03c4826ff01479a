//! How a server ends: in order after the first signal, at once after the second, and in any case within a time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The whole of an orderly end takes no longer.
pub(super) const BOUND: Duration = Duration::from_secs(25);

/// SIGTERM, and SIGINT and SIGHUP unless whoever started the process has it ignore them, as nohup(1) does.
pub(super) struct Signals(Vec<(&'static str, Signal)>);

impl Signals {
    /// Takes the signals: from now on the second one ends the process at once.
    pub(super) fn take(runtime: &Runtime) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let seen = Arc::new(AtomicBool::new(false));
        let _inside = runtime.enter();
        let mut taken = Vec::new();
        for (number, name) in [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")] {
            if number != SIGTERM && is_ignored(&status, number) {
                continue;
            }
            let what = || format!("take {name}");
            // In this order: the first signal finds the flag still down.
            signal_hook::flag::register_conditional_shutdown(number, 1, seen.clone()).with_context(what)?;
            signal_hook::flag::register(number, seen.clone()).with_context(what)?;
            taken.push((name, signal(SignalKind::from_raw(number)).with_context(what)?));
        }
        Ok(Signals(taken))
    }

    /// Waits for the first.
    pub(super) async fn first(&mut self) {
        let name = std::future::poll_fn(|cx| {
            let come =
                self.0.iter_mut().find_map(|(name, signal)| signal.poll_recv(cx).is_ready().then_some(*name));
            come.map_or(Poll::Pending, Poll::Ready)
        });
        tracing::info!("{}: ending", name.await);
    }
}

/// Whether a process whose proc_pid_status(5) this is ignores the signal.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 != 0
}

/// Ends the process in a while, if it has not ended by then.
pub(super) fn bound() {
    let limit = || {
        std::thread::sleep(BOUND);
        tracing::error!("an orderly end takes too long: ending at once");
        std::process::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("bound".into()).spawn(limit) {
        tracing::warn!(%error, "the end is not bounded in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_its_mask() {
        let status = "Name:\tisthmus\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004002\n";
        assert!(is_ignored(status, SIGHUP));
        assert!(!is_ignored(status, SIGINT) && !is_ignored(status, SIGTERM) && !is_ignored("", SIGHUP));
    }
}
