//! What is spoken with endpoints, and how.

use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::{ObjectKey, SecretFact, Snapshot};

/// What is spoken with the endpoints of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 in cleartext.
    Grpc,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/2 over TLS.
    Grpcs,
}

impl Protocol {
    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1",
            Self::Grpc => "HTTP/2",
            Self::Https => "HTTP/1.1 over TLS",
            Self::Grpcs => "HTTP/2 over TLS",
        }
    }

    /// What a Service port's or an EndpointSlice port's `appProtocol` says, if it says anything of interest: the names of the
    /// Kubernetes documentation, and IANA's names of services.
    pub(super) fn of_app_protocol(name: Option<&str>) -> Option<Self> {
        Some(match name?.to_ascii_lowercase().as_str() {
            "kubernetes.io/h2c" | "grpc" => Self::Grpc,
            "https" | "kubernetes.io/wss" => Self::Https,
            "grpcs" => Self::Grpcs,
            _ => return None,
        })
    }

    /// Whether requests go there by HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }

    /// Whether connections there are TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }
}

/// How TLS is spoken with endpoints: annotations `proxy-ssl-*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointTls {
    /// The name in the endpoint's certificate; the Service's if there is none.
    pub name: Option<String>,
    /// The name is told to the endpoint (SNI).
    pub tells_name: bool,
    /// The endpoint's certificate is verified.
    pub verifies: bool,
    /// Who signs endpoints' certificates, and a certificate of the proxy's own.
    pub secret: Option<ObjectKey>,
}

/// What is in the Secret that goes with it.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The proxy's own certificate.
    pub pair: Option<Arc<CertifiedKey>>,
    /// `ca.crt`: PEM.
    pub authorities: Option<Arc<[u8]>>,
}

impl Credentials {
    /// What is in this Secret now.
    pub(crate) fn of(snapshot: &Snapshot, secret: Option<&ObjectKey>) -> Self {
        match secret.and_then(|secret| snapshot.secrets.get(secret)) {
            Some(SecretFact::Usable(pair, authorities)) => {
                Self { pair: Some(Arc::clone(pair)), authorities: authorities.clone() }
            }
            Some(SecretFact::Opaque(data)) => {
                Self { pair: None, authorities: data.get(AUTHORITIES).map(|pem| pem.as_slice().into()) }
            }
            _ => Self::default(),
        }
    }
}

/// The key of a Secret with certificates of authorities.
pub(crate) const AUTHORITIES: &str = "ca.crt";

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        let same_pair = match (&self.pair, &other.pair) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_pair && self.authorities == other.authorities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocols_are_understood() {
        for (name, expected) in [
            ("kubernetes.io/h2c", Some(Protocol::Grpc)),
            ("HTTPS", Some(Protocol::Https)),
            ("kubernetes.io/wss", Some(Protocol::Https)),
            ("kubernetes.io/ws", None),
            ("mysql", None),
        ] {
            assert_eq!(Protocol::of_app_protocol(Some(name)), expected, "{name}");
        }
        assert!(Protocol::Grpcs.is_tls() && Protocol::Grpcs.is_http2() && !Protocol::Grpc.is_tls());
    }
}
