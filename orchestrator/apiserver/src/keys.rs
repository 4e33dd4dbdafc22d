//! Where things lie in the store.
//!
//! ```text
//! /registry/{group or "core"}/{plural}/[{namespace}/]{name}   objects
//! /allocated/{what}/{value}                                   addresses and ports that belong to a service
//! ```

use weir_api::Resource;

/// The prefix of all objects.
pub(crate) const REGISTRY: &str = "/registry/";

/// The key of an object within its resource: what lists are sorted by.
pub(crate) fn object(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The store's key of an object of a stored row.
pub(crate) fn stored(row: &Resource, namespace: &str, name: &str) -> String {
    let storage = row.storage.expect("only objects of stored kinds have keys");
    let group = if storage.group.is_empty() { "core" } else { storage.group };
    format!("{REGISTRY}{group}/{}/{}", storage.plural, object(namespace, name))
}

/// Takes a key of an object apart: group, plural, key within the resource.
pub(crate) fn parse(key: &[u8]) -> Option<(&str, &str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(REGISTRY)?;
    let (group, rest) = rest.split_once('/')?;
    let (plural, key) = rest.split_once('/')?;
    Some((if group == "core" { "" } else { group }, plural, key))
}

/// Whether the row's objects are stored as they are, and not as those of another row that it is a view of.
pub(crate) fn is_own_storage(row: &Resource) -> bool {
    row.storage.is_some_and(|storage| storage.group == row.group && storage.plural == row.plural)
}

/// The key that says who has an allocated value.
pub(crate) fn allocated(what: &str, value: impl std::fmt::Display) -> String {
    format!("/allocated/{what}/{value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        for (group, version, plural, namespace, name) in [
            ("", "v1", "pods", "default", "web"),
            ("", "v1", "nodes", "", "n1"),
            ("apps", "v1", "deployments", "a", "b"),
        ] {
            let row = weir_api::resource::find(group, version, plural).expect("served");
            let key = stored(row, namespace, name);
            assert_eq!(parse(key.as_bytes()), Some((group, plural, object(namespace, name).as_str())));
        }
        let view = weir_api::resource::find("events.k8s.io", "v1", "events").expect("served");
        assert_eq!(stored(view, "a", "b"), "/registry/core/events/a/b");
        assert!(!is_own_storage(view));
    }
}
