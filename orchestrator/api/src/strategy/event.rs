//! One event, two views: `v1` and `events.k8s.io/v1`. Stored as `v1`.

use serde_json::{Value, json};

/// Names in `events.k8s.io/v1` and in `v1`.
const NAMES: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Turns an `events.k8s.io/v1` Event into a `v1` one.
pub fn to_core(event: &mut Value) {
    rename(event, "v1", NAMES);
}

/// Turns a `v1` Event into an `events.k8s.io/v1` one.
pub fn from_core(event: &mut Value) {
    rename(event, "events.k8s.io/v1", NAMES.map(|(new, core)| (core, new)));
}

fn rename(event: &mut Value, api_version: &str, names: [(&str, &str); 7]) {
    let Some(map) = event.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), json!(api_version));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_the_same() {
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "note": "Started container",
            "regarding": {"kind": "Pod", "name": "web"},
            "reportingController": "weir/kubelet",
            "reason": "Started",
        });
        let mut stored = event.clone();
        to_core(&mut stored);
        assert_eq!(stored["message"], "Started container");
        assert_eq!(stored["involvedObject"]["name"], "web");
        assert_eq!(stored["apiVersion"], "v1");
        from_core(&mut stored);
        assert_eq!(stored, event);
    }
}
