//! Tokens of service accounts: JWTs signed with ES256 (RFC 7515, RFC 7518), as Kubernetes' bound tokens.
//!
//! A token is good only while its service account, and the object it is bound to, exist with the UIDs it was issued for.
//! That is asked of the cache, so that deleting a pod ends its token at once.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use weir_api::{object, resource};

use super::User;
use crate::cache::Cache;
use crate::keys;

/// Who issues tokens, and whom they are for if nobody else is named.
pub(crate) const AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Tokens longer than this are refused unread.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The signing key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the key {path} cannot sign tokens of service accounts: {why}; it must be a PKCS#8 PEM with an ECDSA P-256 key"
)]
pub struct KeyError {
    path: PathBuf,
    why: String,
}

/// Whose token it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServiceAccount<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
}

/// The object that a token ends with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound<'a> {
    /// `pod` or `secret`.
    pub(crate) claim: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
}

/// Signs and verifies tokens.
pub(crate) struct Issuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    pub(crate) fn read(path: &Path) -> Result<Issuer, KeyError> {
        let fail = |why: String| KeyError { path: path.to_owned(), why };
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| fail(error.to_string()))?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|error| fail(error.to_string()))?;
        Ok(Issuer { key, random })
    }

    /// Issues a token that is good for `audiences` until `expires`.
    pub(crate) fn issue(
        &self,
        account: ServiceAccount<'_>,
        bound: Option<Bound<'_>>,
        audiences: &[String],
        expires: Timestamp,
    ) -> Result<String, ring::error::Unspecified> {
        let now = Timestamp::now().as_second();
        let mut private = json!({
            "namespace": account.namespace,
            "serviceaccount": { "name": account.name, "uid": account.uid },
        });
        if let Some(bound) = bound {
            private[bound.claim] = json!({ "name": bound.name, "uid": bound.uid });
        }
        let claims = json!({
            "iss": AUDIENCE,
            "sub": user_name(account.namespace, account.name),
            "aud": audiences,
            "iat": now,
            "nbf": now,
            "exp": expires.as_second(),
            "kubernetes.io": private,
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(json!({ "alg": "ES256", "typ": "JWT" })), part(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The user of a token that is good here and now.
    pub(super) fn verify(&self, token: &str, cache: &Cache) -> Option<User> {
        let claims = self.claims(token, Timestamp::now())?;
        let private = claims.get("kubernetes.io")?;
        let namespace = object::str_at(private, &["namespace"]);
        let account = private.get("serviceaccount")?;
        if !is_alive(cache, "serviceaccounts", namespace, account) {
            return None;
        }
        for (claim, plural) in [("pod", "pods"), ("secret", "secrets")] {
            if private.get(claim).is_some_and(|bound| !is_alive(cache, plural, namespace, bound)) {
                return None;
            }
        }
        let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let name = user_name(namespace, object::str_at(account, &["name"]));
        Some(User::authenticated(name, object::str_at(account, &["uid"]).to_owned(), groups))
    }

    /// The claims of a token whose signature, times, issuer and audience are right.
    fn claims(&self, token: &str, now: Timestamp) -> Option<Value> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        // The algorithm is ours, whatever the header says; a header that says otherwise is refused, not obeyed.
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        if header.get("alg")? != "ES256" {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(signed.as_bytes(), &decode(signature)?).ok()?;

        let claims: Value = serde_json::from_slice(&decode(claims)?).ok()?;
        let now = now.as_second();
        let good = claims.get("iss")? == AUDIENCE
            && claims.get("aud")?.as_array()?.iter().any(|audience| audience == AUDIENCE)
            && claims.get("nbf")?.as_i64()? <= now
            && claims.get("exp")?.as_i64()? > now;
        good.then_some(claims)
    }
}

/// The user name of a service account.
fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Whether the object that a claim names is there, is the same one, and is not past its deletion.
fn is_alive(cache: &Cache, plural: &str, namespace: &str, claim: &Value) -> bool {
    let name = object::str_at(claim, &["name"]);
    let found = resource::find("", "v1", plural)
        .and_then(|row| cache.of(row))
        .and_then(|resource| resource.get(&keys::object(namespace, name)));
    found.is_some_and(|found| object::uid(&found.value()) == object::str_at(claim, &["uid"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> Issuer {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sa.key");
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        std::fs::write(&path, key.serialize_pem()).expect("written");
        Issuer::read(&path).expect("a key of ours")
    }

    fn token(issuer: &Issuer, audience: &str, expires: i64) -> String {
        let account = ServiceAccount { namespace: "default", name: "robot", uid: "u1" };
        let expires = Timestamp::from_second(expires).expect("in range");
        issuer.issue(account, None, &[audience.to_owned()], expires).expect("signed")
    }

    #[test]
    fn claims_are_read_only_from_good_tokens() {
        let issuer = issuer();
        let now = Timestamp::now();
        let good = token(&issuer, AUDIENCE, now.as_second() + 60);
        let claims = issuer.claims(&good, now).expect("good");
        assert_eq!(claims["sub"], "system:serviceaccount:default:robot");

        let later = Timestamp::from_second(now.as_second() + 61).expect("in range");
        assert!(issuer.claims(&good, later).is_none(), "expired");
        assert!(
            issuer.claims(&token(&issuer, "elsewhere", now.as_second() + 60), now).is_none(),
            "not for us"
        );
        assert!(self::issuer().claims(&good, now).is_none(), "another key");
    }

    #[test]
    fn forgeries_are_refused() {
        let issuer = issuer();
        let now = Timestamp::now();
        let good = token(&issuer, AUDIENCE, now.as_second() + 60);
        let parts: Vec<&str> = good.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let other = URL_SAFE_NO_PAD.encode(r#"{"iss":"x"}"#);
        for forged in [
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{other}.{}", parts[0], parts[2]),
            format!("{}.{}", parts[0], parts[1]),
            String::new(),
            "a.b.c".to_owned(),
        ] {
            assert!(issuer.claims(&forged, now).is_none(), "{forged}");
        }
    }
}
