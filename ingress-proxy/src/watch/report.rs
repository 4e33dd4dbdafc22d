//! Problems become Events on the Ingress, so that `kubectl describe` shows what is wrong.
//!
//! An Event is written when a problem appears, not on every compilation. Its name is made of the problem, so
//! that a restart, or a second replica, refreshes the Event that is there instead of adding one.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use crate::compile::{CONTROLLER, Problem};
use crate::metrics::Metrics;

/// Events that may wait to be written; more are dropped and counted.
const QUEUE: usize = 1_024;
/// The API's bound on a message.
const MAX_MESSAGE: usize = 1_024;

/// Writes Events in the background.
pub(super) struct Reporter {
    reported: HashSet<Problem>,
    queue: mpsc::Sender<Problem>,
    dropped: Counter,
}

impl Reporter {
    pub(super) fn start(client: Client, metrics: &Metrics) -> Self {
        let (queue, mut problems) = mpsc::channel::<Problem>(QUEUE);
        tokio::spawn(async move {
            while let Some(problem) = problems.recv().await {
                if let Err(error) = write(&client, &problem).await {
                    tracing::warn!(ingress = %problem.ingress, %error, "cannot write an Event");
                }
            }
        });
        Self { reported: HashSet::new(), queue, dropped: metrics.events_dropped.clone() }
    }

    /// Reports what was not there at the last call.
    pub(super) fn report(&mut self, problems: &[Problem]) {
        let now: HashSet<Problem> = problems.iter().cloned().collect();
        for problem in now.difference(&self.reported) {
            tracing::warn!(ingress = %problem.ingress, reason = problem.reason.as_str(), "{}", problem.text);
            if self.queue.try_send(problem.clone()).is_err() {
                self.dropped.inc();
            }
        }
        self.reported = now;
    }
}

async fn write(client: &Client, problem: &Problem) -> kube::Result<()> {
    let api = Api::<Event>::namespaced(client.clone(), &problem.ingress.namespace);
    let event = event(problem, Timestamp::now());
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let name = event.metadata.name.as_deref().unwrap_or_default();
            let patch = serde_json::json!({ "lastTimestamp": event.last_timestamp });
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        other => other.map(drop),
    }
}

fn event(problem: &Problem, now: Timestamp) -> Event {
    let mut hasher = DefaultHasher::new(); // the same in every process of one build
    problem.hash(&mut hasher);
    let now = Some(Time(now));
    Event {
        metadata: ObjectMeta {
            namespace: Some(problem.ingress.namespace.clone()),
            name: Some(format!("{}.{:016x}", problem.ingress.name, hasher.finish())),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("networking.k8s.io/v1".to_owned()),
            kind: Some("Ingress".to_owned()),
            namespace: Some(problem.ingress.namespace.clone()),
            name: Some(problem.ingress.name.clone()),
            uid: Some(problem.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(problem.reason.as_str().to_owned()),
        message: Some(problem.text[..problem.text.floor_char_boundary(MAX_MESSAGE)].to_owned()),
        source: Some(EventSource { component: Some("weir-ingress".to_owned()), host: None }),
        reporting_component: Some(CONTROLLER.to_owned()),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{ObjectKey, Reason};

    fn problem(text: &str) -> Problem {
        Problem {
            ingress: ObjectKey::new("shop", "web"),
            uid: "u1".to_owned(),
            reason: Reason::BadService,
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_name_is_made_of_the_problem() {
        let name = |text| event(&problem(text), Timestamp::now()).metadata.name.unwrap();
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
        assert!(name("a").starts_with("web."));
    }

    #[test]
    fn the_event_is_about_the_ingress() {
        let event = event(&problem(&"é".repeat(2_000)), Timestamp::now());
        assert_eq!(event.involved_object.uid.as_deref(), Some("u1"));
        assert_eq!(event.reason.as_deref(), Some("BadService"));
        assert!(event.message.unwrap().len() <= MAX_MESSAGE);
    }
}
