//! The Open Programmable Infrastructure (OPI) storage and inventory APIs: messages, clients and servers generated from
//! the `.proto` files of this crate, which are wire-compatible with OPI's own.
#![forbid(unsafe_code)]

mod secret;

/// Package `opi_api.storage.v1`.
pub mod storage {
    #![allow(clippy::all, missing_docs, reason = "generated")]
    tonic::include_proto!("opi_api.storage.v1");
}

/// Package `opi_api.inventory.v1`.
pub mod inventory {
    #![allow(clippy::all, missing_docs, reason = "generated")]
    tonic::include_proto!("opi_api.inventory.v1");
}

/// An encoded `google.protobuf.FileDescriptorSet` of everything above with its imports and options.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
