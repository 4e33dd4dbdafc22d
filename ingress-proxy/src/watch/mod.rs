//! The watching side: from the apiserver's watches to a live table.
//!
//! One task owns the [`Snapshot`] and is the only writer of what is served. It sleeps until something changes,
//! takes in everything that is already there, and then does the least that is needed: a changed EndpointSlice
//! refreshes pools, a renewed certificate takes the place of the old one, and anything else has those Ingresses and hosts
//! compiled that it concerns. Nothing is polled, and a lone change waits for nothing; those that come while others are
//! compiled, or shortly after, go together.

mod change;
mod expiry;
mod report;
mod secrets;
mod status;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::stream::{self, BoxStream, StreamExt};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::compile::{Changes, Compiler, ObjectKey, Snapshot};
use crate::live::Installer;
use crate::metrics::Metrics;
use change::{Change, Effect, Kind, Relists};
pub(crate) use report::Problems;
pub(crate) use secrets::read as read_secret;
pub(crate) use status::{Publisher, Source, StatusMetrics};

/// After a compilation the next waits for this many times what that one took: a burst of changes gets a fifth of a core.
const PAUSES: u32 = 4;
/// The longest such wait.
const MAX_PAUSE: Duration = Duration::from_millis(5);
/// Changes that are taken in before the table is brought up to date.
const MAX_BATCH: usize = 4_096;

/// Watches the cluster and keeps the table up to date.
pub(crate) struct Watcher {
    client: Client,
    snapshot: Snapshot,
    relists: Relists,
    compiler: Compiler,
    installer: Installer,
    secrets: secrets::Watches,
    reporter: report::Reporter,
    publisher: Publisher,
    stale: Stale,
    expiry: expiry::Expiry,
    /// The next compilation is not before.
    rest_until: Option<Instant>,
}

/// What of the served state is behind the snapshot.
#[derive(Debug, Default)]
struct Stale {
    /// To be compiled.
    rules: Changes,
    /// Ingresses with another published status.
    statuses: BTreeSet<ObjectKey>,
    /// Services with other endpoints.
    endpoints: BTreeSet<ObjectKey>,
    /// Secrets with another pair.
    pairs: BTreeSet<ObjectKey>,
}

impl Stale {
    fn note(&mut self, effect: Effect) {
        let rules = &mut self.rules;
        let (keys, key) = match effect {
            Effect::Classes => {
                rules.classes = true;
                return;
            }
            Effect::Ingress(key) => (&mut rules.ingresses, key),
            Effect::Status(key) => (&mut self.statuses, key),
            Effect::Service(key) => {
                // What is spoken at the endpoints is a matter of the Service's ports too.
                self.endpoints.insert(key.clone());
                (&mut rules.services, key)
            }
            Effect::Endpoints(key) => (&mut self.endpoints, key),
            Effect::Secret(key) => {
                // The default certificate is no matter of rules.
                self.pairs.insert(key.clone());
                (&mut rules.secrets, key)
            }
            Effect::Pair(key) => (&mut self.pairs, key),
        };
        keys.insert(key);
    }
}

impl Watcher {
    pub(crate) fn new(
        client: Client,
        class_name: &str,
        default_secret: Option<ObjectKey>,
        publisher: Publisher,
        installer: Installer,
        metrics: &Metrics,
        problems: Problems,
    ) -> Self {
        Self {
            secrets: secrets::Watches::new(client.clone(), default_secret, metrics),
            reporter: report::Reporter::start(client.clone(), metrics, problems),
            publisher,
            client,
            snapshot: Snapshot::default(),
            relists: Relists::default(),
            compiler: Compiler::new(class_name),
            installer,
            stale: Stale::default(),
            expiry: expiry::Expiry::default(),
            rest_until: None,
        }
    }

    /// Runs until `shutdown`. `synced` is sent when everything that existed at start is being served.
    pub(crate) async fn run(mut self, synced: oneshot::Sender<()>, shutdown: CancellationToken) {
        let mut changes = self.changes();
        let mut synced = Some(synced);
        let mut look_again = tokio::time::interval(expiry::LOOK_AGAIN);
        loop {
            let first = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(change) = changes.next() => change,
                change = self.secrets.changed() => change,
                _ = look_again.tick() => {
                    self.look_at_certificates(self.compiler.keys(), &BTreeSet::new());
                    continue;
                }
            };
            let since = Instant::now();
            self.take(first);
            if let Some(until) = self.rest_until.take().filter(|until| *until > since) {
                tokio::time::sleep_until(until.into()).await;
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
        let stale = &mut self.stale;
        self.relists.apply(&mut self.snapshot, change, &mut |effect| stale.note(effect));
    }

    fn bring_up_to_date(&mut self, since: Instant) {
        let mut stale = std::mem::take(&mut self.stale);
        let mut ingresses = BTreeSet::new();
        self.publisher.follow(&self.snapshot);
        // Twice at most: secrets that are refused a watch are the verdict of the first time.
        while !stale.rules.is_empty() {
            let started = Instant::now();
            let mut update = self.compiler.update(&self.snapshot, &std::mem::take(&mut stale.rules));
            let named = std::mem::take(&mut update.secrets);
            stale.rules.secrets = self.secrets.follow(named, &mut self.snapshot);
            let (problems, mended) =
                (std::mem::take(&mut update.problems), std::mem::take(&mut update.mended));
            self.reporter.report(problems, mended);
            ingresses.extend(update.ingresses.keys().cloned());
            self.publisher.claim(&self.snapshot, std::mem::take(&mut update.ingresses));
            self.installer.install(&self.snapshot, update, since);
            let took = started.elapsed();
            self.rest_until = Some(Instant::now() + (took * PAUSES).min(MAX_PAUSE));
            tracing::debug!(?took, since = ?since.elapsed(), "rules replaced");
        }
        self.installer.refresh(&self.snapshot, &stale.endpoints);
        self.installer.renew(&self.snapshot, &stale.pairs);
        self.publisher.publish(&self.snapshot, &stale.statuses);
        self.look_at_certificates(ingresses, &stale.pairs);
    }

    fn look_at_certificates(
        &mut self,
        ingresses: impl IntoIterator<Item = ObjectKey>,
        secrets: &BTreeSet<ObjectKey>,
    ) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        let (problems, mended) = self.expiry.look(&self.compiler, &self.snapshot, ingresses, secrets, now);
        self.reporter.report(problems, mended);
    }

    /// All watches but those of secrets, as one stream of changes.
    fn changes(&self) -> BoxStream<'static, Change> {
        let client = &self.client;
        let published = self.publisher.service().cloned();
        let service = move |object, here| Change::service(object, here, published.as_ref());
        stream::select_all([
            events(client, Kind::Class, Change::class),
            events(client, Kind::Ingress, Change::ingress),
            events(client, Kind::Service, service),
            events(client, Kind::Slice, Change::slice),
        ])
        .boxed()
    }
}

/// One kind's watch, over all namespaces. Objects become facts as they arrive and are dropped.
fn events<K>(
    client: &Client,
    kind: Kind,
    fact: impl Fn(K, bool) -> Change + Send + 'static,
) -> BoxStream<'static, Change>
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

#[cfg(test)]
mod tests;
