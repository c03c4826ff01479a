//! `cargo xtask perf`: the same loads on Isthmus and on a peer, interleaved, each target on the same core and the load on
//! another, as a page that stands alone and a table of ratios.

mod chart;
mod idle;
mod page;
mod rows;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::capture;
use rows::{Goal, Row, Way, rows};
use target::{Kind, Target};

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

/// Runs that may be repeated because others took the target's processor, so many times.
const TRIALS: usize = 4;
/// The share of it from which they did.
const DISTURBED: f64 = 0.05;

/// What one run of a row says.
#[derive(Clone, Debug)]
struct Run {
    iops: f64,
    /// Latency in µs by percentile.
    latency: Vec<(f64, f64)>,
    /// The target's CPU in µs per I/O.
    cpu: Option<f64>,
    limit: String,
}

impl Run {
    fn at(&self, percentile: f64) -> f64 {
        self.latency.iter().find(|(p, _)| *p >= percentile).map_or(0.0, |(_, us)| *us)
    }
}

/// The runs of a row on one target.
type Runs = Vec<Run>;

/// A median, the least and the most.
#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

fn spread(runs: &Runs, value: impl Fn(&Run) -> f64) -> Spread {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or_default();
    Spread { median: at(values.len() / 2), least: at(0), most: at(values.len().saturating_sub(1)) }
}

/// All that was found.
struct Results {
    /// The targets' names: Isthmus, and the peer.
    names: Vec<String>,
    rows: Vec<(Row, Vec<Runs>)>,
    idle: Vec<idle::Idle>,
    /// The largest share of the target's first CPU that others took in a run.
    disturbed: f64,
    machine: Vec<(String, String)>,
    command: String,
}

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
    let outcome = measure(program, root, options, &kinds, chosen, wanted("idle"), &directory);
    let results = match outcome {
        Ok(results) => results,
        Err(error) => return Err(error.context(format!("its files are in {}", directory.display()))),
    };
    fs::remove_dir_all(&directory).ok();
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
    chosen: Vec<Row>,
    idle: bool,
    directory: &Path,
) -> Result<Results> {
    let mut results = Results {
        names: Vec::new(),
        rows: Vec::new(),
        idle: Vec::new(),
        disturbed: 0.0,
        machine: machine(options),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
    };
    if idle {
        for kind in kinds.iter().filter(|kind| !matches!(kind, Kind::There { .. })) {
            results.idle.push(idle::measure(kind, program, &directory.join("idle"), options)?);
        }
    }
    if chosen.is_empty() {
        return Ok(results);
    }
    let mut targets = Vec::new();
    for kind in kinds {
        let target = kind.start(directory, &options.target_cpus, false)?;
        // Memory that was never written is read faster than any other.
        for way in [Way::Tcp, Way::Chain, Way::Four] {
            if !chosen.iter().any(|row| row.way.name() == way.name()) {
                continue;
            }
            for nsid in 1..=if way == Way::Four { 4 } else { 1 } {
                let Some(reach) = target.reach(way) else { continue };
                let fill =
                    ["--job", "fio-jobs/precondition.fio", "--nsid", &nsid.to_string()].map(String::from);
                bench(program, root, options, &target, &[&reach[..], &fill].concat())
                    .with_context(|| format!("{}, fill {}", target.name, way.name()))?;
            }
        }
        target.pause(true)?;
        targets.push(target);
    }
    results.names = targets.iter().map(|target| target.name.clone()).collect();
    for (i, row) in chosen.iter().enumerate() {
        eprintln!("{} of {}: {}", i + 1, chosen.len(), row.id);
        let mut runs: Vec<Runs> = targets.iter().map(|_| Vec::new()).collect();
        for _ in 0..options.runs.max(1) {
            for (target, runs) in targets.iter().zip(&mut runs) {
                let Some(reach) = target.reach(row.way) else { continue };
                let seconds = ["--seconds".to_owned(), options.seconds.to_string()];
                let arguments = [&reach[..], &row.load, &seconds].concat();
                for trial in 0..TRIALS {
                    target.pause(false)?;
                    let before = taken(options, target);
                    let run = bench(program, root, options, target, &arguments);
                    let others = taken(options, target) - before;
                    target.pause(true)?;
                    let share = others / options.seconds.max(1) as f64;
                    match run.and_then(|json| one(row, &json)) {
                        Ok(_) if share > DISTURBED && trial + 1 < TRIALS => continue,
                        Ok(run) => runs.push(run),
                        Err(error) => eprintln!("{}, {}: {error:#}", target.name, row.id),
                    }
                    results.disturbed = results.disturbed.max(share);
                    break;
                }
            }
        }
        results.rows.push((row.clone(), runs));
    }
    targets.into_iter().try_for_each(Target::stop)?;
    Ok(results)
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

/// The figures of a row in bench's JSON; jobs that ran side by side are one.
fn one(row: &Row, json: &Value) -> Result<Run> {
    let jobs = json["jobs"].as_array().context("no jobs")?;
    ensure!(!jobs.is_empty(), "no jobs");
    let mut run = Run { iops: 0.0, latency: Vec::new(), cpu: None, limit: String::new() };
    for job in jobs {
        for side in ["read", "write", "trim"] {
            run.iops += job[side]["iops"].as_f64().unwrap_or_default();
        }
    }
    let side = &jobs[0][if row.writes { "write" } else { "read" }]["clat_ns"]["percentile"];
    let all: BTreeMap<String, f64> = serde_json::from_value(side.clone()).unwrap_or_default();
    run.latency = all.iter().filter_map(|(p, ns)| Some((p.parse().ok()?, ns / 1000.0))).collect();
    run.latency.sort_by(|a, b| a.0.total_cmp(&b.0));
    run.cpu = jobs[0]["isthmus"]["target_cpu_us_per_io"].as_f64();
    run.limit = jobs[0]["isthmus"]["limit"].as_str().unwrap_or_default().to_owned();
    Ok(run)
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
        ("CPUs".into(), format!("target {}, load {}", options.target_cpus, options.load_cpu)),
        ("runs".into(), format!("{} of {} s each, in turns", options.runs, options.seconds)),
        ("RAM volumes".into(), "256 MiB of 4 KiB blocks, written once before".into()),
    ]
}
