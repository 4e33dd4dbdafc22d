//! The arithmetic of Deployments: what upstream's `deployment/util` knows, as functions of values.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

/// Number of the rollout, on the Deployment and on each ReplicaSet.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a ReplicaSet that was rolled back to, separated by commas.
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// `spec.replicas` of the Deployment when the ReplicaSet was last scaled.
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// Pods the Deployment allowed in all when the ReplicaSet was last scaled.
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// The label that tells the pods of one template from those of another.
pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations of the Deployment that its `ReplicaSets` do not take over.
pub(super) const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// Letters of generated names: no vowels and nothing that looks like another, so that no words arise.
const SAFE_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `spec.replicas` of a Deployment, 1 by default.
pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// `spec.replicas` of a ReplicaSet, 1 by default.
pub(super) fn size(replica_set: &ReplicaSet) -> i32 {
    replica_set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// `status.availableReplicas`.
pub(super) fn available(replica_set: &ReplicaSet) -> i32 {
    replica_set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

/// `status.readyReplicas`.
pub(super) fn ready(replica_set: &ReplicaSet) -> i32 {
    replica_set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default()
}

/// `status.replicas`.
pub(super) fn actual(replica_set: &ReplicaSet) -> i32 {
    replica_set.status.as_ref().map(|status| status.replicas).unwrap_or_default()
}

/// Whether the strategy is `Recreate`.
pub(super) fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Pods above `replicas` and pods below it that a rolling update may have, with upstream's rounding: the surge is
/// rounded up and the shortfall down, and if both come out as zero the shortfall is one, or nothing could move.
pub(super) fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let quarter = || IntOrString::String("25%".to_owned());
    let wanted = replicas(deployment);
    let surge = scaled(&rolling.max_surge.unwrap_or_else(quarter), wanted, true);
    let unavailable = scaled(&rolling.max_unavailable.unwrap_or_else(quarter), wanted, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Pods above `replicas` that may exist.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

/// Pods below `replicas` that may be missing.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    if recreates(deployment) || wanted == 0 { 0 } else { fenceposts(deployment).1.min(wanted) }
}

fn scaled(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            let product = i64::from(of) * percent;
            (if up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }) as i32
        }
    }
}

/// Size that the new ReplicaSet may grow to now.
pub(super) fn new_size(deployment: &Deployment, all: i32, new: i32) -> i32 {
    let wanted = replicas(deployment);
    if recreates(deployment) {
        return wanted;
    }
    let allowed = wanted + max_surge(deployment);
    if all >= allowed { new } else { new + (allowed - all).min(wanted - new) }
}

/// Share of a ReplicaSet in a scaling of the whole Deployment by `to_add` pods, of which `added` have been given out.
pub(super) fn proportion(replica_set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(replica_set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let (fraction, allowed) = (fraction(replica_set, deployment), to_add - added);
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

fn fraction(replica_set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let (wanted, current) = (replicas(deployment), size(replica_set));
    if wanted == 0 {
        return -current;
    }
    let before = annotation(replica_set, MAX_REPLICAS).filter(|max| *max != 0).unwrap_or_else(|| {
        // A ReplicaSet without the annotation: the Deployment's own count is the best guess.
        deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or_default()
    });
    if before == 0 {
        return 0;
    }
    let allowed = wanted + max_surge(deployment);
    (f64::from(current) * f64::from(allowed) / f64::from(before)).round() as i32 - current
}

/// A number in an annotation of a ReplicaSet.
pub(super) fn annotation(replica_set: &ReplicaSet, name: &str) -> Option<i32> {
    replica_set.metadata.annotations.as_ref()?.get(name)?.parse().ok()
}

/// The annotations that say for which size of the Deployment a ReplicaSet was scaled.
pub(super) fn size_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let wanted = replicas(deployment);
    BTreeMap::from([
        (DESIRED_REPLICAS.to_owned(), wanted.to_string()),
        (MAX_REPLICAS.to_owned(), (wanted + max_surge(deployment)).to_string()),
    ])
}

/// Whether the ReplicaSet has all the pods of the Deployment, and they serve.
pub(super) fn is_saturated(deployment: &Deployment, replica_set: Option<&ReplicaSet>) -> bool {
    let wanted = replicas(deployment);
    replica_set.is_some_and(|replica_set| {
        size(replica_set) == wanted
            && annotation(replica_set, DESIRED_REPLICAS) == Some(wanted)
            && available(replica_set) == wanted
    })
}

/// Whether two templates are the same but for the hash label.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    plain(a) == plain(b)
}

fn plain(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = template.metadata.as_mut() {
        if let Some(labels) = meta.labels.as_mut() {
            labels.remove(TEMPLATE_HASH);
        }
        // Absent and empty are the same.
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
        meta.creation_timestamp = None;
    }
    template.metadata.get_or_insert_default();
    template
}

/// The hash that names the ReplicaSet of a template. `collisions` makes another one of the same template.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // Serialised from sorted maps, so the same template gives the same bytes.
    let bytes = serde_json::to_vec(&plain(template)).unwrap_or_default();
    let mut digest = Sha256::new();
    digest.update(&bytes);
    if let Some(collisions) = collisions {
        digest.update(collisions.to_le_bytes());
    }
    let digest = digest.finalize();
    let number = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let letter = |byte: u8| char::from(SAFE_LETTERS[usize::from(byte) % SAFE_LETTERS.len()]);
    number.to_string().bytes().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Deployment {
        let rolling = json!({ "maxSurge": surge, "maxUnavailable": unavailable });
        serde_json::from_value(json!({ "spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": { "type": "RollingUpdate", "rollingUpdate": rolling }
        }}))
        .expect("is a Deployment")
    }

    #[test]
    fn surge_rounds_up_and_shortfall_down() {
        let table = [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!("25%"), json!("25%"), (1, 0)),
            (4, json!("25%"), json!("25%"), (1, 1)),
            (10, json!(0), json!("1%"), (0, 1)),
            (10, json!(0), json!(0), (0, 1)),
            (10, json!(2), json!(3), (2, 3)),
            (0, json!("25%"), json!("25%"), (0, 1)),
        ];
        for (replicas, surge, unavailable, expected) in table {
            let deployment = deployment(replicas, surge.clone(), unavailable.clone());
            assert_eq!(fenceposts(&deployment), expected, "{replicas} {surge} {unavailable}");
        }
        assert_eq!(max_unavailable(&deployment(2, json!(0), json!(5))), 2, "never more than there are");
        assert_eq!(max_unavailable(&deployment(0, json!(0), json!(5))), 0);
    }

    #[test]
    fn the_new_replica_set_grows_into_the_surge() {
        let deployment = deployment(10, json!(3), json!(0));
        assert_eq!(new_size(&deployment, 10, 0), 3);
        assert_eq!(new_size(&deployment, 13, 3), 3);
        assert_eq!(new_size(&deployment, 11, 9), 10, "never beyond what is wanted");
    }

    #[test]
    fn a_hash_names_the_template_whatever_its_hash_label() {
        let template = |labels: serde_json::Value| -> PodTemplateSpec {
            serde_json::from_value(json!({ "metadata": { "labels": labels } })).expect("is a template")
        };
        let bare = template(json!({ "app": "a" }));
        let labelled = template(json!({ "app": "a", "pod-template-hash": "x" }));
        assert!(same_template(&bare, &labelled));
        assert_eq!(template_hash(&bare, None), template_hash(&labelled, None));
        assert_ne!(template_hash(&bare, None), template_hash(&bare, Some(0)));
        assert_ne!(template_hash(&bare, None), template_hash(&template(json!({ "app": "b" })), None));
        assert!(template_hash(&bare, None).bytes().all(|byte| SAFE_LETTERS.contains(&byte)));
    }
}
