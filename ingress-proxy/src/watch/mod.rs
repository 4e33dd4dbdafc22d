//! The watching side: from the apiserver's watches to a live table.
//!
//! One task owns the [`Snapshot`] and is the only writer of what is served. It sleeps until something changes,
//! takes in everything that is already there, and then does the least that is needed: a changed EndpointSlice
//! refreshes pools, a changed rule recompiles the table. Nothing is polled, and nothing waits for a timer
//! unless changes come faster than [`REBUILD_PAUSE`].

mod change;
mod report;
mod secrets;
mod status;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::compile::{ObjectKey, Snapshot, compile};
use crate::live::Installer;
use crate::metrics::Metrics;
use change::{Change, Effect, Kind, Relists};
pub(crate) use secrets::read as read_secret;

/// At least this long between two compilations: a burst of changes is compiled a few hundred times a second at
/// most, and a lone change still goes live at once.
const REBUILD_PAUSE: Duration = Duration::from_millis(5);
/// Changes that are taken in before the table is brought up to date.
const MAX_BATCH: usize = 4_096;

/// Watches the cluster and keeps the table up to date.
pub(crate) struct Watcher {
    client: Client,
    class_name: String,
    default_secret: Option<ObjectKey>,
    snapshot: Snapshot,
    relists: Relists,
    installer: Installer,
    secrets: secrets::Watches,
    reporter: report::Reporter,
    publisher: status::Publisher,
    stale: Stale,
    last_compile: Option<Instant>,
}

/// What of the served state is behind the snapshot.
#[derive(Debug, Default)]
struct Stale {
    routes: bool,
    status: bool,
    services: BTreeSet<ObjectKey>,
}

impl Watcher {
    pub(crate) fn new(
        client: Client,
        class_name: String,
        default_secret: Option<ObjectKey>,
        publish_addresses: Vec<String>,
        installer: Installer,
        metrics: &Metrics,
    ) -> Self {
        Self {
            secrets: secrets::Watches::new(client.clone(), metrics),
            reporter: report::Reporter::start(client.clone(), metrics),
            publisher: status::Publisher::start(client.clone(), publish_addresses),
            client,
            class_name,
            default_secret,
            snapshot: Snapshot::default(),
            relists: Relists::default(),
            installer,
            stale: Stale::default(),
            last_compile: None,
        }
    }

    /// Runs until `shutdown`. `synced` is sent when everything that existed at start is being served.
    pub(crate) async fn run(mut self, synced: oneshot::Sender<()>, shutdown: CancellationToken) {
        let mut changes = self.changes();
        let mut synced = Some(synced);
        loop {
            let first = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(change) = changes.next() => change,
                change = self.secrets.changed() => change,
            };
            let since = Instant::now();
            self.take(first);
            if let Some(wait) = self.last_compile.and_then(|last| REBUILD_PAUSE.checked_sub(last.elapsed())) {
                tokio::time::sleep(wait).await;
            }
            self.take_what_is_there(&mut changes);
            // Until every kind was listed once, what is missing may only be not there yet.
            if !self.relists.all_listed() {
                continue;
            }
            self.bring_up_to_date(since);
            if self.secrets.all_read(&self.snapshot)
                && let Some(synced) = synced.take()
            {
                let _ = synced.send(());
            }
        }
    }

    fn take_what_is_there(&mut self, changes: &mut BoxStream<'static, Change>) {
        use futures::FutureExt as _;
        for _ in 0..MAX_BATCH {
            if let Some(Some(change)) = changes.next().now_or_never() {
                self.take(change);
            } else if let Some(change) = self.secrets.changed_already() {
                self.take(change);
            } else {
                break;
            }
        }
    }

    fn take(&mut self, change: Change) {
        self.relists.apply(&mut self.snapshot, change, &mut |effect| match effect {
            Effect::Routes => self.stale.routes = true,
            Effect::Status => self.stale.status = true,
            Effect::Endpoints(service) => {
                self.stale.services.insert(service);
            }
        });
    }

    fn bring_up_to_date(&mut self, since: Instant) {
        let stale = std::mem::take(&mut self.stale);
        if stale.routes {
            let mut compiled = compile(&self.snapshot, &self.class_name);
            compiled.secrets.extend(self.default_secret.clone());
            self.secrets.watch_exactly(&compiled.secrets, &mut self.snapshot);
            self.reporter.report(&compiled.problems);
            self.publisher.publish(&self.snapshot, compiled.claimed.clone());
            self.installer.install(&self.snapshot, compiled, since);
            self.last_compile = Some(Instant::now());
            tracing::debug!(took = ?since.elapsed(), "route table replaced");
        } else {
            self.installer.refresh(&self.snapshot, &stale.services);
            if stale.status {
                self.publisher.publish_again(&self.snapshot);
            }
        }
    }

    /// All watches but those of secrets, as one stream of changes.
    fn changes(&self) -> BoxStream<'static, Change> {
        let client = &self.client;
        stream::select_all([
            events::<IngressClass>(client, Kind::Class, Change::class),
            events::<Ingress>(client, Kind::Ingress, Change::ingress),
            events::<Service>(client, Kind::Service, Change::service),
            events::<EndpointSlice>(client, Kind::Slice, Change::slice),
        ])
        .boxed()
    }
}

/// One kind's watch, over all namespaces. Objects become facts as they arrive and are dropped.
fn events<K>(client: &Client, kind: Kind, fact: fn(K, bool) -> Change) -> BoxStream<'static, Change>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    watch(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(move |event| {
            let change = match event {
                Ok(Event::Init) => Some(Change::ListBegins(kind)),
                Ok(Event::InitDone) => Some(Change::ListEnds(kind)),
                Ok(Event::InitApply(object) | Event::Apply(object)) => Some(fact(object, true)),
                Ok(Event::Delete(object)) => Some(fact(object, false)),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                    None
                }
            };
            std::future::ready(change)
        })
        .boxed()
}
