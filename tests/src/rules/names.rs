//! Names of chains: hashes, so that they are unique however long the parts are.

use sha2::{Digest as _, Sha256};

use super::{Endpoint, ServicePort};

/// Longest name of a chain in nftables, without the longest prefix that one gets.
const NFTABLES_LONGEST: usize = 256 - 16;

/// RFC 4648, section 6, of the first `characters` times five bits.
fn base32(bytes: &[u8], characters: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bit = |at: usize| usize::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let character = |n: usize| ALPHABET[(0..5).fold(0, |value, b| value << 1 | bit(n * 5 + b))] as char;
    (0..characters).map(character).collect()
}

fn hash(text: &str, characters: usize) -> String {
    base32(&Sha256::digest(text.as_bytes()), characters)
}

fn truncated(name: &str) -> String {
    let mut name = format!("{}-{name}", hash(name, 8));
    if name.len() > NFTABLES_LONGEST {
        name.truncate(NFTABLES_LONGEST - 3);
        name.push_str("...");
    }
    name
}

fn path(service: &ServicePort) -> String {
    let ServicePort { namespace, name, port_name, protocol, .. } = service;
    format!("{namespace}/{name}/{}/{port_name}", protocol.name())
}

/// nftables: what follows `service-`, `local-`, `external-` and `firewall-`.
pub(super) fn nftables_service(service: &ServicePort) -> String {
    truncated(&path(service))
}

/// nftables: what follows `endpoint-` and `affinity-`.
pub(super) fn nftables_endpoint(service: &ServicePort, endpoint: &Endpoint) -> String {
    let address = endpoint.address.ip().to_string().replace(':', ".");
    truncated(&format!("{}__{address}/{}", path(service), endpoint.address.port()))
}

/// iptables: what follows `KUBE-SVC-` and its siblings.
pub(super) fn iptables_service(service: &ServicePort) -> String {
    hash(&format!("{}{}", service.label(), service.protocol.name()), 16)
}

/// iptables: what follows `KUBE-SEP-`.
pub(super) fn iptables_endpoint(service: &ServicePort, endpoint: &Endpoint) -> String {
    hash(&format!("{}{}{}", service.label(), service.protocol.name(), endpoint.address), 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kube_proxy_gives() {
        let mut service = ServicePort::new("svc1", "172.30.0.41".parse().unwrap());
        (service.namespace, service.port_name) = ("ns1".into(), "p80".into());
        let endpoint = Endpoint::ready("10.180.0.1:80".parse().unwrap(), false);
        assert_eq!(nftables_service(&service), "ULMVA6XW-ns1/svc1/tcp/p80");
        assert_eq!(nftables_endpoint(&service, &endpoint), "5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80");
        assert_eq!(iptables_service(&service), "XPGD46QRK7WJZT7O");
        assert_eq!(iptables_endpoint(&service, &endpoint), "SXIVWICOYRO3J4NJ");
    }
}
