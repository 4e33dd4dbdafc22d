//! Defaults of deployments and replica sets.

use serde_json::{Value, json};

use super::{fill, fill_text, pod_template};
use crate::object;

pub(crate) fn deployment(object: &mut Value) {
    pod_template(object);
    let Some(spec) = object::get_mut(object, &["spec"]) else { return };
    fill(spec, json!({"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}));
    fill_text(spec, &["strategy", "type"], "RollingUpdate");
    if object::str_at(spec, &["strategy", "type"]) == "RollingUpdate" {
        object::set_default(spec, &["strategy", "rollingUpdate"], json!({}));
        if let Some(update) = object::get_mut(spec, &["strategy", "rollingUpdate"]) {
            fill(update, json!({"maxSurge": "25%", "maxUnavailable": "25%"}));
        }
    }
}

pub(crate) fn replica_set(object: &mut Value) {
    pod_template(object);
    if let Some(spec) = object::get_mut(object, &["spec"]) {
        fill(spec, json!({"replicas": 1}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployments_roll_a_quarter_at_a_time() {
        let mut object = json!({"spec": {"strategy": {}}});
        deployment(&mut object);
        assert_eq!(
            object["spec"],
            json!({
                "replicas": 1,
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            })
        );
    }

    #[test]
    fn what_is_set_stays() {
        let mut object = json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
        deployment(&mut object);
        assert_eq!(object["spec"]["replicas"], 0);
        assert_eq!(object["spec"]["strategy"], json!({"type": "Recreate"}));
    }
}
