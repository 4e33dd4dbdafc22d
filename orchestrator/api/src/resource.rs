//! The registry: one row per kind, with all that sets it apart from the others.
//!
//! The apiserver routes by these rows, discovery and OpenAPI list them, and the rules (defaults, validation,
//! update strategy, columns, selectable fields) hang off them as functions. Nothing else in Weir enumerates
//! kinds.

mod rows;

use serde_json::Value;

use crate::{
    strategy::Strategy,
    table::Printer,
    validation::{FieldError, NameRule},
};

pub use rows::{
    BINDING, DELETE_OPTIONS, EVICTION, SCALE, SELF_SUBJECT_ACCESS_REVIEW, SELF_SUBJECT_REVIEW,
    SELF_SUBJECT_RULES_REVIEW, SUBJECT_ACCESS_REVIEW, TOKEN_REQUEST, TOKEN_REVIEW,
};

/// What a body may be: a kind in a group and version, and the schema that says which fields it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version within the group.
    pub version: &'static str,
    /// The kind's name.
    pub kind: &'static str,
    /// Name of its schema, such as `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
}

impl Kind {
    /// The `apiVersion` of its objects: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

/// `group/version`, or the bare version in the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// An endpoint below an object: `pods/status`, `deployments/scale`, `serviceaccounts/token`.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// The last segment of its path.
    pub name: &'static str,
    /// What its bodies are.
    pub kind: Kind,
    /// What can be done with it.
    pub verbs: &'static [&'static str],
}

/// Where the objects of a row live in the store; two rows that share it are two views of one object.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    /// Group whose key prefix holds the objects.
    pub group: &'static str,
    /// Plural whose key prefix holds the objects.
    pub plural: &'static str,
    /// Turns a body of this row's kind into the stored kind.
    pub to_stored: fn(&mut Value),
    /// Turns a stored object into this row's kind.
    pub from_stored: fn(&mut Value),
}

/// One row of the registry.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version within the group.
    pub version: &'static str,
    /// The kind of its objects.
    pub kind: &'static str,
    /// The path segment, lower case plural.
    pub plural: &'static str,
    /// The name kubectl takes for one.
    pub singular: &'static str,
    /// The abbreviations kubectl takes.
    pub short_names: &'static [&'static str],
    /// Groups such as `all` that kubectl expands.
    pub categories: &'static [&'static str],
    /// Whether its objects live in a namespace.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: &'static [&'static str],
    /// Endpoints below an object.
    pub subresources: &'static [Subresource],
    /// Name of its schema, such as `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    /// Where its objects are kept; `None` for reviews, which are answered and forgotten.
    pub storage: Option<Storage>,
    /// The rules of its writes.
    pub strategy: &'static Strategy,
    /// The columns kubectl prints.
    pub printer: &'static Printer,
    /// Fields that a `fieldSelector` may name, besides `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
}

impl Resource {
    /// What a body for this resource is.
    pub fn target(&self) -> Kind {
        Kind { group: self.group, version: self.version, kind: self.kind, schema: self.schema }
    }

    /// The `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `deployments.apps`, or `pods`: how messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether `verb` is served.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Fills in what the client left out, as upstream does on every read of a body.
    pub fn apply_defaults(&self, object: &mut Value) {
        (self.strategy.default)(object);
    }

    /// Drops what a client may not set when it creates an object and adds what starts out fixed.
    pub fn prepare_create(&self, object: &mut Value) {
        crate::strategy::prepare_create(self, object);
    }

    /// Carries over from `old` what a client may not change and raises `metadata.generation` if the wish
    /// (anything but metadata and status) changed.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        crate::strategy::prepare_update(self, new, old);
    }

    /// Makes `new` an update of nothing but the status.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        crate::strategy::prepare_status_update(self, new, old);
    }

    /// What is wrong with a new object; empty when nothing is.
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        crate::validation::validate_create(self, object)
    }

    /// What is wrong with an update.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        crate::validation::validate_update(self, new, old)
    }

    /// What is wrong with an update of the status.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        crate::validation::validate_status_update(self, new, old)
    }

    /// The rule that names of its objects follow.
    pub fn name_rule(&self) -> NameRule {
        self.strategy.name
    }
}

/// All rows, in the order discovery lists them.
pub fn resources() -> &'static [Resource] {
    rows::ROWS
}

/// The row that serves `/apis/{group}/{version}/{plural}`.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    resources().iter().find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The row whose objects are of that kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    resources().iter().find(|row| row.group == group && row.version == version && row.kind == kind)
}

/// The row for an object's `apiVersion` and `kind`.
pub fn find_api_version(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    find_kind(group, version, kind)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_are_found_by_path_and_by_kind() {
        let deployments = find("apps", "v1", "deployments").expect("deployments are served");
        assert_eq!(deployments.qualified(), "deployments.apps");
        assert_eq!(deployments.api_version(), "apps/v1");
        assert!(std::ptr::eq(deployments, find_api_version("apps/v1", "Deployment").expect("by kind")));
        assert!(find("apps", "v1beta1", "deployments").is_none());
        assert_eq!(
            find("", "v1", "pods").and_then(|pods| pods.subresource("binding")).map(|s| s.kind),
            Some(BINDING)
        );
    }

    #[test]
    fn no_two_rows_share_a_path_or_a_short_name_in_one_group() {
        let mut paths = HashSet::new();
        let mut names = HashSet::new();
        for row in resources() {
            assert!(paths.insert((row.group, row.version, row.plural)), "{}", row.plural);
            for name in row.short_names.iter().chain([&row.singular]) {
                assert!(names.insert((row.group, *name)), "{name}");
            }
            assert!(
                row.storage.is_some() || row.verbs == ["create"],
                "{} is stored or only created",
                row.kind
            );
        }
    }
}
