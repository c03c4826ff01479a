//! SPDK's `nvmf_tgt` as a target.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::target::{BLOCKS, CROWD, IDLE, KEYS, NAMESPACES, PATIENCE, Setup, Target, free_port, nqn};

/// Starts it as it is to be measured.
pub fn start(root: &Path, directory: &Path, cpus: &str, setup: Setup) -> Result<Target> {
    let places = ["build/bin/nvmf_tgt", "bin/nvmf_tgt"].map(|place| root.join(place));
    let program = places.iter().find(|program| program.exists()).context("there is no nvmf_tgt")?;
    let sockets = directory.join("sockets");
    fs::create_dir_all(&sockets)?;
    let (log, rpc) = (directory.join("log"), directory.join("rpc"));
    let mut command = Command::new(program.canonicalize()?);
    // It leaves a core file where it was started, of all that it has touched.
    command.current_dir(directory);
    // Without huge pages it takes this much address space; what it touches of it is what counts.
    let mebibytes = match setup {
        Setup::Idle | Setup::Waking | Setup::Shards(_) => "1024",
        Setup::Paths => "2048",
        Setup::Crowd => "8192",
    };
    command.args(["-m", &format!("[{cpus}]"), "--no-huge", "-s", mebibytes, "-r"]).arg(&rpc);
    let output = fs::File::create(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let port = free_port()?;
    let child = command.spawn().context("nvmf_tgt does not start")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut target = Target::new("SPDK", child, address, sockets.clone(), log);
    target.wait(|| UnixStream::connect(&rpc).is_ok())?;
    declare(&rpc, &sockets, port, setup)?;
    Ok(target)
}

fn declare(rpc: &Path, sockets: &Path, port: u16, setup: Setup) -> Result<()> {
    let call = |method: &str, params: Value| call(rpc, method, params);
    // A queue of its default 128 entries holds 127 commands.
    call("nvmf_create_transport", json!({ "trtype": "TCP", "max_queue_depth": 256 }))?;
    call("nvmf_create_transport", json!({ "trtype": "VFIOUSER" }))?;
    let expose = |name: &str, volumes: &[&str], tcp: bool, socket: bool| -> Result<()> {
        let nqn = nqn(name);
        call(
            "nvmf_create_subsystem",
            json!({
                "nqn": nqn, "allow_any_host": true, "serial_number": "PERF", "max_namespaces": volumes.len(),
            }),
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
    let ram = |name: &str, blocks: u64| {
        call("bdev_malloc_create", json!({ "name": name, "num_blocks": blocks, "block_size": 4096 }))
            .map(drop)
    };
    // Each has a subsystem of its own: SPDK's have 16 listeners at most.
    let alone = |count| {
        (0..count).try_for_each(|i| {
            let volume = format!("null-volume{i}");
            null(&volume)?;
            expose(&format!("alone{i}"), &[&volume], false, true)
        })
    };
    match setup {
        Setup::Idle => {
            null("null-volume")?;
            expose("memory", &["null-volume"], true, false)?;
            return alone(IDLE);
        }
        Setup::Shards(_) | Setup::Waking => {
            ram("ram-volume", BLOCKS)?;
            return expose("memory", &["ram-volume"], true, setup == Setup::Waking);
        }
        Setup::Crowd => {
            ram("crowd-volume", BLOCKS)?;
            expose("crowd", &["crowd-volume"], true, false)?;
            alone(CROWD)?;
            for many in NAMESPACES {
                let names: Vec<String> = (0..many).map(|i| format!("many{many}-{i}")).collect();
                names.iter().try_for_each(|name| null(name))?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                expose(&format!("many{many}"), &names, true, false)?;
            }
            return Ok(());
        }
        Setup::Paths => {}
    }
    null("null-volume")?;
    // The first is the chain's, so that all of them fit the memory that SPDK was given.
    ["far-volume", "ram-volume"].into_iter().try_for_each(|name| ram(name, BLOCKS))?;
    ["four1", "four2", "four3", "four4"].into_iter().try_for_each(|name| ram(name, BLOCKS / 4))?;
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
    Ok(())
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
