//! Responses: bodies, media types, and the forms in which a client may ask for an object.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WARNING};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::Value;
use weir_api::Status;

/// The body of every response. It cannot fail: a stream that goes wrong says so in its own words and ends.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Warnings of one response; more than this would only bloat the headers.
const WARNINGS_MAX: usize = 20;

/// A body that is known whole.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body that comes piece by piece.
pub(crate) fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// A response of JSON that is already written.
pub(crate) fn json_body(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A response of `value`; with a line break at its end, as upstream has, and indented if people read it.
pub(crate) fn json(code: StatusCode, value: &impl Serialize, pretty: bool) -> Response<Body> {
    let written = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut bytes = written.expect("a JSON value can be written");
    bytes.push(b'\n');
    json_body(code, full(bytes))
}

/// A response of plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The response that says no.
pub(crate) fn failure(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_value(), false);
    if status.retry_after_seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(status.retry_after_seconds));
    }
    response
}

/// Adds what the client should know, though its request was fulfilled (RFC 7234, code 299, as kubectl reads it).
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// The form in which a client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Object,
    /// A `meta.k8s.io/v1` Table.
    Table,
    /// Type and metadata only.
    Metadata,
}

impl Form {
    /// The first form of an Accept header that can be served. What cannot be written, such as protobuf, is passed over;
    /// a header that leaves nothing is an error.
    pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Form, Status> {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        let form = accept.split(',').find_map(|choice| {
            let mut parts = choice.split(';').map(str::trim);
            if !matches!(parts.next()?, "application/json" | "*/*" | "application/*" | "") {
                return None;
            }
            let mut wanted = Form::Object;
            for part in parts {
                match part.split_once('=') {
                    Some(("as", "Table")) => wanted = Form::Table,
                    Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                        wanted = Form::Metadata;
                    }
                    // Another version of these documents is not served, nor is any other document.
                    Some(("v", "v1") | ("g", "meta.k8s.io")) => {}
                    Some(("as" | "v" | "g", _)) => return None,
                    _ => {}
                }
            }
            Some(wanted)
        });
        form.ok_or_else(|| Status::not_acceptable(&["application/json"]))
    }
}

/// Whether people read the answer: asked for, or a browser's or curl's habit as upstream guesses it.
pub(crate) fn is_pretty(query: bool, headers: &HeaderMap) -> bool {
    let agent = headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
    query || agent.starts_with("curl") || agent.starts_with("Wget") || agent.starts_with("Mozilla/5.0")
}

/// A piece of a newline-delimited stream.
pub(crate) fn line(value: &Value) -> Bytes {
    let mut line = value.to_string();
    line.push('\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_negotiated() {
        let table = [
            ("", Some(Form::Object)),
            ("application/json", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Object)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table)),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Some(Form::Object)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Metadata)),
            ("application/json, */*", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf", None),
        ];
        for (accept, form) in table {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Form::negotiate(&headers).ok(), form, "{accept}");
        }
    }
}
