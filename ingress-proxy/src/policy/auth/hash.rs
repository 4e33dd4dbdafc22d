//! Password hashes as `htpasswd` writes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest as _, Md5};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA1_OUTPUT_LEN, digest};

/// The highest cost of bcrypt that is taken: a second or two of a core. One more is twice that.
const MAX_BCRYPT_COST: u8 = 14;
/// Where a bcrypt hash has its cost: `$2y$10$…`.
const BCRYPT_COST: std::ops::Range<usize> = 4..6;
const BCRYPT_LEN: usize = 60;

/// One password's hash.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hash {
    text: Box<str>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `htpasswd -B`
    Bcrypt,
    /// `htpasswd -m`, its default, and `openssl passwd -apr1`.
    Apr1,
    /// `htpasswd -s`, and its salted form.
    Sha1,
}

/// Why a hash cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HashError {
    /// A kind that is not served, or none.
    #[error("its hash is of a kind that is not served; make it with: htpasswd -B")]
    Unknown,
    /// bcrypt that would take too long.
    #[error("its bcrypt hash has a cost above {MAX_BCRYPT_COST}, which takes too long for a request")]
    TooCostly,
}

impl Hash {
    pub(crate) fn parse(text: &str) -> Result<Self, HashError> {
        let text = text.trim();
        let kind = if ["$2y$", "$2a$", "$2b$"].iter().any(|prefix| text.starts_with(prefix)) {
            let cost: u8 = text.get(BCRYPT_COST).and_then(|c| c.parse().ok()).ok_or(HashError::Unknown)?;
            if text.len() != BCRYPT_LEN {
                return Err(HashError::Unknown);
            }
            if cost > MAX_BCRYPT_COST {
                return Err(HashError::TooCostly);
            }
            Kind::Bcrypt
        } else if apr1_salt(text).is_some() {
            Kind::Apr1
        } else if sha1_parts(text).is_some() {
            Kind::Sha1
        } else {
            return Err(HashError::Unknown);
        };
        Ok(Self { text: text.into(), kind })
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is the password's. Takes up to seconds.
    pub(super) fn matches(&self, password: &[u8]) -> bool {
        match self.kind {
            Kind::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
            Kind::Apr1 => apr1_salt(&self.text)
                .is_some_and(|salt| same(apr1(password, salt.as_bytes()).as_bytes(), self.text.as_bytes())),
            Kind::Sha1 => sha1_parts(&self.text).is_some_and(|(sum, salt)| {
                let salted = [password, salt.as_slice()].concat();
                same(digest(&SHA1_FOR_LEGACY_USE_ONLY, &salted).as_ref(), &sum)
            }),
        }
    }
}

/// Compares in a time that does not depend on where the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

/// `{SHA}sum` and `{SSHA}sum salt`, in base64.
fn sha1_parts(text: &str) -> Option<([u8; SHA1_OUTPUT_LEN], Vec<u8>)> {
    let (salted, encoded) = match text.strip_prefix("{SHA}") {
        Some(encoded) => (false, encoded),
        None => (true, text.strip_prefix("{SSHA}")?),
    };
    let bytes = BASE64.decode(encoded).ok()?;
    let (sum, salt) = bytes.split_first_chunk::<SHA1_OUTPUT_LEN>()?;
    (salted != salt.is_empty()).then(|| (*sum, salt.to_vec()))
}

const APR1: &str = "$apr1$";
const APR1_SALT_MAX: usize = 8;
const APR1_SUM_LEN: usize = 22;

/// The salt of `$apr1$salt$sum`.
fn apr1_salt(text: &str) -> Option<&str> {
    let (salt, sum) = text.strip_prefix(APR1)?.split_once('$')?;
    (salt.len() <= APR1_SALT_MAX && sum.len() == APR1_SUM_LEN).then_some(salt)
}

/// Apache's variant of crypt's MD5, which no kept library has: a thousand rounds of MD5 over password, salt and the
/// last sum, in an order that only history explains.
fn apr1(password: &[u8], salt: &[u8]) -> String {
    const ROUNDS: usize = 1_000;
    let inner = md5(&[password, salt, password]);
    let mut first = Md5::new();
    first.update(password);
    first.update(APR1.as_bytes());
    first.update(salt);
    for chunk in password.chunks(inner.len()) {
        first.update(&inner[..chunk.len()]);
    }
    let mut length = password.len();
    while length > 0 {
        first.update(if length & 1 == 1 { &[0] } else { &password[..1] });
        length >>= 1;
    }
    let mut sum: [u8; 16] = first.finalize().into();
    for round in 0..ROUNDS {
        let odd = round % 2 == 1;
        let salt = if round % 3 == 0 { &[][..] } else { salt };
        let middle = if round % 7 == 0 { &[][..] } else { password };
        let last = sum;
        sum = if odd { md5(&[password, salt, middle, &last]) } else { md5(&[&last, salt, middle, password]) };
    }
    format!("{APR1}{}${}", String::from_utf8_lossy(salt), crypt64(&sum))
}

fn md5(parts: &[&[u8]]) -> [u8; 16] {
    let mut context = Md5::new();
    for part in parts {
        context.update(part);
    }
    context.finalize().into()
}

/// crypt's own base64: six bits at a time from the lowest, three bytes in a shuffled order to a group.
fn crypt64(sum: &[u8; 16]) -> String {
    const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const GROUPS: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];
    let mut out = String::with_capacity(APR1_SUM_LEN);
    let mut push = |mut bits: u32, characters: usize| {
        for _ in 0..characters {
            out.push(char::from(ALPHABET[(bits & 63) as usize]));
            bits >>= 6;
        }
    };
    for group in GROUPS {
        push(group.iter().fold(0, |bits, &at| bits << 8 | u32::from(sum[at])), 4);
    }
    push(u32::from(sum[11]), 2);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by other programs: the C library's `crypt`, `openssl passwd`, Apache's `htpasswd`.
    const HASHES: [(&str, &str); 8] = [
        ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "secret"),
        ("{SSHA}gVK8WC9YyFT1gMsQHTGCgT3sSv5zYWx0", "secret"),
        ("$apr1$q3Xz.8kL$pbDaWrsy/FSo/7fuEehng.", "secret"),
        ("$apr1$q3Xz.8kL$.pk2DNvUPIZiV7I0qizPC/", "a"),
        ("$apr1$q3Xz.8kL$kns2dTAhVhxJEgWgWnnYt0", "correct horse battery staple"),
        ("$apr1$ab$jiiV6N7hIIuIoJbc1hxOE/", "secret"),
        ("$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW", "secret"),
        ("$2b$05$ABCDEFGHIJKLMNOPQRSTUuKGxkAaoBVtx5pBUbkcmXJ9X86rN9gCi", "correct horse battery staple"),
    ];

    #[test]
    fn hashes_of_other_programs() {
        for (hash, password) in HASHES {
            let hash = Hash::parse(hash).unwrap();
            assert!(hash.matches(password.as_bytes()), "{hash:?}");
            for wrong in ["", "x", &password[..password.len() - 1], &format!("{password}x")] {
                assert!(!hash.matches(wrong.as_bytes()), "{hash:?} {wrong}");
            }
        }
    }

    #[test]
    fn unusable_hashes_say_why() {
        for (text, error) in [
            ("", HashError::Unknown),
            ("secret", HashError::Unknown),
            ("$1$salt$IFN0b1f7KCCCCCCCCCCCC1", HashError::Unknown),
            ("$2y$10$short", HashError::Unknown),
            ("{SHA}!", HashError::Unknown),
            ("{SHA}AAAA", HashError::Unknown),
            ("$2y$15$2SrWQVaJUSWKNQQOMhcuEeTuYsjyMYnmlkGZVDdBGuMvJmKCxQo8S", HashError::TooCostly),
        ] {
            assert_eq!(Hash::parse(text).unwrap_err(), error, "{text}");
        }
    }
}
