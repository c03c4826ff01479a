//! Wire compatibility with OPI: every message, field, enumeration and RPC of our descriptors against those in OPI's own
//! Python library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Where the library is behind OPI's main branch, which we follow: both kinds have the same bytes on the wire.
const BEHIND: [&str; 2] = [
    "field .opi_api.inventory.v1.CPUInfo.total_cores",
    "field .opi_api.inventory.v1.CPUInfo.total_threads",
];

const PACKAGES: [&str; 2] = ["opi_api.storage.v1", "opi_api.inventory.v1"];

/// Prints the descriptors of every generated module as one `FileDescriptorSet`.
const DUMP: &str = "
import importlib, pathlib, sys
import pydpu.proto.v1 as stubs
from google.protobuf import descriptor_pb2
files = descriptor_pb2.FileDescriptorSet()
for path in sorted(pathlib.Path(stubs.__file__).parent.glob('*_pb2.py')):
    if path.stem.startswith(('frontend_', 'backend_', 'middleend_', 'opicommon', 'inventory')):
        importlib.import_module(path.stem).DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.buffer.write(files.SerializeToString())
";

#[test]
fn every_message_field_and_rpc_is_as_in_opi_s_library() {
    let Some(site) = common::peer("python") else { return };
    let output = Command::new("python3").args(["-c", DUMP]).env("PYTHONPATH", site).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = facts(&output.stdout);
    let ours = facts(proto::FILE_DESCRIPTOR_SET);
    assert!(theirs.keys().filter(|name| name.starts_with("rpc")).count() >= 88, "the library lacks services");

    let mut differences = Vec::new();
    for name in theirs.keys().chain(ours.keys().filter(|name| !theirs.contains_key(*name))) {
        if theirs.get(name) != ours.get(name) && !BEHIND.contains(&name.as_str()) {
            differences.push(format!("{name}: OPI {:?}, ours {:?}", theirs.get(name), ours.get(name)));
        }
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}

/// What a descriptor set says, each thing by its full name.
fn facts(encoded: &[u8]) -> BTreeMap<String, String> {
    let set = FileDescriptorSet::decode(encoded).unwrap();
    let mut facts = BTreeMap::new();
    for file in set.file.iter().filter(|file| PACKAGES.contains(&file.package())) {
        let package = format!(".{}", file.package());
        file.message_type.iter().for_each(|message| message_facts(&package, message, &mut facts));
        file.enum_type.iter().for_each(|enumeration| enum_facts(&package, enumeration, &mut facts));
        for service in &file.service {
            for method in &service.method {
                let streams = [method.client_streaming(), method.server_streaming()];
                let types = format!("{} -> {} {streams:?}", method.input_type(), method.output_type());
                facts.insert(format!("rpc {package}.{}/{}", service.name(), method.name()), types);
            }
        }
    }
    facts
}

fn message_facts(scope: &str, message: &DescriptorProto, facts: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", message.name());
    facts.insert(format!("message {name}"), String::new());
    for field in &message.field {
        facts.insert(format!("field {name}.{}", field.name()), field_facts(message, field));
    }
    message.nested_type.iter().for_each(|nested| message_facts(&name, nested, facts));
    message.enum_type.iter().for_each(|enumeration| enum_facts(&name, enumeration, facts));
}

fn field_facts(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = field.oneof_index.map(|index| message.oneof_decl[index as usize].name());
    format!(
        "number {} {:?} {:?} {} oneof {oneof:?} json {}",
        field.number(),
        field.label(),
        field.r#type(),
        field.type_name(),
        field.json_name()
    )
}

fn enum_facts(scope: &str, enumeration: &EnumDescriptorProto, facts: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", enumeration.name());
    for value in &enumeration.value {
        facts.insert(format!("value {name}.{}", value.name()), value.number().to_string());
    }
}
