//! The paths of a row, with the operations on them.

use serde_json::{Map, Value, json};

use super::SCHEMAS;
use crate::resource::{Kind, Resource};

/// Verbs on one object and their HTTP methods.
const ITEM: [(&str, &str); 4] = [("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")];
/// Verbs on all objects.
const COLLECTION: [(&str, &str); 3] = [("list", "get"), ("create", "post"), ("deletecollection", "delete")];

/// All paths of a row.
pub(super) fn of(row: &'static Resource) -> Map<String, Value> {
    let root = if row.group.is_empty() {
        format!("/api/{}", row.version)
    } else {
        format!("/apis/{}/{}", row.group, row.version)
    };
    let scope = if row.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", row.plural);
    let item = format!("{collection}/{{name}}");
    let mut paths = Map::new();
    let mut add = |path: String, verbs: &[&str], methods: &[(&str, &str)], kind: Kind| {
        let operations = operations(verbs, methods, kind, &path);
        if !operations.is_empty() {
            paths.insert(path, Value::Object(operations));
        }
    };
    add(collection, row.verbs, &COLLECTION, row.target());
    add(item.clone(), row.verbs, &ITEM, row.target());
    if row.namespaced {
        add(format!("{root}/{}", row.plural), row.verbs, &COLLECTION[..1], row.target());
    }
    let methods = [&ITEM[..], &COLLECTION[1..2]].concat();
    for subresource in row.subresources {
        add(format!("{item}/{}", subresource.name), subresource.verbs, &methods, subresource.kind);
    }
    paths
}

fn operations(verbs: &[&str], methods: &[(&str, &str)], kind: Kind, path: &str) -> Map<String, Value> {
    methods
        .iter()
        .filter(|(verb, _)| verbs.contains(verb))
        .map(|(verb, method)| ((*method).to_owned(), operation(verb, kind, path)))
        .collect()
}

fn operation(verb: &str, kind: Kind, path: &str) -> Value {
    let reference = json!({"$ref": format!("{SCHEMAS}{}", kind.schema)});
    let content = json!({"application/json": {"schema": reference}});
    let mut operation = json!({
        "parameters": parameters(verb, path),
        "responses": {"200": {"description": "OK", "content": content}},
        "x-kubernetes-action": action(verb),
        "x-kubernetes-group-version-kind": group_version_kind(kind),
    });
    match verb {
        "create" | "update" => {
            operation["requestBody"] = json!({"content": {"*/*": {"schema": reference}}, "required": true});
        }
        "patch" => {
            let types: Map<String, Value> = crate::patch::MEDIA_TYPES
                .iter()
                .map(|media| ((*media).to_owned(), json!({"schema": {"type": "object"}})))
                .collect();
            operation["requestBody"] = json!({"content": types, "required": true});
        }
        _ => {}
    }
    operation
}

/// OpenAPI's words for the verbs.
fn action(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}

fn parameters(verb: &str, path: &str) -> Vec<Value> {
    let at = |name: &str, place: &str, kind: &str| json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}});
    let mut list: Vec<Value> = ["name", "namespace"]
        .into_iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| at(name, "path", "string"))
        .collect();
    let names: &[(&str, &str)] = match verb {
        "create" | "update" => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
        }
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
        ],
        "delete" => {
            &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")]
        }
        "list" | "deletecollection" => &[
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("watch", "boolean"),
        ],
        _ => &[],
    };
    list.extend(names.iter().map(|(name, kind)| at(name, "query", kind)));
    list
}

/// A kind as the `x-kubernetes-group-version-kind` extension names it.
pub(super) fn group_version_kind(kind: Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}
