//! Discovery documents: which groups, versions and resources there are.
//!
//! Clients first ask for the aggregated form (one document for `/api`, one for `/apis`); older ones ask for
//! the plain lists. Both are made from the registry alone.

use serde_json::{Map, Value, json};

use crate::resource::{Resource, Subresource, api_version, resources};

/// The media type of the aggregated documents.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Group and version pairs in the registry, core first, in its order.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut seen = Vec::new();
    for row in resources() {
        if !seen.contains(&(row.group, row.version)) {
            seen.push((row.group, row.version));
        }
    }
    seen
}

fn rows_of(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    let (group, version) = (group.to_owned(), version.to_owned());
    resources().iter().filter(move |row| row.group == group && row.version == version)
}

/// `/api`, plain. `server` is the address that clients outside use, `host:port`.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// `/apis`, plain.
pub fn api_groups() -> Value {
    let groups: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .filter_map(|(group, _)| api_group(group))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.into_iter().map(untyped).collect::<Vec<_>>()})
}

fn untyped(mut group: Value) -> Value {
    if let Some(map) = group.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    group
}

/// `/apis/{group}`; `None` for a group that is not served.
pub fn api_group(group: &str) -> Option<Value> {
    let versions: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(name, _)| *name == group && !name.is_empty())
        .map(|(name, version)| json!({"groupVersion": api_version(name, version), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": group,
        "versions": versions,
        "preferredVersion": preferred,
    }))
}

/// `/api/v1` and `/apis/{group}/{version}`, plain; `None` for what is not served.
pub fn api_resources(group: &str, version: &str) -> Option<Value> {
    let mut list: Vec<Value> = Vec::new();
    for row in rows_of(group, version) {
        list.push(plain(row));
        list.extend(row.subresources.iter().map(|subresource| plain_subresource(row, subresource)));
    }
    if list.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": list,
    }))
}

fn plain(row: &Resource) -> Value {
    let mut value = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": row.verbs,
    });
    add_names(&mut value, row);
    value
}

fn add_names(value: &mut Value, row: &Resource) {
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
}

fn plain_subresource(row: &Resource, subresource: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", row.plural, subresource.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": subresource.kind.kind,
        "verbs": subresource.verbs,
    });
    if (subresource.kind.group, subresource.kind.version) != (row.group, row.version) {
        value["group"] = json!(subresource.kind.group);
        value["version"] = json!(subresource.kind.version);
    }
    value
}

/// `/api` in the aggregated form.
pub fn aggregated_core() -> Value {
    aggregated(group_versions().into_iter().filter(|(group, _)| group.is_empty()))
}

/// `/apis` in the aggregated form.
pub fn aggregated_groups() -> Value {
    aggregated(group_versions().into_iter().filter(|(group, _)| !group.is_empty()))
}

fn aggregated(groups: impl Iterator<Item = (&'static str, &'static str)>) -> Value {
    let items: Vec<Value> = groups
        .map(|(group, version)| {
            let mut metadata = Map::new();
            if !group.is_empty() {
                metadata.insert("name".to_owned(), json!(group));
            }
            json!({
                "metadata": metadata,
                "versions": [{
                    "version": version,
                    "freshness": "Current",
                    "resources": rows_of(group, version).map(aggregated_resource).collect::<Vec<_>>(),
                }],
            })
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(row: &'static Resource) -> Value {
    let scope = if row.namespaced { "Namespaced" } else { "Cluster" };
    let mut value = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": scope,
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    add_names(&mut value, row);
    if !row.subresources.is_empty() {
        value["subresources"] = row
            .subresources
            .iter()
            .map(|subresource| {
                let kind = subresource.kind;
                json!({
                    "subresource": subresource.name,
                    "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
                    "verbs": subresource.verbs,
                })
            })
            .collect();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_and_groups_are_listed_apart() {
        assert_eq!(group_versions().first(), Some(&("", "v1")));
        let core = aggregated_core();
        assert_eq!(core["items"].as_array().map(Vec::len), Some(1));
        assert_eq!(core["items"][0]["versions"][0]["resources"][0]["resource"], "namespaces");
        let groups = aggregated_groups();
        let names: Vec<_> =
            groups["items"].as_array().expect("items").iter().map(|g| &g["metadata"]["name"]).collect();
        assert!(names.contains(&&json!("apps")) && names.contains(&&json!("networking.k8s.io")), "{names:?}");
        assert!(api_group("").is_none());
        assert!(api_group("batch").is_none());
        assert_eq!(api_group("apps").expect("served")["preferredVersion"]["groupVersion"], "apps/v1");
    }

    #[test]
    fn subresources_name_the_group_of_their_bodies() {
        let list = api_resources("apps", "v1").expect("served");
        let scale = list["resources"]
            .as_array()
            .expect("resources")
            .iter()
            .find(|resource| resource["name"] == "deployments/scale")
            .expect("scale");
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
        assert!(api_resources("apps", "v2").is_none());
    }
}
