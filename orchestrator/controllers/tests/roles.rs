//! The controllers and the scheduler together, as clients of a real API server: do the watches, queues and requests
//! around the pure plans bring a cluster to where it should be, and then leave it alone?

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::DeleteParams;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weir_controllers::Controllers;
use weir_scheduler::Scheduler;
use weir_tests_apiserver::{Apiserver, Mirror};

/// The server and both roles, stopped on drop; the test plays the kubelets.
struct Cluster {
    shutdown: CancellationToken,
    api: Apiserver,
    _directory: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let api = Apiserver::start(directory.path(), "n1").await;
        let shutdown = CancellationToken::new();
        let mut metrics = Registry::default();
        let client = api.client("controllers").await;
        let controllers = Controllers::new(weir_controllers::Config::default(), client, &mut metrics);
        let client = api.client("scheduler").await;
        let scheduler = Scheduler::new(weir_scheduler::Config::default(), client, &mut metrics);
        let (ready, controllers_ready) = oneshot::channel();
        tokio::spawn(controllers.expect("the defaults are fine").run(ready, shutdown.clone()));
        let (ready, scheduler_ready) = oneshot::channel();
        tokio::spawn(scheduler.expect("the defaults are fine").run(ready, shutdown.clone()));
        controllers_ready.await.expect("controllers become ready");
        scheduler_ready.await.expect("scheduler becomes ready");

        api.create("namespaces//ns", json!({})).await;
        tokio::spawn(run_pods(api.mirror().clone(), api.client("admin").await, shutdown.clone()));
        Self { shutdown, api, _directory: directory }
    }

    async fn node(&self, name: &str) {
        let allocatable = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
        let ready = json!({ "type": "Ready", "status": "True" });
        let status = json!({ "allocatable": allocatable, "conditions": [ready] });
        let key = format!("nodes//{name}");
        self.api.create(&key, json!({})).await;
        self.api.merge_status(&key, status).await;
    }

    async fn deploy(&self, image: &str, replicas: i32) {
        let template = json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "c", "image": image }] },
        });
        let spec = json!({
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } }, "template": template,
        });
        self.api.create(WEB, json!({ "spec": spec })).await;
    }

    async fn wait_until(&self, why: &str, holds: impl Fn(&Mirror) -> bool) {
        self.api.mirror().wait_until(why, holds).await;
    }

    /// All objects of a kind in the test's namespace.
    fn all(&self, plural: &str) -> Vec<Value> {
        all(self.api.mirror(), plural)
    }

    /// Waits until nothing changes for a while, and returns how often something did.
    async fn settle(&self) -> usize {
        loop {
            let before = self.api.mirror().changes();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if self.api.mirror().changes() == before {
                return before;
            }
        }
    }
}

/// The Deployment of these tests.
const WEB: &str = "deployments/ns/web";

fn all(mirror: &Mirror, plural: &str) -> Vec<Value> {
    mirror.list(&format!("{plural}/ns/"))
}

/// Plays the kubelets: a pod that has a node runs and is ready at once, and ends at once when it shall.
async fn run_pods(mirror: Mirror, client: kube::Client, shutdown: CancellationToken) {
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, "ns");
    let mut changed = mirror.subscribe();
    let (mut started, mut ended) = (BTreeSet::new(), BTreeSet::new());
    while !shutdown.is_cancelled() {
        for pod in all(&mirror, "pods") {
            let name = pod["metadata"]["name"].as_str().expect("has a name");
            let uid = pod["metadata"]["uid"].to_string();
            if pod["spec"]["nodeName"].is_null() {
                continue;
            }
            if pod["metadata"]["deletionTimestamp"].is_string() {
                if ended.insert(uid) {
                    let _ = pods.delete(name, &DeleteParams::default().grace_period(0)).await;
                }
            } else if started.insert(uid) {
                let ready =
                    json!({ "type": "Ready", "status": "True", "lastTransitionTime": weir_client::now() });
                let ip = format!("10.244.0.{}", started.len());
                let status = json!({ "phase": "Running", "podIPs": [{ "ip": ip }], "conditions": [ready] });
                let patch = kube::api::Patch::Strategic(json!({ "status": status }));
                // A pod that was deleted meanwhile needs none.
                let _ = pods.patch_status(name, &kube::api::PatchParams::default(), &patch).await;
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Pods that serve: running, and not about to end.
fn serving(api: &Mirror) -> u64 {
    let serves =
        |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
    all(api, "pods").iter().filter(serves).count() as u64
}

/// The Deployment says so, and its pods do: each kind is a watch of its own, and one may be behind the other.
fn complete(api: &Mirror, replicas: u64) -> bool {
    serving(api) >= replicas
        && api.get(WEB).is_some_and(|deployment| {
            let status = &deployment["status"];
            status["observedGeneration"] == deployment["metadata"]["generation"]
                && ["replicas", "updatedReplicas", "availableReplicas"]
                    .iter()
                    .all(|field| status[field] == replicas)
                && status["conditions"].as_array().is_some_and(|conditions| {
                    conditions.iter().any(|condition| condition["reason"] == "NewReplicaSetAvailable")
                })
        })
}

fn images(api: &Mirror) -> Vec<String> {
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    all(api, "pods").iter().map(image).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_pods_on_nodes_behind_a_service() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.node("n2").await;
    let service = json!({ "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } });
    cluster.api.create("services/ns/web", service).await;
    cluster.deploy("v1", 10).await;
    let bound = |api: &Mirror| {
        let pods = all(api, "pods");
        pods.len() == 10 && pods.iter().all(|pod| pod["spec"]["nodeName"].is_string())
    };
    cluster.wait_until("all pods are bound", bound).await;
    cluster.wait_until("the Deployment is complete", |api| complete(api, 10)).await;
    let endpoints = |api: &Mirror| {
        let slices = all(api, "endpointslices");
        let ready =
            slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        ready.filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    cluster.wait_until("all pods are endpoints", |api| endpoints(api) == 10).await;

    let settled = cluster.settle().await;
    assert_eq!(cluster.all("pods").len(), 10, "no pod was created twice");
    assert_eq!(cluster.all("endpointslices").len(), 1);
    let on = |node: &str| cluster.all("pods").iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    assert_eq!((on("n1"), on("n2")), (5, 5));
    let ranges: Vec<_> =
        cluster.api.mirror().list("nodes/").iter().map(|node| node["spec"]["podCIDR"].clone()).collect();
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.api.mirror().changes(), settled, "a settled cluster is left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_rolls_without_a_gap_and_can_be_undone() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.deploy("v1", 4).await;
    cluster.wait_until("v1 is complete", |api| complete(api, 4)).await;
    let new_image = |image: &str| {
        let template = json!({ "spec": { "containers": [{ "name": "c", "image": image }] } });
        json!({ "spec": { "template": template } })
    };
    cluster.api.merge(WEB, new_image("v2")).await;
    let done = |api: &Mirror, image: &str| complete(api, 4) && images(api).iter().all(|one| one == image);
    cluster
        .wait_until("v2 is complete, never with less than 3 ready pods", |api| {
            let serving = serving(api);
            assert!(serving >= 3, "only {serving} pods serve");
            done(api, "v2")
        })
        .await;
    cluster.api.merge(WEB, new_image("v1")).await;
    cluster.wait_until("v1 is back", |api| done(api, "v1")).await;
    cluster.settle().await;
    let mut revisions: Vec<_> = cluster
        .all("replicasets")
        .iter()
        .map(|one| one["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone())
        .collect();
    revisions.sort_by_key(ToString::to_string);
    assert_eq!(revisions, ["2", "3"], "the first ReplicaSet was used again under the next number");
    cluster.api.merge(WEB, json!({ "spec": { "replicas": 1 } })).await;
    cluster.wait_until("it is scaled down", |api| complete(api, 1) && all(api, "pods").len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_room_and_says_why() {
    let cluster = Cluster::start().await;
    let container = json!({ "name": "c", "image": "i", "resources": { "requests": { "cpu": "1" } } });
    cluster.api.create("pods/ns/p", json!({ "spec": { "containers": [container] } })).await;
    let pod = |api: &Mirror| api.get("pods/ns/p").unwrap_or_default();
    let message = |api: &Mirror| pod(api)["status"]["conditions"][0]["message"].clone();
    let said = |api: &Mirror| message(api) == "no nodes available to schedule pods";
    cluster.wait_until("it says why it waits", said).await;
    cluster.node("n1").await;
    let bound = |api: &Mirror| pod(api)["spec"]["nodeName"] == "n1";
    cluster.wait_until("the new node takes it", bound).await;
    let told = |api: &Mirror| {
        let reasons: Vec<_> = all(api, "events").iter().map(|event| event["reason"].clone()).collect();
        ["FailedScheduling", "Scheduled"].iter().all(|reason| reasons.contains(&json!(reason)))
    };
    cluster.wait_until("Events tell of both", told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_takes_dependents_along_or_leaves_them_behind() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let empty = |api: &Mirror| {
        ["deployments", "replicasets", "pods"].iter().all(|plural| all(api, plural).is_empty())
    };
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        cluster.deploy("v1", 3).await;
        cluster.wait_until("it runs", |api| complete(api, 3)).await;
        cluster.api.delete(WEB, &params).await;
        cluster.wait_until("everything is gone", empty).await;
    }
    cluster.deploy("v1", 3).await;
    cluster.wait_until("it runs", |api| complete(api, 3)).await;
    cluster.api.delete(WEB, &DeleteParams::orphan()).await;
    cluster.wait_until("only the Deployment is gone", |api| all(api, "deployments").is_empty()).await;
    cluster.settle().await;
    assert_eq!(cluster.all("pods").len(), 3);
    assert!(
        cluster.all("replicasets")[0]["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_gets_its_account_and_goes_when_it_is_empty() {
    let cluster = Cluster::start().await;
    let account =
        |api: &Mirror| all(api, "serviceaccounts").iter().any(|one| one["metadata"]["name"] == "default");
    cluster.wait_until("the default account is there", account).await;
    cluster.api.create("configmaps/ns/m", json!({})).await;
    cluster.api.delete("namespaces//ns", &DeleteParams::default()).await;
    let gone = |api: &Mirror| {
        api.get("namespaces//ns").is_none()
            && ["configmaps", "serviceaccounts"].iter().all(|plural| all(api, plural).is_empty())
    };
    cluster.wait_until("all of it is gone", gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pod_is_replaced() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.deploy("v1", 2).await;
    cluster.wait_until("it runs", |api| complete(api, 2)).await;
    let lost = cluster.all("pods")[0]["metadata"].clone();
    let name = lost["name"].as_str().expect("has a name");
    cluster.api.delete(&format!("pods/ns/{name}"), &DeleteParams::default()).await;
    let replaced = |api: &Mirror| {
        let pods = all(api, "pods");
        pods.len() == 2 && pods.iter().all(|pod| pod["metadata"]["uid"] != lost["uid"])
            || pods.len() == 2
                && complete(api, 2)
                && !pods.iter().any(|pod| pod["metadata"]["uid"] == lost["uid"])
    };
    cluster.wait_until("another takes its place", replaced).await;
    let orphan = json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    cluster.api.create("pods/ns/orphan", orphan).await;
    cluster.settle().await;
    assert_eq!(cluster.all("pods").len(), 3, "its labels lack the template hash, so it is nobody's");
}
