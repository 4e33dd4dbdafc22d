//! Who asks, and when: what a policy sees besides the request's head.

use std::net::IpAddr;

use tokio::time::Instant;

use super::RequestHead;
use crate::clock::in_us;
use crate::config::Network;
use crate::upstream::random;

/// The client behind a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// The nearest address that no trusted proxy vouches for.
    pub(crate) address: IpAddr,
    /// Whether the client speaks TLS, to us or to a trusted proxy in front of us.
    pub(crate) https: bool,
    /// In microseconds, as [`in_us`] has it.
    pub(crate) now_us: u64,
    /// A fresh random number, for every choice that is left to chance.
    pub(crate) dice: u64,
}

impl Client {
    /// Looks at a request that came from `peer` at `now`.
    pub(crate) fn of(
        head: &impl RequestHead,
        peer: IpAddr,
        tls: bool,
        trusted: &[Network],
        now: Instant,
    ) -> Self {
        let (mut address, mut https) = (peer, tls);
        if is_in(trusted, peer) {
            // The order of fields is the order of hops, so the whole chain is read from its end.
            let chain: Vec<&[u8]> = head.fields("x-forwarded-for").collect();
            let hops = chain.iter().rev().flat_map(|field| field.rsplit(|&byte| byte == b','));
            let hops = hops.filter_map(|hop| std::str::from_utf8(hop).ok()?.trim().parse::<IpAddr>().ok());
            address = behind(peer, hops, trusted);
            if let Some(proto) = head.field("x-forwarded-proto") {
                https = proto.eq_ignore_ascii_case(b"https");
            }
        }
        Self { address: address.to_canonical(), https, now_us: in_us(now), dice: random() }
    }
}

/// The first hop, from the nearest outwards, that no trusted proxy vouches for.
pub(crate) fn behind(peer: IpAddr, hops: impl Iterator<Item = IpAddr>, trusted: &[Network]) -> IpAddr {
    let mut client = peer;
    for hop in hops {
        client = hop;
        if !is_in(trusted, hop) {
            break;
        }
    }
    client
}

/// Whether one of the networks holds the address. Linear: lists are bounded where they are read.
pub(crate) fn is_in(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    #[test]
    fn only_trusted_peers_speak_for_others() {
        let trusted: [Network; 1] = ["10.0.0.0/8".parse().unwrap()];
        let chain = [
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
            ("x-forwarded-for", "10.0.0.7"),
            ("x-forwarded-proto", "https"),
        ];
        for (peer, tls, fields, address, https) in [
            ("10.0.0.5", false, &chain[..], "2.2.2.2", true),
            ("192.0.2.1", false, &chain[..], "192.0.2.1", false),
            ("192.0.2.1", true, &[][..], "192.0.2.1", true),
            ("10.0.0.5", true, &[("x-forwarded-proto", "http")], "10.0.0.5", false),
            ("10.0.0.5", false, &[("x-forwarded-for", "10.0.0.9, x")], "10.0.0.9", false),
        ] {
            let client =
                Client::of(&get("http://a/", fields), peer.parse().unwrap(), tls, &trusted, Instant::now());
            assert_eq!((client.address.to_string().as_str(), client.https), (address, https), "{peer}");
        }
    }
}
