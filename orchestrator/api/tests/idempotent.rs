//! What is stored is what a client reads back and sends again: completing, checking and updating an object
//! with itself changes nothing, which is what makes `kubectl diff` after `kubectl apply` empty.

use serde_json::{Value, json};
use weir_api::{
    codec::{FieldValidation, check},
    object,
    resource::{Resource, find},
};

fn create(row: &Resource, mut object: Value) -> Value {
    object::set(&mut object, &["metadata", "name"], "web");
    if row.namespaced {
        object::set(&mut object, &["metadata", "namespace"], "shop");
    }
    let mut object =
        check(object, row.target(), FieldValidation::Strict).expect("has the right types").object;
    row.apply_defaults(&mut object);
    row.prepare_create(&mut object);
    let errors = row.validate_create(&object);
    assert!(errors.is_empty(), "{}: {errors:?}", row.kind);
    object
}

#[test]
fn writing_back_what_was_read_changes_nothing() {
    let pod = json!({
        "containers": [{
            "name": "web",
            "image": "nginx",
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
            "readinessProbe": {"httpGet": {"port": 80}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }],
        "volumes": [{"name": "v", "configMap": {"name": "c"}}],
    });
    let workload = json!({"spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
    }});
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    for (group, plural, object) in [
        ("", "namespaces", json!({})),
        ("", "nodes", json!({"status": {"capacity": {"cpu": "2000m"}}})),
        ("", "pods", json!({"spec": pod})),
        ("", "services", json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}})),
        ("", "configmaps", json!({"data": {"a": "b"}})),
        ("", "secrets", json!({"stringData": {"a": "b"}})),
        ("", "serviceaccounts", json!({})),
        ("", "events", json!({"involvedObject": {"namespace": "shop", "name": "web"}})),
        ("apps", "deployments", workload.clone()),
        ("apps", "replicasets", workload),
        ("coordination.k8s.io", "leases", json!({"spec": {"renewTime": "2026-01-01T00:00:00Z"}})),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}]}),
        ),
        ("networking.k8s.io", "ingresses", json!({"spec": {"defaultBackend": backend}})),
        ("networking.k8s.io", "ingressclasses", json!({"spec": {"controller": "weir.dev/ingress"}})),
    ] {
        let row = find(group, "v1", plural).expect("served");
        let stored = create(row, object);
        let mut again =
            check(stored.clone(), row.target(), FieldValidation::Strict).expect("still right").object;
        row.apply_defaults(&mut again);
        row.prepare_update(&mut again, &stored);
        assert_eq!(again, stored, "{}", row.kind);
        let errors = row.validate_update(&again, &stored);
        assert!(errors.is_empty(), "{}: {errors:?}", row.kind);
    }
}
