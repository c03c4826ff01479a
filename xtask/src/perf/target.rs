//! The targets that are compared: Isthmus, SPDK's `nvmf_tgt`, and what already listens somewhere.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::rows::Way;
use super::{isthmus, spdk};
use crate::process::capture;

pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a RAM volume, in blocks of 4096.
pub const BLOCKS: u64 = 65_536;
/// What encrypts in the chain: the data key and the tweak key.
pub const KEYS: [&str; 2] = [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f",
];
/// Controllers that only stand there, for what idleness costs.
pub const IDLE: usize = 16;

/// vfio-user controllers, for what many of them cost.
pub const CROWD: usize = 200;
/// Namespaces of one subsystem each, for what many of them cost.
pub const NAMESPACES: [u16; 3] = [1, 64, 1024];

/// The name of [`Kind::Awake`].
pub const AWAKE: &str = "Isthmus awake";

/// What a target has when it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// A subsystem for each path.
    Paths,
    /// A subsystem over TCP and vfio-user, with both kinds of doorbells where there are two.
    Waking,
    /// A subsystem over TCP for many connections, [`CROWD`] with a vfio-user controller, and one each with [`NAMESPACES`].
    Crowd,
    /// A subsystem over TCP, served on so many CPUs.
    Shards(u16),
    /// A subsystem over TCP, and [`IDLE`] with a vfio-user controller.
    Idle,
}

pub fn nqn(name: &str) -> String {
    format!("nqn.2024-01.org.isthmus:perf-{name}")
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A target that runs.
pub struct Target {
    pub name: String,
    /// The process, where it is one of ours to stop and to look at.
    child: Option<Child>,
    address: Option<(SocketAddr, Option<String>)>,
    sockets: Option<PathBuf>,
    log: PathBuf,
}

impl Target {
    /// One that has just been started.
    pub fn new(name: &str, child: Child, address: SocketAddr, sockets: PathBuf, log: PathBuf) -> Self {
        let (address, sockets) = (Some((address, None)), Some(sockets));
        Target { name: name.to_owned(), child: Some(child), address, sockets, log }
    }

    /// How bench reaches a way, if the target has it.
    pub fn reach(&self, way: Way) -> Option<Vec<String>> {
        if let Way::Controllers(n) = way {
            return (0..n)
                .map(|i| self.socket(&format!("alone{i}")))
                .collect::<Option<Vec<_>>>()
                .map(|all| all.concat());
        }
        if way.is_tcp() {
            let (address, only) = self.address.as_ref()?;
            if only.is_some() && way != Way::Tcp {
                return None;
            }
            let nqn = only.clone().unwrap_or_else(|| nqn(&way.name()));
            return Some(vec!["--tcp".into(), address.to_string(), "--nqn".into(), nqn]);
        }
        let socket = self.sockets.as_ref()?.join(way.name());
        socket.exists().then(|| self.socket(&way.name()))?
    }

    /// How bench reaches the vfio-user controller of a subsystem.
    pub fn socket(&self, name: &str) -> Option<Vec<String>> {
        let path = self.sockets.as_ref()?.join(name);
        Some(vec!["--vfio-user".into(), path.display().to_string()])
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Stops its clock, or lets it go on: a target that polls would take the processor of the one that is measured.
    pub fn pause(&self, pause: bool) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let signal = if pause { "-STOP" } else { "-CONT" };
        capture(Command::new("kill").args([signal, &pid.to_string()])).map(drop)
    }

    /// Waits until it is ready.
    pub fn wait(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("{}: {status}\n{}", self.name, fs::read_to_string(&self.log)?);
            }
            ensure!(Instant::now() < deadline, "{} does not answer", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it in an orderly way.
    pub fn stop(mut self) -> Result<()> {
        self.pause(false)?;
        if let Some(child) = &mut self.child {
            capture(Command::new("kill").arg(child.id().to_string()))?;
            let deadline = Instant::now() + PATIENCE;
            while child.try_wait()?.is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What can be compared.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The release build.
    Isthmus(PathBuf),
    /// The same, with shards that never sleep.
    Awake(PathBuf),
    /// An installed SPDK: its directory.
    Spdk(PathBuf),
    /// A target that somebody has set up: a subsystem with one namespace at an address.
    There { name: String, address: SocketAddr, nqn: String },
}

impl Kind {
    /// From `spdk=DIR` or `NAME=ADDRESS/NQN`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once('=').context("a peer is spdk=DIR or NAME=ADDRESS/NQN")?;
        if name == "spdk" {
            return Ok(Kind::Spdk(PathBuf::from(rest).canonicalize().with_context(|| rest.to_owned())?));
        }
        let (address, nqn) = rest.split_once('/').context("a peer is spdk=DIR or NAME=ADDRESS/NQN")?;
        Ok(Kind::There { name: name.to_owned(), address: address.parse()?, nqn: nqn.to_owned() })
    }

    /// The same with shards that never sleep, if it is ours.
    pub fn awake(&self) -> Option<Self> {
        match self {
            Kind::Isthmus(program) => Some(Kind::Awake(program.clone())),
            _ => None,
        }
    }

    /// Starts it.
    pub fn start(&self, directory: &Path, cpus: &str, setup: Setup) -> Result<Target> {
        match self {
            Kind::Isthmus(program) => {
                isthmus::start("Isthmus", program, &directory.join("isthmus"), cpus, setup, &[])
            }
            Kind::Awake(program) => {
                let spins = ["--spin", "1000000000000"];
                isthmus::start(AWAKE, program, &directory.join("awake"), cpus, setup, &spins)
            }
            Kind::Spdk(root) => spdk::start(root, &directory.join("spdk"), cpus, setup),
            Kind::There { name, address, nqn } => Ok(Target {
                name: name.clone(),
                child: None,
                address: Some((*address, Some(nqn.clone()))),
                sockets: None,
                log: PathBuf::new(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_by_their_words() {
        assert!(matches!(Kind::parse("spdk=/").unwrap(), Kind::Spdk(_)));
        let Kind::There { name, address, nqn } = Kind::parse("nvmet=127.0.0.1:4420/nqn.x:disk").unwrap()
        else {
            panic!()
        };
        assert_eq!((name.as_str(), address.port(), nqn.as_str()), ("nvmet", 4420, "nqn.x:disk"));
        assert!(Kind::parse("spdk").is_err() && Kind::parse("nvmet=here").is_err());
    }
}
