//! The node's own object and its lease: what the rest of the cluster knows of this machine.
//!
//! Registration merges: labels, taints and `podCIDR` that others have set stay. The status is written when something
//! in it changed, else every five minutes; that the node is alive is said by the lease alone, every ten seconds,
//! because it is small. Called from [`crate::Kubelet::run`].

pub(crate) mod machine;
pub(crate) mod pressure;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
            NodeStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;

use self::{
    machine::Resources,
    pressure::{Pressure, Thresholds},
};
use crate::{
    error::{Error, Result},
    pods::container_status::seconds,
    runtime::{Image, Runtime},
};

/// How often the lease is renewed and the machine looked at.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// How long the node counts as alive after its last renewal.
const LEASE_SECONDS: i32 = 40;
/// How long a status that does not change goes unwritten.
const STATUS_PERIOD: Duration = Duration::from_mins(5);
/// How many images the status lists, the largest first, as upstream.
const IMAGES: usize = 50;
/// First and longest wait between two tries to register.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// This node, as it presents itself.
pub(crate) struct NodeAgent {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) data_dir: std::path::PathBuf,
    pub(crate) thresholds: Thresholds,
    pub(crate) capacity: Resources,
    pub(crate) allocatable: Resources,
}

impl NodeAgent {
    /// Creates the node's object, or brings labels and status up to date. Tries until the apiserver answers; a
    /// refusal is final.
    pub(crate) async fn register(&self) -> Result<Node> {
        let mut wait = RETRY.0;
        loop {
            match self.try_register().await {
                Ok(node) => return Ok(node),
                Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 422) => {
                    return Err(Error::api("register the node")(kube::Error::Api(status)));
                }
                Err(error) => tracing::warn!(%error, "the node is not registered yet"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    async fn try_register(&self) -> Result<Node, kube::Error> {
        let api = Api::<Node>::all(self.client.clone());
        let labels = self.labels();
        let wanted = Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec::default()),
            status: None,
        };
        let node = match api.create(&PostParams::default(), &wanted).await {
            Ok(node) => node,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = serde_json::json!({"metadata": {"labels": labels}});
                api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await?
            }
            Err(error) => return Err(error),
        };
        Ok(node)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let arch = machine::architecture().to_owned();
        [
            ("kubernetes.io/hostname", self.name.clone()),
            ("kubernetes.io/arch", arch.clone()),
            ("kubernetes.io/os", "linux".to_owned()),
            ("beta.kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Keeps the status and the lease fresh; never ends. `network` says whether the pod network is there.
    pub(crate) async fn run<R: Runtime>(
        &self,
        runtime: &R,
        node: Node,
        mut network: watch::Receiver<Option<String>>,
    ) {
        let mut written: Option<(NodeStatus, Timestamp)> = None;
        let mut known = Pressure::default();
        let mut conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let mut tick = tokio::time::interval(LEASE_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if let Err(error) = self.renew_lease(node.metadata.uid.as_deref()).await {
                        tracing::warn!(%error, "the node's lease is not renewed");
                    }
                }
                changed = network.changed() => if changed.is_err() { return },
            }
            let now = Timestamp::now();
            let images = runtime.list_images().await.unwrap_or_default();
            let pressure = Pressure::of(&self.data_dir, &self.thresholds);
            if pressure != known {
                tracing::warn!(?pressure, "what is short on this node has changed");
                known = pressure.clone();
            }
            let ready = network.borrow().is_some();
            let status = self.status(&conditions, pressure, ready, images, now);
            let due = written.as_ref().is_none_or(|(before, at)| {
                !same(before, &status) || now.duration_since(*at).unsigned_abs() >= STATUS_PERIOD
            });
            if due {
                let api = Api::<Node>::all(self.client.clone());
                let patch = serde_json::json!({"status": &status});
                match api.patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
                    Ok(_) => {
                        conditions = status.conditions.clone().unwrap_or_default();
                        written = Some((status, now));
                    }
                    Err(kube::Error::Api(answer)) if answer.code == 404 => {
                        // Somebody deleted the node; a kubelet that runs is a node that is.
                        if let Err(error) = self.try_register().await {
                            tracing::warn!(%error, "the node is not registered again");
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the node's status is not written"),
                }
            }
        }
    }

    async fn renew_lease(&self, uid: Option<&str>) -> Result<(), kube::Error> {
        let api = Api::<Lease>::namespaced(self.client.clone(), "kube-node-lease");
        let spec = LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let patch = serde_json::json!({"spec": &spec});
        match api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(|_| ()),
        }
        let owner = uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        });
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        api.create(&PostParams::default(), &lease).await.map(|_| ())
    }

    fn status(
        &self,
        before: &[NodeCondition],
        pressure: Pressure,
        network_ready: bool,
        images: Vec<Image>,
        now: Timestamp,
    ) -> NodeStatus {
        NodeStatus {
            capacity: Some(self.capacity.clone()),
            allocatable: Some(self.allocatable.clone()),
            addresses: Some(vec![
                NodeAddress { type_: "InternalIP".to_owned(), address: self.ip.to_string() },
                NodeAddress { type_: "Hostname".to_owned(), address: self.name.clone() },
            ]),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.port) }),
            }),
            node_info: Some(machine::system_info()),
            conditions: Some(conditions(before, pressure, network_ready, now)),
            images: Some(image_list(images)),
            ..NodeStatus::default()
        }
    }
}

fn image_list(mut images: Vec<Image>) -> Vec<ContainerImage> {
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    images.truncate(IMAGES);
    images
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.references),
            size_bytes: Some(i64::try_from(image.size_bytes).unwrap_or(i64::MAX)),
        })
        .collect()
}

/// The four conditions, with the transition times of those that did not change.
fn conditions(
    before: &[NodeCondition],
    pressure: Pressure,
    network_ready: bool,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let ready = if network_ready {
        (true, "KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        let message = "the node has no podCIDR yet; the node-ipam controller assigns it";
        (false, "KubeletNotReady", message.to_owned())
    };
    [
        ("MemoryPressure", pressure.memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
        ("DiskPressure", pressure.disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
        ("PIDPressure", pressure.pid, "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
    ]
    .map(|(type_, short, yes, no)| match short {
        Some(found) => (type_, (true, yes, found)),
        None => (type_, (false, no, format!("kubelet has {}", no.trim_start_matches("KubeletHas")))),
    })
    .into_iter()
    .chain([("Ready", ready)])
    .map(|(type_, (ok, reason, message))| {
        let status = if ok { "True" } else { "False" };
        let since = before
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone());
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(seconds(now)),
            last_transition_time: Some(since.unwrap_or_else(|| seconds(now))),
        }
    })
    .collect()
}

/// Equal but for the heartbeat, which alone is no reason to write.
fn same(one: &NodeStatus, other: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = Some(Time(Timestamp::UNIX_EPOCH));
        }
        status
    };
    still(one) == still(other)
}

/// Follows the node's own object and says which addresses its pods get; never ends.
pub(crate) async fn follow_pod_cidr<R: Runtime>(
    client: Client,
    name: &str,
    runtime: &R,
    network: &watch::Sender<Option<String>>,
) {
    let api = Api::<Node>::all(client);
    let mut stream = std::pin::pin!(watcher::watch_object(api, name).default_backoff());
    while let Some(event) = stream.next().await {
        let node = match event {
            Ok(node) => node,
            Err(error) => {
                tracing::debug!(%error, "watch of the node failed");
                continue;
            }
        };
        if let Some(node) = node {
            take_pod_cidr(&node, runtime, network).await;
        }
    }
}

/// Gives pods the addresses that the node's object says, if it says any, and tells that the pod network is there.
pub(crate) async fn take_pod_cidr<R: Runtime>(
    node: &Node,
    runtime: &R,
    network: &watch::Sender<Option<String>>,
) {
    let cidr = node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
    let Some(cidr) = cidr.filter(|cidr| network.borrow().as_ref() != Some(cidr)) else { return };
    match runtime.set_pod_cidr(&cidr).await {
        Ok(()) => {
            tracing::info!(cidr, "pods of this node have their addresses");
            network.send_replace(Some(cidr));
        }
        Err(error) => tracing::error!(cidr, %error, "the runtime refuses the node's podCIDR"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let (one, two) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(200).unwrap());
        let first = conditions(&[], Pressure::default(), false, one);
        let second = conditions(
            &first,
            Pressure { memory: Some("9 of 100".to_owned()), ..Pressure::default() },
            false,
            two,
        );
        let time = |list: &[NodeCondition], type_: &str| {
            list.iter().find(|c| c.type_ == type_).unwrap().last_transition_time.clone().unwrap().0
        };
        assert_eq!(time(&second, "Ready"), one);
        assert_eq!(time(&second, "MemoryPressure"), two);
        assert_eq!(second[0].reason.as_deref(), Some("KubeletHasInsufficientMemory"));
    }
}
