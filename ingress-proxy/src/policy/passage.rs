//! A request that was let in: what is different about it on its way to the endpoint and back.

use std::num::NonZeroU64;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};

use super::clients;
use super::limits::Place;
use super::upstream::Upstream;
use super::{By, Policy, Reply, ResponseHead};

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
    pub(crate) fn fields(&self) -> impl Iterator<Item = (HeaderName, &HeaderValue)> {
        let prefix = self.policy.settings.prefix.as_ref().filter(|_| self.target.is_some());
        let prefix = prefix.into_iter().map(|prefix| (HeaderName::from_static("x-forwarded-prefix"), prefix));
        prefix.chain(self.identity.iter().map(|(name, value)| (name.clone(), value)))
    }

    /// Fields of the client's that were for us.
    pub(crate) fn dropped_fields(&self) -> impl Iterator<Item = HeaderName> {
        // The password was checked here; the endpoint has no use for it.
        let password = self.policy.settings.auth.iter().map(|_| header::AUTHORIZATION);
        password.chain(self.policy.clients.iter().flat_map(|_| clients::FIELDS))
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

    /// Edits the head of the response, whoever made it.
    pub(crate) fn after(&self, response: &mut impl ResponseHead) {
        self.policy.mark(response, self.https, self.origin.as_ref());
        if let Some(cookie) = &self.set_cookie {
            response.append(header::SET_COOKIE, cookie.clone());
        }
    }
}

pub(super) fn too_large(limit: u64) -> Reply {
    Reply::new(413, By::BodySize, format!("the request body is larger than {limit} bytes"))
}
