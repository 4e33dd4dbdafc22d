//! The programs' own cost: measured by the dataplane crate's `bench` example, which drives `BPF_PROG_TEST_RUN`.

use anyhow::{Context, Result};

use super::Row;
use crate::{
    command::{self, cargo},
    setup,
};

/// Runs the example and takes its rows.
pub(super) fn measure() -> Result<Vec<Row>> {
    setup::run()?;
    let rows = command::output(&mut cargo([
        "run",
        "--quiet",
        "--release",
        "--package",
        "weir-dataplane",
        "--example",
        "bench",
    ])?)?;
    serde_json::from_str(&rows).context("reading the rows of the dataplane's bench example")
}
