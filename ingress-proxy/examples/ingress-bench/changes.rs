//! Whether anybody notices that everything changes: the clients and the changes of the test `netns_churn`, on real processes
//! as they are shipped, each of which takes the listeners over from the one before.

#[path = "../../tests/churn/mod.rs"]
mod churn;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    net::TcpStream,
    time::{Duration, Instant, sleep},
};
use weir_tests::{Goal, Row};
use weir_tests_apiserver::Apiserver;

pub(crate) use churn::ENDPOINTS;
use churn::{HANGS, Site};

use crate::{
    http1::{Connection, request},
    process::{self, Cores},
};

/// Pause between two looks at a starting process.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Of the processes' own pages, where one says that it is ready.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 18_080);
const SITE: Site = Site {
    http: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8_080),
    https: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8_443),
};

/// Changes everything and says who noticed.
pub(crate) fn measure(weir: &Path, cores: Cores, directory: &Path) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let seen = runtime.block_on(async {
        let api = Apiserver::start(directory, "bench").await;
        churn::run(api, SITE, async |_| {
            Process::start(weir, cores, directory).await.expect("a process starts")
        })
        .await
    });
    let failed: Vec<String> = seen
        .loads
        .iter()
        .flat_map(|(name, load)| load.failed.iter().map(move |why| format!("{name}: {why}")))
        .collect();
    let served: usize = seen.loads.iter().map(|(_, load)| load.served).sum();
    let broken: Vec<&str> =
        seen.held.iter().filter(|(_, turns)| turns.is_none()).map(|(name, _)| *name).collect();
    let churn = format!(
        "{served} requests served by {} processes, {} changes of endpoints, {} of the certificate",
        seen.processes.len(),
        seen.flaps,
        seen.rotations
    );
    for mut process in seen.processes {
        let ended = process.0.try_wait()?.filter(|status| !status.success());
        ensure!(ended.is_none(), "a process that handed over ended: {ended:?}");
    }
    let note = failed.first().map_or_else(|| churn.clone(), |first| format!("{first}; {churn}"));
    Ok(vec![
        count("failed while everything changes", "requests", failed.len(), note),
        count(
            "broke while everything changes",
            "WebSockets and gRPC streams",
            broken.len(),
            broken.join(", "),
        ),
        Row::high("latency at 1,000 requests/s while everything changes, p99", "ms", &seen.latencies_ms),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "few")]
fn count(name: &str, unit: &str, number: usize, note: String) -> Row {
    let note = Some(note).filter(|note| !note.is_empty());
    Row { note, ..Row::of(name, unit, &[number as f64]).goal(Goal::AtMost(0.0)) }
}

/// A process; killed when dropped.
struct Process(Child);

impl Process {
    /// Starts one and waits until it is it that is ready: one that hands over leaves the address of its pages first.
    async fn start(weir: &Path, cores: Cores, directory: &Path) -> Result<Self> {
        let mut command = Command::new(weir);
        command.arg("ingress").arg("--kubeconfig").arg(directory.join("kubeconfig/ingress.kubeconfig"));
        command.args(["--http-address", &SITE.http.to_string(), "--https-address", &SITE.https.to_string()]);
        command.args(["--metrics-address", &ADMIN.to_string(), "--drain-timeout", "2m"]);
        command.arg("--handover").arg(directory.join("handover.sock"));
        command.args(["--workers", "1", "--access-log", "off", "--log", "warn"]);
        process::pin(cores.proxy)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        process::pin(cores.load)?;
        let mut process = Self(child.context("starting weir ingress")?);
        let started = Instant::now();
        while !is_ready().await {
            if let Some(status) = process.0.try_wait()? {
                anyhow::bail!("it ended: {status}");
            }
            ensure!(started.elapsed() < HANGS, "it is not ready");
            sleep(LOOK_AGAIN).await;
        }
        Ok(process)
    }
}

async fn is_ready() -> bool {
    let Ok(stream) = TcpStream::connect(ADMIN).await else { return false };
    Connection::new(stream)
        .exchange(&request("admin", "/readyz", true))
        .await
        .is_ok_and(|status| status == 200)
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
