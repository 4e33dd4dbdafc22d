//! What changed in the cluster, and what that changes in what is served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{ObjectKey, Problem, Snapshot, TargetSpec};
use crate::table::{HostPattern, RuleSet};

/// Objects that came, changed or went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Some IngressClass.
    pub classes: bool,
    /// Ingresses.
    pub ingresses: BTreeSet<ObjectKey>,
    /// Services.
    pub services: BTreeSet<ObjectKey>,
    /// Secrets, if more is different than which pair of certificate and key is in it.
    pub secrets: BTreeSet<ObjectKey>,
}

impl Changes {
    /// Everything that there is came.
    pub fn all(snapshot: &Snapshot) -> Self {
        Self { ingresses: snapshot.ingresses.keys().cloned().collect(), ..Self::default() }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is different from now on; everything else stays as it is.
#[derive(Debug, Default)]
pub struct Update {
    /// Rules by host.
    pub hosts: BTreeMap<HostPattern, HostUpdate>,
    /// The secret whose certificate answered for a host, and the one whose does.
    pub certificates: BTreeMap<HostPattern, (Option<ObjectKey>, Option<ObjectKey>)>,
    /// Secrets that are named now, or no more.
    pub secrets: BTreeMap<ObjectKey, bool>,
    /// The Ingresses that were read, and whether each is served by this proxy: whether its status is ours to write.
    pub ingresses: BTreeMap<ObjectKey, bool>,
    /// What is wrong now. It may have been wrong before: then it is in `mended` too.
    pub problems: Vec<Problem>,
    /// What was wrong.
    pub mended: Vec<Problem>,
    /// How much there is now.
    pub totals: Totals,
}

/// What a host is routed by from now on.
#[derive(Debug)]
pub enum HostUpdate {
    /// These rules.
    Rules(RuleSet<Arc<TargetSpec>>),
    /// The rules that this other host has: it is an alias.
    SameAs(HostPattern),
    /// Nothing.
    Gone,
}

/// Sizes of everything together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Path rules over all hosts, patterns included, aliases not.
    pub paths: usize,
    /// Hosts with a certificate of their own.
    pub certificates: usize,
}
