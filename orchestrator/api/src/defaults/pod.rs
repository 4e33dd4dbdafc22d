//! Defaults of pods and pod templates.

use serde_json::{Value, json};

use super::{fill, fill_text, fill_zeros};
use crate::object;

/// Mode of files in volumes, 0644.
const FILE_MODE: i64 = 0o644;

/// Defaults of a pod: those of its spec, and what upstream gives pods but not templates.
pub(crate) fn pod(object: &mut Value) {
    let Some(spec) = object::get_mut(object, &["spec"]) else { return };
    for list in ["containers", "initContainers"] {
        for container in object::list_at_mut(spec, &[list]) {
            requests_from_limits(container);
        }
    }
    object::set_default(spec, &["enableServiceLinks"], true);
    pod_spec(spec);
}

/// Defaults of the pod template at `spec.template`.
pub(crate) fn pod_template(object: &mut Value) {
    if let Some(spec) = object::get_mut(object, &["spec", "template", "spec"]) {
        pod_spec(spec);
    }
}

/// What a container may use at most is what it asks for, unless it asks for less.
fn requests_from_limits(container: &mut Value) {
    let limits = object::map_at(container, &["resources", "limits"]).cloned().unwrap_or_default();
    for (resource, limit) in limits {
        object::set_default(container, &["resources", "requests", &resource], limit);
    }
}

fn pod_spec(spec: &mut Value) {
    fill_text(spec, &["dnsPolicy"], "ClusterFirst");
    fill_text(spec, &["restartPolicy"], "Always");
    fill_text(spec, &["schedulerName"], "default-scheduler");
    fill(spec, json!({"securityContext": {}, "terminationGracePeriodSeconds": 30}));
    service_account(spec);
    let host_network = object::bool_at(spec, &["hostNetwork"]);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for one in object::list_at_mut(spec, &[list]) {
            container(one, host_network);
        }
    }
    for one in object::list_at_mut(spec, &["volumes"]) {
        volume(one);
    }
}

/// The deprecated `serviceAccount` follows `serviceAccountName`.
fn service_account(spec: &mut Value) {
    let mut name = object::str_at(spec, &["serviceAccountName"]).to_owned();
    if name.is_empty() {
        object::str_at(spec, &["serviceAccount"]).clone_into(&mut name);
    }
    if !name.is_empty() {
        object::set(spec, &["serviceAccountName"], name.as_str());
        object::set(spec, &["serviceAccount"], name);
    }
}

fn container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(object::str_at(container, &["image"]));
    fill_text(container, &["imagePullPolicy"], policy);
    fill_text(container, &["terminationMessagePath"], "/dev/termination-log");
    fill_text(container, &["terminationMessagePolicy"], "File");
    object::set_default(container, &["resources"], json!({}));
    for port in object::list_at_mut(container, &["ports"]) {
        fill_text(port, &["protocol"], "TCP");
        if let (true, Some(number)) = (host_network, object::int_at(port, &["containerPort"])) {
            fill_zeros(port, &[("hostPort", number)]);
        }
    }
    for variable in object::list_at_mut(container, &["env"]) {
        field_ref(variable, &["valueFrom", "fieldRef"]);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = object::get_mut(container, &[name]) {
            fill_zeros(
                probe,
                &[
                    ("timeoutSeconds", 1),
                    ("periodSeconds", 10),
                    ("successThreshold", 1),
                    ("failureThreshold", 3),
                ],
            );
            http_get(probe);
            if let Some(grpc) = object::get_mut(probe, &["grpc"]) {
                object::set_default(grpc, &["service"], "");
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = object::get_mut(container, &["lifecycle", hook]) {
            http_get(handler);
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = object::get_mut(handler, &["httpGet"]) {
        fill_text(get, &["path"], "/");
        fill_text(get, &["scheme"], "HTTP");
    }
}

fn field_ref(object: &mut Value, path: &[&str]) {
    if let Some(reference) = object::get_mut(object, path) {
        fill_text(reference, &["apiVersion"], "v1");
    }
}

/// An image that may change under its name is pulled every time.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        None if digest => "IfNotPresent",
        _ => "Always",
    }
}

fn volume(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|map| map.keys().any(|key| key != "name"));
    if !has_source {
        object::set(volume, &["emptyDir"], json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = object::get_mut(volume, &[source]) {
            object::set_default(source, &["defaultMode"], FILE_MODE);
        }
    }
    for item in object::list_at_mut(volume, &["downwardAPI", "items"]) {
        field_ref(item, &["fieldRef"]);
    }
    for source in object::list_at_mut(volume, &["projected", "sources"]) {
        if let Some(token) = object::get_mut(source, &["serviceAccountToken"]) {
            object::set_default(token, &["expirationSeconds"], 3600);
        }
        for item in object::list_at_mut(source, &["downwardAPI", "items"]) {
            field_ref(item, &["fieldRef"]);
        }
    }
    if let Some(path) = object::get_mut(volume, &["hostPath"]) {
        object::set_default(path, &["type"], "");
    }
}

/// Taints under which pods stay for a while, in seconds, before they are evicted.
const TOLERATED: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const TOLERATION_SECONDS: i64 = 300;

/// What upstream's admission plugins (`ServiceAccount`, `Priority`, `DefaultTolerationSeconds`) add to a new pod.
pub(crate) fn admit_pod(pod: &mut Value) {
    let Some(spec) = object::get_mut(pod, &["spec"]) else { return };
    fill_text(spec, &["serviceAccountName"], "default");
    service_account(spec);
    fill(spec, json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
    for taint in TOLERATED {
        let tolerated = object::list_at(spec, &["tolerations"]).iter().any(|toleration| {
            matches!(object::str_at(toleration, &["key"]), key if key == taint || key.is_empty())
                && matches!(object::str_at(toleration, &["effect"]), "" | "NoExecute")
        });
        if tolerated {
            continue;
        }
        object::set_default(spec, &["tolerations"], json!([]));
        if let Some(Value::Array(list)) = object::get_mut(spec, &["tolerations"]) {
            list.push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_pod_gets_what_upstream_gives_it() {
        let mut object = json!({"spec": {"containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}]}});
        pod(&mut object);
        assert_eq!(
            object,
            json!({"spec": {
                "containers": [{
                    "name": "web",
                    "image": "nginx",
                    "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {},
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst",
                "enableServiceLinks": true,
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
                "securityContext": {},
                "terminationGracePeriodSeconds": 30,
            }})
        );
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once, "defaulting twice changes nothing");
    }

    #[test]
    fn templates_get_less_than_pods() {
        let mut object = json!({"spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "nginx:1", "resources": {"limits": {"cpu": "1"}}}]}}}});
        pod_template(&mut object);
        let spec = &object["spec"]["template"]["spec"];
        assert_eq!(spec["enableServiceLinks"], Value::Null);
        assert_eq!(spec["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}));
    }

    #[test]
    fn limits_become_requests_where_there_are_none() {
        let mut object = json!({"spec": {"containers": [
            {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]}});
        pod(&mut object);
        assert_eq!(
            object["spec"]["containers"][0]["resources"]["requests"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/a/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn probes_volumes_and_variables_are_completed() {
        let mut object = json!({"spec": {
            "containers": [{
                "image": "a:1",
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5},
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            }],
            "volumes": [
                {"name": "a"},
                {"name": "b", "secret": {"secretName": "s"}},
                {"name": "c", "configMap": {"name": "c", "defaultMode": 256}},
                {"name": "d", "hostPath": {"path": "/"}},
            ],
        }});
        pod(&mut object);
        let spec = &object["spec"];
        assert_eq!(
            spec["containers"][0]["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 5, "timeoutSeconds": 1,
                   "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(spec["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(
            spec["volumes"],
            json!([
                {"name": "a", "emptyDir": {}},
                {"name": "b", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "c", "configMap": {"name": "c", "defaultMode": 256}},
                {"name": "d", "hostPath": {"path": "/", "type": ""}},
            ])
        );
    }

    #[test]
    fn admission_adds_the_service_account_priority_and_tolerations() {
        let mut object = json!({"spec": {"tolerations": [{"key": TOLERATED[0], "operator": "Exists"}]}});
        admit_pod(&mut object);
        let spec = &object["spec"];
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("default"), &json!("default"))
        );
        assert_eq!(
            (&spec["priority"], &spec["preemptionPolicy"]),
            (&json!(0), &json!("PreemptLowerPriority"))
        );
        let keys: Vec<_> =
            spec["tolerations"].as_array().expect("a list").iter().map(|t| t["key"].clone()).collect();
        assert_eq!(keys, TOLERATED);
    }
}
