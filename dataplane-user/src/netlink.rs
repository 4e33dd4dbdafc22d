//! Links, addresses, routes and neighbours, by name and value instead of by netlink message.
//!
//! The CNI plugin makes pod links with it; the agent makes the node's own address and the routes that keep the
//! cluster's ranges inside. Both remove things only through names or through [`ROUTE_PROTOCOL`], so that clean-up needs
//! no memory of what was made.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use futures::TryStreamExt as _;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        neighbour::NeighbourState,
        route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};
use weir_dataplane_ebpf::Mac;

use crate::cidr::Cidr;

/// Marks the routes that Weir made (`ip route show proto 87`); unassigned in `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 87;

/// A netlink request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}")]
pub struct NetlinkError {
    /// What was asked, with its object.
    pub operation: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Link address, zero where the kind of link has none.
    pub mac: Mac,
    /// Bytes that fit into a frame.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// `veth`, `bridge`, …; nothing for hardware.
    pub kind: Option<String>,
}

/// A connection to the kernel's routing tables of one network namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects to the namespace of the calling thread. Must run inside a tokio runtime.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError { operation: "open a route netlink socket".into(), source })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Connects to another namespace. A socket stays in the namespace that it was made in, so a thread of its own
    /// enters the namespace and ends; the caller's never leaves its own.
    pub fn connect_in(namespace: &File) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| NetlinkError {
                        operation: "enter the network namespace".into(),
                        source: errno.into(),
                    })?;
                    let _context = runtime.enter();
                    Self::connect()
                })
                .join()
                .expect("the connecting thread does not panic")
        })
    }

    /// The link of this name, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        match found {
            Ok(message) => Ok(message.map(Link::from)),
            Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(None),
            Err(error) => Err(refused(format!("read link {name}"), error)),
        }
    }

    /// All links of the namespace.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let links = self.handle.link().get().execute();
        links.map_ok(Link::from).try_collect().await.map_err(|error| refused("list links", error))
    }

    /// Makes a veth pair: `host` here, `pod` in `namespace` from its first moment on. The host's end is up; the other one
    /// cannot be before the kernel has joined the two.
    pub async fn add_veth(
        &self,
        host: (&str, Mac),
        pod: (&str, Mac),
        mtu: Option<u32>,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pod.0)
            .address(pod.1.0.to_vec())
            .setns_by_fd(namespace.as_raw_fd());
        let mut link = LinkVeth::new(host.0, pod.0).address(host.1.0.to_vec()).up();
        if let Some(mtu) = mtu {
            peer = peer.mtu(mtu);
            link = link.mtu(mtu);
        }
        let message = link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|error| refused(format!("make veth pair {} and {}", host.0, pod.0), error))
    }

    /// Makes an empty bridge that is up: a link that carries an address and nothing else.
    pub async fn ensure_bridge(&self, name: &str) -> Result<Link, NetlinkError> {
        if let Some(link) = self.link(name).await? {
            if !link.up {
                self.set_up(&link).await?;
            }
            return Ok(link);
        }
        self.handle
            .link()
            .add(LinkBridge::new(name).up().build())
            .execute()
            .await
            .map_err(|error| refused(format!("make bridge {name}"), error))?;
        self.link(name).await?.ok_or_else(|| NetlinkError {
            operation: format!("read link {name} back"),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Sets a link up.
    pub async fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|error| refused(format!("set link {} up", link.name), error))
    }

    /// Deletes a link; a link that is gone already is success. Says whether it was there.
    pub async fn delete_link(&self, name: &str) -> Result<bool, NetlinkError> {
        let Some(link) = self.link(name).await? else { return Ok(false) };
        match self.handle.link().del(link.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(false),
            Err(error) => Err(refused(format!("delete link {name}"), error)),
        }
    }

    /// Addresses of one link, or of all, loopback's included.
    pub async fn addresses(&self, link: Option<&Link>) -> Result<Vec<(u32, IpAddr, u8)>, NetlinkError> {
        use rtnetlink::packet_route::address::AddressAttribute;
        let mut request = self.handle.address().get();
        if let Some(link) = link {
            request = request.set_link_index_filter(link.index);
        }
        let messages: Vec<_> =
            request.execute().try_collect().await.map_err(|error| refused("list addresses", error))?;
        let address = |attributes: &[AddressAttribute]| {
            // On a point-to-point link `Address` is the peer's; `Local` is always ours.
            let local = attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            local.or_else(|| {
                attributes.iter().find_map(|a| match a {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })
        };
        Ok(messages
            .iter()
            .filter_map(|m| Some((m.header.index, address(&m.attributes)?, m.header.prefix_len)))
            .collect())
    }

    /// Gives a link an address; one that it has already is success.
    pub async fn ensure_address(&self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let added = self.handle.address().add(link.index, address, prefix).replace().execute().await;
        added.map_err(|error| refused(format!("give {} the address {address}/{prefix}", link.name), error))
    }

    /// Takes an address from a link.
    pub async fn remove_address(&self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let message = match address {
            IpAddr::V4(v4) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
                .index(link.index)
                .address(v4, prefix)
                .build(),
            IpAddr::V6(v6) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
                .index(link.index)
                .address(v6, prefix)
                .build(),
        };
        let removed = self.handle.address().del(message).execute().await;
        removed.map_err(|error| refused(format!("take {address}/{prefix} from {}", link.name), error))
    }

    /// A permanent neighbour entry: the link never asks who has `address`.
    pub async fn ensure_neighbour(&self, link: &Link, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(link.index, address).link_layer_address(&mac.0);
        let added = request.state(NeighbourState::Permanent).replace().execute().await;
        added.map_err(|error| refused(format!("make {address} a neighbour on {}", link.name), error))
    }

    /// A route to one address through a link.
    pub async fn ensure_host_route(&self, link: &Link, address: IpAddr) -> Result<(), NetlinkError> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let route = weir_route(Cidr::containing(address, prefix))
            .output_interface(link.index)
            .scope(RouteScope::Link)
            .build();
        self.replace_route(route, || format!("route {address} to {}", link.name)).await
    }

    /// The default route, through a gateway that is on the link whatever the addresses say.
    pub async fn ensure_default_route(&self, link: &Link, gateway: IpAddr) -> Result<(), NetlinkError> {
        let anywhere = Cidr::containing(gateway, 0);
        let route = weir_route(anywhere).output_interface(link.index).gateway(gateway).map_err(|error| {
            NetlinkError { operation: format!("route by {gateway}"), source: io::Error::other(error) }
        })?;
        self.replace_route(route.onlink().build(), || format!("route by {gateway} on {}", link.name)).await
    }

    /// A route that answers "unreachable": packets to the range end here unless a longer prefix knows better.
    pub async fn ensure_unreachable(&self, range: Cidr) -> Result<(), NetlinkError> {
        let route = weir_route(range).kind(RouteType::Unreachable).build();
        self.replace_route(route, || format!("make {range} unreachable")).await
    }

    /// Deletes every route that Weir made in this namespace; says how many there were.
    pub async fn delete_weir_routes(&self) -> Result<usize, NetlinkError> {
        self.delete_routes(|_| true).await
    }

    /// Deletes those among them that [`Netlink::ensure_unreachable`] made.
    pub async fn delete_unreachable_routes(&self) -> Result<usize, NetlinkError> {
        self.delete_routes(|route| route.header.kind == RouteType::Unreachable).await
    }

    async fn delete_routes(&self, which: impl Fn(&RouteMessage) -> bool) -> Result<usize, NetlinkError> {
        let mut deleted = 0;
        for family in families() {
            let routes = self.routes(family).await?;
            let ours = |r: &RouteMessage| r.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
            for route in routes.into_iter().filter(|route| ours(route) && which(route)) {
                match self.handle.route().del(route).execute().await {
                    Ok(()) => deleted += 1,
                    Err(error) if is(&error, nix::errno::Errno::ESRCH) => {}
                    Err(error) => return Err(refused("delete a route", error)),
                }
            }
        }
        Ok(deleted)
    }

    /// Interfaces of the default routes, IPv4 first, without duplicates.
    pub async fn default_route_links(&self) -> Result<Vec<u32>, NetlinkError> {
        use rtnetlink::packet_route::route::RouteAttribute;
        let mut links = Vec::new();
        for family in families() {
            for route in self.routes(family).await? {
                let main = route.header.table == 254 && route.header.destination_prefix_length == 0;
                if !main || route.header.kind != RouteType::Unicast {
                    continue;
                }
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(index) if !links.contains(index) => links.push(*index),
                        _ => {}
                    }
                }
            }
        }
        Ok(links)
    }

    async fn routes(&self, family: RouteMessage) -> Result<Vec<RouteMessage>, NetlinkError> {
        let routes = self.handle.route().get(family).execute();
        routes.try_collect().await.map_err(|error| refused("list routes", error))
    }

    async fn replace_route(
        &self,
        route: RouteMessage,
        operation: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|error| refused(operation(), error))
    }
}

/// What asks for the routes of each family, IPv4 first.
fn families() -> [RouteMessage; 2] {
    [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ]
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: Mac::default(),
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            kind: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.try_into().map(Mac).unwrap_or_default();
                }
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

fn weir_route(range: Cidr) -> RouteMessageBuilder<IpAddr> {
    let mut route = RouteMessageBuilder::<IpAddr>::new();
    // Set by hand: the builder leaves a zero prefix without an address family.
    route.get_mut().header.address_family =
        if range.network().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    if range.prefix() > 0 {
        route = route
            .destination_prefix(range.network(), range.prefix())
            .expect("a range's prefix fits its family");
    }
    route.protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
}

fn is(error: &rtnetlink::Error, errno: nix::errno::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

fn refused(operation: impl Into<String>, error: rtnetlink::Error) -> NetlinkError {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    };
    NetlinkError { operation: operation.into(), source }
}
