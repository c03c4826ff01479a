//! Declares objects through OPI's own Python stubs, unchanged, in one Python process per client.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// A client with an open channel.
pub struct Opi {
    python: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

/// An RPC that was refused.
#[derive(Debug)]
pub struct Refusal {
    /// The status code's name, such as `INVALID_ARGUMENT`.
    pub code: String,
    /// What the server said.
    pub message: String,
}

impl Opi {
    /// Opens a channel, or skips the running test when the stubs could not be had.
    pub fn connect(address: SocketAddr) -> Option<Self> {
        let site = super::peer("python")?;
        let mut python = Command::new("python3")
            .arg("-u")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/opi.py"))
            .arg(address.to_string())
            .env("PYTHONPATH", site)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = python.stdin.take().unwrap();
        let replies = BufReader::new(python.stdout.take().unwrap());
        Some(Self { python, requests, replies })
    }

    /// One RPC, such as `NullVolumeService/CreateNullVolume`; messages are in protobuf's JSON form.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn try_call(&mut self, rpc: &str, request: Value) -> Result<Value, Refusal> {
        writeln!(self.requests, "{}", json!({ "rpc": rpc, "request": request })).unwrap();
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        let mut reply: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("{rpc}: Python said {line:?}"));
        if let Some(code) = reply["code"].as_str() {
            let message = reply["message"].as_str().unwrap_or_default();
            return Err(Refusal { code: code.to_owned(), message: message.to_owned() });
        }
        Ok(reply["response"].take())
    }

    /// One RPC that must succeed.
    pub fn call(&mut self, rpc: &str, request: Value) -> Value {
        self.try_call(rpc, request)
            .unwrap_or_else(|Refusal { code, message }| panic!("{rpc}: {code}: {message}"))
    }

    /// Deletes what a resource name names, by the RPC of its kind.
    pub fn delete(&mut self, rpc: &str, name: &str) {
        self.call(rpc, json!({ "name": name }));
    }

    /// A subsystem that any host may use, named `id`.
    pub fn subsystem(&mut self, id: &str, nqn: &str) {
        let subsystem = json!({ "spec": {
            "nqn": nqn, "serialNumber": "ISTHMUS-TEST", "modelNumber": "Isthmus", "maxNamespaces": 32 } });
        self.call(
            "FrontendNvmeService/CreateNvmeSubsystem",
            json!({ "nvmeSubsystem": subsystem, "nvmeSubsystemId": id }),
        );
    }

    /// A namespace on a volume.
    pub fn namespace(&mut self, subsystem: &str, id: &str, nsid: u32, volume: &str) {
        let namespace = json!({ "spec": { "hostNsid": nsid, "volumeNameRef": volume } });
        self.call(
            "FrontendNvmeService/CreateNvmeNamespace",
            json!({
                "parent": format!("nvmeSubsystems/{subsystem}"),
                "nvmeNamespace": namespace,
                "nvmeNamespaceId": id,
            }),
        );
    }

    /// A controller on a vfio-user socket.
    pub fn pcie_controller(&mut self, subsystem: &str, id: &str) {
        self.pcie_controller_at(subsystem, id, 0);
    }

    /// A controller on a vfio-user socket, on a port.
    pub fn pcie_controller_at(&mut self, subsystem: &str, id: &str, port: u32) {
        let place = json!({ "portId": port, "physicalFunction": 0, "virtualFunction": 0 });
        let spec = json!({ "trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcieId": place });
        self.controller(subsystem, id, spec);
    }

    /// A listener on loopback TCP.
    pub fn tcp_controller(&mut self, subsystem: &str, id: &str, port: u16) {
        let place = json!({
            "traddr": "127.0.0.1", "trsvcid": port.to_string(), "adrfam": "NVME_ADDRESS_FAMILY_IPV4" });
        let spec = json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "fabricsId": place });
        self.controller(subsystem, id, spec);
    }

    fn controller(&mut self, subsystem: &str, id: &str, spec: Value) {
        self.call(
            "FrontendNvmeService/CreateNvmeController",
            json!({
                "parent": format!("nvmeSubsystems/{subsystem}"),
                "nvmeController": { "spec": spec },
                "nvmeControllerId": id,
            }),
        );
    }

    /// A remote controller with one path to a subsystem on loopback; its namespaces are the volumes `<id>n<nsid>`.
    pub fn remote(&mut self, id: &str, port: u16, nqn: &str, digests: bool) {
        let controller = json!({
            "multipath": "NVME_MULTIPATH_DISABLE", "ioQueuesCount": 4, "tcp": { "hdgst": digests, "ddgst": digests } });
        self.call(
            "NvmeRemoteControllerService/CreateNvmeRemoteController",
            json!({ "nvmeRemoteController": controller, "nvmeRemoteControllerId": id }),
        );
        let fabrics = json!({ "trsvcid": port, "subnqn": nqn, "adrfam": "NVME_ADDRESS_FAMILY_IPV4" });
        let path = json!({ "trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "127.0.0.1", "fabrics": fabrics });
        self.call(
            "NvmeRemoteControllerService/CreateNvmePath",
            json!({ "parent": format!("nvmeRemoteControllers/{id}"), "nvmePath": path, "nvmePathId": format!("{id}-path") }),
        );
    }

    /// A volume on a file of the server's `--aio-dir`.
    pub fn aio_volume(&mut self, id: &str, file: &std::path::Path, block_size: u64) {
        let volume = json!({ "blockSize": block_size, "filename": file.to_str().unwrap() });
        self.call("AioVolumeService/CreateAioVolume", json!({ "aioVolume": volume, "aioVolumeId": id }));
    }

    /// A volume in memory.
    pub fn malloc_volume(&mut self, id: &str, block_size: u64, blocks: u64) {
        let volume = json!({ "blockSize": block_size, "blocksCount": blocks });
        self.call(
            "MallocVolumeService/CreateMallocVolume",
            json!({ "mallocVolume": volume, "mallocVolumeId": id }),
        );
    }

    /// An encrypted volume; the key is in base64, 32 bytes for AES-XTS-128 and 64 for AES-XTS-256.
    pub fn encrypted_volume(&mut self, id: &str, below: &str, cipher: &str, key: &str) {
        let volume = json!({ "volumeNameRef": below, "key": key, "cipher": cipher });
        self.call(
            "MiddleendEncryptionService/CreateEncryptedVolume",
            json!({ "encryptedVolume": volume, "encryptedVolumeId": id }),
        );
    }

    /// A volume that may do this many thousand I/Os a second.
    pub fn qos_volume(&mut self, id: &str, below: &str, kiops: u32) {
        let volume = json!({ "volumeNameRef": below, "limits": { "max": { "rwIopsKiops": kiops } } });
        self.call(
            "MiddleendQosVolumeService/CreateQosVolume",
            json!({ "qosVolume": volume, "qosVolumeId": id }),
        );
    }
}

impl Drop for Opi {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}
