//! What a look at the Lease allows. Pure: what was seen, for how long it has been so, and the time to write down.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Claim {
    /// Write this: it is ours to take or to renew.
    Write(LeaseSpec),
    /// Somebody else holds it.
    Wait,
}

/// `seen` is the Lease, if there is one, and how long *we* have seen it unchanged. The times in it are another machine's
/// and are never compared with ours: clocks differ.
pub(crate) fn claim(
    identity: &str,
    seen: Option<(&LeaseSpec, Duration)>,
    lease: Duration,
    now: Timestamp,
) -> Claim {
    let now = Some(MicroTime(now));
    let before = match seen {
        None => LeaseSpec { lease_transitions: Some(-1), ..LeaseSpec::default() },
        Some((spec, _)) => spec.clone(),
    };
    let lease_duration_seconds = Some(i32::try_from(lease.as_secs()).unwrap_or(i32::MAX));
    let holder = before.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Claim::Write(LeaseSpec { renew_time: now, lease_duration_seconds, ..before });
    }
    let lasts = Duration::from_secs(before.lease_duration_seconds.unwrap_or_default().max(0) as u64);
    if !holder.is_empty() && seen.is_some_and(|(_, unchanged)| unchanged < lasts) {
        return Claim::Wait;
    }
    Claim::Write(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds,
        acquire_time: now.clone(),
        renew_time: now,
        lease_transitions: Some(before.lease_transitions.unwrap_or_default().saturating_add(1)),
        ..before
    })
}

/// What the holder leaves behind: nobody need wait. A Lease must last, if only for a second.
pub(crate) fn released(spec: LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(now)),
        ..spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_lease_is_taken_when_it_is_nobodys_or_has_run_out_here() {
        let (silent, fresh) = (Duration::from_secs(15), Duration::from_millis(14_999));
        let lasts = |seconds| LeaseSpec { lease_duration_seconds: seconds, ..held_by("other") };
        for (what, seen, transitions) in [
            ("there is none", None, Some(0)),
            ("it is empty", Some((LeaseSpec::default(), Duration::ZERO)), Some(1)),
            ("it was released", Some((held_by(""), Duration::ZERO)), Some(4)),
            ("its holder is silent", Some((held_by("other"), silent)), Some(4)),
            ("its holder is alive", Some((held_by("other"), fresh)), None),
            ("its holder said for how long", Some((lasts(Some(60)), silent)), None),
            ("its holder did not say for how long", Some((lasts(None), Duration::ZERO)), Some(4)),
            ("its holder said nonsense", Some((lasts(Some(-1)), Duration::ZERO)), Some(4)),
        ] {
            let seen = seen.as_ref().map(|(spec, unchanged)| (spec, *unchanged));
            let claimed = match claim("me", seen, LEASE, at(100)) {
                Claim::Wait => None,
                Claim::Write(spec) => {
                    assert_eq!(spec.holder_identity.as_deref(), Some("me"), "{what}");
                    assert_eq!(spec.lease_duration_seconds, Some(15), "{what}");
                    assert_eq!((spec.acquire_time, spec.renew_time.map(|it| it.0)), {
                        (Some(MicroTime(at(100))), Some(at(100)))
                    });
                    spec.lease_transitions
                }
            };
            assert_eq!(claimed, transitions, "{what}");
        }
    }

    #[test]
    fn the_clock_of_the_holder_is_not_believed() {
        for renewed in [at(0), at(1_000_000)] {
            let spec = LeaseSpec { renew_time: Some(MicroTime(renewed)), ..held_by("other") };
            let claimed = |unchanged| claim("me", Some((&spec, unchanged)), LEASE, at(1_000));
            assert_eq!(claimed(Duration::ZERO), Claim::Wait);
            assert_ne!(claimed(LEASE), Claim::Wait);
        }
    }

    #[test]
    fn renewing_changes_the_time_only() {
        let renewed = claim("me", Some((&held_by("me"), Duration::ZERO)), LEASE, at(100));
        let expected = LeaseSpec { renew_time: Some(MicroTime(at(100))), ..held_by("me") };
        assert_eq!(renewed, Claim::Write(expected));
    }

    #[test]
    fn what_is_released_is_taken_at_once() {
        let left = released(held_by("me"), at(100));
        assert_eq!(left.lease_transitions, Some(3));
        assert_ne!(claim("other", Some((&left, Duration::ZERO)), LEASE, at(100)), Claim::Wait);
    }
}
