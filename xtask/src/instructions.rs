//! `cargo xtask instructions`: what a command costs on each path, in instructions of user space, counted by callgrind on
//! fixed inputs (`benches/instructions`), against what is recorded in the repository.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::capture;

/// What a path may cost more or less than recorded, as a share.
const TOLERANCE: f64 = 0.03;
/// String instructions count once for each byte and hide the code around them: glibc is told to copy by vectors.
const GLIBC: &str = "glibc.cpu.x86_rep_movsb_threshold=268435456:glibc.cpu.x86_rep_stosb_threshold=268435456:\
                     glibc.cpu.x86_non_temporal_threshold=268435456";

/// What is counted.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Only this path; may be repeated.
    #[arg(long, value_name = "PATH")]
    only: Vec<String>,
    /// Write what was counted to the record instead of comparing it.
    #[arg(long)]
    record: bool,
    /// Print the functions that the instructions of this path are in, and count no other.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["record", "only"])]
    annotate: Option<String>,
}

/// How a comparison ended.
pub enum Verdict {
    /// Every path costs what is recorded.
    Same(String),
    /// These do not.
    Differs(String),
    /// The record was made with other tools, so that its numbers say nothing here.
    Incomparable(String),
}

/// Builds the paths with `cargo`, counts, and prints a table. A valgrind among the `peers` is used before the machine's.
///
/// # Errors
/// When there is no valgrind, or a path does not build or run.
pub fn instructions(
    mut cargo: Command,
    peers: &Path,
    target: &Path,
    root: &Path,
    options: &Options,
) -> Result<Verdict> {
    let valgrind = Valgrind::find(&peers.join("valgrind"))?;
    cargo.args(["build", "--release", "--bench", "instructions"]);
    let messages = capture(cargo.args(["--message-format", "json-render-diagnostics"]))?;
    let bench = messages.lines().filter_map(executable).next().context("cargo built no paths")?;
    let results = target.join("callgrind");
    fs::create_dir_all(&results)?;
    let list = capture(Command::new(&bench).arg("--list"))?;
    let mut words = list.split_whitespace();
    let commands: u64 =
        words.next().unwrap_or_default().parse().context("the paths do not list themselves")?;
    let only: Vec<&String> = options.only.iter().chain(&options.annotate).collect();
    let names: Vec<&str> =
        words.filter(|name| only.is_empty() || only.iter().any(|only| only == name)).collect();
    ensure!(!names.is_empty(), "there is no such path: {list}");

    let mut counts = BTreeMap::new();
    for name in names {
        let output = results.join(format!("{name}.out"));
        counts.insert(name.to_owned(), valgrind.count(&bench, name, &output)?.div_ceil(commands));
    }
    if let Some(name) = &options.annotate {
        println!("{}", valgrind.annotate(&results.join(format!("{name}.out")))?);
    }
    let (path, tools) = (root.join("benches/instructions.toml"), tools()?);
    let before = fs::read_to_string(&path).unwrap_or_default();
    let record = Record::parse(&before);
    let compared = compare(&counts, &record);
    println!("{}", compared.table);
    if options.record {
        let mut counts = counts;
        for (name, count) in record.counts.into_iter().filter(|_| !only.is_empty()) {
            counts.entry(name).or_insert(count);
        }
        fs::write(&path, Record { tools, counts }.to_string())?;
        return Ok(Verdict::Same(format!("recorded in {}", path.display())));
    }
    if record.tools != tools {
        return Ok(Verdict::Incomparable(format!("recorded with {}, this is {tools}", record.tools)));
    }
    Ok(match compared.differ.as_slice() {
        [] => Verdict::Same(format!("{} paths within {:.0} %", counts.len(), TOLERANCE * 100.0)),
        differ => Verdict::Differs(format!(
            "{}; if that is meant: cargo xtask instructions --record",
            differ.join(", ")
        )),
    })
}

/// The program that one of cargo's messages is about.
fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let ours = message["target"]["name"] == "instructions";
    message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
}

/// What the numbers depend on besides the code.
fn tools() -> Result<String> {
    let rustc = capture(Command::new("rustc").arg("--version"))?;
    let library = capture(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    Ok(format!("{}, {}, {}", rustc.trim(), library.trim(), processor()))
}

/// What libraries choose their code by, of what valgrind shows to them.
fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("aes") {
        return "x86-64 with AVX2 and AES";
    }
    "another processor"
}

struct Compared {
    table: String,
    differ: Vec<String>,
}

fn compare(counts: &BTreeMap<String, u64>, record: &Record) -> Compared {
    let width = counts.keys().map(String::len).max().unwrap_or(0);
    let mut table = format!("{:width$}  {:>12}  {:>8}  {:>7}", "path", "instructions", "recorded", "change");
    let mut differ = Vec::new();
    for (name, &count) in counts {
        let Some(&old) = record.counts.get(name) else {
            let _ = write!(table, "\n{name:width$}  {count:>12}  {:>8}", "-");
            differ.push(format!("{name} is not recorded"));
            continue;
        };
        let change = count as f64 / old.max(1) as f64 - 1.0;
        let _ = write!(table, "\n{name:width$}  {count:>12}  {old:>8}  {:>+6.1} %", change * 100.0);
        if change.abs() > TOLERANCE {
            differ.push(format!("{name} {:+.1} %", change * 100.0));
        }
    }
    Compared { table, differ }
}

/// The file: what it was made with, and instructions by path.
#[derive(Debug, Default, PartialEq, Eq)]
struct Record {
    tools: String,
    counts: BTreeMap<String, u64>,
}

impl Record {
    fn parse(text: &str) -> Self {
        let mut record = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(" = ")) {
            match value.parse() {
                Ok(count) => drop(record.counts.insert(key.to_owned(), count)),
                Err(_) => record.tools = value.trim_matches('"').to_owned(),
            }
        }
        record
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "# Instructions of one command on each path: `cargo xtask instructions --record` writes them."
        )?;
        writeln!(f, "tools = \"{}\"", self.tools)?;
        self.counts.iter().try_for_each(|(name, count)| writeln!(f, "{name} = {count}"))
    }
}

/// A valgrind: the machine's own, or one that lies in a prefix beside it.
enum Valgrind {
    Installed,
    Unpacked(PathBuf),
}

impl Valgrind {
    fn find(prefix: &Path) -> Result<Self> {
        if prefix.join("usr/libexec/valgrind").is_dir() {
            return Ok(Self::Unpacked(prefix.to_owned()));
        }
        if capture(Command::new("valgrind").arg("--version")).is_ok() {
            return Ok(Self::Installed);
        }
        bail!("there is no valgrind, neither on this machine nor among the peers")
    }

    /// Instructions inside `counted` while `bench` runs a path.
    fn count(&self, bench: &Path, name: &str, output: &Path) -> Result<u64> {
        let mut command = match self {
            Self::Installed => Command::new("valgrind"),
            Self::Unpacked(prefix) => {
                // The tool is a static program, which the launcher would start like this; the launcher's own C library
                // may be newer than the machine's.
                let library = prefix.join("usr/libexec/valgrind");
                let mut command = Command::new(library.join("callgrind-amd64-linux"));
                command.env("VALGRIND_LIB", &library);
                command.env("VALGRIND_LAUNCHER", prefix.join("usr/bin/valgrind.bin"));
                command
            }
        };
        command.env("GLIBC_TUNABLES", GLIBC);
        command.args(["--tool=callgrind", "--toggle-collect=*instructions*counted*"]);
        command.arg(format!("--callgrind-out-file={}", output.display())).arg(bench).arg(name);
        capture(&mut command)?;
        let text = fs::read_to_string(output)?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).context("no totals")?;
        let total = total.trim().parse()?;
        ensure!(total > 0, "{name}: nothing was counted");
        Ok(total)
    }

    fn annotate(&self, output: &Path) -> Result<String> {
        let mut command = match self {
            Self::Installed => Command::new("callgrind_annotate"),
            Self::Unpacked(prefix) => Command::new(prefix.join("usr/bin/callgrind_annotate")),
        };
        capture(command.arg("--auto=no").arg(output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(counts: &[(&str, u64)]) -> Record {
        let counts = counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
        Record { tools: "rustc 1.90, glibc 2.36".into(), counts }
    }

    #[test]
    fn the_record_comes_back_as_it_was_written() {
        let written = record(&[("tcp-read", 5498), ("tcp-read-128k", 18000)]);
        assert_eq!(Record::parse(&written.to_string()), written);
    }

    #[test]
    fn three_percent_either_way_and_what_is_not_recorded_differ() {
        let old = record(&[("a", 1000), ("b", 1000), ("c", 1000), ("d", 1000)]);
        let new = record(&[("a", 1029), ("b", 1031), ("c", 960), ("e", 1)]).counts;
        let compared = compare(&new, &old);
        assert_eq!(compared.differ, ["b +3.1 %", "c -4.0 %", "e is not recorded"], "{}", compared.table);
    }

    #[test]
    fn cargo_names_the_program() {
        let built = r#"{"reason":"compiler-artifact","target":{"name":"instructions"},"executable":"/t/x"}"#;
        assert_eq!(executable(built), Some("/t/x".into()));
        assert_eq!(executable(r#"{"target":{"name":"engine"},"executable":null}"#), None);
        assert_eq!(executable("   Compiling"), None);
    }
}
