//! Field selectors: `metadata.name=web,status.phase!=Running`.

use serde_json::Value;

use super::SelectorError;
use crate::{Resource, object};

/// A parsed field selector; the empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Parses a query's `fieldSelector` for objects of `row`, which decides what fields there are.
    pub fn parse(row: &Resource, text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            let (field, value, equal) =
                split_operator(&part).ok_or_else(|| SelectorError::Field(part.clone()))?;
            let known =
                matches!(field, "metadata.name" | "metadata.namespace") || row.selectable.contains(&field);
            if !known {
                return Err(SelectorError::Unsupported(field.to_owned()));
            }
            let value = unescape(value).ok_or_else(|| SelectorError::Field(part.clone()))?;
            terms.push(Term { field: field.to_owned(), value, equal });
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether the object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (field_value(object, &term.field) == term.value) == term.equal)
    }

    /// The name that a selected object must have, if the selector says: then a list is a lookup.
    pub fn name(&self) -> Option<&str> {
        self.terms
            .iter()
            .find(|term| term.equal && term.field == "metadata.name")
            .map(|term| term.value.as_str())
    }
}

/// The text of a selectable field. Missing strings are empty, missing booleans `false`, as in upstream's types.
pub fn field_value(object: &Value, field: &str) -> String {
    // An event's source is its component, whichever of the two fields carries it.
    if field == "source" {
        let component = object::str_at(object, &["source", "component"]);
        return if component.is_empty() {
            object::str_at(object, &["reportingComponent"])
        } else {
            component
        }
        .to_owned();
    }
    if field == "status.podIPs" {
        let ips: Vec<&str> = object::list_at(object, &["status", "podIPs"])
            .iter()
            .map(|ip| object::str_at(ip, &["ip"]))
            .collect();
        return ips.join(",");
    }
    let path: Vec<&str> = field.split('.').collect();
    match object::get(object, &path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ if field == "status.replicas" => "0".to_owned(),
        _ => String::new(),
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        if character == ',' && !escaped {
            terms.push(String::new());
        } else if let Some(last) = terms.last_mut() {
            last.push(character);
        }
        escaped = character == '\\' && !escaped;
    }
    terms.retain(|term| !term.is_empty());
    terms
}

fn split_operator(term: &str) -> Option<(&str, &str, bool)> {
    let at = term.find(['=', '!'])?;
    let (field, rest) = term.split_at(at);
    let (value, equal) = match rest.strip_prefix("!=") {
        Some(value) => (value, false),
        None => (rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?, true),
    };
    (!field.is_empty()).then_some((field, value, equal))
}

/// Undoes `\\`, `\,` and `\=`; a bare `=` or another escape is an error, as upstream.
fn unescape(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(characters.next().filter(|next| matches!(next, '\\' | ',' | '='))?),
            '=' => return None,
            other => text.push(other),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::find;

    #[test]
    fn selects_by_the_fields_of_the_kind() {
        let pods = find("", "v1", "pods").expect("served");
        let pod = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"nodeName": "a"}, "status": {"phase": "Running"}});
        for (text, selected) in [
            ("", true),
            ("metadata.name=web", true),
            ("metadata.name==web,spec.nodeName=a", true),
            ("spec.nodeName!=a", false),
            ("status.phase!=Failed,status.phase!=Succeeded", true),
            ("spec.nodeName=", false),
            ("status.podIP=", true),
            ("spec.hostNetwork=false", true),
        ] {
            assert_eq!(FieldSelector::parse(pods, text).expect(text).matches(&pod), selected, "{text}");
        }
        assert_eq!(FieldSelector::parse(pods, "metadata.name=web").expect("parses").name(), Some("web"));
    }

    #[test]
    fn refuses_what_the_kind_cannot_select_by() {
        let pods = find("", "v1", "pods").expect("served");
        assert_eq!(
            FieldSelector::parse(pods, "spec.foo=1").expect_err("unknown").to_string(),
            "field label not supported: spec.foo"
        );
        for text in ["metadata.name", "=x", r"metadata.name=a=b", r"metadata.name=a\b"] {
            assert!(matches!(FieldSelector::parse(pods, text), Err(SelectorError::Field(_))), "{text}");
        }
    }

    #[test]
    fn an_events_source_is_its_component() {
        let events = find("", "v1", "events").expect("served");
        let event = json!({"source": {"component": "kubelet"}, "involvedObject": {"name": "web"}});
        let selector =
            FieldSelector::parse(events, "source=kubelet,involvedObject.name=web").expect("parses");
        assert!(selector.matches(&event));
    }
}
