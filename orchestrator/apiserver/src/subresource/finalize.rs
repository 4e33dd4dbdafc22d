//! `namespaces/finalize`: the namespace controller says that the content is gone.

use http::{Response, StatusCode};
use weir_api::{Status, object};

use crate::response::Body;
use crate::server::Server;
use crate::storage::{Change, revision};
use crate::verbs::{Request, check_name, is_finished};

pub(super) async fn update(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let path = &request.path;
    let mut wish = request.decode(path.row.target())?.object;
    check_name(&mut wish, &path.name)?;
    let changed = server.storage.change(path.row, ("", &path.name), request.query.dry_run, |old| {
        let wanted = object::resource_version(&wish);
        if !wanted.is_empty() && wanted.parse() != Ok(revision(old)) {
            return Err(Status::stale(path.row, &path.name));
        }
        let mut new = old.clone();
        object::copy(&mut new, &wish, &["spec", "finalizers"]);
        Ok(if is_finished(path.row, &new) { Change::Remove(new) } else { Change::Put(new) })
    });
    request.answer(StatusCode::OK, &changed.await?.into_value())
}
