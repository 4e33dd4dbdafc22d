//! Rules of the compiler, on values written as the manifests that users write.

mod changes;
mod policies;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde::Deserialize;

use super::*;

const CLASS: &str = "weir";

/// A snapshot from a multi-document manifest.
fn snapshot(manifest: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for document in serde_yaml::Deserializer::from_str(manifest) {
        let value = serde_yaml::Value::deserialize(document).unwrap();
        let read = |value| serde_yaml::from_value(value);
        match value["kind"].as_str().unwrap() {
            "IngressClass" => {
                let class: IngressClass = read(value).unwrap();
                snapshot.classes.insert(class.metadata.name.clone().unwrap(), class.into());
            }
            "Ingress" => {
                let ingress: Ingress = serde_yaml::from_value(value).unwrap();
                let fact = IngressFact::from(ingress);
                snapshot.ingresses.insert(fact.key.clone(), fact);
            }
            "Service" => {
                let service: Service = serde_yaml::from_value(value).unwrap();
                snapshot.services.insert(ObjectKey::of(&service.metadata), service.into());
            }
            "EndpointSlice" => {
                let slice: EndpointSlice = serde_yaml::from_value(value).unwrap();
                let name = slice.metadata.name.clone().unwrap();
                let fact = SliceFact::read(slice).unwrap();
                snapshot.slices.entry(fact.service.clone()).or_default().insert(name, fact);
            }
            other => panic!("{other}"),
        }
    }
    snapshot
}

/// The class, and Services `a` and `b` with port 80 named `web`.
const BASE: &str = "
kind: IngressClass
metadata: {name: weir}
spec: {controller: weir.dev/ingress}
---
kind: Service
metadata: {name: a, namespace: n}
spec: {ports: [{name: web, port: 80, targetPort: http}]}
---
kind: Service
metadata: {name: b, namespace: n}
spec: {ports: [{name: web, port: 80}, {name: admin, port: 81}]}
";

fn compiled(manifest: &str) -> Compiled {
    compile(&snapshot(&format!("{BASE}---\n{manifest}")), CLASS)
}

fn service_for<'a>(compiled: &'a Compiled, host: &str, path: &str) -> Option<&'a TargetSpec> {
    compiled.table.lookup(host, path).map(|target| &**target)
}

fn name_for<'a>(compiled: &'a Compiled, host: &str, path: &str) -> &'a str {
    service_for(compiled, host, path).map_or("none", |target| &target.service)
}

fn reasons(compiled: &Compiled) -> Vec<(&str, Reason)> {
    compiled.problems.iter().map(|problem| (problem.ingress.name.as_str(), problem.reason)).collect()
}

#[test]
fn ports_resolve_by_number_and_by_name() {
    let compiled = compiled(
        "
kind: Ingress
metadata: {name: i, namespace: n}
spec:
  ingressClassName: weir
  rules:
  - host: x.com
    http:
      paths:
      - {path: /num, pathType: Prefix, backend: {service: {name: b, port: {number: 81}}}}
      - {path: /name, pathType: Exact, backend: {service: {name: b, port: {name: web}}}}
      - {path: /impl, pathType: ImplementationSpecific, backend: {service: {name: a, port: {number: 80}}}}
",
    );
    let port = |path| service_for(&compiled, "x.com", path).unwrap().backend.clone().unwrap().port;
    assert_eq!(port("/num/x"), "admin");
    assert_eq!(port("/name"), "web");
    assert_eq!(port("/impl/x"), "web");
    assert!(service_for(&compiled, "x.com", "/name/x").is_none());
    assert!(service_for(&compiled, "y.com", "/num").is_none());
    assert_eq!(reasons(&compiled), []);
}

#[test]
fn a_broken_backend_keeps_its_rule_and_says_why() {
    let compiled = compiled(
        "
kind: Ingress
metadata: {name: broken, namespace: n, uid: u}
spec:
  ingressClassName: weir
  rules:
  - http:
      paths:
      - {path: /gone, pathType: Prefix, backend: {service: {name: gone, port: {number: 80}}}}
      - {path: /port, pathType: Prefix, backend: {service: {name: b, port: {number: 8080}}}}
      - {path: /res, pathType: Prefix, backend: {resource: {kind: Bucket, name: b}}}
      - {path: /bad%2fpath, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}
      - {path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}
",
    );
    let why = |path| service_for(&compiled, "x", path).unwrap().backend.clone().unwrap_err();
    assert_eq!(why("/gone"), "Service n/gone does not exist: create it, or name one that does");
    assert_eq!(why("/port"), "Service n/b has no port 8080: it has 80 (web), 81 (admin)");
    assert!(why("/res").contains("resource backends are not served"));
    assert_eq!(name_for(&compiled, "x", "/other"), "a");
    let expected = [Reason::BadService, Reason::BadPort, Reason::BadBackend, Reason::InvalidPath];
    assert_eq!(reasons(&compiled), expected.map(|reason| ("broken", reason)));
    assert!(compiled.problems.iter().all(|problem| problem.uid == "u"));
}

fn one(name: &str, extra: &str, spec: &str, service: &str) -> String {
    format!(
        "
kind: Ingress
metadata: {{name: {name}, namespace: n, {extra}}}
spec:
  {spec}
  rules:
  - host: x.com
    http: {{paths: [{{path: /p, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}]}}
---"
    )
}

#[test]
fn the_older_ingress_keeps_a_path_and_the_younger_hears_of_it() {
    let ours = "ingressClassName: weir";
    let at = |second| format!("creationTimestamp: \"2026-01-01T00:00:0{second}Z\"");
    let manifest = one("a-young", &at(2), ours, "a") + &one("z-old", &at(1), ours, "b");
    let compiled = compiled(manifest.trim_end_matches("---"));
    assert_eq!(name_for(&compiled, "x.com", "/p"), "b");
    assert_eq!(reasons(&compiled), [("a-young", Reason::Conflict)]);
    assert!(compiled.problems[0].text.contains("n/z-old"));
}

#[test]
fn the_same_rule_twice_to_the_same_place_is_no_conflict() {
    let ours = "ingressClassName: weir";
    let manifest = one("i", "", ours, "a") + &one("j", "", ours, "a");
    assert_eq!(reasons(&compiled(manifest.trim_end_matches("---"))), []);
}

#[test]
fn classes_decide_whose_it_is() {
    let class = |name: &str, controller: &str, default: bool| {
        format!(
            "kind: IngressClass
metadata: {{name: {name}, annotations: {{ingressclass.kubernetes.io/is-default-class: \"{default}\"}}}}
spec: {{controller: {controller}}}
---
"
        )
    };
    let other = class("nginx", "k8s.io/ingress-nginx", false);
    let fallback = class("weir", "weir.dev/ingress", true);
    let annotated = |name: &str| format!("annotations: {{kubernetes.io/ingress.class: {name}}}");
    let rows: &[(&str, String, &str, bool, usize)] = &[
        // description, metadata, spec, is ours with `other`, problems
        ("named", String::new(), "ingressClassName: weir", true, 0),
        ("another's", String::new(), "ingressClassName: nginx", false, 0),
        ("unknown", String::new(), "ingressClassName: nope", false, 1),
        ("annotated", annotated("weir"), "ingressClassName: null", true, 0),
        ("annotated as another's", annotated("nginx"), "ingressClassName: null", false, 0),
        ("annotated as nobody's", annotated("nope"), "ingressClassName: null", false, 0),
        ("the name beats the annotation", annotated("weir"), "ingressClassName: nginx", false, 0),
        ("no class, no default", String::new(), "ingressClassName: null", false, 0),
    ];
    for (what, metadata, spec, ours, problems) in rows {
        let manifest = format!("{other}{}", one("i", metadata, spec, "a"));
        let compiled = compiled(manifest.trim_end_matches("---"));
        assert_eq!(!compiled.claimed.is_empty(), *ours, "{what}");
        assert_eq!(compiled.problems.len(), *problems, "{what}");
    }
    let manifest = format!("{fallback}{}", one("i", "", "ingressClassName: null", "a"));
    assert_eq!(compiled(manifest.trim_end_matches("---")).claimed.len(), 1, "the default class takes it");
    // The annotation may name us without an IngressClass.
    let bare = snapshot(one("i", &annotated("weir"), "ingressClassName: null", "a").trim_end_matches("---"));
    assert_eq!(compile(&bare, CLASS).claimed.len(), 1);
}

#[test]
fn default_backends_serve_what_no_rule_does() {
    let compiled = compiled(
        "
kind: Ingress
metadata: {name: hosted, namespace: n}
spec:
  ingressClassName: weir
  defaultBackend: {service: {name: a, port: {number: 80}}}
  rules:
  - host: x.com
    http: {paths: [{path: /p, pathType: Exact, backend: {service: {name: b, port: {number: 80}}}}]}
---
kind: Ingress
metadata: {name: global, namespace: n}
spec:
  ingressClassName: weir
  defaultBackend: {service: {name: b, port: {number: 81}}}
",
    );
    assert_eq!(name_for(&compiled, "x.com", "/p"), "b");
    assert_eq!(name_for(&compiled, "x.com", "/q"), "a");
    assert_eq!(service_for(&compiled, "y.com", "/").unwrap().owner.name, "global");
}

#[test]
fn a_bad_secret_harms_only_its_hosts() {
    let mut snapshot = snapshot(&format!(
        "{BASE}---
kind: Ingress
metadata: {{name: i, namespace: n}}
spec:
  ingressClassName: weir
  tls:
  - {{hosts: [a.com, \"*.a.com\"], secretName: good}}
  - {{hosts: [b.com], secretName: broken}}
  - {{hosts: [c.com], secretName: missing}}
  - {{hosts: [d.com], secretName: unread}}
  - {{hosts: [e.com]}}
  - {{secretName: good}}
  rules:
  - host: r.com
    http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: a, port: {{number: 80}}}}}}}}]}}
"
    ));
    let usable = Arc::new(crate::tls::self_signed().unwrap());
    for (name, fact) in [
        ("good", SecretFact::Usable(usable, None)),
        ("broken", SecretFact::Broken("tls.key holds no PEM private key".into())),
        ("missing", SecretFact::Missing),
    ] {
        snapshot.secrets.insert(ObjectKey::new("n", name), fact);
    }
    let compiled = compile(&snapshot, CLASS);
    let hosts: Vec<_> = compiled.certificates.keys().cloned().collect();
    assert_eq!(
        hosts,
        [
            HostPattern::Exact("a.com".into()),
            HostPattern::Exact("r.com".into()),
            HostPattern::Wildcard("a.com".into())
        ]
    );
    assert_eq!(compiled.secrets.len(), 4, "all named ones are watched, read or not");
    assert_eq!(reasons(&compiled), [("i", Reason::BadSecret), ("i", Reason::BadSecret)]);
    assert!(compiled.problems[0].text.contains("tls.key holds no PEM private key"));
    assert_eq!(name_for(&compiled, "r.com", "/"), "a", "the rules are served all the same");
}

#[test]
fn endpoints_prefer_ready_and_fall_back_to_draining() {
    let slice = |name: &str, port: u16, conditions: &str, address: &str| {
        format!(
            "---
kind: EndpointSlice
metadata: {{name: {name}, namespace: n, labels: {{kubernetes.io/service-name: a}}}}
addressType: IPv4
ports: [{{name: web, port: {port}, protocol: TCP}}, {{name: other, port: 1}}]
endpoints: [{{addresses: [{address}], conditions: {conditions}}}]
"
        )
    };
    let key = BackendKey::new(ObjectKey::new("n", "a"), "web");
    let addresses = |slices: &str| -> Vec<String> {
        let snapshot = snapshot(&format!("{BASE}{slices}"));
        endpoints(&snapshot, &key).addresses.iter().map(ToString::to_string).collect()
    };
    let ready = slice("s1", 8080, "{ready: true, serving: true}", "10.0.0.1");
    let unsaid = slice("s2", 9090, "{}", "10.0.0.2");
    let draining = slice("s3", 8080, "{ready: false, serving: true, terminating: true}", "10.0.0.3");
    let dead = slice("s4", 8080, "{ready: false, serving: false, terminating: true}", "10.0.0.4");
    let starting = slice("s5", 8080, "{ready: false, serving: false}", "10.0.0.5");
    // targetPort differs per slice.
    assert_eq!(addresses(&format!("{ready}{unsaid}{draining}")), ["10.0.0.1:8080", "10.0.0.2:9090"]);
    assert_eq!(addresses(&format!("{draining}{dead}{starting}")), ["10.0.0.3:8080"]);
    assert_eq!(addresses(&format!("{dead}{starting}")), [""; 0]);
}

#[test]
fn what_is_spoken_is_an_app_protocol() {
    let snapshot = snapshot(
        "
kind: Service
metadata: {name: g, namespace: n}
spec: {ports: [{name: grpc, port: 80, appProtocol: kubernetes.io/h2c}, {name: web, port: 81}]}
",
    );
    let spoken = |port, protocol| {
        let key = BackendKey::new(ObjectKey::new("n", "g"), port);
        endpoints(&snapshot, &BackendKey { protocol, ..key }).protocol
    };
    assert_eq!((spoken("grpc", None), spoken("web", None)), (Protocol::Grpc, Protocol::Http));
    let said = Some(Protocol::Https);
    assert_eq!(spoken("grpc", said), Protocol::Https, "an annotation goes before");
}

#[test]
fn a_proxy_header_that_an_app_protocol_forbids_is_told() {
    let with = |annotations: &str| {
        let compiled = compiled(&format!(
            "
kind: Service
metadata: {{name: g, namespace: n}}
spec: {{ports: [{{name: grpc, port: 80, appProtocol: kubernetes.io/h2c}}, {{name: web, port: 81}}]}}
---
kind: Ingress
metadata: {{name: i, namespace: n, annotations: {{{annotations}}}}}
spec:
  ingressClassName: weir
  rules:
  - http:
      paths:
      - {{path: /, pathType: Prefix, backend: {{service: {{name: g, port: {{number: 80}}}}}}}}
      - {{path: /web, pathType: Prefix, backend: {{service: {{name: g, port: {{number: 81}}}}}}}}
"
        ));
        compiled.problems.iter().map(|problem| (problem.reason, problem.text.clone())).collect::<Vec<_>>()
    };
    let told = with("weir.dev/proxy-protocol: v2");
    let text = "annotation proxy-protocol is not spoken with endpoints of HTTP/2, and port 80 (grpc) of Service n/g has \
                them by its appProtocol: it has no effect there";
    assert_eq!(told, [(Reason::UnservedAnnotation, text.to_owned())]);
    assert_eq!(with("weir.dev/proxy-protocol: v2, weir.dev/backend-protocol: HTTP"), []);
    assert_eq!(with(""), []);
}
