//! `kubectl apply` of what is there already: nothing changes, and kubectl knows it.

use std::process::{Output, Stdio};

use anyhow::{Result, ensure};
use weir_tests::{Cluster, Options};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop.yaml");
/// Objects in it.
const OBJECTS: usize = 7;

#[test]
fn a_second_apply_changes_nothing_and_a_diff_is_empty() -> Result<()> {
    let cluster = Cluster::start(Options::from_environment()?)?;
    let first = cluster.kubectl(&["apply", "-f", SHOP])?;
    ensure!(
        first.lines().filter(|line| line.ends_with(" created")).count() == OBJECTS,
        "first apply:\n{first}"
    );
    unchanged(&cluster)?;
    // Now status, conditions and annotations of controllers are there too.
    for deployment in ["deployment/catalog", "deployment/checkout"] {
        cluster.kubectl(&["rollout", "status", "--timeout=60s", deployment])?;
    }
    unchanged(&cluster)?;

    // The check can fail: what somebody else changed is shown, and nothing besides.
    cluster.kubectl(&["scale", "deployment/catalog", "--replicas=1"])?;
    let output = diff(&cluster)?;
    let shown = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "kubectl diff after a scale: {}\n{shown}", output.status);
    let changed: Vec<_> = shown
        .lines()
        .filter(|line| line.starts_with(['+', '-']) && !line.starts_with("+++") && !line.starts_with("---"))
        .filter(|line| !line.contains("generation:"))
        .collect();
    ensure!(changed == ["-  replicas: 1", "+  replicas: 2"], "kubectl diff shows\n{shown}");
    Ok(())
}

fn unchanged(cluster: &Cluster) -> Result<()> {
    let again = cluster.kubectl(&["apply", "-f", SHOP])?;
    let unchanged = again.lines().filter(|line| line.ends_with(" unchanged")).count();
    ensure!(unchanged == OBJECTS && again.lines().count() == OBJECTS, "second apply:\n{again}");
    let output = diff(cluster)?;
    ensure!(
        output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
        "kubectl diff: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn diff(cluster: &Cluster) -> Result<Output> {
    Ok(cluster.kubectl_command().args(["diff", "-f", SHOP]).stdin(Stdio::null()).output()?)
}
