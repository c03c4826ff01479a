//! The Open Programmable Infrastructure (OPI) storage and inventory APIs: messages, clients and servers generated from
//! the `.proto` files of this crate, which are wire-compatible with OPI's own; and what Isthmus adds beside them.
#![forbid(unsafe_code)]

mod secret;

/// A module for each segment of the packages' names: messages refer to those of other packages through them.
mod packages {
    #![allow(clippy::all, missing_docs, dead_code, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

/// Package `isthmus.v1`: what OPI's API has no words for.
pub use packages::isthmus::v1 as isthmus;
/// Package `opi_api.inventory.v1`.
pub use packages::opi_api::inventory::v1 as inventory;
/// Package `opi_api.storage.v1`.
pub use packages::opi_api::storage::v1 as storage;

/// An encoded `google.protobuf.FileDescriptorSet` of everything above with its imports and options.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
