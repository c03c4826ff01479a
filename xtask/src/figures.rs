//! `cargo xtask figures`: what this build does on this machine, as docs/performance.md has it. The target has one CPU,
//! the load another; figures are medians of several runs.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::perf::cores::Cores;
use crate::process::capture;

/// Runs of a figure that are repeated at most.
const TRIALS: usize = 10;
const DEPTHS: [u32; 3] = [1, 32, 128];
const PATIENCE: Duration = Duration::from_secs(30);

/// How the figures are taken.
#[derive(clap::Args)]
pub struct Options {
    /// CPU of the target.
    #[arg(long, default_value_t = 0)]
    target_cpu: usize,
    /// CPU of the load.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Runs of each figure; their median is printed.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// One path from host to blocks, and how `isthmus bench` reaches it.
struct Route {
    name: &'static str,
    arguments: Vec<String>,
}

/// Takes the figures and prints them as a table in Markdown.
///
/// # Errors
/// When a server or a load does not run.
pub fn figures(program: &Path, options: &Options) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("isthmus-figures.{}", std::process::id()));
    let outcome = take(program, options, &directory);
    fs::remove_dir_all(&directory).ok();
    println!("{}", outcome?);
    Ok(())
}

fn take(program: &Path, options: &Options, directory: &Path) -> Result<String> {
    let (direct, far) = (free_port()?, free_port()?);
    let nqn = |name: &str| format!("nqn.2024-01.org.isthmus:figures-{name}");
    let mut first = String::new();
    subsystem(&mut first, "direct", &nqn("direct"), "near-ram");
    subsystem(&mut first, "away", &nqn("away"), "away-ram");
    listener(&mut first, "direct", direct);
    listener(&mut first, "away", far);
    socket(&mut first, "direct");
    for volume in ["near-ram", "away-ram"] {
        write!(first, "[[malloc_volumes]]\nid = \"{volume}\"\nblock_size = 4096\nblocks_count = 65536\n\n")?;
    }
    // The chain's remote is this same process, so that all of it is on one CPU: it is declared once its target is there.
    let mut second = String::new();
    write!(
        second,
        "[[nvme_remote_controllers]]\nid = \"remote\"\nmultipath = \"NVME_MULTIPATH_DISABLE\"\n\n\
         [[nvme_paths]]\nid = \"path0\"\nparent = \"remote\"\ntrtype = \"NVME_TRANSPORT_TYPE_TCP\"\ntraddr = \"127.0.0.1\"\n\
         fabrics = {{ trsvcid = {far}, subnqn = \"{}\", adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }}\n\n\
         [[encrypted_volumes]]\nid = \"secret\"\nvolume_name_ref = \"remoten1\"\ncipher = \"ENCRYPTION_TYPE_AES_XTS_256\"\n\
         key_file = \"{}\"\n\n\
         [[qos_volumes]]\nid = \"calm\"\nvolume_name_ref = \"secret\"\nlimits = {{ max = {{ rw_iops_kiops = 10000 }} }}\n\n",
        nqn("away"),
        directory.join("key").display(),
    )?;
    subsystem(&mut second, "whole", &nqn("whole"), "calm");
    socket(&mut second, "whole");
    fs::create_dir_all(directory)?;
    fs::write(directory.join("key"), (0..64).collect::<Vec<u8>>())?;
    fs::write(directory.join("first.toml"), &first)?;
    fs::write(directory.join("second.toml"), &second)?;
    Server::start(program, options, directory, "first.toml")?.stop()?;
    let server = Server::start(program, options, directory, "second.toml")?;

    let cores = Cores::new(&options.target_cpu.to_string(), options.load_cpu)?;
    let at = |name: &str| directory.join("ctrlr").join(name).display().to_string();
    let routes = [
        Route { name: "vfio-user → RAM", arguments: vec!["--vfio-user".into(), at("direct")] },
        Route {
            name: "NVMe/TCP → RAM",
            arguments: vec!["--tcp".into(), format!("127.0.0.1:{direct}"), "--nqn".into(), nqn("direct")],
        },
        Route {
            name: "vfio-user → QoS → AES-XTS-256 → NVMe/TCP → RAM",
            arguments: vec!["--vfio-user".into(), at("whole")],
        },
    ];
    let mut table = String::from(
        "| path | 4 KiB random | depth | IOPS | p50 µs | p99 µs | p99.9 µs | target's CPU µs per command |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for route in &routes {
        // Memory that was never written is read faster than any other.
        let jobs = concat!(env!("CARGO_MANIFEST_DIR"), "/../fio-jobs/precondition.fio");
        capture(Command::new(program).arg("bench").args(&route.arguments).args(["--job", jobs, "--quiet"]))?;
        for pattern in ["read", "write"] {
            for depth in DEPTHS {
                eprintln!("{}, {pattern}, depth {depth}", route.name);
                let row = median(program, options, (&cores, &server), route, pattern, depth)?;
                let [iops, p50, p99, p999, cpu] = row;
                writeln!(
                    table,
                    "| {} | {pattern} | {depth} | {iops:.0} | {p50:.1} | {p99:.1} | {p999:.1} | {cpu:.2} |",
                    route.name
                )?;
            }
        }
    }
    server.stop()?;
    // Where they were apart all the time nothing was repeated: this alone tells.
    writeln!(table, "\nbetween the CPUs: {}", cores.describe())?;
    Ok(table)
}

fn median(
    program: &Path,
    options: &Options,
    (cores, server): (&Cores, &Server),
    route: &Route,
    pattern: &str,
    depth: u32,
) -> Result<[f64; 5]> {
    let mut rows = Vec::new();
    let mut again = TRIALS;
    while rows.len() < options.runs.max(1) {
        cores.wait();
        let mut command = Command::new(program);
        command.arg("bench").args(&route.arguments).args(["--pattern", &format!("rand{pattern}")]);
        command.args(["--output-format", "json"]);
        command.args(["--depth", &depth.to_string(), "--seconds", &options.seconds.to_string()]);
        command.args([
            "--cpu",
            &options.load_cpu.to_string(),
            "--target-pid",
            &server.child.id().to_string(),
        ]);
        let result: Value = serde_json::from_str(&capture(&mut command)?).context("what bench printed")?;
        // The hypervisor may have taken the CPUs apart.
        if !cores.is_near(cores.between()) && again > 0 {
            again -= 1;
            continue;
        }
        let (job, side) = (&result["jobs"][0], &result["jobs"][0][pattern]);
        let number = |v: &Value| v.as_f64().context("a figure is missing");
        let percentile =
            |p: &str| Ok::<_, anyhow::Error>(number(&side["clat_ns"]["percentile"][p])? / 1000.0);
        rows.push([
            number(&side["iops"])?,
            percentile("50.000000")?,
            percentile("99.000000")?,
            percentile("99.900000")?,
            number(&job["isthmus"]["target_cpu_us_per_io"])?,
        ]);
    }
    Ok(std::array::from_fn(|figure| {
        let mut values: Vec<f64> = rows.iter().map(|row| row[figure]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }))
}

fn subsystem(to: &mut String, id: &str, nqn: &str, volume: &str) {
    *to += &format!(
        "[[nvme_subsystems]]\nid = \"{id}\"\nspec = {{ nqn = \"{nqn}\" }}\n\n\
         [[nvme_namespaces]]\nid = \"{id}\"\nparent = \"{id}\"\nspec = {{ host_nsid = 1, volume_name_ref = \"{volume}\" }}\n\n"
    );
}

fn listener(to: &mut String, subsystem: &str, port: u16) {
    *to += &format!(
        "[[nvme_controllers]]\nid = \"tcp0\"\nparent = \"{subsystem}\"\n\
         spec = {{ trtype = \"NVME_TRANSPORT_TYPE_TCP\", fabrics_id = {{ traddr = \"127.0.0.1\", trsvcid = \"{port}\", \
         adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }} }}\n\n"
    );
}

fn socket(to: &mut String, subsystem: &str) {
    *to += &format!(
        "[[nvme_controllers]]\nid = \"pcie0\"\nparent = \"{subsystem}\"\n\
         spec = {{ trtype = \"NVME_TRANSPORT_TYPE_PCIE\", pcie_id = {{ port_id = 0, physical_function = 0, \
         virtual_function = 0 }} }}\n\n"
    );
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A running `isthmus serve`.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(program: &Path, options: &Options, directory: &Path, config: &str) -> Result<Self> {
        let grpc = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = directory.join("log");
        for name in ["ctrlr", "state"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let mut command = Command::new(program);
        command.args(["serve", "--die-with-parent", "--grpc-addr", &grpc.to_string()]);
        command.args(["--cpus", &options.target_cpu.to_string()]).arg("--config").arg(directory.join(config));
        command
            .arg("--ctrlr-dir")
            .arg(directory.join("ctrlr"))
            .arg("--state-dir")
            .arg(directory.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let mut server = Self { child: command.spawn().context("isthmus serve does not start")?, log };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(grpc).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("isthmus serve: {status}\n{}", fs::read_to_string(&server.log)?);
            }
            ensure!(Instant::now() < deadline, "isthmus serve does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn stop(mut self) -> Result<()> {
        capture(Command::new("kill").arg(self.child.id().to_string()))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "isthmus serve: {status}\n{}", fs::read_to_string(&self.log)?);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
