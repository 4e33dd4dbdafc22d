//! Watches of the API, reduced to the plan's input as they arrive.
//!
//! Three watches feed one task: Services, `EndpointSlices`, and the agent's own Node. Nothing is polled. Until all
//! three have been read once nothing is planned, so that an API server that comes up slowly, or empty-handed, never
//! takes away what serves.

mod convert;
mod store;

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};

pub use convert::{NodeFacts, Unserved};
pub use store::{ServiceState, Store};

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
    /// Of the agent's own Node.
    Node(watcher::Event<Node>),
    /// A watch broke; it is made again with backoff by itself.
    Failed(watcher::Error),
}

/// All changes, for ever.
pub fn changes(client: &Client, node: &str) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    // Slices that are not about a Service name none, and are none of ours.
    let of_services = watcher::Config::default().labels("kubernetes.io/service-name");
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), of_services);
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let nodes = watcher(Api::<Node>::all(client.clone()), own);
    let services = services.default_backoff().map(|event| event.map_or_else(Change::Failed, Change::Service));
    let slices = slices.default_backoff().map(|event| event.map_or_else(Change::Failed, Change::Slice));
    let nodes = nodes.default_backoff().map(|event| event.map_or_else(Change::Failed, Change::Node));
    Box::pin(stream::select(services, stream::select(slices, nodes)))
}

/// `namespace/name` of a namespaced object, as the plan's key.
fn key(object: &impl kube::ResourceExt) -> crate::plan::model::ServiceKey {
    crate::plan::model::ServiceKey::new(&object.namespace().unwrap_or_default(), &object.name_any())
}
