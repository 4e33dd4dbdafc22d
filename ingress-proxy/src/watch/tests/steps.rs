//! Random changes of a small cluster, in which everything meets everything.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::networking::v1::Ingress;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use super::super::change::{Change, Kind};
use crate::compile::{
    Address, CONTROLLER, ClassFact, EndpointFact, ObjectKey, PortFact, Protocol, SecretFact, ServiceFact,
    SliceFact,
};
use crate::tls::self_signed;

/// What may be published of an Ingress, and where the Service may be reached that is to be.
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// In rules and for TLS.
const HOSTS: [&str; 8] = ["", "a.com", "b.a.com", "www.a.com", "*.a.com", "b.com", "*.com", "no host"];
const PATHS: [&str; 5] = ["/", "/p", "/p/q", "/(r)[0-9]", "/%2f"];
const ANNOTATIONS: [(&str, &str); 18] = [
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
    ("proxy-protocol", "v1"),
];
/// The first is the default certificate, the others are in secrets.
pub(super) static PAIRS: LazyLock<[Arc<CertifiedKey>; 3]> =
    LazyLock::new(|| std::array::from_fn(|_| Arc::new(self_signed().unwrap())));

/// Whose addresses Ingresses are to have.
pub(super) fn published_service() -> ObjectKey {
    ObjectKey::new("n", "a")
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

fn addresses() -> impl Strategy<Value = Vec<Address>> {
    subsequence(&ADDRESSES[..], 0..=1).prop_map(|texts| texts.into_iter().map(Address::from).collect())
}

fn ingress() -> impl Strategy<Value = Change> {
    let object = (
        select(&["weir", "weir", "weir", "other"][..]),
        subsequence(&ANNOTATIONS[..], 0..4),
        prop::collection::vec(rule(), 0..3),
        prop::option::weighted(0.2, backend()),
        prop::collection::vec(tls(), 0..2),
        0..3_u8,
        addresses(),
    );
    (key(&["i", "j", "k"]), maybe(object)).prop_map(|(key, object)| {
        let gone = object.is_none();
        let (class, annotations, rules, backend, tls, second, published) =
            object.unwrap_or(("", vec![], vec![], None, vec![], 0, vec![]));
        let full = |(name, value): (&str, &str)| (format!("weir.dev/{name}"), value.to_owned());
        let object = json!({
            "metadata": {
                "namespace": key.namespace, "name": key.name, "uid": format!("{key}"),
                "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"),
                "annotations": annotations.into_iter().map(full).collect::<BTreeMap<_, _>>(),
            },
            "spec": {"ingressClassName": class, "rules": rules, "defaultBackend": backend, "tls": tls},
            "status": {"loadBalancer": {"ingress": published}},
        });
        Change::ingress(serde_json::from_value::<Ingress>(object).unwrap(), !gone)
    })
}

fn service() -> impl Strategy<Value = Change> {
    let port = |name: &str, number, h2c: bool| {
        let protocol = h2c.then_some(Protocol::Grpc);
        PortFact { name: name.to_owned(), number, protocol }
    };
    let fact = (any::<[bool; 2]>(), prop::bool::weighted(0.1), addresses()).prop_map(
        move |(ports, external_name, addresses)| {
            let [admin, h2c] = ports;
            let admin = admin.then(|| port("admin", 81, false));
            let ports = [port("web", 80, h2c)].into_iter().chain(admin).collect();
            ServiceFact { ports, external_name, addresses }
        },
    );
    (key(&["a", "b"]), maybe(fact)).prop_map(|(key, fact)| Change::Service(key, fact))
}

fn slice() -> impl Strategy<Value = Change> {
    (key(&["x", "y"]), maybe((select(&["a", "b"][..]), 0..3_u8))).prop_map(|(key, fact)| {
        let fact = fact.map(|(service, count)| SliceFact {
            service: ObjectKey::new(&key.namespace, service),
            ports: vec![PortFact { name: "web".to_owned(), number: 8_080, protocol: None }],
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
        3 => (1..3_usize).prop_map(|number| SecretFact::Usable(Arc::clone(&PAIRS[number]), None)),
        2 => select(&["ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "ann:plain"][..])
            .prop_map(move |text| SecretFact::Opaque(Arc::new(users(text)))),
    ];
    (key(&["s", "t"]), fact).prop_map(|(key, fact)| Change::Secret(key, fact))
}

fn class() -> impl Strategy<Value = Change> {
    let controller = select(&[CONTROLLER, "k8s.io/ingress-nginx"][..]);
    let fact =
        controller.prop_map(|controller| ClassFact { controller: controller.to_owned(), default: false });
    (select(&["weir", "other"][..]), maybe(fact))
        .prop_map(|(name, fact)| Change::Class(ObjectKey::new("", name), fact))
}

/// Mostly one object, sometimes a few at once, or a list in which nothing is left.
pub(super) fn step() -> impl Strategy<Value = Vec<Change>> {
    let change = || prop_oneof![8 => ingress(), 3 => service(), 2 => slice(), 4 => secret(), 1 => class()];
    let kinds = select(&[Kind::Class, Kind::Ingress, Kind::Service, Kind::Slice][..]);
    prop_oneof![
        20 => change().prop_map(|change| vec![change]),
        4 => prop::collection::vec(change(), 2..5),
        1 => kinds.prop_map(|kind| vec![Change::ListBegins(kind), Change::ListEnds(kind)]),
    ]
}
