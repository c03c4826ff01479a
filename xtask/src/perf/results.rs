//! All that was found, and its file: a comparison can be made in pieces.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::idle::Idle;
use super::rows::{Row, rows};
use super::run::{Run, Runs};

#[derive(Default)]
pub struct Results {
    /// The targets' names: Isthmus, the peer, and Isthmus that never sleeps; empty or left out where it was not measured.
    pub names: Vec<String>,
    pub rows: Vec<(Row, Vec<Runs>)>,
    pub idle: Vec<Idle>,
    /// The largest share of the target's first CPU that others took in a run.
    pub disturbed: f64,
    pub machine: Vec<(String, String)>,
    /// What was called, once for each piece.
    pub commands: Vec<String>,
}

impl Results {
    /// What a file has; nothing where there is none yet.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Results::default()),
            text => text?,
        };
        Self::from_json(&serde_json::from_str(&text)?).context("not a file of results")
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_json().to_string()).with_context(|| path.display().to_string())
    }

    /// Takes over what was measured again or is new; the rows stand in the order in which they are listed.
    pub fn merge(&mut self, new: Results) {
        if new.rows.is_empty() && new.idle.is_empty() {
            return;
        }
        // A piece may have fewer targets than another; each has its place.
        for (i, name) in new.names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            self.names.resize(self.names.len().max(i + 1), String::new());
            self.names[i] = name;
        }
        if !new.idle.is_empty() {
            self.idle = new.idle;
        }
        for (row, runs) in new.rows {
            self.rows.retain(|(old, _)| old.id != row.id);
            self.rows.push((row, runs));
        }
        let order: Vec<String> = rows().into_iter().map(|row| row.id).collect();
        self.rows.sort_by_key(|(row, _)| order.iter().position(|id| *id == row.id));
        self.disturbed = self.disturbed.max(new.disturbed);
        self.machine = new.machine;
        self.commands.extend(new.commands);
        self.commands.dedup();
    }

    fn to_json(&self) -> Value {
        let runs = |all: &Vec<Runs>| -> Value {
            all.iter().map(|runs| runs.iter().map(Run::to_json).collect::<Value>()).collect()
        };
        let rows: Map<String, Value> =
            self.rows.iter().map(|(row, all)| (row.id.clone(), runs(all))).collect();
        let idle: Vec<Value> = self.idle.iter().map(Idle::to_json).collect();
        json!({
            "names": self.names, "rows": rows, "idle": idle, "disturbed": self.disturbed, "machine": self.machine,
            "commands": self.commands,
        })
    }

    fn from_json(json: &Value) -> Result<Self> {
        let runs = |all: &Value| -> Result<Runs> {
            all.as_array().context("runs")?.iter().map(Run::from_json).collect()
        };
        let mut found = Vec::new();
        // Rows that are no more are left out.
        for row in rows() {
            if let Some(all) = json["rows"][&row.id].as_array() {
                found.push((row, all.iter().map(runs).collect::<Result<_>>()?));
            }
        }
        let idle = json["idle"].as_array().context("idle")?;
        Ok(Results {
            names: serde_json::from_value(json["names"].clone())?,
            rows: found,
            idle: idle.iter().map(Idle::from_json).collect::<Result<_>>()?,
            disturbed: json["disturbed"].as_f64().unwrap_or_default(),
            machine: serde_json::from_value(json["machine"].clone())?,
            commands: serde_json::from_value(json["commands"].clone())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(ids: &[&str], iops: f64) -> Results {
        let latency = vec![(50.0, 9.5), (99.0, 11.0)];
        let run = Run { iops, latency, cpu: Some(1.5), limit: "target".into(), between: Some(27.0) };
        let row = |id: &&str| rows().into_iter().find(|row| row.id == *id).unwrap();
        let rows = ids.iter().map(|id| (row(id), vec![vec![run.clone()], Vec::new()])).collect();
        Results { names: vec!["Isthmus".into(), "SPDK".into()], rows, ..Results::default() }
    }

    #[test]
    fn pieces_make_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results");
        let mut all = Results::load(&path).unwrap();
        all.merge(results(&["null-randread-128", "tcp-randread-1"], 10.0));
        all.save(&path).unwrap();
        let mut all = Results::load(&path).unwrap();
        // Without a peer, and with what never sleeps.
        let mut alone = results(&[], 10.0);
        alone.names = ["Isthmus", "", "Isthmus awake"].map(String::from).to_vec();
        alone.rows = results(&["waking-tcp-100"], 10.0).rows;
        all.merge(alone);
        assert_eq!(all.names, ["Isthmus", "SPDK", "Isthmus awake"]);
        all.rows.retain(|(row, _)| row.id != "waking-tcp-100");
        all.merge(results(&["tcp-randread-1", "tcp-randread-2"], 20.0));
        assert_eq!(all.names.len(), 3);
        let found: Vec<(&str, f64)> =
            all.rows.iter().map(|(row, runs)| (row.id.as_str(), runs[0][0].iops)).collect();
        assert_eq!(found, [("tcp-randread-1", 20.0), ("tcp-randread-2", 20.0), ("null-randread-128", 10.0)]);
        assert_eq!(all.rows[2].1[0], results(&["null-randread-128"], 10.0).rows[0].1[0]);
    }
}
