//! What the process asks of its machine: log lines, open files, memory for the rings.

use std::io::{self, Write};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// Sends log lines to standard error.
///
/// # Errors
/// When `filter` is no list of levels.
pub fn start_logging(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| anyhow::anyhow!("--log {filter}: {e}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            lines.with_target(true).with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init()
        }
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Raises the limit of open files to the most that this user may have: each connection, guest region and interrupt
/// is one.
pub fn raise_open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < hard {
        match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => tracing::debug!(from = soft, to = hard, "raised the limit of open files"),
            Err(e) => tracing::warn!(soft, hard, "cannot raise the limit of open files: {e}"),
        }
    }
    if hard < 4096 {
        tracing::warn!(hard, "few open files are allowed: raise LimitNOFILE= for many connections or guests");
    }
}

/// Has a panic on a shard end the process. Hosts would wait for ever for what was on that shard; a process that ends is
/// started again, and finds all that was declared.
pub fn end_when_a_shard_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().name().is_some_and(|name| name.starts_with("shard")) {
            tracing::error!("a shard panicked, which is a bug: the process ends");
            std::process::abort();
        }
    }));
}

/// CPU time that a process and its threads have had.
pub fn cpu_time(pid: u32) -> Option<std::time::Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 and 15 of proc_pid_stat(5), counted from the one after the name, which may hold anything.
    let fields = stat.rsplit(')').next()?.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|t| t.parse::<u64>().ok()).sum();
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(std::time::Duration::from_secs_f64(ticks as f64 / hz as f64))
}

/// Has the kernel end this process by SIGTERM when the thread that started it ends.
///
/// # Errors
/// When the parent is gone already, or the kernel refuses.
pub fn die_with_parent() -> anyhow::Result<()> {
    let parent = nix::unistd::getppid();
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
    // It may have ended before the kernel knew.
    anyhow::ensure!(nix::unistd::getppid() == parent, "the parent has ended");
    Ok(())
}

/// Whoever read standard output has closed it, as `head` does: what is left to say is for nobody.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub struct Unheard;

/// Prints a line on standard output; `println!` would panic where its reader has gone.
///
/// # Errors
/// [`Unheard`], or why it cannot be written.
pub fn print_line(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Unheard.into(),
        _ => anyhow::Error::from(e).context("standard output"),
    })
}

/// [`print_line`] with the arguments of `println!`.
macro_rules! say {
    ($($line:tt)*) => { $crate::process::print_line(format_args!($($line)*)) };
}
pub(crate) use say;
