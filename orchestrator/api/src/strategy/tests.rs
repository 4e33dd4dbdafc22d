//! The rules of writes, seen through the registry's rows.

use serde_json::{Value, json};

use super::kinds::qos_class;
use crate::{
    object,
    resource::{Resource, find},
};

fn row(group: &str, plural: &str) -> &'static Resource {
    find(group, "v1", plural).expect("served")
}

#[test]
fn a_new_object_starts_clean() {
    let mut new = json!({
        "metadata": {"name": "web", "uid": "x", "resourceVersion": "7", "generation": 9, "labels": {"a": "b"}},
        "spec": {"containers": []},
        "status": {"phase": "Running"},
    });
    row("", "pods").prepare_create(&mut new);
    assert_eq!(new["metadata"], json!({"name": "web", "labels": {"a": "b"}, "generation": 1}));
    assert_eq!(new["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(new["spec"]["serviceAccountName"], "default");
    assert_eq!(new["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_generation_rises_with_the_wish_alone() {
    let deployments = row("apps", "deployments");
    let old = json!({"metadata": {"name": "web", "uid": "1", "generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
    let updated = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        deployments.prepare_update(&mut new, &old);
        new
    };
    let scaled = updated(&|new| object::set(new, &["spec", "replicas"], 2));
    assert_eq!(scaled["metadata"]["generation"], 4);
    let labelled = updated(&|new| object::set(new, &["metadata", "labels", "a"], "b"));
    assert_eq!(
        (&labelled["metadata"]["generation"], &labelled["metadata"]["labels"]["a"]),
        (&json!(3), &json!("b"))
    );
    let meddled = updated(&|new| {
        object::set(new, &["status", "replicas"], 9);
        object::set(new, &["metadata", "uid"], "2");
        object::set(new, &["metadata", "generation"], 99);
    });
    assert_eq!(meddled, old);
}

#[test]
fn the_status_endpoint_writes_the_status_alone() {
    let deployments = row("apps", "deployments");
    let old =
        json!({"metadata": {"name": "web", "resourceVersion": "5"}, "spec": {"replicas": 1}, "status": {}});
    let mut new = json!({
        "metadata": {"name": "web", "resourceVersion": "4", "labels": {"a": "b"}},
        "spec": {"replicas": 9},
        "status": {"replicas": 1},
    });
    deployments.prepare_status_update(&mut new, &old);
    assert_eq!(
        new,
        json!({"metadata": {"name": "web", "resourceVersion": "4"}, "spec": {"replicas": 1}, "status": {"replicas": 1}})
    );
}

#[test]
fn services_keep_what_they_were_given() {
    let services = row("", "services");
    let old = json!({"metadata": {"name": "web"}, "spec": {
        "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
    }});
    let updated = |spec: Value| {
        let mut new = json!({"metadata": {"name": "web"}, "spec": spec});
        services.apply_defaults(&mut new);
        services.prepare_update(&mut new, &old);
        new["spec"].clone()
    };
    let same = updated(json!({"type": "NodePort", "ports": [{"port": 80}, {"name": "b", "port": 81}]}));
    assert_eq!((&same["clusterIP"], &same["clusterIPs"]), (&json!("10.96.0.9"), &json!(["10.96.0.9"])));
    assert_eq!((&same["ports"][0]["nodePort"], &same["ports"][1]["nodePort"]), (&json!(30080), &Value::Null));
    let plain = updated(json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}]}));
    assert_eq!((&plain["clusterIP"], &plain["ports"][0]["nodePort"]), (&json!("10.96.0.9"), &Value::Null));
    let external =
        updated(json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.96.0.9"}));
    assert_eq!(external.get("clusterIP"), None);
}

#[test]
fn a_new_services_addresses_are_one() {
    let mut new = json!({"spec": {"clusterIP": "None"}});
    row("", "services").prepare_create(&mut new);
    assert_eq!(new["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(new["status"], json!({"loadBalancer": {}}));
}

#[test]
fn quality_of_service_follows_requests_and_limits() {
    let resources = |value: Value| json!({"spec": {"containers": [{"resources": value}]}});
    for (value, class) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
            "Burstable",
        ),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
            "Guaranteed",
        ),
    ] {
        assert_eq!(qos_class(&resources(value)), class);
    }
}
