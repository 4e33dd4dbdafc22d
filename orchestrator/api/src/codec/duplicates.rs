//! JSON and YAML into [`Value`]s without losing sight of keys that come twice.
//!
//! serde's own maps keep the last of them in silence. Upstream keeps the last too, but says so.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The value and the paths of keys that came twice.
type Parsed = (Value, Vec<String>);

pub(super) fn from_json(body: &[u8]) -> Result<Parsed, String> {
    let mut seen = Seen::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Node(&mut seen).deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok((value, seen.duplicates))
}

pub(super) fn from_yaml(body: &[u8]) -> Result<Parsed, String> {
    let mut seen = Seen::default();
    let deserializer = serde_yaml::Deserializer::from_slice(body);
    let value = Node(&mut seen).deserialize(deserializer).map_err(|error| error.to_string())?;
    Ok((value, seen.duplicates))
}

/// Where the parser is, and what it found.
#[derive(Default)]
struct Seen {
    path: String,
    duplicates: Vec<String>,
}

impl Seen {
    /// Runs `read` with the path extended, and restores it.
    fn within<T>(&mut self, segment: fmt::Arguments<'_>, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        // Writing to a String cannot fail.
        let _ = fmt::write(&mut self.path, segment);
        let result = read(self);
        self.path.truncate(length);
        result
    }
}

struct Node<'a>(&'a mut Seen);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that JSON cannot hold"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let next = self
                .0
                .within(format_args!("[{}]", list.len()), |seen| access.next_element_seed(Node(seen)))?;
            match next {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let dot = if self.0.path.is_empty() { "" } else { "." };
            let value = self.0.within(format_args!("{dot}{key}"), |seen| {
                if map.contains_key(&key) {
                    seen.duplicates.push(seen.path.clone());
                }
                access.next_value_seed(Node(seen))
            })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_of_two_keys_wins_and_is_reported() {
        let body = br#"{"spec": {"replicas": 1, "list": [{"a": 1}, {"a": 1, "a": 2}], "replicas": 2}}"#;
        let (value, duplicates) = from_json(body).expect("parses");
        assert_eq!(value, json!({"spec": {"replicas": 2, "list": [{"a": 1}, {"a": 2}]}}));
        assert_eq!(duplicates, ["spec.list[1].a", "spec.replicas"]);
    }

    #[test]
    fn yaml_reads_as_json_would() {
        let (value, duplicates) =
            from_yaml(b"a: 1\nb: [x, 2.5, true, null, '1']\nc:\n  d: {}\nc2: ~\na: 2\n").expect("parses");
        assert_eq!(value, json!({"a": 2, "b": ["x", 2.5, true, null, "1"], "c": {"d": {}}, "c2": null}));
        assert_eq!(duplicates, ["a"]);
    }

    #[test]
    fn what_is_not_one_document_is_an_error() {
        for body in ["", "{", "{} {}", "[1,]", "{\"a\":}"] {
            assert!(from_json(body.as_bytes()).is_err(), "{body}");
        }
        assert!(from_yaml(b"a: [").is_err());
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(from_json("[".repeat(100_000).as_bytes()).is_err());
    }
}
