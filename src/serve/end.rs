//! How a server ends: in order after the first signal, at once after the second, and in any case within a time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The whole of an orderly end takes no longer.
pub(super) const BOUND: Duration = Duration::from_secs(25);

/// SIGTERM, SIGINT and SIGHUP.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes the signals: from now on the second one ends the process at once.
    pub(super) fn take(runtime: &Runtime) -> anyhow::Result<Self> {
        let seen = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT, SIGHUP] {
            // In this order: the first signal finds the flag still down.
            signal_hook::flag::register_conditional_shutdown(number, 1, seen.clone())
                .context("take signals")?;
            signal_hook::flag::register(number, seen.clone()).context("take signals")?;
        }
        let _inside = runtime.enter();
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("take SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("take SIGINT")?,
            hang_up: signal(SignalKind::hangup()).context("take SIGHUP")?,
        })
    }

    /// Waits for the first.
    pub(super) async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: ending"),
            _ = self.hang_up.recv() => tracing::info!("SIGHUP: ending"),
        }
    }
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
