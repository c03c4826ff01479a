//! `isthmus bench`: a load from user space, on any vendor's controller.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use host::workload::{self, Amount, Histogram, Job, Ledger, Pattern, Report, parse_size};
use host::{Queue, tcp, vfio_user};
use nvme_proto::Nqn;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::Bench;

/// Runs the command.
///
/// # Errors
/// What is wrong with the flags, the controller, or the data.
pub fn run(args: &Bench) -> anyhow::Result<()> {
    let size = |text: &str| parse_size(text).map_err(anyhow::Error::msg);
    let io_size = usize::try_from(size(&args.block_size)?)?;
    let range = args.size.as_deref().map(size).transpose()?;
    let pattern = Pattern::parse(&args.pattern, args.read_mix).map_err(anyhow::Error::msg)?;
    if args.depth == 0 || args.queues == 0 {
        bail!("--depth and --queues begin at 1");
    }
    if let Some(cpu) = args.cpu {
        pin(cpu)?;
    }
    let mut target = Target::open(args, io_size)?;
    let job = Job {
        pattern,
        io_size,
        range,
        amount: Amount::Time(Duration::from_secs(args.seconds)),
        depth: args.depth,
        seed: args.seed,
    };
    let stop = interrupted()?;
    let mut ledger = None;
    if args.verify {
        let namespace = target.queues[0].namespace().clone();
        let blocks =
            range.map_or(namespace.blocks, |r| r / u64::from(namespace.block_size)).min(namespace.blocks);
        if blocks > 1 << 28 {
            bail!("--verify remembers every block: use --size to choose a part of the namespace");
        }
        ledger = Some(Ledger::new(args.seed, blocks, namespace.block_size));
    }
    let quiet = args.quiet || args.json || !std::io::stderr().is_terminal();
    if ledger.is_some() && pattern.reads > 0 {
        // Reads are held against what was written: so everything is written first.
        let fill = Job { pattern: Pattern { random: false, reads: 0 }, amount: Amount::Once, ..job.clone() };
        drive(&mut target, &fill, ledger.as_mut(), "fill", quiet, &stop)?;
    }
    let cpu_time = || args.target_pid.and_then(crate::process::cpu_time);
    let before = cpu_time();
    let report = drive(&mut target, &job, ledger.as_mut(), &args.pattern, quiet, &stop)?;
    let cpu = before.and_then(|before| Some(cpu_time()?.saturating_sub(before)));
    if args.json {
        println!("{}", json(args, &report, cpu));
    } else {
        print_table(args, &report, cpu);
    }
    Ok(())
}

/// A flag that Ctrl-C sets.
///
/// # Errors
/// When the signal cannot be taken.
pub fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, flag.clone()).context("take signals")?;
    }
    Ok(flag)
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("pin the load to CPU {cpu}"))
}

/// A controller and its I/O queues.
struct Target {
    /// Holds the Admin queue open; the I/O queues depend on it.
    _controller: Controller,
    queues: Vec<Box<dyn Queue>>,
}

enum Controller {
    VfioUser(#[expect(dead_code, reason = "held open")] Box<vfio_user::Controller>),
    Tcp(#[expect(dead_code, reason = "held open")] Box<tcp::Controller>),
}

/// This host's name on Fabrics: one for each machine user is not needed for a load.
pub const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:1571ca5e-0000-4000-8000-000000000001";
/// Its identifier there: the UUID of its name.
pub const HOSTID: [u8; 16] = 0x1571_ca5e_0000_4000_8000_0000_0000_0001_u128.to_be_bytes();

impl Target {
    fn open(args: &Bench, max_transfer: usize) -> anyhow::Result<Self> {
        let (queues, depth) = (args.queues, args.depth);
        let mut boxes: Vec<Box<dyn Queue>> = Vec::new();
        if let Some(path) = &args.vfio_user {
            let options = vfio_user::Options { max_transfer, queues, depth };
            let mut controller = vfio_user::Controller::connect(path, options)
                .with_context(|| format!("vfio-user controller at {}", path.display()))?;
            for _ in 0..queues {
                boxes.push(Box::new(controller.io_queue(args.nsid)?));
            }
            return Ok(Target { _controller: Controller::VfioUser(Box::new(controller)), queues: boxes });
        }
        let (Some(addr), Some(nqn)) = (args.tcp, &args.nqn) else {
            bail!("name a target: --vfio-user or --tcp")
        };
        let digests = tcp::Digests { header: args.hdgst, data: args.ddgst };
        let options = tcp::Options {
            subnqn: Nqn::new(nqn).with_context(|| format!("--nqn {nqn}"))?,
            hostnqn: Nqn::new(HOSTNQN)?,
            hostid: HOSTID,
            digests,
            max_transfer,
            queues,
            depth,
            kato: 0,
        };
        let mut controller =
            tcp::Controller::connect(addr, options).with_context(|| format!("target at {addr}"))?;
        for _ in 0..queues {
            boxes.push(Box::new(controller.io_queue(args.nsid)?));
        }
        Ok(Target { _controller: Controller::Tcp(Box::new(controller)), queues: boxes })
    }
}

fn drive(
    target: &mut Target,
    job: &Job,
    ledger: Option<&mut Ledger>,
    what: &str,
    quiet: bool,
    stop: &AtomicBool,
) -> anyhow::Result<Report> {
    let mut queues: Vec<&mut dyn Queue> =
        target.queues.iter_mut().map(|q| &mut **q as &mut dyn Queue).collect();
    let result = workload::run(&mut queues, job, ledger, |p| {
        if !quiet {
            let mut err = std::io::stderr();
            let _ = write!(err, "\r{what}: {:3.0} %  {} commands ", p.share * 100.0, p.commands);
            let _ = err.flush();
        }
        !stop.load(Ordering::Relaxed)
    });
    if !quiet {
        eprint!("\r\x1b[K");
    }
    Ok(result?)
}

fn percentiles(h: &Histogram) -> [(&'static str, Duration); 5] {
    [
        ("p50", h.percentile(0.5)),
        ("p90", h.percentile(0.9)),
        ("p99", h.percentile(0.99)),
        ("p99.9", h.percentile(0.999)),
        ("max", h.max()),
    ]
}

fn json(args: &Bench, report: &Report, cpu: Option<Duration>) -> serde_json::Value {
    let side = |h: &Histogram| {
        let us = |d: Duration| d.as_secs_f64() * 1e6;
        let mut side = serde_json::json!({ "commands": h.count(), "mean_us": us(h.mean()) });
        for (name, value) in percentiles(h) {
            side[name.to_owned() + "_us"] = us(value).into();
        }
        side
    };
    serde_json::json!({
        "pattern": args.pattern, "block_size": report.io_size, "depth": args.depth, "queues": args.queues,
        "seconds": report.elapsed.as_secs_f64(), "iops": report.iops(), "bytes_per_second": report.bandwidth(),
        "read": side(&report.reads), "write": side(&report.writes), "verified_bytes": report.verified,
        "target_cpu_us_per_io": cpu.map(|c| c.as_secs_f64() * 1e6 / report.commands().max(1) as f64),
    })
}

fn print_table(args: &Bench, report: &Report, cpu: Option<Duration>) {
    let Bench { pattern, block_size, depth, queues, .. } = args;
    println!(
        "{pattern}, {block_size} each, {queues} queue(s) of depth {depth}, {:.1} s",
        report.elapsed.as_secs_f64()
    );
    println!("  {:>10.0} IOPS  {:>8.1} MiB/s", report.iops(), report.bandwidth() / (1 << 20) as f64);
    for (name, h) in [("read", &report.reads), ("write", &report.writes)] {
        if h.count() > 0 {
            let all: Vec<String> =
                percentiles(h).iter().map(|(p, d)| format!("{p} {:.1}", d.as_secs_f64() * 1e6)).collect();
            println!(
                "  {name:5} latency in µs: mean {:.1}  {}",
                h.mean().as_secs_f64() * 1e6,
                all.join("  ")
            );
        }
    }
    if report.verified > 0 {
        println!("  verified {:.1} MiB, every byte right", report.verified as f64 / (1 << 20) as f64);
    }
    if let Some(cpu) = cpu {
        let each = cpu.as_secs_f64() * 1e6 / report.commands().max(1) as f64;
        let share = cpu.as_secs_f64() / report.elapsed.as_secs_f64().max(1e-9) * 100.0;
        println!("  target: {each:.2} µs of CPU per command, {share:.0} % of a core");
    }
}
