//! Node selectors and node affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm};

/// Whether the node satisfies the pod's `nodeSelector` and required node affinity.
pub(crate) fn allows(
    selector: &BTreeMap<String, String>,
    affinity: Option<&NodeAffinity>,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let selected = selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    // Terms are alternatives; a selector without any matches nothing.
    selected
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| term_matches(term, name, labels))
        })
}

/// The sum of the weights of the preferred terms that the node satisfies.
pub(crate) fn preference(
    affinity: Option<&NodeAffinity>,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> i64 {
    let preferred =
        affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    preferred
        .into_iter()
        .flatten()
        .filter(|preferred| term_matches(&preferred.preference, name, labels))
        .map(|preferred| i64::from(preferred.weight))
        .sum()
}

fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // An empty term matches no node.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|expression| matches(expression, labels.get(&expression.key).map(String::as_str)))
        && fields.iter().all(|field| field.key == "metadata.name" && matches(field, Some(name)))
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|candidate| candidate == value);
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let mine = value.and_then(|value| value.parse::<i64>().ok());
        let bound = values.first().and_then(|bound| bound.parse::<i64>().ok());
        mine.zip(bound).is_some_and(|(mine, bound)| holds(&mine, &bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        // A node without the label is not in the list either.
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn required(terms: serde_json::Value) -> bool {
        let affinity: NodeAffinity = serde_json::from_value(json!({
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms }
        }))
        .expect("is an affinity");
        let labels = BTreeMap::from([("zone".into(), "a".into()), ("disks".into(), "4".into())]);
        allows(&BTreeMap::new(), Some(&affinity), "n1", &labels)
    }

    #[test]
    fn operators() {
        let table = [
            (json!({ "key": "zone", "operator": "In", "values": ["a", "b"] }), true),
            (json!({ "key": "zone", "operator": "In", "values": ["b"] }), false),
            (json!({ "key": "zone", "operator": "NotIn", "values": ["b"] }), true),
            (json!({ "key": "absent", "operator": "NotIn", "values": ["b"] }), true),
            (json!({ "key": "zone", "operator": "Exists" }), true),
            (json!({ "key": "zone", "operator": "DoesNotExist" }), false),
            (json!({ "key": "disks", "operator": "Gt", "values": ["3"] }), true),
            (json!({ "key": "disks", "operator": "Lt", "values": ["4"] }), false),
            (json!({ "key": "zone", "operator": "Gt", "values": ["1"] }), false),
        ];
        for (expression, expected) in table {
            assert_eq!(required(json!([{ "matchExpressions": [expression] }])), expected, "{expression}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_an_empty_one_matches_nothing() {
        let other = json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] });
        let name = json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] });
        assert!(required(json!([other, name])));
        assert!(!required(json!([{}])));
        assert!(!required(json!([])));
    }

    #[test]
    fn preferences_add_up() {
        let affinity: NodeAffinity = serde_json::from_value(json!({
            "preferredDuringSchedulingIgnoredDuringExecution": [
                { "weight": 5, "preference": { "matchExpressions": [{ "key": "zone", "operator": "Exists" }] } },
                { "weight": 7, "preference": { "matchExpressions": [{ "key": "gpu", "operator": "Exists" }] } },
            ]
        }))
        .expect("is an affinity");
        let labels = BTreeMap::from([("zone".into(), "a".into())]);
        assert_eq!(preference(Some(&affinity), "n", &labels), 5);
    }
}
