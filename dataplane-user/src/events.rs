//! What is not served becomes an Event of its object, where `kubectl describe` shows it.
//!
//! An Event is written when something begins to be wrong, not in every round, and its name is made of what it says: a
//! restart, or another node with the same complaint, refreshes the one that is there. Different complaints of one object
//! are different Events; the client library's recorder would merge them and show the first one's words.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::{plan::model::ServiceKey, reconcile::Complaint, watch::Store};

/// Events that wait to be written; beyond it they are only logged, and counted.
const QUEUE: usize = 256;
/// The API's bound on a message.
const MAX_MESSAGE: usize = 1_024;
/// Bytes of an object's name that an Event's name begins with: with its hash it must fit 253.
const MAX_PREFIX: usize = 200;

/// A complaint on its way.
#[derive(Debug)]
struct Told {
    about: ServiceKey,
    uid: Option<String>,
    text: String,
    /// Whose complaint it is, where another node's would be another.
    node: Option<String>,
}

/// The agent's end. Telling never waits.
#[derive(Debug)]
pub(crate) struct Events {
    node_name: String,
    queue: mpsc::Sender<Told>,
    dropped: Counter,
}

impl Events {
    /// Writes Events one after the other beside the agent, so that a slow API server delays nothing else.
    pub(crate) fn start(client: Client, node_name: &str, dropped: Counter) -> Self {
        let (queue, mut told) = mpsc::channel::<Told>(QUEUE);
        let host = node_name.to_owned();
        tokio::spawn(async move {
            while let Some(told) = told.recv().await {
                if let Err(error) = write(&client, &told, &host).await {
                    debug!(object = %told.about, %error, "an Event could not be written");
                }
            }
        });
        Self { node_name: node_name.to_owned(), queue, dropped }
    }

    /// Tells of what is new. Frontends differ in more than their words say: the same words are said once.
    pub(crate) fn tell(&self, complaints: impl IntoIterator<Item = (ServiceKey, Complaint)>, store: &Store) {
        let mut said = BTreeSet::new();
        for (about, complaint) in complaints {
            let text = complaint.to_string();
            if !said.insert((about.clone(), text.clone())) {
                continue;
            }
            warn!(object = %about, complaint = text, "not served as asked");
            let uid = store.uid(&about).map(ToOwned::to_owned);
            let node = complaint.is_of_node().then(|| self.node_name.clone());
            if self.queue.try_send(Told { about, uid, text, node }).is_err() {
                self.dropped.inc();
            }
        }
    }
}

async fn write(client: &Client, told: &Told, host: &str) -> kube::Result<()> {
    let api = Api::<Event>::namespaced(client.clone(), &told.about.namespace);
    let event = event(told, host, Timestamp::now());
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let name = event.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({"lastTimestamp": event.last_timestamp});
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        other => other.map(drop),
    }
}

fn event(told: &Told, host: &str, now: Timestamp) -> Event {
    let ServiceKey { kind, namespace, name } = &told.about;
    let words = [kind.name(), told.uid.as_deref().unwrap_or_default(), &told.text];
    let mut hash = Sha256::new();
    for word in words.into_iter().chain(told.node.as_deref()) {
        hash.update(word);
        hash.update([0]);
    }
    let hash = hash.finalize();
    let hash = u64::from_be_bytes(hash[..8].try_into().expect("a digest has more bytes"));
    let prefix = name[..name.floor_char_boundary(MAX_PREFIX)].trim_end_matches(['.', '-']);
    let now = Some(Time(now));
    Event {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_string()),
            name: Some(format!("{prefix}.{hash:016x}")),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(kind.name().into()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            uid: told.uid.clone(),
            ..ObjectReference::default()
        },
        type_: Some("Warning".into()),
        reason: Some("NotServed".into()),
        message: Some(told.text[..told.text.floor_char_boundary(MAX_MESSAGE)].to_owned()),
        source: Some(EventSource { component: Some("weir-dataplane".into()), host: Some(host.to_owned()) }),
        reporting_component: Some("weir-dataplane".into()),
        reporting_instance: Some(host.to_owned()),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, node: Option<&str>) -> Told {
        let about = ServiceKey::new("shop", &"a".repeat(250));
        Told { about, uid: Some("u".into()), text: text.into(), node: node.map(Into::into) }
    }

    #[test]
    fn a_name_is_made_of_what_is_said_and_by_whom_where_that_matters() {
        let name = |told: &Told, host: &str| event(told, host, Timestamp::now()).metadata.name.unwrap();
        let everywhere = told("x", None);
        assert_eq!(name(&everywhere, "one"), name(&everywhere, "two"), "of all nodes one Event");
        assert_ne!(name(&everywhere, "one"), name(&told("y", None), "one"));
        assert_ne!(name(&told("x", Some("one")), "one"), name(&told("x", Some("two")), "two"));
        assert!(name(&everywhere, "one").len() <= 253);
    }

    #[test]
    fn an_event_is_about_its_object_and_fits_the_api() {
        let event = event(&told(&"é".repeat(2_000), None), "here", Timestamp::now());
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert_eq!(event.involved_object.kind.as_deref(), Some("Service"));
        assert!(event.message.unwrap().len() <= MAX_MESSAGE);
    }
}
