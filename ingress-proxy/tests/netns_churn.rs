//! Everything changes at once, and no client notices: endpoints come and go, a thousand Ingresses too, certificates rotate,
//! and the proxy itself is replaced. In a network namespace, against a real API server.

mod churn;

use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_ingress::{Config, Error, Ingress};
use weir_tests::Namespace;
use weir_tests_apiserver::Apiserver;

use churn::{ENDPOINTS, HANGS, Site};

#[test]
fn nobody_notices_that_everything_changes() {
    let namespace = Namespace::new().unwrap();
    for address in ENDPOINTS {
        namespace.ip(&format!("address add {address}/32 dev lo")).unwrap();
    }
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(change_everything());
    });
}

async fn change_everything() {
    let directory = tempfile::tempdir().unwrap();
    let api = Apiserver::start(directory.path(), "here").await;
    let site = Site { http: "127.0.0.1:8080".parse().unwrap(), https: "127.0.0.1:8443".parse().unwrap() };
    let config = Config {
        http_address: site.http,
        https_address: site.https,
        access_log: "off".into(),
        workers: 1,
        handover: Some(directory.path().join("handover.sock")),
        drain_timeout: HANGS,
        ..Config::default()
    };
    let seen = churn::run(api, site, async |api| Running::start(api, &config).await).await;
    for (name, outcome) in seen.loads {
        eprintln!("{name}: {} served", outcome.served);
        assert!(outcome.failed.is_empty(), "{name}: {:?}", outcome.failed);
        assert!(outcome.served > 100, "{name}: {} served", outcome.served);
    }
    eprintln!(
        "steady rate: {} ms at most",
        seen.latencies_ms.iter().fold(0.0, |most: f64, it| most.max(*it))
    );
    for (name, turns) in seen.held {
        let turns = turns.unwrap_or_else(|| panic!("{name} broke"));
        eprintln!("{name}: {turns} turns");
        assert!(turns > 50, "{name}: {turns} turns");
    }
    let (flaps, rotations) = (seen.flaps, seen.rotations);
    eprintln!("{flaps} changes of endpoints, {rotations} rotations of the certificate");
    assert!(flaps > 20 && rotations > 5, "{flaps} changes of endpoints, {rotations} rotations");
    if let Some(last) = seen.processes.last() {
        last.shutdown.cancel();
    }
    for process in seen.processes {
        timeout(HANGS, process.ended).await.expect("it ends").unwrap().unwrap();
    }
}

/// A process, as far as it is one: the role from its start to its end.
struct Running {
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Starts one and waits until it serves.
    async fn start(api: &Apiserver, config: &Config) -> Self {
        let client = api.client("ingress").await;
        let role = Ingress::new(config.clone(), client, &mut Registry::default()).unwrap();
        let (ready, when_ready) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(role.run(ready, shutdown.clone()));
        timeout(HANGS, when_ready).await.expect("it becomes ready").expect("it runs");
        Self { shutdown, ended }
    }
}
