//! README's path with the real kubectl: apply, look, scale, roll, undo, delete, with every way in tried after each
//! step.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use weir_tests::{Cluster, Leftovers, Load, NODE_ADDRESS, Options, eventually, get};

/// Longest wait for a step to show.
const DEADLINE: Duration = Duration::from_secs(30);
/// The NodePort of the example's checkout.
const NODE_PORT: u16 = 30080;
const SHOP: &str = include_str!("../../examples/shop.yaml");

#[test]
fn an_ordinary_manifest_serves_through_its_whole_life() -> Result<()> {
    let options = Options::from_environment()?;
    let other_image = options.images[0].clone();
    let mut cluster = Cluster::prepare(options)?;
    let before = Leftovers::picture(cluster.mark(), &cluster.node)?;
    let other = other_image.to_string_lossy().into_owned();
    let data_dir = cluster.data_dir().to_string_lossy().into_owned();
    let imported = cluster
        .weir(&["image", "import", "--data-dir", &data_dir, "--name", "weir.dev/echo:next", &other])
        .status()?;
    ensure!(imported.success(), "importing the second image");
    cluster.up()?;
    cluster.wait_for_line("all roles run")?;

    cluster.apply(SHOP)?;
    for deployment in ["catalog", "checkout"] {
        cluster.kubectl(&["rollout", "status", "--timeout=60s", &format!("deployment/{deployment}")])?;
    }
    every_way_in_answers(&cluster).context("after apply")?;
    the_answer_shows_configuration(&cluster)?;

    tables_have_their_columns(&cluster)?;
    let described = cluster.kubectl(&["describe", "deployment", "catalog"])?;
    ensure!(described.contains("ScalingReplicaSet"), "describe shows no events:\n{described}");
    let described = cluster.kubectl(&["describe", "pod", "--selector=app=catalog"])?;
    ensure!(described.contains("Started container echo"), "describe shows no events:\n{described}");

    cluster.kubectl(&["scale", "deployment/checkout", "--replicas=3"])?;
    cluster.kubectl(&["rollout", "status", "--timeout=60s", "deployment/checkout"])?;
    every_way_in_answers(&cluster).context("after scale")?;

    let ingress =
        Load::start(&cluster.outside, SocketAddr::from((NODE_ADDRESS, 80)), "shop.example", "/checkout");
    let node_port =
        Load::start(&cluster.outside, SocketAddr::from((NODE_ADDRESS, NODE_PORT)), "checkout", "/");
    cluster.kubectl(&["set", "image", "deployment/checkout", "echo=weir.dev/echo:next"])?;
    cluster.kubectl(&["rollout", "status", "--timeout=90s", "deployment/checkout"])?;
    every_way_in_answers(&cluster).context("after set image")?;
    cluster.kubectl(&["rollout", "undo", "deployment/checkout"])?;
    cluster.kubectl(&["rollout", "status", "--timeout=90s", "deployment/checkout"])?;
    every_way_in_answers(&cluster).context("after rollout undo")?;
    for (way, load) in [("ingress", ingress), ("node port", node_port)] {
        let outcome = load.finish();
        ensure!(
            outcome.failed.is_empty() && outcome.succeeded > 0,
            "{way} during the rolling update: {outcome}"
        );
    }
    let history = cluster.kubectl(&["rollout", "history", "deployment/checkout"])?;
    ensure!(history.contains('3'), "the undo is no new revision:\n{history}");

    let logs = cluster.kubectl(&["logs", "deployment/catalog"])?;
    ensure!(logs.contains("HTTP on"), "kubectl logs shows\n{logs}");
    let mut follower = cluster.kubectl_command();
    let follower =
        follower.args(["logs", "--follow", "deployment/catalog"]).stdout(Stdio::piped()).spawn()?;

    cluster.kubectl(&["delete", "ingress/shop", "service/catalog", "service/checkout", "--timeout=30s"])?;
    cluster.kubectl(&["delete", "deployment/catalog", "deployment/checkout", "--timeout=60s"])?;
    let followed = String::from_utf8(follower.wait_with_output()?.stdout)?;
    ensure!(followed.contains("SIGTERM"), "kubectl logs --follow ended before the pod did:\n{followed}");
    eventually("pods go with their Deployments", || {
        let pods = cluster.kubectl(&["get", "pods", "--output=name"])?;
        ensure!(pods.is_empty(), "still there: {pods}");
        Ok(())
    })?;
    let refused = cluster
        .outside
        .run(|| get(SocketAddr::from((NODE_ADDRESS, 80)), "shop.example", "/", Duration::from_secs(5)))?;
    ensure!(refused.status == 404, "after delete the ingress answers {}", refused.status);

    cluster.down()?;
    let left = Leftovers::picture(cluster.mark(), &cluster.node)?.since(&before);
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    Ok(())
}

/// Ingress (both hosts, both paths), NodePort from outside, ClusterIP from the host and from a pod.
fn every_way_in_answers(cluster: &Cluster) -> Result<()> {
    for (host, path) in [("shop.example", "/"), ("shop.example", "/checkout"), ("admin.shop.example", "/")] {
        cluster.wait_for_200(host, path, DEADLINE).with_context(|| format!("ingress {host}{path}"))?;
    }
    let outside = cluster
        .outside
        .run(|| get(SocketAddr::from((NODE_ADDRESS, NODE_PORT)), "checkout", "/status/200", DEADLINE));
    ensure!(outside.context("NodePort from outside")?.status == 200, "NodePort from outside");

    let cluster_ip = cluster.kubectl(&["get", "service/catalog", "--output=jsonpath={.spec.clusterIP}"])?;
    let host = cluster
        .on_node("curl")
        .args(["-sSf", "--max-time", "10", &format!("http://{cluster_ip}/status/200")])
        .output()?;
    ensure!(host.status.success(), "ClusterIP from the host: {}", String::from_utf8_lossy(&host.stderr));

    let pod = cluster.outside.run(|| {
        let path = format!("/fetch/{cluster_ip}:80/status/200");
        get(SocketAddr::from((NODE_ADDRESS, 80)), "shop.example", &path, DEADLINE)
    });
    let pod = pod.context("ClusterIP from a pod")?;
    ensure!(pod.status == 200, "ClusterIP from a pod: {} {}", pod.status, pod.body);
    Ok(())
}

fn the_answer_shows_configuration(cluster: &Cluster) -> Result<()> {
    let answer =
        cluster.outside.run(|| get(SocketAddr::from((NODE_ADDRESS, 80)), "shop.example", "/", DEADLINE))?;
    for expected in ["Welcome to the shop", "not-so-secret", "opening-hours", "x-forwarded-for"] {
        ensure!(answer.body.contains(expected), "no {expected:?} in {}", answer.body);
    }
    Ok(())
}

fn tables_have_their_columns(cluster: &Cluster) -> Result<()> {
    for (what, columns) in [
        ("pods", "NAME READY STATUS RESTARTS AGE"),
        ("deployments", "NAME READY UP-TO-DATE AVAILABLE AGE"),
        ("replicasets", "NAME DESIRED CURRENT READY AGE"),
        ("services", "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE"),
        ("endpointslices", "NAME ADDRESSTYPE PORTS ENDPOINTS AGE"),
        ("ingresses", "NAME CLASS HOSTS ADDRESS PORTS AGE"),
        ("nodes", "NAME STATUS ROLES AGE VERSION"),
        ("configmaps", "NAME DATA AGE"),
        ("secrets", "NAME TYPE DATA AGE"),
    ] {
        let table = cluster.kubectl(&["get", what])?;
        let header: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
        ensure!(header.join(" ") == columns, "kubectl get {what} shows\n{table}");
    }
    Ok(())
}
