//! Revisions: the `ReplicaSet` of the current template, its number, and how many old ones are kept.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::{Rollout, Step, name};
use crate::deployment::model::{
    self, NOT_COPIED, REVISION, REVISION_HISTORY, TEMPLATE_HASH, actual, size, size_annotations,
};
use crate::deployment::status;

/// Longest value of the revision history, as upstream.
const HISTORY_CHARS_MAX: usize = 2000;

impl Rollout<'_> {
    /// Finds or makes the ReplicaSet of the current template and numbers it.
    pub(super) fn sync_revision(&mut self, create: bool) {
        let newest_old = self.old.iter().map(revision).max().unwrap_or_default();
        let next = newest_old + 1;
        match self.new.clone() {
            Some(new) => self.refresh(new, next),
            None if create => self.create(next),
            None => {}
        }
    }

    fn refresh(&mut self, mut new: ReplicaSet, next: i64) {
        let current = new.metadata.annotations.clone().unwrap_or_default();
        let mut wanted = current.clone();
        for (key, value) in self.deployment.metadata.annotations.iter().flatten() {
            if !NOT_COPIED.contains(&key.as_str()) {
                wanted.insert(key.clone(), value.clone());
            }
        }
        let before = revision(&new);
        if before < next {
            wanted.insert(REVISION.to_owned(), next.to_string());
            if before > 0 {
                let history = wanted.get(REVISION_HISTORY).map(String::as_str).unwrap_or_default();
                wanted.insert(REVISION_HISTORY.to_owned(), longer_history(history, before));
            }
        }
        let min_ready_seconds = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let theirs = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        if wanted != current || theirs.unwrap_or_default() != min_ready_seconds.unwrap_or_default() {
            let name = name(&new);
            let changed = wanted.iter().filter(|(key, value)| current.get(*key) != Some(value));
            let annotations = changed.map(|(key, value)| (key.clone(), value.clone())).collect();
            self.steps.push(Step::Refresh { name, annotations, min_ready_seconds });
        }
        self.set_revision(wanted.get(REVISION).cloned());
        if status::condition(&self.conditions, "Progressing").is_none()
            && status::progress_deadline(self.deployment).is_some()
        {
            let message = format!("Found new replica set \"{}\"", name(&new));
            let reason = status::FOUND_REPLICA_SET;
            let found = status::new_condition("Progressing", "True", reason, message, self.now);
            status::set(&mut self.conditions, found);
        }
        new.metadata.annotations = Some(wanted);
        self.new = Some(new);
    }

    fn create(&mut self, next: i64) {
        let collisions = self.deployment.status.as_ref().and_then(|status| status.collision_count);
        let mut new = new_replica_set(self.deployment, next, collisions);
        let size = model::new_size(self.deployment, self.total(), 0);
        if let Some(spec) = new.spec.as_mut() {
            spec.replicas = Some(size);
        }
        if status::progress_deadline(self.deployment).is_some() {
            let message = format!("Created new replica set \"{}\"", name(&new));
            let reason = status::NEW_REPLICA_SET;
            let created = status::new_condition("Progressing", "True", reason, message, self.now);
            status::set(&mut self.conditions, created);
        }
        self.steps.push(Step::Create(Box::new(new.clone())));
        self.set_revision(Some(next.to_string()));
        self.new = Some(new);
    }

    fn set_revision(&mut self, revision: Option<String>) {
        let current = self.deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
        if let Some(revision) = revision
            && current != Some(&revision)
        {
            self.steps.push(Step::SetRevision(revision));
        }
    }

    pub(super) fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit) else {
            return;
        };
        let mut alive: Vec<_> =
            self.old.iter().filter(|old| old.metadata.deletion_timestamp.is_none()).collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        alive.sort_by_key(|old| revision(old));
        let unused = |old: &&&ReplicaSet| {
            let observed = old.status.as_ref().and_then(|status| status.observed_generation);
            actual(old) == 0 && size(old) == 0 && old.metadata.generation <= observed
        };
        let gone: Vec<_> = alive.iter().take(surplus).filter(unused).map(|old| name(old)).collect();
        self.steps.extend(gone.into_iter().map(|name| Step::Delete { name }));
    }
}

fn revision(replica_set: &ReplicaSet) -> i64 {
    let annotations = replica_set.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(REVISION)).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn longer_history(history: &str, revision: i64) -> String {
    let revision = revision.to_string();
    let mut entries: Vec<_> = history.split(',').filter(|entry| !entry.is_empty()).collect();
    let known: BTreeSet<_> = entries.iter().copied().collect();
    if known.contains(revision.as_str()) {
        return history.to_owned();
    }
    entries.push(&revision);
    while entries.len() > 1 && entries.iter().map(|entry| entry.len() + 1).sum::<usize>() > HISTORY_CHARS_MAX
    {
        entries.remove(0);
    }
    entries.join(",")
}

pub(super) fn new_replica_set(deployment: &Deployment, revision: i64, collisions: Option<i32>) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = model::template_hash(&spec.template, collisions);
    let label = |labels: &mut Option<BTreeMap<String, String>>| {
        labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
    };
    let mut template = spec.template;
    label(&mut template.metadata.get_or_insert_default().labels);
    let mut selector = spec.selector;
    label(&mut selector.match_labels);
    let mut annotations: BTreeMap<_, _> = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    annotations.extend(size_annotations(deployment));
    annotations.insert(REVISION.to_owned(), revision.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None::<ReplicaSetStatus>,
    }
}

/// The reference by which the Deployment controls its `ReplicaSets`.
pub(in crate::deployment) fn owner_reference(deployment: &Deployment) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..deployment.controller_owner_ref(&()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_forgets_its_oldest_entries() {
        assert_eq!(longer_history("", 1), "1");
        assert_eq!(longer_history("1,2", 2), "1,2");
        let long = (1000..1400).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
        let longer = longer_history(&long, 9999);
        assert!(
            longer.len() <= HISTORY_CHARS_MAX && longer.ends_with(",9999") && longer.starts_with("1001,")
        );
    }
}
