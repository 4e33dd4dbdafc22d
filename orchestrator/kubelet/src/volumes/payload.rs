//! The files of configMap, secret, downwardAPI and projected volumes: pure functions of the pod and its objects.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, SecretProjection, Volume, VolumeProjection,
};

use super::{
    Error, Result,
    atomic::{File, Files},
};
use crate::{
    env::{EnvContext, field_value, namespace, resource_value},
    objects::{ObjectKey, Payload},
};

/// Mode of files whose volume says nothing.
const DEFAULT_MODE: i32 = 0o644;

/// Tokens by the name of their volume and their path in it.
pub(crate) type Tokens = BTreeMap<(String, String), Bytes>;

/// The files of `volume`, or `None` if it is not made of files that the kubelet writes.
pub(crate) fn files(context: &EnvContext<'_>, tokens: &Tokens, volume: &Volume) -> Result<Option<Files>> {
    let mut files = Files::new();
    if let Some(map) = &volume.config_map {
        let key = ObjectKey::config_map(namespace(context.pod), &map.name);
        let from = From { key, items: map.items.as_deref(), optional: map.optional, mode: map.default_mode };
        add_object(context, &mut files, &from)?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let key = ObjectKey::secret(namespace(context.pod), name);
        let from = From {
            key,
            items: secret.items.as_deref(),
            optional: secret.optional,
            mode: secret.default_mode,
        };
        add_object(context, &mut files, &from)?;
    } else if let Some(downward) = &volume.downward_api {
        for item in downward.items.iter().flatten() {
            add_downward(context, &mut files, item, downward.default_mode)?;
        }
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            add_projection(context, tokens, &mut files, volume, source, projected.default_mode)?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

/// The objects that `volume` is made from.
pub(crate) fn references(namespace: &str, volume: &Volume) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    if let Some(map) = &volume.config_map {
        keys.push(ObjectKey::config_map(namespace, &map.name));
    }
    if let Some(name) = volume.secret.as_ref().and_then(|secret| secret.secret_name.as_ref()) {
        keys.push(ObjectKey::secret(namespace, name));
    }
    let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_ref());
    for source in sources.into_iter().flatten() {
        if let Some(map) = &source.config_map {
            keys.push(ObjectKey::config_map(namespace, &map.name));
        }
        if let Some(secret) = &source.secret {
            keys.push(ObjectKey::secret(namespace, &secret.name));
        }
    }
    keys
}

/// An object as a source of files.
struct From<'a> {
    key: ObjectKey,
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
    mode: Option<i32>,
}

fn add_projection(
    context: &EnvContext<'_>,
    tokens: &Tokens,
    files: &mut Files,
    volume: &Volume,
    source: &VolumeProjection,
    mode: Option<i32>,
) -> Result<()> {
    if let Some(ConfigMapProjection { name, items, optional }) = &source.config_map {
        let key = ObjectKey::config_map(namespace(context.pod), name);
        add_object(context, files, &From { key, items: items.as_deref(), optional: *optional, mode })?;
    }
    if let Some(SecretProjection { name, items, optional }) = &source.secret {
        let key = ObjectKey::secret(namespace(context.pod), name);
        add_object(context, files, &From { key, items: items.as_deref(), optional: *optional, mode })?;
    }
    for item in source.downward_api.iter().flat_map(|downward| downward.items.iter().flatten()) {
        add_downward(context, files, item, mode)?;
    }
    if let Some(token) = &source.service_account_token {
        let data = tokens
            .get(&(volume.name.clone(), token.path.clone()))
            .ok_or_else(|| Error::Token { volume: volume.name.clone(), path: token.path.clone() })?;
        files.insert(token.path.clone(), File { data: data.clone(), mode: bits(mode, None) });
    }
    if source.cluster_trust_bundle.is_some() {
        return Err(Error::Unsupported { volume: volume.name.clone(), kind: "projected clusterTrustBundle" });
    }
    Ok(())
}

fn add_object(context: &EnvContext<'_>, files: &mut Files, from: &From<'_>) -> Result<()> {
    let optional = from.optional == Some(true);
    let Some(payload) = context.objects.get(&from.key) else {
        return if optional {
            Ok(())
        } else {
            Err(Error::MissingObject { kind: from.key.kind.lower(), name: from.key.name.clone() })
        };
    };
    let Some(items) = from.items.filter(|items| !items.is_empty()) else {
        for (name, data) in &payload.data {
            files.insert(name.clone(), File { data: data.clone(), mode: bits(from.mode, None) });
        }
        return Ok(());
    };
    for item in items {
        match find(payload, item) {
            Some(data) => {
                files.insert(item.path.clone(), File { data, mode: bits(from.mode, item.mode) });
            }
            None if optional => {}
            None => {
                return Err(Error::MissingKey {
                    kind: from.key.kind.lower(),
                    name: from.key.name.clone(),
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

fn find(payload: &Payload, item: &KeyToPath) -> Option<Bytes> {
    payload.data.get(&item.key).cloned()
}

fn add_downward(
    context: &EnvContext<'_>,
    files: &mut Files,
    item: &DownwardAPIVolumeFile,
    mode: Option<i32>,
) -> Result<()> {
    let value = if let Some(field) = &item.field_ref {
        field_value(context, &field.field_path)?
    } else if let Some(resource) = &item.resource_field_ref {
        let name = resource.container_name.as_deref().unwrap_or_default();
        let spec = context.pod.spec.as_ref();
        let container = spec.and_then(|spec| {
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
        });
        let container = container.ok_or_else(|| Error::NoContainer { name: name.to_owned() })?;
        resource_value(context, container, resource)?
    } else {
        String::new()
    };
    files.insert(item.path.clone(), File { data: Bytes::from(value), mode: bits(mode, item.mode) });
    Ok(())
}

fn bits(default: Option<i32>, own: Option<i32>) -> u32 {
    own.or(default).unwrap_or(DEFAULT_MODE) as u32 & 0o777
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(volume: serde_json::Value) -> Result<Option<Files>> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"b": "2", "a": "x \"y\""}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]},
        }))
        .unwrap();
        let objects = BTreeMap::from([
            (ObjectKey::config_map("ns", "map"), Payload::of(&[("k1", b"v1"), ("k2", b"v2")])),
            (ObjectKey::secret("ns", "sec"), Payload::of(&[("token", b"t")])),
        ]);
        let context = EnvContext {
            pod: &pod,
            pod_ips: &[],
            node_ip: "192.0.2.1".parse().unwrap(),
            allocatable: &BTreeMap::new(),
            objects: &objects,
            services: &BTreeMap::new(),
        };
        let tokens = Tokens::from([(("v".to_owned(), "sa".to_owned()), Bytes::from_static(b"jwt"))]);
        files(&context, &tokens, &serde_json::from_value(volume).unwrap())
    }

    fn text(files: &Files, path: &str) -> (String, u32) {
        (String::from_utf8(files[path].data.to_vec()).unwrap(), files[path].mode)
    }

    #[test]
    fn a_projection_merges_all_sources() {
        let files = run(json!({"name": "v", "projected": {"defaultMode": 0o400, "sources": [
            {"configMap": {"name": "map", "items": [{"key": "k1", "path": "d/one", "mode": 0o600}]}},
            {"secret": {"name": "sec"}},
            {"secret": {"name": "gone", "optional": true}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "mem", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}}]}},
            {"serviceAccountToken": {"path": "sa"}},
        ]}}))
        .unwrap()
        .unwrap();
        assert_eq!(text(&files, "d/one"), ("v1".into(), 0o600));
        assert_eq!(text(&files, "token"), ("t".into(), 0o400));
        assert_eq!(text(&files, "labels").0, "a=\"x \\\"y\\\"\"\nb=\"2\"");
        assert_eq!(text(&files, "mem").0, "64");
        assert_eq!(text(&files, "sa").0, "jwt");
        assert!(!files.contains_key("k2"), "items select");
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases = [
            (json!({"name": "v", "configMap": {"name": "gone"}}), "configmap \"gone\" not found"),
            (
                json!({"name": "v", "secret": {"secretName": "sec", "items": [{"key": "x", "path": "x"}]}}),
                "secret \"sec\" references non-existent key: x",
            ),
        ];
        for (volume, expected) in cases {
            assert_eq!(run(volume).unwrap_err().to_string(), expected);
        }
        assert!(run(json!({"name": "v", "emptyDir": {}})).unwrap().is_none());
    }
}
