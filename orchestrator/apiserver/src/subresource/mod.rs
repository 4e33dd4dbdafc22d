//! What is below an object: `status` is served by the verbs themselves, the rest each by a file here.

mod binding;
mod eviction;
mod finalize;
mod log;
mod scale;
mod token;

use std::sync::Arc;

use http::Response;
use weir_api::Status;

use crate::response::Body;
use crate::server::Server;
use crate::verbs::{self, Request};

/// Does what a request for a subresource asks for.
pub(crate) async fn serve(
    server: &Arc<Server>,
    verb: &'static str,
    name: &'static str,
    request: Request,
) -> Result<Response<Body>, Status> {
    match (name, verb) {
        ("status", _) => verbs::serve_status(server, verb, &request).await,
        ("scale", "get") => scale::get(server, &request).await,
        ("scale", "update") => scale::update(server, &request).await,
        ("scale", "patch") => scale::patch(server, &request).await,
        ("binding", "create") => binding::create(server, &request).await,
        ("eviction", "create") => eviction::create(server, &request).await,
        ("finalize", "update") => finalize::update(server, &request).await,
        ("token", "create") => token::create(server, &request).await,
        ("log", "get") => log::get(server, &request).await,
        _ => Err(Status::method_not_allowed(request.row(), verb)),
    }
}
