//! The controllers and the scheduler together, against an API server in memory: do the watches, queues and
//! requests around the pure plans bring a cluster to where it should be, and then leave it alone?

mod api;

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weir_controllers::Controllers;
use weir_scheduler::Scheduler;

/// Both roles, stopped on drop.
struct Cluster {
    api: api::Api,
    client: kube::Client,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("is such an object")
}

impl Cluster {
    async fn start() -> Self {
        let api = api::Api::new();
        let (client, shutdown) = (api.client(), CancellationToken::new());
        let mut metrics = Registry::default();
        let controllers = Controllers::new(weir_controllers::Config::default(), client.clone(), &mut metrics);
        let scheduler = Scheduler::new(weir_scheduler::Config::default(), client.clone(), &mut metrics);
        let (ready, controllers_ready) = oneshot::channel();
        tokio::spawn(controllers.expect("the defaults are fine").run(ready, shutdown.clone()));
        let (ready, scheduler_ready) = oneshot::channel();
        tokio::spawn(scheduler.expect("the defaults are fine").run(ready, shutdown.clone()));
        controllers_ready.await.expect("controllers become ready");
        scheduler_ready.await.expect("scheduler becomes ready");

        let cluster = Self { api, client, shutdown };
        cluster
            .create::<Namespace>(
                json!({ "metadata": { "name": "ns" }, "spec": { "finalizers": ["kubernetes"] } }),
            )
            .await;
        cluster.run_pods();
        cluster
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        let url = K::url_path(&(), object["metadata"]["namespace"].as_str());
        let request = http::Request::post(url).body(object.to_string().into_bytes()).expect("is a request");
        self.client.request(request).await.expect("is created")
    }

    async fn node(&self, name: &str) {
        let allocatable = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
        let ready = json!({ "type": "Ready", "status": "True" });
        let status = json!({ "allocatable": allocatable, "conditions": [ready] });
        self.create::<Node>(json!({ "metadata": { "name": name }, "spec": {}, "status": status })).await;
    }

    /// Plays the kubelet: a pod that has a node runs and is ready at once.
    fn run_pods(&self) {
        let (api, client, shutdown) = (self.api.clone(), self.client.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let waiting = |api: &api::Api| {
                let pods = api.all("pods").into_iter();
                pods.filter(|pod| pod["spec"]["nodeName"].is_string() && pod["status"]["phase"].is_null())
                    .collect::<Vec<_>>()
            };
            let mut number = 0;
            while !shutdown.is_cancelled() {
                for pod in waiting(&api) {
                    number += 1;
                    let ip = format!("10.244.0.{number}");
                    let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": weir_client::now() });
                    let status =
                        json!({ "phase": "Running", "podIPs": [{ "ip": ip }], "conditions": [ready] });
                    let pods: Api<Pod> = Api::namespaced(
                        client.clone(),
                        pod["metadata"]["namespace"].as_str().unwrap_or_default(),
                    );
                    let patch = Patch::Strategic(json!({ "status": status }));
                    let _ = pods
                        .patch_status(
                            pod["metadata"]["name"].as_str().unwrap_or_default(),
                            &PatchParams::default(),
                            &patch,
                        )
                        .await;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }

    async fn deploy(&self, image: &str, replicas: i32) {
        let template = json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "c", "image": image }] },
        });
        let spec = json!({
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } }, "template": template,
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
        });
        let object = json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec });
        self.create::<Deployment>(object).await;
    }

    async fn patch_deployment(&self, patch: Value) {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), "ns");
        api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.expect("is patched");
    }

    /// Waits until nothing is written for a while, and returns how often something was.
    async fn settle(&self) -> usize {
        loop {
            let before = self.api.writes();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if self.api.writes() == before {
                return before;
            }
        }
    }
}

fn complete(api: &api::Api, replicas: u64) -> bool {
    api.all("deployments").iter().all(|deployment| {
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

fn images(api: &api::Api) -> Vec<String> {
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    api.all("pods").iter().map(image).collect()
}

#[tokio::test]
async fn a_deployment_becomes_pods_on_nodes_behind_a_service() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.node("n2").await;
    let service = json!({
        "metadata": { "name": "web", "namespace": "ns" },
        "spec": { "clusterIP": "10.96.0.9", "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
    });
    cluster.create::<Service>(service).await;
    let start = Instant::now();
    cluster.deploy("v1", 10).await;
    let bound = |api: &api::Api| {
        let pods = api.all("pods");
        pods.len() == 10 && pods.iter().all(|pod| pod["spec"]["nodeName"].is_string())
    };
    cluster.api.wait_until("all pods are bound", bound).await;
    println!("10 pods bound {} ms after the Deployment was created", start.elapsed().as_millis());
    cluster.api.wait_until("the Deployment is complete", |api| complete(api, 10)).await;
    let endpoints = |api: &api::Api| {
        let slices = api.all("endpointslices");
        let ready =
            slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        ready.filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    cluster.api.wait_until("all pods are endpoints", |api| endpoints(api) == 10).await;

    let settled = cluster.settle().await;
    assert_eq!(cluster.api.all("pods").len(), 10, "no pod was created twice");
    assert_eq!(cluster.api.all("endpointslices").len(), 1);
    let on =
        |node: &str| cluster.api.all("pods").iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    assert_eq!((on("n1"), on("n2")), (5, 5));
    let ranges: Vec<_> =
        cluster.api.all("nodes").iter().map(|node| node["spec"]["podCIDR"].clone()).collect();
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.api.writes(), settled, "a settled cluster is left alone");
}

#[tokio::test]
async fn an_update_rolls_without_a_gap_and_can_be_undone() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.deploy("v1", 4).await;
    cluster.api.wait_until("v1 is complete", |api| complete(api, 4)).await;
    let new_image = |image: &str| {
        let template = json!({ "spec": { "containers": [{ "name": "c", "image": image }] } });
        json!({ "spec": { "template": template } })
    };
    cluster.patch_deployment(new_image("v2")).await;
    let done = |api: &api::Api, image: &str| complete(api, 4) && images(api).iter().all(|one| one == image);
    cluster
        .api
        .wait_until("v2 is complete, never with less than 3 ready pods", |api| {
            let ready = api.all("pods").iter().filter(|pod| pod["status"]["phase"] == "Running").count();
            assert!(ready >= 3, "only {ready} pods serve");
            done(api, "v2")
        })
        .await;
    cluster.patch_deployment(new_image("v1")).await;
    cluster.api.wait_until("v1 is back", |api| done(api, "v1")).await;
    cluster.settle().await;
    let mut revisions: Vec<_> = cluster
        .api
        .all("replicasets")
        .iter()
        .map(|one| one["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone())
        .collect();
    revisions.sort_by_key(ToString::to_string);
    assert_eq!(revisions, ["2", "3"], "the first ReplicaSet was used again under the next number");
    cluster.patch_deployment(json!({ "spec": { "replicas": 1 } })).await;
    cluster.api.wait_until("it is scaled down", |api| complete(api, 1) && api.all("pods").len() == 1).await;
}

#[tokio::test]
async fn a_pod_waits_for_room_and_says_why() {
    let cluster = Cluster::start().await;
    let container = json!({ "name": "c", "resources": { "requests": { "cpu": "1" } } });
    let pod =
        json!({ "metadata": { "name": "p", "namespace": "ns" }, "spec": { "containers": [container] } });
    cluster.create::<Pod>(pod).await;
    let message = |api: &api::Api| api.all("pods")[0]["status"]["conditions"][0]["message"].clone();
    let said = |api: &api::Api| message(api) == "no nodes available to schedule pods";
    cluster.api.wait_until("it says why it waits", said).await;
    cluster.node("n1").await;
    let bound = |api: &api::Api| api.all("pods")[0]["spec"]["nodeName"] == "n1";
    cluster.api.wait_until("the new node takes it", bound).await;
    let told = |api: &api::Api| {
        let reasons: Vec<_> = api.all("events").iter().map(|event| event["reason"].clone()).collect();
        ["FailedScheduling", "Scheduled"].iter().all(|reason| reasons.contains(&json!(reason)))
    };
    cluster.api.wait_until("Events tell of both", told).await;
}

#[tokio::test]
async fn deleting_takes_dependents_along_or_leaves_them_behind() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "ns");
    let empty = |api: &api::Api| {
        ["deployments", "replicasets", "pods"].iter().all(|plural| api.all(plural).is_empty())
    };
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        cluster.deploy("v1", 3).await;
        cluster.api.wait_until("it runs", |api| complete(api, 3)).await;
        deployments.delete("web", &params).await.expect("is deleted");
        cluster.api.wait_until("everything is gone", empty).await;
    }
    cluster.deploy("v1", 3).await;
    cluster.api.wait_until("it runs", |api| complete(api, 3)).await;
    deployments.delete("web", &DeleteParams::orphan()).await.expect("is deleted");
    cluster.api.wait_until("only the Deployment is gone", |api| api.all("deployments").is_empty()).await;
    cluster.settle().await;
    assert_eq!(cluster.api.all("pods").len(), 3);
    assert!(
        cluster.api.all("replicasets")[0]["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty)
    );
}

#[tokio::test]
async fn a_namespace_gets_its_account_and_goes_when_it_is_empty() {
    let cluster = Cluster::start().await;
    let account =
        |api: &api::Api| api.all("serviceaccounts").iter().any(|one| one["metadata"]["name"] == "default");
    cluster.api.wait_until("the default account is there", account).await;
    let map = json!({ "metadata": { "name": "m", "namespace": "ns" } });
    cluster.create::<ConfigMap>(map).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("ns", &DeleteParams::default()).await.expect("is deleted");
    let gone = |api: &api::Api| {
        ["namespaces", "configmaps", "serviceaccounts"].iter().all(|plural| api.all(plural).is_empty())
    };
    cluster.api.wait_until("all of it is gone", gone).await;
}

#[tokio::test]
async fn a_lost_pod_is_replaced() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.deploy("v1", 2).await;
    cluster.api.wait_until("it runs", |api| complete(api, 2)).await;
    let lost = cluster.api.all("pods")[0]["metadata"].clone();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "ns");
    pods.delete(lost["name"].as_str().expect("has a name"), &DeleteParams::default())
        .await
        .expect("is deleted");
    let replaced = |api: &api::Api| {
        let pods = api.all("pods");
        pods.len() == 2 && pods.iter().all(|pod| pod["metadata"]["uid"] != lost["uid"])
            || pods.len() == 2
                && complete(api, 2)
                && !pods.iter().any(|pod| pod["metadata"]["uid"] == lost["uid"])
    };
    cluster.api.wait_until("another takes its place", replaced).await;
    let orphan: Pod = from(json!({
        "metadata": { "name": "orphan", "namespace": "ns", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c" }] },
    }));
    pods.create(&PostParams::default(), &orphan).await.expect("is created");
    cluster.settle().await;
    assert_eq!(cluster.api.all("pods").len(), 3, "its labels lack the template hash, so it is nobody's");
}
