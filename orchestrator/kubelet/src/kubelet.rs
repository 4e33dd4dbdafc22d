//! The role: puts the parts together and runs them until it is told to stop.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, RwLock},
};

use futures::future::BoxFuture;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use weir_client::EventWriter;

use crate::{
    config::Config,
    error::{Error, Result},
    events::{Events, Kind},
    metrics::Metrics,
    node::{NodeAgent, follow_pod_cidr, machine, take_pod_cidr},
    objects::Objects,
    pods::{dispatch::Dispatcher, execute::Shared, spec::PodDefaults},
    quantity,
    runtime::{Runtime, embedded::Embedded},
    server::{Server, Tls},
    services::Services,
};

/// The kubelet of one node.
pub struct Kubelet {
    config: Config,
    client: Client,
    metrics: Metrics,
    events: Events,
    writer: EventWriter,
}

impl Kubelet {
    /// Registers metrics (prefix `weir_kubelet_`). Settings that cannot be used are errors here.
    pub fn new(config: Config, client: Client, metrics: &mut Registry) -> Result<Self> {
        config.system_reserved()?;
        config.resolved_cluster_dns()?;
        let name = config.resolved_node_name()?;
        config.resolved_node_ip()?;
        let registry = metrics.sub_registry_with_prefix("weir_kubelet");
        let (events, writer) = Events::new(client.clone(), name, registry);
        Ok(Self { config, client, metrics: Metrics::new(registry), events, writer })
    }

    /// Runs until `shutdown`; sends `ready` once the node is registered and the server serves. Pods outlive it.
    pub fn run(
        self,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<()>> {
        // In a box it is compiled here, and not among the executable's other roles.
        Box::pin(self.serve(ready, shutdown))
    }

    async fn serve(self, ready: oneshot::Sender<()>, shutdown: CancellationToken) -> Result<()> {
        let runtime = Embedded::open(self.config.runtime()).await?;
        // On the heap: it holds the state of every part.
        Box::pin(self.run_with(runtime, ready, shutdown)).await
    }

    /// The same with another runtime.
    async fn run_with<R: Runtime>(
        self,
        runtime: R,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> Result<()> {
        let Self { config, client, metrics, events, writer } = self;
        let (name, ip) = (config.resolved_node_name()?, config.resolved_node_ip()?);
        for dir in [config.pods_dir(), config.resolved_log_dir()] {
            std::fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        }
        let tls = Tls::new(config.tls_files())?;
        let listener = Server::<R>::bind(SocketAddr::new(config.address, config.port)).await?;
        let port = listener.local_addr().map_or(config.port, |address| address.port());
        let (capacity, allocatable) = machine::resources(&config)?;
        let memory = capacity.get("memory").and_then(quantity::units).unwrap_or(0);

        let runtime = Arc::new(runtime);
        let (network, network_seen) = watch::channel(None);
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            client: client.clone(),
            objects: Objects::new(client.clone(), metrics.clone()),
            services: Arc::new(Services::new()),
            events: events.clone(),
            metrics: metrics.clone(),
            defaults: PodDefaults {
                pods_dir: config.pods_dir(),
                log_dir: config.resolved_log_dir(),
                cluster_dns: config.resolved_cluster_dns()?,
                cluster_domain: config.cluster_domain.clone(),
                memory_bytes: memory,
            },
            node_ip: ip,
            allocatable: allocatable.clone(),
        });
        let data_dir = config.data_dir.clone();
        let agent = NodeAgent {
            client: client.clone(),
            name: name.clone(),
            ip,
            port,
            data_dir,
            thresholds: config.eviction_hard.clone(),
            capacity,
            allocatable,
        };
        let table = Arc::new(RwLock::new(HashMap::new()));
        let server = Server::new(runtime.clone(), table.clone(), metrics);
        let dispatcher = Dispatcher::new(shared.clone(), config.max_pods, network_seen.clone(), table);

        let work = async {
            let node = agent.register().await?;
            events.node(&name, Kind::Normal, "Starting", "Starting kubelet.".to_owned());
            tracing::info!(node = name, %ip, port, "the node is registered");
            // Before the first status: a node that was ready and is not said to be for the blink of its kubelet's
            // restart loses its pods their place in every Service.
            take_pod_cidr(&node, &*runtime, &network).await;
            // Whoever started us may have lost interest.
            let _ = ready.send(());
            tokio::join!(
                agent.run(&*runtime, node, network_seen),
                follow_pod_cidr(client.clone(), &name, &*runtime, &network),
                shared.services.run(client.clone()),
                dispatcher.run(&name),
                server.run(listener, tls),
            );
            Ok(())
        };
        tokio::select! {
            result = work => result,
            () = writer.run(shutdown) => Ok(()),
        }
    }
}
