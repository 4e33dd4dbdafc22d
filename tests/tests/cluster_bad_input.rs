//! Bad input: each is told what is wrong, by object, field and remedy, and everything else keeps working.

use std::{fs, net::TcpListener, process::Output, time::Duration};

use anyhow::{Result, ensure};
use weir_tests::{Cluster, NODE_ADDRESS, Options, get};

/// A manifest and the words of the refusal.
const REFUSED: &[(&str, &str, &[&str])] = &[
    (
        "an unknown field",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, dota: {}}",
        &["unknown field \"dota\""],
    ),
    (
        "a wrong type",
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: eighty}]}}",
        &["port"],
    ),
    (
        "a missing selector",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {template: {metadata: {labels: {a: b}}, \
         spec: {containers: [{name: a, image: a}]}}}}",
        &["Deployment", "spec.selector", "Required value"],
    ),
    (
        "a port out of range",
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 70000}]}}",
        &["spec.ports[0].port", "70000", "between 1 and 65535"],
    ),
    (
        "a broken secret",
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, data: {key: '%%%'}}",
        &["illegal base64"],
    ),
    (
        "a node port out of its range",
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}}",
        &["spec.ports[0].nodePort", "80", "30000-32767"],
    ),
];

#[test]
fn each_bad_manifest_is_refused_in_words_and_harms_nothing() -> Result<()> {
    let cluster = Cluster::start(Options::from_environment()?)?;
    for (what, manifest, words) in REFUSED {
        let error = match cluster.apply(manifest) {
            Ok(accepted) => anyhow::bail!("{what} was accepted: {accepted}"),
            Err(error) => format!("{error:#}"),
        };
        for word in *words {
            ensure!(error.contains(word), "{what}: no {word:?} in: {error}");
        }
    }
    cluster.kubectl(&["create", "configmap", "twice"])?;
    let twice = cluster.kubectl(&["create", "configmap", "twice"]);
    ensure!(twice.is_err_and(|error| error.to_string().contains("already exists")), "a duplicate name");

    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: imageless}, spec: {containers: [{name: a, image: 'no/such:image', \
         imagePullPolicy: Never}]}}",
    )?;
    cluster.kubectl(&[
        "wait",
        "pod/imageless",
        "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull",
        "--timeout=20s",
    ])?;

    cluster.apply(
        "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: nowhere}
spec:
  ingressClassName: weir
  rules:
    - host: nowhere.example
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: missing, port: {number: 80}}}}]}
",
    )?;
    let answer = wait_for_status(&cluster, "nowhere.example", 503)?;
    ensure!(answer.contains("missing"), "the answer does not name the service: {answer}");
    Ok(())
}

#[test]
fn a_start_that_cannot_be_is_one_line_and_leaves_nothing() -> Result<()> {
    let mut cluster = Cluster::prepare(Options::from_environment()?)?;

    let taken = cluster.node.run(|| {
        let _holder = TcpListener::bind(("0.0.0.0", 6443))?;
        Ok(cluster.up_command()?.output()?)
    })?;
    refused(&taken, &["--api-port", "6443"])?;

    let file = cluster.data_dir().join("a-file");
    fs::create_dir_all(cluster.data_dir())?;
    fs::write(&file, "")?;
    let not_a_directory = cluster.up_command()?.arg("--pod-cidr=nonsense").output()?;
    refused(&not_a_directory, &["--pod-cidr", "nonsense"])?;

    cluster.up()?;
    cluster.wait_for_line("all roles run")?;
    let second = cluster.up_command()?.output()?;
    refused(&second, &["weir up runs already"])?;
    cluster.kubectl(&["get", "nodes"])?;
    Ok(())
}

/// Exit code 1 and one line that holds all these words.
fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "exit {}: {said}", output.status);
    ensure!(said.lines().count() == 1, "more than one line: {said}");
    for word in words {
        ensure!(said.contains(word), "no {word:?} in: {said}");
    }
    Ok(())
}

fn wait_for_status(cluster: &Cluster, host: &str, status: u16) -> Result<String> {
    let mut last = String::new();
    for _ in 0..100 {
        let answer =
            cluster.outside.run(|| get((NODE_ADDRESS, 80).into(), host, "/", Duration::from_secs(5)))?;
        if answer.status == status {
            return Ok(answer.body);
        }
        last = format!("{}: {}", answer.status, answer.body);
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("no {status} from {host}: {last}")
}
