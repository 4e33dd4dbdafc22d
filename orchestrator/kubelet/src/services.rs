//! The variables by which containers find Services without DNS (`enableServiceLinks`).
//!
//! One watch over all Services; of each only its address and ports are kept. Callers: the pod workers, when they make
//! a container's environment.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;

/// How long a container waits for the first list of Services. Without it the environment could lack the address of
/// the apiserver for the container's whole life.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The first list of Services has not come.
#[derive(Debug, thiserror::Error)]
#[error("services have not yet been read at least once, cannot construct envvars")]
pub(crate) struct NotRead;

/// What is kept of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    address: String,
    /// (name, port, protocol)
    ports: Vec<(Option<String>, i32, String)>,
}

/// All Services by namespace and name.
pub(crate) struct Services {
    // A plain mutex: held for map operations only, never across an await.
    entries: Mutex<BTreeMap<(String, String), Entry>>,
    read: watch::Sender<bool>,
}

impl Services {
    pub(crate) fn new() -> Self {
        Self { entries: Mutex::default(), read: watch::Sender::new(false) }
    }

    /// Follows the apiserver; never ends.
    pub(crate) async fn run(&self, client: Client) {
        let api = Api::<Service>::all(client);
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut fresh = BTreeMap::new();
        while let Some(event) = stream.next().await {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(watcher::Event::Init) => fresh.clear(),
                Ok(watcher::Event::InitApply(service)) => apply(&mut fresh, &service),
                Ok(watcher::Event::InitDone) => {
                    *entries = std::mem::take(&mut fresh);
                    self.read.send_replace(true);
                }
                Ok(watcher::Event::Apply(service)) => apply(&mut entries, &service),
                Ok(watcher::Event::Delete(service)) => {
                    entries.remove(&key(&service));
                }
                Err(error) => tracing::debug!(%error, "watch of services failed"),
            }
        }
    }

    /// The variables for a pod of `namespace`: its own Services if it wants links, and the apiserver's always.
    pub(crate) async fn variables(
        &self,
        namespace: &str,
        links: bool,
    ) -> Result<BTreeMap<String, String>, NotRead> {
        let mut read = self.read.subscribe();
        let first = tokio::time::timeout(FIRST_LIST_TIMEOUT, read.wait_for(|read| *read));
        if !matches!(first.await, Ok(Ok(_))) {
            return Err(NotRead);
        }
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut variables = BTreeMap::new();
        for ((space, name), entry) in entries.iter() {
            let apiserver = space == "default" && name == "kubernetes";
            if apiserver || (links && space == namespace) {
                add_variables(&mut variables, name, entry);
            }
        }
        Ok(variables)
    }
}

fn key(service: &Service) -> (String, String) {
    let metadata = &service.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn apply(entries: &mut BTreeMap<(String, String), Entry>, service: &Service) {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.clone());
    // Headless Services have no address to give.
    match address.filter(|address| !address.is_empty() && address != "None") {
        Some(address) => {
            let ports = spec.into_iter().flat_map(|spec| spec.ports.iter().flatten());
            let ports = ports
                .map(|port| {
                    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                    (port.name.clone().filter(|name| !name.is_empty()), port.port, protocol)
                })
                .collect();
            entries.insert(key(service), Entry { address, ports });
        }
        None => {
            entries.remove(&key(service));
        }
    }
}

/// Both forms: `NAME_SERVICE_HOST` and the one of Docker's links, `NAME_PORT_80_TCP_ADDR`.
fn add_variables(variables: &mut BTreeMap<String, String>, name: &str, entry: &Entry) {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(name);
    let address = &entry.address;
    let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
    let mut set = |suffix: String, value: String| variables.insert(format!("{name}_{suffix}"), value);
    set("SERVICE_HOST".to_owned(), address.clone());
    for (index, (port_name, port, protocol)) in entry.ports.iter().enumerate() {
        let url = format!("{}://{host}:{port}", protocol.to_lowercase());
        if index == 0 {
            set("SERVICE_PORT".to_owned(), port.to_string());
            set("PORT".to_owned(), url.clone());
        }
        if let Some(port_name) = port_name {
            set(format!("SERVICE_PORT_{}", upper(port_name)), port.to_string());
        }
        let link = format!("PORT_{port}_{}", protocol.to_uppercase());
        set(link.clone(), url);
        set(format!("{link}_PROTO"), protocol.to_lowercase());
        set(format!("{link}_PORT"), port.to_string());
        set(format!("{link}_ADDR"), address.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_pod_sees_its_namespace_and_the_apiserver() {
        let services = Services::new();
        {
            let mut entries = services.entries.lock().unwrap();
            apply(&mut entries, &service("default", "kubernetes", "10.96.0.1"));
            apply(&mut entries, &service("shop", "web-front", "10.96.0.9"));
            apply(&mut entries, &service("shop", "headless", "None"));
            apply(&mut entries, &service("other", "db", "10.96.0.8"));
        }
        services.read.send_replace(true);
        let linked = services.variables("shop", true).await.unwrap();
        assert_eq!(linked["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(linked["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
        assert_eq!(linked["WEB_FRONT_PORT_443_TCP"], "tcp://10.96.0.9:443");
        assert!(!linked.keys().any(|key| key.starts_with("DB_") || key.starts_with("HEADLESS")));
        let unlinked = services.variables("shop", false).await.unwrap();
        assert!(unlinked.keys().all(|key| key.starts_with("KUBERNETES_")));
    }
}
