//! `kill -9`: traffic goes on, acknowledged writes stay.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weir_tests::{Cluster, Load, NODE_ADDRESS, Options};

/// What each transfer carries, about five seconds at its pace.
const MEBIBYTES: &str = "256";
/// How often the agent is killed during a transfer, and the pause before each time.
const KILLS: u32 = 3;
const BETWEEN_KILLS: Duration = Duration::from_millis(900);

const ECHO: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
        - name: echo
          image: weir.dev/echo:latest
          imagePullPolicy: Never
          readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{port: 9000, nodePort: 30900}]
";

#[test]
fn a_transfer_outlives_the_dataplane_agent() -> Result<()> {
    let cluster = Cluster::start(Options::from_environment()?)?;
    cluster.apply(ECHO)?;
    cluster.kubectl(&["rollout", "status", "--timeout=60s", "deployment/echo"])?;
    let cluster_ip = cluster.kubectl(&["get", "service/echo", "--output=jsonpath={.spec.clusterIP}"])?;
    let transfer = env!("CARGO_BIN_EXE_transfer");
    let ways = [
        ("NodePort", cluster.outside.command(transfer), format!("{NODE_ADDRESS}:30900")),
        ("ClusterIP", cluster.on_node(transfer), format!("{cluster_ip}:9000")),
    ];
    for (way, mut command, address) in ways {
        let running = command
            .args([&address, MEBIBYTES])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the transfer")?;
        for _ in 0..KILLS {
            thread::sleep(BETWEEN_KILLS);
            kill(cluster.role("dataplane")?, Signal::SIGKILL)?;
        }
        let output = running.wait_with_output()?;
        ensure!(output.status.success(), "{way}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn traffic_and_containers_outlive_every_role() -> Result<()> {
    const SHOP: &str = include_str!("../../examples/shop.yaml");
    const NODE_PORT: u16 = 30080;
    const ROLES: [&str; 6] = ["dataplane", "kubelet", "controllers", "scheduler", "apiserver", "ingress"];
    const CONTAINERS: &str = "--output=jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} \
                              {.restartCount}{\"\\n\"}{end}";

    let cluster = Cluster::start(Options::from_environment()?)?;
    cluster.apply(SHOP)?;
    for deployment in ["deployment/catalog", "deployment/checkout"] {
        cluster.kubectl(&["rollout", "status", "--timeout=60s", deployment])?;
    }
    cluster.wait_for_200("shop.example", "/checkout", Duration::from_secs(30))?;
    let before = cluster.kubectl(&["get", "pods", CONTAINERS])?;
    let cluster_ip = cluster.kubectl(&["get", "service/checkout", "--output=jsonpath={.spec.clusterIP}"])?;
    let cluster_ip = SocketAddr::new(cluster_ip.parse()?, 80);
    let program = cluster.on_node(env!("CARGO_BIN_EXE_load"));
    let loads = [
        ("ClusterIP", Load::start_process(program, cluster_ip, "checkout", "/")?),
        ("NodePort", Load::start(&cluster.outside, (NODE_ADDRESS, NODE_PORT).into(), "checkout", "/")),
    ];
    let started = Instant::now();
    for (replicas, role) in (2..).zip(ROLES) {
        eprintln!("after {:.2} s: killing {role}", started.elapsed().as_secs_f32());
        cluster.kill_role(role)?;
        // Each has work to do in this, and so shows that it is back.
        cluster.kubectl(&["scale", "deployment/checkout", &format!("--replicas={replicas}")])?;
        cluster
            .kubectl(&["rollout", "status", "--timeout=60s", "deployment/checkout"])
            .with_context(|| format!("after {role} was killed\n{}", cluster.logs()))?;
        cluster.wait_for_200("shop.example", "/checkout", Duration::from_secs(30))?;
    }
    let outcomes = loads.map(|(way, load)| (way, load.finish()));
    for (way, outcome) in &outcomes {
        ensure!(outcome.failed.is_empty() && outcome.succeeded > 0, "{way}: {outcome}\n{}", cluster.logs());
    }
    // Even for a moment would do harm: its pods would leave their Services.
    let unready =
        cluster.kubectl(&["get", "events", "--all-namespaces", "--field-selector=reason=NodeNotReady"])?;
    ensure!(unready.is_empty(), "a restart made the node unready:\n{unready}");
    let after = cluster.kubectl(&["get", "pods", CONTAINERS])?;
    let restarted: Vec<_> = after.lines().filter(|line| !line.ends_with(" 0")).collect();
    ensure!(restarted.is_empty(), "restarted: {restarted:?}");
    let replaced: Vec<_> = before.lines().filter(|line| !after.contains(line)).collect();
    ensure!(replaced.is_empty(), "replaced: {replaced:?}; there are\n{after}");
    Ok(())
}

#[test]
fn every_acknowledged_object_is_there_after_the_apiserver_was_killed() -> Result<()> {
    const OBJECTS: usize = 1_000;
    const KILL_AT: [usize; 3] = [150, 400, 700];

    let cluster = Cluster::start(Options::from_environment()?)?;
    // One kubectl creates a list; each "created" line is an acknowledgement. A fresh one goes on after a kill.
    let mut acknowledged = Vec::new();
    let mut next = 0;
    while next < OBJECTS {
        let until = KILL_AT.into_iter().find(|at| *at > next).unwrap_or(OBJECTS);
        let end = (until + 100).min(OBJECTS);
        let names: Vec<_> = (next..end).map(|number| format!("written-{number}")).collect();
        let killer = (until < OBJECTS).then(|| cluster.role("apiserver")).transpose()?;
        acknowledged.extend(create(&cluster, &names, killer.map(|pid| (pid, until - next)))?);
        next = end;
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "node/node", "--timeout=30s"])?;
    let there = cluster.kubectl(&["get", "configmaps", "--output=name"])?;
    let there: BTreeSet<_> = there.lines().map(str::to_owned).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(*name)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    ensure!(acknowledged.len() > OBJECTS / 2, "only {} creates were acknowledged", acknowledged.len());
    Ok(())
}

/// Creates `ConfigMaps` with one kubectl, kills the API server after so many of them, and returns the names that were
/// acknowledged. Waits for the API server to be back.
fn create(cluster: &Cluster, names: &[String], killer: Option<(Pid, usize)>) -> Result<Vec<String>> {
    let documents: Vec<_> = names
        .iter()
        .map(|name| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"))
        .collect();
    let mut kubectl = cluster.kubectl_command();
    kubectl.args(["create", "-f", "-", "--output=name"]);
    let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child
        .stdin
        .take()
        .context("standard input was asked for")?
        .write_all(documents.join("---\n").as_bytes())?;
    let output = child.stdout.take().context("standard output was asked for")?;
    let mut acknowledged = Vec::new();
    for line in BufReader::new(output).lines() {
        acknowledged.push(line?);
        if let Some((pid, after)) = killer
            && acknowledged.len() == after
        {
            kill(pid, Signal::SIGKILL)?;
        }
    }
    child.wait()?;
    for _ in 0..100 {
        if cluster.kubectl(&["get", "--raw=/readyz"]).is_ok() {
            return Ok(acknowledged);
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("the API server did not come back\n{}", cluster.logs())
}
