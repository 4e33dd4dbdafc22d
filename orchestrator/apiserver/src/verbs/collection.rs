//! DELETE of a collection: each selected object, one by one, as if it had been deleted alone.

use futures::{StreamExt, TryStreamExt, stream};
use http::{Response, StatusCode};
use serde_json::json;
use weir_api::Status;

use super::list::{Filter, read};
use super::{DeleteOptions, Request, delete_object};
use crate::response::{self, Body};
use crate::server::Server;

/// Deletions that are under way at the same time. They share the store's commits.
const PARALLEL: usize = 16;

pub(super) async fn delete(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let row = request.row();
    let options = DeleteOptions::of_request(request)?;
    let filter = Filter::parse(request)?;
    let page = read(server, request, &filter).await?;
    let storage = &server.storage;
    let revision = page.revision;
    // Each deletion owns its object: a future that borrows from the list would not be `Send` for every lifetime.
    let deletions = page.objects.into_iter().map(|found| {
        let options = &options;
        async move {
            let value = crate::storage::from_stored(row, found.value());
            let id = (weir_api::object::namespace(&value), weir_api::object::name(&value));
            match delete_object(storage, row, id, options).await {
                Ok(changed) => Ok(Some(changed.into_value())),
                // Somebody else was faster.
                Err(status) if status.code == 404 => Ok(None),
                Err(status) => Err(status),
            }
        }
    });
    let deleted: Vec<_> = stream::iter(deletions).buffer_unordered(PARALLEL).try_collect().await?;
    let list = json!({
        "kind": format!("{}List", row.kind),
        "apiVersion": row.api_version(),
        "metadata": { "resourceVersion": revision.to_string() },
        "items": deleted.into_iter().flatten().collect::<Vec<_>>(),
    });
    Ok(response::json(StatusCode::OK, &list, response::is_pretty(request.query.pretty, &request.headers)))
}
