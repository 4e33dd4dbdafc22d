//! Bad input: each is told what is wrong, by object, field and remedy, and everything else keeps working.

use anyhow::{Result, ensure};
use weir_tests::{Cluster, Options};

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
        &["Service", "ServicePort.spec.ports.port", "of type int32"],
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
        &["Secret", "data.key: illegal base64 data", "encode the value with base64"],
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
        eprintln!("{what}: {error}");
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
    Ok(())
}
