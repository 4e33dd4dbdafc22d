//! `weir ingress diff`: which requests a manifest would route differently from now.
//!
//! Now is a cluster, read once through its API with no more rights than the ingress has itself, or a file. The manifest's
//! objects are laid over it as applying them would, both are compiled by the compiler that serves, and the two tables are
//! asked where requests go ([`compare`]).

mod cluster;
mod compare;
mod text;

use std::path::Path;

use serde::Serialize;

pub use compare::{CertificateChange, Change, Served};

use crate::check::{self, CheckError};
use crate::compile::{Problem, Snapshot, compile};

/// The two cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A file cannot be read.
    #[error(transparent)]
    Manifest(#[from] CheckError),
    /// The cluster cannot.
    #[error("cannot list {0} in the cluster: {1}; the ingress's own rights are enough, or give --now FILE")]
    Cluster(&'static str, #[source] Box<kube::Error>),
}

/// What would be different.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Requests that would be routed or treated differently, by host and path.
    pub requests: Vec<Change>,
    /// Hosts for which another certificate would answer.
    pub certificates: Vec<CertificateChange>,
    /// What would be reported as an Event, and is not now.
    pub problems: Vec<Report>,
    /// What would not be wrong any more.
    pub mended: Vec<Report>,
}

/// A problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Report {
    /// `namespace/name` of the Ingress.
    pub ingress: String,
    /// The Event's reason.
    pub reason: &'static str,
    /// The Event's message.
    pub text: String,
}

impl From<&Problem> for Report {
    fn from(problem: &Problem) -> Self {
        let (ingress, reason) = (problem.ingress.to_string(), problem.reason.as_str());
        Self { ingress, reason, text: problem.text.clone() }
    }
}

impl Difference {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One JSON document.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain rows serialize") + "\n"
    }
}

/// Compares a cluster with itself and the manifest.
pub async fn diff_with_cluster(
    client: &kube::Client,
    manifest: &Path,
    class_name: &str,
) -> Result<Difference, DiffError> {
    let manifest = check::snapshot(manifest)?;
    let mut now = cluster::list(client).await?;
    let mut then = laid_over(&now, &manifest);
    cluster::add_secrets(client, &mut now, &mut then, class_name).await?;
    Ok(compare::compare(&now, &then, &manifest, class_name))
}

/// Compares a file with itself and the manifest. What neither holds is taken to be there.
pub fn diff_with_file(now: &Path, manifest: &Path, class_name: &str) -> Result<Difference, DiffError> {
    let (now, manifest) = (check::snapshot(now)?, check::snapshot(manifest)?);
    Ok(diff(now, &manifest, class_name))
}

fn diff(mut now: Snapshot, manifest: &Snapshot, class_name: &str) -> Difference {
    let mut then = laid_over(&now, manifest);
    // What the file has nothing of may be there, and then it is what the manifest has.
    for (key, service) in &manifest.services {
        now.services.entry(key.clone()).or_insert_with(|| service.clone());
    }
    for (key, secret) in &manifest.secrets {
        now.secrets.entry(key.clone()).or_insert_with(|| secret.clone());
    }
    check::assume_the_rest(&mut now);
    check::assume_the_rest(&mut then);
    compare::compare(&now, &then, manifest, class_name)
}

/// As applying the manifest would: what is there keeps its age, and what is new is the youngest.
fn laid_over(now: &Snapshot, manifest: &Snapshot) -> Snapshot {
    let mut then = now.clone();
    for (key, ingress) in &manifest.ingresses {
        let mut ingress = ingress.clone();
        match now.ingresses.get(key) {
            Some(known) => {
                (ingress.created, ingress.uid) = (known.created, known.uid.clone());
                ingress.published.clone_from(&known.published);
            }
            None => ingress.created = i64::MAX,
        }
        then.ingresses.insert(key.clone(), ingress);
    }
    then.classes.extend(manifest.classes.clone());
    then.services.extend(manifest.services.clone());
    then.secrets.extend(manifest.secrets.clone());
    then
}

/// The names of the secrets that are wanted in either.
fn named_secrets(snapshots: [&Snapshot; 2], class_name: &str) -> Vec<crate::compile::ObjectKey> {
    snapshots.into_iter().flat_map(|snapshot| compile(snapshot, class_name).secrets).collect()
}

#[cfg(test)]
mod tests;
