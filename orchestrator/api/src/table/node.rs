//! The columns of nodes.

use serde_json::{Value, json};

use super::{Column, Printer, age::age, name, text_or};
use crate::object;

const ROLE_LABEL: &str = "node-role.kubernetes.io/";

pub(crate) static NODE: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Roles"),
        Column::AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ],
    cells: |node, now| {
        let info = |field: &str| object::str_at(node, &["status", "nodeInfo", field]);
        vec![
            name(node),
            json!(status(node)),
            text_or(&roles(node), "<none>"),
            age(node, now),
            json!(info("kubeletVersion")),
            text_or(address(node, "InternalIP"), "<none>"),
            text_or(address(node, "ExternalIP"), "<none>"),
            text_or(info("osImage"), "<unknown>"),
            text_or(info("kernelVersion"), "<unknown>"),
            text_or(info("containerRuntimeVersion"), "<unknown>"),
        ]
    },
};

fn status(node: &Value) -> String {
    let ready = object::list_at(node, &["status", "conditions"])
        .iter()
        .find(|condition| object::str_at(condition, &["type"]) == "Ready");
    let mut status = match ready.map(|condition| object::str_at(condition, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object::bool_at(node, &["spec", "unschedulable"]) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = object::labels(node)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_LABEL) {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    object::list_at(node, &["status", "addresses"])
        .iter()
        .find(|address| object::str_at(address, &["type"]) == kind)
        .map_or("", |address| object::str_at(address, &["address"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_show_readiness_and_roles() {
        let node = json!({
            "metadata": {"name": "a", "labels": {"node-role.kubernetes.io/control-plane": "", "x": "y"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "nodeInfo": {"kubeletVersion": "v1.33.0"},
            },
        });
        let cells = (NODE.cells)(&node, "2026-01-01T00:00:00Z".parse().expect("a time"));
        assert_eq!(cells.len(), NODE.columns.len());
        assert_eq!(cells[..3], ["a", "Ready,SchedulingDisabled", "control-plane"].map(Value::from));
        assert_eq!(cells[4..8], ["v1.33.0", "192.0.2.1", "<none>", "<unknown>"].map(Value::from));
        assert_eq!(status(&json!({})), "Unknown");
    }
}
