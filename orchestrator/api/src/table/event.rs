//! The columns of events.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Printer, age::since, name};
use crate::{object, strategy};

const COLUMNS: &[Column] = &[
    Column::text("Last Seen"),
    Column::text("Type"),
    Column::text("Reason"),
    Column::text("Object"),
    Column::wide("Subobject"),
    Column::wide("Source"),
    Column::text("Message"),
    Column::wide("First Seen"),
    Column::wide("Count"),
    Column { name: "Name", kind: "string", format: "name", priority: 1 },
];

pub(crate) static EVENT: Printer = Printer { columns: COLUMNS, cells };

/// The other view of an event looks the same.
pub(crate) static EVENT_V1: Printer = Printer {
    columns: COLUMNS,
    cells: |event, now| {
        let mut event = event.clone();
        strategy::event::to_core(&mut event);
        cells(&event, now)
    },
};

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let has = |path: &[&str]| object::get(event, path).is_some();
    let first = if has(&["firstTimestamp"]) { "firstTimestamp" } else { "eventTime" };
    let first = since(event, &[first], now);
    let (last, count) = if has(&["series"]) {
        let count = object::int_at(event, &["series", "count"]).unwrap_or(0);
        (since(event, &["series", "lastObservedTime"], now), count)
    } else {
        let last =
            if has(&["lastTimestamp"]) { since(event, &["lastTimestamp"], now) } else { first.clone() };
        (last, object::int_at(event, &["count"]).filter(|count| *count > 0).unwrap_or(1))
    };
    let about = |field: &str| object::str_at(event, &["involvedObject", field]);
    let kind = about("kind").to_lowercase();
    let target = if about("name").is_empty() { kind } else { format!("{kind}/{}", about("name")) };
    vec![
        json!(last),
        json!(object::str_at(event, &["type"])),
        json!(object::str_at(event, &["reason"])),
        json!(target),
        json!(about("fieldPath")),
        json!(source(event)),
        json!(object::str_at(event, &["message"]).trim()),
        json!(first),
        json!(count.to_string()),
        name(event),
    ]
}

/// `kubelet, node-a`
fn source(event: &Value) -> String {
    let pick = |old: &[&str], new: &str| {
        let old = object::str_at(event, old);
        if old.is_empty() { object::str_at(event, &[new]) } else { old }.to_owned()
    };
    let component = pick(&["source", "component"], "reportingComponent");
    let host = pick(&["source", "host"], "reportingInstance");
    if host.is_empty() { component } else { format!("{component}, {host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_views_print_the_same() {
        let event = json!({
            "metadata": {"name": "web.1"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "type": "Normal",
            "reason": "Started",
            "message": "Started container web\n",
            "involvedObject": {"kind": "Pod", "name": "web"},
            "reportingComponent": "kubelet",
            "reportingInstance": "a",
        });
        let now = "2026-01-01T00:00:05Z".parse().expect("a time");
        let cells = (EVENT.cells)(&event, now);
        assert_eq!(
            cells,
            [
                "5s",
                "Normal",
                "Started",
                "pod/web",
                "",
                "kubelet, a",
                "Started container web",
                "5s",
                "1",
                "web.1"
            ]
            .map(Value::from)
        );
        let mut other = event;
        strategy::event::from_core(&mut other);
        assert_eq!((EVENT_V1.cells)(&other, now), cells);
    }
}
