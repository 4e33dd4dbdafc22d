//! What every role does around its own work: logs, an API client, metrics, readiness, and an orderly end.

use std::{
    future::Future,
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::{prctl, signal::Signal};
use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use weir_dataplane::{
    cli::{self, MonitorArgs},
    paths::Paths,
};

use crate::{
    admin::{self, Pages},
    explain::Output,
};

/// Set by `weir up` for the roles it starts: they end when it does, however it ends.
pub(crate) const SUPERVISED: &str = "WEIR_SUPERVISED";
/// Where a service manager, or `weir up`, hears that a role is ready (`sd_notify(3)`).
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Flags of a role that serves its own metrics.
#[derive(clap::Args)]
pub(crate) struct Flags<C: clap::Args> {
    #[command(flatten)]
    config: C,
    #[command(flatten)]
    log: LogFlags,
}

/// Flags of a role that is a client of the API server.
#[derive(clap::Args)]
pub(crate) struct ClientFlags<C: clap::Args> {
    /// How to reach the API server; without it, `KUBECONFIG`, `~/.kube/config` or the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where to serve /metrics, /healthz and /readyz; without it, nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) config: C,
    #[command(flatten)]
    log: LogFlags,
}

#[derive(clap::Args)]
struct LogFlags {
    /// What to log: a level, or `target=level` pairs with commas between.
    #[arg(long, env = "WEIR_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Write each log line as one JSON object.
    #[arg(long)]
    log_json: bool,
}

impl LogFlags {
    fn install(&self) -> Result<()> {
        let filter = EnvFilter::try_new(&self.log).with_context(|| format!("--log {:?}", self.log))?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if self.log_json {
            lines.json().init();
        } else {
            lines.with_ansi(false).init();
        }
        Ok(())
    }
}

/// The three things a running role is given besides its own configuration.
struct Running {
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
}

pub(crate) fn apiserver(flags: Flags<weir_apiserver::Config>) -> Result<()> {
    start(&flags.log)?;
    block_on(
        2,
        supervise(None, |registry, _| {
            let role = weir_apiserver::Apiserver::new(flags.config, registry)?;
            Ok(|running: Running| async { Ok(role.run(running.ready, running.shutdown).await?) })
        }),
    )
}

/// The roles that are clients of the API server differ in nothing but their type, their threads, whether they may follow
/// a process that still has their address for metrics, and pages that they show there.
macro_rules! client_role {
    ($name:ident, $crate_name:ident :: $role:ident, $threads:expr, $follows:expr, $pages:expr) => {
        pub(crate) fn $name(flags: ClientFlags<$crate_name::Config>) -> Result<()> {
            start(&flags.log)?;
            block_on($threads, async move {
                let client = client(flags.kubeconfig).await?;
                let follows: fn(&$crate_name::Config) -> bool = $follows;
                let admin = flags.metrics_address.map(|address| (address, follows(&flags.config)));
                let pages_of: fn(&$crate_name::$role) -> Pages = $pages;
                supervise(admin, |registry, pages| {
                    let role = $crate_name::$role::new(flags.config, client, registry)?;
                    *pages = pages_of(&role);
                    Ok(|running: Running| async { Ok(role.run(running.ready, running.shutdown).await?) })
                })
                .await
            })
        }
    };
}

client_role!(scheduler, weir_scheduler::Scheduler, 1, |_| false, |_| Pages::default());
client_role!(controllers, weir_controllers::Controllers, 1, |_| false, |_| Pages::default());
client_role!(kubelet, weir_kubelet::Kubelet, 2, |_| false, |_| Pages::default());
client_role!(dataplane, weir_dataplane::Dataplane, 1, |_| false, |_| Pages::default());
client_role!(ingress, weir_ingress::Ingress, 1, |config| config.handover.is_some(), |role| {
    let pages = role.pages();
    Pages {
        paths: weir_ingress::Pages::PATHS,
        answer: Arc::new(move |path, query| pages.answer(path, query)),
    }
});

/// `weir ingress diff`.
#[derive(clap::Args)]
pub(crate) struct DiffFlags {
    /// The manifest: YAML or JSON documents; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// What is now, as a file of such documents, instead of the cluster.
    #[arg(long, value_name = "FILE")]
    now: Option<PathBuf>,
    /// How to reach the API server; without it, as for the role.
    #[arg(long, value_name = "FILE", conflicts_with = "now")]
    kubeconfig: Option<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Prints what a manifest would change. Returns whether that is nothing.
pub(crate) fn ingress_diff(flags: DiffFlags, role: ClientFlags<weir_ingress::Config>) -> Result<bool> {
    let (file, class) = (&flags.file, &role.config.ingress_class);
    let difference = if let Some(now) = &flags.now {
        weir_ingress::diff_with_file(now, file, class)?
    } else {
        install_tls_provider();
        block_on(1, async {
            let client = client(flags.kubeconfig.or(role.kubeconfig)).await?;
            Ok(weir_ingress::diff_with_cluster(&client, file, class).await?)
        })?
    };
    match flags.output {
        Output::Text => print!("{difference}"),
        Output::Json => print!("{}", difference.json()),
    }
    Ok(difference.is_empty())
}

/// `weir dataplane detach`.
pub(crate) fn detach(run_dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(weir_dataplane::detach(run_dir)).context("giving Services on this node back")
}

/// Shows events of the dataplane. Asks the API server for names of pods if the flags or `KUBECONFIG` say where it is.
pub(crate) fn monitor(
    flags: ClientFlags<weir_dataplane::Config>,
    args: &MonitorArgs,
    output: cli::Output,
) -> Result<()> {
    install_tls_provider();
    block_on(1, async {
        let shutdown = CancellationToken::new();
        end_on_signals(shutdown.clone())?;
        let told = flags.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some();
        let client = if told { Some(client(flags.kubeconfig).await?) } else { None };
        let paths = Paths::new(&flags.config.run_dir);
        Ok(cli::monitor(args, &paths, output, client, &mut std::io::stdout().lock(), shutdown).await?)
    })
}

/// Logs, the TLS provider, and the tie to `weir up`.
fn start(log: &LogFlags) -> Result<()> {
    log.install()?;
    install_tls_provider();
    if std::env::var_os(SUPERVISED).is_some() {
        prctl::set_pdeathsig(Signal::SIGTERM).context("asking to end with the supervisor")?;
    }
    Ok(())
}

/// One TLS provider serves every library in the process.
pub(crate) fn install_tls_provider() {
    // The only error is that one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn block_on<T>(threads: usize, future: impl Future<Output = Result<T>>) -> Result<T> {
    let mut runtime = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    runtime.worker_threads(threads).enable_all().build().context("starting the runtime")?.block_on(future)
}

async fn client(kubeconfig: Option<PathBuf>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file =
                Kubeconfig::read_from(&path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no API server: pass --kubeconfig FILE")?,
    };
    Ok(Client::try_from(config)?)
}

/// Runs a role until SIGTERM or SIGINT, with its admin server beside it: where, and whether the address may still be another
/// process's for a while.
async fn supervise<R, F>(
    admin: Option<(SocketAddr, bool)>,
    new: impl FnOnce(&mut Registry, &mut Pages) -> Result<R>,
) -> Result<()>
where
    R: FnOnce(Running) -> F,
    F: Future<Output = Result<()>>,
{
    let (mut registry, mut pages) = (Registry::default(), Pages::default());
    let run = new(&mut registry, &mut pages)?;

    let shutdown = CancellationToken::new();
    end_on_signals(shutdown.clone())?;

    let (ready, is_ready) = oneshot::channel();
    let readiness = admin::Readiness::default();
    if let Some((address, follows)) = admin {
        let served = admin::Served { registry, readiness: readiness.clone(), pages };
        admin::serve(address, follows, served, shutdown.clone()).await?;
    }
    tokio::spawn(async move {
        if is_ready.await.is_ok() {
            readiness.set();
            notify_ready();
        }
    });
    run(Running { ready, shutdown }).await
}

/// The first SIGTERM or SIGINT asks for an orderly end.
pub(crate) fn end_on_signals(shutdown: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}

fn notify_ready() {
    let Some(socket) = std::env::var_os(NOTIFY_SOCKET) else { return };
    let sent = UnixDatagram::unbound().and_then(|unbound| unbound.send_to(b"READY=1", &socket));
    if let Err(error) = sent {
        tracing::warn!(socket = %socket.display(), %error, "cannot say that this role is ready");
    }
}
