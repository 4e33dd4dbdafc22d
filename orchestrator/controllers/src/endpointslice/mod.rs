//! Publishes the pods behind each Service as `EndpointSlices`: what the dataplane and the ingress route by.
//!
//! Woken by Services, by pods that a Service selects or selected, by the slices themselves, and by nodes that
//! appear or change zone. Slices are removed with their Service by the garbage collector.

mod model;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use weir_client::{
    EventKind, ObjectKey, Outcome, Queue, QueueMetrics, is_not_found, object_reference, run_workers,
};

use self::model::{MANAGED_BY, MANAGER, SERVICE_NAME};
use self::plan::Step;
use crate::error::{Error, Trying};
use crate::freshness::{Freshness, STALE_RECHECK};
use crate::pods::PodView;
use crate::shared::{Shared, Watches};

/// Services reconciled at once.
const WORKERS: usize = 5;
/// The node label that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The controller.
pub(crate) struct EndpointSlices {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    freshness: Freshness,
}

impl EndpointSlices {
    pub(crate) fn new(shared: &Arc<Shared>, watches: &mut Watches, metrics: &QueueMetrics) -> Self {
        let queue = Arc::new(Queue::new("endpointslice", metrics));
        let wake = queue.clone();
        watches.services.on_change(move |change| wake.add(change.key.clone()));

        let wake = queue.clone();
        watches.slices.on_change(move |change| {
            for slice in change.old.into_iter().chain(change.new) {
                if is_ours(slice)
                    && let Some(service) = slice.labels().get(SERVICE_NAME)
                {
                    wake.add(ObjectKey::new(&change.key.namespace, service));
                }
            }
        });

        let (wake, services) = (queue.clone(), shared.services.clone());
        watches.pods.on_change(move |change| {
            if let (Some(old), Some(new)) = (change.old, change.new)
                && same_endpoint(old, new)
            {
                return;
            }
            for service in services.in_namespace(&change.key.namespace) {
                let mut both = change.old.into_iter().chain(change.new);
                if both.any(|pod| selects(&service, &pod.labels)) {
                    wake.add(ObjectKey::of(&service.metadata));
                }
            }
        });

        let (wake, services) = (queue.clone(), shared.services.clone());
        watches.nodes.on_change(move |change| {
            if change.old.map(|node| zone_of(node)) != change.new.map(|node| zone_of(node)) {
                services.keys().into_iter().for_each(|key| wake.add(key));
            }
        });
        Self { shared: shared.clone(), queue, freshness: Freshness::default() }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let service = self.shared.services.get(&key);
        let service = service.filter(|service| service.metadata.deletion_timestamp.is_none());
        let Some(service) = service else {
            self.freshness.forget(&key);
            return Ok(Outcome::Done);
        };
        // Without a selector somebody else writes the slices; an external name needs none.
        let Some(spec) = service.spec.as_ref().filter(|spec| spec.selector.is_some()) else {
            return Ok(Outcome::Done);
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Ok(Outcome::Done);
        }
        let cached = self.shared.slices.in_namespace(&key.namespace);
        let slices: Vec<EndpointSlice> = cached
            .iter()
            .filter(|slice| is_ours(slice) && slice.labels().get(SERVICE_NAME) == Some(&key.name))
            .filter(|slice| slice.metadata.deletion_timestamp.is_none())
            .map(|slice| EndpointSlice::clone(slice))
            .collect();
        let alive = |uid: &str| slices.iter().any(|slice| slice.metadata.uid.as_deref() == Some(uid));
        if !self.freshness.is_fresh(&key, |mark| self.shared.slices.has_seen(mark), alive) {
            return Ok(Outcome::After(STALE_RECHECK));
        }
        let pods = self.shared.pods.in_namespace(&key.namespace);
        let selected = pods.iter().map(AsRef::as_ref).filter(|pod: &&PodView| selects(&service, &pod.labels));
        let zone = |node: &str| self.shared.nodes.get(&ObjectKey::cluster(node)).map(|node| zone_of(&node));
        for step in plan::plan(&service, selected, zone, &slices) {
            if let Err(error) = self.execute(&key, step, &slices).await {
                let object = object_reference::<Service>(&service.metadata);
                let text = format!("Error updating Endpoint Slices for Service {key}: {error}");
                self.shared.recorder.record(object, EventKind::Warning, "FailedToUpdateEndpointSlices", text);
                return Err(error);
            }
        }
        Ok(Outcome::Done)
    }

    async fn execute(&self, key: &ObjectKey, step: Step, slices: &[EndpointSlice]) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let params = PostParams::default();
        let written = match step {
            Step::Create(slice) => {
                api.create(&params, &slice).await.trying("create an EndpointSlice of Service", key)?
            }
            Step::Update(slice) => {
                let name = slice.name_any();
                api.replace(&name, &params, &slice).await.trying("update EndpointSlice", &name)?
            }
            Step::Delete(name) => {
                match api.delete(&name, &DeleteParams::default()).await {
                    Err(error) if !is_not_found(&error) => {
                        return Err(error).trying("delete EndpointSlice", &name);
                    }
                    _ => {}
                }
                let slice = slices.iter().find(|slice| slice.name_any() == name);
                if let Some(uid) = slice.and_then(|slice| slice.metadata.uid.as_deref()) {
                    self.freshness.deleted(key, uid);
                }
                return Ok(());
            }
        };
        let mark = self.shared.slices.mark(written.metadata.resource_version.as_deref());
        self.freshness.wrote(key, mark);
        Ok(())
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

fn zone_of(node: &Node) -> Option<String> {
    node.labels().get(ZONE).cloned()
}

/// Whether nothing changed that an endpoint shows: most pod events are about something else.
fn same_endpoint(old: &PodView, new: &PodView) -> bool {
    old.uid == new.uid
        && old.labels == new.labels
        && old.ips == new.ips
        && old.node == new.node
        && old.ready == new.ready
        && old.deleting == new.deleting
        && old.has_ended() == new.has_ended()
        && old.hostname == new.hostname
        && old.subdomain == new.subdomain
        && old.ports == new.ports
}
