//! Tables: what kubectl prints for `get`.
//!
//! kubectl asks for `as=Table` and prints what it is given, so the columns are the server's, the same as
//! upstream's printers. One [`Printer`] per kind: its columns, and a function from an object to its cells.

mod age;
mod config;
mod event;
mod network;
mod node;
mod pod;
mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{Resource, object};

pub use age::human_duration;
pub(crate) use {
    config::{CONFIG_MAP, LEASE, NAMESPACE, REVIEW, SECRET, SERVICE_ACCOUNT},
    event::{EVENT, EVENT_V1},
    network::{ENDPOINT_SLICE, INGRESS, INGRESS_CLASS, SERVICE},
    node::NODE,
    pod::POD,
    workload::{DEPLOYMENT, REPLICA_SET},
};

/// How much of each object a row carries beside its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Type and metadata.
    #[default]
    Metadata,
    /// The whole object, for `--sort-by`.
    Object,
}

impl IncludeObject {
    /// What the `includeObject` query parameter asks for.
    pub fn of_query(value: &str) -> Option<Self> {
        match value {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The heading; kubectl prints it in capitals.
    pub name: &'static str,
    /// `string`, `integer`, `date`.
    pub kind: &'static str,
    /// `name` for the column that holds names.
    pub format: &'static str,
    /// Columns above 0 are shown by `-o wide` only.
    pub priority: u8,
}

impl Column {
    pub(crate) const NAME: Self = Self { name: "Name", kind: "string", format: "name", priority: 0 };
    pub(crate) const AGE: Self = Self::text("Age");

    pub(crate) const fn text(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", priority: 0 }
    }

    pub(crate) const fn number(name: &'static str) -> Self {
        Self { name, kind: "integer", format: "", priority: 0 }
    }

    pub(crate) const fn wide(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", priority: 1 }
    }
}

/// How a kind is printed.
#[derive(Debug)]
pub struct Printer {
    /// The columns, in order.
    pub columns: &'static [Column],
    /// The cells of an object, as many as there are columns.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// A `meta.k8s.io/v1` Table of `objects`. The caller adds the list's metadata.
pub fn render<'a>(
    row: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    now: Timestamp,
    include: IncludeObject,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut line = Map::new();
            line.insert("cells".to_owned(), Value::Array((row.printer.cells)(object, now)));
            if let Some(included) = included(object, include) {
                line.insert("object".to_owned(), included);
            }
            Value::Object(line)
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": row.printer.columns.iter().map(definition).collect::<Vec<_>>(),
        "rows": rows,
    })
}

fn included(object: &Value, include: IncludeObject) -> Option<Value> {
    match include {
        IncludeObject::None => None,
        IncludeObject::Object => Some(object.clone()),
        IncludeObject::Metadata => Some(partial(object)),
    }
}

/// The object's metadata alone, as a `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": "",
        "priority": column.priority,
    })
}

/// The cell for a string that may be empty.
pub(crate) fn text_or(value: &str, otherwise: &str) -> Value {
    Value::from(if value.is_empty() { otherwise } else { value })
}

/// The name cell.
pub(crate) fn name(object: &Value) -> Value {
    Value::from(object::name(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::resources;

    #[test]
    fn a_table_has_as_many_cells_as_columns_for_every_kind() {
        let object = json!({"metadata": {"name": "a", "labels": {"b": "c"}}});
        for row in resources() {
            let table = render(row, [&object], Timestamp::UNIX_EPOCH, IncludeObject::Metadata);
            let columns = table["columnDefinitions"].as_array().map(Vec::len);
            assert_eq!(table["rows"][0]["cells"].as_array().map(Vec::len), columns, "{}", row.kind);
            assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
            assert_eq!(table["rows"][0]["object"]["metadata"], object["metadata"]);
        }
    }

    #[test]
    fn rows_carry_as_much_of_the_object_as_is_asked_for() {
        let object = json!({"metadata": {"name": "a"}, "data": {}});
        let row = resources().first().expect("rows");
        let included = |include| {
            render(row, [&object], Timestamp::UNIX_EPOCH, include)["rows"][0].get("object").cloned()
        };
        assert_eq!(included(IncludeObject::None), None);
        assert_eq!(included(IncludeObject::Object), Some(object.clone()));
        assert_eq!(IncludeObject::of_query("Everything"), None);
    }
}
