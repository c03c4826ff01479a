//! Isthmus as a target: what is declared for each set-up.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::target::{BLOCKS, CROWD, IDLE, KEYS, NAMESPACES, Setup, Target, free_port, nqn};

/// Starts it as it is to be measured, with these flags of `serve` besides.
pub fn start(
    name: &str,
    program: &Path,
    directory: &Path,
    cpus: &str,
    setup: Setup,
    flags: &[&str],
) -> Result<Target> {
    fs::create_dir_all(directory)?;
    let port = free_port()?;
    let (mut first, mut second) = (String::new(), String::new());
    match setup {
        Setup::Idle => {
            volume(&mut first, "null", "null-volume");
            subsystem(&mut first, "memory", &["null-volume"], Some(port), false);
            alone(&mut first, IDLE);
        }
        Setup::Shards(_) => {
            volume(&mut first, "malloc", "ram-volume");
            subsystem(&mut first, "memory", &["ram-volume"], Some(port), false);
        }
        Setup::Waking => {
            volume(&mut first, "malloc", "ram-volume");
            subsystem(&mut first, "memory", &["ram-volume"], Some(port), true);
            device(&mut first, "memory", 1);
        }
        Setup::Crowd => {
            volume(&mut first, "malloc", "crowd-volume");
            subsystem(&mut first, "crowd", &["crowd-volume"], Some(port), false);
            alone(&mut first, CROWD);
            for many in NAMESPACES {
                let names: Vec<String> = (0..many).map(|i| format!("many{many}-{i}")).collect();
                names.iter().for_each(|name| volume(&mut first, "null", name));
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                subsystem(&mut first, &format!("many{many}"), &names, Some(port), false);
            }
        }
        Setup::Paths => {
            paths(&mut first, port);
            // The chain's remote is this same process, so that all of it is on one CPU: it is declared once its target is
            // there.
            fs::write(directory.join("key"), (0..KEYS.len() as u8 * 32).collect::<Vec<u8>>())?;
            chain(&mut second, port, &directory.join("key"));
            serve(name, program, directory, cpus, &first, port, flags)?.stop()?;
            return serve(name, program, directory, cpus, &second, port, flags);
        }
    }
    serve(name, program, directory, cpus, &first, port, flags)
}

/// So many vfio-user controllers, each of a subsystem of its own.
fn alone(to: &mut String, count: usize) {
    for i in 0..count {
        volume(to, "null", &format!("null-volume{i}"));
        subsystem(to, &format!("alone{i}"), &[&format!("null-volume{i}")], None, true);
    }
}

fn paths(to: &mut String, port: u16) {
    for id in ["ram-volume", "far-volume", "four1", "four2", "four3", "four4"] {
        volume(to, "malloc", id);
    }
    volume(to, "null", "null-volume");
    subsystem(to, "memory", &["ram-volume"], Some(port), true);
    subsystem(to, "away", &["far-volume"], Some(port), false);
    subsystem(to, "four", &["four1", "four2", "four3", "four4"], Some(port), false);
    subsystem(to, "null", &["null-volume"], None, true);
}

fn chain(to: &mut String, port: u16, key: &Path) {
    let _ = write!(
        to,
        "[[nvme_remote_controllers]]\nid = \"remote\"\nmultipath = \"NVME_MULTIPATH_DISABLE\"\n\n\
         [[nvme_paths]]\nid = \"path0\"\nparent = \"remote\"\ntrtype = \"NVME_TRANSPORT_TYPE_TCP\"\ntraddr = \"127.0.0.1\"\n\
         fabrics = {{ trsvcid = {port}, subnqn = \"{}\", adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }}\n\n\
         [[encrypted_volumes]]\nid = \"secret\"\nvolume_name_ref = \"remoten1\"\ncipher = \"ENCRYPTION_TYPE_AES_XTS_256\"\n\
         key_file = \"{}\"\n\n",
        nqn("away"),
        key.display(),
    );
    subsystem(to, "chain", &["secret"], None, true);
}

fn volume(to: &mut String, kind: &str, id: &str) {
    let _ = write!(to, "[[{kind}_volumes]]\nid = \"{id}\"\nblock_size = 4096\nblocks_count = {BLOCKS}\n\n");
}

/// A subsystem of these volumes, with a listener if there is a port, and perhaps a vfio-user controller.
fn subsystem(to: &mut String, id: &str, volumes: &[&str], port: Option<u16>, socket: bool) {
    let _ = write!(to, "[[nvme_subsystems]]\nid = \"{id}\"\nspec = {{ nqn = \"{}\" }}\n\n", nqn(id));
    for (i, volume) in volumes.iter().enumerate() {
        let nsid = i + 1;
        let _ = write!(
            to,
            "[[nvme_namespaces]]\nid = \"{id}-{nsid}\"\nparent = \"{id}\"\n\
             spec = {{ host_nsid = {nsid}, volume_name_ref = \"{volume}\" }}\n\n"
        );
    }
    if let Some(port) = port {
        let _ = write!(
            to,
            "[[nvme_controllers]]\nid = \"tcp0\"\nparent = \"{id}\"\n\
             spec = {{ trtype = \"NVME_TRANSPORT_TYPE_TCP\", fabrics_id = {{ traddr = \"127.0.0.1\", trsvcid = \"{port}\", \
             adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }} }}\n\n"
        );
    }
    if socket {
        device(to, id, 0);
    }
}

/// A vfio-user controller on a PCIe port: the doorbells of port 0 are mapped, those of port 1 trapped.
fn device(to: &mut String, subsystem: &str, port: u8) {
    let _ = write!(
        to,
        "[[nvme_controllers]]\nid = \"pcie{port}\"\nparent = \"{subsystem}\"\n\
         spec = {{ trtype = \"NVME_TRANSPORT_TYPE_PCIE\", pcie_id = {{ port_id = {port}, physical_function = 0, \
         virtual_function = 0 }} }}\n\n"
    );
}

fn serve(
    name: &str,
    program: &Path,
    directory: &Path,
    cpus: &str,
    config: &str,
    port: u16,
    flags: &[&str],
) -> Result<Target> {
    let grpc = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let log = directory.join("log");
    for part in ["ctrlr", "state"] {
        fs::create_dir_all(directory.join(part))?;
    }
    fs::write(directory.join("config.toml"), config)?;
    let mut command = Command::new(program);
    command.args(["serve", "--die-with-parent", "--grpc-addr", &grpc.to_string(), "--cpus", cpus]);
    command.args(["--doorbells", "mapped,trapped"]).args(flags);
    command.arg("--config").arg(directory.join("config.toml"));
    command.arg("--ctrlr-dir").arg(directory.join("ctrlr")).arg("--state-dir").arg(directory.join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let child = command.spawn().context("isthmus serve does not start")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut target = Target::new(name, child, address, directory.join("ctrlr"), log);
    // What stands on a remote comes when the remote answers, which is after the server does.
    let devices = config.matches("NVME_TRANSPORT_TYPE_PCIE").count();
    let there = || fs::read_dir(directory.join("ctrlr")).map_or(0, Iterator::count);
    target.wait(|| TcpStream::connect(grpc).is_ok() && there() >= devices)?;
    Ok(target)
}
