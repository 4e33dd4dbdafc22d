//! Measurements: rows of one shape, printed as a table and written as JSON.

mod dataplane;
mod start;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// From `weir up` to the first 200 through the ingress, and the memory of all roles.
    Start,
    /// What the dataplane costs and carries: packets, connections, streams, services; beside its peers.
    Dataplane,
}

/// One figure, beside its peer's of the same run.
#[derive(Debug, Deserialize, Serialize)]
struct Row {
    name: String,
    /// The median.
    value: f64,
    unit: String,
    min: f64,
    max: f64,
    runs: usize,
    /// What it is compared with, if anything.
    #[serde(default)]
    peer: Option<String>,
    /// Value over the peer's value.
    #[serde(default)]
    ratio: Option<f64>,
    /// What the value is to be, in words.
    #[serde(default)]
    goal: Option<String>,
    /// Whether it is.
    #[serde(default)]
    met: Option<bool>,
}

impl Row {
    /// A row of several runs without a peer.
    fn of(name: &str, unit: &str, mut samples: Vec<f64>) -> Result<Self> {
        samples.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (samples.first(), samples.last()) else {
            anyhow::bail!("{name}: nothing was measured");
        };
        Ok(Self {
            name: name.to_owned(),
            value: samples[samples.len() / 2],
            unit: unit.to_owned(),
            min,
            max,
            runs: samples.len(),
            peer: None,
            ratio: None,
            goal: None,
            met: None,
        })
    }
}

/// Measures, prints, and writes the rows if asked.
pub(crate) fn run(subject: Subject, only: &[String], json: Option<&Path>) -> Result<()> {
    ensure!(only.is_empty() || subject == Subject::Dataplane, "--only names parts of the dataplane's bench");
    let rows = match subject {
        Subject::Start => start::measure()?,
        Subject::Dataplane => dataplane::measure(only)?,
    };
    print(&rows);
    if let Some(path) = json {
        fs::write(path, serde_json::to_string_pretty(&rows)?)
            .with_context(|| format!("--json {}", path.display()))?;
    }
    Ok(())
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
    println!(
        "{:width$} {:>10} {:>10} {:>10} {:>5}  {:9} peer",
        "name", "median", "min", "max", "runs", "unit"
    );
    for Row { name, value, unit, min, max, runs, peer, ratio, goal, met } in rows {
        let peer = match (peer, ratio) {
            (Some(peer), Some(ratio)) => format!("{ratio:.2} × {peer}"),
            (Some(peer), None) => peer.clone(),
            _ => String::new(),
        };
        let goal = match (goal, met) {
            (Some(goal), Some(true)) => format!("  [{goal}: met]"),
            (Some(goal), _) => format!("  [{goal}: MISSED]"),
            _ => String::new(),
        };
        println!("{name:width$} {value:>10.1} {min:>10.1} {max:>10.1} {runs:>5}  {unit:9} {peer}{goal}");
    }
}
