//! Events on pods and on the node, as `kubectl describe` shows them.
//!
//! A recorder never makes its caller wait: events go through a queue of [`QUEUE`]; when the apiserver is slow or away,
//! what does not fit is dropped and counted (`weir_kubelet_queue_dropped{queue="events"}`). The same event again
//! raises the count of the first one instead of making another; the last [`REMEMBERED`] are remembered for that.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// Events waiting for the apiserver.
const QUEUE: usize = 256;
/// Events whose repetition is recognised.
const REMEMBERED: usize = 512;
/// The name under which this kubelet reports.
const COMPONENT: &str = "kubelet";

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// For information.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What makes two events the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    object: String,
    field: Option<String>,
    kind: Kind,
    reason: &'static str,
    message: String,
}

struct Report {
    object: ObjectReference,
    key: Key,
    at: Timestamp,
}

/// Reports events; clones share the queue.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Report>,
    metrics: Metrics,
}

impl Events {
    /// A recorder, and the future that sends what it records; the future ends with the last recorder.
    pub(crate) fn new(
        client: Client,
        node_name: String,
        metrics: Metrics,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, reports) = mpsc::channel(QUEUE);
        (Self { queue, metrics }, send_all(client, node_name, reports))
    }

    /// Reports on a pod, or on one of its containers.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        let field = container.map(|name| {
            let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
            let list = if init.into_iter().any(|c| c.name == name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            field_path: field,
            ..ObjectReference::default()
        };
        self.report(object, kind, reason, message);
    }

    /// Reports on the node.
    pub(crate) fn node(&self, name: &str, kind: Kind, reason: &'static str, message: String) {
        let object = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            // Upstream's convention, by which `kubectl describe node` finds its events.
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.report(object, kind, reason, message);
    }

    fn report(&self, object: ObjectReference, kind: Kind, reason: &'static str, mut message: String) {
        // The API takes 1024 bytes.
        if message.len() > 1000 {
            let mut end = 1000;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        let key = Key {
            object: object.uid.clone().unwrap_or_default(),
            field: object.field_path.clone(),
            kind,
            reason,
            message,
        };
        if self.queue.try_send(Report { object, key, at: Timestamp::now() }).is_err() {
            self.metrics.drop_from("events");
        }
    }
}

/// What is known of an event that was sent.
struct Sent {
    name: String,
    count: i32,
    last: Timestamp,
}

async fn send_all(client: Client, node_name: String, mut reports: mpsc::Receiver<Report>) {
    let mut sent: HashMap<Key, Sent> = HashMap::new();
    while let Some(report) = reports.recv().await {
        let namespace = report.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api = Api::<Event>::namespaced(client.clone(), &namespace);
        if let Some(before) = sent.get_mut(&report.key) {
            before.count += 1;
            before.last = report.at;
            let patch = serde_json::json!({"count": before.count, "lastTimestamp": Time(report.at)});
            match api.patch(&before.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => continue,
                // It expired or was deleted: begin anew.
                Err(error) => tracing::debug!(%error, event = before.name, "event not updated"),
            }
        }
        let event = event(&report, &namespace, &node_name);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if sent.len() >= REMEMBERED
                    && let Some(oldest) =
                        sent.iter().min_by_key(|(_, sent)| sent.last).map(|(key, _)| key.clone())
                {
                    sent.remove(&oldest);
                }
                sent.insert(report.key, Sent { name, count: 1, last: report.at });
            }
            Err(error) => tracing::warn!(%error, reason = report.key.reason, "event not recorded"),
        }
    }
}

fn event(report: &Report, namespace: &str, node_name: &str) -> Event {
    let object = report.object.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // Upstream's form: the object and the nanosecond, which no two events of one kubelet share.
            name: Some(format!("{object}.{:x}", report.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: report.object.clone(),
        type_: Some(format!("{:?}", report.key.kind)),
        reason: Some(report.key.reason.to_owned()),
        message: Some(report.key.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(report.at)),
        last_timestamp: Some(Time(report.at)),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node_name.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}
