//! OPI's Python library with its generated gRPC stubs, installed by the machine's own pip into a directory of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;

/// The library, at the version whose descriptors the tests compare.
pub const REQUIREMENT: &str = "pydpu==0.2.1";

/// The interpreter's version: compiled modules in the site directory fit that version alone.
pub fn interpreter() -> Result<String> {
    let program = "import sys; print('python %d.%d' % sys.version_info[:2])";
    let version = capture(Command::new("python3").args(["-c", program])).context("there is no python3")?;
    Ok(version.trim().to_owned())
}

/// Installs the library and what it needs into `into`, and sees it import.
pub fn install(into: &Path) -> Result<()> {
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--target"];
    capture(Command::new("python3").args(pip).arg(into).arg(REQUIREMENT))
        .context("pip cannot install the stubs")?;
    let import = "import pydpu.proto.v1.frontend_nvme_pb2_grpc";
    capture(Command::new("python3").args(["-c", import]).env("PYTHONPATH", into))
        .context("the stubs do not import")?;
    Ok(())
}
