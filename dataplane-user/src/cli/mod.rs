//! What the live maps say, for people and scripts: `weir dataplane services|backends|flows|drops|status|maps|monitor`
//! and `weir explain`. Reads pins and the name table; neither the agent nor an API server has to run, though only a running
//! agent can say why an endpoint is not in the maps ([`crate::reasons`]).

mod explain;
mod monitor;
mod status;
mod views;

use std::{io, path::PathBuf};

use serde::Serialize;

pub use explain::{AffinityReport, Candidate, ExplainArgs, Explanation, FlowReport, NotTaken, explain};
pub use monitor::{EventRow, Kind, LISTEN, MonitorArgs, monitor};
pub use status::{LinkRow, Status, UplinkRow};
pub use views::{BackendRow, DropRow, FlowRow, MapRow, ServiceRow, TrafficRow, View, ViewArgs, view};

use crate::{
    kernel::{attach::AttachError, events::EventsError, maps::TableError},
    paths::Paths,
};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// Why there is nothing to say.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No dataplane.
    #[error("no dataplane is loaded below {0}: start `weir dataplane`, or give the right --run-dir")]
    NotLoaded(PathBuf),
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The pins.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The programs' events.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// A pod is asked for, and nobody knows its address.
    #[error(
        "--pod needs an API server to ask for its address: pass --kubeconfig FILE, or --ip ADDRESS instead"
    )]
    PodsUnknown,
    /// Two families in one question.
    #[error("source and destination are not of one address family")]
    MixedFamilies,
    /// A protocol that no service has.
    #[error("protocol `{0}` is not served; ask for tcp or udp")]
    Protocol(String),
    /// The name table, or the output.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn require_loaded(paths: &Paths) -> Result<(), CliError> {
    if paths.map("node_config").exists() {
        Ok(())
    } else {
        Err(CliError::NotLoaded(paths.run_dir().to_owned()))
    }
}

fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain rows serialize");
    text.push('\n');
    text
}

/// Columns as wide as their widest cell, two blanks between them, nothing behind the last.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..head.len())
        .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in all() {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "10".into()], vec!["longer".into(), "7".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME    N\na       10\nlonger  7\n");
    }
}
