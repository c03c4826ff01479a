//! `isthmus demo`: the main job, whole, on this machine alone: a remote target and the bridge as processes of their
//! own, everything declared over gRPC, and this process as the host that verifies every byte.

mod declare;
mod processes;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use host::workload::{self, Amount, Job, Ledger, Pattern, Report};
use host::{Queue, vfio_user};

use crate::bench::interrupted;
use crate::cli;
use crate::process::say;
use processes::{Server, cpu_time};

/// Commands in flight at most.
const DEPTH: u16 = 32;
const BLOCK: u32 = 4096;

/// Runs the command.
///
/// # Errors
/// The first thing that was not right; then nothing is left behind either.
pub fn run(args: &cli::Demo) -> anyhow::Result<()> {
    let stop = interrupted()?;
    let directory = tempfile::Builder::new().prefix("isthmus-demo.").tempdir().context("make a directory")?;
    let outcome = show(args, directory.path(), &stop);
    // The servers are gone by now, whatever happened: their sockets and files go with the directory.
    directory.close().context("remove the demo's directory")?;
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted; nothing is left behind");
    }
    outcome
}

fn show(args: &cli::Demo, directory: &Path, stop: &AtomicBool) -> anyhow::Result<()> {
    say!("Isthmus demo: a host's NVMe disk on a remote NVMe/TCP target, encrypted on the way\n")?;
    say!("  this process ── vfio-user ──▶ bridge: QoS ▸ AES-XTS-256 ▸ NVMe/TCP ──▶ remote: a file\n")?;
    let media = directory.join("remote/aio/disk");
    let remote = Server::start("remote", directory, stop)?;
    std::fs::File::create(&media)
        .and_then(|f| f.set_len(args.size << 20))
        .with_context(|| format!("make {}", media.display()))?;
    let bridge = Server::start("bridge", directory, stop)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let calls = runtime.block_on(declare::whole_chain(&remote, &bridge, &media, stop))?;
    say!("Built with {} gRPC calls:", calls.len())?;
    for call in &calls {
        say!("  {:6.1} ms  {:6}  {}", call.took.as_secs_f64() * 1e3, call.server, call.what)?;
    }

    let socket = bridge.directory().join("ctrlr/near");
    let options = vfio_user::Options { max_transfer: 128 << 10, queues: 1, depth: DEPTH };
    let mut controller = vfio_user::Controller::connect(&socket, options)?;
    let mut queue = controller.io_queue(1)?;
    let blocks = queue.namespace().blocks;
    ensure!(queue.namespace().block_size == BLOCK, "the disk has another block size");
    let mut ledger = Ledger::new(0x1571_4d05, blocks, BLOCK);

    say!("\nVerified I/O as a host does it:")?;
    let large = 128 << 10;
    let mut verified = 0;
    for (what, random, reads, io_size, amount) in [
        ("write every block", false, 0, large, Amount::Once),
        ("random reads and writes, 4 KiB", true, 50, 4096, Amount::Time(Duration::from_secs(args.seconds))),
        (
            "random reads and writes, 64 KiB",
            true,
            50,
            64 << 10,
            Amount::Time(Duration::from_secs(args.seconds)),
        ),
        ("read every block back", false, 100, large, Amount::Once),
    ] {
        let job = Job {
            pattern: Pattern { random, reads, trims: false },
            io_size,
            amount,
            depth: DEPTH,
            seed: 7,
            ..Job::default()
        };
        let report = stage(&mut queue, &job, Some(&mut ledger), what, stop)?;
        verified += report.verified;
        let (commands, mib) = (report.commands(), report.verified >> 20);
        say!("  {what:34} {commands:9} commands   {mib:6} MiB verified")?;
    }
    flush(&mut queue)?;
    let ciphertext = holds_no_stamp(&media)?;
    ensure!(ciphertext, "the remote holds plaintext");
    say!("  the remote's file                  holds ciphertext alone")?;

    say!("\nMeasured, the whole chain:")?;
    say!("  {:26} {:>9} {:>9} {:>9} {:>9}   bridge's CPU", "", "IOPS", "p50 µs", "p99 µs", "p99.9 µs")?;
    for (what, reads, depth) in [
        ("4 KiB random read, depth 1", 100, 1),
        ("4 KiB random write, depth 1", 0, 1),
        ("4 KiB random read, depth 32", 100, DEPTH),
        ("4 KiB random write, depth 32", 0, DEPTH),
    ] {
        let pattern = Pattern { random: true, reads, trims: false };
        let amount = Amount::Time(Duration::from_secs(args.seconds));
        let job = Job { pattern, amount, depth, seed: 11, ..Job::default() };
        let (before, begin) = (cpu_time(bridge.pid()), Instant::now());
        // Writes are stamped here too, so that the disk stays one that can be verified.
        let report = stage(&mut queue, &job, Some(&mut ledger), what, stop)?;
        verified += report.verified;
        let busy = (cpu_time(bridge.pid()) - before).as_secs_f64() / begin.elapsed().as_secs_f64();
        let side = if reads == 100 { &report.reads } else { &report.writes };
        let us = |share| side.percentile(share).as_secs_f64() * 1e6;
        let (iops, busy) = (report.iops(), busy * 100.0);
        say!("  {what:28} {iops:7.0} {:9.1} {:9.1} {:9.1}   {busy:4.0} %", us(0.5), us(0.99), us(0.999))?;
    }
    // The process comes to rest over some seconds: it looks at doorbells ever more rarely.
    rest(Duration::from_secs(5), stop)?;
    let (before, begin) = (cpu_time(bridge.pid()), Instant::now());
    rest(Duration::from_secs(5), stop)?;
    let busy = (cpu_time(bridge.pid()) - before).as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    say!("  {:28} {:7} {:9} {:9} {:9}   {busy:4.1} %", "idle, connected", "", "", "", "")?;

    let job = Job {
        pattern: Pattern { random: false, reads: 100, trims: false },
        io_size: large,
        amount: Amount::Once,
        depth: DEPTH,
        ..Job::default()
    };
    let last = stage(&mut queue, &job, Some(&mut ledger), "read every block back", stop)?;
    verified += last.verified;
    ensure!(last.verified == args.size << 20, "not every block could be verified");
    controller.shutdown()?;
    drop((queue, controller));
    bridge.stop()?;
    remote.stop()?;
    say!("\n{} MiB verified, every byte right.", verified >> 20)?;
    Ok(())
}

fn stage(
    queue: &mut dyn Queue,
    job: &Job,
    ledger: Option<&mut Ledger>,
    what: &str,
    stop: &AtomicBool,
) -> anyhow::Result<Report> {
    let live = std::io::stderr().is_terminal();
    let result = workload::run(&mut [queue], job, ledger, |p| {
        if live {
            let width = (p.share * 30.0) as usize;
            eprint!("\r  {what:34} [{:30}] {:3.0} %", "█".repeat(width), p.share * 100.0);
            let _ = std::io::stderr().flush();
        }
        !stop.load(Ordering::Relaxed)
    });
    if live {
        eprint!("\r\x1b[K");
    }
    result.with_context(|| what.to_owned())
}

/// Does nothing for a while.
fn rest(time: Duration, stop: &AtomicBool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::thread::sleep(Duration::from_millis(50));
        ensure!(!stop.load(Ordering::Relaxed), "interrupted");
    }
    Ok(())
}

/// Flushes, so that what was written is on the medium.
fn flush(queue: &mut dyn Queue) -> anyhow::Result<()> {
    let mut done = Vec::new();
    queue.submit(0, host::Command { kind: host::Kind::Flush, lba: 0, blocks: 1 })?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while done.is_empty() {
        queue.poll(&mut done)?;
        ensure!(Instant::now() < deadline, "a flush was not answered");
    }
    ensure!(done[0].status.is_success(), "flush: {}", done[0].status);
    Ok(())
}

/// Whether no block of the medium begins as the host's stamped blocks do.
fn holds_no_stamp(media: &Path) -> anyhow::Result<bool> {
    let bytes = std::fs::read(media).with_context(|| format!("read {}", media.display()))?;
    Ok(!bytes.chunks_exact(BLOCK as usize).any(|block| &block[12..16] == b"ISTH"))
}
