//! Issues certificates, and decides when one is due.
//!
//! All keys are ECDSA P-256: small, fast to verify, and understood by every client. Leaves live a year and are reissued
//! in their last third; the CA lives ten and is renewed in its last third, under the same key.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, Unit};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::{Error, files};

const CA_NAME: &str = "weir-ca";
const CA_DAYS: i32 = 3650;
const LEAF_DAYS: i32 = 365;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Server,
    Client,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    pub(super) common_name: String,
    pub(super) organization: Option<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) usage: Usage,
}

/// A certificate and its key, PEM.
pub(super) struct Issued {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// The CA of the cluster.
pub(super) struct Authority {
    /// Its certificate, PEM.
    pub(super) certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the CA, renews its certificate if that is due, or makes a new one.
    pub(super) fn ensure(certificate_path: &Path, key_path: &Path) -> Result<Authority, Error> {
        let key = match (files::read(key_path)?, certificate_path.exists()) {
            (Some(pem), _) => KeyPair::from_pem(&pem).map_err(|error| unusable(key_path, error))?,
            (None, false) => {
                let key = generate(CA_NAME)?;
                files::write(key_path, &key.serialize_pem())?;
                key
            }
            (None, true) => {
                let (key, certificate) = (key_path.to_owned(), certificate_path.to_owned());
                return Err(Error::MissingCaKey { key, certificate });
            }
        };
        let params = Self::params();
        let certificate = match files::read(certificate_path)? {
            Some(pem) if !Self::is_due(&pem, &key, certificate_path, key_path)? => pem,
            _ => {
                let issued = params.self_signed(&key).map_err(|source| issue_error(CA_NAME, source))?.pem();
                files::write(certificate_path, &issued)?;
                tracing::info!(path = %certificate_path.display(), "certificate authority issued");
                issued
            }
        };
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, CA_DAYS);
        params
    }

    fn is_due(pem: &str, key: &KeyPair, path: &Path, key_path: &Path) -> Result<bool, Error> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(path, error))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| unusable(path, error))?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(path, format!("{} does not belong to it", key_path.display())));
        }
        Ok(in_last_third(&certificate))
    }

    /// Keeps a certificate and its key in two files.
    pub(super) fn ensure_files(
        &self,
        profile: &Profile,
        certificate: &Path,
        key: &Path,
    ) -> Result<(), Error> {
        let good = match (files::read(certificate)?, files::read(key)?) {
            (Some(certificate), Some(key)) => self.is_good(profile, &certificate, &key),
            _ => false,
        };
        if !good {
            let issued = self.issue(profile)?;
            // The key first: the pair is checked together, so a crash in between only means to issue again.
            files::write(key, &issued.key)?;
            files::write(certificate, &issued.certificate)?;
        }
        Ok(())
    }

    pub(super) fn issue(&self, profile: &Profile) -> Result<Issued, Error> {
        let name = &profile.common_name;
        let key = generate(name)?;
        let params = profile.params().map_err(|source| issue_error(name, source))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|source| issue_error(name, source))?;
        tracing::info!(%name, "certificate issued");
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Whether a stored pair still is what `profile` asks for. Anything unreadable is not, and is issued anew.
    pub(super) fn is_good(&self, profile: &Profile, certificate: &str, key: &str) -> bool {
        let check = || -> Option<bool> {
            let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
            let (_, certificate) = X509Certificate::from_der(&der).ok()?;
            let key = KeyPair::from_pem(key).ok()?;
            Some(
                certificate.public_key().raw == key.subject_public_key_info()
                    && self.signed(&certificate)
                    && profile.matches(&certificate)
                    && !in_last_third(&certificate),
            )
        };
        check().unwrap_or(false)
    }

    /// Whether the certificate names this CA's key as its issuer's. That is no proof, and none is needed: these are our
    /// own files, and a CA that was replaced is all that this must notice.
    fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        let expected = Self::params().key_identifier(self.issuer.key());
        certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(found) => {
                found.key_identifier.as_ref().is_some_and(|found| found.0 == expected)
            }
            _ => false,
        })
    }
}

impl Profile {
    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        if let Some(organization) = &self.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        for name in &self.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        let addresses: BTreeSet<_> = self.addresses.iter().copied().collect();
        params.subject_alt_names.extend(addresses.into_iter().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match self.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_DAYS);
        Ok(params)
    }

    fn matches(&self, certificate: &X509Certificate<'_>) -> bool {
        let subject = certificate.subject();
        let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let organization = subject.iter_organization().next().and_then(|name| name.as_str().ok());
        let mut names = BTreeSet::new();
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            names.extend(extension.value.general_names.iter().filter_map(san_text));
        }
        let wanted: BTreeSet<_> =
            self.dns_names.iter().cloned().chain(self.addresses.iter().map(IpAddr::to_string)).collect();
        common_name == Some(self.common_name.as_str())
            && organization == self.organization.as_deref()
            && names == wanted
    }
}

fn san_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
            .ok()
            .map(|address| address.to_string()),
        _ => None,
    }
}

/// Keeps the key pair that signs tokens of service accounts. It has no end: a new one would revoke every token.
pub(super) fn ensure_signing_key(key_path: &Path, public_path: &Path) -> Result<(), Error> {
    let key = if let Some(pem) = files::read(key_path)? {
        KeyPair::from_pem(&pem).map_err(|error| unusable(key_path, error))?
    } else {
        let key = generate("service accounts")?;
        files::write(key_path, &key.serialize_pem())?;
        key
    };
    let public = key.public_key_pem();
    if files::read(public_path)?.is_none_or(|found| found != public) {
        files::write(public_path, &public)?;
    }
    Ok(())
}

fn generate(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| issue_error(name, source))
}

/// From yesterday, for clocks that are behind, to `days` from now.
fn set_validity(params: &mut CertificateParams, days: i32) {
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let at = |date: Date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = at(today.saturating_sub(1.day()));
    params.not_after = at(today.saturating_add(days.days()));
}

fn in_last_third(certificate: &X509Certificate<'_>) -> bool {
    let validity = certificate.validity();
    let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Timestamp::now().round(Unit::Second).map_or(i64::MAX, Timestamp::as_second) > end - (end - start) / 3
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Unusable { path: PathBuf::from(path), why: format!("{why}") }
}

fn issue_error(name: &str, source: rcgen::Error) -> Error {
    Error::Issue { name: name.to_owned(), source }
}
