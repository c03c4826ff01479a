//! Wire compatibility with OPI: every message, field, enumeration, RPC and route of our descriptors against those in
//! OPI's own Python library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
};

/// Prints the library's descriptors with all that they import, as one encoded `FileDescriptorSet`.
const DUMP: &str = "
import importlib, pathlib, sys
import pydpu.proto.v1 as stubs
from google.protobuf import descriptor_pb2
described, seen = descriptor_pb2.FileDescriptorSet(), set()
def add(file):
    if file.name not in seen:
        seen.add(file.name)
        for imported in file.dependencies:
            add(imported)
        file.CopyToProto(described.file.add())
for path in sorted(pathlib.Path(stubs.__file__).parent.glob('*_pb2.py')):
    if path.stem.startswith(('frontend_', 'backend_', 'middleend_', 'opicommon', 'inventory')):
        add(importlib.import_module(path.stem).DESCRIPTOR)
sys.stdout.buffer.write(described.SerializeToString())
";

const PACKAGES: [&str; 2] = ["opi_api.storage.v1", "opi_api.inventory.v1"];

/// Where the library is behind OPI's main branch, which we follow: both kinds have the same bytes on the wire.
const BEHIND: [&str; 2] = [
    "field opi_api.inventory.v1.CPUInfo.total_cores = 1: optional int32 {}",
    "field opi_api.inventory.v1.CPUInfo.total_threads = 2: optional int32 {}",
];

#[test]
fn every_message_field_rpc_and_route_is_as_in_opi_s_library() {
    let Some(site) = common::peer("python") else { return };
    let dump = Command::new("python3").args(["-c", DUMP]).env("PYTHONPATH", site).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let theirs = facts(&dump.stdout);
    let ours = facts(proto::FILE_DESCRIPTOR_SET);
    assert!(theirs.len() > 650, "only {} facts in the library's descriptors", theirs.len());
    let ahead = BEHIND.map(|fact| fact.replace("int32", "uint32"));
    assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), BEHIND.iter().collect::<Vec<_>>(), "ours lacks");
    assert_eq!(
        ours.difference(&theirs).collect::<Vec<_>>(),
        ahead.iter().collect::<Vec<_>>(),
        "theirs lacks"
    );
}

/// What a descriptor set says of the API's packages, a line for each fact.
fn facts(encoded: &[u8]) -> BTreeSet<String> {
    let pool = DescriptorPool::decode(encoded).unwrap();
    let mut facts = BTreeSet::new();
    for message in pool.all_messages().filter(|message| PACKAGES.contains(&message.package_name())) {
        message_facts(&message, &mut facts);
    }
    for enumeration in pool.all_enums().filter(|enumeration| PACKAGES.contains(&enumeration.package_name())) {
        enum_facts(&enumeration, &mut facts);
    }
    for service in pool.services().filter(|service| PACKAGES.contains(&service.package_name())) {
        facts.insert(format!("service {}", service.full_name()));
        for rpc in service.methods() {
            let (input, output) = (rpc.input(), rpc.output());
            let streams = (rpc.is_client_streaming(), rpc.is_server_streaming());
            let types = format!("{} -> {} {streams:?}", input.full_name(), output.full_name());
            facts.insert(format!("rpc {}: {types} {}", rpc.full_name(), extensions(&rpc.options())));
        }
    }
    facts
}

fn message_facts(message: &MessageDescriptor, facts: &mut BTreeSet<String>) {
    facts.insert(format!("message {} {}", message.full_name(), extensions(&message.options())));
    for field in message.fields() {
        let presence = field.field_descriptor_proto().proto3_optional();
        let oneof = field.containing_oneof().filter(|_| !presence);
        facts.insert(format!(
            "field {} = {}: {} {}{}{} {}",
            field.full_name(),
            field.number(),
            format!("{:?}", field.cardinality()).to_lowercase(),
            kind(&field),
            if presence { " with presence" } else { "" },
            oneof.map(|oneof| format!(" in {}", oneof.name())).unwrap_or_default(),
            extensions(&field.options()),
        ));
    }
}

fn enum_facts(enumeration: &EnumDescriptor, facts: &mut BTreeSet<String>) {
    for value in enumeration.values() {
        facts.insert(format!("value {}.{} = {}", enumeration.full_name(), value.name(), value.number()));
    }
}

/// A field's type: the scalar's name, or the full name of the message or enumeration.
fn kind(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(enumeration) => enumeration.full_name().to_owned(),
        scalar => format!("{scalar:?}"),
    }
}

/// Options that are extensions: routes, signatures, behaviours, resources.
fn extensions(options: &DynamicMessage) -> String {
    let all: BTreeSet<String> = options
        .extensions()
        .map(|(extension, value)| format!("{} = {value}", extension.full_name()))
        .collect();
    format!("{{{}}}", all.into_iter().collect::<Vec<_>>().join(", "))
}
