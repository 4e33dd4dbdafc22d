//! What would become of a request, and why.
//!
//! The request is read by the reader of requests, looked up in the table that is live, and put to the rule's policies by
//! the code that decides about requests ([`crate::policy`]'s `decide`), which is told that it is only a question. Here is
//! written down what they say.

mod lost;
mod question;
mod text;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Response, StatusCode};
use serde::Serialize;

use super::{View, json};
use crate::certificate::{self, Certificate};
use crate::clock;
use crate::compile::Reason;
use crate::live::Target;
use crate::policy::{Client, Decision, Passage};
use crate::proxy::{Answer, Fault};
use crate::table::{HostPattern, Match, normalize_host, normalize_path};
use crate::upstream::{Balance, EndpointState};
use crate::wire::{Normal, RequestHead, Space};
use question::Asked;
pub use question::{Question, QuestionError};

/// Rules that lost, and rules that are not in use, which are named. More are left out.
const MAX_NAMED: usize = 50;

/// What there is to say about a request.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    method: String,
    url: String,
    client: String,
    /// What is routed on, once the request was understood.
    host: Option<String>,
    path: Option<String>,
    /// What answers the handshake, for https.
    certificate: Option<CertificateReport>,
    /// The rule that wins.
    rule: Option<Rule>,
    /// Other rules that match.
    lost: Vec<Lost>,
    /// Rules for the same host that are not in use.
    conflicts: Vec<Conflict>,
    /// In the order in which they are asked; the last may answer.
    policies: Vec<PolicyReport>,
    /// What the client gets, if the request goes to no endpoint.
    answer: Option<AnswerReport>,
    /// Where it goes: to one of the first's endpoints, or to the canary's.
    backends: Vec<Backend>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateReport {
    /// `namespace/name`; nothing for the default certificate.
    secret: Option<String>,
    names: Vec<String>,
    /// RFC 3339.
    not_before: String,
    not_after: String,
    /// Whether it is for the name that was asked for.
    covers: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    host: String,
    kind: &'static str,
    path: String,
    ingress: String,
    service: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Lost {
    #[serde(flatten)]
    rule: Rule,
    why: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Conflict {
    ingress: String,
    why: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct PolicyReport {
    policy: &'static str,
    /// The status it answers with; nothing if it lets the request pass.
    status: Option<u16>,
    why: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct AnswerReport {
    status: u16,
    why: String,
}

/// Endpoints that the request may go to.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    /// `rule`, `canary` or `default backend`.
    role: &'static str,
    /// `namespace/name:port`.
    service: String,
    /// What is spoken with them.
    protocol: &'static str,
    /// How one of them is chosen.
    balance: &'static str,
    /// The most requests in flight to each of them.
    max_connections: Option<u32>,
    /// The one that the request is tied to.
    tied: Option<SocketAddr>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) in_flight: u32,
    /// Milliseconds that an answer is expected to take; nothing before the first.
    pub(super) latency_ms: Option<u64>,
    /// Milliseconds for which it gets no requests.
    pub(super) ejected_ms: Option<u64>,
    /// Why health checks took it out.
    pub(super) unhealthy: Option<String>,
    /// Connections that are kept.
    pub(super) connections: usize,
}

impl From<EndpointState> for Endpoint {
    fn from(state: EndpointState) -> Self {
        Self {
            address: state.address,
            in_flight: state.in_flight,
            latency_ms: state.latency.map(|latency| latency.as_millis() as u64),
            ejected_ms: state.ejected.map(|left| left.as_millis() as u64),
            unhealthy: state.unhealthy.map(|why| why.to_string()),
            connections: state.connections,
        }
    }
}

/// The page.
pub(super) fn page(view: &View, query: &str) -> Response<String> {
    let explained = Question::read(query).and_then(|(question, is_json)| {
        let asked = question.ask()?;
        Ok((explain(view, &question, &asked), is_json))
    });
    match explained {
        Ok((explanation, true)) => json(&explanation),
        Ok((explanation, false)) => super::text(StatusCode::OK, explanation.text()),
        Err(error) => super::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn explain(view: &View, question: &Question, asked: &Asked) -> Explanation {
    let mut explanation = Explanation {
        method: question.method.clone(),
        url: question.url.clone(),
        client: question.client.to_string(),
        certificate: asked.https.then(|| certificate(view, &asked.name)).flatten(),
        ..Explanation::default()
    };
    if let Err(answer) = explanation.follow(view, question, asked) {
        explanation.answer = Some(AnswerReport { status: answer.status, why: answer.text.into_owned() });
    }
    explanation
}

impl Explanation {
    /// Goes the way of a request, up to the choice of an endpoint.
    fn follow(&mut self, view: &View, question: &Question, asked: &Asked) -> Result<(), Answer> {
        let mut space = Space::new();
        let head = RequestHead::read(asked.head.as_bytes(), &mut space)?;
        let host = self.host.insert(normalize_host(head.host).map_err(Fault::from)?.into_owned());
        let path = self.path.insert(normalize_path(head.path).map_err(Fault::from)?.into_owned());
        let normal = Normal {
            head: &head,
            host: Cow::Owned(host.clone()),
            path: Cow::Owned(path.clone()),
            identity: None,
        };

        let live = view.proxy.live.load();
        let matches = live.table().matches(host, path);
        self.conflicts = conflicts(view, host);
        if let Some((winner, others)) = matches.split_first() {
            self.rule = Some(rule(winner));
            let lost =
                |other: &Match<'_, Arc<Target>>| Lost { rule: rule(other), why: lost::why(winner, other) };
            self.lost = others.iter().take(MAX_NAMED).map(lost).collect();
        }
        let target = view.proxy.route(host, path)?;
        let passage = self.ask_policies(view, question, asked, &normal, &target)?;
        self.find_endpoints(&target, passage.as_deref())
    }

    fn ask_policies(
        &mut self,
        view: &View,
        question: &Question,
        asked: &Asked,
        normal: &Normal<'_, '_>,
        target: &Target,
    ) -> Result<Option<Box<Passage>>, Answer> {
        let Some(policy) = &target.policy else { return Ok(None) };
        let client = Client::of(normal, question.client, asked.https, &view.proxy.trusted, clock::now());
        let mut passed: Vec<(&'static str, String)> = Vec::new();
        let decision = policy.decide(normal, &client, &view.proxy.memory, &mut passed);
        self.policies =
            passed.into_iter().map(|(policy, why)| PolicyReport { policy, status: None, why }).collect();
        match decision {
            Decision::Answer(reply) => {
                let (policy, status) = (reply.by.name(), Some(reply.status));
                self.policies.push(PolicyReport { policy, status, why: reply.text.to_string() });
                Err(reply.into())
            }
            Decision::Try(trial) => Ok(Some(trial.into_passage())),
            Decision::Forward(passage) => Ok(Some(passage)),
        }
    }

    /// Where [`crate::proxy::Record::endpoints`] would look for one.
    fn find_endpoints(&mut self, target: &Target, passage: Option<&Passage>) -> Result<(), Answer> {
        let fallback = target.fallback.as_ref().filter(|fallback| fallback.has_endpoints());
        match (target.endpoints(), fallback) {
            (Ok(_), _) => self.backends.extend(backend("rule", target, passage)),
            (Err(_), Some(fallback)) => self.backends.extend(backend("default backend", fallback, None)),
            (Err(answer), None) if target.canary.as_ref().is_none_or(|canary| !canary.has_endpoints()) => {
                return Err(answer);
            }
            (Err(_), None) => {}
        }
        let canary = target.canary.as_ref().filter(|canary| canary.has_endpoints());
        self.backends.extend(canary.and_then(|canary| backend("canary", canary, passage)));
        Ok(())
    }
}

fn rule(of: &Match<'_, Arc<Target>>) -> Rule {
    Rule {
        host: of.host.to_string(),
        kind: of.path.kind(),
        path: of.path.text().to_owned(),
        ingress: of.target.ingress.to_string(),
        service: service(of.target),
    }
}

/// `namespace/name:port`, with the port's name, if it has one.
pub(super) fn service(target: &Target) -> String {
    match target.sends_to() {
        Some(key) if key.port.is_empty() => key.service.to_string(),
        Some(key) => format!("{}:{}", key.service, key.port),
        None => target.service.to_string(),
    }
}

fn backend(role: &'static str, target: &Target, passage: Option<&Passage>) -> Option<Backend> {
    let pool = target.backend.as_ref().ok()?;
    let balance = passage.map_or_else(Balance::default, |passage| passage.upstream().balance);
    let rank_by = passage.and_then(Passage::rank_by);
    Some(Backend {
        role,
        service: service(target),
        protocol: pool.protocol().name(),
        balance: if rank_by.is_some() { "hash" } else { balance.method.name() },
        max_connections: balance.most,
        tied: rank_by.filter(|_| passage.is_some_and(Passage::is_tied)).and_then(|key| pool.ranked(key)),
        endpoints: pool.state().into_iter().map(Endpoint::from).collect(),
    })
}

/// The rules for the hosts that cover this one which are not in use.
fn conflicts(view: &View, host: &str) -> Vec<Conflict> {
    let wildcard = host.split_once('.').map(|(_, parent)| HostPattern::Wildcard(parent.to_owned()));
    let hosts = [Some(HostPattern::Exact(host.to_owned())), wildcard, Some(HostPattern::Any)];
    let (problems, _) = view.problems.some(MAX_NAMED, |problem| {
        problem.reason == Reason::Conflict && problem.host.is_some() && hosts.contains(&problem.host)
    });
    let conflict = |problem: crate::compile::Problem| Conflict {
        ingress: problem.ingress.to_string(),
        why: problem.text,
    };
    problems.into_iter().map(conflict).collect()
}

fn certificate(view: &View, name: &str) -> Option<CertificateReport> {
    let certificates = view.certificates.load();
    let pair = certificates.pair(name);
    let read = Certificate::of(&pair.load())?;
    let secrets = view.proxy.live.load().secrets();
    let secret = secrets.into_iter().find(|(_, known)| Arc::ptr_eq(known, pair));
    Some(CertificateReport {
        secret: secret.map(|(secret, _)| secret.to_string()),
        covers: read.covers(&HostPattern::Exact(name.to_owned())),
        not_before: certificate::date(read.not_before).to_string(),
        not_after: certificate::date(read.not_after).to_string(),
        names: read.names,
    })
}
