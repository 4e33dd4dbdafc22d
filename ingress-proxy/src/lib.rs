//! Kubernetes Ingress as a reverse proxy that talks straight to pod addresses.
//!
//! ```text
//! apiserver ─▶ watch ─▶ compile ────────▶ live: table, pools, certificates ◀─ proxy: what becomes of a request
//!                          │                                                   ▲            ▲
//!                          └▶ Events, status                                 http1        http2
//!                                                                              ▲            ▲
//!                                                                      serve: listeners, TLS, drain
//! ```
//!
//! - [`table`] knows hosts and paths, and nothing of Kubernetes;
//! - [`compile`] turns changed facts about objects into changes of a table, and into problems;
//! - `watch` keeps the facts, and is the only writer of what is live;
//! - `policy` decides about requests, and knows neither protocols nor connections;
//! - `subrequest` asks other servers what `policy` wants to know, and sends copies of requests;
//! - `wire` is HTTP/1.1 as bytes;
//! - `access_log` and `trace` say of every request what became of it;
//! - `pages` is what operators see of all this, and `check` and `diff` what they see of a manifest before it is applied;
//! - `serve` owns sockets, which `handover` passes on to the next process; `http1` and `http2` own connections, `proxy` says
//!   what becomes of a request; all only read what is live.
//!
//! The crate speaks the Kubernetes API and nothing else: it cannot tell whose apiserver it talks to.

mod access_log;
mod certificate;
mod check;
mod clock;
pub mod compile;
mod config;
mod diff;
mod election;
mod ending;
mod handover;
mod http1;
mod http2;
mod idle;
mod live;
mod metrics;
mod pages;
mod policy;
mod proxy;
mod rewound;
mod serve;
mod shared;
mod stream;
mod subrequest;
pub mod table;
mod tls;
mod trace;
mod upstream;
mod watch;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use check::{CheckError, Checked, check};
pub use config::{Config, DurationError, Network, NetworkError, Timeouts};
pub use diff::{
    CertificateChange, Change, DiffError, Difference, Report, Served, diff_with_cluster, diff_with_file,
};
pub use election::Election;
pub use pages::{Pages, Question, QuestionError};
pub use serve::BindError;
pub use trace::TraceError;

use access_log::AccessLog;
use compile::ObjectKey;
use election::Candidacy;
use handover::Listeners;
use live::{Installer, Live};
use metrics::Metrics;
use pages::View;
use proxy::{Ports, Proxy, Reports};
use serve::Server;
use tls::Certificates;
use trace::Tracer;
use upstream::Checks;
use watch::{Problems, Publisher, Source, Watcher};

/// How long worker threads may take to end after the drain.
const WORKER_END: Duration = Duration::from_secs(1);

/// The ingress could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--default-tls-secret` is malformed.
    #[error("--default-tls-secret {0:?} is not of the form namespace/name")]
    DefaultSecret(String),
    /// `--publish-service` is malformed.
    #[error("--publish-service {0:?} is not of the form namespace/name")]
    PublishService(String),
    /// Two places are to be published.
    #[error(
        "--publish-service and --publish-address exclude each other: leave out the address for the Service's own, or the \
         Service for a fixed one"
    )]
    PublishTwice,
    /// `--proxy-protocol` is on, and nobody may speak it.
    #[error("--proxy-protocol needs --trusted-proxies: name the networks of the load balancers in front")]
    NobodyTrusted,
    /// The limits on waiting in an election contradict each other.
    #[error("--lease-retry-period, --lease-renew-deadline, --lease-duration: {0}")]
    Election(#[from] weir_election::TimingError),
    /// A listener could not be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The access log could not be opened.
    #[error("cannot open the access log {path:?}: {source}; choose another --access-log, or \"off\"")]
    AccessLog {
        /// As configured.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The default certificate could not be made.
    #[error("cannot make the default certificate: {0}")]
    SelfSigned(#[source] rcgen::Error),
    /// TLS could not be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// Spans cannot be sent as it was asked.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The next process cannot be waited for.
    #[error("--handover {path:?}: {source}; name a file in a directory that this process may write to")]
    Handover {
        /// As configured.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Threads could not be started.
    #[error("cannot start {workers} worker threads: {source}")]
    Workers {
        /// How many were wanted.
        workers: usize,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The task that watches the cluster ended: a bug.
    #[error("the task that watches the cluster ended unexpectedly")]
    WatcherEnded,
}

/// The ingress role.
pub struct Ingress {
    config: Config,
    client: kube::Client,
    metrics: Metrics,
    default_secret: Option<ObjectKey>,
    published: Source,
    pages: Pages,
}

impl Ingress {
    /// Checks the configuration and registers metrics; no I/O.
    pub fn new(config: Config, client: kube::Client, metrics: &mut Registry) -> Result<Self, Error> {
        let default_secret = match &config.default_tls_secret {
            None => None,
            Some(text) => Some(ObjectKey::parse(text).ok_or_else(|| Error::DefaultSecret(text.clone()))?),
        };
        let published = Source::of(&config)?;
        if config.proxy_protocol && config.trusted_proxies.is_empty() {
            return Err(Error::NobodyTrusted);
        }
        config.election.check()?;
        let pages = Pages::default();
        let metrics = Metrics::register(metrics);
        Ok(Self { config, client, metrics, default_secret, published, pages })
    }

    /// What operators see, for whoever serves it to them.
    pub fn pages(&self) -> Pages {
        self.pages.clone()
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// `ready` is sent when both listeners are bound and everything that existed at start is routed: a
    /// connection that comes earlier waits in the backlog instead of getting a 404. After `shutdown` new
    /// connections are taken for `shutdown_delay`, then requests in flight have `drain_timeout` to end.
    pub fn run(
        self,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Error>> {
        // In a box it is compiled here, and not among the executable's other roles.
        Box::pin(self.serve(ready, shutdown))
    }

    async fn serve(self, ready: oneshot::Sender<()>, shutdown: CancellationToken) -> Result<(), Error> {
        raise_file_limit();
        let config = self.config;
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let runtime = Workers::start(workers)?;
        let Listeners { http, https, mut succession } = Listeners::open(&config, runtime.handle()).await?;
        let (log, log_writer) = AccessLog::open(&config.access_log, self.metrics.log_dropped.clone())
            .map_err(|source| Error::AccessLog { path: config.access_log.clone(), source })?;

        let tracing = config.otlp_endpoint.as_deref().map(|collector| {
            Tracer::start(collector, config.trace_sample_ratio, self.metrics.traces.clone())
        });
        let (tracer, exporting) = tracing.transpose()?.unzip();

        let self_signed = Arc::new(tls::self_signed().map_err(Error::SelfSigned)?);
        let certificates = Arc::new(ArcSwap::from_pointee(Certificates::new(Arc::clone(&self_signed))));
        let live = Arc::new(ArcSwap::from_pointee(Live::default()));
        let timeouts = config.timeouts;
        let proxy = Proxy::new(
            Arc::clone(&live),
            Arc::clone(&certificates),
            self.metrics.clone(),
            Reports { log, tracer },
            &config.trusted_proxies,
            timeouts.clone(),
            Ports { plain: config.http_address.port(), tls: config.https_address.port() },
        );
        let tls = tls::server_config(Arc::clone(&certificates), None).map_err(Error::Tls)?;
        let server = Arc::new(Server::new(proxy, tls, timeouts.clone(), config.proxy_protocol));
        let problems = Problems::default();
        let shown = self.pages.show(View {
            proxy: server.proxy(),
            certificates: Arc::clone(&certificates),
            problems: problems.clone(),
        });
        let checks = Checks::new(runtime.handle().clone(), server.draining(), self.metrics.health.clone());
        let installer = Installer::new(
            live,
            certificates,
            self.metrics.clone(),
            timeouts,
            self_signed,
            self.default_secret.clone(),
        )
        .checking(checks);
        let publishes = self.published.says_something();
        let candidacy = Candidacy::new(config.election, self.client.clone(), self.metrics.election.clone());
        let status = self.metrics.status.clone();
        let publisher = Publisher::start(self.client.clone(), self.published, candidacy.leads(), status);
        let watcher = Watcher::new(
            self.client,
            &config.ingress_class,
            self.default_secret,
            publisher,
            installer,
            &self.metrics,
            problems,
        );

        let (synced, when_synced) = oneshot::channel();
        let watching = CancellationToken::new();
        let _end_watching = watching.clone().drop_guard();
        let watcher = tokio::spawn(watcher.run(synced, watching));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            synced = when_synced => synced.map_err(|_| Error::WatcherEnded)?,
        }
        server.track(http, false, runtime.handle());
        server.track(https, true, runtime.handle());
        runtime.handle().spawn(Arc::clone(&server).sweep());
        let _ = ready.send(());
        let standing = publishes.then(|| candidacy.stand(shutdown.clone()));
        tracing::info!(http = %config.http_address, https = %config.https_address, workers, "ingress serves");

        tokio::select! {
            () = shutdown.cancelled() => tokio::time::sleep(config.shutdown_delay).await,
            _ = watcher => return Err(Error::WatcherEnded),
            relieved = succession.relieved() => {
                relieved?;
                tracing::info!("another process serves now");
                // Whatever else listens for this role ends, so that the other can have its address.
                shutdown.cancel();
                server.leave_listeners();
            }
        }
        // A listener that nobody accepts from would let clients wait for nothing.
        drop(succession);
        let cut = server.drain(config.drain_timeout).await;
        tracing::info!(cut, "ingress drained");
        if let Some(standing) = standing {
            standing.end().await;
        }
        drop((server, shown));
        let _ = tokio::task::spawn_blocking(move || {
            runtime.end();
            log_writer.finish();
        })
        .await;
        // Nobody is left who has spans.
        if let Some(exporting) = exporting {
            exporting.finish().await;
        }
        Ok(())
    }
}

/// The threads that serve requests: a runtime apart from the caller's, so that compiling a large table never
/// stands in the way of a request. Can be dropped anywhere.
struct Workers(Option<Runtime>);

impl Workers {
    fn start(workers: usize) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("ingress")
            .enable_all()
            .build()
            .map_err(|source| Error::Workers { workers, source })?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("the runtime is there until end()").handle()
    }

    /// Waits for the threads; tasks that are left are dropped.
    fn end(mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(WORKER_END);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// As many files as we may have: a connection takes two.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

#[cfg(test)]
mod tests;
