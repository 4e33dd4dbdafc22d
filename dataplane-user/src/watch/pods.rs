//! Pods of this node that want ports of the node (`hostPort`). All others are forgotten as they arrive.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{ResourceExt as _, runtime::watcher::Event};

use super::unserved::{Unserved, port_number, protocol, usable};
use crate::plan::model::{HostPort, HostPorts, ServiceKey};

/// One Pod with host ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PodState {
    pub(super) ports: HostPorts,
    pub(super) uid: Option<Box<str>>,
    pub(super) unserved: Vec<Unserved>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pods {
    all: HashMap<ServiceKey, PodState>,
    seen: BTreeSet<ServiceKey>,
    pub(super) complete: bool,
}

impl Pods {
    pub(super) fn get(&self, key: &ServiceKey) -> Option<&PodState> {
        self.all.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.all.keys()
    }

    /// Takes in one event; says which Pods changed.
    pub(super) fn apply(&mut self, event: Event<Pod>) -> Vec<ServiceKey> {
        match event {
            Event::Apply(pod) => self.put(&pod).into_iter().collect(),
            Event::InitApply(pod) => {
                self.seen.insert(key(&pod));
                self.put(&pod).into_iter().collect()
            }
            Event::Delete(pod) => self.remove(key(&pod)).into_iter().collect(),
            Event::Init => {
                self.seen.clear();
                Vec::new()
            }
            Event::InitDone => {
                self.complete = true;
                let seen = std::mem::take(&mut self.seen);
                let gone: Vec<_> = self.all.keys().filter(|key| !seen.contains(key)).cloned().collect();
                gone.into_iter().filter_map(|key| self.remove(key)).collect()
            }
        }
    }

    fn put(&mut self, pod: &Pod) -> Option<ServiceKey> {
        let key = key(pod);
        let Some(state) = state(pod) else { return self.remove(key) };
        if self.all.get(&key) == Some(&state) {
            return None;
        }
        self.all.insert(key.clone(), state);
        Some(key)
    }

    fn remove(&mut self, key: ServiceKey) -> Option<ServiceKey> {
        self.all.remove(&key).map(|_| key)
    }
}

fn key(pod: &Pod) -> ServiceKey {
    ServiceKey::pod(&pod.namespace().unwrap_or_default(), &pod.name_any())
}

/// The Pod as the plan sees it; nothing when it wants no port, has the node's own network, or has ended.
fn state(pod: &Pod) -> Option<PodState> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut unserved = Vec::new();
    // Init containers that stay are sidecars, and their ports are as good as any (KEP-753).
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let wanted = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number != 0)?;
        let protocol = protocol(port.protocol.as_deref(), number, &mut unserved)?;
        let address = match port.host_ip.as_deref().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => match host_address(text) {
                Ok(address) => address,
                Err(problem) => {
                    unserved.push(problem);
                    return None;
                }
            },
        };
        Some(HostPort {
            address,
            port: port_number("spec.containers.ports.hostPort", number, &mut unserved)?,
            protocol: protocol.0,
            container_port: port_number(
                "spec.containers.ports.containerPort",
                port.container_port,
                &mut unserved,
            )?,
        })
    });
    let ports: Vec<HostPort> = wanted.collect();
    if ports.is_empty() && unserved.is_empty() {
        return None;
    }
    unserved.sort();
    let several = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    let several = several.iter().map(|pod_ip| &pod_ip.ip);
    let single = status.and_then(|status| status.pod_ip.as_ref());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in several.chain(single).filter_map(|text| text.parse::<IpAddr>().ok()) {
        if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            addresses.push(address);
        }
    }
    let uid = pod.metadata.uid.as_deref().map(Into::into);
    Some(PodState { ports: HostPorts { addresses, ports }, uid, unserved })
}

/// The address that a `hostIP` names; nothing for all.
fn host_address(text: &str) -> Result<Option<IpAddr>, Unserved> {
    let field = "spec.containers.ports.hostIP";
    let address: IpAddr = text.parse().map_err(|_| Unserved::Address { field, value: text.to_owned() })?;
    if address.is_unspecified() { Ok(None) } else { usable(field, address).map(Some) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use weir_dataplane_ebpf::Protocol;

    use super::*;

    fn pod(spec: &Value, status: &Value) -> Pod {
        let metadata = json!({"name": "p", "namespace": "n", "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn container(ports: &Value) -> Value {
        json!({"containers": [{"name": "c", "ports": ports}]})
    }

    fn running() -> Value {
        json!({"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]})
    }

    #[test]
    fn ports_of_the_node_are_found_in_containers_and_sidecars() {
        let ports = |number: i32| json!([{"containerPort": 80, "hostPort": number}, {"containerPort": 81}]);
        let spec = json!({
            "containers": [{"name": "a", "ports": ports(8080)}, {"name": "b", "ports": [
                {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"containerPort": 54, "hostPort": 54, "protocol": "UDP", "hostIP": "0.0.0.0"},
            ]}],
            "initContainers": [
                {"name": "sidecar", "restartPolicy": "Always", "ports": ports(8081)}, {"name": "i", "ports": ports(8082)},
            ],
        });
        let state = state(&pod(&spec, &running())).unwrap();
        assert_eq!(
            state.ports.addresses,
            ["10.244.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]
        );
        let rows = state.ports.ports.iter().map(|p| (p.address.map(|a| a.to_string()), p.port, p.protocol));
        let (tcp, udp) = (Protocol::TCP.0, Protocol::UDP.0);
        let own = Some("192.0.2.1".to_owned());
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [(None, 8080, tcp), (own, 53, udp), (None, 54, udp), (None, 8081, tcp)]
        );
        assert_eq!(state.unserved, []);
    }

    #[test]
    fn without_a_host_port_of_its_own_a_pod_is_forgotten() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
        assert_eq!(state(&pod(&container(&json!([{"containerPort": 80}])), &running())), None);
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(
                state(&pod(&container(&ports), &json!({"phase": phase, "podIP": "10.244.0.2"}))),
                None
            );
        }
        let mut own = container(&ports);
        own["hostNetwork"] = json!(true);
        assert_eq!(state(&pod(&own, &running())), None, "its process has the port itself");
        let pending = state(&pod(&container(&ports), &json!({}))).unwrap();
        assert!(pending.ports.addresses.is_empty(), "its address comes later");
    }

    #[test]
    fn what_is_not_served_is_named_and_the_rest_served() {
        let ports = json!([
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 9, "hostPort": 9, "protocol": "DCCP"},
            {"containerPort": 80, "hostPort": 1, "hostIP": "127.0.0.1"}, {"containerPort": 80, "hostPort": 2, "hostIP": "x"},
        ]);
        let state = state(&pod(&container(&ports), &running())).unwrap();
        assert_eq!(state.ports.ports.len(), 1);
        let texts: Vec<String> = state.unserved.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "port 9: protocol DCCP is not served; TCP, UDP and SCTP are",
                "spec.containers.ports.hostIP `x` is not an IP address",
                "spec.containers.ports.hostIP 127.0.0.1 is a loopback address, which means another machine to each client; give one that clients can reach",
            ]
        );
    }

    #[test]
    fn changes_are_told_once() {
        let mut pods = Pods::default();
        let with =
            |status: Value| pod(&container(&json!([{"containerPort": 80, "hostPort": 8080}])), &status);
        let key = ServiceKey::pod("n", "p");
        assert_eq!(pods.apply(Event::Init), []);
        assert_eq!(pods.apply(Event::InitApply(with(running()))), std::slice::from_ref(&key));
        assert_eq!((pods.apply(Event::InitDone), pods.complete), (vec![], true));
        assert_eq!(pods.apply(Event::Apply(with(running()))), [], "the same again is no change");
        assert_eq!(pods.apply(Event::Apply(with(json!({"phase": "Succeeded"})))), std::slice::from_ref(&key));
        assert_eq!(pods.apply(Event::Delete(with(json!({"phase": "Succeeded"})))), []);
        pods.apply(Event::Apply(with(running())));
        assert_eq!(pods.apply(Event::Init), []);
        assert_eq!(pods.apply(Event::InitDone), [key], "a full read does not show it");
        assert_eq!(pods.keys().count(), 0);
    }
}
