//! A node whose disk is fuller than `--eviction-hard` allows: it says so, pods wait and say so too, and a threshold that
//! the disk keeps lets them run.

use anyhow::{Result, ensure};
use weir_tests::{Cluster, NODE_NAME, Options};

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: waits}, spec: {containers: [{name: echo, image: \
                   weir.dev/echo:latest, imagePullPolicy: Never}]}}";

#[test]
fn a_full_disk_keeps_pods_away_and_says_why() -> Result<()> {
    let mut options = Options::from_environment()?;
    options.flags.push("--eviction-hard=nodefs.available<100%".to_owned());
    let mut cluster = Cluster::start(options)?;
    let node = format!("node/{NODE_NAME}");
    cluster.kubectl(&["wait", &node, "--for=condition=DiskPressure", "--timeout=20s"])?;
    let said = cluster.kubectl(&["describe", &node])?;
    ensure!(said.contains("nodefs.available is below its threshold"), "{said}");

    cluster.apply(POD)?;
    let pending = "--for=jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable";
    cluster.kubectl(&["wait", "pod/waits", pending, "--timeout=20s"])?;
    let said = cluster.kubectl(&["describe", "pod/waits"])?;
    ensure!(said.contains("node.kubernetes.io/disk-pressure"), "{said}");

    cluster.down()?;
    cluster.flags = vec!["--eviction-hard=".to_owned()];
    cluster.up()?;
    cluster.wait_for_line("all roles run")?;
    cluster.kubectl(&["wait", "pod/waits", "--for=condition=Ready", "--timeout=60s"])?;
    Ok(())
}
