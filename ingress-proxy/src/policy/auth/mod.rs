//! Basic authentication (RFC 7617).
//!
//! A good password hash takes a tenth of a second of a core: too long for a thread that serves requests, and far too
//! long to do again for each request of a page. So passwords are checked on threads for slow work, a bounded number
//! at a time, and those that were right are remembered, as a keyed digest, in a bounded set. A wrong password is never
//! remembered, so that guessing pays the full price each time.

mod hash;
mod remembered;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderValue, header};
use tokio::sync::Semaphore;

pub(crate) use hash::{Hash, HashError};
use remembered::{Digest, Remembered};

use super::{By, Reply, RequestHead};

/// Passwords that are checked at a time; each has a core to itself.
const CHECKS: usize = 2;
/// Passwords that may wait for that. Beyond, clients hear 503.
const WAITING: usize = 64;
/// Longest credentials that are looked at, in bytes.
const MAX_CREDENTIALS: usize = 1_024;

/// Users and their password hashes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Users(BTreeMap<Box<str>, Arc<Hash>>);

impl Users {
    /// Reads lines of `user:hash`, as `htpasswd` writes them. Returns also the users whose hash cannot be used, each
    /// with the reason: they cannot log in, the others can.
    pub(crate) fn from_file(text: &str) -> (Self, Vec<(String, HashError)>) {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self::collect(lines.map(|line| line.split_once(':').unwrap_or((line, ""))))
    }

    /// The same from names and hashes.
    pub(crate) fn collect<'a>(
        pairs: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> (Self, Vec<(String, HashError)>) {
        let (mut users, mut unusable) = (BTreeMap::new(), Vec::new());
        for (user, hash) in pairs {
            match Hash::parse(hash) {
                Ok(hash) => {
                    users.insert(user.into(), Arc::new(hash));
                }
                Err(error) => unusable.push((user.to_owned(), error)),
            }
        }
        (Self(users), unusable)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `auth-type: basic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BasicAuth {
    /// The `WWW-Authenticate` field.
    pub(crate) challenge: HeaderValue,
    pub(crate) users: Arc<Users>,
}

/// What is known of a request's credentials without long work.
#[derive(Debug)]
pub(super) enum Verdict {
    Right,
    Wrong(Reply),
    /// The hash must be computed.
    Open(Check),
}

impl BasicAuth {
    /// The field for a realm; `None` when it has characters that no field can have.
    pub(crate) fn challenge(realm: &str) -> Option<HeaderValue> {
        if realm.contains(['"', '\\']) {
            return None;
        }
        HeaderValue::try_from(format!("Basic realm=\"{realm}\", charset=\"UTF-8\"")).ok()
    }

    /// `only_asked`: there is no request, so that credentials must be there, and it is not said whether they are right.
    pub(super) fn judge(
        &self,
        head: &impl RequestHead,
        passwords: &Arc<Passwords>,
        only_asked: bool,
    ) -> Verdict {
        let Some((user, password)) = head.field("authorization").and_then(credentials) else {
            return Verdict::Wrong(self.refusal("this needs a user name and a password"));
        };
        if only_asked {
            return Verdict::Right;
        }
        let Some(hash) = self.users.0.get(user.as_str()) else {
            return Verdict::Wrong(self.refusal("user name or password is wrong"));
        };
        let digest = passwords.remembered.digest(hash, &password);
        if passwords.remembered.knows(&digest) {
            return Verdict::Right;
        }
        Verdict::Open(Check {
            hash: Arc::clone(hash),
            password,
            digest,
            passwords: Arc::clone(passwords),
            refusal: self.refusal("user name or password is wrong"),
        })
    }

    fn refusal(&self, text: &'static str) -> Reply {
        Reply::new(401, By::BasicAuth, text).with(header::WWW_AUTHENTICATE, self.challenge.clone())
    }
}

/// `Basic dXNlcjpwYXNz` → `user`, `pass`.
fn credentials(field: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = field.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") || rest.len() > MAX_CREDENTIALS {
        return None;
    }
    let text = BASE64.decode(rest.trim_ascii()).ok()?;
    let colon = text.iter().position(|&byte| byte == b':')?;
    Some((String::from_utf8(text[..colon].to_vec()).ok()?, text[colon + 1..].to_vec()))
}

/// The user that the request says it comes from.
pub(super) fn user(head: &impl RequestHead) -> Option<String> {
    head.field("authorization").and_then(credentials).map(|(user, _)| user)
}

/// A password that is not known to be right.
pub(crate) struct Check {
    hash: Arc<Hash>,
    password: Vec<u8>,
    digest: Digest,
    passwords: Arc<Passwords>,
    refusal: Reply,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Check") // a password is in it
    }
}

impl Check {
    /// Computes the hash, on a thread made for slow work.
    pub(super) async fn run(self) -> Result<(), Reply> {
        let busy = || Reply::new(503, By::BasicAuth, "too many passwords are being checked, try again");
        let passwords = self.passwords;
        let waiting = Arc::clone(&passwords.waiting).try_acquire_owned().map_err(|_| busy())?;
        let checking = Arc::clone(&passwords.checking).acquire_owned().await.map_err(|_| busy())?;
        let (hash, password) = (self.hash, self.password);
        // The thread goes on when the client does not wait any more, and so it keeps its place.
        let checked = tokio::task::spawn_blocking(move || {
            let right = hash.matches(&password);
            drop((checking, waiting));
            right
        });
        let right = checked.await.unwrap_or(false);
        if !right {
            return Err(self.refusal);
        }
        passwords.remembered.remember(self.digest);
        Ok(())
    }
}

/// What is remembered of passwords, and the bounds on checking them.
#[derive(Debug)]
pub(crate) struct Passwords {
    remembered: Remembered,
    checking: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new() -> Self {
        Self {
            remembered: Remembered::new(),
            checking: Arc::new(Semaphore::new(CHECKS)),
            waiting: Arc::new(Semaphore::new(CHECKS + WAITING)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    /// As `htpasswd -bB` with cost 4, and `htpasswd -bs` write it; the password is `secret`.
    const FILE: &str = "# users\nann:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n\
                        bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n\ncarl:plain\n";

    fn auth() -> BasicAuth {
        let (users, _) = Users::from_file(FILE);
        BasicAuth { challenge: BasicAuth::challenge("here").unwrap(), users: Arc::new(users) }
    }

    fn head(user: &str, password: &str) -> impl RequestHead {
        let value = format!("Basic {}", BASE64.encode(format!("{user}:{password}")));
        get("http://a/", &[("authorization", value.as_str())])
    }

    async fn status(auth: &BasicAuth, head: &impl RequestHead, passwords: &Arc<Passwords>) -> u16 {
        match auth.judge(head, passwords, false) {
            Verdict::Right => 200,
            Verdict::Wrong(reply) => reply.status,
            Verdict::Open(check) => check.run().await.map_or_else(|reply| reply.status, |()| 201),
        }
    }

    #[tokio::test]
    async fn a_right_password_is_checked_once_and_a_wrong_one_each_time() {
        let (auth, passwords) = (auth(), Arc::new(Passwords::new()));
        for (user, password, expected) in [
            ("ann", "secret", 201),
            ("ann", "secret", 200),
            ("bob", "secret", 201),
            ("bob", "secret", 200),
            ("bob", "wrong", 401),
            ("bob", "wrong", 401),
            ("bob", "", 401),
            ("carl", "plain", 401),
            ("dora", "secret", 401),
        ] {
            assert_eq!(status(&auth, &head(user, password), &passwords).await, expected, "{user} {password}");
        }
        // The same password under another hash was not checked yet.
        let (users, _) = Users::from_file("bob:{SSHA}gVK8WC9YyFT1gMsQHTGCgT3sSv5zYWx0\n");
        let other = BasicAuth { users: Arc::new(users), ..auth };
        assert!(matches!(other.judge(&head("bob", "secret"), &passwords, false), Verdict::Open(_)));
    }

    #[tokio::test]
    async fn credentials_that_are_none() {
        let (auth, passwords) = (auth(), Arc::new(Passwords::new()));
        for value in ["", "Basic", "Basic !", "Basic Ym9i", "Bearer Ym9iOnNlY3JldA==", "Basic /zo="] {
            let head = get("http://a/", &[("authorization", value)]);
            assert_eq!(status(&auth, &head, &passwords).await, 401, "{value}");
        }
        let Verdict::Wrong(reply) = auth.judge(&get("http://a/", &[]), &passwords, false) else { panic!() };
        assert_eq!(reply.fields["www-authenticate"], "Basic realm=\"here\", charset=\"UTF-8\"");
        assert_eq!(BasicAuth::challenge("a\"b"), None);
    }

    #[tokio::test]
    async fn checks_beyond_the_bound_are_refused() {
        let (auth, passwords) = (auth(), Arc::new(Passwords::new()));
        let _all = passwords.waiting.try_acquire_many((CHECKS + WAITING) as u32).unwrap();
        assert_eq!(status(&auth, &head("bob", "secret"), &passwords).await, 503);
    }

    #[test]
    fn users_whose_hash_is_of_no_use_are_named() {
        let (users, unusable) = Users::from_file(FILE);
        assert_eq!(users.0.len(), 2);
        assert_eq!(unusable, [("carl".to_owned(), HashError::Unknown)]);
    }
}
