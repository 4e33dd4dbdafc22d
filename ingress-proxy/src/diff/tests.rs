//! Differences on values, written as the manifests that they are of.

use super::*;

const CLASS: &str = "weir";

/// An Ingress `shop/NAME` for a host: paths, kinds and Services.
fn ingress(name: &str, host: &str, paths: &[(&str, &str, &str)], more: &str) -> String {
    let path = |(path, kind, service): &(&str, &str, &str)| {
        format!(
            "{{path: {path}, pathType: {kind}, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}"
        )
    };
    let paths: Vec<String> = paths.iter().map(path).collect();
    format!(
        "---\nkind: Ingress\nmetadata: {{name: {name}, namespace: shop{more}}}\nspec:\n  rules:\n  - {{host: \"{host}\", \
         http: {{paths: [{}]}}}}\n",
        paths.join(", ")
    )
}

fn difference(now: &str, manifest: &str) -> Difference {
    let read = |text: &str| check::read("f", text).unwrap();
    diff(read(now), &read(manifest), CLASS)
}

fn said(now: &str, manifest: &str) -> Vec<String> {
    let text = difference(now, manifest).to_string();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.pop();
    lines
}

#[test]
fn what_is_the_same_is_no_difference() {
    let now = ingress("web", "shop.example", &[("/", "Prefix", "web"), ("/api", "Exact", "api")], "");
    assert!(difference(&now, &now).is_empty());
    // Another Ingress for the same requests to the same place is none either.
    let twin = ingress("twin", "shop.example", &[("/", "Prefix", "web")], "");
    assert_eq!(said(&now, &twin), [""; 0]);
    assert_eq!(difference(&now, &now).to_string(), "Rules: 0, certificates: 0, new problems: 0\n");
}

#[test]
fn a_new_rule_says_whose_requests_it_takes() {
    let now = ingress("web", "shop.example", &[("/", "Prefix", "web")], "");
    let new = ingress("api", "shop.example", &[("/api", "Prefix", "api"), ("/x", "Exact", "web")], "");
    let expected = [
        "requests below /api of shop.example go to shop/web:80 of Ingress shop/web, would go to shop/api:80 of Ingress \
         shop/api",
    ];
    assert_eq!(said(&now, &new), expected);
    // A host of its own takes what a wildcard and rules without a host served.
    let now = ingress("wild", "*.example", &[("/api", "Prefix", "api")], "")
        + &ingress("all", "", &[("/all", "Prefix", "all")], "");
    let new = ingress("web", "shop.example", &[("/", "Prefix", "web")], "");
    let expected = [
        "requests below / of shop.example get 404, would go to shop/web:80 of Ingress shop/web",
        "requests below /all of shop.example go to shop/all:80 of Ingress shop/all, would go to shop/web:80 of Ingress \
         shop/web",
        "requests below /api of shop.example go to shop/api:80 of Ingress shop/wild, would go to shop/web:80 of Ingress \
         shop/web",
    ];
    assert_eq!(said(&now, &new), expected);
}

#[test]
fn a_rule_that_goes_says_who_gets_its_requests() {
    let now = ingress("web", "shop.example", &[("/", "Prefix", "web"), ("/api", "Prefix", "api")], "")
        + &ingress("old", "old.example", &[("/", "Prefix", "web")], "");
    let new = ingress("web", "shop.example", &[("/", "Prefix", "web")], "")
        + &ingress("old", "new.example", &[("/", "Prefix", "web")], "");
    let expected = [
        "requests below / of new.example get 404, would go to shop/web:80 of Ingress shop/old",
        "requests below / of old.example go to shop/web:80 of Ingress shop/old, would get 404",
        "requests below /api of shop.example go to shop/api:80 of Ingress shop/web, would go to shop/web:80 of Ingress \
         shop/web",
    ];
    assert_eq!(said(&now, &new), expected);
}

#[test]
fn settings_that_differ_are_named() {
    let with = |annotations: &str| {
        let more = format!(", annotations: {{{annotations}}}");
        ingress("web", "shop.example", &[("/", "Prefix", "web")], &more)
    };
    let (now, new) = (
        with("weir.dev/proxy-body-size: 1m, weir.dev/limit-rps: '5'"),
        with(
            "weir.dev/proxy-body-size: 2m, weir.dev/backend-protocol: GRPC, weir.dev/limit-rsp: '5', \
             weir.dev/max-connections: '9', weir.dev/health-check: tcp",
        ),
    );
    let said = said(&now, &new);
    let first = "requests below / of shop.example stay with shop/web:80 of Ingress shop/web; other limit, \
                 proxy-body-size, max-connections, backend-protocol, health-check";
    assert_eq!(said[0], first);
    assert!(said[1].starts_with("new problem: shop/web: UnknownAnnotation: "), "{}", said[1]);
    assert_eq!(said.len(), 2);
}

/// Who applies a manifest is younger than who is there.
#[test]
fn a_path_that_is_taken_is_a_conflict() {
    let now = ingress(
        "web",
        "shop.example",
        &[("/", "Prefix", "web")],
        ", creationTimestamp: 2026-01-01T00:00:00Z",
    );
    let new = ingress("a", "shop.example", &[("/", "Prefix", "other")], "");
    let said = said(&now, &new);
    assert_eq!(said.len(), 1);
    assert!(
        said[0].starts_with("new problem: shop/a: Conflict: path \"/\" of host \"shop.example\""),
        "{}",
        said[0]
    );
}

#[test]
fn certificates_that_change_are_named() {
    let with = |secret: &str| {
        ingress("web", "shop.example", &[("/", "Prefix", "web")], "")
            + &format!("  tls: [{{hosts: [shop.example], secretName: {secret}}}]\n")
    };
    let pair = || {
        let made = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap();
        let indented = |pem: String| pem.trim().replace('\n', "\n    ");
        format!(
            "---\nkind: Secret\nmetadata: {{name: one, namespace: shop}}\nstringData:\n  tls.crt: |\n    {}\n  tls.key: \
             |\n    {}\n",
            indented(made.cert.pem()),
            indented(made.signing_key.serialize_pem())
        )
    };
    let other =
        "handshakes for shop.example are answered with Secret shop/one, would be with Secret shop/two";
    assert_eq!(said(&with("one"), &with("two")), [other]);
    let (now, new) = (with("one") + &pair(), with("one") + &pair());
    let renewed = "handshakes for shop.example are answered with Secret shop/one, in which another certificate would be";
    assert_eq!(said(&now, &new), [renewed]);
    assert_eq!(said(&now, &now), [""; 0]);
}

#[test]
fn patterns_are_compared_as_they_are_written() {
    let with = |paths: &[(&str, &str, &str)]| {
        ingress("web", "shop.example", paths, ", annotations: {weir.dev/use-regex: 'true'}")
    };
    let now = with(&[("/v1.*", "ImplementationSpecific", "web"), ("/v2.*", "ImplementationSpecific", "web")]);
    let new = with(&[("/v1.*", "ImplementationSpecific", "api"), ("/v3.*", "ImplementationSpecific", "web")]);
    let expected = [
        "requests that match /v1.* of shop.example go to shop/web:80 of Ingress shop/web, would go to shop/api:80 of \
         Ingress shop/web",
        "requests that match /v2.* of shop.example go to shop/web:80 of Ingress shop/web, and would not",
        "requests that match /v3.* of shop.example would go to shop/web:80 of Ingress shop/web",
    ];
    assert_eq!(said(&now, &new), expected);
}
