//! A request that was let in: what is different about it on its way to the endpoint and back.

use std::num::NonZeroU64;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};

use super::clients;
use super::limits::Place;
use super::upstream::Upstream;
use super::{AuthAnswer, By, Duplicate, ExternalAuth, Policy, Reply, ResponseHead};

static PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Made by [`Policy::before`], kept until the response is finished: dropping it frees the request's place among those
/// in flight.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(super) policy: Arc<Policy>,
    /// Path and query that the endpoint gets instead of the client's.
    pub(super) target: Option<String>,
    /// Go to the rule's canary.
    pub(super) canary: bool,
    /// Rank endpoints by this number instead of by load.
    pub(super) rank_by: Option<u64>,
    pub(super) set_cookie: Option<HeaderValue>,
    /// What CORS says to the request's origin.
    pub(super) origin: Option<HeaderValue>,
    pub(super) https: bool,
    /// What the endpoint hears of the client's certificate.
    pub(super) identity: Vec<(HeaderName, HeaderValue)>,
    /// What the authentication server said.
    pub(super) granted: Option<Arc<AuthAnswer>>,
    /// The copy for the mirror.
    pub(super) duplicate: Option<Box<Duplicate>>,
    #[expect(dead_code, reason = "held for its drop")]
    pub(super) place: Option<Place>,
}

impl Passage {
    /// Path and query for the endpoint, if they are not the client's.
    pub(crate) fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// Whether the request goes to the canary.
    pub(crate) fn to_canary(&self) -> bool {
        self.canary
    }

    /// The number that endpoints are ranked by, if not by load.
    pub(crate) fn rank_by(&self) -> Option<u64> {
        self.rank_by
    }

    /// Whether all such requests go to one endpoint, as long as it is there.
    pub(crate) fn is_tied(&self) -> bool {
        self.rank_by.is_some() && self.set_cookie.is_none()
    }

    /// The `Host` for the endpoint, if it is not the client's.
    pub(crate) fn host(&self) -> Option<&HeaderValue> {
        self.policy.settings.vhost.as_ref()
    }

    /// Fields that the endpoint gets, instead of any that the client sent.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let prefix = self.policy.settings.prefix.as_ref().filter(|_| self.target.is_some());
        let identity = self.identity.iter().map(|(name, value)| (name, value));
        prefix.into_iter().map(|prefix| (&PREFIX, prefix)).chain(identity).chain(self.granted_fields())
    }

    /// Those of them that the authentication server gave.
    pub(crate) fn granted_fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.external().zip(self.granted.as_ref()).into_iter().flat_map(|(external, granted)| {
            let values = |name| granted.fields.get_all(name).iter().map(move |value| (name, value));
            external.response_fields.iter().flat_map(values)
        })
    }

    /// Whether the endpoint does not get a client's field of this name.
    pub(crate) fn drops(&self, name: &str) -> bool {
        let settings = &self.policy.settings;
        // The password was checked here; the endpoint has no use for it.
        (settings.auth.is_some() && name.eq_ignore_ascii_case(header::AUTHORIZATION.as_str()))
            || (settings.prefix.is_some()
                && self.target.is_some()
                && name.eq_ignore_ascii_case(PREFIX.as_str()))
            || (self.policy.clients.is_some()
                && clients::FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field.as_str())))
            || self.external().is_some_and(|external| external.owns(name))
    }

    fn external(&self) -> Option<&ExternalAuth> {
        self.policy.settings.external.as_deref()
    }

    /// The copy for the mirror, once.
    pub(crate) fn take_duplicate(&mut self) -> Option<Box<Duplicate>> {
        self.duplicate.take()
    }

    /// Timeouts and retries.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.policy.settings.upstream
    }

    /// Bytes that the request's body may have.
    pub(crate) fn body_limit(&self) -> Option<u64> {
        self.policy.settings.body_limit.map(NonZeroU64::get)
    }

    /// The answer to a body that is larger.
    pub(crate) fn refuse_body(&self) -> Option<Reply> {
        self.body_limit().map(too_large)
    }

    /// Whether an endpoint's answer with this status is replaced by an error page.
    pub(crate) fn replaces(&self, status: u16) -> bool {
        self.policy.settings.error_statuses.contains(&status)
    }

    /// A reply, with what every answer of the rule carries.
    pub(super) fn marked(&self, mut reply: Reply) -> Reply {
        self.policy.mark(&mut *reply.fields, self.https, self.origin.as_ref());
        reply
    }

    /// Edits the head of the response with this status, whoever made it.
    pub(crate) fn after(&self, status: u16, response: &mut impl ResponseHead) {
        self.policy.settings.places.replace(response);
        self.policy.mark(response, self.https, self.origin.as_ref());
        if let Some((external, granted)) = self.external().zip(self.granted.as_ref())
            && (external.always_set_cookie || (200..400).contains(&status))
        {
            for cookie in granted.fields.get_all(header::SET_COOKIE) {
                response.append(header::SET_COOKIE, cookie.clone());
            }
        }
        if let Some(cookie) = &self.set_cookie {
            response.append(header::SET_COOKIE, cookie.clone());
        }
    }
}

pub(super) fn too_large(limit: u64) -> Reply {
    Reply::new(413, By::BodySize, format!("the request body is larger than {limit} bytes"))
}
