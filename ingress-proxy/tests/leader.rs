//! Replicas beside one another, against a real API server: one of them publishes where Ingresses are reached.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::oneshot;
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
        let free = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = Config {
            http_address: free(),
            https_address: free(),
            access_log: "off".into(),
            workers: 1,
            publish_address: vec![address.to_owned()],
            election: Election {
                lease_namespace: Some("ingress".to_owned()),
                lease_duration,
                lease_renew_deadline: lease_duration / 2,
                lease_retry_period: Duration::from_millis(100),
                ..Election::default()
            },
            ..Config::default()
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
    let ingress = api.mirror().get("ingresses/default/first").expect("it is there");
    assert_eq!(ingress["status"]["loadBalancer"]["ingress"], Value::Null);
    assert!(!replica.ended.is_finished());
    api.create("namespaces//ingress", json!({})).await;
    replica.publishes(&api, 1, 0).await;
}

#[test]
fn deadlines_that_contradict_each_other_are_refused() {
    weir_tests_apiserver::install_tls();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let election = Election { lease_duration: Duration::from_secs(5), ..Election::default() };
    let config = Config { election, ..Config::default() };
    let client = kube::Client::try_from(nobody).unwrap();
    let error =
        Ingress::new(config, client, &mut Registry::default()).err().expect("it is refused").to_string();
    assert!(error.contains("--lease-renew-deadline"), "{error}");
}
