//! Generates the messages and services from the `.proto` files beside this one.

use std::error::Error;
use std::path::PathBuf;

/// The files that declare services; they import the others.
const FILES: [&str; 14] = [
    "inventory/inventory.proto",
    "isthmus/access.proto",
    "isthmus/ana.proto",
    "isthmus/controller_model.proto",
    "isthmus/fault.proto",
    "storage/backend_aio.proto",
    "storage/backend_malloc.proto",
    "storage/backend_null.proto",
    "storage/backend_nvme.proto",
    "storage/frontend_nvme.proto",
    "storage/frontend_virtio_blk.proto",
    "storage/frontend_virtio_scsi.proto",
    "storage/middleend_encryption.proto",
    "storage/middleend_qos_volume.proto",
];

/// Messages with a secret: their `Debug` is written by hand.
const SECRETIVE: [&str; 3] = [
    "opi_api.storage.v1.EncryptedVolume",
    "opi_api.storage.v1.NvmeSubsystemSpec",
    "opi_api.storage.v1.TcpController",
];

fn main() -> Result<(), Box<dyn Error>> {
    for directory in ["google", "inventory", "isthmus", "storage"] {
        println!("cargo:rerun-if-changed={directory}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES)?;
    let described = compiler.file_descriptor_set();
    // Encoded by the compiler: the generated descriptor types would lose the options that are extensions.
    compiler.include_source_info(false);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names().include_file("packages.rs");
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .skip_debug(SECRETIVE)
        .compile_fds_with_config(described, config)?;
    Ok(())
}
