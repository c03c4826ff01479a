//! What a target costs that nobody asks anything of: CPU, memory, and the time from its start to the first I/O.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Options;
use super::rows::Way;
use super::target::{IDLE, Kind};
use crate::process::capture;

/// Connections that stand there.
const CONNECTIONS: u16 = 64;
const WATCHED: Duration = Duration::from_secs(10);

/// Of one target.
pub struct Idle {
    pub name: String,
    /// Share of a core with 64 connections and 16 controllers.
    pub cpu: f64,
    /// Anonymous, shared and huge-page memory with them, in MiB.
    pub memory: f64,
    /// From the start to the end of the first I/O, in ms.
    pub first_io: f64,
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

/// The CPU time of a process, in hundredths of a second: USER_HZ is 100 wherever Linux tells it to programs.
pub fn ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    Ok(after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum())
}

pub fn measure(kind: &Kind, program: &Path, directory: &Path, options: &Options) -> Result<Idle> {
    let begin = Instant::now();
    let target = kind.start(directory, &options.target_cpus, true)?;
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
    hosts.0.push(hold(&reach, CONNECTIONS)?);
    for i in 0..IDLE {
        let socket = target.socket(&format!("idle{i}")).context("no socket")?;
        hosts.0.push(hold(&socket, 1)?);
    }
    // All of them come, and then it comes to rest.
    std::thread::sleep(Duration::from_secs(8));
    let pid = target.pid().context("no process")?;
    let (before, since) = (ticks(pid)?, Instant::now());
    std::thread::sleep(WATCHED);
    let cpu = (ticks(pid)? - before) / 100.0 / since.elapsed().as_secs_f64();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default()
    };
    let memory = (kib("RssAnon:") + kib("RssShmem:") + kib("HugetlbPages:")) / 1024.0;
    let name = target.name.clone();
    drop(hosts);
    target.stop()?;
    Ok(Idle { name, cpu, memory, first_io })
}
