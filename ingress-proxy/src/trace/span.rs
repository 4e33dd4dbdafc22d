//! What is said of a request in a trace: attributes by OpenTelemetry's conventions for HTTP servers, and Weir's own below
//! `weir.`.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::Trace;
use crate::access_log::Line;

/// Methods that the conventions know; others are `_OTHER`, so that clients make no names.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];

/// The span of a request that is over.
pub(super) fn span(trace: &Trace, line: &Line<'_>, scope: &InstrumentationScope) -> SpanData {
    let method = METHODS.into_iter().find(|known| *known == line.method);
    let millis = u64::try_from(line.time_ms).unwrap_or_default();
    let start_time = UNIX_EPOCH + Duration::from_millis(millis);
    let took = Duration::from_micros(u64::try_from(line.duration_us).unwrap_or(u64::MAX));
    SpanData {
        span_context: SpanContext::new(
            trace.id,
            trace.span,
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: trace.parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: trace.parent.is_some(),
        span_kind: SpanKind::Server,
        name: Cow::Borrowed(method.unwrap_or("HTTP")),
        start_time,
        end_time: start_time.checked_add(took).unwrap_or_else(SystemTime::now),
        attributes: attributes(method, line),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match line.status {
            500.. => Status::error(line.reason.unwrap_or_default().to_owned()),
            _ => Status::Unset,
        },
        instrumentation_scope: scope.clone(),
    }
}

fn attributes(method: Option<&'static str>, line: &Line<'_>) -> Vec<KeyValue> {
    let text = |text: &str| Value::from(text.to_owned());
    let number = |number: usize| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
    let (path, query) =
        line.path.split_once('?').map_or((line.path, None), |(path, query)| (path, Some(query)));
    let (protocol, version) = line.proto.split_once('/').unwrap_or((line.proto, ""));
    let mut all = vec![
        KeyValue::new("http.request.method", method.unwrap_or("_OTHER")),
        KeyValue::new("url.scheme", if line.tls { "https" } else { "http" }),
        KeyValue::new("url.path", text(path)),
        KeyValue::new("server.address", text(line.host)),
        KeyValue::new("client.address", text(line.client)),
        KeyValue::new("network.protocol.name", protocol.to_ascii_lowercase()),
        KeyValue::new("network.protocol.version", text(version)),
        KeyValue::new("http.request.body.size", number(line.bytes_in)),
        KeyValue::new("http.response.body.size", number(line.bytes_out)),
        KeyValue::new("weir.request_id", text(line.id)),
        KeyValue::new("weir.ingress", text(line.ingress)),
        KeyValue::new("weir.service", text(line.service)),
        KeyValue::new("weir.attempts", i64::from(line.attempts)),
    ];
    let mut more = |name: &'static str, value: Option<Value>| {
        all.extend(value.map(|value| KeyValue::new(name, value)));
    };
    more("url.query", query.map(text));
    more("http.request.method_original", Some(text(line.method)).filter(|_| method.is_none()));
    more("user_agent.original", Some(text(line.user_agent)).filter(|_| !line.user_agent.is_empty()));
    more("weir.endpoint", line.endpoint.map(|endpoint| Value::from(endpoint.to_string())));
    more("weir.reason", line.reason.map(text));
    match line.status {
        0 => more("error.type", Some(text("client_gone"))),
        status => {
            more("http.response.status_code", Some(Value::from(i64::from(status))));
            more("error.type", Some(Value::from(status.to_string())).filter(|_| status >= 500));
        }
    }
    all
}
