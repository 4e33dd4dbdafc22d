//! Which requests go to the other version.

use super::head::cookie;
use super::{Client, RequestHead};
use crate::table::Pattern;

/// `canary-by-header`, `canary-by-cookie`, `canary-weight`, asked in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Canary {
    pub(crate) header: Option<(Box<str>, HeaderRule)>,
    pub(crate) cookie: Option<Box<str>>,
    /// Of [`Canary::total`] requests so many.
    pub(crate) weight: u32,
    pub(crate) total: u32,
}

/// What the header must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderRule {
    /// `always` or `never`; anything else leaves it to the next rule.
    Word,
    /// `canary-by-header-value`.
    Value(Box<str>),
    /// `canary-by-header-pattern`.
    Pattern(Pattern),
}

impl Canary {
    /// Whether the request goes there. `session` is a number that stays with a client that has a session cookie:
    /// where there is one, chance falls the same way each time, and a growing weight takes clients over for good.
    pub(super) fn takes(&self, head: &impl RequestHead, client: &Client, session: Option<u64>) -> bool {
        let verdict = self.verdict(head).map(|(_, goes)| goes);
        verdict.unwrap_or_else(|| {
            session.unwrap_or(client.dice) % u64::from(self.total.max(1)) < u64::from(self.weight)
        })
    }

    /// What the request itself says about it, and where.
    pub(super) fn verdict(&self, head: &impl RequestHead) -> Option<(&'static str, bool)> {
        if let Some((name, rule)) = &self.header
            && let Some(value) = head.field(name)
        {
            let verdict = match rule {
                HeaderRule::Word => word(value),
                HeaderRule::Value(wanted) => (value == wanted.as_bytes()).then_some(true),
                HeaderRule::Pattern(pattern) => pattern.matches(value).then_some(true),
            };
            if let Some(verdict) = verdict {
                return Some(("header", verdict));
            }
        }
        let verdict = cookie(head, self.cookie.as_ref()?).and_then(word)?;
        Some(("cookie", verdict))
    }
}

fn word(value: &[u8]) -> Option<bool> {
    match value {
        b"always" => Some(true),
        b"never" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    fn takes(canary: &Canary, fields: &[(&str, &str)], dice: u64, session: Option<u64>) -> bool {
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: false, now_us: 0, dice };
        canary.takes(&get("http://a/", fields), &client, session)
    }

    #[test]
    fn header_before_cookie_before_weight() {
        let canary = Canary {
            header: Some(("x-canary".into(), HeaderRule::Word)),
            cookie: Some("canary".into()),
            weight: 30,
            total: 100,
        };
        for (fields, dice, expected) in [
            (&[("x-canary", "always"), ("cookie", "canary=never")][..], 99, true),
            (&[("x-canary", "never"), ("cookie", "canary=always")], 0, false),
            (&[("x-canary", "maybe"), ("cookie", "canary=always")], 99, true),
            (&[("cookie", "canary=never")], 0, false),
            (&[("cookie", "canary=x")], 29, true),
            (&[], 29, true),
            (&[], 30, false),
            (&[], 129, true),
        ] {
            assert_eq!(takes(&canary, fields, dice, None), expected, "{fields:?} {dice}");
        }
        assert!(takes(&canary, &[], 99, Some(29)), "a session decides in place of chance");
        assert!(!takes(&Canary::default(), &[], 0, None), "no rule takes nothing");
    }

    #[test]
    fn a_value_or_a_pattern() {
        let with = |rule| Canary { header: Some(("region".into(), rule)), ..Canary::default() };
        let value = with(HeaderRule::Value("eu".into()));
        let pattern = with(HeaderRule::Pattern(Pattern::text("^eu-[0-9]+$").unwrap()));
        for (region, by_value, by_pattern) in
            [("eu", true, false), ("eu-7", false, true), ("always", false, false)]
        {
            assert_eq!(takes(&value, &[("region", region)], 0, None), by_value, "{region}");
            assert_eq!(takes(&pattern, &[("region", region)], 0, None), by_pattern, "{region}");
        }
    }
}
