//! Measurements: rows of one shape, printed as a table and written as JSON.

mod dataplane;
mod ingress;
mod start;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use weir_tests::Row;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// From `weir up` to the first 200 through the ingress, and the memory of all roles.
    Start,
    /// What the dataplane costs and carries: packets, connections, streams, services; beside its peers.
    Dataplane,
    /// What the ingress costs and carries: requests, TLS, HTTP/2, routes; beside nginx, haproxy and a bare pingora proxy.
    Ingress,
}

/// Measures, prints, and writes the rows if asked.
pub(crate) fn run(subject: Subject, only: &[String], json: Option<&Path>) -> Result<()> {
    ensure!(
        only.is_empty() || subject != Subject::Start,
        "the bench of the start has no parts for --only to name"
    );
    let rows = match subject {
        Subject::Start => start::measure()?,
        Subject::Dataplane => dataplane::measure(only)?,
        Subject::Ingress => ingress::measure(only)?,
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
    for Row { name, value, unit, min, max, runs, peer, ratio, goal, met, note } in rows {
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
        let note = note.as_ref().map_or(String::new(), |note| format!("  ({note})"));
        // Three digits say what there is to say of a small figure.
        let digits = if *max < 10.0 { 2 } else { 1 };
        println!(
            "{name:width$} {value:>10.digits$} {min:>10.digits$} {max:>10.digits$} {runs:>5}  {unit:9} {peer}{goal}{note}"
        );
    }
}
