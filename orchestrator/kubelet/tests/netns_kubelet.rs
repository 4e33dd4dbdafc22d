//! A whole kubelet with real containers, on a node of its own, with a real API server. Needs root, and Debian's
//! busybox-static.
//!
//! The runtime starts shims by executing this program again, so it has a `main` of its own.

#[allow(dead_code, reason = "the runtime's tests use the rest")]
mod support;

use std::{fs, process::ExitCode, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use kube::api::DeleteParams;
use libtest_mimic::{Arguments, Trial};
use prometheus_client::registry::Registry;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use support::{IMAGE, Node, block_on, until};
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weir_kubelet::{Config, Kubelet, cleanup, shim};
use weir_tests_apiserver::{Apiserver, install_tls};

#[derive(Parser)]
enum Role {
    /// What the runtime executes.
    Shim(shim::Args),
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == "shim") {
        let Role::Shim(args) = Role::parse();
        return shim::main(args);
    }
    assert!(nix::unistd::geteuid().is_root(), "these tests make namespaces and cgroups: run them as root");
    install_tls();
    let tests = vec![
        Trial::test("a_pod_lives_and_leaves_nothing", test(a_pod_lives)),
        Trial::test("a_restarted_kubelet_restarts_nothing", test(adoption)),
        Trial::test("what_is_missing_is_named_and_waited_for", test(missing_objects)),
        Trial::test("crashes_and_probes_restart_one_container", test(restarts)),
        Trial::test("pods_that_went_unseen_are_ended", test(orphans)),
        Trial::test("a_pod_deleted_while_it_starts_is_gone", test(deleted_while_starting)),
    ];
    let mut arguments = Arguments::from_args();
    // The machine's mounts are compared before and after.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn test(
    body: impl AsyncFnOnce(&mut Machine) + Send + 'static,
) -> impl FnOnce() -> Result<(), libtest_mimic::Failed> + Send {
    move || {
        let limited = async {
            let mut machine = Machine::new().await;
            tokio::time::timeout(Duration::from_mins(1), body(&mut machine)).await?;
            machine.stop().await;
            Ok(())
        };
        block_on(limited).map_err(|_: tokio::time::error::Elapsed| "it took longer than a minute".into())
    }
}

/// A node, its apiserver, and its kubelet.
struct Machine {
    api: Apiserver,
    node: Node,
    config: Config,
    kubelet: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Machine {
    async fn new() -> Self {
        let node = Node::new();
        let config = Config {
            node_name: "n1".into(),
            node_ip: "127.0.0.1".into(),
            data_dir: node.path("data"),
            run_dir: node.path("run"),
            cgroup_root: node.config().cgroup_root,
            cni_plugin: Some(node.path("plugin")),
            address: "127.0.0.1".parse().expect("an address"),
            port: 0,
            ..Config::default()
        };
        // As in `weir up`: the server makes the certificates where the kubelet looks for them.
        let api = Apiserver::start(&config.data_dir, "n1").await;
        api.create("namespaces//ns", json!({})).await;
        let mut machine = Self { api, node, config, kubelet: None };
        machine.start().await;
        machine.api.merge("nodes//n1", json!({"spec": {"podCIDR": "10.244.9.0/24"}})).await;
        machine
    }

    async fn start(&mut self) {
        let client = self.api.client("kubelet").await;
        let kubelet = Kubelet::new(self.config.clone(), client, &mut Registry::default()).expect("settings");
        let (ready, is_ready) = oneshot::channel();
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { kubelet.run(ready, stop).await.expect("an end in peace") }
        });
        is_ready.await.expect("a kubelet that is ready");
        self.kubelet = Some((stop, running));
    }

    async fn stop(&mut self) {
        let (stop, running) = self.kubelet.take().expect("a kubelet");
        stop.cancel();
        running.await.expect("the kubelet's end");
    }

    async fn pod(&self, name: &str, spec: Value) -> String {
        let key = format!("pods/ns/{name}");
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                if container["image"].is_null() {
                    container["image"] = json!(IMAGE);
                }
            }
        }
        self.api.create(&key, json!({"spec": spec})).await;
        key
    }

    /// Asks for an object's end within that many seconds; with 0 it is gone at once, whoever holds what of it.
    async fn delete(&self, key: &str, grace_s: u32) {
        self.api.delete(key, &DeleteParams::default().grace_period(grace_s)).await;
    }

    fn get(&self, key: &str) -> Option<Value> {
        self.api.mirror().get(key)
    }

    fn status(&self, key: &str) -> Value {
        self.get(key).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    /// Waits until the pod's status is as wanted.
    async fn wait(&self, key: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        let found = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let status = self.status(key);
                if wanted(&status) {
                    return status;
                }
                last.replace(status);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("{key} is not {what}: {:#}", last.borrow()))
    }

    async fn gone(&self, key: &str) {
        until("the pod to be gone", async || self.get(key).is_none().then_some(())).await;
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let events = self.api.mirror().list("events/ns/");
        let message = |event: &Value| event["message"].as_str().unwrap_or_default().to_owned();
        events.iter().filter(|event| event["reason"] == reason).map(message).collect()
    }

    fn mounts(&self) -> usize {
        let data = self.node.path("data/pods");
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        table.lines().filter(|line| line.contains(data.to_str().expect("a path"))).count()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((stop, running)) = self.kubelet.take() {
            stop.cancel();
            running.abort();
        }
        let config = self.config.clone();
        // A drop may happen in a runtime, which cannot run another. Twice: it is idempotent.
        std::thread::spawn(move || {
            for _ in 0..2 {
                block_on(cleanup(&config)).unwrap_or_else(|error| eprintln!("cannot clean up: {error}"));
            }
        })
        .join()
        .expect("the thread that cleans up");
        assert!(!self.node.path("data/pods").exists(), "cleanup leaves no volumes");
    }
}

fn ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn waiting(status: &Value) -> &str {
    status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "command": ["/bin/sh", "-c", script]})
}

async fn a_pod_lives(machine: &mut Machine) {
    machine.api.create("configmaps/ns/settings", json!({"data": {"color": "blue"}})).await;
    machine.api.create("secrets/ns/key", json!({"data": {"token": "czNjcmV0"}})).await;
    let mut main = shell(
        "c",
        "echo $COLOR $IP $$$$; cat /etc/settings/color /etc/key/token /shared/x; echo; trap 'exit 7' TERM; while true; do sleep 0.05; done",
    );
    main["env"] = json!([
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    main["volumeMounts"] = json!([
        {"name": "settings", "mountPath": "/etc/settings"}, {"name": "key", "mountPath": "/etc/key"},
        {"name": "shared", "mountPath": "/shared", "subPath": "sub"}]);
    main["readinessProbe"] = json!({"exec": {"command": ["/bin/cat", "/shared/x"]}});
    let mut init = shell("i", "echo -n made > /shared/x");
    init["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared", "subPath": "sub"}]);
    let key = machine
        .pod(
            "web",
            json!({"initContainers": [init], "containers": [main], "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "key", "secret": {"secretName": "key"}},
            {"name": "shared", "emptyDir": {"medium": "Memory"}}]}),
        )
        .await;
    let status = machine.wait(&key, "ready", ready).await;
    assert_eq!(
        (status["phase"].as_str(), status["podIP"].as_str()),
        (Some("Running"), Some(support::ADDRESS))
    );
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");

    let log = |query: &'static str| kubelet_get(machine, format!("/containerLogs/ns/web/c{query}"));
    let text = log("").await;
    assert!(text.starts_with(&format!("blue {} 1\n", support::ADDRESS)), "{text}");
    assert!(text.ends_with("blues3cretmade\n"), "{text}");
    assert_eq!(log("?tailLines=1").await, "blues3cretmade\n");
    assert!(kubelet_get(machine, "/pods".into()).await.contains("\"web\""));

    machine.api.merge("configmaps/ns/settings", json!({"data": {"color": "green"}})).await;
    let uid = machine.get(&key).expect("the pod")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let pod_dir = machine.node.path("data/pods").join(uid);
    let file = pod_dir.join("volumes/kubernetes.io~configmap/settings/color");
    until("the new color", async || (fs::read_to_string(&file).ok()? == "green").then_some(())).await;

    machine.delete(&key, 10).await;
    machine.gone(&key).await;
    until("the pod's directories to go", async || (!pod_dir.exists()).then_some(())).await;
    assert_eq!(machine.mounts(), 0);
    for reason in ["Pulled", "Created", "Started", "Killing"] {
        assert!(!machine.events(reason).is_empty(), "no event {reason}");
    }
    assert!(machine.get("leases/kube-node-lease/n1").is_some());
}

async fn adoption(machine: &mut Machine) {
    let mut container = shell("c", "echo begun; while true; do sleep 0.05; done");
    container["readinessProbe"] = json!({"exec": {"command": ["/bin/true"]}});
    let key =
        machine.pod("web", json!({"containers": [container], "terminationGracePeriodSeconds": 1})).await;
    let before = machine.wait(&key, "ready", ready).await;
    machine.stop().await;
    machine.start().await;
    // Long enough for an over-eager kubelet to do something.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(machine.status(&key), before, "nothing about the pod changed");
    assert_eq!(kubelet_get(machine, "/containerLogs/ns/web/c".into()).await, "begun\n");
    // And it is still looked after.
    machine.delete(&key, 1).await;
    machine.gone(&key).await;
}

async fn missing_objects(machine: &mut Machine) {
    let mut container = shell("c", "echo $X; sleep 60");
    container["env"] = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "x"}}}]);
    let key =
        machine.pod("web", json!({"containers": [container], "terminationGracePeriodSeconds": 0})).await;
    let status =
        machine.wait(&key, "waiting", |status| waiting(status) == "CreateContainerConfigError").await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"late\" not found");
    machine.api.create("configmaps/ns/late", json!({"data": {"x": "1"}})).await;
    machine.wait(&key, "running once the object is there", |status| status["phase"] == "Running").await;

    let volume = json!([{"name": "v", "secret": {"secretName": "late"}}]);
    machine.pod("volume", json!({"containers": [shell("c", "sleep 60")], "volumes": volume})).await;
    until("an event", async || {
        machine
            .events("FailedMount")
            .iter()
            .any(|text| text.contains("secret \"late\" not found"))
            .then_some(())
    })
    .await;
    machine.api.create("secrets/ns/late", json!({"data": {}})).await;
    machine.wait("pods/ns/volume", "running", |status| status["phase"] == "Running").await;

    let mut image = shell("c", "true");
    image["image"] = json!("nowhere/nothing:1");
    machine.pod("image", json!({"containers": [image]})).await;
    machine.wait("pods/ns/image", "pulling", |status| waiting(status) == "ErrImagePull").await;
    machine.wait("pods/ns/image", "backing off", |status| waiting(status) == "ImagePullBackOff").await;
}

async fn restarts(machine: &mut Machine) {
    let mut probed = shell("b", "sleep 60");
    probed["livenessProbe"] = json!({"exec": {"command": ["/bin/sh", "-c", "exit 1"]},
        "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1, "terminationGracePeriodSeconds": 1});
    let key = machine.pod(
        "web",
        json!({"containers": [shell("a", "echo -n last words > /dev/termination-log; exit 3"), probed, shell("d", "sleep 60")]}),
    ).await;
    let status = machine
        .wait(&key, "backing off", |status| {
            waiting(status) == "CrashLoopBackOff" && status["containerStatuses"][1]["restartCount"] == 1
        })
        .await;
    let terminated = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(3), &json!("Error")));
    assert_eq!(terminated["message"], "last words");
    assert_eq!(status["containerStatuses"][2]["restartCount"], 0, "the others stay");
    assert!(machine.events("Unhealthy").iter().any(|text| text.starts_with("Liveness probe failed")));
    until("an event", async || (!machine.events("BackOff").is_empty()).then_some(())).await;
}

async fn orphans(machine: &mut Machine) {
    let key = machine
        .pod("web", json!({"containers": [shell("c", "sleep 60")], "terminationGracePeriodSeconds": 1}))
        .await;
    machine.wait(&key, "ready", ready).await;
    machine.stop().await;
    machine.delete(&key, 0).await;
    machine.start().await;
    let pods = machine.node.path("data/pods");
    until("the orphan to go", async || fs::read_dir(&pods).ok()?.next().is_none().then_some(())).await;
    assert_eq!(machine.mounts(), 0);
}

async fn deleted_while_starting(machine: &mut Machine) {
    // At several moments of a start.
    for delay in [0, 5, 20, 60, 120] {
        let key = machine.pod(&format!("p{delay}"), json!({"containers": [shell("c", "sleep 60")]})).await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        machine.delete(&key, 1).await;
        machine.gone(&key).await;
    }
    let pods = machine.node.path("data/pods");
    until("all pods to go", async || fs::read_dir(&pods).ok()?.next().is_none().then_some(())).await;
}

/// GETs from the kubelet's server, with the API server's certificate.
async fn kubelet_get(machine: &Machine, path: String) -> String {
    let pki = machine.node.path("data/pki");
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(pki.join("ca.crt")).expect("the authority"))
        .expect("the authority");
    let certificate =
        CertificateDer::from_pem_file(pki.join("apiserver-kubelet-client.crt")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(pki.join("apiserver-kubelet-client.key")).expect("a key");
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .expect("a client");
    let port = until("the kubelet's port", async || {
        let node = machine.get("nodes//n1")?;
        u16::try_from(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?).ok()
    })
    .await;
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let request =
        http::Request::get(path).header("host", "n1").body(Empty::<Bytes>::new()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}
