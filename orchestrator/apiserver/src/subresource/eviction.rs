//! `pods/eviction`: a deletion that asks first. Without disruption budgets there is nobody to say no.

use http::{Response, StatusCode};
use weir_api::resource::EVICTION;
use weir_api::{Status, status};

use crate::response::{self, Body};
use crate::server::Server;
use crate::verbs::{DeleteOptions, Request, delete_object};

pub(super) async fn create(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let eviction = request.decode(EVICTION)?.object;
    let options = DeleteOptions::of_body(&eviction["deleteOptions"], &request.query)?;
    delete_object(&server.storage, path.row, (&path.namespace, &path.name), &options).await?;
    Ok(response::json(StatusCode::CREATED, &status::success(201), false))
}
