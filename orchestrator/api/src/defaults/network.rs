//! Defaults of services, endpoint slices and ingress classes. Ingresses have none.

use serde_json::{Value, json};

use super::{fill, fill_text};
use crate::object;

/// How long a client sticks to its endpoint, in seconds: three hours.
const AFFINITY_SECONDS: i64 = 10_800;

/// Everything but addresses and node ports, which the apiserver allocates.
pub(crate) fn service(object: &mut Value) {
    object::set_default(object, &["spec"], json!({}));
    let Some(spec) = object::get_mut(object, &["spec"]) else { return };
    fill_text(spec, &["type"], "ClusterIP");
    fill_text(spec, &["sessionAffinity"], "None");
    match object::str_at(spec, &["sessionAffinity"]) {
        "ClientIP" => {
            object::set_default(
                spec,
                &["sessionAffinityConfig", "clientIP", "timeoutSeconds"],
                AFFINITY_SECONDS,
            );
        }
        _ => drop(object::remove(spec, &["sessionAffinityConfig"])),
    }
    let kind = object::str_at(spec, &["type"]).to_owned();
    if kind != "ExternalName" {
        fill(
            spec,
            json!({"internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}),
        );
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        fill_text(spec, &["externalTrafficPolicy"], "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, json!({"allocateLoadBalancerNodePorts": true}));
    }
    for port in object::list_at_mut(spec, &["ports"]) {
        fill_text(port, &["protocol"], "TCP");
        let unset = object::get(port, &["targetPort"])
            .is_none_or(|target| *target == json!(0) || *target == json!(""));
        if let (true, Some(number)) = (unset, object::get(port, &["port"]).cloned()) {
            object::set(port, &["targetPort"], number);
        }
    }
}

pub(crate) fn endpoint_slice(object: &mut Value) {
    for port in object::list_at_mut(object, &["ports"]) {
        fill(port, json!({"name": "", "protocol": "TCP"}));
    }
}

pub(crate) fn ingress_class(object: &mut Value) {
    if let Some(parameters) = object::get_mut(object, &["spec", "parameters"]) {
        fill(parameters, json!({"scope": "Cluster"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_completed_by_type() {
        let mut object =
            json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]}});
        service(&mut object);
        assert_eq!(
            object["spec"],
            json!({
                "type": "ClusterIP",
                "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster",
                "ipFamilyPolicy": "SingleStack",
                "ipFamilies": ["IPv4"],
                "ports": [
                    {"port": 80, "protocol": "TCP", "targetPort": 80},
                    {"port": 53, "protocol": "UDP", "targetPort": "dns"},
                ],
            })
        );
        let mut object = json!({"spec": {"type": "NodePort", "sessionAffinity": "ClientIP"}});
        service(&mut object);
        assert_eq!(object["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(object["spec"]["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
        let mut object = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
        service(&mut object);
        assert_eq!(object["spec"].get("ipFamilies"), None);
    }
}
