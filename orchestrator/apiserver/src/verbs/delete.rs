//! DELETE of an object: at once, or as a wish that its finalizers, or its node, fulfil.

use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use weir_api::codec::FieldValidation;
use weir_api::resource::DELETE_OPTIONS;
use weir_api::{Resource, Status, codec, object, status};

use super::{Request, create, update};
use crate::request::{self, Query};
use crate::response::{self, Body};
use crate::server::Server;
use crate::storage::{Change, Changed, Storage};

/// The finalizers by which a client chooses what becomes of an object's dependents; the garbage collector removes them.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Namespaces that the cluster cannot do without.
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public"];

/// How a client wants something deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) propagation: Option<String>,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    /// Of a DELETE's body, or of its query where the body says nothing.
    pub(crate) fn of_request(request: &Request) -> Result<DeleteOptions, Status> {
        let body = if request.body.is_empty() {
            Value::Null
        } else {
            let format = codec::Format::of_content_type(request.content_type())
                .ok_or_else(|| Status::unsupported_media_type(codec::MEDIA_TYPES))?;
            codec::decode(format, &request.body, DELETE_OPTIONS, FieldValidation::Ignore)?.object
        };
        DeleteOptions::of_body(&body, &request.query)
    }

    /// Of a `DeleteOptions` object.
    pub(crate) fn of_body(body: &Value, query: &Query) -> Result<DeleteOptions, Status> {
        let text = |path: &[&str]| {
            Some(object::str_at(body, path)).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let mut options = DeleteOptions {
            uid: text(&["preconditions", "uid"]),
            resource_version: text(&["preconditions", "resourceVersion"]),
            grace_seconds: object::int_at(body, &["gracePeriodSeconds"]).or(query.grace_period_seconds),
            propagation: text(&["propagationPolicy"]).or_else(|| query.propagation_policy.clone()),
            dry_run: query.dry_run,
        };
        for value in object::list_at(body, &["dryRun"]) {
            options.dry_run |= request::dry_run(value.as_str().unwrap_or_default())?;
        }
        if object::bool_at(body, &["orphanDependents"]) {
            options.propagation.get_or_insert_with(|| "Orphan".to_owned());
        }
        match options.propagation.as_deref() {
            None | Some("Orphan" | "Background" | "Foreground") => Ok(options),
            Some(other) => Err(Status::bad_request(format!(
                "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\""
            ))),
        }
    }
}

pub(super) async fn delete(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let options = DeleteOptions::of_request(request)?;
    let deleted = delete_object(&server.storage, path.row, (&path.namespace, &path.name), &options).await?;
    match deleted {
        Changed::Kept(value) => request.answer(StatusCode::OK, &value),
        Changed::Removed(value) => {
            let answer = status::deleted(path.row, &path.name, object::uid(&value));
            let pretty = response::is_pretty(request.query.pretty, &request.headers);
            Ok(response::json(StatusCode::OK, &answer, pretty))
        }
    }
}

/// Deletes an object, or marks it as to be deleted.
pub(crate) async fn delete_object(
    storage: &Storage,
    row: &Resource,
    (namespace, name): (&str, &str),
    options: &DeleteOptions,
) -> Result<Changed, Status> {
    if row.kind == "Namespace" && PROTECTED.contains(&name) {
        return Err(Status::forbidden(row, name, "this namespace may not be deleted"));
    }
    storage.change(row, (namespace, name), options.dry_run, |old| next_state(row, old, options)).await
}

/// What a deletion makes of an object.
fn next_state(row: &Resource, old: &Value, options: &DeleteOptions) -> Result<Change, Status> {
    check_preconditions(row, old, options)?;
    if row.kind == "Namespace"
        && object::is_terminating(old)
        && !object::list_at(old, &["spec", "finalizers"]).is_empty()
    {
        let why = "The system is ensuring all content is removed from this namespace.  \
                   Upon completion, this namespace will automatically be purged by the system.";
        return Err(Status::conflict(row, object::name(old), why));
    }
    let mut new = old.clone();
    set_propagation(&mut new, options.propagation.as_deref());
    let grace = grace_seconds(row, old, options);
    let waits = grace > 0
        || object::finalizers(&new).next().is_some()
        || row.kind == "Namespace" && !object::list_at(&new, &["spec", "finalizers"]).is_empty();

    let pending = object::int_at(old, &["metadata", "deletionGracePeriodSeconds"]);
    // A second deletion can only shorten what the first one granted.
    if object::is_terminating(old) && waits && pending.is_some_and(|pending| pending <= grace) {
        return Ok(if new == *old { Change::Keep } else { Change::Put(new) });
    }
    let end = Timestamp::now() + SignedDuration::from_secs(grace);
    if waits || !object::is_terminating(old) {
        object::set(&mut new, &["metadata", "deletionTimestamp"], create::at(end));
        object::set(&mut new, &["metadata", "deletionGracePeriodSeconds"], grace);
    }
    if !waits {
        return Ok(Change::Remove(new));
    }
    if row.kind == "Namespace" {
        object::set(&mut new, &["status", "phase"], "Terminating");
    }
    if row.strategy.generation && !object::is_terminating(old) {
        let generation = object::int_at(old, &["metadata", "generation"]).unwrap_or(0);
        object::set(&mut new, &["metadata", "generation"], generation + 1);
    }
    Ok(if update::is_finished(row, &new) { Change::Remove(new) } else { Change::Put(new) })
}

fn check_preconditions(row: &Resource, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let checks = [
        ("UID", &options.uid, object::uid(old)),
        ("ResourceVersion", &options.resource_version, object::resource_version(old)),
    ];
    for (what, wanted, found) in checks {
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            return Err(Status::conflict(row, object::name(old), &why));
        }
    }
    Ok(())
}

/// Leaves the finalizer of the chosen policy, and only that one of the two.
fn set_propagation(value: &mut Value, policy: Option<&str>) {
    let Some(policy) = policy else { return };
    let wanted = match policy {
        "Foreground" => Some(FOREGROUND),
        "Orphan" => Some(ORPHAN),
        _ => None,
    };
    let before: Vec<&str> = object::finalizers(value).collect();
    let mut finalizers: Vec<String> = before
        .iter()
        .filter(|own| ![FOREGROUND, ORPHAN].contains(own) || Some(**own) == wanted)
        .map(|own| (*own).to_owned())
        .collect();
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|own| own == wanted)
    {
        finalizers.push(wanted.to_owned());
    }
    if finalizers.is_empty() {
        object::remove(value, &["metadata", "finalizers"]);
    } else {
        object::set(value, &["metadata", "finalizers"], json!(finalizers));
    }
}

/// How long an object has to come to its end. Only a pod that a node may be running has any time at all.
fn grace_seconds(row: &Resource, old: &Value, options: &DeleteOptions) -> i64 {
    let is_over = matches!(object::str_at(old, &["status", "phase"]), "Succeeded" | "Failed");
    if row.kind != "Pod" || object::str_at(old, &["spec", "nodeName"]).is_empty() || is_over {
        return 0;
    }
    let own = object::int_at(old, &["spec", "terminationGracePeriodSeconds"]).unwrap_or(30);
    // A negative wish means the least there is, as upstream has it.
    match options.grace_seconds.unwrap_or(own) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

#[cfg(test)]
mod tests {
    use weir_api::resource;

    use super::*;

    fn row(plural: &str) -> &'static Resource {
        resource::find("", "v1", plural).expect("served")
    }

    fn pod(node: &str, more: &Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "7"},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30},
        });
        json_merge(&mut pod, more);
        pod
    }

    fn json_merge(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    json_merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }

    fn options(grace: Option<i64>, propagation: Option<&str>) -> DeleteOptions {
        DeleteOptions {
            grace_seconds: grace,
            propagation: propagation.map(str::to_owned),
            ..DeleteOptions::default()
        }
    }

    fn kept(change: Result<Change, Status>) -> Value {
        match change {
            Ok(Change::Put(value)) => value,
            other => panic!("not kept: {other:?}"),
        }
    }

    #[test]
    fn pods_get_time_only_where_they_run() {
        let pods = row("pods");
        let removed = |pod: &Value, grace| {
            matches!(next_state(pods, pod, &options(grace, None)), Ok(Change::Remove(_)))
        };
        assert!(removed(&pod("", &json!({})), None), "never scheduled");
        assert!(removed(&pod("n", &json!({})), Some(0)), "no grace wanted");
        assert!(removed(&pod("n", &json!({"status": {"phase": "Failed"}})), None), "over already");

        let marked = kept(next_state(pods, &pod("n", &json!({})), &options(None, None)));
        assert_eq!(object::int_at(&marked, &["metadata", "deletionGracePeriodSeconds"]), Some(30));
        assert!(object::is_terminating(&marked));
        assert!(matches!(next_state(pods, &marked, &options(None, None)), Ok(Change::Keep)), "nothing new");
        let sooner = kept(next_state(pods, &marked, &options(Some(5), None)));
        assert_eq!(object::int_at(&sooner, &["metadata", "deletionGracePeriodSeconds"]), Some(5));
        assert!(removed(&marked, Some(0)), "what the kubelet does at the end");
    }

    #[test]
    fn finalizers_keep_an_object_and_policies_are_finalizers() {
        let maps = row("configmaps");
        let plain = json!({"metadata": {"name": "c", "uid": "u"}});
        assert!(matches!(next_state(maps, &plain, &options(None, None)), Ok(Change::Remove(_))));
        let foreground = kept(next_state(maps, &plain, &options(None, Some("Foreground"))));
        assert_eq!(object::finalizers(&foreground).collect::<Vec<_>>(), [FOREGROUND]);
        let orphan = kept(next_state(maps, &foreground, &options(None, Some("Orphan"))));
        assert_eq!(object::finalizers(&orphan).collect::<Vec<_>>(), [ORPHAN]);
        assert!(matches!(
            next_state(maps, &orphan, &options(None, Some("Background"))),
            Ok(Change::Remove(_))
        ));

        let held = json!({"metadata": {"name": "c", "uid": "u", "finalizers": ["example.com/hold"]}});
        let marked = kept(next_state(maps, &held, &options(None, None)));
        assert!(object::is_terminating(&marked));
        assert!(matches!(next_state(maps, &marked, &options(None, None)), Ok(Change::Keep)));
    }

    #[test]
    fn preconditions_hold() {
        let pods = row("pods");
        let pod = pod("", &json!({}));
        let wrong_uid = DeleteOptions { uid: Some("other".to_owned()), ..DeleteOptions::default() };
        let status = next_state(pods, &pod, &wrong_uid).expect_err("another object");
        assert_eq!(status.code, 409);
        assert!(status.message.contains("UID in precondition: other"), "{}", status.message);
        let stale = DeleteOptions { resource_version: Some("6".to_owned()), ..DeleteOptions::default() };
        assert_eq!(next_state(pods, &pod, &stale).expect_err("stale").code, 409);
    }

    #[test]
    fn a_namespace_ends_when_its_content_has() {
        let namespaces = row("namespaces");
        let active = json!({"metadata": {"name": "n", "uid": "u"}, "spec": {"finalizers": ["kubernetes"]}});
        let marked = kept(next_state(namespaces, &active, &options(None, None)));
        assert_eq!(object::str_at(&marked, &["status", "phase"]), "Terminating");
        assert_eq!(next_state(namespaces, &marked, &options(None, None)).expect_err("waits").code, 409);
        assert!(!update::is_finished(namespaces, &marked));
        let mut finalized = marked;
        object::remove(&mut finalized, &["spec", "finalizers"]);
        assert!(update::is_finished(namespaces, &finalized));
    }
}
