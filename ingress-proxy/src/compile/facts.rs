//! What the compiler knows of the cluster: of each object only the fields that decide something.
//!
//! The watching side keeps these instead of whole objects, so that memory holds no managed fields, and an
//! update that changes nothing of interest compares equal and causes no work.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, IngressSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rustls::sign::CertifiedKey;

use super::annotations::is_ours;
use super::{Address, Protocol};

const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

impl ObjectKey {
    /// The key for `namespace` and `name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// What `namespace/name` means. `None` if it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let is_one = |part: &str| !part.is_empty() && !part.contains('/');
        (is_one(namespace) && is_one(name)).then(|| Self::new(namespace, name))
    }

    /// The key of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All facts at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Ingress classes by name.
    pub classes: BTreeMap<String, ClassFact>,
    /// Ingresses of every class.
    pub ingresses: BTreeMap<ObjectKey, IngressFact>,
    /// Services.
    pub services: BTreeMap<ObjectKey, ServiceFact>,
    /// `EndpointSlices` by Service, then by their own name.
    pub slices: BTreeMap<ObjectKey, BTreeMap<String, SliceFact>>,
    /// Secrets that some Ingress names and that were read.
    pub secrets: BTreeMap<ObjectKey, SecretFact>,
}

/// An IngressClass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassFact {
    /// Who serves the class.
    pub controller: String,
    /// Whether it takes the Ingresses that name no class.
    pub default: bool,
}

impl From<IngressClass> for ClassFact {
    fn from(class: IngressClass) -> Self {
        let annotations = class.metadata.annotations.unwrap_or_default();
        Self {
            controller: class.spec.and_then(|spec| spec.controller).unwrap_or_default(),
            default: annotations.get(DEFAULT_CLASS).is_some_and(|value| value == "true"),
        }
    }
}

/// An Ingress.
#[derive(Debug, Clone, PartialEq)]
pub struct IngressFact {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The object's uid.
    pub uid: String,
    /// Creation, in seconds since 1970: age decides conflicts.
    pub created: i64,
    /// The class annotation that came before `spec.ingressClassName`.
    pub class_annotation: Option<String>,
    /// Annotations that ask for policies, by their full names.
    pub annotations: BTreeMap<String, String>,
    /// The specification as served.
    pub spec: IngressSpec,
    /// Addresses in `status.loadBalancer`.
    pub published: Vec<Address>,
}

impl From<Ingress> for IngressFact {
    fn from(ingress: Ingress) -> Self {
        let key = ObjectKey::of(&ingress.metadata);
        let status = ingress.status.and_then(|status| status.load_balancer);
        let published = status.and_then(|balancer| balancer.ingress).unwrap_or_default();
        let mut annotations = ingress.metadata.annotations.unwrap_or_default();
        Self {
            key,
            uid: ingress.metadata.uid.unwrap_or_default(),
            created: ingress.metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            class_annotation: annotations.remove(CLASS_ANNOTATION),
            annotations: annotations.into_iter().filter(|(key, _)| is_ours(key)).collect(),
            spec: ingress.spec.unwrap_or_default(),
            published: published
                .into_iter()
                .map(|entry| Address { ip: entry.ip, hostname: entry.hostname })
                .collect(),
        }
    }
}

/// A port of a Service or of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFact {
    /// Empty when the Service has one unnamed port.
    pub name: String,
    /// The Service's port, or the endpoint's.
    pub number: u16,
    /// What is spoken there, if `appProtocol` says so.
    pub protocol: Option<Protocol>,
}

impl PortFact {
    /// `80 (web)`.
    pub(super) fn describe(&self) -> String {
        if self.name.is_empty() {
            self.number.to_string()
        } else {
            format!("{} ({})", self.number, self.name)
        }
    }
}

/// A Service: what port names resolve to, and of one that is published where it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceFact {
    /// TCP ports.
    pub ports: Vec<PortFact>,
    /// Of type `ExternalName`.
    pub external_name: bool,
    /// Where it is reached, if Ingresses are to say that they are reached there.
    pub addresses: Vec<Address>,
}

impl From<Service> for ServiceFact {
    fn from(service: Service) -> Self {
        let spec = service.spec.unwrap_or_default();
        let ports = spec.ports.unwrap_or_default();
        Self {
            ports: ports
                .into_iter()
                .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
                .filter_map(|port| {
                    Some(PortFact {
                        name: port.name.unwrap_or_default(),
                        number: u16::try_from(port.port).ok()?,
                        protocol: Protocol::of_app_protocol(port.app_protocol.as_deref()),
                    })
                })
                .collect(),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            addresses: Vec::new(),
        }
    }
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceFact {
    /// The Service it belongs to.
    pub service: ObjectKey,
    /// TCP ports.
    pub ports: Vec<PortFact>,
    /// Endpoints that could ever get a request.
    pub endpoints: Vec<EndpointFact>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFact {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Takes new requests.
    pub ready: bool,
    /// Shuts down but still answers.
    pub draining: bool,
}

impl SliceFact {
    /// `None` for a slice that belongs to no Service or holds names instead of addresses.
    pub fn read(slice: EndpointSlice) -> Option<Self> {
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
        let service = ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name);
        if slice.address_type == "FQDN" {
            return None;
        }
        let ports = slice.ports.unwrap_or_default();
        let ports = ports
            .into_iter()
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| {
                Some(PortFact {
                    name: port.name.unwrap_or_default(),
                    number: u16::try_from(port.port?).ok()?,
                    protocol: Protocol::of_app_protocol(port.app_protocol.as_deref()),
                })
            })
            .collect();
        let endpoints = slice
            .endpoints
            .into_iter()
            .filter_map(|endpoint| {
                let conditions = endpoint.conditions.unwrap_or_default();
                let terminating = conditions.terminating.unwrap_or(false);
                // An unknown `ready` means ready, and `serving` is as `ready` unless it is said.
                let ready = conditions.ready.unwrap_or(true);
                let serving = conditions.serving.unwrap_or(ready);
                let addresses: Vec<IpAddr> =
                    endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect();
                let draining = serving && terminating;
                ((ready || draining) && !addresses.is_empty()).then_some(EndpointFact {
                    addresses,
                    ready,
                    draining,
                })
            })
            .collect();
        Some(Self { service, ports, endpoints })
    }
}

/// A secret that was looked for: certificate and key of a host, or users and their password hashes.
#[derive(Clone)]
pub enum SecretFact {
    /// There is none of that name.
    Missing,
    /// It holds no usable certificate and key; the text says why.
    Broken(String),
    /// It was not shown to us; the text says why.
    Unreadable(String),
    /// Certificate chain and key, and what is in `ca.crt`, if it is there.
    Usable(Arc<CertifiedKey>, Option<Arc<[u8]>>),
    /// Neither of these two is in it, but other keys.
    Opaque(Arc<BTreeMap<String, Vec<u8>>>),
}

impl SecretFact {
    /// Whether everything is the same with this one in the other's place.
    pub(crate) fn is_as_good_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Missing, Self::Missing) => true,
            (Self::Broken(a), Self::Broken(b)) | (Self::Unreadable(a), Self::Unreadable(b)) => a == b,
            (Self::Opaque(a), Self::Opaque(b)) => a == b,
            (Self::Usable(a, of_a), Self::Usable(b, of_b)) => Arc::ptr_eq(a, b) && of_a == of_b,
            _ => false,
        }
    }
}

/// Says what is there, and nothing of what is in it.
impl fmt::Debug for SecretFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("Missing"),
            Self::Broken(why) => f.debug_tuple("Broken").field(why).finish(),
            Self::Unreadable(why) => f.debug_tuple("Unreadable").field(why).finish(),
            Self::Usable(..) => f.write_str("Usable"),
            Self::Opaque(data) => f.debug_tuple("Opaque").field(&data.keys()).finish(),
        }
    }
}
