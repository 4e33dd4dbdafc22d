//! What annotations make of rules.

use std::collections::BTreeMap;

use super::*;
use crate::policy::Policy;

const PREFIX: &str = "nginx.ingress.kubernetes.io";

/// An Ingress `n/name`, created at this second, with annotations `name: value` and rules `host path pathType service`.
fn ingress(name: &str, second: u8, annotations: &[(&str, &str)], rules: &[&str]) -> String {
    in_namespace("n", name, second, annotations, rules)
}

fn in_namespace(
    namespace: &str,
    name: &str,
    second: u8,
    annotations: &[(&str, &str)],
    rules: &[&str],
) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "---\nkind: Ingress\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         creationTimestamp: \"2026-01-01T00:00:0{second}Z\"\n  annotations:\n    x: y\n"
    );
    for (key, value) in annotations {
        let _ = writeln!(text, "    {PREFIX}/{key}: {value:?}");
    }
    text.push_str("spec:\n  ingressClassName: weir\n  rules:\n");
    for rule in rules {
        let [host, path, kind, service] = rule.split(' ').collect::<Vec<_>>()[..] else { panic!("{rule}") };
        let _ = writeln!(
            text,
            "  - host: {host}\n    http: {{paths: [{{path: '{path}', pathType: {kind}, backend: {{service: \
             {{name: {service}, port: {{number: 80}}}}}}}}]}}"
        );
    }
    text
}

fn compiled(ingresses: &[String]) -> Compiled {
    super::compiled(ingresses.concat().trim_start_matches("---\n"))
}

fn policy<'a>(compiled: &'a Compiled, host: &str, path: &str) -> Option<&'a Arc<Policy>> {
    service_for(compiled, host, path).unwrap().policy.as_ref()
}

/// The Service of a target's canary.
fn canary<'a>(compiled: &'a Compiled, host: &str, path: &str) -> Option<&'a str> {
    service_for(compiled, host, path)?.canary.as_ref().map(|canary| canary.service.as_str())
}

#[test]
fn a_rule_without_policies_has_none() {
    let idle = [("ssl-redirect", "true"), ("x-forwarded-prefix", "/p")];
    let compiled = compiled(&[
        ingress("i", 1, &idle, &["a.com / Prefix a", "b.com / Prefix a"]),
        ingress("j", 2, &[("proxy-body-size", "1m")], &["c.com / Prefix a"]),
    ]);
    assert!(policy(&compiled, "a.com", "/").is_none() && policy(&compiled, "c.com", "/").is_some());
    assert_eq!(reasons(&compiled), []);
}

/// Whose it is does not matter, and neither whether the secret is usable.
#[test]
fn a_host_has_tls_if_any_ingress_says_so() {
    let mut tls = ingress("tls", 1, &[], &["z.com / Prefix a"]);
    tls.push_str("  tls:\n  - {hosts: [a.com, '*.b.com'], secretName: gone}\n");
    let rules = ["a.com / Prefix a", "x.b.com / Prefix a", "b.com / Prefix a", "x.y.b.com / Prefix a"];
    let compiled = compiled(&[tls, ingress("i", 2, &[], &rules)]);
    let [a, wildcard] = ["a.com", "x.b.com"].map(|host| policy(&compiled, host, "/").unwrap());
    assert!(a.host_has_tls && Arc::ptr_eq(a, wildcard), "many plain hosts share one policy");
    for host in ["z.com", "b.com", "x.y.b.com"] {
        assert!(policy(&compiled, host, "/").is_none(), "{host}");
    }
}

#[test]
fn one_ingress_with_patterns_makes_all_paths_of_its_host_patterns() {
    let compiled = compiled(&[
        ingress("literal", 1, &[], &["a.com /foo Exact a", "a.com /x(y Prefix a", "b.com /foo Exact a"]),
        ingress("pattern", 2, &[("use-regex", "true")], &["a.com /foo/[a-c]+ ImplementationSpecific b"]),
    ]);
    for (host, path, service) in [
        ("a.com", "/foo/abc", "b"),
        ("a.com", "/FOO/x", "a"),
        ("a.com", "/x(y", "a"),
        ("b.com", "/foo", "a"),
        ("b.com", "/FOO", "none"),
    ] {
        assert_eq!(name_for(&compiled, host, path), service, "{host}{path}");
    }
    assert_eq!(reasons(&compiled), []);
}

#[test]
fn patterns_that_cannot_be_served_harm_only_themselves() {
    let annotations = [("rewrite-target", "/$2")];
    let compiled = compiled(&[
        ingress(
            "i",
            1,
            &annotations,
            &["a.com /( ImplementationSpecific a", "a.com /ok(.*) ImplementationSpecific a"],
        ),
        ingress("j", 2, &[("use-regex", "true")], &["a.com /ok(.*) ImplementationSpecific b"]),
    ]);
    assert_eq!(name_for(&compiled, "a.com", "/ok"), "a");
    let expected = [("i", Reason::InvalidPath), ("i", Reason::BadAnnotation), ("j", Reason::Conflict)];
    assert_eq!(reasons(&compiled), expected);
    assert!(compiled.problems[1].text.contains("names group $2, but path \"/ok(.*)\" has 1 of them"));
}

#[test]
fn a_canary_takes_from_the_rule_with_the_same_path_only() {
    let annotations = [("canary", "true"), ("canary-weight", "5"), ("proxy-body-size", "1k")];
    let compiled = compiled(&[
        // Older than what it is the canary of.
        ingress("canary", 1, &annotations, &["a.com /p Prefix b", "a.com /q Prefix b", "a.com /p Exact b"]),
        ingress("main", 2, &[("proxy-body-size", "2k")], &["a.com /p/ Prefix a", "a.com / Prefix a"]),
    ]);
    assert_eq!(canary(&compiled, "a.com", "/p"), Some("b"));
    assert_eq!(canary(&compiled, "a.com", "/"), None, "the same target served both paths");
    assert_eq!(name_for(&compiled, "a.com", "/p"), "a");
    let policy = policy(&compiled, "a.com", "/p").unwrap();
    assert_eq!(policy.settings.body_limit.unwrap().get(), 2 << 10, "the main version's policies count");
    assert_eq!(policy.canary.as_ref().unwrap().weight, 5);
    assert_eq!(reasons(&compiled), [("canary", Reason::Conflict), ("canary", Reason::Conflict)]);
}

#[test]
fn a_canary_of_patterns() {
    let patterns = [("use-regex", "true")];
    let annotations = [("canary", "true"), ("canary-weight", "5")];
    let path = "a.com /p(/|$)(.*) ImplementationSpecific";
    let compiled = compiled(&[
        ingress("main", 1, &patterns, &[&format!("{path} a")]),
        ingress("canary", 2, &annotations, &[&format!("{path} b")]),
    ]);
    assert_eq!(canary(&compiled, "a.com", "/p/x"), Some("b"));
    assert_eq!(reasons(&compiled), []);
}

/// Who may write Ingresses in one namespace must not draw requests of another.
#[test]
fn a_canary_is_in_the_same_namespace_and_the_first() {
    let annotations = [("canary", "true"), ("canary-weight", "100")];
    let rule = ["a.com / Prefix b"];
    let compiled = compiled(&[
        ingress("main", 1, &[], &["a.com / Prefix a"]),
        in_namespace("m", "foreign", 2, &annotations, &rule),
        ingress("first", 3, &annotations, &rule),
        ingress("second", 4, &annotations, &rule),
    ]);
    assert_eq!(canary(&compiled, "a.com", "/"), Some("b"));
    assert_eq!(reasons(&compiled), [("foreign", Reason::Conflict), ("second", Reason::Conflict)]);
}

#[test]
fn aliases_and_www_leave_the_hosts_of_others_alone() {
    let annotations = [("server-alias", "b.com,c.com"), ("from-to-www-redirect", "true")];
    let compiled = compiled(&[
        ingress("i", 1, &annotations, &["a.com / Prefix a"]),
        ingress("j", 2, &[], &["c.com / Prefix b", "www.a.com / Prefix b"]),
    ]);
    for (host, service) in [("b.com", "a"), ("c.com", "b"), ("www.a.com", "b")] {
        assert_eq!(name_for(&compiled, host, "/"), service, "{host}");
    }
    assert_eq!(reasons(&compiled), [("i", Reason::Conflict)]);
}

#[test]
fn an_alias_has_the_canaries_of_its_host_whoever_is_older() {
    let canary_annotations = [("canary", "true"), ("canary-weight", "5")];
    for (main, other) in [(1, 2), (2, 1)] {
        let compiled = compiled(&[
            ingress("main", main, &[("server-alias", "b.com")], &["a.com / Prefix a"]),
            ingress("canary", other, &canary_annotations, &["a.com / Prefix b"]),
        ]);
        for host in ["a.com", "b.com"] {
            assert_eq!(canary(&compiled, host, "/"), Some("b"), "{host}");
        }
        assert_eq!(reasons(&compiled), []);
    }
}

#[test]
fn another_protocol_is_another_pool() {
    let compiled = compiled(&[
        ingress("i", 1, &[("backend-protocol", "GRPC")], &["a.com / Prefix a"]),
        ingress("j", 2, &[], &["b.com / Prefix a"]),
    ]);
    let protocol = |host| service_for(&compiled, host, "/").unwrap().backend.clone().unwrap().protocol;
    assert_eq!((protocol("a.com"), protocol("b.com")), (Some(Protocol::Grpc), None));
}

#[test]
fn a_missing_default_backend_is_told_once() {
    let rules = ["a.com / Prefix a", "b.com /x Prefix b"];
    let compiled = compiled(&[ingress("i", 1, &[("default-backend", "gone")], &rules)]);
    assert_eq!(reasons(&compiled), [("i", Reason::BadService)]);
    let compiled = self::compiled(&[ingress("i", 1, &[("default-backend", "b")], &rules)]);
    let fallback = service_for(&compiled, "a.com", "/").unwrap().fallback.clone().unwrap();
    let port = fallback.backend.clone().unwrap().port;
    assert_eq!(port, "web", "the Service's first");
}

#[test]
fn without_its_passwords_a_rule_stays_closed() {
    let annotations = [("auth-type", "basic"), ("auth-secret", "users")];
    let manifest = ingress("i", 1, &annotations, &["a.com / Prefix a"]);
    let with = |fact: Option<SecretFact>| {
        let mut snapshot = snapshot(&format!("{BASE}{manifest}"));
        snapshot.secrets.extend(fact.map(|fact| (ObjectKey::new("n", "users"), fact)));
        let compiled = compile(&snapshot, CLASS);
        assert!(compiled.secrets.contains(&ObjectKey::new("n", "users")), "it is watched");
        let closed = policy(&compiled, "a.com", "/").unwrap().settings.closed.is_some();
        (closed, compiled.problems.into_iter().map(|problem| problem.text).collect::<Vec<_>>())
    };
    let opaque = |key: &str, text: &str| {
        SecretFact::Opaque(Arc::new(BTreeMap::from([(key.to_owned(), text.as_bytes().to_vec())])))
    };
    assert_eq!(with(None), (true, vec![]), "not read yet is no fault");
    for (fact, fault) in [
        (SecretFact::Missing, "does not exist"),
        (SecretFact::Broken("of a fault".into()), "is not usable: of a fault"),
        (SecretFact::Unreadable("forbidden".into()), "cannot be read: forbidden"),
        (SecretFact::Usable(Arc::new(crate::tls::self_signed().unwrap()), None), "holds a certificate"),
        (opaque("users", "ann:x"), "has no key \"auth\""),
        (opaque("auth", "# nobody"), "has no user"),
    ] {
        let (closed, texts) = with(Some(fact));
        assert!(closed && texts.last().unwrap().contains(fault), "{texts:?}");
    }
    let users = "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\nbob:plain";
    let (closed, texts) = with(Some(opaque("auth", users)));
    assert!(!closed && texts.len() == 1 && texts[0].contains("user \"bob\" of Secret n/users cannot log in"));
}
