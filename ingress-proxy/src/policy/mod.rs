//! Policies: what a rule asks for besides its backend.
//!
//! A [`Policy`] is typed and checked when the table is compiled, and belongs to a target of the table. It knows no
//! protocol and no connection: both request paths show it the head through [`RequestHead`] and do what it decides.
//!
//! ```text
//! head ─▶ before ─▶ Answer(reply)                        closed, 403, redirect, 400, preflight, 503, 401, 413
//!             ├──▶ Verify ─▶ settled ─▶ reply or passage  (a password, on a thread for slow work)
//!             └──▶ Forward(passage) ─▶ endpoint ─▶ passage.after(response head)
//! ```
//!
//! **Order.** Who may come in is asked first, so that a closed rule tells nothing, not even where it redirects to; a client
//! certificate behind the redirect to HTTPS, without which there is none;
//! a CORS preflight, which comes without credentials, before anyone asks for them; limits before passwords, so that
//! guessing is limited.
//!
//! **Cost.** A rule without policies has none: one branch. Otherwise a request pays for the policies it has: lists of
//! networks are gone through, a rate is one look at one bucket, a remembered password one digest, a rewrite one match
//! of one pattern; a passage is one allocation.

mod access;
mod affinity;
mod auth;
mod canary;
mod client;
mod clients;
mod cors;
mod head;
mod limits;
mod passage;
mod redirect;
mod reply;
mod rewrite;
mod summary;
mod template;
mod upstream;
mod witness;

use std::num::NonZeroU64;
use std::sync::Arc;

use http::{HeaderValue, header};

pub(crate) use access::{MAX_NETWORKS, Sources};
pub(crate) use affinity::Affinity;
pub(crate) use auth::{BasicAuth, Users};
pub(crate) use canary::{Canary, HeaderRule};
pub(crate) use client::{Client, behind, is_in};
pub(crate) use clients::{ClientCertificates, Demand, Identity, Shown};
pub(crate) use cors::{Cors, MAX_ORIGINS, Origin, Origins};
pub(crate) use head::{RequestHead, ResponseHead, origin_form};
pub(crate) use limits::{Limits, Per, Rate};
pub(crate) use passage::Passage;
pub(crate) use redirect::{Redirects, ToHttps};
pub(crate) use reply::{By, Reply};
pub(crate) use rewrite::{Replacement, Rewrite};
pub(crate) use template::Template;
pub(crate) use upstream::{MAX_TRIES, Retry, Upstream};
pub(crate) use witness::Witness;

#[cfg(test)]
use head::fake;

use crate::metrics::PolicyMetrics;

/// What the rules of one Ingress have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Every request is answered with 503 and this reason: something that was to keep requests out cannot be served.
    pub(crate) closed: Option<Box<str>>,
    pub(crate) sources: Sources,
    pub(crate) redirects: Redirects,
    /// `Strict-Transport-Security`, for hosts with TLS.
    pub(crate) hsts: Option<HeaderValue>,
    pub(crate) cors: Option<Cors>,
    pub(crate) limits: Option<Limits>,
    pub(crate) auth: Option<BasicAuth>,
    /// `proxy-body-size` in bytes.
    pub(crate) body_limit: Option<NonZeroU64>,
    /// `upstream-vhost`.
    pub(crate) vhost: Option<HeaderValue>,
    /// `x-forwarded-prefix`, where the path is rewritten.
    pub(crate) prefix: Option<HeaderValue>,
    pub(crate) affinity: Option<Affinity>,
    /// `upstream-hash-by`.
    pub(crate) hash_by: Option<Template>,
    pub(crate) upstream: Upstream,
    /// `custom-http-errors`.
    pub(crate) error_statuses: Box<[u16]>,
}

impl Settings {
    /// Whether there is nothing to do for a host without TLS.
    pub(crate) fn are_idle_without_tls(&self) -> bool {
        let to_https = match self.redirects.to_https {
            ToHttps::Always => ToHttps::Always,
            ToHttps::WhenServed | ToHttps::Never => ToHttps::WhenServed,
        };
        let redirects = Redirects { to_https, ..self.redirects.clone() };
        Self { hsts: None, prefix: None, redirects, ..self.clone() } == Self::default()
    }
}

/// The policies of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) settings: Arc<Settings>,
    /// Some Ingress names a certificate for the rule's host.
    pub(crate) host_has_tls: bool,
    /// What the rule's host asks of its clients.
    pub(crate) clients: Option<Arc<ClientCertificates>>,
    /// TLS for the rule's host is the endpoints' affair: connections go to them as they are.
    pub(crate) passthrough: bool,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) canary: Option<Canary>,
}

/// What policies remember between requests; one for all request paths.
#[derive(Debug)]
pub(crate) struct Memory {
    rates: limits::Rates,
    places: Arc<limits::Places>,
    passwords: Arc<auth::Passwords>,
}

impl Memory {
    pub(crate) fn new(metrics: &PolicyMetrics) -> Self {
        Self {
            rates: limits::Rates::new(metrics.clients_forgotten.clone()),
            places: Arc::new(limits::Places::new(
                metrics.clients_counted.clone(),
                metrics.clients_uncounted.clone(),
            )),
            passwords: Arc::new(auth::Passwords::new()),
        }
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Decision {
    /// The client gets this.
    Answer(Reply),
    /// It is let in, if its password is right.
    Verify(auth::Check, Box<Passage>),
    /// It goes to an endpoint.
    Forward(Box<Passage>),
}

impl Decision {
    /// What is different about the request on its way, if it gets on its way.
    pub(crate) fn passage(&self) -> Option<&Passage> {
        match self {
            Self::Answer(_) => None,
            Self::Verify(_, passage) | Self::Forward(passage) => Some(passage),
        }
    }

    /// Waits for the verdict on a password, if there is one to wait for.
    pub(crate) async fn settled(self) -> Result<Box<Passage>, Reply> {
        match self {
            Self::Answer(reply) => Err(reply),
            Self::Forward(passage) => Ok(passage),
            Self::Verify(check, passage) => match check.run().await {
                Ok(()) => Ok(passage),
                Err(mut reply) => {
                    passage.policy.mark(&mut *reply.fields, passage.https, passage.origin.as_ref());
                    Err(reply)
                }
            },
        }
    }
}

impl Policy {
    /// Decides on a request before an endpoint is chosen. No I/O, and no clock but the client's.
    pub(crate) fn before(
        self: &Arc<Self>,
        head: &impl RequestHead,
        client: &Client,
        memory: &Memory,
    ) -> Decision {
        self.decide(head, client, memory, &mut ())
    }

    /// Decides, and lets a witness see it.
    pub(crate) fn decide<W: Witness>(
        self: &Arc<Self>,
        head: &impl RequestHead,
        client: &Client,
        memory: &Memory,
        witness: &mut W,
    ) -> Decision {
        let settings = &*self.settings;
        let origin = settings.cors.as_ref().and_then(|cors| cors.admit(head));
        let answer = |mut reply: Reply| {
            if reply.by != By::Cors {
                self.mark(&mut *reply.fields, client.https, origin.as_ref());
            }
            Decision::Answer(reply)
        };
        if let Some(why) = &settings.closed {
            return answer(Reply::new(503, By::Closed, why.to_string()));
        }
        if let Some(refusal) = settings.sources.answer(client) {
            return answer(refusal);
        }
        witness.passes("source range", || settings.sources.passes(client));
        if let Some(redirect) = settings.redirects.answer(head, client, self.host_has_tls) {
            return answer(redirect);
        }
        witness.passes("redirect", || settings.redirects.passes(head, client, self.host_has_tls));
        if let Some(clients) = &self.clients {
            // Who only asks has no connection to show a certificate on.
            match clients.answer(head, client).filter(|_| !W::ONLY_ASKS) {
                Some(refusal) => return answer(refusal),
                None => witness.passes("client certificate", || Some(clients.passes_when())),
            }
        }
        if let (Some(cors), Some(origin)) = (&settings.cors, &origin)
            && let Some(preflight) = cors.preflight(head, origin)
        {
            return answer(preflight);
        }
        witness.passes("cors", || settings.cors.as_ref().map(|_| Cors::passes(head, origin.is_some())));
        let admitted =
            settings.limits.as_ref().map(|l| l.admit(client, &memory.rates, &memory.places, W::ONLY_ASKS));
        let place = match admitted {
            None => None,
            Some(Ok(place)) => place,
            Some(Err(refusal)) => return answer(refusal),
        };
        witness.passes("limits", || settings.limits.as_ref().map(|limits| limits.passes(client)));
        let judged = settings.auth.as_ref().map(|auth| auth.judge(head, &memory.passwords, W::ONLY_ASKS));
        let open = match judged {
            None | Some(auth::Verdict::Right) => None,
            Some(auth::Verdict::Wrong(refusal)) => return answer(refusal),
            Some(auth::Verdict::Open(check)) => Some(check),
        };
        witness.passes("password", || settings.auth.as_ref().map(|_| BasicAuth::passes()));
        if let Some(limit) = settings.body_limit.filter(|limit| content_length(head) > limit.get()) {
            return answer(passage::too_large(limit.get()));
        }
        witness.passes("body size", || settings.body_passes(head));
        let target = match self.rewrite.as_ref().map(|rewrite| rewrite.apply(head.path(), head.query())) {
            None => None,
            Some(Ok(target)) => Some(target),
            Some(Err(error)) => {
                return answer(Reply::new(
                    400,
                    By::Rewrite,
                    format!("the rewritten path is refused: {error}"),
                ));
            }
        };
        witness.passes("rewrite", || target.as_ref().map(|to| format!("{} becomes {to}", origin_form(head))));
        let session = settings.affinity.as_ref().map(|affinity| affinity.session(head, client));
        let session_key = session.as_ref().map(|session| session.key);
        let sticky = session_key.filter(|_| settings.affinity.as_ref().is_some_and(|a| a.with_canary));
        witness
            .passes("affinity", || session.as_ref().zip(settings.affinity.as_ref()).map(|(s, a)| a.says(s)));
        witness.passes("canary", || self.canary.as_ref().map(|canary| canary.says(head, sticky.is_some())));
        let passage = Box::new(Passage {
            canary: self.canary.as_ref().is_some_and(|canary| canary.takes(head, client, sticky)),
            rank_by: session_key.or_else(|| settings.hash_by.as_ref().map(|text| text.hash(head, client))),
            set_cookie: session.and_then(|session| session.set),
            policy: Arc::clone(self),
            target,
            origin,
            https: client.https,
            identity: self
                .clients
                .as_ref()
                .map(|clients| clients.fields(head.identity()))
                .unwrap_or_default(),
            place,
        });
        match open {
            Some(check) => Decision::Verify(check, passage),
            None => Decision::Forward(passage),
        }
    }

    /// What every answer of the rule carries.
    fn mark(&self, response: &mut impl ResponseHead, https: bool, origin: Option<&HeaderValue>) {
        if https
            && self.host_has_tls
            && let Some(hsts) = &self.settings.hsts
            && !response.has(&header::STRICT_TRANSPORT_SECURITY)
        {
            response.set(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        if let Some(cors) = &self.settings.cors {
            match origin {
                Some(origin) => cors.mark(origin, response),
                None => cors.vary(response),
            }
        }
    }
}

/// The length that the request says its body has; 0 if it says none, and no end if it is no length.
fn content_length(head: &impl RequestHead) -> u64 {
    let Some(field) = head.field("content-length") else { return 0 };
    std::str::from_utf8(field).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
