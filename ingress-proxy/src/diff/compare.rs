//! Two compiled tables, compared by where they send requests and not by how they are written.
//!
//! For each host whose rules differ, requests are made up that tell them apart: one for each rule of the host, and for each
//! rule of the wildcard and of no host that serve it too, since what a host takes it takes from those. Both tables are asked
//! for each. A rule that is new so says whose requests it takes, and one that goes who gets them. Patterns cannot be turned
//! into a request; they are compared with the same pattern of the other table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::{Difference, Report};
use crate::compile::{Compiled, ObjectKey, Problem, SecretFact, Snapshot, TargetSpec, compile};
use crate::table::{HostPattern, HostRules, RulePath};

/// A label and a path element that no rule has.
const SAMPLE: &str = "weir-diff-sample";

/// Requests that would be routed or treated differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Of this host; `*` for those that no rule names.
    pub host: String,
    /// `exact`, `prefix`, `pattern` or `default`: how `path` is meant.
    pub kind: &'static str,
    /// The path; empty for the default.
    pub path: String,
    /// Who serves them now, if anybody does.
    pub before: Option<Served>,
    /// Who would.
    pub after: Option<Served>,
    /// In what else they would be treated differently, by annotations' names.
    pub settings: Vec<&'static str>,
}

/// Who serves requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Served {
    /// `namespace/name` of the Ingress.
    pub ingress: String,
    /// `namespace/name:port` of the Service, or its name where there is no such.
    pub service: String,
    /// Why they are answered with 503, if they are.
    pub fault: Option<String>,
}

/// A host for which another certificate would answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateChange {
    /// The host.
    pub host: String,
    /// Secret that answers now; nothing for the default certificate.
    pub before: Option<String>,
    /// Secret that would; if it is the same, another certificate is in it.
    pub after: Option<String>,
}

type Rules = Option<Arc<HostRules<Arc<TargetSpec>>>>;

pub(super) fn compare(now: &Snapshot, then: &Snapshot, manifest: &Snapshot, class_name: &str) -> Difference {
    let (before, after) = (compile(now, class_name), compile(then, class_name));
    let (problems, mended) = problems(&before.problems, &after.problems);
    let renewed = |secret: &ObjectKey| {
        manifest.secrets.contains_key(secret) && is_other(now.secrets.get(secret), then.secrets.get(secret))
    };
    Difference {
        requests: requests(&before, &after),
        certificates: certificates(&before, &after, renewed),
        problems,
        mended,
    }
}

fn requests(before: &Compiled, after: &Compiled) -> Vec<Change> {
    let of =
        |compiled: &Compiled| compiled.table.by_host().into_iter().map(|(host, _)| host).collect::<Vec<_>>();
    let hosts: BTreeSet<HostPattern> = of(before).into_iter().chain(of(after)).collect();
    let rules = |host: &HostPattern| [before, after].map(|compiled| compiled.table.rules(host).cloned());
    let mut changes = Vec::new();
    for host in &hosts {
        let own = rules(host);
        if is_same(&own) {
            continue;
        }
        let mut keys: BTreeSet<RulePath> = own.iter().flat_map(paths).collect();
        if let HostPattern::Exact(name) = host {
            let parent = name.split_once('.').map_or("", |(_, parent)| parent);
            keys.extend(rules(&HostPattern::Wildcard(parent.to_owned())).iter().flat_map(paths));
        }
        if *host != HostPattern::Any {
            keys.extend(rules(&HostPattern::Any).iter().flat_map(paths));
        }
        let mut of_host: Vec<Change> =
            keys.iter().filter_map(|path| change(before, after, host, path)).collect();
        of_host.sort_by(|a, b| (&a.path, a.kind).cmp(&(&b.path, b.kind)));
        changes.extend(of_host);
    }
    changes
}

fn is_same([a, b]: &[Rules; 2]) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.rules() == b.rules(),
        (None, None) => true,
        _ => false,
    }
}

fn paths(rules: &Rules) -> Vec<RulePath> {
    rules.iter().flat_map(|rules| rules.rules().into_iter().map(|(path, _)| path)).collect()
}

/// What becomes of the requests that a rule is for, whoever serves them.
fn change(before: &Compiled, after: &Compiled, host: &HostPattern, path: &RulePath) -> Option<Change> {
    let name = match host {
        HostPattern::Any => SAMPLE.to_owned(),
        HostPattern::Exact(name) => name.clone(),
        HostPattern::Wildcard(parent) => format!("{SAMPLE}.{parent}"),
    };
    let serves = |compiled: &Compiled| -> Option<Arc<TargetSpec>> {
        match path {
            RulePath::Exact(path) => compiled.table.lookup(&name, path).cloned(),
            RulePath::Prefix(path) => {
                let below = format!("{}/{SAMPLE}", path.trim_end_matches('/'));
                compiled.table.lookup(&name, &below).cloned()
            }
            RulePath::Default => compiled.table.lookup(&name, &format!("/{SAMPLE}")).cloned(),
            RulePath::Pattern(_) => {
                let rules = compiled.table.rules(host)?.rules();
                rules.into_iter().find(|(known, _)| known == path).map(|(_, target)| Arc::clone(target))
            }
        }
    };
    let (old, new) = (serves(before), serves(after));
    let settings = match (&old, &new) {
        (Some(old), Some(new)) => {
            let settings = differences(old, new);
            if settings.is_empty() && old.backend == new.backend {
                return None;
            }
            settings
        }
        (None, None) => return None,
        _ => Vec::new(),
    };
    Some(Change {
        host: host.to_string(),
        kind: path.kind(),
        path: path.text().to_owned(),
        before: old.map(|old| served(&old)),
        after: new.map(|new| served(&new)),
        settings,
    })
}

/// In what two targets differ, their Service aside.
fn differences(old: &TargetSpec, new: &TargetSpec) -> Vec<&'static str> {
    let policy = |target: &TargetSpec| target.policy.as_deref().cloned().unwrap_or_default();
    let mut names = policy(old).differences(&policy(new));
    let other = |old: &Option<Arc<TargetSpec>>, new: &Option<Arc<TargetSpec>>| {
        old.as_ref().map(|it| &it.backend) != new.as_ref().map(|it| &it.backend)
    };
    if other(&old.canary, &new.canary) && !names.contains(&"canary") {
        names.push("canary");
    }
    if other(&old.fallback, &new.fallback) {
        names.push("default-backend");
    }
    if let (Ok(old), Ok(new)) = (&old.backend, &new.backend) {
        names.extend((old.protocol != new.protocol).then_some("backend-protocol"));
        names.extend((old.tls != new.tls).then_some("proxy-ssl"));
        names.extend((old.health != new.health).then_some("health-check"));
    }
    names
}

fn served(target: &TargetSpec) -> Served {
    let (service, fault) = match &target.backend {
        Ok(key) if key.port.is_empty() => (key.service.to_string(), None),
        Ok(key) => (format!("{}:{}", key.service, key.port), None),
        Err(why) => (target.service.clone(), Some(why.clone())),
    };
    Served { ingress: target.owner.to_string(), service, fault }
}

fn certificates(
    before: &Compiled,
    after: &Compiled,
    renewed: impl Fn(&ObjectKey) -> bool,
) -> Vec<CertificateChange> {
    let hosts: BTreeSet<&HostPattern> = before.certificates.keys().chain(after.certificates.keys()).collect();
    let changes = hosts.into_iter().filter_map(|host| {
        let (old, new) = (before.certificates.get(host), after.certificates.get(host));
        let is_same = old == new && !new.is_some_and(&renewed);
        (!is_same).then(|| CertificateChange {
            host: host.to_string(),
            before: old.map(ToString::to_string),
            after: new.map(ToString::to_string),
        })
    });
    changes.collect()
}

/// Whether another certificate is in a secret.
fn is_other(old: Option<&SecretFact>, new: Option<&SecretFact>) -> bool {
    match (old, new) {
        (Some(SecretFact::Usable(old, _)), Some(SecretFact::Usable(new, _))) => old.cert != new.cert,
        _ => false,
    }
}

/// Those that come and those that go; the same may be wrong in two places.
fn problems(before: &[Problem], after: &[Problem]) -> (Vec<Report>, Vec<Report>) {
    let mut counts = BTreeMap::<Report, i64>::new();
    for (problems, step) in [(before, -1), (after, 1)] {
        for problem in problems {
            *counts.entry(problem.into()).or_default() += step;
        }
    }
    let with = |sign: i64| {
        counts
            .iter()
            .filter(move |(_, count)| count.signum() == sign)
            .map(|(report, _)| report.clone())
            .collect()
    };
    (with(1), with(-1))
}
