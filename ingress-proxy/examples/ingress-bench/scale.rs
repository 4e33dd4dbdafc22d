//! Many Ingresses: what they weigh, how long a start with them takes, and how soon one more is served.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::{net::TcpStream, time::sleep};
use weir_tests::{Goal, Row};

use crate::{
    Bench,
    backend::SMALL,
    cluster::PATHS,
    http1::{Connection, connect, request},
    process,
    proxies::{Kind, Proxy},
    ticker::Ticker,
};

/// How many.
const INGRESSES: usize = 5_000;
/// Starts with and without them.
const STARTS: usize = 5;
/// Ingresses that are created one by one.
const CHANGES: usize = 120;
/// How often a route is asked for that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// After a change, before the next: each is to be alone.
const PAUSE: Duration = Duration::from_millis(20);
/// A change that takes longer is lost.
const LONGEST: Duration = Duration::from_secs(20);
const MEMORY_GOAL_MIB: f64 = 40.0;
const CHANGE_GOAL_MS: f64 = 30.0;

pub(crate) async fn measure(bench: &Bench) -> Result<Vec<Row>> {
    eprintln!("one Ingress");
    let few = stand(bench, 1).await?;
    eprintln!("{INGRESSES} Ingresses");
    let name = |number| (format!("many-{number}"), format!("shop-{number}.example"));
    bench.cluster.create_ingresses((1..INGRESSES).map(name).collect()).await?;
    let many = stand(bench, INGRESSES).await?;

    let over: Vec<f64> = many.pss_mib.iter().zip(&few.pss_mib).map(|(many, few)| many - few).collect();
    let paths = INGRESSES * PATHS.len();
    let title = format!("memory of {INGRESSES} Ingresses, {paths} paths, over one (PSS)");
    Ok(vec![
        Row::of(title, "MiB", &over).goal(Goal::AtMost(MEMORY_GOAL_MIB)),
        Row::of(format!("start to first 200 with {INGRESSES} Ingresses"), "ms", &many.start_ms),
        few.change("1 Ingress"),
        many.change(&format!("{INGRESSES} Ingresses")),
    ])
}

/// What was measured with one number of Ingresses.
struct Standing {
    start_ms: Vec<f64>,
    pss_mib: Vec<f64>,
    change_ms: Vec<f64>,
}

impl Standing {
    fn change(&self, among: &str) -> Row {
        let name = format!("Ingress created to first request by its route, p99, among {among}");
        Row::high(name, "ms", &self.change_ms).goal(Goal::AtMost(CHANGE_GOAL_MS))
    }
}

async fn stand(bench: &Bench, ingresses: usize) -> Result<Standing> {
    let (mut start_ms, mut pss_mib) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let proxy = Proxy::start(Kind::Weir, bench).await?;
        start_ms.push(proxy.start.as_secs_f64() * 1e3);
        pss_mib.push(process::pss_bytes(&proxy.pids)? as f64 / f64::from(1 << 20));
    }
    let proxy = Proxy::start(Kind::Weir, bench).await?;
    let mut connection = Connection::new(connect(proxy.http).await?);
    let mut change_ms = Vec::new();
    for change in 0..CHANGES {
        let name = format!("change-{ingresses}-{change}");
        change_ms.push(change_one(bench, &mut connection, &name).await.with_context(|| name.clone())?);
        sleep(PAUSE).await;
    }
    Ok(Standing { start_ms, pss_mib, change_ms })
}

/// Milliseconds from before an Ingress is sent to the API server until a request has come back by its route. The Ingress is
/// gone again on return.
async fn change_one(bench: &Bench, connection: &mut Connection<TcpStream>, name: &str) -> Result<f64> {
    let host = format!("{name}.example");
    let request = request(&host, SMALL.path, false);
    let before = connection.exchange(&request).await?;
    ensure!(before == 404, "{before} before there is a route");
    let started = Instant::now();
    let (created, served) =
        tokio::join!(bench.cluster.create_ingress(name, &host), wait_for(connection, &request, 404, 200),);
    created?;
    let served = served?.duration_since(started);
    connection.ask(&request, SMALL).await?;
    bench.cluster.delete_ingress(name).await?;
    wait_for(connection, &request, 200, 404).await?;
    sleep(PAUSE).await;
    Ok(served.as_secs_f64() * 1e3)
}

/// Asks until the answer is no more `now` but `then`, and says when that was.
async fn wait_for(
    connection: &mut Connection<TcpStream>,
    request: &[u8],
    now: u16,
    then: u16,
) -> Result<Instant> {
    let ticker = Ticker::start(LOOK_AGAIN);
    let started = Instant::now();
    loop {
        let status = connection.exchange(request).await?;
        if status == then {
            return Ok(Instant::now());
        }
        ensure!(status == now, "{status} while a route changes");
        ensure!(started.elapsed() < LONGEST, "still {now} after {LONGEST:?}");
        ticker.tick().await;
    }
}
