//! Who watches a decision being made.
//!
//! `weir explain http` says what each policy of a rule says to a request. It is told by the very code that decides about
//! requests, [`Policy::decide`](super::Policy::decide), which is told in turn that only a question is asked: then nothing is
//! counted, and no password is looked at, for whoever may ask is not who may try passwords.
//!
//! **Cost.** Requests have `()` for a witness, for which all this is compiled to nothing.

use super::{
    BasicAuth, By, Canary, Client, Cors, ExternalAuth, Limits, Redirects, RequestHead, Settings, Sources,
    ToHttps,
};

/// Who is told what the policies say, in the order in which they are asked.
pub(crate) trait Witness {
    /// Nobody makes a request: it is only asked what would become of one.
    const ONLY_ASKS: bool;

    /// A policy lets the request pass, and says why; nothing if the rule has no such policy.
    fn passes(&mut self, policy: &'static str, why: impl FnOnce() -> Option<String>);
}

/// Of a request that is made.
impl Witness for () {
    const ONLY_ASKS: bool = false;

    fn passes(&mut self, _: &'static str, _: impl FnOnce() -> Option<String>) {}
}

/// What was said to a question: the policy, and why the request passes it.
impl Witness for Vec<(&'static str, String)> {
    const ONLY_ASKS: bool = true;

    fn passes(&mut self, policy: &'static str, why: impl FnOnce() -> Option<String>) {
        self.extend(why().map(|why| (policy, why)));
    }
}

impl By {
    /// The policy's name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::SourceRange => "source range",
            Self::Redirect => "redirect",
            Self::ClientCertificate => "client certificate",
            Self::Cors => "cors",
            Self::RateLimit | Self::ConnectionLimit => "limits",
            Self::BasicAuth => "password",
            Self::ExternalAuth => "authentication server",
            Self::BodySize => "body size",
            Self::Rewrite => "rewrite",
            Self::ErrorPage => "error page",
        }
    }
}

impl Sources {
    pub(super) fn passes(&self, client: &Client) -> Option<String> {
        let is_set = *self != Self::default();
        is_set.then(|| format!("{} may come here", client.address))
    }
}

impl Redirects {
    pub(super) fn passes(
        &self,
        head: &impl RequestHead,
        client: &Client,
        host_has_tls: bool,
    ) -> Option<String> {
        let why = match self.to_https {
            ToHttps::Never if host_has_tls => "not to https: ssl-redirect is off",
            ToHttps::WhenServed if !host_has_tls => "",
            _ if self.to_https == ToHttps::Never => "",
            _ if client.https => "the client speaks TLS",
            _ => "what certificate authorities ask for stays with plain HTTP",
        };
        let why = Some(why).filter(|why| !why.is_empty()).map(str::to_owned);
        why.or_else(|| {
            self.app_root.as_ref().map(|root| format!("only / goes to {root}, not {}", head.path()))
        })
    }
}

impl Cors {
    /// `is_admitted`: the request's origin may read.
    pub(super) fn passes(head: &impl RequestHead, is_admitted: bool) -> String {
        let origin = head.field("origin").map(String::from_utf8_lossy);
        match origin {
            None => "the request names no origin".to_owned(),
            Some(origin) if is_admitted => format!("{origin} may read the answer"),
            Some(origin) => format!("{origin} may not read the answer, which goes out all the same"),
        }
    }
}

impl Limits {
    pub(super) fn passes(&self, client: &Client) -> String {
        if self.is_exempt(client) {
            return format!("{} is exempt", client.address);
        }
        let at_a_time = self.at_a_time.map(|most| format!("fewer than {most} requests at a time"));
        let rates = self.rates.iter().map(|rate| {
            format!("{} requests per {} and {} beyond at once", rate.requests, rate.per.name(), rate.burst)
        });
        let limits: Vec<String> = at_a_time.into_iter().chain(rates).collect();
        format!("{} is within {}", client.address, limits.join(", "))
    }
}

impl ExternalAuth {
    pub(super) fn passes() -> String {
        "another server says who may come in; it is not asked now".to_owned()
    }
}

impl BasicAuth {
    pub(super) fn passes() -> String {
        "a user name and a password are there; whether they are right is not tried".to_owned()
    }
}

impl Canary {
    /// How it decides about this request.
    pub(super) fn says(&self, head: &impl RequestHead, is_by_session: bool) -> String {
        if let Some((by, goes)) = self.verdict(head) {
            let whither = if goes { "the request goes" } else { "the request does not go" };
            return format!("{whither} to the canary: its {by} says so");
        }
        let by = if is_by_session { "the session decides which" } else { "chance decides which" };
        format!("{} of {} requests go to the canary: {by}", self.weight, self.total)
    }
}

impl Settings {
    /// What the length of the body is judged by.
    pub(super) fn body_passes(&self, head: &impl RequestHead) -> Option<String> {
        let limit = self.body_limit?;
        Some(match head.field("content-length") {
            Some(length) => {
                format!("{} bytes, at most {limit}", String::from_utf8_lossy(length))
            }
            None => format!("counted as it comes, at most {limit} bytes"),
        })
    }
}
