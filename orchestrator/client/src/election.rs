//! Leader election on a Lease, as client-go does it, so that several copies of a role can run and one works.
//!
//! The holder renews every [`RETRY`]; others watch how long the record stays the same on *their own* clock
//! and take over after [`LEASE`]. A holder that cannot renew for [`RENEW_DEADLINE`] stops working before
//! anybody else can start: the deadlines are ordered `RETRY < RENEW_DEADLINE < LEASE`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a holder that says nothing is still believed to work.
const LEASE: Duration = Duration::from_secs(15);
/// How long a holder goes on without a successful renewal.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between renewals, and between attempts to take over.
const RETRY: Duration = Duration::from_secs(2);

const _: () = assert!(RETRY.as_secs() < RENEW_DEADLINE.as_secs());
const _: () = assert!(RENEW_DEADLINE.as_secs() < LEASE.as_secs());

/// One candidate for one Lease.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// The record as last seen and since when it has been the same.
    observed: Option<(LeaseSpec, Instant)>,
}

/// What a look at the Lease allows.
#[derive(Debug, PartialEq)]
enum Claim {
    /// Write this: it is ours to take or to renew.
    Write(LeaseSpec),
    /// Somebody else holds it.
    Wait,
}

impl Candidate {
    /// A candidate for the Lease `name` in `kube-system`. `identity` must differ between copies.
    pub fn new(client: Client, name: &str, identity: String) -> Self {
        Self {
            leases: Api::namespaced(client, "kube-system"),
            name: name.to_owned(),
            identity,
            observed: None,
        }
    }

    /// Waits until this candidate leads. `false` when `shutdown` came first.
    pub async fn acquire(&mut self, shutdown: &CancellationToken) -> bool {
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::debug!(lease = %self.name, %error, "cannot write the Lease, retrying"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Renews until `shutdown` or until leadership is lost; gives the Lease up in the first case.
    pub async fn hold(mut self, shutdown: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.release().await;
                    return;
                }
                () = tokio::time::sleep(RETRY) => {}
            }
            match tokio::time::timeout(RENEW_DEADLINE, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::warn!(lease = %self.name, "leadership lost to another copy");
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    if renewed.elapsed() > RENEW_DEADLINE {
                        tracing::warn!(lease = %self.name, "leadership given up: the Lease could not be renewed");
                        return;
                    }
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let Claim::Write(spec) = claim(&self.identity, None, Timestamp::now()) else { return Ok(false) };
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(spec),
            };
            return match self.leases.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(error) if crate::is_already_exists(&error) => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        match &self.observed {
            Some((seen, _)) if *seen == spec => {}
            _ => self.observed = Some((spec.clone(), Instant::now())),
        }
        let age = self.observed.as_ref().map(|(_, since)| since.elapsed()).unwrap_or_default();
        match claim(&self.identity, Some((&spec, age)), Timestamp::now()) {
            Claim::Wait => Ok(false),
            Claim::Write(spec) => {
                let lease = Lease { spec: Some(spec.clone()), ..lease };
                match self.leases.replace(&self.name, &PostParams::default(), &lease).await {
                    Ok(_) => {
                        self.observed = Some((spec, Instant::now()));
                        Ok(true)
                    }
                    Err(error) if crate::is_conflict(&error) => Ok(false),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Empties the holder so that another copy need not wait for the Lease to run out. Best effort.
    async fn release(&self) {
        let Ok(Some(mut lease)) = self.leases.get_opt(&self.name).await else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        if let Err(error) = self.leases.replace(&self.name, &PostParams::default(), &lease).await {
            tracing::debug!(lease = %self.name, %error, "Lease not given up, it will run out");
        }
    }
}

fn claim(identity: &str, current: Option<(&LeaseSpec, Duration)>, now: Timestamp) -> Claim {
    let now = MicroTime(now);
    let seconds = Some(LEASE.as_secs() as i32);
    let Some((spec, unchanged)) = current else {
        return Claim::Write(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: seconds,
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        });
    };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        let renewed = LeaseSpec { renew_time: Some(now), lease_duration_seconds: seconds, ..spec.clone() };
        return Claim::Write(renewed);
    }
    let lasts = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(0) as u64);
    if !holder.is_empty() && unchanged < lasts {
        return Claim::Wait;
    }
    Claim::Write(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: seconds,
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(spec.lease_transitions.unwrap_or_default() + 1),
        ..spec.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    fn taken(claim: Claim) -> LeaseSpec {
        match claim {
            Claim::Write(spec) => spec,
            Claim::Wait => panic!("should be claimed"),
        }
    }

    #[test]
    fn a_live_holder_is_left_alone_and_a_silent_one_is_replaced() {
        let spec = held_by("other");
        let now = Timestamp::now();
        assert_eq!(claim("me", Some((&spec, Duration::from_secs(14))), now), Claim::Wait);
        let after = taken(claim("me", Some((&spec, Duration::from_secs(15))), now));
        assert_eq!(after.holder_identity.as_deref(), Some("me"));
        assert_eq!(after.lease_transitions, Some(4));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let after = taken(claim("me", Some((&held_by(""), Duration::ZERO)), Timestamp::now()));
        assert_eq!(after.holder_identity.as_deref(), Some("me"));
    }

    #[test]
    fn renewing_changes_the_time_only() {
        let now = Timestamp::now();
        let after = taken(claim("me", Some((&held_by("me"), Duration::ZERO)), now));
        assert_eq!(after, LeaseSpec { renew_time: Some(MicroTime(now)), ..held_by("me") });
    }
}
