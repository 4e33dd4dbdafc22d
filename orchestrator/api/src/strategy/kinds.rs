//! The strategies: one per row of the registry.

use serde_json::{Value, json};

use super::{Strategy, accepted, unchanged};
use crate::{
    defaults, object,
    validation::{self, NameRule, any_change, anything},
};

/// A kind without status, generation and rules of its own.
const PLAIN: Strategy = Strategy {
    name: NameRule::Subdomain,
    status: false,
    generation: false,
    unconditional_update: true,
    create_on_update: false,
    revalidate: true,
    default: unchanged,
    prepare_create: unchanged,
    prepare_update: accepted,
    prepare_status: accepted,
    validate: anything,
    validate_update: any_change,
    validate_status: any_change,
};

pub(crate) static NAMESPACE: Strategy = Strategy {
    name: NameRule::Label,
    status: true,
    default: defaults::namespace,
    prepare_create: namespace_create,
    prepare_update: namespace_update,
    validate: validation::namespace,
    ..PLAIN
};

pub(crate) static NODE: Strategy = Strategy {
    status: true,
    default: defaults::node,
    prepare_create: node_create,
    validate: validation::node,
    validate_update: validation::node_update,
    ..PLAIN
};

pub(crate) static POD: Strategy = Strategy {
    status: true,
    generation: true,
    // Rules for new pods grow stricter over time; upstream holds a running pod to its immutability alone.
    revalidate: false,
    default: defaults::pod,
    prepare_create: pod_create,
    validate: validation::pod,
    validate_update: validation::pod_update,
    validate_status: validation::pod_status_update,
    ..PLAIN
};

pub(crate) static SERVICE: Strategy = Strategy {
    name: NameRule::Rfc1035Label,
    status: true,
    default: defaults::service,
    prepare_create: service_create,
    prepare_update: service_update,
    validate: validation::service,
    validate_update: validation::service_update,
    ..PLAIN
};

pub(crate) static CONFIG_MAP: Strategy =
    Strategy { validate: validation::config_map, validate_update: validation::config_map_update, ..PLAIN };

pub(crate) static SECRET: Strategy = Strategy {
    default: defaults::secret,
    prepare_update: secret_update,
    validate: validation::secret,
    validate_update: validation::secret_update,
    ..PLAIN
};

pub(crate) static SERVICE_ACCOUNT: Strategy = Strategy { validate: validation::service_account, ..PLAIN };

pub(crate) static EVENT: Strategy = Strategy { create_on_update: true, validate: validation::event, ..PLAIN };

/// The other view of an event is converted before any rule sees it.
pub(crate) static EVENT_V1: Strategy = Strategy { create_on_update: true, ..PLAIN };

pub(crate) static DEPLOYMENT: Strategy = Strategy {
    status: true,
    generation: true,
    default: defaults::deployment,
    validate: validation::deployment,
    validate_update: validation::workload_update,
    prepare_create: empty_status,
    ..PLAIN
};

pub(crate) static REPLICA_SET: Strategy = Strategy {
    status: true,
    generation: true,
    default: defaults::replica_set,
    validate: validation::replica_set,
    validate_update: validation::workload_update,
    prepare_create: replica_set_create,
    ..PLAIN
};

pub(crate) static LEASE: Strategy =
    Strategy { unconditional_update: false, create_on_update: true, validate: validation::lease, ..PLAIN };

pub(crate) static ENDPOINT_SLICE: Strategy = Strategy {
    generation: true,
    default: defaults::endpoint_slice,
    validate: validation::endpoint_slice,
    validate_update: validation::endpoint_slice_update,
    ..PLAIN
};

pub(crate) static INGRESS: Strategy = Strategy {
    status: true,
    generation: true,
    validate: validation::ingress,
    prepare_create: load_balancer_status,
    ..PLAIN
};

pub(crate) static INGRESS_CLASS: Strategy = Strategy {
    generation: true,
    default: defaults::ingress_class,
    validate: validation::ingress_class,
    validate_update: validation::ingress_class_update,
    ..PLAIN
};

/// Reviews are answered, not kept.
pub(crate) static REVIEW: Strategy = Strategy { name: NameRule::Any, ..PLAIN };

fn empty_status(object: &mut Value) {
    object::set(object, &["status"], json!({}));
}

/// `status.replicas` is a required field: clients of typed languages fail to read an object without it.
fn replica_set_create(object: &mut Value) {
    object::set(object, &["status"], json!({"replicas": 0}));
}

fn load_balancer_status(object: &mut Value) {
    object::set(object, &["status"], json!({"loadBalancer": {}}));
}

fn namespace_create(object: &mut Value) {
    object::set(object, &["spec", "finalizers"], json!(["kubernetes"]));
    object::set(object, &["status"], json!({"phase": "Active"}));
}

/// Only `/finalize` changes `spec.finalizers`.
fn namespace_update(new: &mut Value, old: &Value) {
    object::copy(new, old, &["spec", "finalizers"]);
}

/// A kubelet registers its node with the status that it knows.
fn node_create(object: &mut Value) {
    object::set_default(object, &["spec"], json!({}));
    object::set_default(object, &["status"], json!({}));
}

fn pod_create(object: &mut Value) {
    defaults::admit_pod(object);
    let class = qos_class(object);
    object::set(object, &["status"], json!({"phase": "Pending", "qosClass": class}));
}

/// How soon a pod goes when memory is short: `Guaranteed` last, `BestEffort` first.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let containers = || {
        ["containers", "initContainers"].into_iter().flat_map(|list| object::list_at(pod, &["spec", list]))
    };
    let amount = |container: &Value, list: &str, resource: &str| {
        object::get(container, &["resources", list, resource])
            .and_then(Value::as_str)
            .and_then(|text| crate::quantity::Quantity::parse(text).ok())
            .filter(|amount| !amount.is_zero())
    };
    let each = |rule: &dyn Fn(&Value, &str) -> bool| {
        containers().all(|container| ["cpu", "memory"].iter().all(|resource| rule(container, resource)))
    };
    if each(&|container, resource| {
        amount(container, "limits", resource).is_none() && amount(container, "requests", resource).is_none()
    }) {
        return "BestEffort";
    }
    let guaranteed = each(&|container, resource| {
        let limit = amount(container, "limits", resource);
        limit.is_some() && limit == amount(container, "requests", resource).or(limit)
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

fn service_create(object: &mut Value) {
    normalize_cluster_ips(object, None);
    load_balancer_status(object);
}

/// What is allocated stays, unless the client changes the type so that it needs none any more.
fn service_update(new: &mut Value, old: &Value) {
    let external = |service: &Value| object::str_at(service, &["spec", "type"]) == "ExternalName";
    if external(new) {
        if !external(old) {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
            {
                object::remove(new, &["spec", field]);
            }
        }
    } else if !external(old) {
        // A client that writes the object it applied, not the one it read, leaves them out.
        for field in ["clusterIP", "clusterIPs"] {
            if object::get(new, &["spec", field])
                .is_none_or(|value| *value == json!("") || *value == json!([]))
            {
                object::copy(new, old, &["spec", field]);
            }
        }
    }
    normalize_cluster_ips(new, Some(old));
    keep_node_ports(new, old);
}

/// `clusterIPs[0]` and `clusterIP` are one value; a client that sets or changes one of them means both.
fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let ip = object::str_at(new, &["spec", "clusterIP"]).to_owned();
    let listed = !object::list_at(new, &["spec", "clusterIPs"]).is_empty();
    match old {
        None if listed && ip.is_empty() => {
            let first = object::list_at(new, &["spec", "clusterIPs"])[0].clone();
            object::set(new, &["spec", "clusterIP"], first);
        }
        None if !listed && !ip.is_empty() => object::set(new, &["spec", "clusterIPs"], json!([ip])),
        Some(old) => {
            let changed = ip != object::str_at(old, &["spec", "clusterIP"]);
            let same_list =
                object::get(new, &["spec", "clusterIPs"]) == object::get(old, &["spec", "clusterIPs"]);
            if changed && same_list && !ip.is_empty() {
                object::set(new, &["spec", "clusterIPs"], json!([ip]));
            }
        }
        None => {}
    }
}

/// Ports that keep their number and protocol keep their node port, unless the client names another.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let needs =
        |service: &Value| matches!(object::str_at(service, &["spec", "type"]), "NodePort" | "LoadBalancer");
    if !needs(old) {
        return;
    }
    if !needs(new) {
        // The client left the type's node ports standing: it does not need them any more.
        let old_ports = object::list_at(old, &["spec", "ports"]).to_vec();
        for port in object::list_at_mut(new, &["spec", "ports"]) {
            let kept = old_ports
                .iter()
                .any(|old| object::get(old, &["nodePort"]) == object::get(port, &["nodePort"]));
            if kept {
                object::remove(port, &["nodePort"]);
            }
        }
        return;
    }
    let identity =
        |port: &Value| (object::int_at(port, &["port"]), object::str_at(port, &["protocol"]).to_owned());
    let taken: Vec<i64> = object::list_at(new, &["spec", "ports"])
        .iter()
        .filter_map(|port| object::int_at(port, &["nodePort"]))
        .collect();
    let old_ports = object::list_at(old, &["spec", "ports"]).to_vec();
    for port in object::list_at_mut(new, &["spec", "ports"]) {
        if object::int_at(port, &["nodePort"]).unwrap_or(0) != 0 {
            continue;
        }
        let before = old_ports.iter().find(|old| identity(old) == identity(port));
        if let Some(number) =
            before.and_then(|old| object::int_at(old, &["nodePort"])).filter(|n| !taken.contains(n))
        {
            object::set(port, &["nodePort"], number);
        }
    }
}

/// A secret without a type keeps the one it has.
fn secret_update(new: &mut Value, old: &Value) {
    if object::str_at(new, &["type"]).is_empty() {
        object::copy(new, old, &["type"]);
    }
}
