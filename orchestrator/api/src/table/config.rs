//! The columns of kinds with little to show: config maps, secrets, service accounts, leases,
//! namespaces.

use serde_json::{Value, json};

use super::{Column, Printer, age::age, name};
use crate::object;

fn count(object: &Value, field: &str) -> usize {
    object::map_at(object, &[field]).map_or(0, serde_json::Map::len)
}

pub(crate) static CONFIG_MAP: Printer = Printer {
    columns: &[Column::NAME, Column::text("Data"), Column::AGE],
    cells: |map, now| vec![name(map), json!(count(map, "data") + count(map, "binaryData")), age(map, now)],
};

pub(crate) static SECRET: Printer = Printer {
    columns: &[Column::NAME, Column::text("Type"), Column::text("Data"), Column::AGE],
    cells: |secret, now| {
        vec![
            name(secret),
            json!(object::str_at(secret, &["type"])),
            json!(count(secret, "data")),
            age(secret, now),
        ]
    },
};

pub(crate) static SERVICE_ACCOUNT: Printer = Printer {
    columns: &[Column::NAME, Column::text("Secrets"), Column::AGE],
    cells: |account, now| {
        vec![name(account), json!(object::list_at(account, &["secrets"]).len()), age(account, now)]
    },
};

pub(crate) static LEASE: Printer = Printer {
    columns: &[Column::NAME, Column::text("Holder"), Column::AGE],
    cells: |lease, now| {
        vec![name(lease), json!(object::str_at(lease, &["spec", "holderIdentity"])), age(lease, now)]
    },
};

pub(crate) static NAMESPACE: Printer = Printer {
    columns: &[Column::NAME, Column::text("Status"), Column::AGE],
    cells: |namespace, now| {
        vec![name(namespace), json!(object::str_at(namespace, &["status", "phase"])), age(namespace, now)]
    },
};

/// Reviews are never listed.
pub(crate) static REVIEW: Printer = Printer {
    columns: &[Column::NAME, Column::AGE],
    cells: |review, now| vec![name(review), age(review, now)],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_counted() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let map = json!({"metadata": {"name": "c"}, "data": {"a": "", "b": ""}, "binaryData": {"c": ""}});
        assert_eq!((CONFIG_MAP.cells)(&map, now), [json!("c"), json!(3), json!("<unknown>")]);
        let secret = json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"a": ""}});
        assert_eq!((SECRET.cells)(&secret, now)[1..3], [json!("Opaque"), json!(1)]);
    }
}
