//! The steps of `test`, `soak`, `lint` and `peers`.

use std::fs;
use std::io::{BufRead, BufReader, pipe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::instructions::{self, Verdict};
use crate::peers;
use crate::process::run;
use crate::report::{Outcome, Report, first_line};

/// The workspace's root.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How much of the random and repeated tests runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What fits a change: minutes.
    Test,
    /// Larger counts from a seed: hours.
    Soak {
        /// Where every random choice starts.
        seed: u64,
    },
}

/// Runs everything and prints the table; whether all was good.
pub fn test(extent: Extent) -> Result<bool> {
    let mut report = Report::new();
    lint_steps(&mut report);
    let peers = peers::fetch(&mut report)?;
    let built = report.step("build", || {
        run(cargo().args(["build", "--release", "--package", "isthmus"]))?;
        Ok("release".into())
    });
    if built {
        count(&mut report, &peers, &instructions::Options::default());
        tests(&mut report, &peers, extent)?;
    }
    Ok(finish(&report))
}

/// Runs rustfmt and clippy.
pub fn lint() -> Result<bool> {
    let mut report = Report::new();
    lint_steps(&mut report);
    Ok(finish(&report))
}

/// Builds the program and takes its figures.
pub fn figures(options: &crate::figures::Options) -> Result<bool> {
    run(cargo().args(["build", "--release", "--package", "isthmus"]))?;
    crate::figures::figures(&target_directory()?.join("release/isthmus"), options)?;
    Ok(true)
}

/// Builds the program, unless another is named, and compares it.
pub fn perf(options: &crate::perf::Options) -> Result<bool> {
    let program = match options.ready() {
        Some(program) => program,
        None => {
            run(cargo().args(["build", "--release", "--package", "isthmus"]))?;
            target_directory()?.join("release/isthmus")
        }
    };
    crate::perf::perf(&program, Path::new(ROOT), options)?;
    Ok(true)
}

/// Counts instructions and compares them with the record.
pub fn instructions(options: &instructions::Options) -> Result<bool> {
    let mut report = Report::new();
    let peers = peers::fetch_valgrind(&mut report)?;
    count(&mut report, &peers, options);
    Ok(finish(&report))
}

/// Adds the row of what commands cost.
fn count(report: &mut Report, peers: &Path, options: &instructions::Options) {
    eprintln!("\n=== instructions");
    let began = Instant::now();
    let root = Path::new(ROOT);
    let verdict = target_directory()
        .and_then(|target| instructions::instructions(cargo(), peers, &target, root, options));
    let outcome = match verdict {
        Ok(Verdict::Same(said)) => Outcome::Passed(said),
        Ok(Verdict::Differs(said)) => Outcome::Failed(said),
        Ok(Verdict::Incomparable(said)) => Outcome::Skipped(said),
        Err(error) => {
            eprintln!("instructions: {error:#}");
            Outcome::Failed(first_line(&format!("{error:#}")))
        }
    };
    report.add("instructions", outcome, began.elapsed());
}

/// Fetches the peers and prints their directory, alone on standard output.
pub fn peers() -> Result<bool> {
    let mut report = Report::new();
    let links = peers::fetch(&mut report)?;
    eprintln!("{report}");
    println!("{}", links.display());
    Ok(report.good(strict()))
}

fn lint_steps(report: &mut Report) {
    report.step("rustfmt", || {
        run(cargo().args(["fmt", "--all", "--check"]))?;
        Ok("no difference".into())
    });
    report.step("clippy", || {
        run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        Ok("no warning".into())
    });
}

/// `cargo test` as a user would run it, with the peers named in its environment; its output passes through unchanged.
fn tests(report: &mut Report, peers: &Path, extent: Extent) -> Result<()> {
    eprintln!("\n=== cargo test");
    let began = Instant::now();
    let target = target_directory()?;
    let skips = target.join(format!("skipped-tests.{}", std::process::id()));
    fs::write(&skips, "")?;
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("ISTHMUS_PEERS", peers)
        .env("ISTHMUS_SKIPS", &skips)
        .env("ISTHMUS_BIN", target.join("release/isthmus"));
    if let Extent::Soak { seed } = extent {
        println!("ISTHMUS_SEED={seed}");
        command.args(["--profile", "soak"]).env("ISTHMUS_SOAK", "1").env("ISTHMUS_SEED", seed.to_string());
    }
    // One pipe for both streams: cargo names each test program on standard error, its result follows on standard output.
    let (reader, writer) = pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cargo does not start")?;
    drop(command);
    let mut programs = Programs::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        programs.line(&line);
    }
    let status = child.wait()?;
    programs.rows(report);
    let outcome = if status.success() {
        Outcome::Passed("every test program".into())
    } else {
        Outcome::Failed(status.to_string())
    };
    report.add("cargo test", outcome, began.elapsed());
    for skip in fs::read_to_string(&skips)?.lines() {
        let (test, reason) = skip.split_once('\t').unwrap_or((skip, ""));
        report.add(test, Outcome::Skipped(reason.to_owned()), Duration::ZERO);
    }
    Ok(fs::remove_file(&skips)?)
}

/// What `cargo test` said of each test program.
#[derive(Default)]
struct Programs {
    ended: Vec<Program>,
    name: String,
    failures: Vec<String>,
}

struct Program {
    name: String,
    counts: [u32; 3],
    failures: Vec<String>,
    took: Duration,
}

impl Programs {
    /// Takes the next line of output.
    fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some((_, path)) = line.strip_prefix("Running ").and_then(|rest| rest.split_once(" (")) {
            let file =
                Path::new(path.trim_end_matches(')')).file_name().unwrap_or_default().to_string_lossy();
            self.name = file.rsplit_once('-').map_or(file.as_ref(), |(name, _hash)| name).to_owned();
        } else if let Some(name) = line.strip_prefix("Doc-tests ") {
            self.name = format!("{name} documentation");
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(test.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let count = |word| {
                let before = result.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(word));
                before.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
            };
            let seconds = result.rsplit(' ').next().and_then(|word| word.strip_suffix('s')?.parse().ok());
            self.ended.push(Program {
                name: std::mem::take(&mut self.name),
                counts: ["passed", "failed", "ignored"].map(count),
                failures: std::mem::take(&mut self.failures),
                took: Duration::from_secs_f64(seconds.unwrap_or(0.0)),
            });
        }
    }

    /// Adds a row for each program that ran a test.
    fn rows(self, report: &mut Report) {
        for Program { name, counts: [passed, failed, ignored], failures, took } in self.ended {
            let outcome = match (passed, failed, ignored) {
                (0, 0, 0) => continue,
                (_, 0, 0) => Outcome::Passed(format!("{passed} tests")),
                (_, 0, _) => Outcome::Skipped(format!("{passed} tests passed, {ignored} ignored")),
                _ => {
                    Outcome::Failed(format!("{failed} of {} tests: {}", passed + failed, failures.join(", ")))
                }
            };
            report.add(name, outcome, took);
        }
    }
}

fn finish(report: &Report) -> bool {
    let good = report.good(strict());
    println!("\n{report}");
    if !good && report.good(false) {
        println!("CI is set, and a skipped row is a failure there");
    }
    good
}

/// Whether a skipped row is a failure.
fn strict() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// The cargo that runs us, at the workspace's root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(ROOT);
    command
}

/// Where cargo builds: this program lies in `release/` below it.
fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    match program.ancestors().nth(2) {
        Some(target) if target.join("release").is_dir() => Ok(target.to_owned()),
        _ => bail!(
            "{} does not lie in cargo's release directory; start it by `cargo xtask`",
            program.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_test_program() {
        let mut programs = Programs::default();
        let output = "   Compiling engine v0.1.0\n     Running unittests src/lib.rs (/t/debug/deps/engine-0a1b2c)\n\
            running 2 tests\ntest ring::tests::wraps ... ok\ntest mem::tests::maps ... ok\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.03s\n\
            \x20    Running tests/guest_nvmet.rs (target/debug/deps/guest_nvmet-99aa)\n\
            test digests ... FAILED\ntest plain ... ok\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 31.50s\n\
            \x20  Doc-tests engine\n\
            test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        output.lines().for_each(|line| programs.line(line));
        let mut report = Report::new();
        programs.rows(&mut report);
        let table = report.to_string();
        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows.len(), 3, "{table}");
        assert!(rows[0].starts_with("engine") && rows[0].ends_with("0.0 s  2 tests"), "{table}");
        assert!(rows[1].starts_with("guest_nvmet  FAILED"), "{table}");
        assert!(rows[1].ends_with("31.5 s  1 of 2 tests: digests"), "{table}");
    }

    #[test]
    fn an_ignored_test_is_not_a_passed_one() {
        let mut programs = Programs::default();
        programs.line(
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s",
        );
        let mut report = Report::new();
        programs.rows(&mut report);
        assert!(!report.good(true));
    }
}
