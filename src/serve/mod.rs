//! `isthmus serve`: shards, the data plane on them, the control plane above, until a signal.

mod end;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use engine::Shards;
use isthmus::control::{self, Control, config::Config};
use isthmus::plane::{self, Plane};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::cli::{Doorbells, Resend, Serve};
use crate::process;
use end::Signals;

/// How long calls that are under way may take to end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// How long hosts' I/O may take to end.
const LAST_IO: Duration = Duration::from_secs(8);
/// How long flushes may take then.
const LAST_FLUSHES: Duration = Duration::from_secs(10);
// What is left is for all that has no limit of its own, and for the note of an end in order.
const _: () =
    assert!(LAST_CALLS.as_secs() + LAST_IO.as_secs() + LAST_FLUSHES.as_secs() < end::BOUND.as_secs());

/// Runs the command.
///
/// # Errors
/// Why it cannot serve, with what to do about it.
pub fn run(args: &Serve) -> anyhow::Result<()> {
    if args.die_with_parent {
        process::die_with_parent()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the control plane's threads")?;
    let signals = Signals::take(&runtime)?;
    process::raise_open_files();
    process::end_when_a_shard_panics();
    let settings = settings(args)?;
    let shards = Shards::start(&shards(args)).context("start the shards")?;
    let plane = Arc::new(Plane::new(settings, shards.handles())?);
    let control = Control::open(plane.clone(), &args.state_dir, args.kek_file.as_deref());
    let served = match &control {
        Ok(control) => serve(args, &runtime, control, signals),
        Err(_) => Ok(()),
    };
    end::bound();
    runtime.shutdown_timeout(LAST_CALLS);
    let ended = match (plane.shut_down(LAST_IO, LAST_FLUSHES), control) {
        (true, Ok(control)) => control.end(),
        (_, control) => control.map(drop),
    };
    drop(plane);
    shards.stop();
    served?;
    Ok(ended?)
}

/// Declares the objects of a file, and answers calls until a signal comes.
fn serve(args: &Serve, runtime: &Runtime, control: &Control, mut signals: Signals) -> anyhow::Result<()> {
    runtime.block_on(async {
        if let Some(file) = &args.config {
            declare(control, file).await?;
        }
        let addr = args.grpc_addr;
        let listener = TcpListener::bind(addr).await.with_context(|| format!("--grpc-addr {addr}"))?;
        warn_of_strangers(addr);
        let stop = async move {
            signals.first().await;
            notify(NotifyState::Stopping);
        };
        tracing::info!(grpc = %addr, ctrlr_dir = %args.ctrlr_dir.display(), "ready");
        notify(NotifyState::Ready);
        control::serve(control.clone(), listener, stop).await?;
        Ok(())
    })
}

/// Declares the objects of a file; those that need a remote that does not answer yet are declared when it does.
async fn declare(control: &Control, file: &Path) -> anyhow::Result<()> {
    let config = Config::read(control, file)?;
    if let Some(waiting) = config.apply(control).await? {
        let control = control.clone();
        tokio::spawn(async move {
            if let Err(error) = waiting.apply(&control).await {
                tracing::error!("{error}");
            }
        });
    }
    Ok(())
}

fn settings(args: &Serve) -> anyhow::Result<plane::Settings> {
    let ctrlr_dir = absolute(&args.ctrlr_dir)?;
    std::fs::create_dir_all(&ctrlr_dir).with_context(|| format!("--ctrlr-dir {}", ctrlr_dir.display()))?;
    let aio_dir = args.aio_dir.as_deref().map(absolute).transpose()?;
    if let Some(dir) = &aio_dir {
        ensure!(dir.is_dir(), "--aio-dir {}: not a directory", dir.display());
    }
    Ok(plane::Settings {
        aio_dir,
        ctrlr_dir,
        socket_mode: args.socket_mode,
        socket_group: args.socket_group.as_deref().map(group).transpose()?,
        doorbells: args.doorbells.iter().copied().map(doorbells).collect(),
        referrals: args.referrals.clone(),
        remote_kato: Duration::from_secs(args.remote_kato),
        remote_resend: match args.remote_resend {
            Resend::Strict => plane::Resend::Strict,
            Resend::Fast => plane::Resend::Fast,
        },
    })
}

fn doorbells(kind: Doorbells) -> plane::Doorbells {
    match kind {
        Doorbells::Mapped => plane::Doorbells::Mapped,
        Doorbells::Trapped => plane::Doorbells::Trapped,
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}", path.display()))
}

/// The number of a group that is given by name or number.
fn group(text: &str) -> anyhow::Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(text).with_context(|| format!("--socket-group {text}"))? {
        Some(group) => Ok(group.gid.as_raw()),
        None => bail!("--socket-group {text}: there is no such group"),
    }
}

fn shards(args: &Serve) -> engine::Config {
    let cpus = match &args.cpus {
        Some(cpus) => cpus.0.iter().copied().map(Some).collect(),
        None => vec![None; args.shards.max(1)],
    };
    engine::Config { cpus, spin: Duration::from_micros(args.spin), ..engine::Config::default() }
}

fn warn_of_strangers(addr: SocketAddr) {
    if !addr.ip().to_canonical().is_loopback() {
        tracing::warn!(
            %addr,
            "gRPC is open to the network without TLS: whoever reaches it controls all volumes, and reads keys on the way"
        );
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn shards_are_as_the_command_line_says() {
        let of = |line: &str| match Cli::parse_from(line.split(' ')).command {
            Command::Serve(args) => shards(&args),
            _ => unreachable!("{line}"),
        };
        let two = of("isthmus serve --cpus 2,5 --spin 700");
        assert_eq!((two.cpus, two.spin), (vec![Some(2), Some(5)], Duration::from_micros(700)));
        let one = of("isthmus serve");
        assert_eq!((one.cpus, one.spin), (vec![None], engine::Config::default().spin));
    }
}
