//! The API server for tests of its clients: the real one, in the test's own process, on files of the test.
//!
//! What a test looks at is a [`Mirror`]: it follows all kinds, so that a test can wait for a state of the whole cluster
//! and can count what changed.

mod mirror;

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use weir_api::{Resource, resource};
use weir_apiserver::Config;

pub use self::mirror::Mirror;

/// A running server, stopped when dropped.
pub struct Apiserver {
    directory: PathBuf,
    admin: Client,
    mirror: Mirror,
    _stop: DropGuard,
}

impl Apiserver {
    /// Serves on a free port of the loopback address; certificates and kubeconfigs are for a node of that name.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start(directory: &Path, node_name: &str) -> Self {
        install_tls();
        let config = config(directory, node_name, free_port());
        let server = weir_apiserver::Apiserver::new(config, &mut Registry::default()).expect("a server");
        let (ready, is_ready) = oneshot::channel();
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(ready, stop.clone()));
        let Ok(()) = is_ready.await else {
            panic!("the server stopped before it was ready: {:?}", running.await);
        };
        let admin = client(directory, "admin").await;
        let mirror = Mirror::start(&admin, &stop).await;
        Self { directory: directory.to_owned(), admin, mirror, _stop: stop.drop_guard() }
    }

    /// A client with the identity of that kubeconfig.
    pub async fn client(&self, identity: &str) -> Client {
        client(&self.directory, identity).await
    }

    /// What there is.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Creates `plural/namespace/name` as the administrator; the object need not say again what the key says.
    pub async fn create(&self, key: &str, mut object: Value) -> Value {
        let (row, namespace, name) = parse(key);
        object["apiVersion"] = row.api_version().into();
        object["kind"] = row.kind.into();
        object["metadata"]["name"] = name.into();
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        let created = self.api(row, namespace).create(&PostParams::default(), &object).await;
        serde_json::to_value(created.unwrap_or_else(|error| panic!("{key} is not created: {error}")))
            .expect("JSON")
    }

    /// Merges a patch into `plural/namespace/name`, as the administrator.
    pub async fn merge(&self, key: &str, patch: Value) {
        let (row, namespace, name) = parse(key);
        let merged =
            self.api(row, namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        merged.unwrap_or_else(|error| panic!("{key} is not changed: {error}"));
    }

    /// The same for the object's status.
    pub async fn merge_status(&self, key: &str, status: Value) {
        let (row, namespace, name) = parse(key);
        let patch = Patch::Merge(json!({ "status": status }));
        let merged = self.api(row, namespace).patch_status(name, &PatchParams::default(), &patch).await;
        merged.unwrap_or_else(|error| panic!("the status of {key} is not changed: {error}"));
    }

    /// Deletes `plural/namespace/name`, as the administrator. What is gone already is as well.
    pub async fn delete(&self, key: &str, params: &DeleteParams) {
        let (row, namespace, name) = parse(key);
        match self.api(row, namespace).delete(name, params).await {
            Err(error) if !weir_client::is_not_found(&error) => panic!("{key} is not deleted: {error}"),
            _ => {}
        }
    }

    fn api(&self, row: &Resource, namespace: &str) -> Api<DynamicObject> {
        let resource = api_resource(row);
        if row.namespaced {
            Api::namespaced_with(self.admin.clone(), namespace, &resource)
        } else {
            Api::all_with(self.admin.clone(), &resource)
        }
    }
}

/// A server's configuration: loopback, small bounds, an address that nobody can reach.
pub fn config(directory: &Path, node_name: &str, port: u16) -> Config {
    Config {
        data_dir: directory.to_owned(),
        bind_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port,
        advertise_address: vec![IpAddr::from([192, 0, 2, 1])],
        node_name: node_name.to_owned(),
        service_cidr: "10.96.0.0/16".parse().expect("a range"),
        node_port_range: "30000-30099".parse().expect("a range"),
        token_file: None,
        max_in_flight: 400,
        max_connections: 100,
    }
}

/// A port of the loopback address that is free now.
pub fn free_port() -> u16 {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    probe.local_addr().expect("bound").port()
}

/// A client with the identity of that kubeconfig below a server's directory.
pub async fn client(directory: &Path, identity: &str) -> Client {
    install_tls();
    let kubeconfig = directory.join(format!("kubeconfig/{identity}.kubeconfig"));
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a usable kubeconfig");
    Client::try_from(config).expect("a client")
}

/// The TLS provider of this process; another test of it may have been first.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The row, namespace and name that `plural/namespace/name` means. Of two groups with a plural the core group's.
fn parse(key: &str) -> (&'static Resource, &str, &str) {
    let [plural, namespace, name] = key.split('/').collect::<Vec<_>>()[..] else {
        panic!("{key} is not plural/namespace/name");
    };
    let row = resource::resources().iter().find(|row| row.plural == plural);
    (row.unwrap_or_else(|| panic!("there are no {plural}")), namespace, name)
}

fn api_resource(row: &Resource) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(row.group, row.version, row.kind), row.plural)
}
