//! OPI's own Python library, unchanged, against `isthmus serve`; and requests that have ended other servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::process::Command;

use common::opi::Opi;
use common::server::Server;
use serde_json::{Value, json};

/// Creates, gets, lists and deletes an object of each class in the library's storage module.
const LIBRARY: &str = r#"
import sys
from pydpu import storage
from pydpu.proto.v1 import backend_malloc_pb2, backend_malloc_pb2_grpc, backend_nvme_pb2
import grpc

address = sys.argv[1]
with grpc.insecure_channel(address) as channel:
    volume = backend_malloc_pb2.MallocVolume(block_size=512, blocks_count=64)
    request = backend_malloc_pb2.CreateMallocVolumeRequest(malloc_volume_id="malloc1", malloc_volume=volume)
    backend_malloc_pb2_grpc.MallocVolumeServiceStub(channel).CreateMallocVolume(request)
subsystem = storage.NvmeSubsystem(nqn="nqn.2022-09.io.spdk:opitest1")
remote = storage.NvmeRemoteController(backend_nvme_pb2.NVME_MULTIPATH_DISABLE, hdgst=True, ddgst=False)
objects = [
    (subsystem, "nvme_subsystems"),
    (storage.NvmeController(subsystem=subsystem, queue=1, pf=1, vf=0), "nvme_controllers"),
    (storage.NvmeNamespace(subsystem=subsystem, volume="malloc1"), "nvme_namespaces"),
    (remote, "nvme_remote_controllers"),
    (storage.NvmeTcpPath(remote, ip="127.0.0.1", port=9, subnqn="nqn.2022-09.io.spdk:far"), "nvme_paths"),
]
for object, collection in objects:
    created = object.create(address)
    assert created.name == object.name, created
    assert object.get(address) == created, created
    assert list(getattr(object.list(address), collection)) == [created], created
    assert object.create(address) == created, created
    try:
        object.update(address)
        assert collection == "nvme_subsystems", f"{object} was updated"
        assert object.get(address) == created, "an update to what it is already"
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    except TypeError:
        assert collection == "nvme_controllers", "the library's own update of controllers fails before the call"
for object, collection in objects:
    if collection in ("nvme_subsystems", "nvme_namespaces", "nvme_remote_controllers", "nvme_paths"):
        assert object.stats(address).stats.read_ops_count == 0
for object, collection in reversed(objects):
    object.delete(address)
    try:
        object.get(address)
        raise AssertionError(f"{object} is still there")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
"#;

#[test]
fn the_python_library_works_as_it_is() {
    let Some(site) = common::peer("python") else { return };
    let server = Server::start(&[]);
    let mut python = Command::new("python3");
    python.args(["-c", LIBRARY, &server.grpc().to_string()]).env("PYTHONPATH", site);
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn requests_that_end_other_servers_are_answered() {
    let server = Server::start(&[]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    opi.malloc_volume("malloc0", 512, 64);
    let mut refused = |rpc: &str, request: Value, code: &str, message: &str| {
        let refusal = opi.try_call(rpc, request).expect_err(rpc);
        assert_eq!((refusal.code.as_str(), refusal.message.as_str()), (code, message), "{rpc}");
    };
    let unlimited = json!({ "qosVolume": { "volumeNameRef": "malloc0", "limits": {} } });
    let message = "QoS volume max_limit should set limit";
    refused("MiddleendQosVolumeService/CreateQosVolume", unlimited, "INVALID_ARGUMENT", message);
    let token = json!({ "pageToken": "offset-1000" });
    let message = "unable to find pagination token offset-1000";
    refused("MallocVolumeService/ListMallocVolumes", token, "NOT_FOUND", message);
    let message = "missing required field: malloc_volume.block_size";
    let volume = json!({ "mallocVolume": { "blocksCount": 1 } });
    refused("MallocVolumeService/CreateMallocVolume", volume, "INVALID_ARGUMENT", message);
    let volume = json!({ "mallocVolume": { "blockSize": 4096, "blocksCount": i64::MAX } });
    let message = "malloc_volume.blocks_count: the volume would be larger than an exbibyte";
    refused("MallocVolumeService/CreateMallocVolume", volume, "INVALID_ARGUMENT", message);
    let refusal = opi.try_call("FrontendVirtioBlkService/CreateVirtioBlk", json!({})).unwrap_err();
    assert_eq!(refusal.code, "UNIMPLEMENTED");
    opi.call("MallocVolumeService/GetMallocVolume", json!({ "name": "volumes/malloc0" }));
}

#[test]
fn a_key_is_neither_on_disk_nor_in_the_log_nor_returned() {
    let mut server = Server::start(&["--log", "trace"]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    // "0123456789abcdef" and "fedcba9876543210"
    let (key, cipher) = ("MDEyMzQ1Njc4OWFiY2RlZmZlZGNiYTk4NzY1NDMyMTA=", "ENCRYPTION_TYPE_AES_XTS_128");
    opi.malloc_volume("malloc0", 512, 64);
    opi.encrypted_volume("secret", "malloc0", cipher, key);
    let list = opi.call("MiddleendEncryptionService/ListEncryptedVolumes", json!({ "parent": "volumes" }));
    assert_eq!(list["encryptedVolumes"][0]["name"], "volumes/secret", "{list}");
    assert!(!list.to_string().contains("key"), "{list}");
    let wrong = json!({ "encryptedVolumeId": "secret", "encryptedVolume": {
        "volumeNameRef": "malloc0", "cipher": cipher, "key": key.replace('M', "N") } });
    let refusal = opi.try_call("MiddleendEncryptionService/CreateEncryptedVolume", wrong).unwrap_err();
    assert_eq!(refusal.message, "volumes/secret already exists with another encrypted_volume.key");
    server.kill();
    let places = fs::read_dir(server.path("state")).unwrap().map(|entry| entry.unwrap().path());
    for place in places.chain([server.path("log")]) {
        let bytes = fs::read(&place).unwrap();
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        let places = [&b"0123456789abcdef"[..], b"fedcba9876543210", &key.as_bytes()[..20]];
        assert!(!places.into_iter().any(has), "a key lies in {}", place.display());
    }
    server.launch();
    let mut opi = Opi::connect(server.grpc()).unwrap();
    opi.encrypted_volume("secret", "malloc0", cipher, key);
}
