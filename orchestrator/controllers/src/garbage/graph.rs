//! Who owns whom, and what follows from it. Values only.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use weir_client::ObjectKey;

/// The finalizer of an object that goes after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object that leaves its dependents behind.
pub(super) const ORPHAN: &str = "orphan";
/// Deleted objects that are remembered, so that their dependents need no request to know; more are asked about.
const GONE_MAX: usize = 1000;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Identity {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// Namespace and name.
    pub key: ObjectKey,
}

/// An object, reduced to what ownership needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    /// Which object.
    pub identity: Identity,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// `metadata.ownerReferences`.
    pub owners: Vec<OwnerReference>,
    /// Has a deletion timestamp.
    pub deleting: bool,
    /// Has the finalizer [`FOREGROUND`].
    pub foreground: bool,
    /// Has the finalizer [`ORPHAN`].
    pub orphan: bool,
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It is there.
    Solid,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It is not there.
    Absent,
}

/// How the dependents of an object that is deleted fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Deleted after it.
    Background,
    /// Deleted before it.
    Foreground,
    /// Left alone.
    Orphan,
}

/// What to do about an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Delete it.
    Delete(Policy),
    /// Take this finalizer off.
    RemoveFinalizer(&'static str),
    /// Take the references to these owners out.
    RemoveOwners(Vec<String>),
    /// Take the reference to it out of its dependents, then its finalizer.
    Release(Vec<String>),
    /// Look at these objects.
    Look(Vec<String>),
}

/// All objects by UID.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<String, Item>,
    uids: HashMap<Identity, String>,
    dependents: HashMap<String, BTreeSet<String>>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl Graph {
    /// Takes in what a watch says of an object; returns the UIDs to look at.
    pub(super) fn apply(&mut self, identity: &Identity, meta: Option<&ObjectMeta>) -> Vec<String> {
        let uid = meta.and_then(|meta| meta.uid.clone());
        let mut look = Vec::new();
        // The same name with another UID is another object, and the first is gone.
        let before = self.uids.get(identity).cloned();
        if let Some(before) = before.filter(|before| Some(before) != uid.as_ref()) {
            look.extend(self.remove(&before));
        }
        if let (Some(uid), Some(meta)) = (uid, meta) {
            look.extend(self.insert(uid, identity, meta));
        }
        look
    }

    /// One object.
    pub(super) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// What is known of an owner without asking; `None` when it has never been seen.
    pub(super) fn owner(&self, uid: &str) -> Option<Owner> {
        match self.items.get(uid) {
            Some(item) if item.deleting && item.foreground => Some(Owner::Waiting),
            Some(_) => Some(Owner::Solid),
            None => self.gone.contains(uid).then_some(Owner::Absent),
        }
    }

    /// What follows for an object, given what is known of its owners.
    pub(super) fn plan(&self, uid: &str, owner: impl Fn(&str) -> Owner) -> Option<Step> {
        let item = self.items.get(uid)?;
        let dependents: Vec<_> = self.dependents.get(uid).into_iter().flatten().collect();
        if item.deleting {
            return self.plan_deleting(uid, item, &dependents);
        }
        let of = |wanted: Owner| {
            let mine = item.owners.iter().filter(|reference| owner(&reference.uid) == wanted);
            mine.map(|reference| reference.uid.clone()).collect::<Vec<_>>()
        };
        let (solid, waiting, absent) = (of(Owner::Solid), of(Owner::Waiting), of(Owner::Absent));
        if !solid.is_empty() || item.owners.is_empty() {
            let useless: Vec<_> = waiting.into_iter().chain(absent).collect();
            return (!useless.is_empty()).then_some(Step::RemoveOwners(useless));
        }
        // An owner that waits for its dependents waits for theirs too.
        let policy = if item.orphan {
            Policy::Orphan
        } else if item.foreground || (!waiting.is_empty() && !dependents.is_empty()) {
            Policy::Foreground
        } else {
            Policy::Background
        };
        Some(Step::Delete(policy))
    }

    fn plan_deleting(&self, uid: &str, item: &Item, dependents: &[&String]) -> Option<Step> {
        if item.orphan {
            return Some(Step::Release(dependents.iter().copied().cloned().collect()));
        }
        if !item.foreground {
            return None;
        }
        let blocks = |dependent: &&&String| {
            let owners = self.items.get(**dependent).map(|item| item.owners.as_slice()).unwrap_or_default();
            owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        let blocking: Vec<_> = dependents.iter().filter(blocks).collect();
        if blocking.is_empty() {
            return Some(Step::RemoveFinalizer(FOREGROUND));
        }
        let waiting = |dependent: &&&&String| !self.items.get(***dependent).is_some_and(|item| item.deleting);
        let look: Vec<_> = blocking.iter().filter(waiting).map(|uid| (**uid).clone()).collect();
        (!look.is_empty()).then_some(Step::Look(look))
    }

    fn insert(&mut self, uid: String, identity: &Identity, meta: &ObjectMeta) -> Vec<String> {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|one| one == finalizer);
        let item = Item {
            identity: identity.clone(),
            resource_version: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        };
        let mut look = Vec::new();
        let old = self.items.get(&uid).map(|old| old.owners.clone()).unwrap_or_default();
        for owner in old.iter().filter(|owner| !item.owners.iter().any(|one| one.uid == owner.uid)) {
            self.unlink(&owner.uid, &uid);
            look.push(owner.uid.clone());
        }
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            // A dependent that no longer blocks may let its owner go.
            look.push(owner.uid.clone());
        }
        look.retain(|owner| self.owner(owner) == Some(Owner::Waiting));
        if !item.owners.is_empty() || (item.deleting && (item.foreground || item.orphan)) {
            look.push(uid.clone());
        }
        self.uids.insert(identity.clone(), uid.clone());
        self.items.insert(uid, item);
        look
    }

    fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        self.uids.remove(&item.identity);
        for owner in &item.owners {
            self.unlink(&owner.uid, uid);
        }
        if self.gone.len() >= GONE_MAX
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        let waiting = item.owners.iter().filter(|owner| self.owner(&owner.uid) == Some(Owner::Waiting));
        let mut look: Vec<_> = waiting.map(|owner| owner.uid.clone()).collect();
        look.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn identity(name: &str) -> Identity {
        Identity { api_version: "v1".into(), kind: "Thing".into(), key: ObjectKey::new("ns", name) }
    }

    fn meta(name: &str, owners: &[&str]) -> ObjectMeta {
        let reference = |uid: &&str| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        ObjectMeta {
            uid: Some(name.into()),
            owner_references: Some(owners.iter().map(reference).collect()),
            ..ObjectMeta::default()
        }
    }

    fn deleting(name: &str, owners: &[&str], finalizer: &str) -> ObjectMeta {
        ObjectMeta {
            deletion_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
            finalizers: Some(vec![finalizer.into()]),
            ..meta(name, owners)
        }
    }

    fn see(graph: &mut Graph, meta: &ObjectMeta) -> Vec<String> {
        graph.apply(&identity(meta.uid.as_deref().expect("has a UID")), Some(meta))
    }

    fn gone(graph: &mut Graph, name: &str) -> Vec<String> {
        graph.apply(&identity(name), None)
    }

    fn plan(graph: &Graph, uid: &str) -> Option<Step> {
        graph.plan(uid, |owner| graph.owner(owner).unwrap_or(Owner::Absent))
    }

    #[test]
    fn dependents_follow_their_last_owner() {
        let mut graph = Graph::default();
        see(&mut graph, &meta("a", &[]));
        see(&mut graph, &meta("b", &[]));
        assert_eq!(see(&mut graph, &meta("child", &["a", "b"])), ["child"]);
        assert_eq!(plan(&graph, "child"), None);
        assert_eq!(gone(&mut graph, "a"), ["child"]);
        assert_eq!(plan(&graph, "child"), Some(Step::RemoveOwners(vec!["a".into()])));
        gone(&mut graph, "b");
        assert_eq!(plan(&graph, "child"), Some(Step::Delete(Policy::Background)));
    }

    #[test]
    fn an_owner_that_was_replaced_under_its_name_is_gone() {
        let mut graph = Graph::default();
        see(&mut graph, &meta("a", &[]));
        see(&mut graph, &meta("child", &["a"]));
        let successor = ObjectMeta { uid: Some("a2".into()), ..meta("a", &[]) };
        assert_eq!(graph.apply(&identity("a"), Some(&successor)), ["child"]);
        assert_eq!(graph.owner("a"), Some(Owner::Absent));
        assert_eq!(graph.owner("never seen"), None);
    }

    #[test]
    fn foreground_deletion_takes_dependents_first_and_theirs_before_them() {
        let mut graph = Graph::default();
        see(&mut graph, &meta("top", &[]));
        see(&mut graph, &meta("middle", &["top"]));
        see(&mut graph, &meta("leaf", &["middle"]));
        assert_eq!(see(&mut graph, &deleting("top", &[], FOREGROUND)), ["top"]);
        assert_eq!(plan(&graph, "top"), Some(Step::Look(vec!["middle".into()])));
        assert_eq!(plan(&graph, "middle"), Some(Step::Delete(Policy::Foreground)));
        see(&mut graph, &deleting("middle", &["top"], FOREGROUND));
        assert_eq!(plan(&graph, "top"), None, "it waits");
        assert_eq!(plan(&graph, "leaf"), Some(Step::Delete(Policy::Background)));
        assert_eq!(gone(&mut graph, "leaf"), ["middle"]);
        assert_eq!(plan(&graph, "middle"), Some(Step::RemoveFinalizer(FOREGROUND)));
        assert_eq!(gone(&mut graph, "middle"), ["top"]);
        assert_eq!(plan(&graph, "top"), Some(Step::RemoveFinalizer(FOREGROUND)));
    }

    #[test]
    fn dependents_that_do_not_block_do_not_hold_their_owner() {
        let mut graph = Graph::default();
        see(&mut graph, &deleting("top", &[], FOREGROUND));
        let mut child = meta("child", &["top"]);
        child.owner_references.as_mut().expect("has owners")[0].block_owner_deletion = None;
        assert_eq!(see(&mut graph, &child), ["top", "child"]);
        assert_eq!(plan(&graph, "top"), Some(Step::RemoveFinalizer(FOREGROUND)));
    }

    #[test]
    fn orphans_are_released_before_their_owner_goes() {
        let mut graph = Graph::default();
        see(&mut graph, &meta("top", &[]));
        see(&mut graph, &meta("child", &["top"]));
        see(&mut graph, &deleting("top", &[], ORPHAN));
        assert_eq!(plan(&graph, "top"), Some(Step::Release(vec!["child".into()])));
        assert_eq!(plan(&graph, "child"), None, "its owner is still there");
        see(&mut graph, &meta("child", &[]));
        assert_eq!(plan(&graph, "top"), Some(Step::Release(vec![])));
    }

    #[test]
    fn what_is_being_deleted_in_the_ordinary_way_is_left_alone() {
        let mut graph = Graph::default();
        see(&mut graph, &deleting("child", &["gone"], "somebody.else/finalizer"));
        assert_eq!(plan(&graph, "child"), None);
    }
}
