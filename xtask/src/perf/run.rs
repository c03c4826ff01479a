//! What a run says, and many of them together.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::rows::Row;

/// What one run of a row says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    pub iops: f64,
    /// Latency in µs by percentile.
    pub latency: Vec<(f64, f64)>,
    /// The target's CPU in µs per I/O.
    pub cpu: Option<f64>,
    pub limit: String,
    /// Nanoseconds that a line of memory took from the target's CPU to the load's after it.
    pub between: Option<f64>,
}

impl Run {
    pub fn at(&self, percentile: f64) -> f64 {
        self.latency.iter().find(|(p, _)| *p >= percentile).map_or(0.0, |(_, us)| *us)
    }

    /// The figures of a row in bench's JSON; jobs that ran side by side are one.
    pub fn of(row: &Row, json: &Value) -> Result<Self> {
        let jobs = json["jobs"].as_array().context("no jobs")?;
        ensure!(!jobs.is_empty(), "no jobs");
        let mut run = Run::default();
        for job in jobs {
            for side in ["read", "write", "trim"] {
                run.iops += job[side]["iops"].as_f64().unwrap_or_default();
            }
        }
        let side = &jobs[0][if row.writes { "write" } else { "read" }]["clat_ns"]["percentile"];
        let all: BTreeMap<String, f64> = serde_json::from_value(side.clone()).unwrap_or_default();
        run.latency = all.iter().filter_map(|(p, ns)| Some((p.parse().ok()?, ns / 1000.0))).collect();
        run.latency.sort_by(|a, b| a.0.total_cmp(&b.0));
        run.cpu = jobs[0]["isthmus"]["target_cpu_us_per_io"].as_f64();
        run.limit = jobs[0]["isthmus"]["limit"].as_str().unwrap_or_default().to_owned();
        Ok(run)
    }

    /// The same run, to which one belongs after which a line took so long.
    pub fn after(self, between: Option<f64>) -> Self {
        Run { between: [self.between, between].into_iter().flatten().max_by(f64::total_cmp), ..self }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "iops": self.iops, "latency": self.latency, "cpu": self.cpu, "limit": self.limit, "between": self.between,
        })
    }

    pub fn from_json(json: &Value) -> Result<Self> {
        Ok(Run {
            iops: json["iops"].as_f64().context("iops")?,
            latency: serde_json::from_value(json["latency"].clone())?,
            cpu: json["cpu"].as_f64(),
            limit: json["limit"].as_str().unwrap_or_default().to_owned(),
            between: json["between"].as_f64(),
        })
    }
}

/// The runs of a row on one target.
pub type Runs = Vec<Run>;

/// How far apart the CPUs were at most in the runs of a row, in nanoseconds.
pub fn furthest(runs: &[Runs]) -> Option<f64> {
    runs.iter().flatten().filter_map(|run| run.between).max_by(f64::total_cmp)
}

/// A median, the least and the most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

pub fn spread(runs: &Runs, value: impl Fn(&Run) -> f64) -> Spread {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or_default();
    Spread { median: at(values.len() / 2), least: at(0), most: at(values.len().saturating_sub(1)) }
}
