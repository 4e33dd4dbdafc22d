//! Building [`Types`] from k8s-openapi's schemas and `fields.txt`.

use std::collections::HashMap;

use k8s_openapi::{
    api::{
        apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization,
        autoscaling::v1 as autoscaling, coordination::v1 as coordination, core::v1 as core,
        discovery::v1 as discovery, events::v1 as events, networking::v1 as networking, policy::v1 as policy,
    },
    apimachinery::pkg::apis::meta::v1 as meta,
};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

use super::{Field, Inlined, ListMerge, ObjectType, Shape, TypeId, Types};
use crate::object;

/// Protobuf numbers and merge keys; see the module's head.
const FIELDS: &str = include_str!("fields.txt");

/// The schemas of all types that the registry's kinds reach, by name, as k8s-openapi writes them.
///
/// A few megabytes: callers take what they need and let go of it.
pub(crate) fn definitions() -> Map<String, Value> {
    let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
    macro_rules! reach {
        ($($module:ident: $($kind:ident)*;)*) => { $($(generator.subschema_for::<$module::$kind>();)*)* };
    }
    reach! {
        core: Namespace Node Pod Service ConfigMap Secret ServiceAccount Event Binding;
        apps: Deployment ReplicaSet;
        autoscaling: Scale;
        authentication: TokenRequest TokenReview SelfSubjectReview;
        authorization: SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview;
        coordination: Lease;
        discovery: EndpointSlice;
        events: Event;
        networking: Ingress IngressClass;
        policy: Eviction;
        meta: DeleteOptions;
    }
    generator.take_definitions(true)
}

pub(super) fn types() -> Types {
    let definitions = definitions();
    let numbers = Numbers::parse(FIELDS);
    let by_name: HashMap<Box<str>, TypeId> =
        definitions.keys().enumerate().map(|(id, name)| (name.as_str().into(), id)).collect();
    let objects =
        definitions.iter().map(|(name, schema)| object_type(name, schema, &by_name, &numbers)).collect();
    Types { objects, by_name }
}

fn object_type(name: &str, schema: &Value, ids: &HashMap<Box<str>, TypeId>, numbers: &Numbers) -> ObjectType {
    let line = numbers.types.get(name);
    let required: Vec<&str> =
        object::list_at(schema, &["required"]).iter().filter_map(Value::as_str).collect();
    let inlined: Box<[Inlined]> = line.map(|line| line.inlined(numbers)).unwrap_or_default();
    let mut fields: Box<[Field]> = object::map_at(schema, &["properties"])
        .into_iter()
        .flatten()
        .map(|(field, schema)| {
            let entry = line
                .and_then(|line| line.entries.iter().find(|entry| entry.name == field))
                .or_else(|| line?.inlined_entry(numbers, field));
            let own = line.is_some_and(|line| line.entries.iter().any(|entry| entry.name == field));
            Field {
                name: field.as_str().into(),
                shape: shape(schema, ids),
                required: required.contains(&field.as_str()),
                zero_counts: entry.is_some_and(|entry| entry.zero_counts),
                number: entry.filter(|_| own).map_or(0, |entry| entry.number),
                merge: entry.map_or(ListMerge::Atomic, Entry::list_merge),
                retain_keys: entry.is_some_and(|entry| entry.retain_keys),
            }
        })
        .collect();
    fields.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    ObjectType { name: name.into(), fields, inlined }
}

fn shape(schema: &Value, ids: &HashMap<Box<str>, TypeId>) -> Shape {
    if let Some(target) = reference(schema) {
        return match target.rsplit('.').next().unwrap_or_default() {
            "Time" => Shape::Time,
            "MicroTime" => Shape::MicroTime,
            "Quantity" => Shape::Quantity,
            "IntOrString" => Shape::IntOrString,
            "FieldsV1" | "RawExtension" => Shape::Any,
            _ => ids.get(target).map_or(Shape::Any, |id| Shape::Object(*id)),
        };
    }
    let format = object::str_at(schema, &["format"]);
    match object::str_at(schema, &["type"]) {
        "string" if format == "byte" => Shape::Bytes,
        "string" => Shape::String,
        "boolean" => Shape::Bool,
        "integer" if format == "int32" => Shape::Int32,
        "integer" => Shape::Int64,
        "number" => Shape::Number,
        "array" => Shape::List(Box::new(schema.get("items").map_or(Shape::Any, |items| shape(items, ids)))),
        "object" => match schema.get("additionalProperties") {
            Some(values) => Shape::Map(Box::new(shape(values, ids))),
            None => Shape::Any,
        },
        _ => Shape::Any,
    }
}

/// The name of the type that a schema refers to, be it directly or, to leave room for a description, through
/// an `allOf` of one.
fn reference(schema: &Value) -> Option<&str> {
    let link =
        object::get(schema, &["$ref"]).or_else(|| object::list_at(schema, &["allOf"]).first()?.get("$ref"));
    link?.as_str()?.rsplit('/').next()
}

/// `fields.txt`, parsed.
struct Numbers {
    types: HashMap<&'static str, Line>,
}

#[derive(Default)]
struct Line {
    entries: Vec<Entry>,
    inlined: Vec<(&'static str, u32)>,
}

struct Entry {
    name: &'static str,
    number: u32,
    zero_counts: bool,
    merge: Option<&'static str>,
    retain_keys: bool,
}

impl Numbers {
    fn parse(text: &'static str) -> Self {
        let types = text.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            let mut parsed = Line::default();
            for word in words {
                match word.strip_prefix('@') {
                    Some(inlined) => {
                        let (name, number) = inlined.split_once('=')?;
                        parsed.inlined.push((name, number.parse().ok()?));
                    }
                    None => parsed.entries.push(Entry::parse(word)?),
                }
            }
            Some((name, parsed))
        });
        Self { types: types.collect() }
    }
}

impl Entry {
    /// `name?=number/key!`
    fn parse(word: &'static str) -> Option<Self> {
        let (name, rest) = word.split_once('=')?;
        let (rest, retain_keys) = rest.strip_suffix('!').map_or((rest, false), |rest| (rest, true));
        let (number, merge) = rest.split_once('/').map_or((rest, None), |(number, key)| (number, Some(key)));
        let (name, zero_counts) = name.strip_suffix('?').map_or((name, false), |name| (name, true));
        Some(Self { name, number: number.parse().ok()?, zero_counts, merge, retain_keys })
    }

    fn list_merge(&self) -> ListMerge {
        match self.merge {
            None => ListMerge::Atomic,
            Some("") => ListMerge::Set,
            Some(key) => ListMerge::ByKey(key.into()),
        }
    }
}

impl Line {
    fn inlined(&self, numbers: &Numbers) -> Box<[Inlined]> {
        self.inlined
            .iter()
            .filter_map(|(name, number)| {
                let line = numbers.types.get(name)?;
                let fields = line.entries.iter().map(|entry| (entry.number, entry.name.into())).collect();
                Some(Inlined { number: *number, fields })
            })
            .collect()
    }

    fn inlined_entry<'a>(&self, numbers: &'a Numbers, field: &str) -> Option<&'a Entry> {
        self.inlined
            .iter()
            .filter_map(|(name, _)| numbers.types.get(name))
            .find_map(|line| line.entries.iter().find(|entry| entry.name == field))
    }
}
