//! The targets that are compared: Isthmus, SPDK's `nvmf_tgt`, and what already listens somewhere.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::rows::Way;
use crate::process::capture;

const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a RAM volume, in blocks of 4096.
const BLOCKS: u64 = 65_536;
/// What encrypts in the chain: the data key and the tweak key.
const KEYS: [&str; 2] = [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f",
];
/// Controllers that only stand there, for what idleness costs.
pub const IDLE: usize = 16;

fn nqn(name: &str) -> String {
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
    /// How bench reaches a way, if the target has it.
    pub fn reach(&self, way: Way) -> Option<Vec<String>> {
        if way.is_tcp() {
            let (address, only) = self.address.as_ref()?;
            if only.is_some() && way != Way::Tcp {
                return None;
            }
            let nqn = only.clone().unwrap_or_else(|| nqn(way.name()));
            return Some(vec!["--tcp".into(), address.to_string(), "--nqn".into(), nqn]);
        }
        self.socket(way.name())
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

    fn wait(&mut self, ready: impl Fn() -> bool) -> Result<()> {
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

    /// Starts it with all ways, or with what idleness is measured on.
    pub fn start(&self, directory: &Path, cpus: &str, idle: bool) -> Result<Target> {
        match self {
            Kind::Isthmus(program) => isthmus(program, &directory.join("isthmus"), cpus, idle),
            Kind::Spdk(root) => spdk(root, &directory.join("spdk"), cpus, idle),
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

fn isthmus(program: &Path, directory: &Path, cpus: &str, idle: bool) -> Result<Target> {
    fs::create_dir_all(directory)?;
    let port = free_port()?;
    let (mut first, mut second) = (String::new(), String::new());
    let volume = |to: &mut String, kind: &str, id: &str| {
        *to += &format!("[[{kind}_volumes]]\nid = \"{id}\"\nblock_size = 4096\nblocks_count = {BLOCKS}\n\n");
    };
    if idle {
        volume(&mut first, "null", "null-volume");
        subsystem(&mut first, "memory", &["null-volume"], Some(port), false);
        for i in 0..IDLE {
            volume(&mut first, "null", &format!("null-volume{i}"));
            subsystem(&mut first, &format!("idle{i}"), &[&format!("null-volume{i}")], None, true);
        }
        return serve(program, directory, cpus, &first, port);
    }
    for id in ["ram-volume", "far-volume", "four1", "four2", "four3", "four4"] {
        volume(&mut first, "malloc", id);
    }
    volume(&mut first, "null", "null-volume");
    subsystem(&mut first, "memory", &["ram-volume"], Some(port), true);
    subsystem(&mut first, "away", &["far-volume"], Some(port), false);
    subsystem(&mut first, "four", &["four1", "four2", "four3", "four4"], Some(port), false);
    subsystem(&mut first, "null", &["null-volume"], None, true);
    // The chain's remote is this same process, so that all of it is on one CPU: it is declared once its target is there.
    fs::write(directory.join("key"), (0..64).collect::<Vec<u8>>())?;
    write!(
        second,
        "[[nvme_remote_controllers]]\nid = \"remote\"\nmultipath = \"NVME_MULTIPATH_DISABLE\"\n\n\
         [[nvme_paths]]\nid = \"path0\"\nparent = \"remote\"\ntrtype = \"NVME_TRANSPORT_TYPE_TCP\"\ntraddr = \"127.0.0.1\"\n\
         fabrics = {{ trsvcid = {port}, subnqn = \"{}\", adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }}\n\n\
         [[encrypted_volumes]]\nid = \"secret\"\nvolume_name_ref = \"remoten1\"\ncipher = \"ENCRYPTION_TYPE_AES_XTS_256\"\n\
         key_file = \"{}\"\n\n",
        nqn("away"),
        directory.join("key").display(),
    )?;
    subsystem(&mut second, "chain", &["secret"], None, true);
    serve(program, directory, cpus, &first, port)?.stop()?;
    serve(program, directory, cpus, &second, port)
}

fn subsystem(to: &mut String, id: &str, volumes: &[&str], port: Option<u16>, socket: bool) {
    *to += &format!("[[nvme_subsystems]]\nid = \"{id}\"\nspec = {{ nqn = \"{}\" }}\n\n", nqn(id));
    for (i, volume) in volumes.iter().enumerate() {
        let nsid = i + 1;
        *to += &format!(
            "[[nvme_namespaces]]\nid = \"{id}-{nsid}\"\nparent = \"{id}\"\n\
             spec = {{ host_nsid = {nsid}, volume_name_ref = \"{volume}\" }}\n\n"
        );
    }
    if let Some(port) = port {
        *to += &format!(
            "[[nvme_controllers]]\nid = \"tcp0\"\nparent = \"{id}\"\n\
             spec = {{ trtype = \"NVME_TRANSPORT_TYPE_TCP\", fabrics_id = {{ traddr = \"127.0.0.1\", trsvcid = \"{port}\", \
             adrfam = \"NVME_ADDRESS_FAMILY_IPV4\" }} }}\n\n"
        );
    }
    if socket {
        *to += &format!(
            "[[nvme_controllers]]\nid = \"pcie0\"\nparent = \"{id}\"\n\
             spec = {{ trtype = \"NVME_TRANSPORT_TYPE_PCIE\", pcie_id = {{ port_id = 0, physical_function = 0, \
             virtual_function = 0 }} }}\n\n"
        );
    }
}

fn serve(program: &Path, directory: &Path, cpus: &str, config: &str, port: u16) -> Result<Target> {
    let grpc = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let log = directory.join("log");
    for name in ["ctrlr", "state"] {
        fs::create_dir_all(directory.join(name))?;
    }
    fs::write(directory.join("config.toml"), config)?;
    let mut command = Command::new(program);
    command.args(["serve", "--die-with-parent", "--grpc-addr", &grpc.to_string(), "--cpus", cpus]);
    command.arg("--config").arg(directory.join("config.toml"));
    command.arg("--ctrlr-dir").arg(directory.join("ctrlr")).arg("--state-dir").arg(directory.join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let child = command.spawn().context("isthmus serve does not start")?;
    let mut target = Target {
        name: "Isthmus".into(),
        child: Some(child),
        address: Some((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None)),
        sockets: Some(directory.join("ctrlr")),
        log,
    };
    target.wait(|| TcpStream::connect(grpc).is_ok())?;
    Ok(target)
}

fn spdk(root: &Path, directory: &Path, cpus: &str, idle: bool) -> Result<Target> {
    let places = ["build/bin/nvmf_tgt", "bin/nvmf_tgt"].map(|place| root.join(place));
    let program = places.iter().find(|program| program.exists()).context("there is no nvmf_tgt")?;
    let sockets = directory.join("sockets");
    fs::create_dir_all(&sockets)?;
    let (log, rpc) = (directory.join("log"), directory.join("rpc"));
    let mut command = Command::new(program);
    // Without huge pages it takes this much address space; what it touches of it is what counts.
    let mebibytes = if idle { "1024" } else { "2048" };
    command.args(["-m", &format!("[{cpus}]"), "--no-huge", "-s", mebibytes, "-r"]).arg(&rpc);
    let output = fs::File::create(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let port = free_port()?;
    let mut target = Target {
        name: "SPDK".into(),
        child: Some(command.spawn().context("nvmf_tgt does not start")?),
        address: Some((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None)),
        sockets: Some(sockets.clone()),
        log,
    };
    target.wait(|| UnixStream::connect(&rpc).is_ok())?;
    let call = |method: &str, params: Value| call(&rpc, method, params);
    // A queue of its default 128 entries holds 127 commands.
    call("nvmf_create_transport", json!({ "trtype": "TCP", "max_queue_depth": 256 }))?;
    call("nvmf_create_transport", json!({ "trtype": "VFIOUSER" }))?;
    let expose = |name: &str, volumes: &[&str], tcp: bool, socket: bool| -> Result<()> {
        let nqn = nqn(name);
        call(
            "nvmf_create_subsystem",
            json!({ "nqn": nqn, "allow_any_host": true, "serial_number": "PERF" }),
        )?;
        for (i, volume) in volumes.iter().enumerate() {
            // By default a namespace has its volume's identifiers, and then SPDK could not have both of them.
            let number =
                name.bytes().fold(i as u64, |hash, byte| (hash * 31 + u64::from(byte)) & 0xffff_ffff);
            let namespace = json!({
                "bdev_name": volume,
                "uuid": format!("1571ca5e-0000-4000-8000-{number:012x}"),
                "nguid": format!("1571CA5E000040008000{number:012X}"),
            });
            call("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": namespace }))?;
        }
        if tcp {
            let address = json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
            call("nvmf_subsystem_add_listener", json!({ "nqn": nqn, "listen_address": address }))?;
        }
        if socket {
            let path = sockets.join(name);
            fs::create_dir_all(&path)?;
            let address = json!({ "trtype": "VFIOUSER", "traddr": path, "trsvcid": "0" });
            call("nvmf_subsystem_add_listener", json!({ "nqn": nqn, "listen_address": address }))?;
        }
        Ok(())
    };
    let null = |name: &str| {
        call("bdev_null_create", json!({ "name": name, "num_blocks": BLOCKS, "block_size": 4096 })).map(drop)
    };
    null("null-volume")?;
    if idle {
        expose("memory", &["null-volume"], true, false)?;
        for i in 0..IDLE {
            let volume = format!("null-volume{i}");
            null(&volume)?;
            expose(&format!("idle{i}"), &[&volume], false, true)?;
        }
        return Ok(target);
    }
    // The first is the chain's, so that all of them fit the memory that SPDK was given.
    for name in ["far-volume", "ram-volume"] {
        call("bdev_malloc_create", json!({ "name": name, "num_blocks": BLOCKS, "block_size": 4096 }))?;
    }
    for name in ["four1", "four2", "four3", "four4"] {
        call("bdev_malloc_create", json!({ "name": name, "num_blocks": BLOCKS / 4, "block_size": 4096 }))?;
    }
    expose("memory", &["ram-volume"], true, true)?;
    expose("away", &["far-volume"], true, false)?;
    expose("four", &["four1", "four2", "four3", "four4"], true, false)?;
    expose("null", &["null-volume"], false, true)?;
    let remote = json!({
        "name": "remote", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
        "subnqn": nqn("away"), "hostnqn": nqn("host"),
    });
    let names = call("bdev_nvme_attach_controller", remote)?;
    let remote = names[0].as_str().with_context(|| format!("SPDK found no namespace on itself: {names}"))?;
    let key = json!({ "cipher": "AES_XTS", "key": KEYS[0], "key2": KEYS[1], "name": "key" });
    if call("accel_crypto_key_create", key).is_ok() {
        let crypto = json!({ "base_bdev_name": remote, "name": "secret", "key_name": "key" });
        call("bdev_crypto_create", crypto)?;
        expose("chain", &["secret"], false, true)?;
    } else {
        eprintln!("this SPDK was built without crypto: it has no chain");
    }
    Ok(target)
}

/// One JSON-RPC call.
fn call(socket: &Path, method: &str, params: Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    stream.write_all(request.to_string().as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut chunk).with_context(|| format!("{method}: no answer"))?;
        ensure!(n > 0, "{method}: the connection ended");
        answer.extend_from_slice(&chunk[..n]);
        if let Ok(answer) = serde_json::from_slice::<Value>(&answer) {
            ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
            return Ok(answer["result"].clone());
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
