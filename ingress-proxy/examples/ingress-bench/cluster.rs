//! The API server that Weir's ingress is a client of: the real one, on threads of this process, beside the load.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weir_tests_apiserver::Apiserver;

use crate::certificate::{Certificate, HOST};

/// Objects that are created side by side.
const SIDE_BY_SIDE: usize = 32;
/// Of the many Ingresses, each.
pub(crate) const PATHS: [&str; 4] = ["/", "/api", "/api/orders", "/static/images"];

/// A running API server with one Service, one EndpointSlice and one Ingress.
pub(crate) struct Cluster {
    // Before the runtime, on which its end is said.
    server: Arc<Apiserver>,
    runtime: Runtime,
    directory: PathBuf,
}

impl Cluster {
    /// Starts it; call it outside of any runtime.
    pub(crate) fn start(directory: &Path, backend: SocketAddr, certificate: &Certificate) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let server = runtime.block_on(async {
            let server = Apiserver::start(directory, "bench").await;
            for (key, object) in objects(backend, certificate) {
                server.create(key, object).await;
            }
            server
        });
        Ok(Self { server: Arc::new(server), runtime, directory: directory.to_owned() })
    }

    /// The identity of the ingress.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig/ingress.kubeconfig")
    }

    /// Creates an Ingress for that host alone.
    pub(crate) async fn create_ingress(&self, name: &str, host: &str) -> Result<()> {
        let (server, key, object) = (Arc::clone(&self.server), key(name), ingress(host));
        let creating = self.runtime.spawn(async move { server.create(&key, object).await });
        creating.await.with_context(|| format!("creating an Ingress for {host}")).map(drop)
    }

    /// Creates an Ingress with [`PATHS`] for each.
    pub(crate) async fn create_ingresses(&self, names_and_hosts: Vec<(String, String)>) -> Result<()> {
        let creating = names_and_hosts.iter().map(|(name, host)| self.create_ingress(name, host));
        stream::iter(creating).buffer_unordered(SIDE_BY_SIDE).try_collect().await
    }

    /// Deletes an Ingress.
    pub(crate) async fn delete_ingress(&self, name: &str) -> Result<()> {
        let (server, key) = (Arc::clone(&self.server), key(name));
        let deleting = self.runtime.spawn(async move { server.delete(&key, &DeleteParams::default()).await });
        deleting.await.with_context(|| format!("deleting the Ingress {name}"))
    }
}

fn key(ingress: &str) -> String {
    format!("ingresses/default/{ingress}")
}

/// What there is from the start.
fn objects(backend: SocketAddr, certificate: &Certificate) -> [(&'static str, Value); 5] {
    let slice = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "app"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": backend.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [backend.ip().to_string()], "conditions": {"ready": true}}],
    });
    let pair =
        json!({"tls.crt": STANDARD.encode(&certificate.chain), "tls.key": STANDARD.encode(&certificate.key)});
    let mut first = ingress(HOST);
    first["spec"]["tls"] = json!([{"hosts": [HOST], "secretName": "pair"}]);
    // It is asked both ways.
    first["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/ssl-redirect": "false"});
    [
        ("ingressclasses//weir", json!({"spec": {"controller": weir_ingress::compile::CONTROLLER}})),
        ("secrets/default/pair", json!({"type": "kubernetes.io/tls", "data": pair})),
        ("services/default/app", json!({"spec": {"ports": [{"name": "http", "port": 80}]}})),
        ("endpointslices/default/app-1", slice),
        ("ingresses/default/first", first),
    ]
}

fn ingress(host: &str) -> Value {
    let path = |path: &&str| {
        let backend = json!({"service": {"name": "app", "port": {"name": "http"}}});
        json!({"path": path, "pathType": "Prefix", "backend": backend})
    };
    let paths: Vec<Value> = PATHS.iter().map(path).collect();
    json!({"spec": {"ingressClassName": "weir", "rules": [{"host": host, "http": {"paths": paths}}]}})
}
