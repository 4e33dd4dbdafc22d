//! Certificates that are of no use to the hosts that they are for, or will soon be: an Event on the Ingress that names them.
//!
//! The compiler knows no time, so that this is looked at beside it: for the Ingresses and secrets that changed, and for all
//! of them every [`LOOK_AGAIN`]. A problem's text has the certificate's own dates and nothing of now, so that the reporter
//! knows it for the one it told already.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::certificate::{Certificate, Fault, date};
use crate::compile::{Compiler, ObjectKey, Problem, Reason, SecretFact, Snapshot};

/// Between two looks at everything.
pub(super) const LOOK_AGAIN: Duration = Duration::from_hours(1);
/// So long before its end a certificate should have been renewed: after two thirds of Let's Encrypt's 45 days.
const SOON_S: i64 = 14 * 86_400;

/// What was found of each Ingress; most have no entry.
#[derive(Debug, Default)]
pub(super) struct Expiry(BTreeMap<ObjectKey, Vec<Problem>>);

impl Expiry {
    /// Looks at these Ingresses and those that name these secrets. Returns what is wrong, and what of it was: as the
    /// reporter takes it. `now` is in seconds since 1970.
    pub(super) fn look(
        &mut self,
        compiler: &Compiler,
        snapshot: &Snapshot,
        ingresses: impl IntoIterator<Item = ObjectKey>,
        secrets: &BTreeSet<ObjectKey>,
        now: i64,
    ) -> (Vec<Problem>, Vec<Problem>) {
        let mut concerned: BTreeSet<ObjectKey> = ingresses.into_iter().collect();
        concerned.extend(secrets.iter().flat_map(|secret| compiler.naming_secret(secret)));
        let (mut problems, mut mended) = (Vec::new(), Vec::new());
        for key in concerned {
            mended.extend(self.0.remove(&key).unwrap_or_default());
            let found = problems_of(compiler, snapshot, &key, now);
            if !found.is_empty() {
                problems.extend_from_slice(&found);
                self.0.insert(key, found);
            }
        }
        (problems, mended)
    }
}

fn problems_of(compiler: &Compiler, snapshot: &Snapshot, key: &ObjectKey, now: i64) -> Vec<Problem> {
    let Some(ingress) = snapshot.ingresses.get(key) else { return Vec::new() };
    let mut read = BTreeMap::new();
    let problems = compiler.certificates_of(key).iter().filter_map(|(host, secret)| {
        let certificate = read.entry(secret).or_insert_with(|| match snapshot.secrets.get(secret) {
            Some(SecretFact::Usable(pair, _)) => Certificate::of(pair),
            _ => None,
        });
        let certificate = certificate.as_ref()?;
        let what = match certificate.fault(host, now, SOON_S)? {
            Fault::Over => format!("expired at {}: clients refuse it", date(certificate.not_after)),
            Fault::NotYet => {
                format!("is not valid before {}: clients refuse it", date(certificate.not_before))
            }
            Fault::OtherNames => format!(
                "is for {}, and not for host {host}: clients refuse it",
                if certificate.names.is_empty() {
                    "no name".to_owned()
                } else {
                    certificate.names.join(", ")
                }
            ),
            Fault::Soon => format!("expires at {}", date(certificate.not_after)),
        };
        let text = format!("the certificate in Secret {:?} {what}; renew it", secret.name);
        let host = Some(host.clone());
        Some(Problem { host, ..Problem::new(ingress, Reason::BadCertificate, text) })
    });
    // One for each certificate, where it has the same fault for many hosts.
    let mut seen = BTreeSet::new();
    problems.filter(|problem| seen.insert(problem.text.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::certificate::tests::{day, pair};
    use crate::compile::{CONTROLLER, Changes, ClassFact, IngressFact};

    const KEY: fn() -> ObjectKey = || ObjectKey::new("n", "web");

    fn snapshot(names: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let class = ClassFact { controller: CONTROLLER.to_owned(), default: true };
        snapshot.classes.insert("weir".to_owned(), class);
        let spec = serde_json::json!({"tls": [{"hosts": ["a.com", "b.com"], "secretName": "s"}]});
        let ingress: k8s_openapi::api::networking::v1::Ingress = serde_json::from_value(
            serde_json::json!({"metadata": {"namespace": "n", "name": "web"}, "spec": spec}),
        )
        .unwrap();
        snapshot.ingresses.insert(KEY(), IngressFact::from(ingress));
        put(&mut snapshot, names, 20);
        snapshot
    }

    /// Another certificate, that is valid from the second to this day.
    fn put(snapshot: &mut Snapshot, names: &[&str], to: u8) {
        let fact = SecretFact::Usable(Arc::new(pair(names, 2, to)), None);
        snapshot.secrets.insert(ObjectKey::new("n", "s"), fact);
    }

    fn texts(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.text.as_str()).collect()
    }

    #[test]
    fn each_fault_is_told_with_its_date() {
        for (names, now, expected) in [
            (&["a.com", "b.com"][..], day(5), None),
            (&["a.com", "b.com"], day(7), Some("expires at 2030-01-20T00:00:00Z; renew it")),
            (
                &["a.com", "b.com"],
                day(21),
                Some("expired at 2030-01-20T00:00:00Z: clients refuse it; renew it"),
            ),
            (
                &["a.com", "b.com"],
                day(1),
                Some("is not valid before 2030-01-02T00:00:00Z: clients refuse it; renew it"),
            ),
            (&["a.com"], day(5), Some("is for a.com, and not for host b.com: clients refuse it; renew it")),
        ] {
            let snapshot = snapshot(names);
            let mut compiler = Compiler::new("weir");
            compiler.update(&snapshot, &Changes::all(&snapshot));
            let found = problems_of(&compiler, &snapshot, &KEY(), now);
            let expected: Vec<String> =
                expected.iter().map(|what| format!("the certificate in Secret \"s\" {what}")).collect();
            assert_eq!(texts(&found), expected, "{names:?} at {now}");
        }
    }

    #[test]
    fn a_renewed_certificate_mends_it_and_time_breaks_it() {
        let mut snapshot = snapshot(&["a.com", "b.com"]);
        let mut compiler = Compiler::new("weir");
        compiler.update(&snapshot, &Changes::all(&snapshot));
        let mut expiry = Expiry::default();
        let secrets = BTreeSet::from([ObjectKey::new("n", "s")]);
        let (problems, mended) = expiry.look(&compiler, &snapshot, [KEY()], &BTreeSet::new(), day(10));
        assert_eq!((problems.len(), mended.len()), (1, 0));
        let (again, before) = expiry.look(&compiler, &snapshot, compiler.keys(), &BTreeSet::new(), day(11));
        assert_eq!((&again, &before), (&problems, &problems), "the same, which is told once");
        put(&mut snapshot, &["a.com", "b.com"], 31);
        let (problems, mended) = expiry.look(&compiler, &snapshot, [], &secrets, day(11));
        assert_eq!((problems.len(), mended.len()), (0, 1));
        let (problems, _) = expiry.look(&compiler, &snapshot, compiler.keys(), &BTreeSet::new(), day(18));
        assert_eq!(
            texts(&problems),
            ["the certificate in Secret \"s\" expires at 2030-01-31T00:00:00Z; renew it"]
        );
    }
}
