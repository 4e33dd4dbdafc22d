//! `pods/binding`: the scheduler's decision, which is made once.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use weir_api::resource::BINDING;
use weir_api::validation::FieldError;
use weir_api::{Status, object, status};

use crate::response::{self, Body};
use crate::server::Server;
use crate::storage::Change;
use crate::verbs::{Request, now};

pub(super) async fn create(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let binding = request.decode(BINDING)?.object;
    let node = node_of(&binding, &path.name)?;
    let changed =
        server.storage.change(path.row, (&path.namespace, &path.name), request.query.dry_run, |pod| {
            let refuse = |why: String| {
                let mut status = Status::conflict(path.row, &path.name, &why);
                status.message =
                    format!("Operation cannot be fulfilled on pods/binding {:?}: {why}", path.name);
                Err(status)
            };
            let (wanted, uid) = (object::uid(&binding), object::uid(pod));
            if !wanted.is_empty() && wanted != uid {
                return refuse(format!(
                    "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
                ));
            }
            if object::is_terminating(pod) {
                return refuse(format!("pod {} is being deleted, cannot be assigned to a host", path.name));
            }
            let assigned = object::str_at(pod, &["spec", "nodeName"]);
            if !assigned.is_empty() {
                return refuse(format!("pod {} is already assigned to node {assigned:?}", path.name));
            }
            if !object::list_at(pod, &["spec", "schedulingGates"]).is_empty() {
                return refuse(format!("pod {} has non-empty .spec.schedulingGates", path.name));
            }
            Ok(Change::Put(bound(pod, &node, &binding)))
        });
    changed.await?;
    Ok(response::json(StatusCode::CREATED, &status::success(201), false))
}

fn node_of(binding: &Value, pod: &str) -> Result<String, Status> {
    let kind = object::str_at(binding, &["target", "kind"]);
    let node = object::str_at(binding, &["target", "name"]);
    let error = if !matches!(kind, "" | "Node") {
        FieldError::not_supported("target.kind", kind, &["Node", "<empty>"])
    } else if node.is_empty() {
        FieldError::required("target.name", "")
    } else {
        return Ok(node.to_owned());
    };
    Err(Status::invalid_kind("", "Binding", pod, &[error]))
}

/// The pod on its node: named, annotated as the binding says, and marked as scheduled.
fn bound(pod: &Value, node: &str, binding: &Value) -> Value {
    let mut pod = pod.clone();
    object::set(&mut pod, &["spec", "nodeName"], node);
    for (key, value) in object::map_at(binding, &["metadata", "annotations"]).into_iter().flatten() {
        object::set(&mut pod, &["metadata", "annotations", key], value.clone());
    }
    let mut conditions = object::list_at(&pod, &["status", "conditions"]).to_vec();
    conditions.retain(|condition| object::str_at(condition, &["type"]) != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
    }));
    object::set(&mut pod, &["status", "conditions"], conditions);
    pod
}
