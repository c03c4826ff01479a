//! The whole path of a block: vfio-user, QoS, encryption and NVMe/TCP to a standalone target on files.

use std::path::PathBuf;

use super::opi::Opi;
use super::server::Server;

const REMOTE: &str = "nqn.2025-01.test.isthmus:remote";

/// How large each disk is.
pub const SIZE: u64 = 128 << 20;

/// A disk of the host; its namespace id is its place, plus 1.
pub struct Disk {
    /// The name of its `EncryptionType`.
    pub cipher: &'static str,
    /// Its key in base64.
    pub key: &'static str,
    /// Its block size in bytes.
    pub block: u64,
}

/// Two servers: a target on one file for each disk, and the bridge that exports them encrypted over vfio-user.
pub struct Chain {
    /// The standalone target.
    pub target: Server,
    /// What the host attaches to.
    pub bridge: Server,
    /// The subsystem that the bridge exports; no other chain has the same.
    pub nqn: String,
    /// The target's files, one for each disk.
    pub files: Vec<PathBuf>,
}

impl Chain {
    /// Declares the chain, with further flags for the bridge, or skips the running test when OPI's stubs could not be had.
    pub fn build(disks: &[Disk], flags: &[&str]) -> Option<Self> {
        super::peer("python")?;
        let (target, bridge) = (Server::start(&[]), Server::start(flags));
        let port = super::free_port();
        let mut files = Vec::new();

        let mut opi = Opi::connect(target.grpc())?;
        opi.subsystem("remote", REMOTE);
        opi.tcp_controller("remote", "tcp0", port);
        for (disk, nsid) in disks.iter().zip(1..) {
            let file = target.aio_file(&format!("disk{nsid}"), SIZE);
            opi.aio_volume(&format!("file{nsid}"), &file, disk.block);
            opi.namespace("remote", &format!("name{nsid}"), nsid, &format!("file{nsid}"));
            files.push(file);
        }

        let mut opi = Opi::connect(bridge.grpc())?;
        opi.remote("away", port, REMOTE, false);
        let nqn = format!("nqn.2025-01.test.isthmus:local-{port}");
        opi.subsystem("here", &nqn);
        for (disk, nsid) in disks.iter().zip(1..) {
            opi.encrypted_volume(&format!("crypt{nsid}"), &format!("awayn{nsid}"), disk.cipher, disk.key);
            opi.qos_volume(&format!("calm{nsid}"), &format!("crypt{nsid}"), 100);
            opi.namespace("here", &format!("name{nsid}"), nsid, &format!("calm{nsid}"));
        }
        opi.pcie_controller("here", "pcie0");
        Some(Self { target, bridge, nqn, files })
    }

    /// The vfio-user socket of the bridge's controller.
    pub fn socket(&self) -> PathBuf {
        self.bridge.path("ctrlr/here/cntrl")
    }
}
