//! Label selectors: `app=web,tier in (a,b),!canary`, and the `LabelSelector` objects of specs.

use serde_json::{Map, Value};

use super::SelectorError;
use crate::{
    object,
    validation::labels::{label_key_problems, label_value_problems},
};

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The value is one of these.
    In,
    /// The value is none of these, or there is no such label.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is no such label.
    DoesNotExist,
    /// The value is an integer above this one.
    GreaterThan,
    /// The value is an integer below this one.
    LessThan,
}

/// One term of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it compares.
    pub operator: Operator,
    /// What it compares to.
    pub values: Vec<String>,
}

/// A conjunction of requirements; the empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses a query's `labelSelector`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { rest: text.trim() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_space();
            let done = parser.rest.is_empty();
            // A comma promises another requirement.
            let goes_on = parser.take(",") && !parser.rest.trim().is_empty();
            if !done && !goes_on {
                return Err(SelectorError::Label(format!(
                    "found {:?}, expected: ',' or end of input",
                    parser.rest
                )));
            }
        }
        Ok(Self { requirements })
    }

    /// The selector of a `LabelSelector` object; `None` selects nothing, an empty object everything.
    pub fn of_object(selector: Option<&Value>) -> Option<Self> {
        let selector = selector?;
        let mut requirements = Vec::new();
        for (key, value) in object::map_at(selector, &["matchLabels"]).into_iter().flatten() {
            requirements.push(Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            });
        }
        for expression in object::list_at(selector, &["matchExpressions"]) {
            requirements.push(Requirement {
                key: object::str_at(expression, &["key"]).to_owned(),
                operator: match object::str_at(expression, &["operator"]) {
                    "In" => Operator::In,
                    "NotIn" => Operator::NotIn,
                    "Exists" => Operator::Exists,
                    "DoesNotExist" => Operator::DoesNotExist,
                    _ => return None,
                },
                values: object::list_at(expression, &["values"])
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            });
        }
        Some(Self { requirements })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key)).and_then(Value::as_str);
            requirement.matches(value)
        })
    }

    /// Whether the object is selected.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(object::labels(object))
    }

    /// As a query's text, sorted by key: what `Scale` tells an autoscaler.
    pub fn to_query(&self) -> String {
        let mut terms: Vec<String> = self.requirements.iter().map(Requirement::to_query).collect();
        terms.sort_unstable();
        terms.join(",")
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|listed| listed == value);
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|bound| number(bound));
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => {
                value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value > bound)
            }
            Operator::LessThan => {
                value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value < bound)
            }
        }
    }

    fn to_query(&self) -> String {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In if self.values.len() == 1 => format!("{key}={values}"),
            Operator::In => format!("{key} in ({values})"),
            Operator::NotIn => format!("{key} notin ({values})"),
            Operator::Exists => key.clone(),
            Operator::DoesNotExist => format!("!{key}"),
            Operator::GreaterThan => format!("{key}>{values}"),
            Operator::LessThan => format!("{key}<{values}"),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        self.rest.strip_prefix(token).map(|rest| self.rest = rest).is_some()
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end =
            self.rest.find(|c: char| c.is_whitespace() || "=!<>(),".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.take("!");
        let key = self.word();
        if let Some(problem) = label_key_problems(key).into_iter().next() {
            return Err(SelectorError::Label(format!("key: Invalid value: {key:?}: {problem}")));
        }
        let (operator, values) =
            if absent { (Operator::DoesNotExist, Vec::new()) } else { self.comparison()? };
        for value in &values {
            if let Some(problem) = label_value_problems(value).into_iter().next() {
                return Err(SelectorError::Label(format!(
                    "values[0][{key}]: Invalid value: {value:?}: {problem}"
                )));
            }
        }
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    fn comparison(&mut self) -> Result<(Operator, Vec<String>), SelectorError> {
        for (token, operator) in [
            ("==", Operator::In),
            ("=", Operator::In),
            ("!=", Operator::NotIn),
            (">", Operator::GreaterThan),
            ("<", Operator::LessThan),
        ] {
            if self.take(token) {
                let value = self.word().to_owned();
                if matches!(operator, Operator::GreaterThan | Operator::LessThan)
                    && value.parse::<i64>().is_err()
                {
                    let reason = format!(
                        "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    );
                    return Err(SelectorError::Label(reason));
                }
                return Ok((operator, vec![value]));
            }
        }
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok((Operator::Exists, Vec::new()));
        }
        match self.word() {
            "in" => Ok((Operator::In, self.values()?)),
            "notin" => Ok((Operator::NotIn, self.values()?)),
            other => {
                Err(SelectorError::Label(format!("found {other:?}, expected: in, notin, =, ==, !=, gt, lt")))
            }
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let expected =
            |rest: &str, what: &str| SelectorError::Label(format!("found {rest:?}, expected: {what}"));
        if !self.take("(") {
            return Err(expected(self.rest, "'('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.word().to_owned());
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(expected(self.rest, "',' or ')'"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn query_terms_select_as_documented() {
        let object =
            json!({"metadata": {"labels": {"app": "web", "tier": "front", "weight": "7", "empty": ""}}});
        for (text, selected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app = web , tier = front", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web, shop)", true),
            ("app notin (web)", false),
            ("missing notin (web)", true),
            ("app", true),
            ("!app", false),
            ("! missing", true),
            ("weight>6,weight<8", true),
            ("weight>7", false),
            ("app>1", false),
            ("empty=", true),
            ("empty in ()", true),
            ("example.com/x notin (a,b)", true),
        ] {
            assert_eq!(LabelSelector::parse(text).expect(text).matches_object(&object), selected, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_an_error() {
        for text in [
            "=x",
            "app in web",
            "app in (a",
            "app=a=b",
            "a b",
            "app,",
            "x>y",
            "app=un fit",
            "-a=b",
            "app=a b",
        ] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn objects_select_with_labels_and_expressions() {
        let labels = json!({"app": "web", "tier": "front"});
        let selector =
            |value: Value| LabelSelector::of_object(Some(&value)).map(|s| s.matches(labels.as_object()));
        assert_eq!(selector(json!({})), Some(true));
        assert_eq!(selector(json!({"matchLabels": {"app": "web"}})), Some(true));
        assert_eq!(selector(json!({"matchLabels": {"app": "x"}})), Some(false));
        let expression = |operator: &str, values: Value| {
            selector(json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]}))
        };
        assert_eq!(expression("In", json!(["front", "back"])), Some(true));
        assert_eq!(expression("NotIn", json!(["front"])), Some(false));
        assert_eq!(expression("DoesNotExist", json!([])), Some(false));
        assert_eq!(expression("Like", json!([])), None);
        assert!(LabelSelector::of_object(None).is_none());
    }

    #[test]
    fn to_query_is_sorted_and_parses_again() {
        let value = json!({"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["x", "y"]}]});
        let selector = LabelSelector::of_object(Some(&value)).expect("a selector");
        assert_eq!(selector.to_query(), "a=1,b=2,c notin (x,y)");
        assert_eq!(
            LabelSelector::parse(&selector.to_query()).expect("parses").to_query(),
            selector.to_query()
        );
    }
}
