//! Replicas beside one another, against a real API server: one of them publishes where Ingresses are reached.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_ingress::{Config, Election, Error, Ingress};
use weir_tests_apiserver::{Apiserver, free_port};

/// Longer than anything takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_mins(1);
const LEASE: &str = "leases/ingress/weir-ingress";

/// A replica, as far as it is a process.
struct Replica {
    address: &'static str,
    metrics: Registry,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), Error>>,
}

impl Replica {
    /// Starts one that publishes this address, and waits until it serves. Replicas publish the same address as a rule; these
    /// differ, so that it can be seen who wrote.
    async fn start(api: &Apiserver, address: &'static str, lease_duration: Duration) -> Self {
        let publishing = Config { publish_address: vec![address.to_owned()], ..Config::default() };
        Self::publishing(api, publishing, address, lease_duration).await
    }

    /// Starts one that publishes as this configuration says.
    async fn publishing(
        api: &Apiserver,
        config: Config,
        address: &'static str,
        lease_duration: Duration,
    ) -> Self {
        let free = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = Config {
            http_address: free(),
            https_address: free(),
            access_log: "off".into(),
            workers: 1,
            election: Election {
                lease_namespace: Some("ingress".to_owned()),
                lease_duration,
                lease_renew_deadline: lease_duration / 2,
                lease_retry_period: Duration::from_millis(100),
                ..Election::default()
            },
            ..config
        };
        let mut metrics = Registry::default();
        let role = Ingress::new(config, api.client("ingress").await, &mut metrics).unwrap();
        let (ready, when_ready) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(role.run(ready, shutdown.clone()));
        timeout(HANGS, when_ready).await.expect("it becomes ready").expect("it runs");
        Self { address, metrics, shutdown, ended }
    }

    /// A metric without labels.
    fn metric(&self, name: &str) -> i64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    fn leads(&self) -> i64 {
        self.metric("weir_ingress_leader")
    }

    /// All Ingresses have this replica's address, and it holds the Lease for the so-manieth time.
    async fn publishes(&self, api: &Apiserver, ingresses: usize, transitions: i64) {
        let status = json!([{"ip": self.address}]);
        let waits = api.mirror().wait_until("the leader publishes", |mirror| {
            let published = mirror.list("ingresses/").into_iter();
            let published = published.filter(|it| it["status"]["loadBalancer"]["ingress"] == status);
            let lease = mirror.get(LEASE).unwrap_or_default();
            published.count() == ingresses && lease["spec"]["leaseTransitions"] == transitions
        });
        waits.await;
        assert_eq!(self.leads(), 1);
    }
}

fn ingress() -> Value {
    let service = json!({"service": {"name": "a", "port": {"number": 80}}});
    json!({"spec": {"ingressClassName": "weir", "defaultBackend": service}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_publishes_and_another_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let api = Apiserver::start(directory.path(), "here").await;
    api.create("namespaces//ingress", json!({})).await;
    api.create("ingressclasses//weir", json!({"spec": {"controller": "weir.dev/ingress"}})).await;
    api.create("ingresses/default/first", ingress()).await;

    // Its Lease does not run out while this test runs: who comes after it was let.
    let first = Replica::start(&api, "192.0.2.1", Duration::from_hours(1)).await;
    first.publishes(&api, 1, 0).await;
    let second = Replica::start(&api, "192.0.2.2", Duration::from_secs(2)).await;
    api.create("ingresses/default/second", ingress()).await;
    first.publishes(&api, 2, 0).await;
    assert_eq!(second.leads(), 0);

    first.shutdown.cancel();
    second.publishes(&api, 2, 1).await;
    assert_eq!((first.leads(), first.metric("weir_ingress_leader_changes_total")), (0, 2));
    timeout(HANGS, first.ended).await.expect("it ends").unwrap().unwrap();

    // One that is killed gives nothing up.
    let third = Replica::start(&api, "192.0.2.3", Duration::from_secs(2)).await;
    second.ended.abort();
    third.publishes(&api, 2, 2).await;
    third.shutdown.cancel();
    timeout(HANGS, third.ended).await.expect("it ends").unwrap().unwrap();
    let left = api.mirror().wait_until("the Lease is given up", |mirror| {
        mirror.get(LEASE).is_some_and(|lease| lease["spec"]["holderIdentity"] == "")
    });
    left.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_a_lease_serves_and_publishes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let api = Apiserver::start(directory.path(), "here").await;
    api.create("ingressclasses//weir", json!({"spec": {"controller": "weir.dev/ingress"}})).await;
    api.create("ingresses/default/first", ingress()).await;
    // There is no such namespace, until there is.
    let replica = Replica::start(&api, "192.0.2.1", Duration::from_secs(2)).await;
    let failed = async {
        while replica.metric("weir_ingress_lease_errors_total") < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANGS, failed).await.expect("it goes on trying");
    assert_eq!(replica.leads(), 0);
    let [addresses, outdated] = ["addresses", "outdated"].map(|name| format!("weir_ingress_status_{name}"));
    assert_eq!((replica.metric(&addresses), replica.metric(&outdated)), (1, 1));
    let ingress = api.mirror().get("ingresses/default/first").expect("it is there");
    assert_eq!(ingress["status"]["loadBalancer"]["ingress"], Value::Null);
    assert!(!replica.ended.is_finished());
    api.create("namespaces//ingress", json!({})).await;
    replica.publishes(&api, 1, 0).await;
}

/// What an Ingress of the default namespace has said of where it is reached, one after the other.
async fn said(api: &Apiserver, name: &str) -> watch::Receiver<Vec<Value>> {
    let (says, said) = watch::channel(Vec::new());
    let ingresses =
        Api::<k8s_openapi::api::networking::v1::Ingress>::namespaced(api.client("admin").await, "default");
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = watcher::watcher(ingresses, only).applied_objects().boxed();
    tokio::spawn(async move {
        while let Some(Ok(ingress)) = changes.next().await {
            let ingress = serde_json::to_value(ingress).unwrap();
            says.send_modify(|said| said.push(ingress["status"]["loadBalancer"]["ingress"].clone()));
        }
    });
    said
}

/// All Ingresses say so.
async fn published(api: &Apiserver, why: &str, ingresses: usize, addresses: Value) {
    let waits = api.mirror().wait_until(why, |mirror| {
        let all = mirror.list("ingresses/");
        let mut statuses = all.iter().map(|it| &it["status"]["loadBalancer"]["ingress"]);
        all.len() == ingresses && statuses.all(|status| *status == addresses)
    });
    waits.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_addresses_of_a_service_are_published_and_followed() {
    const SERVICE: &str = "services/ingress/balancer";
    let directory = tempfile::tempdir().unwrap();
    let api = Apiserver::start(directory.path(), "here").await;
    api.create("namespaces//ingress", json!({})).await;
    api.create("ingressclasses//weir", json!({"spec": {"controller": "weir.dev/ingress"}})).await;
    api.create("ingresses/default/first", ingress()).await;
    let before = json!([{"hostname": "before.example"}]);
    let status = json!({"loadBalancer": {"ingress": before.clone()}});
    api.merge_status("ingresses/default/first", status).await;

    let mut said = said(&api, "first").await;
    timeout(HANGS, said.wait_for(|said| !said.is_empty())).await.expect("it is seen").unwrap();

    // It leads, and there is no such Service.
    let config = Config { publish_service: Some("ingress/balancer".to_owned()), ..Config::default() };
    let replica = Replica::publishing(&api, config, "", Duration::from_hours(1)).await;
    let leads = api.mirror().wait_until("it leads", |mirror| mirror.get(LEASE).is_some());
    leads.await;
    api.create(SERVICE, json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})).await;

    let balancer = async |entries: Value| {
        api.merge_status(SERVICE, json!({"loadBalancer": {"ingress": entries}})).await;
    };
    balancer(json!([{"ip": "192.0.2.1"}])).await;
    published(&api, "its address", 1, json!([{"ip": "192.0.2.1"}])).await;
    balancer(json!([{"ip": "192.0.2.2"}, {"hostname": "lb.example"}])).await;
    published(&api, "its other addresses", 1, json!([{"ip": "192.0.2.2"}, {"hostname": "lb.example"}])).await;
    api.merge(SERVICE, json!({"spec": {"externalIPs": ["192.0.2.3"]}})).await;
    balancer(json!([{"ip": "192.0.2.2"}])).await;
    let both = json!([{"ip": "192.0.2.2"}, {"ip": "192.0.2.3"}]);
    published(&api, "and an external one", 1, both.clone()).await;

    // What somebody else writes does not stay.
    let theirs = json!([{"ip": "203.0.113.1"}]);
    api.merge_status("ingresses/default/first", json!({"loadBalancer": {"ingress": theirs.clone()}})).await;
    let again = said.wait_for(|said| said.contains(&theirs) && said.last() == Some(&both));
    timeout(HANGS, again).await.expect("it is written again").unwrap();

    // A newcomer without it has to wait for the next.
    api.delete(SERVICE, &DeleteParams::default()).await;
    api.create("ingresses/default/second", ingress()).await;
    api.create(SERVICE, json!({"spec": {"type": "ExternalName", "externalName": "lb.example"}})).await;
    let next = json!([{"hostname": "lb.example"}]);
    published(&api, "where the next is", 2, next.clone()).await;
    assert!(!replica.ended.is_finished());
    let all = timeout(HANGS, said.wait_for(|said| said.last() == Some(&next))).await.expect("it is seen");
    let all = all.unwrap();
    assert_eq!(all[0], before);
    let is_somewhere = |said: &Value| said.as_array().is_some_and(|entries| !entries.is_empty());
    assert!(all.iter().all(is_somewhere), "it was emptied in between: {all:?}");
}

/// What is said of a configuration that no ingress starts with.
fn refused(config: Config) -> String {
    weir_tests_apiserver::install_tls();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = kube::Client::try_from(nobody).unwrap();
    Ingress::new(config, client, &mut Registry::default()).err().expect("it is refused").to_string()
}

#[test]
fn deadlines_that_contradict_each_other_are_refused() {
    let election = Election { lease_duration: Duration::from_secs(5), ..Election::default() };
    let error = refused(Config { election, ..Config::default() });
    assert!(error.contains("--lease-renew-deadline"), "{error}");
}

#[test]
fn two_places_to_publish_and_half_a_name_are_refused() {
    for service in ["balancer", "/balancer", "ingress/", "a/b/c"] {
        let error = refused(Config { publish_service: Some(service.to_owned()), ..Config::default() });
        assert!(error.contains(&format!("--publish-service {service:?} is not")), "{error}");
    }
    let error = refused(Config {
        publish_service: Some("ingress/balancer".to_owned()),
        publish_address: vec!["192.0.2.1".to_owned()],
        ..Config::default()
    });
    assert!(error.contains("--publish-address exclude each other"), "{error}");
}
