//! How the API server is configured: flags, each with its default.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::allocate::{PortRange, ServiceRange};

/// The configuration of the API server.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the store, the certificates and the kubeconfigs are
    #[arg(long, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,

    /// The address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,

    /// The port to listen on
    #[arg(long, default_value_t = 6443)]
    pub port: u16,

    /// The addresses by which others reach this machine: they are in its certificates, and the first is the endpoint of
    /// the `kubernetes` service. Without any, the address to listen on is advertised, or one of this machine's if that is
    /// all of them
    #[arg(long, value_delimiter = ',')]
    pub advertise_address: Vec<IpAddr>,

    /// The name of this node, for the certificates
    #[arg(long, default_value_t = hostname())]
    pub node_name: String,

    /// The addresses of services
    #[arg(long, default_value = "10.96.0.0/12")]
    pub service_cidr: ServiceRange,

    /// The ports that nodes open for services
    #[arg(long, default_value = "30000-32767")]
    pub node_port_range: PortRange,

    /// A file with static bearer tokens: token,user,uid,"group,group" a line
    #[arg(long)]
    pub token_file: Option<PathBuf>,

    /// Requests that are served at the same time, watches and logs not counted; more get 429
    #[arg(long, default_value_t = 400)]
    pub max_in_flight: usize,

    /// Connections that are open at the same time; more wait to be accepted
    #[arg(long, default_value_t = 4096)]
    pub max_connections: usize,
}

impl Config {
    /// The address by which clients on this machine reach the server.
    pub fn local_address(&self) -> IpAddr {
        match self.bind_address {
            IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            address => address,
        }
    }

    /// What the certificates are for: the same that `weir up` ensures before it starts anything.
    pub fn pki(&self) -> crate::pki::PkiConfig {
        crate::pki::PkiConfig {
            data_dir: self.data_dir.clone(),
            node_name: self.node_name.clone(),
            addresses: if self.advertise_address.is_empty() {
                self.endpoint().into_iter().collect()
            } else {
                self.advertise_address.clone()
            },
            service_address: self.service_cidr.first(),
            server_host: self.local_address(),
            server_port: self.port,
        }
    }

    /// The address by which pods reach the server; `None` if only this machine can. A loopback address is never it: in a
    /// pod it leads to the pod.
    pub(crate) fn endpoint(&self) -> Option<IpAddr> {
        match (self.advertise_address.first(), self.bind_address) {
            (Some(address), _) => Some(*address),
            (None, address) if address.is_unspecified() => own_address(),
            (None, address) => Some(address),
        }
        .filter(|address| !address.is_loopback())
    }
}

/// The first address of this machine that others can reach, IPv4 before IPv6.
fn own_address() -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let is_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    };
    addresses.filter(|address| !is_local(address)).min_by_key(IpAddr::is_ipv6)
}

/// This machine's name, as kubelets use it: in lower case.
fn hostname() -> String {
    let name = nix::sys::utsname::uname().map(|system| system.nodename().to_string_lossy().to_lowercase());
    name.unwrap_or_else(|_| "localhost".to_owned())
}
