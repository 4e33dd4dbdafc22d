//! Regular expressions, bounded.
//!
//! The engine takes time linear in the length of what it looks at, whatever the expression; what an expression may
//! cost in memory and in time to compile is bounded here. Characters are bytes and classes are ASCII: paths in normal
//! form have nothing else.
//!
//! Compiled expressions are kept for later, for the rules of a host are made anew after every change of one of them, and
//! most of its patterns are those that it had.

use std::collections::HashMap;
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};

pub use regex::bytes::Captures;
use regex::bytes::{Regex, RegexBuilder};

/// Longest text of an expression, in bytes.
const MAX_LEN: usize = 1_024;
/// Largest compiled expression, in bytes; one with counted repetitions reaches it soon.
const MAX_COMPILED: usize = 64 * 1_024;
/// What one expression may remember for each thread of what it saw, in bytes.
const MAX_CACHE: usize = 64 * 1_024;
/// Compiled expressions that are kept. At the bound all are let go.
const MAX_KEPT: usize = 1_024;

/// A compiled expression. Compares by its text.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

/// Why a text is no expression that can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// More than [`MAX_LEN`] bytes.
    #[error("it is longer than {MAX_LEN} bytes")]
    TooLong,
    /// It compiles to more than [`MAX_COMPILED`] bytes.
    #[error("it is too large: repetitions such as {{1000}} are written out")]
    TooLarge,
    /// It is none.
    #[error("it is no regular expression: {0}")]
    Syntax(String),
}

impl Pattern {
    /// An expression for paths: from their start, whatever the case of letters. Where the expression ends the path
    /// may go on, as in nginx.
    pub fn path(text: &str) -> Result<Self, PatternError> {
        Self::compile(text, &format!("^(?:{text})"), true)
    }

    /// An expression for other text: anywhere in it, and case counts.
    pub fn text(text: &str) -> Result<Self, PatternError> {
        Self::compile(text, text, false)
    }

    fn compile(text: &str, expression: &str, any_case: bool) -> Result<Self, PatternError> {
        static KEPT: LazyLock<Mutex<HashMap<(String, bool), Regex>>> = LazyLock::new(Mutex::default);
        if text.len() > MAX_LEN {
            return Err(PatternError::TooLong);
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (expression.to_owned(), any_case);
        if let Some(regex) = kept.get(&key) {
            return Ok(Self { text: text.into(), regex: regex.clone() });
        }
        let build = |expression: &str| {
            RegexBuilder::new(expression)
                .case_insensitive(any_case)
                .unicode(false)
                .size_limit(MAX_COMPILED)
                .dfa_size_limit(MAX_CACHE)
                .build()
                .map_err(|error| match error {
                    regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
                    error => PatternError::Syntax(last_line(&error.to_string())),
                })
        };
        build(text)?; // `a)|(b` is no expression, though it would be one inside a group
        let regex = build(expression)?;
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, regex.clone());
        Ok(Self { text: text.into(), regex })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// Its groups in the text, if it matches.
    pub fn captures<'t>(&self, text: &'t [u8]) -> Option<Captures<'t>> {
        self.regex.captures(text)
    }

    /// How many groups it has.
    pub fn groups(&self) -> usize {
        self.regex.captures_len() - 1
    }
}

/// The engine draws the expression before it says what is wrong with it.
fn last_line(message: &str) -> String {
    message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.regex.as_str() == other.regex.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_from_their_start_in_any_case() {
        for (pattern, path, matches) in [
            ("/foo/.*", "/foo/bar", true),
            ("/foo/.*", "/FOO/bar", true),
            ("/foo/.*", "/foo", false),
            ("/foo", "/foobar", true),
            ("/foo$", "/foobar", false),
            ("/foo", "/x/foo", false),
            ("/foo|/bar", "/x/bar", false),
            ("/v[0-9]+/", "/v12/x", true),
            (r"/\d+", "/7", true),
        ] {
            assert_eq!(Pattern::path(pattern).unwrap().matches(path.as_bytes()), matches, "{pattern} {path}");
        }
        assert!(Pattern::text("b+").unwrap().matches(b"abc"));
        assert!(!Pattern::text("b+").unwrap().matches(b"ABC"));
    }

    #[test]
    fn what_costs_too_much_or_is_none_is_refused() {
        assert_eq!(Pattern::path(&"a".repeat(MAX_LEN + 1)), Err(PatternError::TooLong));
        assert_eq!(Pattern::path("/(a{1000}){1000}"), Err(PatternError::TooLarge));
        for bad in ["/(", "/[", "/a)|(?:b", r"/(?=a)", r"/\p{Greek}"] {
            let Err(PatternError::Syntax(why)) = Pattern::path(bad) else { panic!("{bad}") };
            assert!(!why.is_empty() && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn the_same_text_is_compiled_once() {
        let (first, second) = (Pattern::path("/same(.*)").unwrap(), Pattern::path("/same(.*)").unwrap());
        assert_eq!(first, second);
        assert_eq!(first.groups(), 1);
        assert_ne!(first, Pattern::text("/same(.*)").unwrap());
    }
}
