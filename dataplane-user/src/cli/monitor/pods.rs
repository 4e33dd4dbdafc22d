//! Names of pods by address, from the API server if there is one to ask.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};

/// Pods that are known by name; the addresses of more stay addresses.
const PODS: usize = 65_536;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Pods(Arc<Mutex<HashMap<IpAddr, String>>>);

impl Pods {
    pub(super) fn name(&self, address: IpAddr) -> Option<String> {
        self.0.lock().expect("nobody panics with it").get(&address).cloned()
    }

    /// Follows the cluster's pods for as long as it is polled. An API server that does not answer is said once.
    pub(super) fn follow(&self, client: kube::Client) -> impl Future<Output = ()> + use<> {
        let pods = self.clone();
        async move {
            let events =
                watcher::watcher(Api::<Pod>::all(client), watcher::Config::default()).default_backoff();
            pin_mut!(events);
            let mut said = false;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => pods.apply(event),
                    Err(error) if !said => {
                        said = true;
                        eprintln!("weir: pods are shown by their addresses: {error}");
                    }
                    Err(_) => {}
                }
            }
        }
    }

    fn apply(&self, event: Event<Pod>) {
        let mut known = self.0.lock().expect("nobody panics with it");
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let name = name(&pod);
                for address in addresses(&pod) {
                    if known.len() < PODS || known.contains_key(&address) {
                        known.insert(address, name.clone());
                    }
                }
            }
            // Another pod may have its address by now.
            Event::Delete(pod) => {
                let name = name(&pod);
                for address in addresses(&pod) {
                    if known.get(&address) == Some(&name) {
                        known.remove(&address);
                    }
                }
            }
            Event::Init => known.clear(),
            Event::InitDone => {}
        }
    }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Addresses that are the pod's alone: not those of its node, and not of one that has ended.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
    let Some(status) = pod.status.as_ref().filter(|_| !host) else { return Vec::new() };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    status.pod_ips.iter().flatten().filter_map(|it| it.ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ip: &str, host: bool) -> Pod {
        let value = json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"containers": [], "hostNetwork": host},
            "status": {"podIPs": [{"ip": ip}]},
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_address_is_the_last_pods_that_had_it() {
        let (pods, ip) = (Pods::default(), "10.244.0.2");
        let address: IpAddr = ip.parse().unwrap();
        pods.apply(Event::InitApply(pod("a", ip, false)));
        pods.apply(Event::Apply(pod("b", ip, false)));
        pods.apply(Event::Delete(pod("a", ip, false)));
        assert_eq!(pods.name(address).as_deref(), Some("default/b"));
        pods.apply(Event::Delete(pod("b", ip, false)));
        assert_eq!(pods.name(address), None);
        pods.apply(Event::Apply(pod("c", ip, true)));
        assert_eq!(pods.name(address), None, "that is the node's");
    }
}
