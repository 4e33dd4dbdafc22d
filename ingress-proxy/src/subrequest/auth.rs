//! Asking authentication servers.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header};
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout};

use super::client::SendError;
use super::metrics::AuthOutcome;
use super::{Subrequests, read_rest};
use crate::policy::{Asker, Heard, Question};
use crate::proxy::RequestId;

/// Who asks for one request.
struct AskingFor<'s> {
    subrequests: &'s Subrequests,
    id: &'s RequestId,
}

impl Subrequests {
    /// Asks for the request of this id.
    pub(crate) fn asker<'s>(&'s self, id: &'s RequestId) -> impl Asker + 's {
        AskingFor { subrequests: self, id }
    }
}

impl Asker for AskingFor<'_> {
    /// Ends with the wait that the rule or the configuration has for answers. Dropped, the connection goes with it.
    async fn ask(&self, question: &Question) -> Heard {
        let Subrequests { questions, cache, wait, metrics, .. } = self.subrequests;
        let started = Instant::now();
        let digest = question.cache_key.as_deref().map(|key| cache.digest(key));
        if let Some(known) = digest.as_ref().and_then(|digest| cache.get(digest, started)) {
            metrics.asked(AuthOutcome::Remembered);
            return Heard::Answer(known);
        }
        let settings = &question.settings;
        let Some(place) = questions.take(&settings.group) else {
            metrics.asked(AuthOutcome::Busy);
            return Heard::Busy;
        };
        let answered = timeout(question.wait.unwrap_or(*wait), self.send(question)).await;
        metrics.took(started.elapsed());
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                tracing::debug!(%error, url = %question.request.uri(), "an authentication server did not answer");
                metrics.asked(AuthOutcome::Unreachable);
                return Heard::Nothing(match error {
                    SendError::Roots(_) => {
                        "cannot be asked: this machine has no root certificates to check its own"
                    }
                    _ if error.is_after_connecting() => "closed the connection without an answer",
                    SendError::Exchange(_) => "could not be reached",
                });
            }
            Err(_) => {
                metrics.asked(AuthOutcome::Late);
                return Heard::Nothing("did not answer in time");
            }
        };
        let (parts, body) = response.into_parts();
        if !body.is_end_stream() {
            tokio::spawn(async move {
                read_rest(body).await;
                drop(place);
            });
        }
        let status = parts.status.as_u16();
        let answer = Arc::new(settings.keep(status, &parts.headers));
        let lifetime =
            settings.caching.as_ref().and_then(|caching| caching.lifetimes.of(status, &parts.headers));
        if let Some((digest, lifetime)) = digest.zip(lifetime) {
            cache.put(digest, Instant::now() + lifetime, &answer);
        }
        metrics.asked(match status {
            200..300 => AuthOutcome::Granted,
            401 | 403 => AuthOutcome::Refused,
            _ => AuthOutcome::Unexpected,
        });
        Heard::Answer(answer)
    }
}

impl AskingFor<'_> {
    /// A kept connection mostly breaks because the server had closed it; so what can be asked twice is asked once more.
    async fn send(&self, question: &Question) -> Result<Response<Incoming>, SendError> {
        let clients = &self.subrequests.clients;
        match clients.send(self.request(question)).await {
            Err(error) if error.is_after_connecting() && question.request.method().is_idempotent() => {
                clients.send(self.request(question)).await
            }
            answered => answered,
        }
    }

    fn request(&self, question: &Question) -> Request<Empty<Bytes>> {
        let mut request = question.request.clone().map(|()| Empty::new());
        if let Ok(id) = HeaderValue::from_bytes(self.id.as_bytes()) {
            request.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
        }
        // As many servers as there are hosts: their connections are not kept.
        if question.settings.url.is_at_own_host() {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        request
    }
}
