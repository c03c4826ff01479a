//! `cargo xtask perf`: the same loads on Isthmus and on a peer, interleaved, each target on the same core and the load on
//! another, as a page that stands alone and a table of ratios.

mod chart;
pub(crate) mod cores;
mod idle;
mod isthmus;
mod page;
mod results;
mod rows;
mod run;
mod spdk;
mod target;
mod wake;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::capture;
use cores::Cores;
use results::Results;
use rows::{Goal, Row, Way, rows};
use run::{Run, Runs, furthest};
use target::{Kind, Setup, Target};

/// What is compared, and how.
#[derive(clap::Args)]
pub struct Options {
    /// The peer: spdk=DIR, where nvmf_tgt lies in DIR/build/bin or DIR/bin, or NAME=ADDRESS/NQN, a target of any vendor
    /// that runs already, such as Linux nvmet. Without one Isthmus is measured alone.
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// Only rows whose name has this in it (`idle` is one too); may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only rows that a ratio is asked of, without the other points of the plots.
    #[arg(long)]
    ratios: bool,
    /// CPUs of the target: one shard or reactor each.
    #[arg(long, default_value = "0", value_name = "CPUS")]
    target_cpus: String,
    /// CPU of the load.
    #[arg(long, default_value_t = 1, value_name = "CPU")]
    load_cpu: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Runs of each row on each target.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the page goes.
    #[arg(long, default_value = "target/perf.html", value_name = "FILE")]
    output: PathBuf,
    /// Keep what is measured in this file, and make the page of all that it has: a comparison can be made in pieces.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Another build of Isthmus than this one.
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
    /// List the rows and end.
    #[arg(long)]
    list: bool,
}

impl Options {
    /// The program to measure, where it is not to be built.
    pub fn ready(&self) -> Option<PathBuf> {
        self.program.clone().or_else(|| self.list.then(PathBuf::new))
    }
}

/// For so long a target that does not take its first writes is asked again.
const SETTLING: Duration = Duration::from_secs(5);
/// A run is repeated because others took the target's processor, or because that and the load's were apart, so many times
/// at most.
const TRIALS: usize = 6;
/// The share of it from which they did.
const DISTURBED: f64 = 0.05;

/// Measures, writes the page and prints the table of ratios.
///
/// # Errors
/// When a target or a load does not run.
pub fn perf(program: &Path, root: &Path, options: &Options) -> Result<()> {
    let wanted = |id: &str| options.only.is_empty() || options.only.iter().any(|only| id.contains(only));
    let chosen: Vec<Row> = rows()
        .into_iter()
        .filter(|row| wanted(&row.id) && (!options.ratios || !matches!(row.goal, Goal::None)))
        .collect();
    if options.list {
        chosen.iter().for_each(|row| println!("{}", row.id));
        println!("idle");
        return Ok(());
    }
    let mut kinds = vec![Kind::Isthmus(program.canonicalize()?)];
    kinds.extend(options.peer.as_deref().map(Kind::parse).transpose()?);
    let directory = std::env::temp_dir().join(format!("isthmus-perf.{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let outcome = measure(program, root, options, &kinds, &chosen, wanted("idle"), &directory);
    let mut results = match outcome {
        Ok(results) => results,
        Err(error) => return Err(error.context(format!("its files are in {}", directory.display()))),
    };
    fs::remove_dir_all(&directory).ok();
    if let Some(path) = &options.results {
        let path = root.join(path);
        let mut all = Results::load(&path).with_context(|| path.display().to_string())?;
        all.merge(results);
        all.save(&path)?;
        results = all;
    }
    println!("{}", page::table(&results));
    let output = root.join(&options.output);
    fs::write(&output, page::page(&results)).with_context(|| output.display().to_string())?;
    println!("the page is {}", output.display());
    Ok(())
}

fn measure(
    program: &Path,
    root: &Path,
    options: &Options,
    kinds: &[Kind],
    chosen: &[Row],
    idle: bool,
    directory: &Path,
) -> Result<Results> {
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut results = Results { machine: machine(options), commands: vec![command], ..Results::default() };
    if idle {
        for kind in kinds.iter().filter(|kind| !matches!(kind, Kind::There { .. })) {
            results.idle.push(idle::measure(kind, program, &directory.join("idle"), options)?);
        }
    }
    let cores = Cores::new(&options.target_cpus, options.load_cpu)?;
    let mut number = 0;
    for setup in [Setup::Paths, Setup::Waking, Setup::Crowd, Setup::Shards(1), Setup::Shards(2)] {
        let rows: Vec<&Row> = chosen.iter().filter(|row| row.setup == setup).collect();
        if rows.is_empty() {
            continue;
        }
        let awake = (setup == Setup::Waking).then(|| kinds[0].awake()).flatten();
        let kinds: Vec<Kind> = kinds.iter().cloned().chain(awake).collect();
        let targets = start(program, root, options, &kinds, setup, &rows, directory)?;
        let mut names: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
        // The peer's place is the second, whether there is one or not.
        let no_peer = setup == Setup::Waking && targets.len() == 2;
        if no_peer {
            names.insert(1, String::new());
        }
        if names.len() > results.names.len() {
            results.names = names;
        }
        let mut found = Vec::new();
        for row in rows {
            number += 1;
            eprintln!("{number} of {}: {}", chosen.len(), row.id);
            found.push((row, take_turns(program, root, options, &cores, &targets, row)?));
        }
        for (row, (mut runs, disturbed)) in found {
            results.disturbed = results.disturbed.max(disturbed);
            // How near they can be may have been seen after the row.
            if !cores.is_near(furthest(&runs)) {
                eprintln!("again, since the CPUs were apart: {}", row.id);
                let (again, disturbed) = take_turns(program, root, options, &cores, &targets, row)?;
                let whole = again.iter().zip(&runs).all(|(again, runs)| again.len() >= runs.len());
                if whole && furthest(&again) < furthest(&runs) {
                    results.disturbed = results.disturbed.max(disturbed);
                    runs = again;
                }
                cores.repeats();
            }
            if no_peer {
                runs.insert(1, Runs::new());
            }
            results.rows.push((row.clone(), runs));
        }
        targets.into_iter().try_for_each(Target::stop)?;
    }
    results.machine.push(("between the CPUs".into(), cores.describe()));
    results.machine.push(("a thread that does nothing stands still for over 10 µs".into(), cores.stalls()));
    results
        .machine
        .push(("a thread that waits in recv(2) answers later than one that looks".into(), cores.wakes()));
    Ok(results)
}

/// The targets with that set-up, stopped.
fn start(
    program: &Path,
    root: &Path,
    options: &Options,
    kinds: &[Kind],
    setup: Setup,
    rows: &[&Row],
    directory: &Path,
) -> Result<Vec<Target>> {
    let cpus = match setup {
        // There may be no third CPU: the second shard has the load's.
        Setup::Shards(2) => format!("{},{}", options.target_cpus, options.load_cpu),
        _ => options.target_cpus.clone(),
    };
    let directory = directory.join(format!("{setup:?}"));
    let mut targets = Vec::new();
    for kind in kinds {
        let target = kind.start(&directory, &cpus, setup)?;
        // Memory that was never written is read faster than any other.
        for way in [Way::Tcp, Way::Chain, Way::Four, Way::Crowd] {
            // One controller more of a subsystem has its volume.
            if !rows.iter().any(|row| row.way.name().starts_with(&way.name())) {
                continue;
            }
            for nsid in 1..=if way == Way::Four { 4 } else { 1 } {
                let Some(reach) = target.reach(way) else { continue };
                let fill =
                    ["--job", "fio-jobs/precondition.fio", "--nsid", &nsid.to_string()].map(String::from);
                let fill = [&reach[..], &fill].concat();
                let mut filled = bench(program, root, options, &target, &fill);
                // What stands on a remote comes a moment after its controller does.
                let begin = Instant::now();
                while filled.is_err() && begin.elapsed() < SETTLING {
                    std::thread::sleep(Duration::from_millis(100));
                    filled = bench(program, root, options, &target, &fill);
                }
                filled.with_context(|| format!("{}, fill {}", target.name, way.name()))?;
            }
        }
        target.pause(true)?;
        targets.push(target);
    }
    Ok(targets)
}

/// Runs a row on each target in turns; the runs of each, and the largest share of the CPU that others took.
fn take_turns(
    program: &Path,
    root: &Path,
    options: &Options,
    cores: &Cores,
    targets: &[Target],
    row: &Row,
) -> Result<(Vec<Runs>, f64)> {
    let mut runs: Vec<Runs> = targets.iter().map(|_| Vec::new()).collect();
    let (mut paces, mut asked) = (vec![Vec::new(); targets.len()], vec![None; targets.len()]);
    let mut disturbed: f64 = 0.0;
    for _ in 0..options.runs.max(1) {
        for (i, target) in targets.iter().enumerate() {
            let Some(reach) = target.reach(row.way) else { continue };
            let mut turn = |rate: &[String]| {
                let seconds = ["--seconds".to_owned(), options.seconds.to_string()];
                let arguments = [&reach[..], &row.load, &seconds, rate].concat();
                let (run, share) = undisturbed(program, root, options, (cores, target), row, &arguments)?;
                disturbed = disturbed.max(share);
                Ok::<_, anyhow::Error>(run)
            };
            if let (Some(pace), true) = (row.pace, paces[i].is_empty()) {
                let Some(most) = turn(&[])? else { continue };
                paces[i] = vec!["--rate".to_owned(), format!("{:.0}", most.iops * pace)];
                asked[i] = most.between;
            }
            let run = turn(&paces[i])?;
            // The pace is part of the run.
            runs[i].extend(run.map(|run| run.after(asked[i])));
        }
    }
    Ok((runs, disturbed))
}

/// One run, again while others take the target's CPU or it is far from the load's; nothing if it fails, which is said. And
/// the share that others took.
fn undisturbed(
    program: &Path,
    root: &Path,
    options: &Options,
    (cores, target): (&Cores, &Target),
    row: &Row,
    arguments: &[String],
) -> Result<(Option<Run>, f64)> {
    for trial in 1.. {
        cores.wait();
        target.pause(false)?;
        let (before, since) = (taken(options, target), Instant::now());
        let run = bench(program, root, options, target, arguments);
        let others = taken(options, target) - before;
        target.pause(true)?;
        let between = cores.between();
        // Connecting takes its time too. With two shards the load's CPU is one of the target's. On a CPU that sleeps the
        // kernel counts by ticks which come while it is awake: too much.
        let share = match row.setup {
            Setup::Shards(2) | Setup::Waking => 0.0,
            _ => others / since.elapsed().as_secs_f64().max(1.0),
        };
        match run.and_then(|json| Run::of(row, &json)) {
            Ok(_) if share > DISTURBED && trial < TRIALS => {}
            Ok(_) if !cores.is_near(between) && trial < TRIALS => cores.repeats(),
            Ok(run) => return Ok((Some(Run { between, ..run }), share)),
            Err(error) => {
                eprintln!("{}, {}: {error:#}", target.name, row.id);
                return Ok((None, share));
            }
        }
    }
    Ok((None, 0.0))
}

fn bench(
    program: &Path,
    root: &Path,
    options: &Options,
    target: &Target,
    arguments: &[String],
) -> Result<Value> {
    let mut command = Command::new(program);
    command.arg("bench").args(arguments).args(["--output-format", "json", "--quiet"]).current_dir(root);
    command.args(["--cpu", &options.load_cpu.to_string()]);
    if let Some(pid) = target.pid() {
        command.args(["--target-pid", &pid.to_string()]);
    }
    serde_json::from_str(&capture(&mut command)?).context("what bench printed")
}

/// Seconds of the target's CPUs that others have taken: all that ran there in user space or in system calls, without the
/// target.
fn taken(options: &Options, target: &Target) -> f64 {
    let Some(pid) = target.pid() else { return 0.0 };
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let of = |cpu: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} "))).unwrap_or_default();
        line.split_whitespace().take(3).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
    };
    let all: f64 = options.target_cpus.split(',').map(of).sum();
    (all - idle::ticks(pid).unwrap_or_default()) / 100.0
}

/// What the machine is.
fn machine(options: &Options) -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let field = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let flags = field("flags");
    let known = ["avx2", "avx512f", "aes", "vaes", "vpclmulqdq", "hypervisor"];
    let flags: Vec<&str> = known.into_iter().filter(|flag| flags.split(' ').any(|f| f == *flag)).collect();
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let memory =
        read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "").trim().to_owned();
    let line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let pages = line(read("/sys/kernel/mm/transparent_hugepage/enabled"));
    vec![
        ("processor".into(), format!("{} × {}, {}", cpus, field("model name"), flags.join(" "))),
        ("memory".into(), memory),
        ("kernel".into(), line(read("/proc/sys/kernel/osrelease"))),
        ("transparent huge pages".into(), pages),
        ("congestion control".into(), line(read("/proc/sys/net/ipv4/tcp_congestion_control"))),
        ("CPUs".into(), format!("target {}, load {}", options.target_cpus, options.load_cpu)),
        ("RAM volumes".into(), "256 MiB of 4 KiB blocks, written once before".into()),
    ]
}
