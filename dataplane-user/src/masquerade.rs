//! Which addresses pods reach with their own, and which by the node's: what the programs are told of masquerade.
//!
//! As ip-masq-agent has it: what is in the cluster, or leaves no link, keeps its source; everything else gets the address
//! of the uplink that it leaves by. The programs ask for the first packet of a flow alone. They are told that they
//! masquerade after they know what not to, and an agent that starts leaves both as the one before it has, until it knows
//! the cluster's nodes itself: no packet of a flow that runs leaves with another address meanwhile.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use weir_dataplane_ebpf::NodeConfig;

use crate::{
    cidr::Cidr,
    config::{Config, Masquerade},
    kernel::maps::{Maps, TableError},
};

/// Never masqueraded, whatever is configured: this network, loopback, link-local, multicast, reserved and broadcast
/// (RFC 6890).
const NEVER_V4: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// The same: unspecified and loopback, link-local, multicast.
const NEVER_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::UNSPECIFIED, 127),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// What the programs are told by the node's configuration.
pub fn flags(masquerade: Masquerade) -> u32 {
    match masquerade {
        Masquerade::None => 0,
        Masquerade::Ipv4 => NodeConfig::FLAG_MASQUERADE_V4,
        Masquerade::Both => NodeConfig::FLAG_MASQUERADE_V4 | NodeConfig::FLAG_MASQUERADE_V6,
    }
}

/// What pods reach with their own addresses: the ranges that the configuration names or, when it names none, those of
/// pods and services and the nodes' own. Nothing while nothing is masqueraded.
pub fn inside(
    config: &Config,
    nodes: impl IntoIterator<Item = IpAddr>,
    pod_ranges: impl IntoIterator<Item = Cidr>,
) -> BTreeSet<Cidr> {
    if config.masquerade == Masquerade::None {
        return BTreeSet::new();
    }
    let never_v4 = NEVER_V4.map(|(address, prefix)| Cidr::containing(address.into(), prefix));
    let never_v6 = NEVER_V6.map(|(address, prefix)| Cidr::containing(address.into(), prefix));
    let mut all: Vec<Cidr> = never_v4.into_iter().chain(never_v6).collect();
    if config.non_masquerade_cidr.is_empty() {
        all.extend(config.pod_cidr.iter().chain(&config.service_cidr));
        all.extend(pod_ranges);
        all.extend(nodes.into_iter().map(Cidr::of_host));
    } else {
        all.extend(&config.non_masquerade_cidr);
    }
    outermost(all)
}

/// Without the ranges that others hold: a cluster's own range holds those of its nodes.
fn outermost(mut all: Vec<Cidr>) -> BTreeSet<Cidr> {
    all.sort_by_key(Cidr::prefix);
    let mut kept = BTreeSet::new();
    for range in all {
        let holders = (0..range.prefix()).map(|prefix| Cidr::containing(range.network(), prefix));
        if !holders.into_iter().any(|holder| kept.contains(&holder)) {
            kept.insert(range);
        }
    }
    kept
}

/// Tells the programs of a masquerade that `inside` is kept out of. Returns how many ranges there are in the maps, by
/// family.
pub fn write(maps: &Maps, masquerade: Masquerade, inside: &BTreeSet<Cidr>) -> Result<[u32; 2], TableError> {
    let written = [maps.v4.write_inside(inside)?, maps.v6.write_inside(inside)?];
    let mut config = maps.node_config.at(0)?;
    config.flags = config.flags & !flags(Masquerade::Both) | flags(masquerade);
    maps.node_config.write(&[0], &[config])?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn of(config: &Config) -> BTreeSet<Cidr> {
        let nodes = ["192.0.2.1", "10.244.0.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        inside(config, nodes, [cidr("10.244.3.0/24"), cidr("10.9.3.0/24"), cidr("fd00:244::/64")])
    }

    #[test]
    fn the_clusters_own_is_left_out_unless_ranges_are_named() {
        let config = Config { masquerade: Masquerade::Ipv4, ..Config::default() };
        let all = of(&config);
        for text in [
            "10.244.0.0/16",
            "10.96.0.0/12",
            "192.0.2.1/32",
            "2001:db8::1/128",
            "10.9.3.0/24",
            "fd00:244::/64",
            "169.254.0.0/16",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "fe80::/10",
        ] {
            assert!(all.contains(&cidr(text)), "{text}: {all:?}");
        }
        for text in ["10.244.3.0/24", "10.244.0.1/32"] {
            assert!(!all.contains(&cidr(text)), "{text} is in another: {all:?}");
        }
        let named = of(&Config { non_masquerade_cidr: vec![cidr("10.0.0.0/8")], ..config });
        assert!(named.contains(&cidr("10.0.0.0/8")) && named.contains(&cidr("127.0.0.0/8")));
        assert!(!named.contains(&cidr("192.0.2.1/32")), "the names are all there is: {named:?}");
    }

    #[test]
    fn without_masquerade_there_is_nothing_to_know() {
        assert_eq!(of(&Config::default()), BTreeSet::new());
        assert_eq!(flags(Masquerade::None), 0);
    }

    #[test]
    fn a_range_of_everything_holds_everything_of_its_family() {
        let config = Config {
            masquerade: Masquerade::Both,
            non_masquerade_cidr: vec![cidr("0.0.0.0/0")],
            ..Config::default()
        };
        let v4: Vec<Cidr> = of(&config).into_iter().filter(|range| range.network().is_ipv4()).collect();
        assert_eq!(v4, [cidr("0.0.0.0/0")]);
    }
}
