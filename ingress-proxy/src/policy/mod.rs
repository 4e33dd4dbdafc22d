//! Policies: what a rule asks for besides its backend.
//!
//! A [`Policy`] is typed and checked when the table is compiled, and belongs to a target of the table. It knows no
//! protocol and no connection: both request paths show it the head through [`RequestHead`] and do what it decides.
//!
//! ```text
//! head ─▶ before ─▶ Answer(reply)                        closed, 403, redirect, 400, preflight, 503, 401, 413
//!             ├──▶ Try ─▶ settled ─▶ reply or passage  (a password's hash, another server's answer)
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
mod external;
mod head;
mod limits;
mod mirror;
mod own_request;
mod passage;
mod places;
mod redirect;
mod reply;
mod rewrite;
mod summary;
mod template;
mod trial;
mod upstream;
mod url;
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
pub(crate) use external::{
    Asker, AuthAnswer, Caching, ExternalAuth, Heard, Lifetimes, MAX_RESPONSE_FIELDS, Question,
};
pub(crate) use head::{RequestHead, ResponseHead, origin_form};
pub(crate) use limits::{Limits, Per, Rate};
pub(crate) use mirror::{Duplicate, Mirror};
pub(crate) use own_request::is_proxys;
pub(crate) use passage::Passage;
pub(crate) use places::{Exchange, Places};
pub(crate) use redirect::{Redirects, ToHttps};
pub(crate) use reply::{By, Reply};
pub(crate) use rewrite::{Replacement, Rewrite};
pub(crate) use template::Template;
pub(crate) use trial::Trial;
pub(crate) use upstream::{MAX_TRIES, Retry, Upstream};
pub(crate) use url::Url;
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
    /// Another server is asked who may come in.
    pub(crate) external: Option<Arc<ExternalAuth>>,
    /// One of source ranges, password and other server is enough: `satisfy: any`.
    pub(crate) satisfy_any: bool,
    /// Where copies go.
    pub(crate) mirror: Option<Arc<Mirror>>,
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
    /// What is replaced in responses of endpoints.
    pub(crate) places: Places,
    /// Its requests are not in the access log: `enable-access-log` is false.
    pub(crate) unlogged: bool,
    /// Its requests are no spans: `enable-opentelemetry` is false.
    pub(crate) untraced: bool,
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
    /// The rule, where what is remembered of one must not be used for another.
    pub(crate) scope: Option<Box<str>>,
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
    /// It is let in if what is waited for finds for it.
    Try(Box<Trial>),
    /// It goes to an endpoint.
    Forward(Box<Passage>),
}

impl Decision {
    /// What is different about the request on its way, as far as is known, if it gets on its way.
    pub(crate) fn passage(&self) -> Option<&Passage> {
        match self {
            Self::Answer(_) => None,
            Self::Try(trial) => Some(trial.passage()),
            Self::Forward(passage) => Some(passage),
        }
    }

    /// Waits for what there is to wait for.
    pub(crate) async fn settled(self, asker: &impl Asker) -> Result<Box<Passage>, Reply> {
        match self {
            Self::Answer(reply) => Err(reply),
            Self::Forward(passage) => Ok(passage),
            // Apart, so that requests that wait for nothing have no room for it.
            Self::Try(trial) => Box::pin(trial.run(asker)).await,
        }
    }
}

/// What is known of who may come in without waiting.
struct Admission {
    /// What the client hears if nothing that is waited for finds for it.
    refusal: Option<Reply>,
    check: Option<auth::Check>,
    question: Option<Box<Question>>,
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
        let outside = settings.sources.answer(client);
        if let Some(refusal) =
            outside.as_ref().filter(|_| !self.is_one_enough() || settings.sources.denies(client))
        {
            return answer(refusal.clone());
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
        let admitted = self.admit(head, client, outside, memory, W::ONLY_ASKS);
        let Admission { refusal, check, question } = match admitted {
            Ok(admission) => admission,
            Err(refusal) => return answer(refusal),
        };
        witness.passes("password", || settings.auth.as_ref().map(|_| BasicAuth::passes()));
        witness
            .passes("authentication server", || settings.external.as_ref().map(|_| ExternalAuth::passes()));
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
        let mut passage = Passage {
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
            granted: None,
            duplicate: None,
            place,
        };
        if let Some(mirror) = &settings.mirror {
            passage.duplicate =
                Some(Box::new(Duplicate::new(mirror, head, client, |name| passage.drops(name))));
        }
        let passage = Box::new(passage);
        if check.is_none() && question.is_none() {
            return Decision::Forward(passage);
        }
        Decision::Try(Box::new(Trial { passage, any: settings.satisfy_any, refusal, check, question }))
    }

    /// Whether one of several that may let in is enough.
    fn is_one_enough(&self) -> bool {
        let settings = &self.settings;
        settings.satisfy_any && (settings.auth.is_some() || settings.external.is_some())
    }

    /// Who may come in. `outside` is what the client hears where it is in none of the networks that may.
    fn admit(
        &self,
        head: &impl RequestHead,
        client: &Client,
        outside: Option<Reply>,
        memory: &Memory,
        only_asks: bool,
    ) -> Result<Admission, Reply> {
        let settings = &*self.settings;
        let any = self.is_one_enough();
        let admitted = Admission { refusal: None, check: None, question: None };
        if any && outside.is_none() && settings.sources.allow.is_some() {
            return Ok(admitted);
        }
        let mut refusal = outside;
        let check = match settings.auth.as_ref().map(|auth| auth.judge(head, &memory.passwords, only_asks)) {
            Some(auth::Verdict::Right) if any => return Ok(admitted),
            None | Some(auth::Verdict::Right) => None,
            Some(auth::Verdict::Wrong(reply)) if any => {
                refusal = Some(trial::better(refusal, reply));
                None
            }
            Some(auth::Verdict::Wrong(reply)) => return Err(reply),
            Some(auth::Verdict::Open(check)) => Some(check),
        };
        let question = settings.external.as_ref().map(|external| {
            let scope = self.scope.as_deref().unwrap_or_default();
            Question::new(external, head, client, scope, settings.upstream.read)
        });
        let question = question.transpose()?.map(Box::new);
        match refusal {
            Some(refusal) if check.is_none() && question.is_none() => Err(refusal),
            refusal => Ok(Admission { refusal, check, question }),
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
