//! Changes of every kind, one after the other: what is served after each is what the same cluster would be served with
//! from nothing, and nothing else is kept.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use k8s_openapi::api::networking::v1::Ingress;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::change::{Change, Kind, Relists};
use super::{Stale, report, status};
use crate::compile::{
    Changes, ClassFact, Compiled, Compiler, EndpointFact, ObjectKey, PortFact, Problem, SecretFact,
    ServiceFact, SliceFact, Snapshot, compile,
};
use crate::config::Timeouts;
use crate::live::{Installer, Live, Target};
use crate::metrics::Metrics;
use crate::tls::{Certificates, self_signed};

const CLASS: &str = "weir";
const ADDRESS: &str = "192.0.2.1";
/// In rules and for TLS.
const HOSTS: [&str; 8] = ["", "a.com", "b.a.com", "www.a.com", "*.a.com", "b.com", "*.com", "no host"];
const PATHS: [&str; 5] = ["/", "/p", "/p/q", "/(r)[0-9]", "/%2f"];
const ANNOTATIONS: [(&str, &str); 17] = [
    ("canary", "true"),
    ("canary-weight", "10"),
    ("server-alias", "alias.com,b.com"),
    ("server-alias", "alias.com,www.b.com"),
    ("from-to-www-redirect", "true"),
    ("use-regex", "true"),
    ("rewrite-target", "/$2"),
    ("app-root", "/app"),
    ("auth-type", "basic"),
    ("auth-secret", "s"),
    ("default-backend", "b"),
    ("default-backend", "gone"),
    ("ssl-redirect", "false"),
    ("force-ssl-redirect", "true"),
    ("server-snippet", "return 418;"),
    ("backend-protocol", "GRPC"),
    ("proxy-body-size", "1k"),
];
/// Of requests.
const ASKED_HOSTS: [&str; 9] =
    ["a.com", "b.a.com", "c.a.com", "www.a.com", "b.com", "www.b.com", "alias.com", "x.org", "d.b.a.com"];
const ASKED_PATHS: [&str; 6] = ["/", "/p", "/p/q/x", "/px", "/r1", "/R2/x"];

static PAIRS: LazyLock<[Arc<CertifiedKey>; 3]> =
    LazyLock::new(|| std::array::from_fn(|_| Arc::new(self_signed().unwrap())));

/// The proxy without sockets, and the cluster that it watches.
struct World {
    snapshot: Snapshot,
    relists: Relists,
    compiler: Compiler,
    served: Served,
    compiled: Compiled,
    reporter: (report::Reporter, mpsc::Receiver<Problem>),
    publisher: (status::Publisher, watch::Receiver<BTreeSet<ObjectKey>>),
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
    let backend = target.backend.as_ref().map(|pool| (pool.len(), pool.is_h2c()));
    let others = [&target.canary, &target.fallback].map(|other| other.as_ref().map(describe));
    format!("{} {} {backend:?} {:?} {others:?}", target.ingress, target.service, target.policy)
}

impl World {
    fn new() -> Self {
        Self {
            snapshot: Snapshot::default(),
            relists: Relists::default(),
            compiler: Compiler::new(CLASS),
            served: Served::new(),
            compiled: Compiled::default(),
            reporter: report::Reporter::new(prometheus_client::metrics::counter::Counter::default()),
            publisher: status::Publisher::new(vec![ADDRESS.to_owned()]),
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
        let mut update = self.compiler.update(&self.snapshot, &stale.rules);
        self.reporter.0.report(update.problems.clone(), update.mended.clone());
        self.publisher.0.claim(&self.snapshot, update.ingresses.clone());
        self.compiled.apply(copy(&mut update));
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
        let is_wrong = |key: &&ObjectKey| self.snapshot.ingresses[*key].published != [ADDRESS];
        let wrong: BTreeSet<ObjectKey> = compiled.claimed.iter().filter(is_wrong).cloned().collect();
        prop_assert_eq!(&*self.publisher.1.borrow(), &wrong, "statuses");
        Ok(())
    }
}

/// The update for a second reader; only the rules cannot be read twice, so they are built of copies.
fn copy(update: &mut crate::compile::Update) -> crate::compile::Update {
    use crate::compile::{HostUpdate, Update};
    let host = |(host, update): (&crate::table::HostPattern, &HostUpdate)| {
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

fn maybe<T: std::fmt::Debug>(some: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.8, some)
}

/// `n` and `m` have an Ingress of every name, and Services and secrets of the same names.
fn key(names: &'static [&'static str]) -> impl Strategy<Value = ObjectKey> {
    (prop_oneof![3 => Just("n"), 1 => Just("m")], select(names))
        .prop_map(|(ns, name)| ObjectKey::new(ns, name))
}

fn backend() -> impl Strategy<Value = Value> {
    let port = prop_oneof![3 => Just(json!({"number": 80})), 1 => Just(json!({"name": "admin"}))];
    (select(&["a", "a", "b", "gone"][..]), port)
        .prop_map(|(name, port)| json!({"service": {"name": name, "port": port}}))
}

fn rule() -> impl Strategy<Value = Value> {
    let path = (select(&PATHS[..]), select(&["Exact", "Prefix"][..]), backend())
        .prop_map(|(path, kind, backend)| json!({"path": path, "pathType": kind, "backend": backend}));
    (select(&HOSTS[..]), prop::collection::vec(path, 0..3))
        .prop_map(|(host, paths)| json!({"host": host, "http": {"paths": paths}}))
}

fn tls() -> impl Strategy<Value = Value> {
    (subsequence(&HOSTS[..], 0..3), select(&["s", "t", ""][..]))
        .prop_map(|(hosts, secret)| json!({"hosts": hosts, "secretName": secret}))
}

fn ingress() -> impl Strategy<Value = Change> {
    let object = (
        select(&["weir", "weir", "weir", "other"][..]),
        subsequence(&ANNOTATIONS[..], 0..4),
        prop::collection::vec(rule(), 0..3),
        prop::option::weighted(0.2, backend()),
        prop::collection::vec(tls(), 0..2),
        0..3_u8,
        any::<bool>(),
    );
    (key(&["i", "j", "k"]), maybe(object)).prop_map(|(key, object)| {
        let gone = object.is_none();
        let (class, annotations, rules, backend, tls, second, published) =
            object.unwrap_or(("", vec![], vec![], None, vec![], 0, false));
        let full = |(name, value): (&str, &str)| (format!("weir.dev/{name}"), value.to_owned());
        let addresses = if published { json!([{"ip": ADDRESS}]) } else { json!([]) };
        let object = json!({
            "metadata": {
                "namespace": key.namespace, "name": key.name, "uid": format!("{key}"),
                "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"),
                "annotations": annotations.into_iter().map(full).collect::<BTreeMap<_, _>>(),
            },
            "spec": {"ingressClassName": class, "rules": rules, "defaultBackend": backend, "tls": tls},
            "status": {"loadBalancer": {"ingress": addresses}},
        });
        Change::ingress(serde_json::from_value::<Ingress>(object).unwrap(), !gone)
    })
}

fn service() -> impl Strategy<Value = Change> {
    let port = |name: &str, number, h2c| PortFact { name: name.to_owned(), number, h2c };
    let fact =
        (any::<[bool; 2]>(), prop::bool::weighted(0.1)).prop_map(move |([admin, h2c], external_name)| {
            let admin = admin.then(|| port("admin", 81, false));
            ServiceFact { ports: [port("web", 80, h2c)].into_iter().chain(admin).collect(), external_name }
        });
    (key(&["a", "b"]), maybe(fact)).prop_map(|(key, fact)| Change::Service(key, fact))
}

fn slice() -> impl Strategy<Value = Change> {
    (key(&["x", "y"]), maybe((select(&["a", "b"][..]), 0..3_u8))).prop_map(|(key, fact)| {
        let fact = fact.map(|(service, count)| SliceFact {
            service: ObjectKey::new(&key.namespace, service),
            ports: vec![PortFact { name: "web".to_owned(), number: 8_080, h2c: false }],
            endpoints: (0..count)
                .map(|last| EndpointFact {
                    addresses: vec![[10, 0, 0, last].into()],
                    ready: true,
                    draining: false,
                })
                .collect(),
        });
        Change::Slice(key, fact)
    })
}

fn secret() -> impl Strategy<Value = Change> {
    let users = |text: &str| BTreeMap::from([("auth".to_owned(), text.as_bytes().to_vec())]);
    let fact = prop_oneof![
        1 => Just(SecretFact::Missing),
        1 => Just(SecretFact::Broken("of a fault".to_owned())),
        3 => (1..3_usize).prop_map(|number| SecretFact::Usable(Arc::clone(&PAIRS[number]))),
        2 => select(&["ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "ann:plain"][..])
            .prop_map(move |text| SecretFact::Opaque(Arc::new(users(text)))),
    ];
    (key(&["s", "t"]), fact).prop_map(|(key, fact)| Change::Secret(key, fact))
}

fn class() -> impl Strategy<Value = Change> {
    let controller = select(&[crate::compile::CONTROLLER, "k8s.io/ingress-nginx"][..]);
    let fact =
        controller.prop_map(|controller| ClassFact { controller: controller.to_owned(), default: false });
    (select(&["weir", "other"][..]), maybe(fact))
        .prop_map(|(name, fact)| Change::Class(ObjectKey::new("", name), fact))
}

/// Mostly one object, sometimes a few at once, or a list in which nothing is left.
fn step() -> impl Strategy<Value = Vec<Change>> {
    let change = || prop_oneof![8 => ingress(), 3 => service(), 2 => slice(), 4 => secret(), 1 => class()];
    let kinds = select(&[Kind::Class, Kind::Ingress, Kind::Service, Kind::Slice][..]);
    prop_oneof![
        20 => change().prop_map(|change| vec![change]),
        4 => prop::collection::vec(change(), 2..5),
        1 => kinds.prop_map(|kind| vec![Change::ListBegins(kind), Change::ListEnds(kind)]),
    ]
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
