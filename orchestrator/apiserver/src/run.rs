//! The server's life: made, started, kept fresh, stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use weir_store::{Embedded, Options, Store};

use crate::allocate::ServiceAllocator;
use crate::authn::{Authenticator, Issuer, StaticTokens};
use crate::cache::Cache;
use crate::config::Config;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::pki::{self, Pki};
use crate::serve::{self, Certificates, Listener};
use crate::server::Server;
use crate::storage::Storage;
use crate::{bootstrap, kubelet};

/// How often the certificates are looked at. They are renewed months before their end, so that any of many looks will do.
const CERTIFICATES_EVERY: Duration = Duration::from_hours(6);

/// The API server, not yet running.
pub struct Apiserver {
    config: Config,
    metrics: Metrics,
    store_metrics: weir_store::Metrics,
}

impl Apiserver {
    /// Makes the server; nothing is opened yet. Its metrics go to `registry`, and it serves them on its own `/metrics`.
    pub fn new(config: Config, registry: &mut Registry) -> Result<Apiserver, Error> {
        let (metrics, store_metrics) = (Metrics::default(), weir_store::Metrics::default());
        metrics.register(registry);
        store_metrics.register(registry);
        Ok(Apiserver { config, metrics, store_metrics })
    }

    /// Serves until `shutdown`; sends `ready` once it does.
    pub fn run(
        self,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Error>> {
        // In a box it is compiled here, and not among the executable's other roles.
        Box::pin(self.serve(ready, shutdown))
    }

    async fn serve(self, ready: oneshot::Sender<()>, shutdown: CancellationToken) -> Result<(), Error> {
        let Apiserver { config, metrics, store_metrics } = self;
        // A child: when the store fails, this server ends, and not whoever shares the caller's token.
        let shutdown = shutdown.child_token();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        store_metrics.register(&mut registry);
        let pki = ensure_pki(&config).await?;
        let certificates = Certificates::read(pki.clone())?;
        // The port before the store: a second server learns of the first from whichever it asks for first.
        let address = SocketAddr::new(config.bind_address, config.port);
        let listener = Listener::bind(address, certificates.server_config()?, config.max_connections).await?;

        let store = open_store(&config, store_metrics).await?;
        let (cache, watch) = Cache::load(&*store).await?;
        let services =
            ServiceAllocator::load(&*store, config.service_cidr, config.node_port_range, metrics.clone())
                .await?;
        let static_tokens =
            config.token_file.as_deref().map(StaticTokens::read).transpose()?.unwrap_or_default();
        let authenticator = Authenticator { issuer: Issuer::read(&pki.key("sa"))?, static_tokens };
        let server = Arc::new(Server {
            storage: Storage { store, cache: Arc::new(cache), services },
            authenticator,
            kubelet: kubelet::Client::new(pki),
            metrics,
            registry,
            address: SocketAddr::new(
                config.endpoint().unwrap_or_else(|| config.local_address()),
                config.port,
            ),
            in_flight: Semaphore::new(config.max_in_flight),
            shutdown: shutdown.clone(),
            failed: AtomicBool::new(false),
        });

        let follower = tokio::spawn({
            let cache = Arc::clone(&server.storage.cache);
            async move { cache.follow(watch).await }
        });
        bootstrap::ensure(&server.storage, config.service_cidr.first(), config.endpoint(), config.port)
            .await?;
        let renewal = tokio::spawn(renew(config, certificates));
        let serving = tokio::spawn(serve::serve(listener, Arc::clone(&server)));
        tracing::info!(%address, "apiserver serves");
        // Nobody may be waiting.
        let _ = ready.send(());

        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = follower => {
                server.failed.store(true, Ordering::Relaxed);
                shutdown.cancel();
                Err(ended.map_or(Error::Stopped("the watch cache"), Error::Store))
            }
        };
        renewal.abort();
        if serving.await.is_err() {
            return Err(Error::Stopped("the listener"));
        }
        tracing::info!("apiserver stopped");
        result
    }
}

async fn ensure_pki(config: &Config) -> Result<Pki, Error> {
    let pki = config.pki();
    let ensured = tokio::task::spawn_blocking(move || pki::ensure(&pki)).await;
    Ok(ensured.map_err(|_| Error::Stopped("the certificates' upkeep"))??)
}

async fn open_store(config: &Config, metrics: weir_store::Metrics) -> Result<Arc<dyn Store>, Error> {
    let path = config.data_dir.join("store.redb");
    let opened =
        tokio::task::spawn_blocking(move || Embedded::open(&path, &Options::default(), metrics)).await;
    Ok(Arc::new(opened.map_err(|_| Error::Stopped("the store"))??))
}

/// Keeps the certificates from running out.
async fn renew(config: Config, certificates: Arc<Certificates>) {
    loop {
        tokio::time::sleep(CERTIFICATES_EVERY).await;
        let renewed = match ensure_pki(&config).await {
            Ok(_) => certificates.reload().map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            tracing::error!(%error, "the certificates could not be renewed; trying again later");
        }
    }
}
