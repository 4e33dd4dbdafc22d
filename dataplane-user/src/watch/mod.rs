//! Watches of the API, reduced to the plan's input as they arrive.
//!
//! Four watches feed one task: Services, `EndpointSlices`, Nodes, and the Pods that run on the agent's own. Nothing is
//! polled. Until all four have been read once nothing is planned, so that an API server that comes up slowly, or empty-handed, never
//! takes away what serves.

mod node;
mod peers;
mod pod_ranges;
mod pods;
mod service;
mod slice;
mod store;
mod unserved;

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};

pub use node::NodeFacts;
pub use store::Store;
pub use unserved::{SliceProblem, Unserved};

/// One event of one of the watches.
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart at once, one at a time; a box would be one more allocation"
)]
#[derive(Debug)]
pub enum Change {
    /// Of a Service.
    Service(watcher::Event<Service>),
    /// Of an `EndpointSlice`.
    Slice(watcher::Event<EndpointSlice>),
    /// Of a Node: the agent's own, or another that tunnels and pods may lead to.
    Node(watcher::Event<Node>),
    /// Of a Pod of this node.
    Pod(watcher::Event<Pod>),
    /// The agent may not read Pods. Host ports wait for that right; nothing else does.
    NoPods(watcher::Error),
    /// A watch broke; it is made again with backoff by itself.
    Failed(watcher::Error),
}

/// All changes, for ever.
pub fn changes(client: &Client, node: &str) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    // Slices that are not about a Service name none, and are none of ours.
    let of_services = watcher::Config::default().labels("kubernetes.io/service-name");
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), of_services);
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default());
    let services = services.default_backoff().map(|event| event.map_or_else(Change::Failed, Change::Service));
    let slices = slices.default_backoff().map(|event| event.map_or_else(Change::Failed, Change::Slice));
    let nodes = nodes.default_backoff().map(|event| event.map_or_else(Change::Failed, Change::Node));
    let here = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let pods = watcher(Api::<Pod>::all(client.clone()), here);
    let pods = pods.default_backoff().map(|event| match event {
        Ok(event) => Change::Pod(event),
        Err(error) if is_forbidden(&error) => Change::NoPods(error),
        Err(error) => Change::Failed(error),
    });
    Box::pin(stream::select(stream::select(services, slices), stream::select(nodes, pods)))
}

/// Whether the API server knows the agent and refuses what it asks.
fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}

/// `namespace/name` of a namespaced object, as the plan's key.
fn key(object: &impl kube::ResourceExt) -> crate::plan::model::ServiceKey {
    crate::plan::model::ServiceKey::new(&object.namespace().unwrap_or_default(), &object.name_any())
}
