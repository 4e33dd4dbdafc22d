//! Who is asking.
//!
//! A client certificate of the cluster's CA names a user (CN) and groups (O); a bearer token is one of a service account
//! or one of the static file. A request with neither is anonymous, which is enough to ask whether the server is well.
//! Credentials that are there and wrong are an error, never anonymous.

mod certificate;
mod static_tokens;
mod token;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use weir_api::Status;

pub(crate) use certificate::user_of_certificate;
pub(crate) use static_tokens::StaticTokens;
pub use static_tokens::TokenFileError;
pub use token::KeyError;
pub(crate) use token::{AUDIENCE, Bound, Issuer, ServiceAccount};

use crate::cache::Cache;

/// The group of everybody who proved who they are.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody else.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub(crate) const MASTERS: &str = "system:masters";

/// Somebody who makes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
}

impl User {
    /// Somebody who proved to be `name`.
    pub(crate) fn authenticated(name: String, uid: String, mut groups: Vec<String>) -> User {
        groups.push(AUTHENTICATED.to_owned());
        User { name, uid, groups }
    }

    /// Nobody in particular.
    pub(crate) fn anonymous() -> User {
        User {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_owned()],
        }
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// Turns credentials into users.
pub(crate) struct Authenticator {
    pub(crate) issuer: Issuer,
    pub(crate) static_tokens: StaticTokens,
}

impl Authenticator {
    /// Who sent a request over a connection whose certificate named `peer`.
    pub(crate) fn authenticate(
        &self,
        peer: Option<&User>,
        headers: &HeaderMap,
        cache: &Cache,
    ) -> Result<User, Status> {
        if let Some(user) = peer {
            return Ok(user.clone());
        }
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
        let token = header.to_str().ok().and_then(|header| header.split_once(' '));
        let Some((_, token)) = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(Status::unauthorized());
        };
        self.user_of_token(token.trim(), cache).ok_or_else(Status::unauthorized)
    }

    /// Whose a bearer token is; `None` if it is nobody's, expired, or its service account is gone.
    pub(crate) fn user_of_token(&self, token: &str, cache: &Cache) -> Option<User> {
        self.static_tokens.user(token).or_else(|| self.issuer.verify(token, cache))
    }
}
