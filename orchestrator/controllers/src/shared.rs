//! The watches and caches that all controllers share: each kind is watched once.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_client::{Cache, Informer, ObjectKey, Recorder};

use crate::pods::PodView;

/// kubectl's copy of the manifest: as large as the object, and no controller reads it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A Lease, reduced to its heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heartbeat {
    pub(crate) renewed: Option<MicroTime>,
}

/// What every controller has at hand.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) pods: Cache<PodView>,
    pub(crate) replica_sets: Cache<ReplicaSet>,
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) services: Cache<Service>,
    pub(crate) slices: Cache<EndpointSlice>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) leases: Cache<Heartbeat>,
    pub(crate) namespaces: Cache<Namespace>,
    pub(crate) service_accounts: Cache<()>,
}

/// The watches behind the caches; controllers add their handlers before they start.
pub(crate) struct Watches {
    pub(crate) pods: Informer<Pod, PodView>,
    pub(crate) replica_sets: Informer<ReplicaSet, ReplicaSet>,
    pub(crate) deployments: Informer<Deployment, Deployment>,
    pub(crate) services: Informer<Service, Service>,
    pub(crate) slices: Informer<EndpointSlice, EndpointSlice>,
    pub(crate) nodes: Informer<Node, Node>,
    pub(crate) leases: Informer<Lease, Heartbeat>,
    pub(crate) namespaces: Informer<Namespace, Namespace>,
    pub(crate) service_accounts: Informer<ServiceAccount, ()>,
}

impl Watches {
    pub(crate) fn new(client: &Client) -> Self {
        fn all<K, V>(client: &Client, project: fn(K) -> V) -> Informer<K, V>
        where
            K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
            K: std::fmt::Debug + Send + 'static,
            V: Send + Sync + 'static,
        {
            let project = move |object| Some(project(object));
            Informer::new(Api::all(client.clone()), watcher::Config::default(), project)
        }
        Self {
            pods: all(client, PodView::of),
            replica_sets: all(client, trimmed),
            deployments: all(client, trimmed),
            services: all(client, trimmed),
            slices: all(client, trimmed),
            nodes: all(client, |node: Node| {
                let mut node = trimmed(node);
                // The list of images can be the largest part of a node.
                if let Some(status) = node.status.as_mut() {
                    status.images = None;
                }
                node
            }),
            leases: all(client, |lease: Lease| Heartbeat {
                renewed: lease.spec.and_then(|spec| spec.renew_time),
            }),
            namespaces: all(client, trimmed),
            service_accounts: all(client, |_: ServiceAccount| ()),
        }
    }

    pub(crate) fn shared(&self, client: Client, recorder: Recorder) -> Shared {
        Shared {
            client,
            recorder,
            pods: self.pods.cache(),
            replica_sets: self.replica_sets.cache(),
            deployments: self.deployments.cache(),
            services: self.services.cache(),
            slices: self.slices.cache(),
            nodes: self.nodes.cache(),
            leases: self.leases.cache(),
            namespaces: self.namespaces.cache(),
            service_accounts: self.service_accounts.cache(),
        }
    }

    /// Calls `handler` for the metadata of all these kinds, with `apiVersion` and `kind`.
    pub(crate) fn on_meta(
        &mut self,
        handler: impl Fn(&str, &str, &ObjectKey, Option<&ObjectMeta>) + Clone + Send + Sync + 'static,
    ) {
        fn hook<K, V>(
            informer: &mut Informer<K, V>,
            handler: impl Fn(&str, &str, &ObjectKey, Option<&ObjectMeta>) + Send + Sync + 'static,
        ) where
            K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
            K: std::fmt::Debug + Send + 'static,
            V: Send + Sync + 'static,
        {
            let (version, kind) = (K::api_version(&()), K::kind(&()));
            informer.on_meta(move |key, meta| handler(&version, &kind, key, meta));
        }
        hook(&mut self.pods, handler.clone());
        hook(&mut self.replica_sets, handler.clone());
        hook(&mut self.deployments, handler.clone());
        hook(&mut self.services, handler.clone());
        hook(&mut self.slices, handler.clone());
        hook(&mut self.nodes, handler.clone());
        hook(&mut self.leases, handler.clone());
        hook(&mut self.namespaces, handler.clone());
        hook(&mut self.service_accounts, handler);
    }

    /// The kinds that [`Watches::on_meta`] covers, as `apiVersion` and `kind`.
    pub(crate) fn kinds() -> [(String, String); 9] {
        fn kind<K: Resource<DynamicType = ()>>() -> (String, String) {
            (K::api_version(&()).into_owned(), K::kind(&()).into_owned())
        }
        [
            kind::<Pod>(),
            kind::<ReplicaSet>(),
            kind::<Deployment>(),
            kind::<Service>(),
            kind::<EndpointSlice>(),
            kind::<Node>(),
            kind::<Lease>(),
            kind::<Namespace>(),
            kind::<ServiceAccount>(),
        ]
    }

    /// Starts all watches.
    pub(crate) fn spawn(self, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        tasks.spawn(self.pods.run(shutdown.clone()));
        tasks.spawn(self.replica_sets.run(shutdown.clone()));
        tasks.spawn(self.deployments.run(shutdown.clone()));
        tasks.spawn(self.services.run(shutdown.clone()));
        tasks.spawn(self.slices.run(shutdown.clone()));
        tasks.spawn(self.nodes.run(shutdown.clone()));
        tasks.spawn(self.leases.run(shutdown.clone()));
        tasks.spawn(self.namespaces.run(shutdown.clone()));
        tasks.spawn(self.service_accounts.run(shutdown.clone()));
    }
}

impl Shared {
    /// Waits until every cache has been filled once. `false` when the watches ended before that.
    pub(crate) async fn synced(&self) -> bool {
        self.pods.synced().await
            && self.replica_sets.synced().await
            && self.deployments.synced().await
            && self.services.synced().await
            && self.slices.synced().await
            && self.nodes.synced().await
            && self.leases.synced().await
            && self.namespaces.synced().await
            && self.service_accounts.synced().await
    }
}

/// Drops the parts of the metadata that no controller reads.
fn trimmed<K: Resource<DynamicType = ()>>(mut object: K) -> K {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = meta.annotations.as_mut() {
        annotations.remove(LAST_APPLIED);
    }
    object
}
