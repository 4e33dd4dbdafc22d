//! Candidates for one Lease of a real API server.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_election::{Candidate, Metrics, Timing};
use weir_tests_apiserver::Apiserver;

/// Longer than anything takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_mins(1);
/// Much longer than the test may take: nobody's turn comes because a Lease ran out.
const ENDLESS: Duration = Duration::from_hours(1);
const RETRY: Duration = Duration::from_millis(50);
const LEASE: &str = "leases/kube-system/work";

struct Running {
    leads: watch::Receiver<bool>,
    metrics: Metrics,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

async fn start(api: &Apiserver, lease: Duration, renew_deadline: Duration) -> Running {
    let timing = Timing { lease, renew_deadline, retry: RETRY };
    timing.check().unwrap();
    let metrics = Metrics::default();
    let candidate = Candidate::new(api.client("admin").await, "kube-system", "work", timing, metrics.clone());
    let (leads, leading) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(candidate.run(leads, shutdown.clone()));
    Running { leads: leading, metrics, shutdown, ended }
}

impl Running {
    async fn leads(&mut self, wanted: bool) {
        let changed = timeout(HANGS, self.leads.wait_for(|leads| *leads == wanted)).await;
        changed.expect("it changes").expect("it runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_begin_at_once_one_leads_and_each_has_its_turn() {
    let directory = tempfile::tempdir().unwrap();
    let api = Apiserver::start(directory.path(), "here").await;
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(start(&api, ENDLESS, ENDLESS / 2).await);
    }
    for turn in 0..4 {
        let leader = async {
            loop {
                if let Some(at) = running.iter().position(|one| *one.leads.borrow()) {
                    break at;
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let at = timeout(HANGS, leader).await.expect("one leads");
        let holds = |lease: &serde_json::Value| {
            let spec = &lease["spec"];
            spec["leaseTransitions"] == turn
                && spec["holderIdentity"].as_str().is_some_and(|it| !it.is_empty())
        };
        let turns = api.mirror().wait_until("the Lease counts the turn", |mirror| {
            mirror.get(LEASE).is_some_and(|lease| holds(&lease))
        });
        turns.await;
        let leading: i64 = running.iter().map(|one| one.metrics.leader.get()).sum();
        assert_eq!(leading, 1, "nobody leads beside another");
        let mut leader = running.swap_remove(at);
        leader.shutdown.cancel();
        timeout(HANGS, &mut leader.ended).await.expect("it ends").unwrap();
        assert_eq!((*leader.leads.borrow(), leader.metrics.leader.get()), (false, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_renew_ceases_and_leads_again_when_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let api = Apiserver::start(directory.path(), "here").await;
    let mut leader = start(&api, Duration::from_secs(4), Duration::from_secs(2)).await;
    leader.leads(true).await;
    // Who has taken the Lease is believed, whoever it is.
    api.merge(LEASE, serde_json::json!({"spec": {"holderIdentity": "other", "leaseDurationSeconds": 1}}))
        .await;
    leader.leads(false).await;
    leader.leads(true).await;
    let back = api.mirror().wait_until("the Lease is its own again", |mirror| {
        mirror.get(LEASE).is_some_and(|lease| lease["spec"]["holderIdentity"] != "other")
    });
    back.await;

    drop(api);
    leader.leads(false).await;
    leader.shutdown.cancel();
    timeout(HANGS, leader.ended).await.expect("a server that is gone holds nobody up").unwrap();
}
