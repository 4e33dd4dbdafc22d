//! Problems become Events on the Ingress, so that `kubectl describe` shows what is wrong.
//!
//! An Event is written when a problem appears, not on every compilation. Its name is made of the problem, so
//! that a restart, or a second replica, refreshes the Event that is there instead of adding one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
    /// How often each is there: the same may be wrong in two places.
    reported: HashMap<Problem, usize>,
    queue: mpsc::Sender<Problem>,
    dropped: Counter,
}

impl Reporter {
    pub(super) fn start(client: Client, metrics: &Metrics) -> Self {
        let (reporter, mut problems) = Self::new(metrics.events_dropped.clone());
        tokio::spawn(async move {
            while let Some(problem) = problems.recv().await {
                if let Err(error) = write(&client, &problem).await {
                    tracing::warn!(ingress = %problem.ingress, %error, "cannot write an Event");
                }
            }
        });
        reporter
    }

    /// And what it reports.
    pub(super) fn new(dropped: Counter) -> (Self, mpsc::Receiver<Problem>) {
        let (queue, problems) = mpsc::channel(QUEUE);
        (Self { reported: HashMap::new(), queue, dropped }, problems)
    }

    /// Reports what was not there before. What is in both lists is there as before.
    pub(super) fn report(&mut self, problems: Vec<Problem>, mended: Vec<Problem>) {
        for problem in problems {
            let before = self.reported.entry(problem.clone()).or_default();
            *before += 1;
            if *before > 1 {
                continue;
            }
            tracing::warn!(ingress = %problem.ingress, reason = problem.reason.as_str(), "{}", problem.text);
            if self.queue.try_send(problem).is_err() {
                self.dropped.inc();
            }
        }
        for problem in mended {
            if let Entry::Occupied(mut known) = self.reported.entry(problem) {
                *known.get_mut() -= 1;
                if *known.get() == 0 {
                    known.remove();
                }
            }
        }
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
    fn a_problem_is_told_when_it_appears() {
        let (mut reporter, mut told) = Reporter::new(Counter::default());
        let mut report = |problems: &[&str], mended: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|text| problem(text)).collect();
            reporter.report(list(problems), list(mended));
            std::iter::from_fn(|| told.try_recv().ok()).map(|problem| problem.text).collect::<Vec<_>>()
        };
        assert_eq!(report(&["a", "b", "a"], &[]), ["a", "b"]);
        assert_eq!(report(&["a"], &["a", "a"]), [""; 0], "it is still there, in one place");
        assert_eq!(report(&[], &["a", "b"]), [""; 0]);
        assert_eq!(report(&["a"], &[]), ["a"], "it is there again");
        assert_eq!(reporter.reported.len(), 1);
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
