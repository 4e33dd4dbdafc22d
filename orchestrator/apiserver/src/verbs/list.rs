//! GET of a collection.
//!
//! A list is of one revision, whole: a page after the first is of the first one's revision, for as long as the cache can
//! go back to it. The items are sent from the cache's bytes; no list is ever built in memory.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weir_api::selector::{FieldSelector, LabelSelector};
use weir_api::{Resource, Status, table};

use super::{Request, freshen};
use crate::cache::{Expired, Object, Selection};
use crate::keys;
use crate::request::Version;
use crate::response::{self, Body, Form};
use crate::server::Server;
use crate::storage::from_stored;

/// Bytes of one piece of a list's body; a larger object is a piece of its own.
const CHUNK_BYTES: usize = 32 << 10;

/// What a list or watch is narrowed to.
pub(crate) struct Filter {
    row: &'static Resource,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Filter {
    pub(crate) fn parse(request: &Request) -> Result<Filter, Status> {
        let row = request.row();
        let mut fields = request.query.field_selector.clone();
        // A watch of one object by its path is a watch of the collection with that name.
        if !request.path.name.is_empty() {
            if !fields.is_empty() {
                fields.push(',');
            }
            fields.push_str("metadata.name=");
            fields.push_str(&request.path.name);
        }
        Ok(Filter {
            row,
            labels: LabelSelector::parse(&request.query.label_selector)?,
            fields: FieldSelector::parse(row, &fields)?,
        })
    }

    /// Whether it takes everything.
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        if !self.labels.matches_object(object.selectable()) {
            return false;
        }
        if self.fields.is_empty() || keys::is_own_storage(self.row) {
            self.fields.matches(object.selectable())
        } else {
            // The fields of a view have other names than those of what is stored.
            self.fields.matches(&from_stored(self.row, object.value()))
        }
    }
}

/// Where a list goes on. Opaque to clients.
#[derive(Deserialize, Serialize)]
struct Continue {
    /// The revision of the first page.
    rv: u64,
    /// The last key of the page before.
    after: String,
}

impl Continue {
    fn parse(token: &str) -> Result<Continue, Status> {
        let parsed = URL_SAFE_NO_PAD.decode(token).ok().and_then(|json| serde_json::from_slice(&json).ok());
        parsed.ok_or_else(|| {
            Status::bad_request("continue key is not valid: it must be the one of the page before")
        })
    }

    fn to_token(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("two fields can be written"))
    }
}

/// A list, or a page of one, as of one revision.
pub(super) struct Page {
    pub(super) objects: Vec<Arc<Object>>,
    pub(super) revision: u64,
    next: Option<Continue>,
    remaining: usize,
}

/// Reads what a request wants of the cache.
pub(super) async fn read(server: &Server, request: &Request, filter: &Filter) -> Result<Page, Status> {
    let query = &request.query;
    let cache = server.storage.cache.of(request.row()).ok_or_else(Status::unknown_path)?;
    let continued = match query.continue_token.as_str() {
        "" => None,
        token => Some(Continue::parse(token)?),
    };
    let mut exact = match (&continued, query.version()?) {
        (Some(continued), _) => Some(continued.rv),
        (None, Version::Exact(revision)) => Some(revision),
        (None, version) => {
            freshen(server, version).await?;
            None
        }
    };
    if let Some(revision) = exact {
        freshen(server, Version::Exact(revision)).await?;
    }
    loop {
        // Not simply "now": the cache may be in the middle of taking in a later transaction.
        let revision = exact.unwrap_or_else(|| server.storage.cache.revision());
        let selection = Selection {
            namespace: Some(request.path.namespace.as_str()).filter(|namespace| !namespace.is_empty()),
            after: continued.as_ref().map(|continued| continued.after.as_str()),
            at: Some(revision),
            limit: query.limit,
        };
        match cache.list(&selection, |object| filter.matches(object)) {
            Ok(listing) => {
                let last = listing.objects.last().filter(|_| listing.remaining > 0);
                let next = last.map(|last| Continue { rv: revision, after: last.key.to_string() });
                let remaining = if filter.is_empty() { listing.remaining } else { 0 };
                return Ok(Page { objects: listing.objects, revision, next, remaining });
            }
            Err(Expired { oldest }) => match (&continued, exact.take()) {
                (Some(_), _) => {
                    return Err(Status::expired(
                        "The provided continue parameter is too old to display a consistent list result. \
                         You must start a new list without the continue parameter.",
                    ));
                }
                (None, Some(revision)) => return Err(too_old(revision, oldest)),
                // The present became the past while it was being read: look again.
                (None, None) => tokio::task::yield_now().await,
            },
        }
    }
}

/// What a client is told that asks for a revision that is not kept.
pub(super) fn too_old(revision: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {revision} ({oldest})"))
}

pub(super) async fn list(server: &Server, request: &Request) -> Result<Response<Body>, Status> {
    let row = request.row();
    let filter = Filter::parse(request)?;
    let page = read(server, request, &filter).await?;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), page.revision.to_string().into());
    if let Some(next) = &page.next {
        metadata.insert("continue".to_owned(), next.to_token().into());
        if page.remaining > 0 {
            metadata.insert("remainingItemCount".to_owned(), page.remaining.into());
        }
    }
    let pretty = response::is_pretty(request.query.pretty, &request.headers);
    let values = || page.objects.iter().map(|object| from_stored(row, object.value()));
    let kind = format!("{}List", row.kind);
    let rendered = match Form::negotiate(&request.headers)? {
        Form::Object if !pretty && keys::is_own_storage(row) => {
            let head = format!(
                r#"{{"kind":"{kind}","apiVersion":"{}","metadata":{},"items":["#,
                row.api_version(),
                Value::Object(metadata)
            );
            let chunks = Chunks { objects: page.objects.into_iter(), before: Some(head.into()) };
            return Ok(response::json_body(StatusCode::OK, response::stream(stream::iter(chunks))));
        }
        Form::Object => json!({
            "kind": kind, "apiVersion": row.api_version(), "metadata": metadata, "items": values().collect::<Vec<_>>(),
        }),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": values().map(|value| table::partial(&value)).collect::<Vec<_>>(),
        }),
        Form::Table => {
            let values: Vec<Value> = values().collect();
            let mut rendered = table::render(row, &values, Timestamp::now(), request.include()?);
            rendered["metadata"] = Value::Object(metadata);
            rendered
        }
    };
    Ok(response::json(StatusCode::OK, &rendered, pretty))
}

/// The body of a list, made as it is sent: small objects together, so that a piece is worth a write.
struct Chunks {
    objects: std::vec::IntoIter<Arc<Object>>,
    /// What stands before the next object: the list's head, then commas. `None` once the list is closed.
    before: Option<Bytes>,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut before = self.before.take()?;
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        for object in self.objects.by_ref() {
            chunk.extend_from_slice(&before);
            chunk.extend_from_slice(&object.json);
            before = Bytes::from_static(b",");
            if chunk.len() >= CHUNK_BYTES {
                self.before = Some(before);
                return Some(chunk.freeze());
            }
        }
        if before.len() > 1 {
            chunk.extend_from_slice(&before);
        }
        chunk.extend_from_slice(b"]}\n");
        Some(chunk.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_one_document_however_many_objects() {
        let row = weir_api::resource::find("", "v1", "configmaps").expect("served");
        for (count, size) in [(0, 0), (1, 10), (3, CHUNK_BYTES), (1000, 100)] {
            let objects: Vec<_> = (0..count)
                .map(|number| {
                    let value =
                        json!({"metadata": {"name": number.to_string()}, "data": {"x": "y".repeat(size)}});
                    Arc::new(Object::new(row, number.to_string().into(), 1, value))
                })
                .collect();
            let chunks = Chunks { objects: objects.into_iter(), before: Some(r#"{"items":["#.into()) };
            let pieces: Vec<Bytes> = chunks.collect();
            assert!(pieces.iter().all(|piece| piece.len() < 2 * CHUNK_BYTES + 1000));
            let whole: Value = serde_json::from_slice(&pieces.concat()).expect("it is JSON");
            assert_eq!(whole["items"].as_array().map(Vec::len), Some(count));
        }
    }
}
