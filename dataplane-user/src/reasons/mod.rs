//! Why endpoints of a service are not taken: what the maps cannot say, since they hold only what is taken.
//!
//! A running agent answers from what it planned from, over a socket in its run directory, and writes nothing for it. So
//! `weir explain` needs no rights at the API, and says the reasons of this agent and not those of a later look at the
//! API. One question is one line of JSON, and so is its answer; without an agent there are no reasons.

mod ask;
mod serve;

use serde::{Deserialize, Serialize};

pub use self::ask::{NoAnswer, ask};
pub(crate) use self::serve::{Asked, serve};
use crate::{
    names::Name,
    plan::{PortName, desired::Judged},
    reconcile::Reconciler,
    watch::Store,
};

/// Endpoints that one answer tells of.
const MOST_TOLD: usize = 4_096;
/// A longer question is none: names of the API's objects have some hundred bytes.
const LONGEST_QUESTION_BYTES: u64 = 4_096;
/// A longer answer is none: [`MOST_TOLD`] endpoints need a fifth of it.
const LONGEST_ANSWER_BYTES: u64 = 4 << 20;

/// Whose endpoints, and for which of its frontends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    port: Name,
    ipv4: bool,
    local_only: bool,
}

impl Question {
    /// About the endpoints of `port` for frontends of one family; `local_only`: the policy binds them to this node.
    pub fn new(port: &PortName, ipv4: bool, local_only: bool) -> Self {
        Self { port: port.into(), ipv4, local_only }
    }
}

/// What the agent says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Why each endpoint is taken or is not.
    Reasons(Reasons),
    /// It has no such service port (any more).
    Unknown,
    /// It has not read the API yet.
    TooEarly,
}

/// Why the endpoints of a service port are taken or are not.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reasons {
    /// The zone that the node is in, if it is in one.
    pub zone: Option<String>,
    /// Each endpoint.
    pub endpoints: Vec<Judged>,
    /// More endpoints, which no answer has room for.
    pub more: usize,
    /// What of the service is not served, as its Events say.
    pub complaints: Vec<String>,
}

impl Reasons {
    /// Endpoints that are not taken come first: of those that are the maps tell as well.
    fn new(mut endpoints: Vec<Judged>, zone: Option<&str>, complaints: Vec<String>) -> Self {
        endpoints.sort_by_key(|it| it.verdict.takes());
        let more = endpoints.len().saturating_sub(MOST_TOLD);
        endpoints.truncate(MOST_TOLD);
        Self { zone: zone.map(Into::into), endpoints, more, complaints }
    }
}

/// Answers a question from what the agent planned from.
pub(crate) fn answer(question: Question, store: &Store, reconciler: &Reconciler) -> Answer {
    if !store.is_complete() {
        return Answer::TooEarly;
    }
    let port = PortName::from(question.port);
    let Some(judged) = store.judge(&port, question.ipv4, question.local_only) else { return Answer::Unknown };
    let complaints = reconciler.complaints(&port.service).map(ToString::to_string).collect();
    Answer::Reasons(Reasons::new(judged, store.zone(), complaints))
}

#[cfg(test)]
mod tests;
