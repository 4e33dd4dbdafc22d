//! Problems become Events on the Ingress, so that `kubectl describe` shows what is wrong.
//!
//! An Event is written when a problem appears, not on every compilation. Its name is made of the problem, so
//! that a restart, or a second replica, refreshes the Event that is there instead of adding one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;

use crate::compile::{CONTROLLER, Problem};
use crate::metrics::Metrics;

/// Events that may wait to be written; more are dropped and counted.
const QUEUE: usize = 1_024;
/// The API's bound on a message.
const MAX_MESSAGE: usize = 1_024;

/// What is wrong now, for those who show it. As many as the Ingresses of the cluster have faults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Problems(Arc<Mutex<Counts>>);

/// How often each is there: the same may be wrong in two places.
type Counts = BTreeMap<Problem, usize>;

impl Problems {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds and takes away. Returns what was not there before.
    pub(crate) fn take_in(&self, problems: Vec<Problem>, mended: Vec<Problem>) -> Vec<Problem> {
        let mut counts = self.counts();
        let mut is_new = |problem: &Problem| {
            let before = counts.entry(problem.clone()).or_default();
            *before += 1;
            *before == 1
        };
        let new = problems.into_iter().filter(|problem| is_new(problem)).collect();
        for problem in mended {
            if let Entry::Occupied(mut known) = counts.entry(problem) {
                *known.get_mut() -= 1;
                if *known.get() == 0 {
                    known.remove();
                }
            }
        }
        new
    }

    /// How many there are.
    fn count(&self) -> usize {
        self.counts().len()
    }

    /// Those that are wanted, by Ingress, at most so many; and how many more there are.
    pub(crate) fn some(&self, most: usize, wanted: impl Fn(&Problem) -> bool) -> (Vec<Problem>, usize) {
        let counts = self.counts();
        let mut problems = counts.keys().filter(|problem| wanted(problem));
        let some: Vec<Problem> = problems.by_ref().take(most).cloned().collect();
        (some, problems.count())
    }
}

/// Writes Events in the background.
pub(super) struct Reporter {
    reported: Problems,
    queue: mpsc::Sender<Problem>,
    dropped: Counter,
    /// What is wrong now.
    there: Gauge,
}

impl Reporter {
    /// `reported` shows what is wrong.
    pub(super) fn start(client: Client, metrics: &Metrics, reported: Problems) -> Self {
        let (reporter, mut problems) = Self::new(metrics, reported);
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
    pub(super) fn new(metrics: &Metrics, reported: Problems) -> (Self, mpsc::Receiver<Problem>) {
        let (queue, problems) = mpsc::channel(QUEUE);
        let (dropped, there) = (metrics.events_dropped.clone(), metrics.problems.clone());
        (Self { reported, queue, dropped, there }, problems)
    }

    /// Reports what was not there before. What is in both lists is there as before.
    pub(super) fn report(&mut self, problems: Vec<Problem>, mended: Vec<Problem>) {
        for problem in self.reported.take_in(problems, mended) {
            tracing::warn!(ingress = %problem.ingress, reason = problem.reason.as_str(), "{}", problem.text);
            if self.queue.try_send(problem).is_err() {
                self.dropped.inc();
            }
        }
        self.there.set(self.reported.count() as i64);
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
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::compile::{ObjectKey, Reason};

    fn problem(text: &str) -> Problem {
        Problem {
            ingress: ObjectKey::new("shop", "web"),
            uid: "u1".to_owned(),
            reason: Reason::BadService,
            text: text.to_owned(),
            host: None,
        }
    }

    #[test]
    fn a_problem_is_told_when_it_appears() {
        let metrics = Metrics::register(&mut Registry::default());
        let (mut reporter, mut told) = Reporter::new(&metrics, Problems::default());
        let mut report = |problems: &[&str], mended: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|text| problem(text)).collect();
            reporter.report(list(problems), list(mended));
            let told = std::iter::from_fn(|| told.try_recv().ok()).map(|problem| problem.text);
            (told.collect::<Vec<_>>(), metrics.problems.get())
        };
        assert_eq!(report(&["a", "b", "a"], &[]), (vec!["a".to_owned(), "b".to_owned()], 2));
        assert_eq!(report(&["a"], &["a", "a"]), (vec![], 2), "it is still there, in one place");
        assert_eq!(report(&[], &["a", "b"]), (vec![], 0));
        assert_eq!(report(&["a"], &[]), (vec!["a".to_owned()], 1), "it is there again");
        let (shown, more) = reporter.reported.some(10, |_| true);
        assert_eq!((shown, more), (vec![problem("a")], 0));
        reporter.report(vec![problem("b"), problem("c")], vec![]);
        assert_eq!(reporter.reported.some(1, |one| one.text != "a"), (vec![problem("b")], 1));
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
