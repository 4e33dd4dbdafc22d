//! Kubernetes protobuf bodies into the JSON that the same object would have.
//!
//! kubectl's `create deployment|configmap|namespace|token` and `auth can-i` send nothing else. Decoding follows
//! the one model of types ([`crate::schema`]) instead of generated structs: those would have to be turned into
//! JSON field by field, two hundred types long. Kubernetes' generated code writes zero values of plain fields
//! too; its JSON leaves them out, and so does this.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    time::{micro_time, seconds_time},
    wire::{Fields, Wire},
};
use crate::{
    resource::Kind,
    schema::{Field, Shape, TypeId, Types, types},
};

/// What every protobuf body of Kubernetes starts with.
const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may lie in each other; Kubernetes' own types need a third of it.
const DEPTH_MAX: usize = 48;

/// Field numbers of `runtime.Unknown` and its `TypeMeta`.
mod unknown {
    pub(super) const TYPE_META: u32 = 1;
    pub(super) const RAW: u32 = 2;
    pub(super) const CONTENT_TYPE: u32 = 4;
    pub(super) const API_VERSION: u32 = 1;
    pub(super) const KIND: u32 = 2;
}

pub(super) fn decode(body: &[u8], kind: Kind) -> Result<Value, String> {
    let message = body
        .strip_prefix(MAGIC)
        .ok_or("provided data does not appear to be a protobuf message, expected prefix k8s\\0")?;
    let (mut api_version, mut found_kind, mut raw, mut content_type) = ("", "", &[][..], "");
    for field in Fields::of(message) {
        match field? {
            (unknown::TYPE_META, wire) => {
                for field in Fields::of(wire.bytes()?) {
                    match field? {
                        (unknown::API_VERSION, wire) => api_version = wire.text()?,
                        (unknown::KIND, wire) => found_kind = wire.text()?,
                        _ => {}
                    }
                }
            }
            (unknown::RAW, wire) => raw = wire.bytes()?,
            (unknown::CONTENT_TYPE, wire) => content_type = wire.text()?,
            _ => {}
        }
    }
    let mut object = if content_type == "application/json" {
        serde_json::from_slice(raw).map_err(|error| error.to_string())?
    } else {
        let types = types();
        let id = types.id(kind.schema).ok_or("the kind has no protobuf form")?;
        Decoder { types }.message(raw, id, 0)?
    };
    if let Some(map) = object.as_object_mut() {
        // The body's own type, so that the caller can tell when it is not the expected one.
        for (key, text) in [("apiVersion", api_version), ("kind", found_kind)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), Value::from(text));
            }
        }
    }
    Ok(object)
}

struct Decoder {
    types: &'static Types,
}

impl Decoder {
    fn message(&self, bytes: &[u8], id: TypeId, depth: usize) -> Result<Value, String> {
        let mut map = Map::new();
        self.fields(bytes, id, depth, &mut map)?;
        Ok(Value::Object(map))
    }

    fn fields(
        &self,
        bytes: &[u8],
        id: TypeId,
        depth: usize,
        map: &mut Map<String, Value>,
    ) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("messages lie more than {DEPTH_MAX} deep in each other"));
        }
        let object = self.types.object(id);
        for field in Fields::of(bytes) {
            let (number, wire) = field?;
            if let Some(field) = object.field_numbered(number) {
                self.field(field, wire, depth, map)?;
            } else if let Some(inlined) = object.inlined.iter().find(|inlined| inlined.number == number) {
                for field in Fields::of(wire.bytes()?) {
                    let (number, wire) = field?;
                    let name =
                        inlined.fields.iter().find(|(inner, _)| *inner == number).map(|(_, name)| name);
                    if let Some(field) = name.and_then(|name| object.field(name)) {
                        self.field(field, wire, depth, map)?;
                    }
                }
            }
            // Fields of a newer Kubernetes are skipped, as its own decoder does.
        }
        Ok(())
    }

    fn field(
        &self,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
        map: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let slot = |map: &mut Map<String, Value>, empty: Value| -> Value {
            map.remove(&*field.name).unwrap_or(empty)
        };
        let value = match &field.shape {
            Shape::List(element) => {
                let mut list = slot(map, Value::Array(Vec::new()));
                if let Value::Array(list) = &mut list {
                    self.elements(element, wire, depth, list)?;
                }
                list
            }
            Shape::Map(element) => {
                let mut entries = slot(map, Value::Object(Map::new()));
                if let Value::Object(entries) = &mut entries {
                    let (key, value) = self.entry(element, wire, depth)?;
                    entries.insert(key, value);
                }
                entries
            }
            shape => {
                let value = self.value(shape, wire, depth)?;
                if is_zero(&value) && !field.required && !field.zero_counts {
                    return Ok(());
                }
                value
            }
        };
        if !value.is_null() {
            map.insert(field.name.to_string(), value);
        }
        Ok(())
    }

    fn elements(
        &self,
        shape: &Shape,
        wire: Wire<'_>,
        depth: usize,
        list: &mut Vec<Value>,
    ) -> Result<(), String> {
        match (shape, wire) {
            (Shape::Int32 | Shape::Int64, Wire::Bytes(packed)) => {
                list.extend(Fields::packed(packed)?.into_iter().map(Value::from));
            }
            _ => list.push(self.value(shape, wire, depth)?),
        }
        Ok(())
    }

    fn entry(&self, shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<(String, Value), String> {
        let (mut key, mut value) = (String::new(), None);
        for field in Fields::of(wire.bytes()?) {
            match field? {
                (1, wire) => wire.text()?.clone_into(&mut key),
                (2, wire) => value = Some(self.value(shape, wire, depth)?),
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| Value::from(""))))
    }

    fn value(&self, shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
        Ok(match shape {
            Shape::String => Value::from(wire.text()?),
            Shape::Bool => Value::from(wire.int()? != 0),
            // Both are written as 64 bits; a wrong width shows when the object is held against its type.
            Shape::Int32 | Shape::Int64 => Value::from(wire.int()?),
            Shape::Number => match wire {
                Wire::Fixed64(bits) => Value::from(f64::from_bits(bits)),
                Wire::Fixed32(bits) => Value::from(f32::from_bits(bits)),
                _ => return Err("expected a floating point number".to_owned()),
            },
            Shape::Bytes => Value::from(STANDARD.encode(wire.bytes()?)),
            Shape::Time => time(wire.bytes()?)?.map_or(Value::Null, |time| Value::from(seconds_time(time))),
            Shape::MicroTime => {
                time(wire.bytes()?)?.map_or(Value::Null, |time| Value::from(micro_time(time)))
            }
            Shape::Quantity => quantity(wire.bytes()?)?,
            Shape::IntOrString => int_or_string(wire.bytes()?)?,
            Shape::Any => any(wire.bytes()?)?,
            Shape::Object(id) => self.message(wire.bytes()?, *id, depth + 1)?,
            // A repeated field of a repeated field does not exist in protobuf; a map of lists does
            // (`UserInfo.extra`), as a message whose field 1 repeats.
            Shape::List(element) => {
                let mut list = Vec::new();
                for field in Fields::of(wire.bytes()?) {
                    self.elements(element, field?.1, depth + 1, &mut list)?;
                }
                Value::Array(list)
            }
            Shape::Map(_) => return Err("a map cannot be an element".to_owned()),
        })
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        // Go's JSON writes structs even when they are empty.
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// `Timestamp {seconds = 1, nanos = 2}`; an empty one is Go's zero time, which JSON writes as null.
fn time(message: &[u8]) -> Result<Option<Timestamp>, String> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::of(message) {
        match field? {
            (1, wire) => seconds = wire.int()?,
            (2, wire) => nanos = wire.int()?,
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(None);
    }
    let nanos = i32::try_from(nanos).map_err(|_| "a time has too many nanoseconds")?;
    Timestamp::new(seconds, nanos).map(Some).map_err(|error| error.to_string())
}

/// `Quantity {string = 1}`
fn quantity(message: &[u8]) -> Result<Value, String> {
    for field in Fields::of(message) {
        if let (1, wire) = field? {
            return Ok(Value::from(wire.text()?));
        }
    }
    Ok(Value::from("0"))
}

/// `IntOrString {type = 1, intVal = 2, strVal = 3}`, where type 1 is a text.
fn int_or_string(message: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in Fields::of(message) {
        match field? {
            (1, wire) => is_text = wire.int()? == 1,
            (2, wire) => number = wire.int()?,
            (3, wire) => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { Value::from(text) } else { Value::from(number) })
}

/// `FieldsV1 {raw = 1}`: JSON text.
fn any(message: &[u8]) -> Result<Value, String> {
    for field in Fields::of(message) {
        if let (1, wire) = field? {
            return serde_json::from_slice(wire.bytes()?).map_err(|error| error.to_string());
        }
    }
    Ok(Value::Null)
}
