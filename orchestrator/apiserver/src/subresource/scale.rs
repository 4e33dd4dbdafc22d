//! `scale`: the number of replicas of anything that has one, in one shape.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use weir_api::resource::SCALE;
use weir_api::selector::LabelSelector;
use weir_api::validation::FieldError;
use weir_api::{Status, codec, object, patch};

use crate::response::{self, Body};
use crate::server::Server;
use crate::storage::{Change, revision};
use crate::verbs::{Request, patch_type};

pub(super) async fn get(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let found = server.storage.get(path.row, &path.namespace, &path.name).await?;
    Ok(answer(request, &scale_of(&found)))
}

pub(super) async fn update(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let wish = request.decode(SCALE)?.object;
    change(server, request, |_| Ok(wish.clone())).await
}

pub(super) async fn patch(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let patch_type = patch_type(request)?;
    change(server, request, |scale| {
        let patched = patch::apply(patch_type, &request.body, scale, SCALE)?;
        Ok(codec::check(patched, SCALE, request.query.field_validation)?.object)
    })
    .await
}

async fn change(
    server: &Server,
    request: &Request,
    wish: impl Fn(&Value) -> Result<Value, Status>,
) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let row = path.row;
    let changed = server.storage.change(row, (&path.namespace, &path.name), request.query.dry_run, |old| {
        let scale = wish(&scale_of(old))?;
        let wanted = object::resource_version(&scale);
        if !wanted.is_empty() && wanted.parse() != Ok(revision(old)) {
            return Err(Status::stale(row, &path.name));
        }
        let replicas = object::int_at(&scale, &["spec", "replicas"]).unwrap_or(0);
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            return Err(Status::invalid_kind(SCALE.group, SCALE.kind, &path.name, &[error]));
        }
        let mut new = old.clone();
        object::set(&mut new, &["spec", "replicas"], replicas);
        row.prepare_update(&mut new, old);
        Ok(Change::Put(new))
    });
    Ok(answer(request, &scale_of(&changed.await?.into_value())))
}

fn answer(request: &Request, scale: &Value) -> Response<Body> {
    response::json(StatusCode::OK, scale, response::is_pretty(request.query.pretty, &request.headers))
}

fn scale_of(value: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        object::copy(&mut metadata, &value["metadata"], &[field]);
    }
    let selector = LabelSelector::of_object(object::get(value, &["spec", "selector"]));
    json!({
        "kind": SCALE.kind,
        "apiVersion": SCALE.api_version(),
        "metadata": metadata,
        "spec": { "replicas": object::int_at(value, &["spec", "replicas"]).unwrap_or(0) },
        "status": {
            "replicas": object::int_at(value, &["status", "replicas"]).unwrap_or(0),
            "selector": selector.map(|selector| selector.to_query()).unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_made_of_what_an_autoscaler_needs() {
        let deployment = json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}}},
            "status": {"replicas": 2},
        });
        assert_eq!(
            scale_of(&deployment),
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "web", "namespace": "d", "uid": "u", "resourceVersion": "7"},
                "spec": {"replicas": 3},
                "status": {"replicas": 2, "selector": "a=1,b=2"},
            })
        );
    }
}
