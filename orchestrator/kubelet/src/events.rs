//! Events on pods and on the node, as `kubectl describe` shows them: what they are about, in upstream's words.

use k8s_openapi::api::core::v1::{EventSource, ObjectReference, Pod};
use kube::Client;
use prometheus_client::registry::Registry;
pub(crate) use weir_client::EventKind as Kind;
use weir_client::{EventWriter, Recorder, object_reference};

/// Reports events; clones share the queue.
#[derive(Clone, Debug)]
pub(crate) struct Events(Recorder);

impl Events {
    /// A recorder for the kubelet of this node, and the writer that has to run.
    pub(crate) fn new(client: Client, node_name: String, metrics: &mut Registry) -> (Self, EventWriter) {
        let source = EventSource { component: Some("kubelet".to_owned()), host: Some(node_name) };
        let (recorder, writer) = Recorder::new(client, source, metrics);
        (Self(recorder), writer)
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
        let field_path = container.map(|name| {
            let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
            let list = if init.into_iter().any(|c| c.name == name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        let object = ObjectReference { field_path, ..object_reference::<Pod>(&pod.metadata) };
        self.0.record(object, kind, reason, message);
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
        self.0.record(object, kind, reason, message);
    }
}
