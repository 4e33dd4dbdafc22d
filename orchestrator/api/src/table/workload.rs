//! The columns of deployments and replica sets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Printer, age::age, name};
use crate::{object, selector::LabelSelector};

pub(crate) static DEPLOYMENT: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::text("Up-to-date"),
        Column::text("Available"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    cells: |deployment, now| {
        let status = |field: &str| object::int_at(deployment, &["status", field]).unwrap_or(0);
        let desired = object::int_at(deployment, &["spec", "replicas"]).unwrap_or(0);
        let mut cells = vec![
            name(deployment),
            json!(format!("{}/{desired}", status("readyReplicas"))),
            json!(status("updatedReplicas")),
            json!(status("availableReplicas")),
        ];
        finish(deployment, now, &mut cells);
        cells
    },
};

pub(crate) static REPLICA_SET: Printer = Printer {
    columns: &[
        Column::NAME,
        Column::number("Desired"),
        Column::number("Current"),
        Column::number("Ready"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    cells: |set, now| {
        let number = |path: &[&str]| json!(object::int_at(set, path).unwrap_or(0));
        let mut cells = vec![
            name(set),
            number(&["spec", "replicas"]),
            number(&["status", "replicas"]),
            number(&["status", "readyReplicas"]),
        ];
        finish(set, now, &mut cells);
        cells
    },
};

/// Age, containers, images, selector.
fn finish(object: &Value, now: Timestamp, cells: &mut Vec<Value>) {
    let containers = object::list_at(object, &["spec", "template", "spec", "containers"]);
    let joined = |field: &str| {
        let texts: Vec<&str> =
            containers.iter().map(|container| object::str_at(container, &[field])).collect();
        json!(texts.join(","))
    };
    let selector = LabelSelector::of_object(object::get(object, &["spec", "selector"]));
    let selector = selector.map(|selector| selector.to_query()).filter(|text| !text.is_empty());
    cells.extend([
        age(object, now),
        joined("name"),
        joined("image"),
        json!(selector.as_deref().unwrap_or("<none>")),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployments_show_ready_of_desired() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let deployment = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "web", "image": "nginx:1"}, {"name": "log", "image": "log:2"}]}},
            },
            "status": {"readyReplicas": 2, "updatedReplicas": 1, "availableReplicas": 2},
        });
        assert_eq!(
            (DEPLOYMENT.cells)(&deployment, now),
            [
                json!("web"),
                json!("2/3"),
                json!(1),
                json!(2),
                json!("60s"),
                json!("web,log"),
                json!("nginx:1,log:2"),
                json!("app=web")
            ]
        );
        assert_eq!((REPLICA_SET.cells)(&deployment, now)[1..4], [json!(3), json!(0), json!(2)]);
    }
}
