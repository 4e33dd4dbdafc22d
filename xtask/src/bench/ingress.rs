//! What the ingress costs and carries: measured by the ingress crate's `ingress-bench` example, beside its peers.

use std::process::Command;

use anyhow::{Context, Result};
use weir_tests::Row;

use crate::{
    build::{self, Profile},
    command, setup,
};

/// Runs the example, or the named parts of it, and takes its rows. What it measures of Weir is the executable.
pub(super) fn measure(only: &[String]) -> Result<Vec<Row>> {
    setup::run()?;
    setup::proxies()?;
    let weir = build::weir(Profile::Release)?;
    let bench = build::example("ingress-bench")?;
    let rows = command::output(Command::new(bench).args(only).env("WEIR", weir))?;
    serde_json::from_str(&rows).context("reading the rows of the ingress's bench example")
}
