//! Changes of every kind, one after the other: what is served after each is what the same cluster would be served with
//! from nothing, and nothing else is kept.

mod steps;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use tokio::sync::{mpsc, watch};

use super::change::{Change, Kind, Relists};
use super::{Stale, report, status};
use crate::compile::{
    Changes, ClassFact, Compiled, Compiler, HostUpdate, ObjectKey, Problem, Snapshot, Update, compile,
};
use crate::config::Timeouts;
use crate::live::{Installer, Live, Target};
use crate::metrics::Metrics;
use crate::table::HostPattern;
use crate::tls::Certificates;
use steps::{PAIRS, published_service, step};

const CLASS: &str = "weir";
/// Of requests.
const ASKED_HOSTS: [&str; 9] =
    ["a.com", "b.a.com", "c.a.com", "www.a.com", "b.com", "www.b.com", "alias.com", "x.org", "d.b.a.com"];
const ASKED_PATHS: [&str; 6] = ["/", "/p", "/p/q/x", "/px", "/r1", "/R2/x"];

/// The proxy without sockets, and the cluster that it watches.
struct World {
    snapshot: Snapshot,
    relists: Relists,
    compiler: Compiler,
    served: Served,
    compiled: Compiled,
    reporter: (report::Reporter, mpsc::Receiver<Problem>),
    publisher: (status::Publisher, watch::Receiver<status::Wanted>),
    status: status::StatusMetrics,
}

struct Served {
    installer: Installer,
    live: Arc<ArcSwap<Live>>,
    certificates: Arc<ArcSwap<Certificates>>,
}

impl Served {
    fn new() -> Self {
        let live = Arc::new(ArcSwap::from_pointee(Live::default()));
        let default = Arc::clone(&PAIRS[0]);
        let certificates = Arc::new(ArcSwap::from_pointee(Certificates::new(Arc::clone(&default))));
        let installer = Installer::new(
            Arc::clone(&live),
            Arc::clone(&certificates),
            Metrics::register(&mut Registry::default()),
            Timeouts::default(),
            default,
            Some(ObjectKey::new("m", "s")),
        );
        Self { installer, live, certificates }
    }

    /// Where requests go, and what is answered with.
    fn answers(&self) -> Vec<(String, Option<String>)> {
        let (live, certificates) = (self.live.load(), self.certificates.load());
        let routes = ASKED_HOSTS.iter().flat_map(|host| ASKED_PATHS.iter().map(move |path| (host, path)));
        let routes =
            routes.map(|(host, path)| (format!("{host}{path}"), live.route(host, path).map(describe)));
        let pairs = ASKED_HOSTS.iter().map(|host| {
            let chosen = certificates.choose(host);
            let number = PAIRS.iter().position(|pair| Arc::ptr_eq(pair, &chosen));
            ((*host).to_owned(), number.map(|number| format!("pair {number}")))
        });
        routes.chain(pairs).collect()
    }
}

fn describe(target: &Arc<Target>) -> String {
    let backend = target.backend.as_ref().map(|pool| (pool.len(), pool.protocol()));
    let others = [&target.canary, &target.fallback].map(|other| other.as_ref().map(describe));
    format!("{} {} {backend:?} {:?} {others:?}", target.ingress, target.service, target.policy)
}

impl World {
    fn new() -> Self {
        let metrics =
            crate::metrics::Metrics::register(&mut prometheus_client::registry::Registry::default());
        Self {
            snapshot: Snapshot::default(),
            relists: Relists::default(),
            compiler: Compiler::new(CLASS),
            served: Served::new(),
            compiled: Compiled::default(),
            reporter: report::Reporter::new(&metrics, report::Problems::default()),
            publisher: status::Publisher::new(
                status::Source::Service(published_service()),
                metrics.status.clone(),
            ),
            status: metrics.status,
        }
    }

    /// As the watcher does it, but that secrets come from the test.
    fn take(&mut self, changes: Vec<Change>) {
        let mut stale = Stale::default();
        for change in changes {
            if let Change::Secret(key, _) = &change
                && !self.is_watched(key)
            {
                continue;
            }
            self.relists.apply(&mut self.snapshot, change, &mut |effect| stale.note(effect));
        }
        self.publisher.0.follow(&self.snapshot);
        let update = self.compiler.update(&self.snapshot, &stale.rules);
        self.reporter.0.report(update.problems.clone(), update.mended.clone());
        self.publisher.0.claim(&self.snapshot, update.ingresses.clone());
        self.compiled.apply(copy(&update));
        for secret in update.secrets.iter().filter(|(_, is_named)| !**is_named).map(|(secret, _)| secret) {
            if !self.is_watched(secret) {
                self.snapshot.secrets.remove(secret);
            }
        }
        let Served { installer, .. } = &mut self.served;
        installer.install(&self.snapshot, update, Instant::now());
        installer.refresh(&self.snapshot, &stale.endpoints);
        installer.renew(&self.snapshot, &stale.pairs);
        self.publisher.0.publish(&self.snapshot, &stale.statuses);
    }

    fn is_watched(&self, secret: &ObjectKey) -> bool {
        *secret == ObjectKey::new("m", "s") || self.compiled.secrets.contains(secret)
    }

    fn check(&mut self, problems_before: &HashSet<Problem>) -> Result<(), TestCaseError> {
        let mut fresh = Compiler::new(CLASS);
        let update = fresh.update(&self.snapshot, &Changes::all(&self.snapshot));
        prop_assert_eq!(&self.compiler, &fresh, "the compiler's memory");

        let compiled = compile(&self.snapshot, CLASS);
        for host in ASKED_HOSTS {
            for path in ASKED_PATHS {
                let (now, expected) =
                    (self.compiled.table.lookup(host, path), compiled.table.lookup(host, path));
                prop_assert_eq!(now, expected, "{}{}", host, path);
            }
        }
        prop_assert_eq!(self.compiled.table.hosts(), compiled.table.hosts());
        prop_assert_eq!(&self.compiled.certificates, &compiled.certificates);
        prop_assert_eq!(&self.compiled.secrets, &compiled.secrets);
        prop_assert_eq!(&self.compiled.claimed, &compiled.claimed);
        let sorted = |compiled: &Compiled| {
            let mut problems = compiled.problems.clone();
            problems.sort();
            problems
        };
        prop_assert_eq!(sorted(&self.compiled), sorted(&compiled));

        let mut served = Served::new();
        served.installer.install(&self.snapshot, update, Instant::now());
        served.installer.renew(&self.snapshot, &self.snapshot.secrets.keys().cloned().collect());
        prop_assert_eq!(self.served.answers(), served.answers());
        prop_assert_eq!(self.served.installer.kept(), served.installer.kept());

        let told: HashSet<Problem> = std::iter::from_fn(|| self.reporter.1.try_recv().ok()).collect();
        let now: HashSet<Problem> = compiled.problems.into_iter().collect();
        prop_assert_eq!(told, now.difference(problems_before).cloned().collect::<HashSet<_>>(), "Events");
        let service = self.snapshot.services.get(&published_service());
        let addresses = service.map_or(&[][..], |service| &service.addresses);
        let is_wrong = |key: &&ObjectKey| self.snapshot.ingresses[*key].published != addresses;
        let claimed = compiled.claimed.iter().filter(|_| !addresses.is_empty());
        let wanted = status::Wanted {
            addresses: addresses.into(),
            wrong: claimed.filter(is_wrong).cloned().collect::<BTreeSet<_>>(),
        };
        prop_assert_eq!(&*self.publisher.1.borrow(), &wanted, "statuses");
        let counted = [self.status.addresses.get(), self.status.outdated.get()];
        prop_assert_eq!(counted, [wanted.addresses.len() as i64, wanted.wrong.len() as i64]);
        Ok(())
    }
}

/// For a second reader.
fn copy(update: &Update) -> Update {
    let host = |(host, update): (&HostPattern, &HostUpdate)| {
        let update = match update {
            HostUpdate::Rules(rules) => HostUpdate::Rules(rules.clone()),
            HostUpdate::SameAs(other) => HostUpdate::SameAs(other.clone()),
            HostUpdate::Gone => HostUpdate::Gone,
        };
        (host.clone(), update)
    };
    Update {
        hosts: update.hosts.iter().map(host).collect(),
        certificates: update.certificates.clone(),
        secrets: update.secrets.clone(),
        ingresses: update.ingresses.clone(),
        problems: update.problems.clone(),
        mended: update.mended.clone(),
        totals: update.totals,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn changes_one_by_one_come_to_what_compiling_from_nothing_gives(
        steps in prop::collection::vec(step(), 1..32),
    ) {
        let mut world = World::new();
        let ours = ClassFact { controller: crate::compile::CONTROLLER.to_owned(), default: false };
        world.take(vec![Change::Class(ObjectKey::new("", CLASS), Some(ours))]);
        for step in steps {
            let problems = world.compiled.problems.iter().cloned().collect();
            world.take(step);
            world.check(&problems)?;
        }
        for kind in [Kind::Slice, Kind::Service, Kind::Ingress, Kind::Class] {
            world.take(vec![Change::ListBegins(kind), Change::ListEnds(kind)]);
        }
        prop_assert_eq!(&world.compiler, &Compiler::new(CLASS), "what goes is forgotten");
        prop_assert_eq!(world.served.installer.kept(), (vec![], vec![], vec![], 0));
    }
}
