//! The demo's servers: processes of this same program, which end with it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running `isthmus serve`.
pub struct Server {
    name: &'static str,
    child: Child,
    directory: PathBuf,
    grpc: SocketAddr,
    log: PathBuf,
}

/// A loopback port that nobody uses at the moment.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// CPU time that a process has had; zero once it is gone.
pub fn cpu_time(pid: u32) -> Duration {
    crate::process::cpu_time(pid).unwrap_or_default()
}

impl Server {
    /// Starts one in a directory of its own below `directory`, and waits until it answers.
    ///
    /// # Errors
    /// Why it did not start, with the end of its log.
    pub fn start(name: &'static str, directory: &Path, stop: &AtomicBool) -> anyhow::Result<Self> {
        let directory = directory.join(name);
        for sub in ["ctrlr", "state", "aio"] {
            std::fs::create_dir_all(directory.join(sub))?;
        }
        let grpc = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = directory.join("log");
        let file = std::fs::File::create(&log)?;
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["serve", "--die-with-parent", "--grpc-addr"]).arg(grpc.to_string());
        for (flag, sub) in [("--ctrlr-dir", "ctrlr"), ("--state-dir", "state"), ("--aio-dir", "aio")] {
            command.arg(flag).arg(directory.join(sub));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().context("start a server")?;
        let mut server = Server { name, child, directory, grpc, log };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(grpc).is_err() {
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            if let Some(status) = server.child.try_wait()? {
                bail!("the {name} ended at once ({status}):\n{}", server.last_words());
            }
            ensure!(Instant::now() < deadline, "the {name} does not answer:\n{}", server.last_words());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its directories' parent.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its gRPC API answers.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Ends it in an orderly way.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the {} ended badly ({status}):\n{}", self.name, self.last_words());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the {} does not end:\n{}", self.name, self.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
