//! The rows of the Kubernetes documentation, the normal forms, and a naive reference for the trie.

use proptest::prelude::*;

use super::*;

/// A table of these hosts, as their fields say them.
fn table<T>(hosts: impl IntoIterator<Item = (&'static str, RuleSet<T>)>) -> RouteTable<T> {
    let mut table = RouteTable::default();
    for (host, rules) in hosts {
        table.set(&HostPattern::parse(host).unwrap(), Some(Arc::new(rules.build())));
    }
    table
}

/// kind, rule path; the target is the rule's position.
fn rules(rules: &[(PathKind, &str)]) -> RuleSet<usize> {
    let mut set = RuleSet::default();
    for (id, (kind, path)) in rules.iter().enumerate() {
        set.rule(*kind, &normalize_path(path).unwrap(), id).unwrap();
    }
    set
}

/// "Examples" of the Ingress documentation: rules, request path, winning rule.
#[test]
fn rows_of_the_kubernetes_documentation() {
    use PathKind::{Exact, Prefix};
    type Row = (&'static [(PathKind, &'static str)], &'static str, Option<usize>);
    let rows: &[Row] = &[
        (&[(Prefix, "/")], "/anything/at/all", Some(0)),
        (&[(Prefix, "/")], "/", Some(0)),
        (&[(Exact, "/foo")], "/foo", Some(0)),
        (&[(Exact, "/foo")], "/bar", None),
        (&[(Exact, "/foo")], "/foo/", None),
        (&[(Exact, "/foo/")], "/foo", None),
        (&[(Exact, "/foo/")], "/foo/", Some(0)),
        (&[(Prefix, "/foo")], "/foo", Some(0)),
        (&[(Prefix, "/foo")], "/foo/", Some(0)),
        (&[(Prefix, "/foo/")], "/foo", Some(0)),
        (&[(Prefix, "/foo/")], "/foo/", Some(0)),
        (&[(Prefix, "/aaa/bb")], "/aaa/bbb", None),
        (&[(Prefix, "/aaa/bbb")], "/aaa/bbb", Some(0)),
        (&[(Prefix, "/aaa/bbb/")], "/aaa/bbb", Some(0)),
        (&[(Prefix, "/aaa/bbb")], "/aaa/bbb/", Some(0)),
        (&[(Prefix, "/aaa/bbb")], "/aaa/bbb/ccc", Some(0)),
        (&[(Prefix, "/aaa/bbb")], "/aaa/bbbxyz", None),
        (&[(Prefix, "/"), (Prefix, "/aaa")], "/aaa/ccc", Some(1)),
        (&[(Prefix, "/"), (Prefix, "/aaa"), (Prefix, "/aaa/bbb")], "/aaa/bbb", Some(2)),
        (&[(Prefix, "/"), (Prefix, "/aaa"), (Prefix, "/aaa/bbb")], "/ccc", Some(0)),
        (&[(Prefix, "/aaa")], "/ccc", None),
        (&[(Prefix, "/foo"), (Exact, "/foo")], "/foo", Some(1)),
        (&[(Exact, "/Foo")], "/foo", None),
        (&[(Exact, "/")], "/", Some(0)),
        (&[(Exact, "/")], "/x", None),
    ];
    for (written, request, expected) in rows {
        let table = table([("", rules(written))]);
        assert_eq!(
            table.lookup("any.host", request),
            expected.as_ref(),
            "rules {written:?}, request {request}"
        );
    }
}

#[test]
fn exact_host_beats_wildcard_beats_none() {
    let everything = |target| {
        let mut rules = RuleSet::default();
        rules.rule(PathKind::Prefix, "/", target).unwrap();
        rules
    };
    let table = table([("a.foo.com", everything(0)), ("*.foo.com", everything(1)), ("", everything(2))]);
    for (host, expected) in [
        ("a.foo.com", 0),
        ("b.foo.com", 1),
        ("foo.com", 2),     // the wildcard needs a label
        ("a.b.foo.com", 2), // and exactly one
        ("", 2),
        ("192.0.2.1", 2),
    ] {
        assert_eq!(table.lookup(host, "/x"), Some(&expected), "{host}");
    }
}

/// A rule without host applies to all hosts, also to one that has rules, none of which match.
#[test]
fn rules_come_before_defaults() {
    let (mut exact, mut any) = (RuleSet::default(), RuleSet::default());
    exact.rule(PathKind::Exact, "/x", 0).unwrap();
    any.rule(PathKind::Prefix, "/all", 1).unwrap();
    exact.default_target(2).unwrap();
    any.default_target(3).unwrap();
    assert_eq!(any.default_target(9), Err(3));
    let table = table([("a.com", exact), ("", any)]);
    assert_eq!(table.lookup("a.com", "/x"), Some(&0));
    assert_eq!(table.lookup("a.com", "/all/y"), Some(&1));
    assert_eq!(table.lookup("a.com", "/z"), Some(&2));
    assert_eq!(table.lookup("b.com", "/z"), Some(&3));
}

#[test]
fn a_taken_path_names_its_holder() {
    let mut rules = RuleSet::default();
    rules.rule(PathKind::Prefix, "/foo", 7).unwrap();
    assert_eq!(rules.rule(PathKind::Prefix, "/foo/", 8), Err(7));
    assert_eq!(rules.rule(PathKind::Exact, "/foo", 9), Ok(()));
    assert_eq!(rules.paths(), 2);
}

#[test]
fn a_copy_of_the_table_shares_what_stays_and_is_not_changed() {
    let first = table([("a.com", rules(&[(PathKind::Prefix, "/a")])), ("b.com", rules(&[]))]);
    let mut second = first.clone();
    let (a, b) = (HostPattern::parse("a.com").unwrap(), HostPattern::parse("b.com").unwrap());
    second.set(&a, None);
    assert_eq!((first.hosts(), second.hosts()), (2, 1));
    assert_eq!((first.lookup("a.com", "/a"), second.lookup("a.com", "/a")), (Some(&0), None));
    assert!(Arc::ptr_eq(first.rules(&b).unwrap(), second.rules(&b).unwrap()));
}

#[test]
fn paths_have_one_normal_form() {
    use PathError::*;
    let rows: &[(&str, Result<&str, PathError>)] = &[
        ("/", Ok("/")),
        ("/a/b", Ok("/a/b")),
        ("/a.b/c..d", Ok("/a.b/c..d")),
        ("/.well-known/x", Ok("/.well-known/x")),
        ("//a///b//", Ok("/a/b/")),
        ("/a/./b/.", Ok("/a/b/")),
        ("/a/b/../c", Ok("/a/c")),
        ("/a/..", Ok("/")),
        ("/%61%7Eb", Ok("/a~b")),
        ("/caf%c3%a9", Ok("/caf%C3%A9")),
        ("/a%20b%25", Ok("/a%20b%25")),
        ("", Err(NotAbsolute)),
        ("*", Err(NotAbsolute)),
        ("/..", Err(AboveRoot)),
        ("/a/../../b", Err(AboveRoot)),
        ("/a%2fb", Err(EscapedSlash)),
        ("/a%5Cb", Err(EscapedSlash)),
        ("/%2e%2e/b", Err(EscapedDot)),
        ("/a%2Eb", Err(EscapedDot)),
        ("/a%00", Err(EscapedControl)),
        ("/a%0d%0a", Err(EscapedControl)),
        ("/a%7f", Err(EscapedControl)),
        ("/a%", Err(BadEscape)),
        ("/a%4", Err(BadEscape)),
        ("/a%zz", Err(BadEscape)),
        ("/a%+1", Err(BadEscape)),
        ("/a\\b", Err(Character)),
        ("/a b", Err(Character)),
        ("/a\u{1}", Err(Character)),
        ("/é", Err(Character)),
        ("/a/..;/b", Err(DotParameter)),
        ("/a/.;x/b", Err(DotParameter)),
    ];
    for (raw, expected) in rows {
        assert_eq!(normalize_path(raw).as_deref().map_err(|e| *e), *expected, "{raw}");
    }
}

#[test]
fn hosts_have_one_normal_form() {
    let rows: &[(&str, Result<&str, HostError>)] = &[
        ("shop.example", Ok("shop.example")),
        ("Shop.Example:8080", Ok("shop.example")),
        ("shop.example.", Ok("shop.example")),
        ("shop.example:", Ok("shop.example")),
        ("192.0.2.1:80", Ok("192.0.2.1")),
        ("[2001:db8::1]:443", Ok("[2001:db8::1]")),
        ("", Ok("")),
        ("a b", Err(HostError::Character)),
        ("a/b", Err(HostError::Character)),
        ("a@b", Err(HostError::Character)),
        ("a:b", Err(HostError::Character)),
        ("a:99999", Err(HostError::Character)),
        ("a:+80", Err(HostError::Character)),
        ("é.com", Err(HostError::Character)),
        ("[2001:DB8::1]", Ok("[2001:db8::1]")),
        ("[::1", Err(HostError::Character)),
        ("[::1]x", Err(HostError::Character)),
    ];
    for (raw, expected) in rows {
        assert_eq!(normalize_host(raw).as_deref().map_err(|e| *e), *expected, "{raw}");
    }
    assert_eq!(normalize_host(&"a".repeat(256)), Err(HostError::TooLong));
    for (field, expected) in [
        ("", Ok(HostPattern::Any)),
        ("Foo.com", Ok(HostPattern::Exact("foo.com".into()))),
        ("*.Foo.com", Ok(HostPattern::Wildcard("foo.com".into()))),
        ("foo.com:80", Err(HostError::Character)),
        ("*", Err(HostError::Character)),
        ("*.", Err(HostError::Character)),
        ("a.*.com", Err(HostError::Character)),
    ] {
        assert_eq!(HostPattern::parse(field), expected, "{field}");
    }
}

fn path() -> impl Strategy<Value = String> {
    (prop::collection::vec("[ab]{1,2}", 0..4), any::<bool>()).prop_map(|(elements, slash)| {
        let mut path = String::new();
        for element in &elements {
            path.push('/');
            path.push_str(element);
        }
        if slash || path.is_empty() {
            path.push('/');
        }
        path
    })
}

/// The documentation's words, rule by rule, with no data structure at all.
fn reference(rules: &[(PathKind, String)], request: &str) -> Option<usize> {
    let strip = |path: &str| path.trim_end_matches('/').to_string();
    let matches = |rule: &(PathKind, String)| match rule.0 {
        PathKind::Exact => rule.1 == request,
        PathKind::Prefix => {
            let path = strip(&rule.1);
            strip(request) == path || request.starts_with(&format!("{path}/"))
        }
    };
    (0..rules.len()).filter(|&i| matches(&rules[i])).max_by_key(|&i| {
        let (kind, path) = &rules[i];
        match kind {
            // An exact path is the whole request, which no prefix can outdo.
            PathKind::Exact => (usize::MAX, 1),
            PathKind::Prefix => (strip(path).len(), 0),
        }
    })
}

proptest! {
    /// Few rules are a list, many a trie: the words are the same for both.
    #[test]
    fn lists_and_tries_agree_with_the_words(
        rules in prop::collection::vec((prop_oneof![Just(PathKind::Exact), Just(PathKind::Prefix)], path()), 0..80),
        requests in prop::collection::vec(path(), 1..12),
    ) {
        let mut set = RuleSet::default();
        let mut kept: Vec<(PathKind, String)> = Vec::new();
        for (kind, path) in rules {
            if set.rule(kind, &path, kept.len()).is_ok() {
                kept.push((kind, path));
            }
        }
        let table = table([("h", set)]);
        prop_assert_eq!(table.targets().count(), kept.len());
        for request in requests {
            let found = table.lookup("h", &request).copied();
            prop_assert_eq!(found, reference(&kept, &request), "rules {:?}, request {}", kept, request);
        }
    }

    /// Normalising twice changes nothing, and the result has nothing left to disagree about.
    #[test]
    fn normal_form_is_stable(raw in "/[a-c./%2eEfF;~é ]{0,12}") {
        if let Ok(normal) = normalize_path(&raw) {
            let again = normalize_path(&normal);
            prop_assert_eq!(again.as_deref(), Ok(&*normal));
            prop_assert!(!normal.contains("//") && !normal.contains("/../") && !normal.ends_with("/.."));
        }
    }
}

/// The two examples of ingress-nginx's documentation of path matching.
#[test]
fn patterns_are_tried_longest_first() {
    let lookup = |patterns: &[&str], path: &str| {
        let mut rules = RuleSet::default();
        for (id, text) in patterns.iter().enumerate() {
            rules.pattern(Pattern::path(text).unwrap(), id).unwrap();
        }
        table([("", rules)]).lookup("h", path).copied()
    };
    let first = ["/foo/bar", "/foo/bar/", "/foo/bar/(.+)"];
    for (path, expected) in [
        ("/foo/bar/1", Some(2)),
        ("/foo/bar/", Some(1)),
        ("/foo/bar", Some(0)),
        ("/Foo/Bar", Some(0)),
        ("/foo/barbecue", Some(0)),
        ("/foo", None),
    ] {
        assert_eq!(lookup(&first, path), expected, "{path}");
    }
    assert_eq!(lookup(&["/foo/bar/bar", "/foo/bar/[A-Z0-9]{3}"], "/foo/bar/bar"), Some(1));
}

#[test]
fn patterns_are_one_hosts_own_and_bounded() {
    let pattern = |text: &str| Pattern::path(text).unwrap();
    let (mut own, mut any) = (RuleSet::default(), RuleSet::default());
    own.pattern(pattern("/x.*"), 0).unwrap();
    own.rule(PathKind::Exact, "/", 1).unwrap();
    any.rule(PathKind::Prefix, "/x", 2).unwrap();
    assert_eq!(own.pattern(pattern("/x.*"), 9), Err(Taken::By(0)));
    *own.pattern_mut("/x.*").unwrap() = 3;
    *any.rule_mut(PathKind::Prefix, "/x/").unwrap() = 4;
    assert_eq!(any.rule_mut(PathKind::Exact, "/x"), None);
    for number in 1..MAX_PATTERNS {
        own.pattern(pattern(&format!("/{number}")), 0).unwrap();
    }
    assert_eq!(own.pattern(pattern("/y"), 0), Err(Taken::Full));
    assert_eq!(own.paths(), MAX_PATTERNS + 1);
    let table = table([("a.com", own), ("", any)]);
    for (host, path, expected) in
        [("a.com", "/X1", Some(3)), ("a.com", "/", Some(1)), ("c.com", "/x", Some(4)), ("c.com", "/X1", None)]
    {
        assert_eq!(table.lookup(host, path).copied(), expected, "{host}{path}");
    }
}
