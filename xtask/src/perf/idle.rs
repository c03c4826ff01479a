//! What a target costs that nobody asks anything of: CPU, memory, and the time from its start to the first I/O.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Options;
use super::rows::Way;
use super::target::{IDLE, Kind, Setup};
use crate::process::capture;

/// Connections that stand there.
const CONNECTIONS: u16 = 64;
const WATCHED: Duration = Duration::from_secs(10);
/// After that all of them have come.
const SETTLED: Duration = Duration::from_secs(3);

/// Of one target.
pub struct Idle {
    pub name: String,
    /// Share of a core with 64 connections and 16 controllers.
    pub cpu: f64,
    /// Anonymous, shared and huge-page memory with them, in MiB.
    pub memory: f64,
    /// What each connection of 64, and each controller of 16 with one queue of one command, adds to it, in KiB.
    pub per_connection: f64,
    pub per_controller: f64,
    /// From the start to the end of the first I/O, in ms.
    pub first_io: f64,
}

impl Idle {
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name, "cpu": self.cpu, "memory": self.memory, "first_io": self.first_io,
            "per_connection": self.per_connection, "per_controller": self.per_controller,
        })
    }

    pub fn from_json(json: &Value) -> Result<Self> {
        let number = |key: &str| json[key].as_f64().with_context(|| key.to_owned());
        Ok(Idle {
            name: json["name"].as_str().unwrap_or_default().to_owned(),
            cpu: number("cpu")?,
            memory: number("memory")?,
            per_connection: number("per_connection")?,
            per_controller: number("per_controller")?,
            first_io: number("first_io")?,
        })
    }
}

/// Hosts that are connected and do nothing.
struct Hosts(Vec<Child>);

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.0 {
            let _ = host.kill();
            let _ = host.wait();
        }
    }
}

/// Anonymous, shared and huge-page memory of a process, in KiB.
fn memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default()
    };
    Ok(["RssAnon:", "RssShmem:", "HugetlbPages:"].map(kib).iter().sum())
}

/// The CPU time of a process, in hundredths of a second: USER_HZ is 100 wherever Linux tells it to programs.
pub fn ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    Ok(after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum())
}

pub fn measure(kind: &Kind, program: &Path, directory: &Path, options: &Options) -> Result<Idle> {
    let begin = Instant::now();
    let target = kind.start(directory, &options.target_cpus, Setup::Idle)?;
    eprintln!("idle: {}", target.name);
    let reach = target.reach(Way::Tcp).context("no address")?;
    let mut first = Command::new(program);
    capture(first.arg("bench").args(&reach).args(["--seconds", "0", "--quiet"]))?;
    let first_io = begin.elapsed().as_secs_f64() * 1e3;

    let mut hosts = Hosts(Vec::new());
    let hold = |reach: &[String], queues: u16| {
        let mut host = Command::new(program);
        host.arg("bench").args(reach).args(["--hold", "--seconds", "3600", "--queues", &queues.to_string()]);
        host.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    };
    let pid = target.pid().context("no process")?;
    let alone = memory(pid)?;
    hosts.0.push(hold(&reach, CONNECTIONS)?);
    std::thread::sleep(SETTLED);
    let connected = memory(pid)?;
    for i in 0..IDLE {
        let socket = target.socket(&format!("alone{i}")).context("no socket")?;
        hosts.0.push(hold(&socket, 1)?);
    }
    // All of them come, and then it comes to rest.
    std::thread::sleep(Duration::from_secs(8));
    let (before, since) = (ticks(pid)?, Instant::now());
    std::thread::sleep(WATCHED);
    let cpu = (ticks(pid)? - before) / 100.0 / since.elapsed().as_secs_f64();
    let all = memory(pid)?;
    let name = target.name.clone();
    drop(hosts);
    target.stop()?;
    Ok(Idle {
        name,
        cpu,
        memory: all / 1024.0,
        per_connection: (connected - alone) / f64::from(CONNECTIONS),
        per_controller: (all - connected) / IDLE as f64,
        first_io,
    })
}
