//! PATCH, of an object or of its status.
//!
//! A patch without a `resourceVersion` is applied to the newest state, and again if somebody else was faster; one with a
//! `resourceVersion` is a condition, as in an update.

use std::sync::{Mutex, PoisonError};

use http::{Response, StatusCode};
use weir_api::patch::{self, PatchType};
use weir_api::{Status, codec, object};

use super::{Request, update};
use crate::response::{self, Body};
use crate::server::Server;

/// What can be sent. Server-side apply is not among it.
pub(crate) const ACCEPTED: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

pub(super) async fn patch(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let row = path.row;
    let patch_type = patch_type(request)?;
    let is_status = path.subresource.is_some();
    let warnings = Mutex::new(Vec::new());
    let changed = server
        .storage
        .change(row, (&path.namespace, &path.name), request.query.dry_run, |old| {
            let patched = patch::apply(patch_type, &request.body, old, row.target())?;
            let mut decoded = codec::check(patched, row.target(), request.query.field_validation)?;
            *warnings.lock().unwrap_or_else(PoisonError::into_inner) = decoded.warnings;
            if object::name(&decoded.object) != path.name
                || object::namespace(&decoded.object) != path.namespace
            {
                return Err(Status::bad_request(
                    "a patch may not change metadata.name or metadata.namespace",
                ));
            }
            row.apply_defaults(&mut decoded.object);
            update::next_state(row, old, decoded.object, is_status)
        })
        .await?;
    let mut answer = request.answer(StatusCode::OK, &changed.into_value())?;
    response::warn(&mut answer, &warnings.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(answer)
}

/// How the body is to be understood.
pub(crate) fn patch_type(request: &Request) -> Result<PatchType, Status> {
    match PatchType::of_content_type(request.content_type()) {
        Some(PatchType::Apply) => {
            let mut status = Status::unsupported_media_type(ACCEPTED);
            status
                .message
                .push_str("; server-side apply is not supported: use kubectl apply without --server-side");
            Err(status)
        }
        Some(patch_type) => Ok(patch_type),
        None => Err(Status::unsupported_media_type(ACCEPTED)),
    }
}
