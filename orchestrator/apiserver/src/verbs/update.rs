//! PUT, of an object or of its status; and the rules that any new state of an object has to pass.

use http::{Response, StatusCode};
use serde_json::Value;
use weir_api::validation::FieldError;
use weir_api::{Resource, Status, object};

use super::{Request, create};
use crate::response::{self, Body};
use crate::server::Server;
use crate::storage::{Change, revision};

pub(super) async fn update(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let row = path.row;
    let mut decoded = request.decode(row.target())?;
    check_name(&mut decoded.object, &path.name)?;
    create::settle_namespace(path, &mut decoded.object)?;
    row.apply_defaults(&mut decoded.object);

    let is_status = path.subresource.is_some();
    let wish = &decoded.object;
    let changed = server
        .storage
        .change(row, (&path.namespace, &path.name), request.query.dry_run, |old| {
            check_unconditional(row, wish)?;
            next_state(row, old, wish.clone(), is_status)
        })
        .await;
    let (code, value) = match changed {
        Ok(changed) => (StatusCode::OK, changed.into_value()),
        Err(status) if status.code == 404 && row.strategy.create_on_update && !is_status => {
            let created =
                create::insert(&server.storage, path, decoded.object.clone(), request.query.dry_run).await?;
            (StatusCode::CREATED, created)
        }
        Err(status) => return Err(status),
    };
    let mut answer = request.answer(code, &value)?;
    response::warn(&mut answer, &decoded.warnings);
    Ok(answer)
}

/// Makes body and path agree on the name.
pub(crate) fn check_name(value: &mut Value, name: &str) -> Result<(), Status> {
    match object::name(value) {
        "" => object::set(value, &["metadata", "name"], name),
        own if own == name => {}
        own => {
            return Err(Status::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}

/// Some kinds want to be told which state an update is of.
fn check_unconditional(row: &Resource, wish: &Value) -> Result<(), Status> {
    if object::resource_version(wish).is_empty() && !row.strategy.unconditional_update {
        let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        return Err(Status::invalid(row, object::name(wish), &[error]));
    }
    Ok(())
}

/// What an update makes of `old`: `wish`, as far as the kind's rules allow.
pub(super) fn next_state(
    row: &Resource,
    old: &Value,
    mut wish: Value,
    is_status: bool,
) -> Result<Change, Status> {
    let name = object::name(old).to_owned();
    let wanted = object::resource_version(&wish);
    if !wanted.is_empty() && wanted != "0" && wanted.parse() != Ok(revision(old)) {
        return Err(Status::stale(row, &name));
    }
    let (wanted_uid, uid) = (object::uid(&wish), object::uid(old));
    if !wanted_uid.is_empty() && wanted_uid != uid {
        let why =
            format!("Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {uid}");
        return Err(Status::conflict(row, &name, &why));
    }
    let errors = if is_status {
        row.prepare_status_update(&mut wish, old);
        row.validate_status_update(&wish, old)
    } else {
        row.prepare_update(&mut wish, old);
        row.validate_update(&wish, old)
    };
    if !errors.is_empty() {
        return Err(Status::invalid(row, &name, &errors));
    }
    Ok(if is_finished(row, &wish) { Change::Remove(wish) } else { Change::Put(wish) })
}

/// Whether an object that waits for its end has nothing left to wait for.
pub(crate) fn is_finished(row: &Resource, value: &Value) -> bool {
    object::is_terminating(value)
        && object::finalizers(value).next().is_none()
        && object::int_at(value, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && (row.kind != "Namespace" || object::list_at(value, &["spec", "finalizers"]).is_empty())
}
