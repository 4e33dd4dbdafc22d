//! What the dataplane costs and carries: measured by the dataplane crate's `dataplane-bench` example, beside its peers.

use std::process::Command;

use anyhow::{Context, Result};
use weir_tests::Row;

use crate::{build, command, setup};

/// Runs the example, or the named parts of it, and takes its rows.
pub(super) fn measure(only: &[String]) -> Result<Vec<Row>> {
    setup::run()?;
    let rows = command::output(Command::new(build::example("dataplane-bench")?).args(only))?;
    serde_json::from_str(&rows).context("reading the rows of the dataplane's bench example")
}
