//! `/openapi/v3`: an index, and one document per group and version.
//!
//! kubectl needs them for `explain`, for client-side schema lookups, and to learn that the server knows
//! `fieldValidation`. They are built from k8s-openapi's schemas when they are asked for and not kept: a
//! document is a few hundred kilobytes that a client fetches once and caches by its hash.

mod paths;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::OnceLock,
};

use serde_json::{Map, Value, json};

use crate::{
    discovery::group_versions,
    resource::{Kind, Resource, resources},
    schema::{Field, ListMerge, definitions, types},
};

const SCHEMAS: &str = "#/components/schemas/";

/// `/openapi/v3`: where each document is, with the hash of its content so that clients can keep it.
pub fn index() -> Value {
    static INDEX: OnceLock<Value> = OnceLock::new();
    INDEX.get_or_init(build_index).clone()
}

/// The JSON of `/openapi/v3/api/v1` or `/openapi/v3/apis/{group}/{version}`; `None` for what is not served.
pub fn document(group: &str, version: &str) -> Option<Vec<u8>> {
    group_versions().contains(&(group, version)).then(|| build(group, version, &definitions()))
}

fn build_index() -> Value {
    let definitions = definitions();
    let paths: Map<String, Value> = group_versions()
        .into_iter()
        .map(|(group, version)| {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let mut hasher = DefaultHasher::new();
            build(group, version, &definitions).hash(&mut hasher);
            let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

fn rows_of(group: &str, version: &str) -> Vec<&'static Resource> {
    resources().iter().filter(|row| row.group == group && row.version == version).collect()
}

fn build(group: &str, version: &str, definitions: &Map<String, Value>) -> Vec<u8> {
    let rows = rows_of(group, version);
    let mut paths = Map::new();
    let mut kinds: Vec<Kind> = Vec::new();
    for row in rows {
        paths.extend(paths::of(row));
        kinds.push(row.target());
        kinds.extend(row.subresources.iter().map(|subresource| subresource.kind));
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths,
        "components": {"schemas": schemas(&kinds, definitions)},
    });
    document.to_string().into_bytes()
}

/// The schemas that `kinds` reach, with the kinds marked as such.
fn schemas(kinds: &[Kind], definitions: &Map<String, Value>) -> Map<String, Value> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<String> = kinds.iter().map(|kind| kind.schema.to_owned()).collect();
    while let Some(name) = open.pop() {
        if let (Some(schema), true) = (definitions.get(&name), !reached.contains(&name)) {
            references(schema, &mut open);
            reached.insert(name);
        }
    }
    let mut schemas: Map<String, Value> =
        reached.into_iter().map(|name| (name.clone(), definitions[&name].clone())).collect();
    for (name, schema) in &mut schemas {
        mark_merges(name, schema);
    }
    for kind in kinds {
        if let Some(schema) = schemas.get_mut(kind.schema) {
            schema["x-kubernetes-group-version-kind"] = json!([paths::group_version_kind(*kind)]);
        }
    }
    schemas
}

/// Says of each property how a strategic merge treats it: from this kubectl computes the patch of an `apply`. A list
/// that it takes for atomic would be sent whole whenever the server has completed one of its elements.
fn mark_merges(name: &str, schema: &mut Value) {
    let types = types();
    let Some(id) = types.id(name) else { return };
    for field in &types.object(id).fields {
        let Some(property) = schema.get_mut("properties").and_then(|all| all.get_mut(&*field.name)) else {
            continue;
        };
        if let Some(strategy) = patch_strategy(field) {
            property["x-kubernetes-patch-strategy"] = json!(strategy);
        }
        if let ListMerge::ByKey(key) = &field.merge {
            property["x-kubernetes-patch-merge-key"] = json!(key);
        }
    }
}

fn patch_strategy(field: &Field) -> Option<&'static str> {
    match (field.merge != ListMerge::Atomic, field.retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) => None,
    }
}

fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) =
                map.get("$ref").and_then(Value::as_str).and_then(|link| link.strip_prefix(SCHEMAS))
            {
                found.push(name.to_owned());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(group: &str, version: &str) -> Value {
        serde_json::from_slice(&document(group, version).expect("served")).expect("JSON")
    }

    #[test]
    fn documents_hold_what_kubectl_looks_for() {
        let apps = parsed("apps", "v1");
        let item = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], kind);
        let parameters = item["patch"]["parameters"].as_array().expect("parameters");
        assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"));
        let schema = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(schema["x-kubernetes-group-version-kind"], json!([kind]));
        let spec = &schema["properties"]["spec"];
        assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec");
        assert!(spec["description"].is_string());
    }

    #[test]
    fn kubectl_learns_which_lists_merge_and_by_which_key() {
        let (core, apps) = (parsed("", "v1"), parsed("apps", "v1"));
        let cases: [(&Value, &str, &str, Value, Value); 5] = [
            (&core, "core.v1.ServiceSpec", "ports", json!("merge"), json!("port")),
            (&apps, "core.v1.PodSpec", "containers", json!("merge"), json!("name")),
            (&apps, "core.v1.PodSpec", "volumes", json!("merge,retainKeys"), json!("name")),
            (&apps, "core.v1.PodSpec", "tolerations", Value::Null, Value::Null),
            (&apps, "apps.v1.DeploymentSpec", "strategy", json!("retainKeys"), Value::Null),
        ];
        for (document, schema, field, strategy, key) in cases {
            let schema = &document["components"]["schemas"][format!("io.k8s.api.{schema}")];
            let property = &schema["properties"][field];
            assert_eq!(property["x-kubernetes-patch-strategy"], strategy, "{field}");
            assert_eq!(property["x-kubernetes-patch-merge-key"], key, "{field}");
        }
        let meta = &core["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
        assert_eq!(meta["properties"]["finalizers"]["x-kubernetes-patch-strategy"], "merge");
        assert!(meta["properties"]["finalizers"].get("x-kubernetes-patch-merge-key").is_none());
    }

    #[test]
    fn every_reference_has_a_schema() {
        for (group, version) in group_versions() {
            let document = parsed(group, version);
            let mut names = Vec::new();
            references(&document, &mut names);
            for name in names {
                assert!(document["components"]["schemas"].get(&name).is_some(), "{group}/{version}: {name}");
            }
        }
    }

    #[test]
    fn the_index_names_every_group_version() {
        let index = index();
        let url = index["paths"]["apis/networking.k8s.io/v1"]["serverRelativeURL"].as_str().expect("a URL");
        assert!(url.starts_with("/openapi/v3/apis/networking.k8s.io/v1?hash="), "{url}");
        assert!(index["paths"].get("api/v1").is_some());
        assert!(document("apps", "v2").is_none());
    }
}
