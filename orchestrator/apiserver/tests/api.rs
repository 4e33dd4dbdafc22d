//! The server as its clients see it, through kube and through kubectl, and through `kill -9`.

mod harness;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use harness::Server;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;

#[test]
fn serve_when_asked() {
    harness::serve_when_asked();
}

fn map(name: &str, label: &str) -> ConfigMap {
    let labels = [("app".to_owned(), label.to_owned())];
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.into()), ..ObjectMeta::default() };
    ConfigMap { metadata, ..ConfigMap::default() }
}

fn service(name: &str, spec: &serde_json::Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a service")
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("not refused: {other:?}"),
    }
}

/// Type and name of the next events.
async fn next(
    events: &mut (impl futures::Stream<Item = Result<WatchEvent<ConfigMap>, kube::Error>> + Unpin),
    count: usize,
) -> Vec<String> {
    let name = |map: ConfigMap| map.metadata.name.unwrap_or_default();
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(20), events.try_next()).await;
        seen.push(
            match event.expect("the watch answers").expect("the watch works").expect("the watch goes on") {
                WatchEvent::Added(map) => format!("+{}", name(map)),
                WatchEvent::Modified(map) => format!("~{}", name(map)),
                WatchEvent::Deleted(map) => format!("-{}", name(map)),
                WatchEvent::Bookmark(_) => "bookmark".to_owned(),
                WatchEvent::Error(status) => panic!("{status:?}"),
            },
        );
    }
    seen
}

#[tokio::test]
async fn objects_come_change_and_go() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client("admin").await);
    let create = PostParams::default();

    let created = maps.create(&create, &map("one", "a")).await.expect("created");
    assert!(created.metadata.uid.is_some() && created.metadata.resource_version.is_some());
    assert_eq!(code(maps.create(&create, &map("one", "a")).await), 409);
    assert_eq!(code(maps.get("none").await), 404);

    let merge = Patch::Merge(json!({"data": {"k": "v"}}));
    let patched = maps.patch("one", &PatchParams::default(), &merge).await.expect("patched");
    assert_eq!(patched.data.as_ref().expect("data")["k"], "v");
    assert_eq!(code(maps.replace("one", &create, &created).await), 409, "a stale update");
    let read = maps.get("one").await.expect("it is there");
    assert_eq!(read, patched, "a read sees the write that was answered before");

    let generated = ConfigMap {
        metadata: ObjectMeta { generate_name: Some("gen-".to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let generated = maps.create(&create, &generated).await.expect("created").metadata.name.expect("a name");
    assert_eq!(generated.len(), "gen-".len() + 5);

    for number in 0..5 {
        maps.create(&create, &map(&format!("page-{number}"), "page")).await.expect("created");
    }
    let first = maps.list(&ListParams::default().labels("app=page").limit(2)).await.expect("a page");
    let token = first.metadata.continue_.clone().expect("there is more");
    maps.delete("page-4", &DeleteParams::default()).await.expect("deleted");
    let rest = ListParams::default().labels("app=page").limit(10).continue_token(&token);
    let rest = maps.list(&rest).await.expect("the rest");
    assert_eq!(rest.items.len(), 3, "a list is of one revision, also over pages");
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(maps.list(&ListParams::default().labels("app=page")).await.expect("a list").items.len(), 4);
    let by_name = ListParams::default().fields("metadata.name=one");
    assert_eq!(maps.list(&by_name).await.expect("a list").items.len(), 1);
}

#[tokio::test]
async fn watches_follow_what_they_selected() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client("admin").await);
    let create = PostParams::default();
    maps.create(&create, &map("one", "a")).await.expect("created");
    let version =
        maps.list(&ListParams::default()).await.expect("a list").metadata.resource_version.expect("one");

    let mut all = maps.watch(&WatchParams::default(), &version).await.expect("a watch").boxed();
    let selected = WatchParams::default().labels("app=b");
    let mut selected = maps.watch(&selected, &version).await.expect("a watch").boxed();
    let label = |label: &str| Patch::Merge(json!({"metadata": {"labels": {"app": label}}}));
    for step in ["b", "c", "b"] {
        maps.patch("one", &PatchParams::default(), &label(step)).await.expect("patched");
    }
    maps.delete("one", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(next(&mut all, 4).await, ["~one", "~one", "~one", "-one"]);
    assert_eq!(next(&mut selected, 4).await, ["+one", "-one", "+one", "-one"]);

    maps.create(&create, &map("two", "a")).await.expect("created");
    let streaming = WatchParams::default().initial_events();
    let mut streaming = maps.watch(&streaming, "0").await.expect("a watch").boxed();
    let begin = next(&mut streaming, 1).await;
    // What else is there was made by the server itself, which makes no ConfigMaps.
    assert_eq!(begin, ["+two"]);
    assert_eq!(next(&mut streaming, 1).await, ["bookmark"]);

    let old = maps.watch(&WatchParams::default(), "1").await.expect("a watch").boxed().try_next().await;
    assert!(
        matches!(&old, Ok(Some(WatchEvent::Added(_) | WatchEvent::Modified(_)))),
        "the events since the start are kept: {old:?}"
    );
}

#[tokio::test]
async fn a_pod_is_bound_once_and_deleted_with_grace() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let client = server.client("scheduler").await;
    let pods: Api<Pod> = Api::default_namespaced(server.client("admin").await);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    }))
    .expect("a pod");
    pods.create(&PostParams::default(), &pod).await.expect("created");

    let bind = |node: &str| {
        let body = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": node}});
        http::Request::post("/api/v1/namespaces/default/pods/web/binding")
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .expect("a request")
    };
    let bound: serde_json::Value = client.request(bind("n1")).await.expect("bound");
    assert_eq!(bound["status"], "Success");
    assert_eq!(code(client.request::<serde_json::Value>(bind("n2")).await), 409);
    assert_eq!(
        code(
            client
                .request::<serde_json::Value>(
                    http::Request::get("/api/v1/secrets").body(Vec::new()).expect("a request")
                )
                .await
        ),
        403
    );

    let pod = pods.get("web").await.expect("it is there");
    assert_eq!(pod.spec.expect("a spec").node_name.as_deref(), Some("n1"));
    pods.delete("web", &DeleteParams::default()).await.expect("marked");
    let marked = pods.get("web").await.expect("its node has not ended it yet");
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("web", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    assert_eq!(code(pods.get("web").await), 404);
}

#[tokio::test]
async fn service_addresses_are_unique_and_survive_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let services: Api<Service> = Api::default_namespaced(server.client("admin").await);
    let create = PostParams::default();
    let ports = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let made = join_all((0..40).map(|number| {
        let service = service(&format!("s{number}"), &ports);
        let (services, create) = (&services, &create);
        async move { services.create(create, &service).await.expect("created") }
    }))
    .await;
    let specs: Vec<_> = made.into_iter().map(|service| service.spec.expect("a spec")).collect();
    let addresses: BTreeSet<_> =
        specs.iter().map(|spec| spec.cluster_ip.clone().expect("an address")).collect();
    let ports_of = |spec: &k8s_openapi::api::core::v1::ServiceSpec| {
        spec.ports.as_ref().expect("ports")[0].node_port.expect("a node port")
    };
    let node_ports: BTreeSet<_> = specs.iter().map(ports_of).collect();
    assert_eq!((addresses.len(), node_ports.len()), (40, 40));

    let server = server.kill_and_restart();
    let services: Api<Service> = Api::default_namespaced(server.client("admin").await);
    let taken = addresses.first().expect("forty");
    let same = service("same", &json!({"clusterIP": taken, "ports": [{"port": 80}]}));
    assert_eq!(code(services.create(&create, &same).await), 422);
    let port = node_ports.first().expect("forty");
    let same_port = service("same", &json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}));
    assert_eq!(code(services.create(&create, &same_port).await), 422);
    let outside = service("outside", &json!({"clusterIP": "10.1.2.3", "ports": [{"port": 80}]}));
    assert_eq!(code(services.create(&create, &outside).await), 422);

    let holder = specs.iter().position(|spec| spec.cluster_ip.as_ref() == Some(taken)).expect("one of them");
    services.delete(&format!("s{holder}"), &DeleteParams::default()).await.expect("deleted");
    services.create(&create, &same).await.expect("what was released can be had");
}

#[tokio::test]
async fn acknowledged_creates_survive_kill_9() {
    const OBJECTS: usize = 1000;
    const WRITERS: usize = 20;
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Server::start(directory.path());
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client("admin").await);
    let (report, mut acknowledged) = tokio::sync::mpsc::channel(OBJECTS);
    for writer in 0..WRITERS {
        let (maps, report) = (maps.clone(), report.clone());
        tokio::spawn(async move {
            for number in 0..OBJECTS / WRITERS {
                let name = format!("map-{writer}-{number}");
                // The first refusal is the server's death.
                let Ok(_) = maps.create(&PostParams::default(), &map(&name, "load")).await else { return };
                if report.send(name).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(report);
    let mut names = Vec::new();
    while names.len() < OBJECTS / 2 {
        names.push(acknowledged.recv().await.expect("the server lives until it is killed"));
    }
    server.kill();
    while let Some(name) = acknowledged.recv().await {
        names.push(name);
    }
    let server = server.kill_and_restart();
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client("admin").await);
    let there = maps.list(&ListParams::default()).await.expect("a list");
    let there: BTreeSet<_> = there.items.into_iter().filter_map(|map| map.metadata.name).collect();
    let lost: Vec<_> = names.iter().filter(|name| !there.contains(*name)).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    println!("{} acknowledged, {} there", names.len(), there.len());
}

#[tokio::test]
async fn a_namespace_that_ends_takes_nothing_new() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let client = server.client("admin").await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let create = PostParams::default();
    let maps: Api<ConfigMap> = Api::namespaced(client, "work");
    assert_eq!(code(maps.create(&create, &map("one", "a")).await), 404, "there is no such namespace");

    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "work"}})).expect("a namespace");
    namespaces.create(&create, &namespace).await.expect("created");
    maps.create(&create, &map("one", "a")).await.expect("created");
    namespaces.delete("work", &DeleteParams::default()).await.expect("marked");
    assert_eq!(code(maps.create(&create, &map("two", "a")).await), 403);
    assert_eq!(code(namespaces.delete("kube-system", &DeleteParams::default()).await), 403);
}

#[test]
fn kubectl_feels_at_home() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let kubectl = |arguments: &[&str]| -> String {
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(server.kubeconfig("admin"))
            .args(arguments)
            .env("HOME", directory.path())
            .output()
            .expect("this test needs kubectl 1.32 or 1.33 in the PATH");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}{text}");
        text
    };
    assert!(kubectl(&["get", "namespaces"]).contains("kube-system"));
    let manifest = directory.path().join("web.yaml");
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    std::fs::write(&manifest, yaml).expect("written");
    let manifest = manifest.to_str().expect("UTF-8");
    assert!(kubectl(&["apply", "-f", manifest]).contains("service/web created"));
    let version = || kubectl(&["get", "service", "web", "--output=jsonpath={.metadata.resourceVersion}"]);
    let applied = version();
    kubectl(&["apply", "-f", manifest]);
    assert_eq!(version(), applied, "applying the same again changes nothing");
    assert_eq!(kubectl(&["diff", "-f", manifest]), "");
    assert!(kubectl(&["get", "service", "web"]).contains("CLUSTER-IP"));
    assert!(kubectl(&["create", "deployment", "web", "--image=web:1"]).contains("created"));
    assert!(kubectl(&["scale", "deployment", "web", "--replicas=3"]).contains("scaled"));
    assert!(kubectl(&["set", "image", "deployment/web", "web=web:2"]).contains("updated"));
    assert!(kubectl(&["get", "deployment", "web"]).contains("0/3"));
    assert!(kubectl(&["label", "deployment", "web", "tier=front"]).contains("labeled"));
    assert!(kubectl(&["describe", "deployment", "web"]).contains("web:2"));
    assert!(kubectl(&["auth", "whoami"]).contains("kubernetes-admin"));
    assert!(kubectl(&["delete", "deployment", "web"]).contains("deleted"));
    assert!(!kubectl(&["get", "all", "--all-namespaces"]).contains("deployment"));
}
