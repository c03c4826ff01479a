//! The table that ends a run: one row for each step, peer and test program.

use std::fmt;
use std::time::{Duration, Instant};

/// How a row ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should; the text says what.
    Passed(String),
    /// It did not.
    Failed(String),
    /// It could not be tried, for this reason.
    Skipped(String),
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    name: String,
    outcome: Outcome,
    took: Duration,
}

/// The rows of a run, in the order they ended.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    began: Instant,
}

impl Report {
    /// An empty report; its clock starts now.
    pub fn new() -> Self {
        Self { rows: Vec::new(), began: Instant::now() }
    }

    /// Adds a row.
    pub fn add(&mut self, name: impl Into<String>, outcome: Outcome, took: Duration) {
        self.rows.push(Row { name: name.into(), outcome, took });
    }

    /// Runs a step, says so on standard error, and adds its row. An error is a failed row. Returns whether it passed.
    pub fn step(&mut self, name: &str, run: impl FnOnce() -> anyhow::Result<String>) -> bool {
        eprintln!("\n=== {name}");
        let began = Instant::now();
        let outcome = match run() {
            Ok(said) => Outcome::Passed(said),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                Outcome::Failed(first_line(&format!("{error:#}")))
            }
        };
        let passed = matches!(outcome, Outcome::Passed(_));
        self.add(name, outcome, began.elapsed());
        passed
    }

    /// Whether nothing failed and, when `strict`, nothing was skipped.
    pub fn good(&self, strict: bool) -> bool {
        self.rows.iter().all(|row| match row.outcome {
            Outcome::Passed(_) => true,
            Outcome::Failed(_) => false,
            Outcome::Skipped(_) => !strict,
        })
    }
}

/// The first line of a text, so that a row stays one line.
pub fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            let (word, text) = match &row.outcome {
                Outcome::Passed(text) => ("passed", text),
                Outcome::Failed(text) => ("FAILED", text),
                Outcome::Skipped(text) => ("SKIPPED", text),
            };
            let took = row.took.as_secs_f64();
            writeln!(f, "{:width$}  {word:7}  {took:7.1} s  {text}", row.name)?;
        }
        let count = |is: fn(&Outcome) -> bool| self.rows.iter().filter(|row| is(&row.outcome)).count();
        write!(
            f,
            "{} passed, {} failed, {} skipped in {:.0} s",
            count(|outcome| matches!(outcome, Outcome::Passed(_))),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            self.began.elapsed().as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_row_fails_only_a_strict_run() {
        let mut report = Report::new();
        report.add("kernel", Outcome::Passed("6.12".into()), Duration::ZERO);
        report.add("qemu", Outcome::Skipped("no apt".into()), Duration::ZERO);
        assert!(report.good(false));
        assert!(!report.good(true));
    }

    #[test]
    fn an_error_is_a_failed_row() {
        let mut report = Report::new();
        assert!(!report.step("clippy", || anyhow::bail!("one\ntwo")));
        assert!(!report.good(false));
        let table = report.to_string();
        assert!(table.contains("FAILED") && table.contains("one") && !table.contains("two"), "{table}");
        assert!(table.ends_with("0 passed, 1 failed, 0 skipped in 0 s"), "{table}");
    }
}
