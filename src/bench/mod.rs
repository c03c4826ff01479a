//! `isthmus bench`: a load from user space, on any vendor's controller.

mod jobfile;
mod show;
mod target;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use host::workload::{self, Amount, Job, Ledger, Load, Pattern, Report};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::{Bench, OutputFormat};
use crate::process::say;
use jobfile::{JobFile, Section, Size};
use target::Target;

/// This host's name on Fabrics: one for each machine user is not needed for a load.
pub const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:1571ca5e-0000-4000-8000-000000000001";
/// Its identifier there: the UUID of its name.
pub const HOSTID: [u8; 16] = 0x1571_ca5e_0000_4000_8000_0000_0000_0001_u128.to_be_bytes();

/// Below this share of its time spent waiting, the load is what limits the figures.
const LOAD_IS_FREE: f64 = 0.05;
/// From this share of a core on, the target's is saturated.
const CORE_IS_FULL: f64 = 0.95;

/// What one job of a group took.
struct Outcome<'s> {
    section: &'s Section,
    group: usize,
    report: Report,
    usage: Usage,
}

/// CPU time while a group ran.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Of the target, where it is known.
    target: Option<Duration>,
    /// Of this process: in user space and in the kernel.
    load: [Duration; 2],
    /// Voluntary and involuntary switches, major and minor faults, of this process.
    counts: [u64; 4],
    /// Commands of the whole group, and how long it ran.
    commands: u64,
    elapsed: Duration,
    /// Share of that in which the load only waited.
    waited: f64,
}

impl Usage {
    fn target_share(&self) -> Option<f64> {
        Some(self.target?.as_secs_f64() / self.elapsed.as_secs_f64().max(1e-9))
    }

    fn target_us(&self) -> Option<f64> {
        Some(self.target?.as_secs_f64() * 1e6 / self.commands.max(1) as f64)
    }

    /// Who could do no more.
    fn limit(&self) -> &'static str {
        match self.target_share() {
            _ if self.waited < LOAD_IS_FREE => "load",
            None => "unknown",
            Some(share) if share >= CORE_IS_FULL => "target",
            Some(_) => "neither",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// What is wrong with the flags, the job file, the controller, or the data.
pub fn run(args: &Bench) -> anyhow::Result<()> {
    let mut file = match &args.job {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            JobFile::parse(&text).with_context(|| path.display().to_string())?
        }
        None => JobFile { global: Vec::new(), sections: vec![flags(args)?] },
    };
    ensure!(args.job.is_none() || args.vfio_user.len() <= 1, "a job file has one controller");
    file.keep(&args.section)?;
    for section in &mut file.sections {
        if let (Some(seconds), Some(time)) = (args.seconds, section.time.as_mut()) {
            *time = Duration::from_secs(seconds);
        }
        ensure!(section.disk < args.nsid.len(), "--nsid names fewer namespaces than the job file has disks");
    }
    crate::process::raise_open_files();
    if let Some(cpu) = args.cpu {
        pin(cpu)?;
    }
    let stop = interrupted()?;
    if args.hold {
        return hold(args, &stop);
    }
    let mut outcomes = Vec::new();
    for (number, group) in file.groups().into_iter().enumerate() {
        outcomes.extend(run_group(args, number, &group, &stop)?);
    }
    match args.output_format {
        OutputFormat::Json => say!("{:#}", show::json(&file.global, &outcomes)),
        OutputFormat::Normal => show::table(&outcomes),
    }
}

/// The load that the flags describe.
fn flags(args: &Bench) -> anyhow::Result<Section> {
    let pattern = Pattern::parse(&args.pattern, args.read_mix).map_err(anyhow::Error::msg)?;
    ensure!(args.depth > 0 && args.queues > 0, "--depth and --queues begin at 1");
    let option = |key: &str, value: String| (key.to_owned(), value);
    Ok(Section {
        name: args.pattern.clone(),
        options: vec![
            option("rw", args.pattern.clone()),
            option("bs", args.block_size.clone()),
            option("iodepth", args.depth.to_string()),
            option("numjobs", args.queues.to_string()),
        ],
        pattern,
        block_size: workload::parse_size(&args.block_size).map_err(anyhow::Error::msg)?,
        offset: Size::Bytes(0),
        size: args.size.as_deref().map_or(Ok(Size::Percent(100)), Size::parse)?,
        io_size: None,
        loops: 1,
        time: Some(Duration::from_secs(args.seconds.unwrap_or(5))),
        ramp: Duration::ZERO,
        depth: args.depth,
        jobs: args.queues,
        rate: args.rate,
        seed: args.seed,
        each_once: false,
        verify: args.verify,
        stonewall: false,
        group_reporting: true,
        disk: 0,
    })
}

/// A host that is there and asks nothing.
fn hold(args: &Bench, stop: &AtomicBool) -> anyhow::Result<()> {
    let nsids = vec![args.nsid.first().copied().unwrap_or(1); usize::from(args.queues)];
    let _target = Target::open(args, &nsids, args.depth, 4096)?;
    let end = Instant::now() + Duration::from_secs(args.seconds.unwrap_or(5));
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
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

/// Runs sections side by side; what each of their jobs took, or each section where its jobs are reported as one.
fn run_group<'s>(
    args: &Bench,
    number: usize,
    group: &[&'s Section],
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Outcome<'s>>> {
    // By flags the queues are one job, which shares its places out among them; fio's jobs have one queue each.
    let shared = args.job.is_none();
    let jobs: Vec<&Section> =
        group.iter().flat_map(|s| std::iter::repeat_n(*s, usize::from(s.jobs))).collect();
    let nsids: Vec<u32> = jobs.iter().filter_map(|s| args.nsid.get(s.disk).copied()).collect();
    let depth = jobs.iter().map(|s| s.depth).max().unwrap_or(1);
    let sizes = jobs.iter().filter(|s| !s.pattern.trims).map(|s| s.block_size);
    let largest = usize::try_from(sizes.max().unwrap_or(0).max(4096))?;
    let mut target = Target::open(args, &nsids, depth, largest)?;
    if !jobs.iter().any(|s| s.verify) {
        target.queues.iter_mut().for_each(|queue| queue.discard_reads());
    }
    let namespace = target.queues.first().context("no queue")?.namespace().clone();
    let specs: Vec<&Section> = if shared { group.to_vec() } else { jobs };
    let described = specs
        .iter()
        .enumerate()
        .map(|(i, s)| Ok((job(s, i, &target, shared)?, ledger(s, &namespace)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (jobs, mut ledgers): (Vec<Job>, Vec<Option<Ledger>>) = described.into_iter().unzip();
    let quiet = args.quiet || !std::io::stderr().is_terminal();
    let names: Vec<&str> = group.iter().map(|s| s.name.as_str()).collect();
    let names = names.join(", ");

    let mut fills = Vec::new();
    for (job, ledger) in jobs.iter().zip(&ledgers) {
        // Mixed reads are held against what was written: so everything is written first.
        let fill = Pattern { random: false, reads: 0, trims: false };
        let needed = ledger.is_some() && job.pattern.reads > 0;
        fills.push(needed.then(|| after(job, fill)));
    }
    drive(&mut target, &fills, &mut ledgers, shared, (&names, "fill", quiet), stop)?;
    let cpu = |pid: Option<u32>| pid.and_then(crate::process::cpu_time);
    let before = (cpu(target.pid), show::usage());
    let all: Vec<Option<Job>> = jobs.iter().cloned().map(Some).collect();
    let mut reports = drive(&mut target, &all, &mut ledgers, shared, (&names, "", quiet), stop)?;
    let mut usage =
        Usage { target: before.0.and_then(|t| Some(cpu(target.pid)?.saturating_sub(t))), ..Usage::default() };
    let now = show::usage();
    usage.load = std::array::from_fn(|i| now.0[i].saturating_sub(before.1.0[i]));
    usage.counts = std::array::from_fn(|i| now.1[i].saturating_sub(before.1.1[i]));
    usage.commands = reports.iter().flatten().map(Report::commands).sum();
    usage.elapsed = reports.iter().flatten().map(|r| r.elapsed).max().unwrap_or_default();
    let waited = reports.iter().flatten().map(|r| r.waited).min().unwrap_or_default();
    usage.waited = waited.as_secs_f64() / usage.elapsed.as_secs_f64().max(1e-9);
    // As fio does: what was written is read back when all of it was.
    let back = Pattern { random: false, reads: 100, trims: false };
    let checks = jobs
        .iter()
        .zip(&specs)
        .map(|(job, s)| (!shared && s.verify && job.pattern.reads < 100).then(|| after(job, back)));
    let checks: Vec<Option<Job>> = checks.collect();
    let read = drive(&mut target, &checks, &mut ledgers, shared, (&names, "verify", quiet), stop)?;
    for (report, read) in reports.iter_mut().zip(read) {
        if let (Some(report), Some(read)) = (report, read) {
            report.reads.merge(&read.reads);
            report.verified += read.verified;
        }
    }
    let mut outcomes: Vec<Outcome<'s>> = Vec::new();
    let sections: Vec<&'s Section> = if shared {
        group.to_vec()
    } else {
        group.iter().flat_map(|s| std::iter::repeat_n(*s, usize::from(s.jobs))).collect()
    };
    for (section, report) in sections.into_iter().zip(reports.into_iter().flatten()) {
        match outcomes.last_mut() {
            Some(last) if section.group_reporting => last.report.merge(&report),
            _ => outcomes.push(Outcome { section, group: number, report, usage }),
        }
    }
    Ok(outcomes)
}

/// The same range, once and in order.
fn after(job: &Job, pattern: Pattern) -> Job {
    Job { pattern, amount: Amount::Once, rate: None, ramp: Duration::ZERO, ..job.clone() }
}

/// What a section asks of its namespace.
fn job(section: &Section, index: usize, target: &Target, shared: bool) -> anyhow::Result<Job> {
    let queue = if shared { 0 } else { index };
    let namespace = target.queues.get(queue).context("a job without a queue")?.namespace();
    let bytes = namespace.blocks * u64::from(namespace.block_size);
    let offset = section.offset.of(bytes) / section.block_size * section.block_size;
    let size = section.size.of(bytes).min(bytes.saturating_sub(offset));
    let amount = match section.time {
        Some(time) => Amount::Time(time),
        None => {
            let all = section.io_size.map_or(size.saturating_mul(section.loops), |size| size.of(bytes));
            Amount::Commands((all / section.block_size).max(1))
        }
    };
    Ok(Job {
        pattern: section.pattern,
        io_size: usize::try_from(section.block_size)?,
        offset,
        range: Some(size),
        amount,
        depth: section.depth,
        seed: section.seed.wrapping_add(index as u64 * 0x9e37_79b9),
        each_once: section.each_once,
        rate: section.rate,
        ramp: section.ramp,
    })
}

fn ledger(section: &Section, namespace: &host::Namespace) -> anyhow::Result<Option<Ledger>> {
    if !section.verify {
        return Ok(None);
    }
    let bytes = namespace.blocks * u64::from(namespace.block_size);
    let end = section.offset.of(bytes).saturating_add(section.size.of(bytes)).min(bytes);
    let blocks = end / u64::from(namespace.block_size);
    if blocks > 1 << 28 {
        bail!(
            "what is verified is remembered, every block of it: choose a part of the namespace by its size"
        );
    }
    Ok(Some(Ledger::new(section.seed, blocks, namespace.block_size)))
}

/// Runs the jobs that there are, each on its queue; shared, the first on all of them.
fn drive(
    target: &mut Target,
    jobs: &[Option<Job>],
    ledgers: &mut [Option<Ledger>],
    shared: bool,
    (names, what, quiet): (&str, &str, bool),
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Option<Report>>> {
    let mut queues = target.queues.iter_mut().map(|q| &mut **q as &mut dyn host::Queue);
    let mut loads = Vec::new();
    for (job, ledger) in jobs.iter().zip(ledgers) {
        let queues = queues.by_ref().take(if shared { usize::MAX } else { 1 }).collect();
        if let Some(job) = job {
            loads.push(Load { job: job.clone(), queues, ledger: ledger.as_mut() });
        }
    }
    if loads.is_empty() {
        return Ok(jobs.iter().map(|_| None).collect());
    }
    let result = workload::run_all(loads, |p| {
        if !quiet {
            let mut err = std::io::stderr();
            let _ = write!(err, "\r{names} {what}: {:3.0} %  {} commands ", p.share * 100.0, p.commands);
            let _ = err.flush();
        }
        !stop.load(Ordering::Relaxed)
    });
    if !quiet {
        eprint!("\r\x1b[K");
    }
    let mut reports = result?.into_iter();
    Ok(jobs.iter().map(|job| job.as_ref().and_then(|_| reports.next())).collect())
}
