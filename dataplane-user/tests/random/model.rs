//! The services that random frames meet: every kind of frontend in both families, as plain values and in the maps.

use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::Key;
use weir_dataplane::cidr::Cidr;
use weir_dataplane_ebpf::{
    Backend, Be16, Frontend, FrontendKey, Ip4, Ip6, Protocol, Scope, SourceRange, SourceRangeKey, Uplink,
};

use crate::packets::{
    Dataplane, Family,
    frame::{SCTP, TCP, UDP},
};

/// What a frontend is there for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Backends on this node.
    Here,
    /// On other nodes.
    There,
    /// One here, one there.
    Mixed,
    /// Mixed, with session affinity.
    Affinity,
    /// Mixed, and only a range of clients may ask.
    Restricted,
    /// No endpoint.
    Empty,
    /// Endpoints, but none that a traffic policy admits.
    Elsewhere,
}

const KINDS: [Kind; 7] =
    [Kind::Here, Kind::There, Kind::Mixed, Kind::Affinity, Kind::Restricted, Kind::Empty, Kind::Elsewhere];

/// A frontend as the judge knows it.
pub(crate) struct Service {
    pub(crate) protocol: u8,
    pub(crate) address: SocketAddr,
    pub(crate) backends: Vec<SocketAddr>,
}

/// All that is in the maps.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) services: Vec<Service>,
    /// Pods with a link on this node.
    pub(crate) pods: Vec<IpAddr>,
    /// Backends behind a route with a known neighbour.
    pub(crate) near: Vec<IpAddr>,
    /// Addresses that the node puts into packets as its own.
    pub(crate) own: Vec<IpAddr>,
    pub(crate) clients: Vec<SocketAddr>,
}

/// What differs between the families.
struct Texts {
    frontends: [&'static str; KINDS.len()],
    here: [&'static str; 2],
    there: [&'static str; 2],
    range: &'static str,
    uplink: &'static str,
    gateway: &'static str,
    clients: [&'static str; 5],
}

const V4: Texts = Texts {
    frontends: [
        "192.168.0.1:30080",
        "192.168.0.1:30081",
        "10.96.0.10:80",
        "10.96.0.11:53",
        "192.0.2.1:443",
        "10.96.0.12:80",
        "10.96.0.13:80",
    ],
    here: ["10.244.0.5:80", "10.244.0.6:8080"],
    there: ["10.244.7.5:80", "10.244.7.6:8080"],
    range: "203.0.113.0/24",
    uplink: "192.168.0.1",
    gateway: crate::packets::GATEWAY_V4,
    clients: [
        "192.168.0.9:40000",
        "192.168.0.9:40001",
        "203.0.113.7:40000",
        "10.244.0.5:40000",
        "10.244.0.8:53124",
    ],
};

const V6: Texts = Texts {
    frontends: [
        "[fd00::1]:30080",
        "[fd00::1]:30081",
        "[fd00:96::10]:80",
        "[fd00:96::11]:53",
        "[2001:db8::1]:443",
        "[fd00:96::12]:80",
        "[fd00:96::13]:80",
    ],
    here: ["[fd00:244::5]:80", "[fd00:244::6]:8080"],
    there: ["[fd00:244:7::5]:80", "[fd00:244:7::6]:8080"],
    range: "2001:db8:113::/48",
    uplink: "fd00::1",
    gateway: crate::packets::GATEWAY_V6,
    clients: [
        "[fd00::9]:40000",
        "[fd00::9]:40001",
        "[2001:db8:113::7]:40000",
        "[fd00:244::5]:40000",
        "[fd00:244::8]:53124",
    ],
};

impl Model {
    /// Fills the maps.
    pub(crate) fn new(dataplane: &mut Dataplane) -> Self {
        let mut model = Self::default();
        // Test runs happen on the loopback link, index 1.
        let uplink = Uplink {
            address_v4: Ip4::parse(V4.uplink.parse().expect("an address")),
            address_v6: Ip6::parse(V6.uplink.parse().expect("an address")),
        };
        dataplane.hash("uplinks").insert(1_u32, uplink, 0).expect("room");
        model.add::<Ip4>(dataplane, &V4, "source_ranges_v4");
        model.add::<Ip6>(dataplane, &V6, "source_ranges_v6");
        model
    }

    fn add<A: Family>(&mut self, dataplane: &mut Dataplane, texts: &Texts, ranges: &str) {
        let socket = |text: &str| text.parse::<SocketAddr>().expect("ADDRESS:PORT");
        for protocol in [TCP, UDP, SCTP] {
            for scope in [Scope::EXTERNAL, Scope::INTERNAL] {
                for (kind, text) in KINDS.into_iter().zip(texts.frontends) {
                    let backends: &[&str] = match kind {
                        Kind::Here => &texts.here,
                        Kind::There => &texts.there,
                        Kind::Empty | Kind::Elsewhere => &[],
                        _ => &[texts.here[0], texts.there[1]],
                    };
                    let service =
                        dataplane.service::<A>(scope, protocol, text, backends, kind != Kind::There);
                    if backends.len() == 2 && kind != Kind::Here && kind != Kind::There {
                        let flags = Backend::<A>::FLAG_ACTIVE;
                        dataplane.set_backend::<A>(service.first_backend + 1, backends[1], flags);
                    }
                    let mut value = service.value;
                    match kind {
                        Kind::Affinity => value.affinity_timeout_s = 10_800,
                        Kind::Elsewhere => value.flags = Frontend::FLAG_SERVED_ELSEWHERE,
                        Kind::Restricted => {
                            value.flags = Frontend::FLAG_SOURCE_RANGES;
                            let range: Cidr = texts.range.parse().expect("a range");
                            let network = A::parse(range.network());
                            let key = SourceRangeKey::new(value.service, network, range.prefix());
                            let key = Key::new(key.prefix_len, key.range);
                            let mut trie = dataplane.trie::<SourceRange<A>, u32>(ranges);
                            trie.insert(&key, 0, 0).expect("room");
                        }
                        _ => {}
                    }
                    let address = socket(text);
                    let key = FrontendKey {
                        address: A::parse(address.ip()),
                        port: Be16::new(address.port()),
                        protocol: Protocol(protocol),
                        scope,
                    };
                    A::insert_frontend(dataplane, key, value);
                    if scope == Scope::EXTERNAL {
                        let backends = backends.iter().map(|text| socket(text)).collect();
                        self.services.push(Service { protocol, address, backends });
                    }
                }
            }
        }
        let pods = [texts.here[0], texts.clients[4]].map(|text| socket(text).ip());
        for pod in pods {
            dataplane.endpoint::<A>(&pod.to_string());
        }
        self.pods.extend(pods);
        self.near.push(socket(texts.there[0]).ip());
        self.near.push(socket(texts.clients[0]).ip());
        self.own
            .extend([texts.uplink, texts.gateway].map(|text| text.parse::<IpAddr>().expect("an address")));
        self.clients.extend(texts.clients.map(socket));
    }
}
