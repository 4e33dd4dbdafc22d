//! The path that the endpoint gets instead of the client's.

use crate::table::{PathError, Pattern, normalize_path};

/// Longest replacement, in bytes.
const MAX_LEN: usize = 1_024;

/// `rewrite-target` of one path rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewrite {
    /// The rule's path, which has the groups.
    pub(crate) pattern: Pattern,
    pub(crate) target: Replacement,
}

/// A path, maybe with a query, in which `$1` to `$9` stand for the groups of the pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replacement(Box<[Part]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Group(u8),
}

impl Replacement {
    /// `None` for a text that is no path even with its groups filled in, is too long, or has a `$` that stands for
    /// no group.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_path = text.starts_with('/') || text.starts_with('$');
        if !is_path || text.len() > MAX_LEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let mut pieces = text.split('$');
        let mut parts = Vec::new();
        let push_text = |parts: &mut Vec<Part>, text: &str| {
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
        };
        push_text(&mut parts, pieces.next().unwrap_or_default());
        for piece in pieces {
            let (digit, rest) = match piece.strip_prefix('{') {
                Some(braced) => braced.split_once('}')?,
                None => piece.split_at_checked(1)?,
            };
            let group = digit.parse().ok().filter(|group| (1..=9).contains(group))?;
            parts.push(Part::Group(group));
            push_text(&mut parts, rest);
        }
        let sample: String =
            parts.iter().map(|part| if let Part::Text(text) = part { text } else { "/x" }).collect();
        let (path, query) = sample.split_once('?').unwrap_or((&sample, ""));
        (normalize_path(path).is_ok() && !query.contains('#')).then(|| Self(parts.into()))
    }

    /// The highest group that it names.
    pub(crate) fn groups(&self) -> usize {
        let group = |part: &Part| match part {
            Part::Text(_) => 0,
            Part::Group(group) => usize::from(*group),
        };
        self.0.iter().map(group).max().unwrap_or(0)
    }
}

impl Rewrite {
    /// Path and query for the endpoint. The path is brought into normal form again, for groups can be put together
    /// to what the client was not allowed to write; the client's query follows the replacement's.
    pub(super) fn apply(&self, path: &str, query: Option<&str>) -> Result<String, PathError> {
        let groups = self.pattern.captures(path.as_bytes());
        let mut written = String::with_capacity(path.len());
        for part in &self.target.0 {
            match part {
                Part::Text(text) => written.push_str(text),
                Part::Group(group) => {
                    let found = groups.as_ref().and_then(|groups| groups.get(usize::from(*group)));
                    // Paths in normal form are ASCII, and so is each part of one.
                    written
                        .push_str(found.and_then(|m| std::str::from_utf8(m.as_bytes()).ok()).unwrap_or(""));
                }
            }
        }
        let (path, own_query) = written.split_once('?').unwrap_or((&written, ""));
        let path = if path.is_empty() { "/" } else { path };
        let mut target = normalize_path(path)?.into_owned();
        let queries = [own_query, query.unwrap_or_default()];
        let mut separator = '?';
        for query in queries.into_iter().filter(|query| !query.is_empty()) {
            target.push(separator);
            target.push_str(query);
            separator = '&';
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(pattern: &str, target: &str, path: &str, query: Option<&str>) -> Result<String, PathError> {
        let pattern = Pattern::path(pattern).unwrap();
        Rewrite { pattern, target: Replacement::parse(target).unwrap() }.apply(path, query)
    }

    #[test]
    fn groups_are_put_in() {
        for (pattern, target, path, query, expected) in [
            ("/something(/|$)(.*)", "/$2", "/something/new", None, "/new"),
            ("/something(/|$)(.*)", "/$2", "/something", Some("a=b"), "/?a=b"),
            ("/a/(.*)", "/$1", "/A/B/c", None, "/B/c"),
            ("/a", "/b", "/a/x", None, "/b"),
            ("/a/(.*)", "/x?from=$1", "/a/y", Some("k"), "/x?from=y&k"),
            ("/a(/.*)?", "${1}", "/a", None, "/"),
            ("/a(.*)", "/$1", "/a/b", None, "/b"),
            ("/a", "/$3", "/a", None, "/"),
        ] {
            assert_eq!(
                applied(pattern, target, path, query).as_deref(),
                Ok(expected),
                "{pattern} {target} {path}"
            );
        }
    }

    /// Two harmless parts can make a harmful whole.
    #[test]
    fn the_result_is_in_normal_form() {
        assert_eq!(applied("/(.*)x(.*)", "/p/$1$2", "/.x./q", None).as_deref(), Ok("/q"));
        assert_eq!(applied("/(.*)x(.*)", "/$1$2", "/.x./q", None), Err(PathError::AboveRoot));
    }

    #[test]
    fn what_is_no_replacement_is_refused() {
        for bad in
            ["", "x", "https://x/", "/$", "/$a", "/${1", "/$0", "/${10}", "/a b", "/a%2fb", "/../$1", "/?a#b"]
        {
            assert_eq!(Replacement::parse(bad), None, "{bad}");
        }
        assert_eq!(Replacement::parse("/$1/$3").unwrap().groups(), 3);
    }
}
