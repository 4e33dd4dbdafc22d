//! Image names as people write them, and as they are stored.

use std::fmt;

use super::{Error, Result};

/// A normalised image reference: `registry/path:tag` or `registry/path@sha256:…`.
///
/// The rules are those of `distribution/reference` (docker, containerd): a first component without dot, colon and
/// upper case that is not `localhost` belongs to the path on docker.io, and a single name there is `library/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    name: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads a name as people write it. Tag `latest` is assumed if there is neither tag nor digest.
    pub fn parse(text: &str) -> Result<Self> {
        let fail = |problem| Error::Reference { reference: text.to_owned(), problem };
        if text.is_empty() || text.len() > 512 {
            return Err(fail("it is empty or longer than 512 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| digest_hex(digest).is_none()) {
            return Err(fail("its digest is not sha256: and 64 hexadecimal digits"));
        }
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("its tag has characters that a tag cannot have"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let path =
            if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        if !path.split('/').all(is_path_component) {
            return Err(fail("a part of its path is empty or not lower case"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { name: format!("{registry}/{path}"), tag, digest: digest.map(str::to_owned) })
    }

    /// The digest, if the reference pins one. It then decides, and the tag is decoration.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `registry/path`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The hexadecimal part of a `sha256:…` digest, if it is one.
pub(super) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_hex.then_some(hex)
}

fn is_registry(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_path_component(component: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = component.as_bytes();
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|&b| inner(b))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(|&b| word(b))
        && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, expected) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("grafana/grafana", "docker.io/grafana/grafana:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/echo", "localhost/echo:latest".to_owned()),
            ("localhost:5000/echo:v1", "localhost:5000/echo:v1".to_owned()),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx:1@{digest}")),
        ] {
            assert_eq!(Reference::parse(given).expect(given).to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for given in ["", "Nginx", "a//b", "nginx:", "nginx:a b", "nginx@sha256:12", "-a", "a/../b"] {
            assert!(Reference::parse(given).is_err(), "{given:?} was accepted");
        }
    }
}
