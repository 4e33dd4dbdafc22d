//! What a container finds in its environment.
//!
//! The order and the precedence are upstream's (`makeEnvironmentVariables`): `envFrom` first, then `env` in order, each
//! `$(NAME)` seeing what was defined before it; the variables of Services come last and never hide one of the pod's.
//! Pure: everything it needs (objects, addresses, services) is handed in, so that a missing key is a value to test.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, EnvVar, EnvVarSource, Pod, ResourceFieldSelector, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    objects::{ObjectKey, Payload},
    quantity,
};

/// What the environment of one container is made from, besides its specification.
pub(crate) struct EnvContext<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// The pod's addresses, the primary one first.
    pub(crate) pod_ips: &'a [IpAddr],
    /// The node's address.
    pub(crate) node_ip: IpAddr,
    /// Allocatable of the node: what a container without a limit is told for `limits.*`.
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
    /// The objects that the pod refers to, by key. No entry: the object does not exist.
    pub(crate) objects: &'a BTreeMap<ObjectKey, Arc<Payload>>,
    /// Variables of the Services of the pod's namespace.
    pub(crate) services: &'a BTreeMap<String, String>,
}

/// Why a container cannot be configured: the text of `CreateContainerConfigError`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    /// A ConfigMap or Secret that is not optional does not exist.
    #[error("{kind} \"{name}\" not found")]
    MissingObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    MissingKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
    /// A downward API path that does not exist.
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    /// A resource that the container cannot be asked for.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// An environment variable is text.
    #[error("key {key} of {kind} {name} is not UTF-8 text")]
    NotText {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
}

/// The environment of `container`, in the order of definition.
pub(crate) fn environment(
    context: &EnvContext<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut defined = Variables::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        let (key, optional) = if let Some(map) = &source.config_map_ref {
            (ObjectKey::config_map(namespace(context.pod), &map.name), map.optional)
        } else if let Some(secret) = &source.secret_ref {
            (ObjectKey::secret(namespace(context.pod), &secret.name), secret.optional)
        } else {
            continue;
        };
        let Some(payload) = context.objects.get(&key) else {
            if optional == Some(true) {
                continue;
            }
            return Err(EnvError::MissingObject { kind: key.kind.lower(), name: key.name });
        };
        for (name, value) in &payload.data {
            // What is no variable name or no text is left out, as upstream leaves it out.
            if let Ok(value) = std::str::from_utf8(value)
                && is_variable_name(name)
            {
                defined.set(format!("{prefix}{name}"), value.to_owned());
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(context, container, variable, &defined)? {
            defined.set(variable.name.clone(), value);
        }
    }
    for (name, value) in context.services {
        if !defined.values.contains_key(name) {
            defined.set(name.clone(), value.clone());
        }
    }
    Ok(defined.into_list())
}

/// The value of one variable, or `None` if it comes from an optional source that is not there.
fn value_of(
    context: &EnvContext<'_>,
    container: &Container,
    variable: &EnvVar,
    defined: &Variables,
) -> Result<Option<String>, EnvError> {
    if let Some(source) = &variable.value_from {
        return from_source(context, container, source);
    }
    let lookup = |name: &str| defined.values.get(name).or_else(|| context.services.get(name)).cloned();
    Ok(Some(expand(variable.value.as_deref().unwrap_or(""), lookup)))
}

fn from_source(
    context: &EnvContext<'_>,
    container: &Container,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return field_value(context, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(context, container, resource).map(Some);
    }
    let (key, entry, optional) = if let Some(reference) = &source.config_map_key_ref {
        (ObjectKey::config_map(namespace(context.pod), &reference.name), &reference.key, reference.optional)
    } else if let Some(reference) = &source.secret_key_ref {
        (ObjectKey::secret(namespace(context.pod), &reference.name), &reference.key, reference.optional)
    } else {
        return Ok(Some(String::new()));
    };
    let optional = optional == Some(true);
    let Some(payload) = context.objects.get(&key) else {
        return if optional {
            Ok(None)
        } else {
            Err(EnvError::MissingObject { kind: key.kind.lower(), name: key.name })
        };
    };
    let Some(value) = payload.data.get(entry) else {
        return if optional {
            Ok(None)
        } else {
            Err(EnvError::MissingKey {
                kind: key.kind.title(),
                namespace: key.namespace,
                name: key.name,
                key: entry.clone(),
            })
        };
    };
    match std::str::from_utf8(value) {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => {
            Err(EnvError::NotText { kind: key.kind.title(), name: key.name.clone(), key: entry.clone() })
        }
    }
}

/// A downward API field, by its path: the paths that the API documents for `fieldRef`.
pub(crate) fn field_value(context: &EnvContext<'_>, path: &str) -> Result<String, EnvError> {
    let metadata = &context.pod.metadata;
    let spec = context.pod.spec.as_ref();
    let joined =
        |ips: &mut dyn Iterator<Item = IpAddr>| ips.map(|ip| ip.to_string()).collect::<Vec<_>>().join(",");
    let value = match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => metadata.labels.as_ref().map(format_map),
        "metadata.annotations" => metadata.annotations.as_ref().map(format_map),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.hostIP" | "status.hostIPs" => Some(context.node_ip.to_string()),
        "status.podIP" => context.pod_ips.first().map(ToString::to_string),
        "status.podIPs" => Some(joined(&mut context.pod_ips.iter().copied())),
        _ => {
            let entry = |map: Option<&BTreeMap<String, String>>, key: &str| {
                map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
            };
            match subscript(path) {
                Some(("metadata.labels", key)) => Some(entry(metadata.labels.as_ref(), key)),
                Some(("metadata.annotations", key)) => Some(entry(metadata.annotations.as_ref(), key)),
                _ => return Err(EnvError::FieldPath(path.to_owned())),
            }
        }
    };
    Ok(value.unwrap_or_default())
}

/// A container's resource in units of the divisor, rounded up; the node's allocatable where it has no limit.
pub(crate) fn resource_value(
    context: &EnvContext<'_>,
    container: &Container,
    selector: &ResourceFieldSelector,
) -> Result<String, EnvError> {
    let unsupported = || EnvError::Resource(selector.resource.clone());
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let bounds = container.resources.as_ref();
    let pick = |f: fn(&ResourceRequirements) -> Option<&BTreeMap<String, Quantity>>| {
        bounds.and_then(f).and_then(|map| map.get(name)).cloned()
    };
    let value = match list {
        "limits" => pick(|r| r.limits.as_ref()).or_else(|| context.allocatable.get(name).cloned()),
        // A request that is not given is the limit, which the apiserver has already filled in, or nothing.
        "requests" => pick(|r| r.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let value = value.and_then(|value| quantity::milli(&value)).unwrap_or(0);
    let divisor =
        selector.divisor.as_ref().and_then(quantity::milli).filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok((value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)).to_string())
}

/// `metadata.labels['app']` is (`metadata.labels`, `app`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// Labels or annotations as the downward API writes them: `key="escaped value"` lines, sorted.
fn format_map(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// Replaces `$(NAME)` by its value. What is not defined stays as it is written; `$$` is a dollar sign.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|after| after.split_once(')')) {
            if let Some(value) = lookup(name) {
                result.push_str(&value);
            } else {
                result.push_str("$(");
                result.push_str(name);
                result.push(')');
            }
            rest = after;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// Names that the API accepts since v1.30: printable ASCII without `=`.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// Variables in the order in which they were first defined.
#[derive(Default)]
struct Variables {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_list(mut self) -> Vec<(String, String)> {
        let values = &mut self.values;
        self.order.into_iter().filter_map(|name| values.remove(&name).map(|value| (name, value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": []},
        }))
        .unwrap()
    }

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    fn run(container: &Container) -> Result<Vec<(String, String)>, EnvError> {
        let objects = BTreeMap::from([
            (
                ObjectKey::config_map("shop", "settings"),
                Payload::of(&[("COLOR", b"blue"), ("bad=name", b"x")]),
            ),
            (ObjectKey::secret("shop", "key"), Payload::of(&[("token", b"s3cret"), ("bin", b"\xff")])),
        ]);
        environment(
            &EnvContext {
                pod: &pod(),
                pod_ips: &["10.244.0.7".parse().unwrap()],
                node_ip: "192.0.2.1".parse().unwrap(),
                allocatable: &BTreeMap::from([("cpu".to_owned(), Quantity("2".to_owned()))]),
                objects: &objects,
                services: &BTreeMap::from([("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())]),
            },
            container,
        )
    }

    fn value<'a>(list: &'a [(String, String)], name: &str) -> Option<&'a str> {
        list.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn every_source_lands_with_upstreams_precedence() {
        let list = run(&container(json!({
            "name": "c",
            "resources": {"limits": {"memory": "64Mi"}},
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}},
                        {"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "A", "value": "one"},
                {"name": "B", "value": "$(A)-$(P_COLOR)-$(NOPE)-$$(A)-$x"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
                {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "no", "optional": true}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "URL", "value": "https://$(KUBERNETES_SERVICE_HOST)"},
            ],
        })))
        .unwrap();
        let expected = [
            ("P_COLOR", Some("blue")),
            ("P_bad=name", None),
            ("B", Some("one-blue-$(NOPE)-$(A)-$x")),
            ("TOKEN", Some("s3cret")),
            ("MAYBE", None),
            ("IP", Some("10.244.0.7")),
            ("APP", Some("web")),
            ("MEM", Some("64")),
            ("CPU", Some("2")),
            ("URL", Some("https://10.96.0.1")),
            ("KUBERNETES_SERVICE_HOST", Some("10.96.0.1")),
        ];
        for (name, expected) in expected {
            assert_eq!(value(&list, name), expected, "{name}");
        }
        assert_eq!(list[0].0, "P_COLOR");
        assert_eq!(list.last().unwrap().0, "KUBERNETES_SERVICE_HOST");
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases = [
            (
                json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}]),
                "configmap \"gone\" not found",
            ),
            (
                json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]),
                "couldn't find key k in Secret shop/key",
            ),
            (
                json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "key", "key": "bin"}}}]),
                "key bin of Secret key is not UTF-8 text",
            ),
            (
                json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]),
                "unsupported fieldPath: spec.x",
            ),
        ];
        for (env, expected) in cases {
            let error = run(&container(json!({"name": "c", "env": env}))).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
