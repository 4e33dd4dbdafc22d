//! The programs' own cost: measured by the dataplane crate's `bench` example, which drives `BPF_PROG_TEST_RUN`.

use std::process::Command;

use anyhow::{Context, Result};

use super::Row;
use crate::{build, command, setup};

/// Runs the example and takes its rows.
pub(super) fn measure() -> Result<Vec<Row>> {
    setup::run()?;
    let rows = command::output(&mut Command::new(build::example("dataplane-bench")?))?;
    serde_json::from_str(&rows).context("reading the rows of the dataplane's bench example")
}
