//! A private apt: the machine's own configuration, archive, keys and proxies with another suite, and nothing shared
//! with the system. Packages are resolved against an empty machine, so every library a program needs comes with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::sources::{self, Source};
use crate::process::capture;

/// The release that the peers come from, and its suite with a QEMU that speaks vfio-user.
const RELEASE: &str = "trixie";
pub const BACKPORTS: &str = "trixie-backports";

/// The configuration that is laid over the machine's own; `@` stands for the private directory. The hooks are
/// cleared because they act on the system's caches.
const CONFIGURATION: &str = r#"
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "@/sources.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "@/state";
Dir::State::status "@/status";
Dir::Cache "@/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
"#;

/// A private apt root whose package lists are up to date.
pub struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Makes the root in `root` and reads the lists of the release and its backports.
    ///
    /// # Errors
    /// Fails when the machine has no apt or no Debian source, the archive does not answer, or its signature does not
    /// verify with the machine's keys nor with those of the keyring package that these keys vouch for.
    pub fn open(root: &Path) -> Result<Self> {
        let codename = codename()?;
        let sources = sources::archives(Path::new("/etc/apt"), &codename);
        let source = sources.first().ok_or_else(|| anyhow!("apt has no source of {codename} main"))?;
        Self::verified(root, source, &codename)
    }

    fn verified(root: &Path, source: &Source, codename: &str) -> Result<Self> {
        let suites = format!("{RELEASE} {BACKPORTS}");
        match Self::with(root, source, &suites) {
            Err(error) if unverified(&error) => {
                let keyring = newer_keyring(&root.join("keyring"), source, codename).context(
                    "this machine's keys do not verify the archive, and a newer keyring cannot be had",
                )?;
                Self::with(root, &Source { signed_by: Some(keyring), ..source.clone() }, &suites)
            }
            opened => opened,
        }
    }

    fn with(root: &Path, source: &Source, suites: &str) -> Result<Self> {
        for dir in ["sources.d", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let place = root.to_str().context("the cache directory's name is not UTF-8")?;
        fs::write(root.join("status"), "")?;
        fs::write(root.join("apt.conf"), CONFIGURATION.replace('@', place))?;
        fs::write(root.join("sources.d/peers.sources"), source.stanza(suites))?;
        let apt = Self { root: root.to_owned() };
        capture(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-c").arg(self.root.join("apt.conf"));
        command
    }

    /// `apt-get install` of packages and all they depend on, with a suite preferred if one is named.
    fn install(&self, suite: Option<&str>, packages: &[&str]) -> Command {
        let mut command = self.command("apt-get");
        command.args(["-q", "-y", "install"]).args(packages);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        command
    }

    /// The file names of the archives that packages and all they depend on need; each name carries the version.
    pub fn closure(&self, suite: Option<&str>, packages: &[&str]) -> Result<Vec<String>> {
        let listing = capture(self.install(suite, packages).arg("--print-uris"))?;
        // 'ADDRESS' NAME SIZE HASH
        let mut names: Vec<String> = listing
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
            .collect();
        if names.is_empty() {
            bail!("apt resolves {} to nothing", packages.join(" "));
        }
        names.sort();
        Ok(names)
    }

    /// Downloads packages with all they depend on and unpacks them into `prefix`.
    pub fn unpack_closure(&self, suite: Option<&str>, packages: &[&str], prefix: &Path) -> Result<()> {
        let archives = self.root.join("cache/archives");
        capture(self.install(suite, packages).arg("--download-only"))?;
        unpack_all(&archives, prefix)
    }

    /// The package that a metapackage such as `linux-image-cloud-amd64` stands for today, and its version.
    pub fn stands_for(&self, metapackage: &str) -> Result<(String, String)> {
        let record = capture(self.command("apt-cache").args(["show", "--no-all-versions", metapackage]))?;
        let value = |key: &str| {
            record.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).context("no such field")
        };
        let package = value("Depends:")?.split([' ', ',']).next().unwrap_or_default().to_owned();
        Ok((package, value("Version:")?.to_owned()))
    }

    /// Downloads one package alone and unpacks it into `prefix`.
    pub fn unpack_one(&self, package: &str, prefix: &Path) -> Result<()> {
        let archives = self.root.join("cache/one");
        fs::create_dir_all(&archives)?;
        capture(self.command("apt-get").args(["-q", "download", package]).current_dir(&archives))?;
        unpack_all(&archives, prefix)
    }
}

/// Unpacks every archive in a directory and deletes it, beside the system: no script of a package runs.
fn unpack_all(archives: &Path, prefix: &Path) -> Result<()> {
    fs::create_dir_all(prefix)?;
    for entry in archives.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            capture(Command::new("dpkg-deb").arg("-x").arg(&path).arg(prefix))?;
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The machine's Debian release by name.
fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("this machine's release has no code name")?.trim_matches('"').to_owned())
}

fn unverified(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["NO_PUBKEY", "EXPKEYSIG", "is not signed", "Missing key"].iter().any(|sign| text.contains(sign))
}

/// The keyring of the newest `debian-archive-keyring` of the machine's own release, which its keys verify.
fn newer_keyring(root: &Path, source: &Source, codename: &str) -> Result<String> {
    let apt = Apt::with(root, source, codename)?;
    let prefix = root.join("prefix");
    apt.unpack_one("debian-archive-keyring", &prefix)?;
    let keyring = prefix.join("usr/share/keyrings/debian-archive-keyring.gpg");
    let keyring = if keyring.exists() { keyring } else { keyring.with_extension("pgp") };
    Ok(keyring.canonicalize()?.to_string_lossy().into_owned())
}
