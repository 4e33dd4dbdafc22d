//! Holds an object against its type: finds unknown fields, refuses wrong types, and rewrites values the way
//! Kubernetes' own types would print them.

use std::fmt::Write as _;

use base64::{DecodeError, Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;

use super::time::{micro_time, seconds_time};
use crate::{
    quantity::Quantity,
    schema::{Shape, TypeId, Types, types},
};

/// Makes `object` canonical; returns the paths of unknown fields, which are dropped. The error names the field
/// in the words of Go's JSON decoder, which clients know.
pub(super) fn canonicalize(object: &mut Value, schema: &str) -> Result<Vec<String>, String> {
    let types = types();
    let Some(id) = types.id(schema) else { return Ok(Vec::new()) };
    let mut walk = Walk { types, path: Vec::new(), owner: id, unknown: Vec::new() };
    walk.object(object, id)?;
    Ok(walk.unknown)
}

/// What Go's JSON decoder calls the type of a value.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

struct Walk<'a> {
    types: &'a Types,
    path: Vec<Segment>,
    /// The object type whose field is being looked at.
    owner: TypeId,
    unknown: Vec<String>,
}

enum Segment {
    Field(String),
    Index(usize),
}

impl Walk<'_> {
    fn object(&mut self, value: &mut Value, id: TypeId) -> Result<(), String> {
        let object = self.types.object(id);
        let Value::Object(map) = value else {
            return Err(self.mismatch(value, &format!("v1.{}", object.short_name())));
        };
        let outer = std::mem::replace(&mut self.owner, id);
        let mut dropped = Vec::new();
        for (key, value) in map.iter_mut() {
            let field = object.field(key);
            if field.is_none() || value.is_null() {
                dropped.push(key.clone());
            }
            self.path.push(Segment::Field(key.clone()));
            match field {
                None => self.unknown.push(self.path_text()),
                Some(field) if !value.is_null() => self.value(value, &field.shape)?,
                Some(_) => {}
            }
            self.path.pop();
        }
        for key in dropped {
            map.remove(&key);
        }
        self.owner = outer;
        Ok(())
    }

    fn value(&mut self, value: &mut Value, shape: &Shape) -> Result<(), String> {
        match shape {
            Shape::Object(id) => self.object(value, *id),
            Shape::List(element) => self.list(value, element),
            Shape::Map(element) => self.map(value, element),
            Shape::String if value.is_string() => Ok(()),
            Shape::Bool if value.is_boolean() => Ok(()),
            Shape::Number if value.is_number() => Ok(()),
            Shape::Int64 if value.is_i64() => Ok(()),
            Shape::Int32 if is_int32(value) => Ok(()),
            Shape::IntOrString if value.is_string() || is_int32(value) => Ok(()),
            Shape::Any => Ok(()),
            Shape::Bytes => self.bytes(value),
            Shape::Time | Shape::MicroTime => self.time(value, *shape == Shape::MicroTime),
            Shape::Quantity => self.quantity(value),
            Shape::String => Err(self.mismatch(value, "string")),
            Shape::Bool => Err(self.mismatch(value, "bool")),
            Shape::Number => Err(self.mismatch(value, "float64")),
            Shape::Int64 => Err(self.mismatch(value, "int64")),
            Shape::Int32 => Err(self.mismatch(value, "int32")),
            Shape::IntOrString => Err(self.mismatch(value, "intstr.IntOrString")),
        }
    }

    fn list(&mut self, value: &mut Value, element: &Shape) -> Result<(), String> {
        let Value::Array(list) = value else {
            return Err(self.mismatch(value, &format!("[]{}", self.go_name(element))));
        };
        // Go would make a zero value of a null; no kind served here has lists where that means anything.
        list.retain(|value| !value.is_null());
        for (index, value) in list.iter_mut().enumerate() {
            self.path.push(Segment::Index(index));
            self.value(value, element)?;
            self.path.pop();
        }
        Ok(())
    }

    fn map(&mut self, value: &mut Value, element: &Shape) -> Result<(), String> {
        let Value::Object(map) = value else {
            return Err(self.mismatch(value, &format!("map[string]{}", self.go_name(element))));
        };
        for (key, value) in map {
            if value.is_null() {
                *value = zero(element);
            } else if *element == Shape::Bytes {
                // Go says "data" and leaves it to the reader to find which of the keys.
                self.path.push(Segment::Field(key.clone()));
                self.bytes(value)?;
                self.path.pop();
            } else {
                self.value(value, element)?;
            }
        }
        Ok(())
    }

    fn bytes(&self, value: &mut Value) -> Result<(), String> {
        let Value::String(text) = value else {
            return Err(self.mismatch(value, "[]uint8"));
        };
        // Go skips line ends, which `base64` without `-w0` makes.
        if text.contains(['\n', '\r']) {
            text.retain(|character| !matches!(character, '\n' | '\r'));
        }
        match STANDARD.decode(&*text) {
            Ok(_) => Ok(()),
            Err(DecodeError::InvalidByte(at, _)) => Err(format!("illegal base64 data at input byte {at}")),
            Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
        }
        .map_err(|reason| format!("{}: {reason}: encode the value with base64", self.path_text()))
    }

    fn time(&self, value: &mut Value, micros: bool) -> Result<(), String> {
        let Value::String(text) = value else {
            return Err(self.mismatch(value, if micros { "v1.MicroTime" } else { "v1.Time" }));
        };
        let time: Timestamp = text.parse().map_err(|_| {
            format!(
                "{}: parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?}",
                self.path_text()
            )
        })?;
        *value = Value::String(if micros { micro_time(time) } else { seconds_time(time) });
        Ok(())
    }

    fn quantity(&self, value: &mut Value) -> Result<(), String> {
        let text = match &*value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(self.mismatch(value, "resource.Quantity")),
        };
        let quantity = Quantity::parse(&text).map_err(|error| format!("{}: {error}", self.path_text()))?;
        *value = Value::String(quantity.to_string());
        Ok(())
    }

    /// `json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`
    fn mismatch(&self, value: &Value, wanted: &str) -> String {
        let found = match value {
            Value::Number(number) if wanted.starts_with("int") || wanted.starts_with("intstr") => {
                format!("number {number}")
            }
            other => type_name(other).to_owned(),
        };
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|segment| match segment {
                Segment::Field(name) => Some(name.as_str()),
                Segment::Index(_) => None,
            })
            .collect();
        let owner = self.types.object(self.owner).short_name();
        format!(
            "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {wanted}",
            fields.join(".")
        )
    }

    fn go_name(&self, shape: &Shape) -> String {
        match shape {
            Shape::String => "string".to_owned(),
            Shape::Bool => "bool".to_owned(),
            Shape::Int32 => "int32".to_owned(),
            Shape::Int64 => "int64".to_owned(),
            Shape::Number => "float64".to_owned(),
            Shape::Bytes => "[]uint8".to_owned(),
            Shape::Time => "v1.Time".to_owned(),
            Shape::MicroTime => "v1.MicroTime".to_owned(),
            Shape::Quantity => "resource.Quantity".to_owned(),
            Shape::IntOrString => "intstr.IntOrString".to_owned(),
            Shape::Any => "interface {}".to_owned(),
            Shape::List(element) => format!("[]{}", self.go_name(element)),
            Shape::Map(element) => format!("map[string]{}", self.go_name(element)),
            Shape::Object(id) => format!("v1.{}", self.types.object(*id).short_name()),
        }
    }

    fn path_text(&self) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Field(name) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(name);
                }
                // Writing to a String cannot fail.
                Segment::Index(index) => drop(write!(text, "[{index}]")),
            }
        }
        text
    }
}

fn is_int32(value: &Value) -> bool {
    value.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

/// What a null in a map becomes.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => Value::from(""),
        Shape::Quantity => Value::from("0"),
        Shape::Bool => Value::from(false),
        Shape::Int32 | Shape::Int64 | Shape::Number => Value::from(0),
        Shape::List(_) => Value::Array(Vec::new()),
        _ => Value::Object(serde_json::Map::new()),
    }
}
