//! The rules for names: DNS labels and subdomains, in upstream's words.

use std::collections::HashSet;

use serde_json::Value;

use super::error::{Errors, FieldError, Path};
use crate::object;

/// What a name must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 bytes: most kinds.
    Subdomain,
    /// RFC 1123 label, at most 63 bytes: namespaces.
    Label,
    /// RFC 1035 label, at most 63 bytes: services.
    Rfc1035Label,
    /// Anything, also nothing: reviews.
    Any,
}

impl NameRule {
    /// What is wrong with `name`; for a `generateName` its last dash may be followed by nothing.
    pub fn problems(self, name: &str, is_prefix: bool) -> Vec<String> {
        let masked;
        let name = match name.strip_suffix('-') {
            Some(stem) if is_prefix && !stem.is_empty() => {
                masked = format!("{stem}a");
                masked.as_str()
            }
            _ => name,
        };
        match self {
            Self::Subdomain => dns1123_subdomain(name),
            Self::Label => dns1123_label(name),
            Self::Rfc1035Label => dns1035_label(name),
            Self::Any => Vec::new(),
        }
    }
}

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

/// `must be no more than 63 bytes`
pub(super) fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| is_lower_alphanumeric(*byte))
        && bytes.last().is_some_and(|byte| is_lower_alphanumeric(*byte))
        && bytes.iter().all(|byte| is_lower_alphanumeric(*byte) || *byte == b'-')
}

/// Checks `name` of a list's entry: there, an RFC 1123 label, and none that `names` has already.
pub(super) fn unique_label<'a>(
    entry: &'a Value,
    path: &Path<'_>,
    names: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    let name = object::str_at(entry, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
        return;
    }
    for problem in dns1123_label(name) {
        errors.push(FieldError::invalid(path.child("name"), name, problem));
    }
    if !names.insert(name) {
        errors.push(FieldError::duplicate(path.child("name"), name));
    }
}

/// What is wrong with an RFC 1123 label.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > LABEL_MAX {
        problems.push(too_long(LABEL_MAX));
    }
    if !is_dns_label(text) {
        problems.push("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".to_owned());
    }
    problems
}

/// What is wrong with an RFC 1123 subdomain.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        problems.push(too_long(SUBDOMAIN_MAX));
    }
    if !text.split('.').all(is_dns_label) {
        problems.push("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned());
    }
    problems
}

/// What is wrong with a subdomain whose first label is `*`.
pub(super) fn wildcard_subdomain(text: &str) -> Vec<String> {
    match text.strip_prefix("*.") {
        Some(rest) if text.len() <= SUBDOMAIN_MAX && rest.split('.').all(is_dns_label) => Vec::new(),
        _ => vec!["a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()],
    }
}

/// What is wrong with an RFC 1035 label.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > LABEL_MAX {
        problems.push(too_long(LABEL_MAX));
    }
    if !is_dns_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        problems.push("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".to_owned());
    }
    problems
}

/// What is wrong with the name of a port (RFC 6335).
pub(super) fn port_name(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let bytes = text.as_bytes();
    if text.len() > 15 {
        problems.push("must be no more than 15 characters".to_owned());
    }
    if text.is_empty() || !bytes.iter().all(|byte| is_lower_alphanumeric(*byte) || *byte == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        problems.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        problems.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_owned());
    }
    problems
}

/// What is wrong with the name of an environment variable.
pub(super) fn env_var_name(text: &str) -> Vec<String> {
    let printable = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'=';
    if !text.is_empty() && text.as_bytes().iter().all(printable) {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

/// What is wrong with a key of a ConfigMap or Secret.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        problems.push(too_long(SUBDOMAIN_MAX));
    }
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    if text.is_empty() || !text.as_bytes().iter().all(allowed) {
        problems.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match text {
        "." => problems.push("must not be '.'".to_owned()),
        ".." => problems.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

/// What is wrong with a port's number.
pub(super) fn port_number(number: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&number)).then_some("must be between 1 and 65535, inclusive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "web-1", "0a", &"a".repeat(63)] {
            assert!(dns1123_label(good).is_empty(), "{good}");
        }
        for bad in ["", "Web", "a.b", "-a", "a-", "a_b", &"a".repeat(64)] {
            assert!(!dns1123_label(bad).is_empty(), "{bad}");
        }
        assert!(dns1123_subdomain("kube-root-ca.crt").is_empty());
        for bad in ["", ".", "a..b", "a.", "A.b", &"a.".repeat(127)] {
            assert!(!dns1123_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(dns1035_label("web-1").is_empty() && !dns1035_label("1web").is_empty());
        assert!(wildcard_subdomain("*.example.com").is_empty() && !wildcard_subdomain("*.*.com").is_empty());
    }

    #[test]
    fn a_prefix_may_end_in_a_dash() {
        assert!(NameRule::Subdomain.problems("web-", true).is_empty());
        assert!(!NameRule::Subdomain.problems("web-", false).is_empty());
        assert!(!NameRule::Subdomain.problems("-", true).is_empty());
    }

    #[test]
    fn keys_ports_and_variables() {
        assert!(config_key("tls.crt").is_empty() && config_key("KEY_a-b").is_empty());
        for bad in ["", ".", "..", "..a", "a/b", "a b"] {
            assert!(!config_key(bad).is_empty(), "{bad}");
        }
        assert!(port_name("http-web").is_empty());
        for bad in ["", "Http", "123", "a--b", "-a", "averyveryverylongname"] {
            assert!(!port_name(bad).is_empty(), "{bad}");
        }
        assert!(
            env_var_name("PATH").is_empty()
                && !env_var_name("A=B").is_empty()
                && !env_var_name("").is_empty()
        );
        assert!(port_number(65535).is_none() && port_number(0).is_some() && port_number(65536).is_some());
    }
}
