//! Running other programs.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command in the open; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{name} does not start"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// Runs a command quietly and returns its standard output; on failure the error carries all that it said.
pub fn capture(command: &mut Command) -> Result<String> {
    let name = name(command);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("{name} does not start"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{name}: {status}\n{}{stdout}", String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}

/// The program's file name, for messages.
fn name(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    program.file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_output_and_explains_failure() {
        assert_eq!(capture(Command::new("/bin/sh").args(["-c", "echo out"])).unwrap(), "out\n");
        let error =
            capture(Command::new("/bin/sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh") && error.contains('3') && error.contains("why"), "{error}");
    }
}
