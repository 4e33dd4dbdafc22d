//! One request: who, what, may they, do it, count it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use weir_api::Status;
use weir_api::codec::BODY_LIMIT_BYTES;

use crate::authn::{Authenticator, User};
use crate::authz::{self, Action};
use crate::kubelet;
use crate::metrics::{Counted, Metrics, RequestLabels};
use crate::request::{Query, Target};
use crate::response::{self, Body};
use crate::storage::Storage;
use crate::{paths, subresource, verbs};

/// When a client that was refused for too many requests should try again.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Everything that requests are served from.
pub(crate) struct Server {
    pub(crate) storage: Storage,
    pub(crate) authenticator: Authenticator,
    pub(crate) kubelet: kubelet::Client,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Registry,
    /// Where clients find this server.
    pub(crate) address: SocketAddr,
    pub(crate) in_flight: Semaphore,
    pub(crate) shutdown: CancellationToken,
    pub(crate) failed: AtomicBool,
}

/// What a request is, for the log and the metrics.
#[derive(Clone, Copy)]
struct Label {
    verb: &'static str,
    resource: &'static str,
    subresource: &'static str,
}

impl Server {
    /// Whether the store has stopped under us.
    pub(crate) fn store_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Serves a request over a connection whose certificate named `peer`.
    pub(crate) async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Option<Arc<User>>,
    ) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let mut label = Label { verb: "other", resource: "", subresource: "" };
        let result = self.answer(&parts, body, peer.as_deref(), &mut label).await;
        let response = result.unwrap_or_else(|status| {
            tracing::debug!(method = %parts.method, uri = %parts.uri, code = status.code, message = %status.message, "refused");
            response::failure(&status)
        });
        let code = response.status().as_u16();
        let Label { verb, resource, subresource } = label;
        let labels = RequestLabels { verb, resource, subresource, code };
        self.metrics.answered(&labels, started.elapsed());
        response
    }

    async fn answer(
        self: &Arc<Self>,
        parts: &Parts,
        body: Incoming,
        peer: Option<&User>,
        label: &mut Label,
    ) -> Result<Response<Body>, Status> {
        let user = self.authenticator.authenticate(peer, &parts.headers, &self.storage.cache)?;
        let target = Target::of_path(parts.uri.path());
        let raw_query = parts.uri.query().unwrap_or("");
        let query = Query::parse(raw_query)?;
        let target = match target {
            Ok(target) => target,
            // Who may not see what is there is not told what is not.
            Err(status) => {
                let action = Action::Path { verb: verb_of_path(&parts.method), path: parts.uri.path() };
                return Err(if user.is_in(crate::authn::AUTHENTICATED) {
                    status
                } else {
                    authz::refusal(&user, &action)
                });
            }
        };
        *label = label_of(&parts.method, &target, &query);
        authorize(&user, &target, label)?;

        let is_long = label.verb == "watch" || label.subresource == "log";
        let _permit = if is_long { None } else { Some(self.admit()?) };
        match target {
            Target::Path(path) => {
                if parts.method != Method::GET && parts.method != Method::HEAD {
                    return Err(Status::unknown_path());
                }
                paths::serve(self, &path, &query, &parts.headers).await
            }
            Target::Resource(path) => {
                let body = read_body(body).await?;
                let headers = parts.headers.clone();
                let raw_query = raw_query.to_owned();
                let request = verbs::Request { path, query, headers, body, user, raw_query };
                match request.path.subresource {
                    Some(below) => subresource::serve(self, label.verb, below.name, request).await,
                    None => verbs::serve(self, label.verb, request).await,
                }
            }
        }
    }

    /// Takes one of the places for requests in flight.
    fn admit(&self) -> Result<(tokio::sync::SemaphorePermit<'_>, Counted), Status> {
        let Ok(permit) = self.in_flight.try_acquire() else {
            self.metrics.refused.inc();
            let message = "too many requests are in flight, please try again later";
            return Err(Status::too_many_requests(message, RETRY_AFTER_SECONDS));
        };
        Ok((permit, Counted::new(&self.metrics.in_flight)))
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Status> {
    match Limited::new(body, BODY_LIMIT_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(BODY_LIMIT_BYTES)),
        Err(error) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
    }
}

fn label_of(method: &Method, target: &Target, query: &Query) -> Label {
    let Target::Resource(path) = target else {
        return Label { verb: verb_of_path(method), resource: "", subresource: "" };
    };
    let is_collection = path.name.is_empty();
    let verb = match *method {
        Method::GET | Method::HEAD if query.watch && path.subresource.is_none() => "watch",
        Method::GET | Method::HEAD if is_collection => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if is_collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "other",
    };
    let subresource = path.subresource.map_or("", |subresource| subresource.name);
    Label { verb, resource: path.row.plural, subresource }
}

fn verb_of_path(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

fn authorize(user: &User, target: &Target, label: &Label) -> Result<(), Status> {
    let resource;
    let action = match target {
        Target::Path(path) => Action::Path { verb: label.verb, path },
        Target::Resource(path) => {
            resource = match label.subresource {
                "" => path.row.plural.to_owned(),
                subresource => format!("{}/{subresource}", path.row.plural),
            };
            Action::Resource {
                verb: label.verb,
                group: path.row.group,
                resource: &resource,
                namespace: &path.namespace,
                name: &path.name,
            }
        }
    };
    if authz::authorize(user, &action) { Ok(()) } else { Err(authz::refusal(user, &action)) }
}
