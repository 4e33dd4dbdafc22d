//! What can be done with a resource: one file per verb.

mod collection;
mod create;
mod delete;
mod list;
mod patch;
mod update;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use weir_api::codec::{self, Decoded, Format};
use weir_api::resource::Kind;
use weir_api::table::{self, IncludeObject};
use weir_api::{Resource, Status};

use crate::authn::User;
use crate::request::{Query, ResourcePath, Version};
use crate::response::{self, Body, Form};
use crate::server::Server;

pub(crate) use create::{at, insert, now};
pub(crate) use delete::{DeleteOptions, delete_object};
pub(crate) use patch::patch_type;
pub(crate) use update::{check_name, is_finished};

/// A request for a resource, read whole.
pub(crate) struct Request {
    pub(crate) path: ResourcePath,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) user: User,
    /// The query as it came, for what is passed on.
    pub(crate) raw_query: String,
}

impl Request {
    pub(crate) fn row(&self) -> &'static Resource {
        self.path.row
    }

    /// The body as an object of `kind`.
    pub(crate) fn decode(&self, kind: Kind) -> Result<Decoded, Status> {
        let format = Format::of_content_type(self.content_type())
            .ok_or_else(|| Status::unsupported_media_type(codec::MEDIA_TYPES))?;
        Ok(codec::decode(format, &self.body, kind, self.query.field_validation)?)
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// Answers with one object, in the form that the client wants.
    pub(crate) fn answer(&self, code: StatusCode, value: &Value) -> Result<Response<Body>, Status> {
        let pretty = response::is_pretty(self.query.pretty, &self.headers);
        Ok(match Form::negotiate(&self.headers)? {
            Form::Object => response::json(code, value, pretty),
            Form::Metadata => response::json(code, &table::partial(value), pretty),
            Form::Table => {
                let mut rendered = table::render(self.row(), [value], Timestamp::now(), self.include()?);
                rendered["metadata"]["resourceVersion"] = value["metadata"]["resourceVersion"].clone();
                response::json(code, &rendered, pretty)
            }
        })
    }

    /// How much of each object a Table carries.
    pub(crate) fn include(&self) -> Result<IncludeObject, Status> {
        IncludeObject::of_query(&self.query.include_object).ok_or_else(|| {
            Status::bad_request(format!("unrecognized includeObject value: {:?}", self.query.include_object))
        })
    }
}

/// Does what a request for a resource itself asks for.
pub(crate) async fn serve(
    server: &Arc<Server>,
    verb: &'static str,
    request: Request,
) -> Result<Response<Body>, Status> {
    let row = request.row();
    let asked = if verb == "watch" { "list" } else { verb };
    if !row.allows(verb) && !row.allows(asked) {
        return Err(Status::method_not_allowed(row, verb));
    }
    if row.storage.is_none() {
        return crate::reviews::answer(server, &request);
    }
    match verb {
        "get" => get(server, &request).await,
        "list" => list::list(server, &request).await,
        "watch" => watch::watch(server, request).await,
        "create" => create::create(server, &request).await,
        "update" => update::update(server, &request).await,
        "patch" => patch::patch(server, &request).await,
        "delete" => delete::delete(server, &request).await,
        "deletecollection" => collection::delete(server, &request).await,
        _ => Err(Status::method_not_allowed(row, verb)),
    }
}

/// Does what a request for `status` asks for.
pub(crate) async fn serve_status(
    server: &Server,
    verb: &str,
    request: &Request,
) -> Result<Response<Body>, Status> {
    match verb {
        "get" => get(server, request).await,
        "update" => update::update(server, request).await,
        "patch" => patch::patch(server, request).await,
        _ => Err(Status::method_not_allowed(request.row(), verb)),
    }
}

/// Waits until the cache is as fresh as a read wants it; answers the revision that it then has.
pub(crate) async fn freshen(server: &Server, version: Version) -> Result<u64, Status> {
    let cache = &server.storage.cache;
    match version {
        Version::Any => {}
        Version::Newest => return server.storage.catch_up().await,
        Version::NotOlderThan(revision) | Version::Exact(revision) => {
            if !cache.wait_for(revision).await {
                return Err(Status::too_large_resource_version(revision, cache.revision()));
            }
        }
    }
    Ok(cache.revision())
}

async fn get(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let ResourcePath { row, namespace, name, .. } = &request.path;
    freshen(server, request.query.version()?).await?;
    // The most common answer is the cached bytes as they are.
    let plain = Form::negotiate(&request.headers)? == Form::Object
        && !response::is_pretty(request.query.pretty, &request.headers)
        && crate::keys::is_own_storage(row);
    if plain {
        let found =
            server.storage.cache.of(row).and_then(|cache| cache.get(&crate::keys::object(namespace, name)));
        let found = found.ok_or_else(|| Status::not_found(row, name))?;
        return Ok(response::json_body(StatusCode::OK, response::full(found.json.clone())));
    }
    let found = server.storage.cached(row, namespace, name).ok_or_else(|| Status::not_found(row, name))?;
    request.answer(StatusCode::OK, &found)
}
