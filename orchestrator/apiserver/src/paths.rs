//! Everything that is not a resource: health, version, discovery, schemas, metrics.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};
use prometheus_client::encoding::text::encode;
use serde_json::{Value, json};
use weir_api::{Status, discovery, openapi};

use crate::metrics::ResourceLabels;
use crate::request::Query;
use crate::response::{self, Body};
use crate::server::Server;

/// The Kubernetes version whose API is served.
const MINOR: &str = "33";
const GIT_VERSION: &str = concat!("v1.33.0+weir.", env!("CARGO_PKG_VERSION"));

/// Answers a GET of `path`.
pub(crate) async fn serve(
    server: &Server,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let pretty = response::is_pretty(query.pretty, headers);
    let json = |value: Option<Value>| match value {
        Some(value) => Ok(response::json(StatusCode::OK, &value, pretty)),
        None => Err(Status::unknown_path()),
    };
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => health(server, path, query).await,
        ["version"] => json(Some(version())),
        ["metrics"] => metrics(server),
        [] => json(Some(json!({ "paths": PATHS }))),
        ["api"] if wants_aggregated(headers) => Ok(aggregated(&discovery::aggregated_core(), headers)),
        ["apis"] if wants_aggregated(headers) => Ok(aggregated(&discovery::aggregated_groups(), headers)),
        ["api"] => json(Some(discovery::api_versions(&server.address.to_string()))),
        ["apis"] => json(Some(discovery::api_groups())),
        ["api", version] => json(discovery::api_resources("", version)),
        ["apis", group] => json(discovery::api_group(group)),
        ["apis", group, version] => json(discovery::api_resources(group, version)),
        ["openapi", "v3"] => json(Some(openapi::index())),
        ["openapi", "v3", "api", version] => schema(openapi::document("", version)),
        ["openapi", "v3", "apis", group, version] => schema(openapi::document(group, version)),
        _ => Err(Status::unknown_path()),
    }
}

const PATHS: &[&str] =
    &["/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"];

fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

/// The checks of each kind of health, in the order they are reported.
///
/// Live means that the process can do its work at all, ready that it should get any.
async fn health(server: &Server, path: &str, query: &Query) -> Result<Response<Body>, Status> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let kind = parts.next().unwrap_or_default();
    let one = parts.next();
    let store = server.storage.store.head().await.is_ok() && !server.store_failed();
    let mut checks = vec![("ping", true), ("store", store)];
    if kind != "livez" {
        let current = match server.storage.store.head().await {
            Ok(head) => server.storage.cache.wait_for(head.0).await,
            Err(_) => false,
        };
        checks.push(("watch-cache", current));
        checks.push(("shutdown", !server.shutdown.is_cancelled()));
    }
    if let Some(one) = one {
        checks.retain(|(name, _)| *name == one);
        if checks.is_empty() {
            return Err(Status::unknown_path());
        }
    }
    let good = checks.iter().all(|(_, good)| *good);
    let code = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if good && !query.verbose {
        return Ok(response::text(code, "ok"));
    }
    let mut text = String::new();
    for (name, good) in checks {
        let line = if good { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: see the log\n") };
        text.push_str(&line);
    }
    text.extend([kind, " check ", if good { "passed\n" } else { "failed\n" }]);
    Ok(response::text(code, text))
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    accept.split(',').any(|choice| {
        let has = |part: &str| choice.split(';').any(|own| own.trim() == part);
        has("application/json")
            && has("g=apidiscovery.k8s.io")
            && has("v=v2")
            && has("as=APIGroupDiscoveryList")
    })
}

/// Aggregated discovery, with the tag by which a client learns that nothing has changed.
fn aggregated(document: &Value, headers: &HeaderMap) -> Response<Body> {
    let bytes = Bytes::from(document.to_string());
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(digest));
    let unchanged = headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if unchanged {
        let mut response = Response::new(response::full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        response::json_body(StatusCode::OK, response::full(bytes))
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(discovery::AGGREGATED));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn schema(document: Option<Vec<u8>>) -> Result<Response<Body>, Status> {
    let document = document.ok_or_else(Status::unknown_path)?;
    Ok(response::json_body(StatusCode::OK, response::full(document)))
}

fn metrics(server: &Server) -> Result<Response<Body>, Status> {
    for cache in server.storage.cache.resources() {
        let labels = ResourceLabels { resource: cache.row.plural };
        let (objects, events) = cache.size();
        server.metrics.cached_objects.get_or_create(&labels).set(objects as i64);
        server.metrics.cached_events.get_or_create(&labels).set(events as i64);
    }
    let mut text = String::new();
    encode(&mut text, &server.registry).map_err(Status::internal)?;
    let mut response = response::text(StatusCode::OK, text);
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
