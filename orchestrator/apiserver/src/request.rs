//! What a request asks for: its path and query, taken apart once.

use form_urlencoded::parse;
use percent_encoding::percent_decode_str;
use weir_api::codec::FieldValidation;
use weir_api::resource::{self, Subresource};
use weir_api::{Resource, Status};

/// Where a request points.
#[derive(Debug)]
pub(crate) enum Target {
    /// A resource, one of its objects, or something below one.
    Resource(ResourcePath),
    /// Any other path: health, discovery, metrics.
    Path(String),
}

/// A path below `/api/v1` or `/apis/GROUP/VERSION` that names a resource.
#[derive(Debug)]
pub(crate) struct ResourcePath {
    /// The row of the registry.
    pub(crate) row: &'static Resource,
    /// Empty for objects of the cluster, and for lists over all namespaces.
    pub(crate) namespace: String,
    /// Empty for the collection.
    pub(crate) name: String,
    /// What is below the object.
    pub(crate) subresource: Option<&'static Subresource>,
}

impl Target {
    /// Takes a path apart. A path of a resource that is not served is an error, as is one that cannot be decoded.
    pub(crate) fn of_path(path: &str) -> Result<Target, Status> {
        let decode = |segment: &str| {
            percent_decode_str(segment).decode_utf8().map(String::from).map_err(|_| Status::unknown_path())
        };
        let segments: Vec<String> =
            path.split('/').filter(|segment| !segment.is_empty()).map(decode).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Ok(Target::Path(path.to_owned())),
        };
        if rest.is_empty() {
            return Ok(Target::Path(path.to_owned()));
        }
        ResourcePath::of_segments(group, version, rest).map(Target::Resource)
    }
}

impl ResourcePath {
    fn of_segments(group: &str, version: &str, rest: &[&str]) -> Result<ResourcePath, Status> {
        let (namespace, rest) = match rest {
            // `namespaces/NAME` alone, or with a subresource of its own, is the namespace itself.
            ["namespaces", namespace, plural, rest @ ..] if !is_subresource_of_namespaces(plural) => {
                (*namespace, [&[*plural], rest].concat())
            }
            rest => ("", rest.to_vec()),
        };
        let (plural, rest) = rest.split_first().ok_or_else(Status::unknown_path)?;
        let row = resource::find(group, version, plural).ok_or_else(Status::unknown_path)?;
        if row.namespaced && namespace.is_empty() && !rest.is_empty()
            || !row.namespaced && !namespace.is_empty()
        {
            return Err(Status::unknown_path());
        }
        let (name, subresource) = match rest {
            [] => ("", None),
            [name] => (*name, None),
            [name, subresource] => {
                (*name, Some(row.subresource(subresource).ok_or_else(Status::unknown_path)?))
            }
            _ => return Err(Status::unknown_path()),
        };
        Ok(ResourcePath { row, namespace: namespace.to_owned(), name: name.to_owned(), subresource })
    }
}

fn is_subresource_of_namespaces(segment: &str) -> bool {
    resource::find("", "v1", "namespaces").is_some_and(|row| row.subresource(segment).is_some())
}

/// Which state a read wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// The newest: nothing older than what was acknowledged when the request came.
    #[default]
    Newest,
    /// Whatever is at hand.
    Any,
    /// This one or newer.
    NotOlderThan(u64),
    /// This one exactly.
    Exact(u64),
}

/// The query parameters that the API knows.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a parameter of its own")]
pub(crate) struct Query {
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    pub(crate) limit: usize,
    pub(crate) continue_token: String,
    pub(crate) resource_version: Option<u64>,
    pub(crate) resource_version_match: String,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial_events: Option<bool>,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
    pub(crate) include_object: String,
    pub(crate) pretty: bool,
    pub(crate) propagation_policy: Option<String>,
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) verbose: bool,
}

impl Query {
    /// Parses a query string. Parameters that are not known are ignored, as upstream does.
    pub(crate) fn parse(query: &str) -> Result<Query, Status> {
        let mut parsed = Query::default();
        for (key, value) in parse(query.as_bytes()) {
            let value = value.into_owned();
            match &*key {
                "labelSelector" => parsed.label_selector = value,
                "fieldSelector" => parsed.field_selector = value,
                "limit" => parsed.limit = number(&key, &value)?.unwrap_or(0),
                "continue" => parsed.continue_token = value,
                "resourceVersion" => parsed.resource_version = number(&key, &value)?,
                "resourceVersionMatch" => parsed.resource_version_match = value,
                "watch" => parsed.watch = boolean(&value),
                "allowWatchBookmarks" => parsed.bookmarks = boolean(&value),
                "sendInitialEvents" => parsed.send_initial_events = Some(boolean(&value)),
                "timeoutSeconds" => parsed.timeout_seconds = number(&key, &value)?,
                "dryRun" => parsed.dry_run = dry_run(&value)?,
                "fieldValidation" => {
                    parsed.field_validation = FieldValidation::of_query(&value).ok_or_else(|| {
                        Status::bad_request(format!(
                            "fieldValidation: Unsupported value: {value:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
                        ))
                    })?;
                }
                "includeObject" => parsed.include_object = value,
                "pretty" => parsed.pretty = boolean(&value),
                "propagationPolicy" => parsed.propagation_policy = Some(value),
                "gracePeriodSeconds" => parsed.grace_period_seconds = number(&key, &value)?,
                "verbose" => parsed.verbose = true,
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// Which state the read wants; the combinations are upstream's.
    pub(crate) fn version(&self) -> Result<Version, Status> {
        match (self.resource_version_match.as_str(), self.resource_version) {
            ("", None) => Ok(Version::Newest),
            ("" | "NotOlderThan", Some(0)) => Ok(Version::Any),
            ("" | "NotOlderThan", Some(revision)) => Ok(Version::NotOlderThan(revision)),
            ("Exact", Some(revision)) if revision > 0 => Ok(Version::Exact(revision)),
            ("Exact", Some(_)) => Err(invalid_list_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            )),
            ("Exact" | "NotOlderThan", None) => Err(invalid_list_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            (other, _) => Err(invalid_list_options(&format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            ))),
        }
    }
}

fn invalid_list_options(why: &str) -> Status {
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {why}");
    Status { code: 422, reason: "Invalid", message, ..Status::default() }
}

/// Upstream's booleans: absent, empty, `0` and `false` are false, everything else is true.
fn boolean(value: &str) -> bool {
    !matches!(value, "" | "0" | "false")
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>, Status> {
    if value.is_empty() {
        return Ok(None);
    }
    value
        .parse()
        .map(Some)
        .map_err(|_| Status::bad_request(format!("invalid {key} {value:?}: not a number that fits")))
}

/// Whether a write is only rehearsed.
pub(crate) fn dry_run(value: &str) -> Result<bool, Status> {
    match value {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(Status::bad_request(format!(
            "dryRun: Unsupported value: {other:?}: supported values: \"All\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match Target::of_path(path) {
            Ok(Target::Resource(resource)) => resource,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_come_apart() {
        let table = [
            ("/api/v1/namespaces", "namespaces", "", "", ""),
            ("/api/v1/namespaces/a", "namespaces", "", "a", ""),
            ("/api/v1/namespaces/a/status", "namespaces", "", "a", "status"),
            ("/api/v1/namespaces/a/finalize", "namespaces", "", "a", "finalize"),
            ("/api/v1/namespaces/a/pods", "pods", "a", "", ""),
            ("/api/v1/namespaces/a/pods/b/log", "pods", "a", "b", "log"),
            ("/api/v1/pods", "pods", "", "", ""),
            ("/api/v1/nodes/n%31/status", "nodes", "", "n1", "status"),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", "deployments", "a", "b", "scale"),
            ("/apis/networking.k8s.io/v1/ingressclasses/x", "ingressclasses", "", "x", ""),
        ];
        for (path, plural, namespace, name, subresource) in table {
            let found = resource(path);
            let below = found.subresource.map_or("", |subresource| subresource.name);
            assert_eq!(
                (found.row.plural, found.namespace.as_str(), found.name.as_str(), below),
                (plural, namespace, name, subresource),
                "{path}"
            );
        }
        for path in
            ["/api/v1/pods/b", "/api/v1/namespaces/a/nodes", "/apis/apps/v1/jobs", "/api/v1/nodes/a/b/c"]
        {
            assert_eq!(Target::of_path(path).expect_err(path).code, 404);
        }
        for path in ["/", "/healthz", "/api", "/api/v1", "/apis/apps/v1", "/openapi/v3/apis/apps/v1"] {
            assert!(matches!(Target::of_path(path), Ok(Target::Path(found)) if found == path));
        }
    }

    #[test]
    fn versions_are_upstreams() {
        let version = |query: &str| Query::parse(query).expect("parses").version();
        assert_eq!(version("").expect("fine"), Version::Newest);
        assert_eq!(version("resourceVersion=0").expect("fine"), Version::Any);
        assert_eq!(version("resourceVersion=7").expect("fine"), Version::NotOlderThan(7));
        assert_eq!(version("resourceVersion=7&resourceVersionMatch=Exact").expect("fine"), Version::Exact(7));
        for bad in [
            "resourceVersion=0&resourceVersionMatch=Exact",
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=x",
        ] {
            assert_eq!(version(bad).expect_err(bad).code, 422);
        }
        assert_eq!(Query::parse("resourceVersion=x").expect_err("no number").code, 400);
    }
}
