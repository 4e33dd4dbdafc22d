//! Everything changes at once: endpoints come and go, a thousand Ingresses too, certificates rotate, and the proxy itself is
//! replaced. What processes of the proxy are is the caller's affair: the test's are roles, the bench's are real ones.

mod backend;
mod changes;
mod clients;
mod steady;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use weir_tests::Authority;
use weir_tests_apiserver::Apiserver;

/// Whom requests are for.
pub(crate) const HOST: &str = "churn.example";
/// Addresses of endpoints, which somebody has to have. From the range for measurements (RFC 2544).
pub(crate) const ENDPOINTS: [&str; 4] = ["198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"];
/// Longer than anything takes on a busy machine: what takes longer hangs.
pub(crate) const HANGS: Duration = Duration::from_mins(2);
/// Processes that follow one another, and the time of each.
const UPGRADES: usize = 3;
const REIGN: Duration = Duration::from_secs(2);

/// Where the proxy listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
}

/// What came of it.
pub(crate) struct Seen<P> {
    /// Every process, the first one first.
    pub(crate) processes: Vec<P>,
    /// Requests, by kind of client.
    pub(crate) loads: Vec<(&'static str, Outcome)>,
    /// Milliseconds that each request of the steady load took from when it was due.
    pub(crate) latencies_ms: Vec<f64>,
    /// Turns that connections had that stayed open all the while, or nothing if one broke.
    pub(crate) held: Vec<(&'static str, Option<usize>)>,
    /// Changes of endpoints.
    pub(crate) flaps: usize,
    /// Certificates.
    pub(crate) rotations: usize,
}

/// What a load came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) served: usize,
    pub(crate) failed: Vec<String>,
}

impl Outcome {
    fn note(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => self.served += 1,
            Err(why) => self.failed.push(why),
        }
    }
}

/// Changes everything for a while. `start` starts a process at `site`, which takes over from the one before, and returns
/// when it serves.
pub(crate) async fn run<P>(api: Apiserver, site: Site, start: impl AsyncFn(&Apiserver) -> P) -> Seen<P> {
    let api = Arc::new(api);
    for address in ENDPOINTS {
        backend::start(address).await;
    }
    let authority = Authority::new();
    for (key, object) in changes::objects(&authority) {
        api.create(key, object).await;
    }
    let mut processes = vec![start(&api).await];

    let stop = CancellationToken::new();
    let started = clients::start(site, &authority, &stop);
    let steady = tokio::spawn(steady::load(site.http, stop.clone()));
    let holding = clients::hold(site.http, &stop).await;
    let flapping = tokio::spawn(changes::flap(Arc::clone(&api), stop.clone()));
    let rotating = tokio::spawn(changes::rotate(Arc::clone(&api), authority, stop.clone()));
    let coming_and_going = tokio::spawn(changes::come_and_go(Arc::clone(&api)));
    for _ in 0..UPGRADES {
        sleep(REIGN).await;
        processes.push(start(&api).await);
    }
    timeout(HANGS, coming_and_going).await.expect("the Ingresses come and go").unwrap();
    stop.cancel();
    let (flaps, rotations) = (flapping.await.unwrap(), rotating.await.unwrap());
    let mut loads = Vec::new();
    for (name, load) in started {
        loads.push((name, timeout(HANGS, load).await.expect("a load ends").unwrap()));
    }
    let (outcome, latencies_ms) = timeout(HANGS, steady).await.expect("a load ends").unwrap();
    loads.push(("steady rate", outcome));
    let mut held = Vec::new();
    for (name, one) in holding {
        held.push((name, timeout(HANGS, one).await.expect("it ends").ok()));
    }
    Seen { processes, loads, latencies_ms, held, flaps, rotations }
}
