//! Watches: every change of what a client selected, in order, without a gap.
//!
//! A watch is a revision and a place in the cache's events; it owns no queue. It reads at the client's pace, and if the
//! cache forgets events before a slow client took them, the watch ends with `410 Expired`: it is dropped and can never
//! skip. It sleeps until its resource changes, a bookmark is due, its time is over, or the server stops.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{Response, StatusCode};
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use weir_api::table::{self, IncludeObject};
use weir_api::{Status, object};

use super::list::{Filter, too_old};
use super::{Request, freshen};
use crate::cache::{Event, Expired, Object, Selection};
use crate::keys;
use crate::metrics::{Counted, ResourceLabels};
use crate::request::Version;
use crate::response::{self, Body, Form};
use crate::server::Server;
use crate::storage::from_stored;

/// How often a watch that wants bookmarks gets one; upstream's interval.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);
/// How long a watch runs that does not say; upstream's minimum, spread to twice that so that not all end together.
const TIMEOUT_MIN: Duration = Duration::from_mins(30);
/// Bytes after which a piece is sent, though more events wait.
const CHUNK_BYTES: usize = 64 << 10;

/// Why a watch is over.
#[derive(Clone, Copy)]
enum EndOfWatch {
    /// It went on for as long as it was to.
    Timeout,
    /// The server stops.
    Shutdown,
}

pub(super) async fn watch(server: &Arc<Server>, request: Request) -> Result<Response<Body>, Status> {
    let filter = Filter::parse(&request)?;
    let form = Form::negotiate(&request.headers)?;
    let query = &request.query;
    let initial = check_initial(&request)?;
    let row = request.row();
    let cache = server.storage.cache.of(row).ok_or_else(Status::unknown_path)?;
    let labels = ResourceLabels { resource: row.plural };
    let timeout = query.timeout_seconds.filter(|seconds| *seconds > 0);
    let timeout = timeout.map_or_else(default_timeout, Duration::from_secs);
    let include = request.include()?;

    let mut watcher = Watcher {
        changed: cache.subscribe(),
        server: Arc::clone(server),
        filter,
        form,
        include,
        cursor: 0,
        initial: VecDeque::new(),
        announce_initial_end: initial && query.send_initial_events == Some(true),
        bookmarks: query.bookmarks,
        bookmark_at: Instant::now() + BOOKMARK_EVERY,
        ends_at: Instant::now() + timeout,
        shutdown: server.shutdown.clone(),
        columns_sent: false,
        over: false,
        _running: Counted::new(&server.metrics.watchers.get_or_create(&labels)),
        request,
    };
    let start = match watcher.request.query.resource_version {
        None => freshen(server, Version::Newest).await?,
        Some(revision) if initial => freshen(server, Version::NotOlderThan(revision)).await?,
        Some(revision) => revision,
    };
    watcher.cursor = start;
    if initial {
        watcher.take_initial()?;
    } else if let Err(Expired { oldest }) = cache.events_after(start) {
        return Ok(response::json_body(StatusCode::OK, response::full(error_line(&too_old(start, oldest)))));
    }
    let body = response::stream(stream::unfold(watcher, async |mut watcher| {
        let chunk = watcher.next().await?;
        Some((chunk, watcher))
    }));
    Ok(response::json_body(StatusCode::OK, body))
}

/// Whether the watch begins with what is there (KEP-3157, and before it every watch without a revision).
fn check_initial(request: &Request) -> Result<bool, Status> {
    let query = &request.query;
    let invalid = |why: &str| Status {
        code: 422,
        reason: "Invalid",
        message: format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"),
        ..Status::default()
    };
    match query.send_initial_events {
        Some(wanted) => {
            if query.resource_version_match != "NotOlderThan" {
                return Err(invalid(
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                                    resourceVersionMatch to NotOlderThan",
                ));
            }
            Ok(wanted)
        }
        None if !query.resource_version_match.is_empty() => Err(invalid(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless \
                         sendInitialEvents is provided",
        )),
        None => Ok(matches!(query.resource_version, None | Some(0))),
    }
}

fn default_timeout() -> Duration {
    let mut random = [0; 2];
    // Without randomness the watches end together, which is a burst and not a failure.
    let _ = SystemRandom::new().fill(&mut random);
    TIMEOUT_MIN.mul_f64(1.0 + f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX))
}

#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own: none excludes another")]
struct Watcher {
    server: Arc<Server>,
    request: Request,
    filter: Filter,
    form: Form,
    include: IncludeObject,
    changed: signal::Receiver<u64>,
    /// Everything up to this revision has been sent.
    cursor: u64,
    /// What was there at the start and is still to be sent.
    initial: VecDeque<Arc<Object>>,
    announce_initial_end: bool,
    bookmarks: bool,
    bookmark_at: Instant,
    ends_at: Instant,
    shutdown: CancellationToken,
    /// A Table's columns go with its first row only.
    columns_sent: bool,
    over: bool,
    _running: Counted,
}

impl Watcher {
    /// Reads the state at `cursor`, or at the newest if that is past.
    fn take_initial(&mut self) -> Result<(), Status> {
        let cache = self.server.storage.cache.of(self.request.row()).ok_or_else(Status::unknown_path)?;
        let namespace = Some(self.request.path.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        self.cursor = self.cursor.max(self.server.storage.cache.revision());
        let selection = Selection { namespace, at: Some(self.cursor), ..Selection::default() };
        let listing = cache
            .list(&selection, |object| self.filter.matches(object))
            .map_err(|Expired { oldest }| too_old(self.cursor, oldest))?;
        self.initial = listing.objects.into();
        Ok(())
    }

    /// The next piece of the body; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            if let Some(chunk) = self.initial_chunk() {
                return Some(chunk);
            }
            // Marked as seen before reading, so that a change in between wakes the wait below.
            self.changed.borrow_and_update();
            match self.chunk() {
                Ok(Some(chunk)) => return Some(chunk),
                Ok(None) => {}
                Err(expired) => return Some(self.drop_slow(&expired)),
            }
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return None },
                () = sleep_until(self.bookmark_at), if self.bookmarks => {
                    self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                    if let Some(bookmark) = self.bookmark(false) {
                        return Some(bookmark);
                    }
                }
                () = sleep_until(self.ends_at) => return self.end(EndOfWatch::Timeout),
                () = self.shutdown.cancelled() => return self.end(EndOfWatch::Shutdown),
            }
        }
    }

    fn initial_chunk(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK_BYTES
            && let Some(object) = self.initial.pop_front()
        {
            self.write(&mut chunk, "ADDED", &object);
        }
        if self.initial.is_empty() && std::mem::take(&mut self.announce_initial_end) {
            chunk.extend_from_slice(&self.bookmark(true).unwrap_or_default());
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    /// The events after the cursor; `None` when nothing that the client selected has changed.
    fn chunk(&mut self) -> Result<Option<Bytes>, Expired> {
        let mut chunk = BytesMut::new();
        loop {
            let server = Arc::clone(&self.server);
            let Some(cache) = server.storage.cache.of(self.request.row()) else { return Ok(None) };
            let events = cache.events_after(self.cursor)?;
            let Some(last) = events.last() else { break };
            let last = last.revision;
            for event in &events {
                self.write_event(&mut chunk, event);
            }
            self.cursor = last;
            if chunk.len() >= CHUNK_BYTES {
                break;
            }
        }
        Ok((!chunk.is_empty()).then(|| chunk.freeze()))
    }

    /// Writes what an event means to this client: an object that leaves the selection is gone, one that enters is new.
    fn write_event(&mut self, chunk: &mut BytesMut, event: &Event) {
        let namespace = &self.request.path.namespace;
        if !namespace.is_empty() && event.object.key.split_once('/').is_none_or(|(own, _)| own != namespace) {
            return;
        }
        let was = event.previous.as_ref().is_some_and(|object| self.filter.matches(object));
        let is = !event.deleted && self.filter.matches(&event.object);
        match (was, is, &event.previous) {
            (false, true, _) => self.write(chunk, "ADDED", &event.object),
            (true, true, _) => self.write(chunk, "MODIFIED", &event.object),
            (true, false, _) if event.deleted => self.write(chunk, "DELETED", &event.object),
            (true, false, Some(previous)) => self.write(chunk, "DELETED", &previous.at(event.revision)),
            _ => {}
        }
    }

    fn write(&mut self, chunk: &mut BytesMut, kind: &str, object: &Object) {
        chunk.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        let row = self.request.row();
        if self.form == Form::Object && keys::is_own_storage(row) {
            chunk.extend_from_slice(&object.json);
        } else {
            let value = from_stored(row, object.value());
            chunk.extend_from_slice(self.render(value).to_string().as_bytes());
        }
        chunk.extend_from_slice(b"}\n");
    }

    fn render(&mut self, value: Value) -> Value {
        match self.form {
            Form::Object => value,
            Form::Metadata => table::partial(&value),
            Form::Table => {
                let mut rendered =
                    table::render(self.request.row(), [&value], Timestamp::now(), self.include);
                rendered["metadata"]["resourceVersion"] = object::resource_version(&value).into();
                if std::mem::replace(&mut self.columns_sent, true) {
                    rendered["columnDefinitions"] = Value::Null;
                }
                rendered
            }
        }
    }

    /// Tells the client how far it has come. `None` if there are events it must see first.
    fn bookmark(&mut self, initial_end: bool) -> Option<Bytes> {
        if !initial_end {
            // The revision first: the cache takes events in before it moves on to their revision.
            let revision = self.server.storage.cache.revision();
            let cache = self.server.storage.cache.of(self.request.row())?;
            if cache.events_after(self.cursor).map_or(true, |events| !events.is_empty()) {
                return None;
            }
            self.cursor = self.cursor.max(revision);
        }
        let row = self.request.row();
        let mut metadata = json!({ "resourceVersion": self.cursor.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mut bookmark = json!({ "kind": row.kind, "apiVersion": row.api_version(), "metadata": metadata });
        if self.form == Form::Metadata {
            bookmark = table::partial(&bookmark);
        } else if self.form == Form::Table {
            bookmark = json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": { "resourceVersion": self.cursor.to_string() },
                "columnDefinitions": null, "rows": [],
            });
        }
        Some(response::line(&json!({ "type": "BOOKMARK", "object": bookmark })))
    }

    /// The last words: a bookmark, so that the client comes back to where it was.
    fn end(&mut self, end: EndOfWatch) -> Option<Bytes> {
        self.over = true;
        match end {
            EndOfWatch::Timeout if self.bookmarks => self.bookmark(false),
            EndOfWatch::Timeout | EndOfWatch::Shutdown => None,
        }
    }

    fn drop_slow(&mut self, expired: &Expired) -> Bytes {
        self.over = true;
        let labels = ResourceLabels { resource: self.request.row().plural };
        self.server.metrics.watchers_dropped.get_or_create(&labels).inc();
        let status = too_old(self.cursor, expired.oldest);
        error_line(&status)
    }
}

fn error_line(status: &Status) -> Bytes {
    response::line(&json!({ "type": "ERROR", "object": status.to_value() }))
}
