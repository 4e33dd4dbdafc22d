//! One pod's link: made, looked at, removed.

use std::{fs::File, io, net::IpAddr, os::fd::AsFd as _, path::Path};

use aya::{
    maps::{HashMap, Map, MapData, MapError},
    programs::SchedClassifier,
};
use sha2::{Digest as _, Sha256};
use weir_dataplane_ebpf::{Endpoint, Ip4, Ip6, Mac};

use super::{
    AddResult, Allocation, CNI_VERSION, CniError, Interface, Ip, Ipam, NetworkConfig, Request, Route,
};
use crate::{
    kernel::attach::{Tc, attach_tc, egress_pin, pod_pin},
    netlink::{Link, Netlink},
    paths::Paths,
    programs, sysctl,
};

/// The programs on the host's end of a pod link, with the names of their pins. `tc_pod` is the last to come.
fn pod_programs(host: &str) -> [(&'static str, String); 2] {
    [(programs::TC_EGRESS, egress_pin(host)), (programs::TC_POD, pod_pin(host))]
}

/// What follows from a sandbox's id alone, so that DEL needs no memory.
#[derive(Debug)]
struct Names {
    host: String,
    host_mac: Mac,
    pod_mac: Mac,
}

impl Names {
    fn of(container_id: &str) -> Self {
        let hash = Sha256::digest(container_id.as_bytes());
        // 02: locally administered, not multicast.
        let mac = |at: usize| Mac([2, hash[at], hash[at + 1], hash[at + 2], hash[at + 3], hash[at + 4]]);
        let host = format!("weir{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
        Self { host, host_mac: mac(4), pod_mac: mac(9) }
    }
}

/// Name of the host's end of a sandbox's link.
pub fn host_link_name(container_id: &str) -> String {
    Names::of(container_id).host
}

/// The link of a pod of this node, found in the books of addresses.
#[derive(Debug)]
pub struct PodLink {
    paths: Paths,
    link: Link,
    names: Names,
    /// The pod's address.
    pub address: IpAddr,
}

impl PodLink {
    /// Name of the host's end.
    pub fn name(&self) -> &str {
        &self.link.name
    }

    /// What the programs know of it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { ifindex: self.link.index, pod_mac: self.names.pod_mac, host_mac: self.names.host_mac }
    }

    /// Gives it the pinned programs, unless it has them.
    pub fn attach(&self) -> Result<(), CniError> {
        if self.paths.link(&pod_pin(&self.link.name)).exists() {
            return Ok(());
        }
        attach(&self.paths, &self.link, &self.names, self.address, Tc::of_kernel())
    }
}

/// All links of this node's pods that exist and are the dataplane's.
pub async fn pod_links(paths: &Paths) -> Result<Vec<PodLink>, CniError> {
    let netlink = Netlink::connect()?;
    let mut all = Vec::new();
    for (address, container_id) in Ipam::all(&paths.ipam())? {
        let names = Names::of(&container_id);
        if let Some(link) = netlink.link(&names.host).await? {
            all.push(PodLink { paths: paths.clone(), link, names, address });
        }
    }
    Ok(all)
}

pub(super) async fn add(config: &NetworkConfig, request: &Request, tc: Tc) -> Result<AddResult, CniError> {
    let path = request
        .namespace
        .as_deref()
        .ok_or_else(|| CniError::Environment { variable: "CNI_NETNS", problem: "is not set".into() })?;
    let namespace = open_namespace(path)?;
    let paths = config.paths();
    if config.dataplane {
        // Looked at before anything is made: without it there is nothing to undo.
        let host = host_link_name(&request.container_id);
        for program in pod_programs(&host).map(|(name, _)| paths.program(name)) {
            if !program.exists() {
                return Err(CniError::NotReady(program.display().to_string()));
            }
        }
    }

    let owner = Allocation {
        container_id: request.container_id.clone(),
        interface: request.interface.clone(),
        pod: request.pod.clone(),
        plain: !config.dataplane,
    };
    // The books are closed again at once: links of several pods are made side by side.
    let address = Ipam::open(&paths.ipam(), &config.name)?.allocate(config.pod_cidr, owner)?;
    let names = Names::of(&request.container_id);
    match connect(config, request, &namespace, &names, address, tc).await {
        Ok(()) => Ok(result(config, request, &names, address, path)),
        Err(error) => {
            // The first error is the one to tell; the runtime's DEL retries what cannot be undone now.
            let _ = delete(config, request).await;
            Err(error)
        }
    }
}

async fn connect(
    config: &NetworkConfig,
    request: &Request,
    namespace: &File,
    names: &Names,
    address: IpAddr,
    tc: Tc,
) -> Result<(), CniError> {
    let netlink = Netlink::connect()?;
    let host = (names.host.as_str(), names.host_mac);
    let pod = (request.interface.as_str(), names.pod_mac);
    netlink.add_veth(host, pod, config.mtu, namespace.as_fd()).await?;
    let missing =
        |name: &str| CniError::kernel(format!("read link {name} back"), io::ErrorKind::NotFound.to_string());

    let inside = Netlink::connect_in(namespace)?;
    let pod_link = inside.link(&request.interface).await?.ok_or_else(|| missing(&request.interface))?;
    if let Some(loopback) = inside.link("lo").await? {
        inside.set_up(&loopback).await?;
    }
    inside.set_up(&pod_link).await?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    inside.ensure_address(&pod_link, address, full).await?;
    inside.ensure_neighbour(&pod_link, config.gateway(), names.host_mac).await?;
    inside.ensure_default_route(&pod_link, config.gateway()).await?;

    let host_link = netlink.link(&names.host).await?.ok_or_else(|| missing(&names.host))?;
    host_sysctls(&names.host, address)
        .map_err(|error| CniError::kernel(format!("configure {}", names.host), error))?;
    netlink.ensure_neighbour(&host_link, address, names.pod_mac).await?;
    if config.dataplane {
        // Before the route: no packet of the pod is ever seen by the host untranslated.
        attach(&config.paths(), &host_link, names, address, tc)?;
    }
    netlink.ensure_host_route(&host_link, address).await?;
    Ok(())
}

/// Settings of the host's end that defaults of a distribution may have wrong.
fn host_sysctls(link: &str, address: IpAddr) -> io::Result<()> {
    if address.is_ipv6() {
        return sysctl::write(&format!("net/ipv6/conf/{link}/forwarding"), "1");
    }
    // Replies of backends carry a service's or the node's own address as their source once `tc_pod` has
    // rewritten them. Neither lies behind this link, so the reverse path filter would drop them.
    sysctl::write(&format!("net/ipv4/conf/{link}/rp_filter"), "0")?;
    sysctl::write(&format!("net/ipv4/conf/{link}/accept_local"), "1")?;
    sysctl::write(&format!("net/ipv4/conf/{link}/forwarding"), "1")
}

fn attach(paths: &Paths, host: &Link, names: &Names, address: IpAddr, tc: Tc) -> Result<(), CniError> {
    let lock = paths.attach_lock();
    let lock = File::create(&lock)
        .and_then(|file| file.lock_shared().map(|()| file))
        .map_err(|error| CniError::kernel(format!("lock {}", lock.display()), error))?;

    let endpoint = Endpoint { ifindex: host.index, pod_mac: names.pod_mac, host_mac: names.host_mac };
    put_endpoint(paths, address, endpoint)
        .map_err(|error| CniError::kernel(format!("make {address} an endpoint of this node"), error))?;

    for (name, pin) in pod_programs(&host.name) {
        let attached = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let mut program = SchedClassifier::from_pin(paths.program(name))?;
            attach_tc(tc, &mut program, name, &host.name, &paths.link(&pin))
        };
        attached().map_err(|error| CniError::kernel(format!("attach {name} to {}", host.name), error))?;
    }
    drop(lock);
    Ok(())
}

fn put_endpoint(paths: &Paths, address: IpAddr, endpoint: Endpoint) -> Result<(), MapError> {
    match address {
        IpAddr::V4(address) => {
            let map = Map::from_map_data(MapData::from_pin(paths.map("endpoints_v4"))?)?;
            HashMap::<_, Ip4, Endpoint>::try_from(map)?.insert(Ip4::from(address), endpoint, 0)
        }
        IpAddr::V6(address) => {
            let map = Map::from_map_data(MapData::from_pin(paths.map("endpoints_v6"))?)?;
            HashMap::<_, Ip6, Endpoint>::try_from(map)?.insert(Ip6::from(address), endpoint, 0)
        }
    }
}

fn remove_endpoint(paths: &Paths, address: IpAddr) -> Result<(), MapError> {
    let name = if address.is_ipv4() { "endpoints_v4" } else { "endpoints_v6" };
    if !paths.map(name).exists() {
        return Ok(());
    }
    let map = Map::from_map_data(MapData::from_pin(paths.map(name))?)?;
    let removed = match address {
        IpAddr::V4(address) => HashMap::<_, Ip4, Endpoint>::try_from(map)?.remove(&Ip4::from(address)),
        IpAddr::V6(address) => HashMap::<_, Ip6, Endpoint>::try_from(map)?.remove(&Ip6::from(address)),
    };
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

pub(super) async fn delete(config: &NetworkConfig, request: &Request) -> Result<(), CniError> {
    let paths = config.paths();
    let names = Names::of(&request.container_id);
    let mut ipam = Ipam::open(&paths.ipam(), &config.name)?;
    if let Some(address) = ipam.find(&request.container_id, &request.interface) {
        remove_endpoint(&paths, address)
            .map_err(|error| CniError::kernel(format!("forget the endpoint {address}"), error))?;
    }
    for pin in pod_programs(&names.host).map(|(_, pin)| paths.link(&pin)) {
        match std::fs::remove_file(&pin) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(CniError::kernel(format!("remove {}", pin.display()), error));
            }
            _ => {}
        }
    }
    Netlink::connect()?.delete_link(&names.host).await?;
    // Last: an address is given out again only when nothing leads to the old pod.
    ipam.release(&request.container_id, &request.interface)?;
    Ok(())
}

pub(super) async fn check(config: &NetworkConfig, request: &Request) -> Result<(), CniError> {
    let paths = config.paths();
    let names = Names::of(&request.container_id);
    let wrong = |problem: String| Err(CniError::Check(problem));
    let held = Ipam::open(&paths.ipam(), &config.name)?.find(&request.container_id, &request.interface);
    let Some(address) = held else {
        return wrong(format!("{} holds no address", request.container_id));
    };
    let netlink = Netlink::connect()?;
    match netlink.link(&names.host).await? {
        Some(link) if link.up => {}
        Some(_) => return wrong(format!("link {} is down", names.host)),
        None => return wrong(format!("link {} is gone", names.host)),
    }
    if config.dataplane {
        for (name, pin) in pod_programs(&names.host) {
            if !paths.link(&pin).exists() {
                return wrong(format!("{name} is not attached to {}", names.host));
            }
        }
    }
    if let Some(path) = &request.namespace {
        let inside = Netlink::connect_in(&open_namespace(path)?)?;
        let Some(link) = inside.link(&request.interface).await? else {
            return wrong(format!("link {} is gone from the pod", request.interface));
        };
        let addresses = inside.addresses(Some(&link)).await?;
        if !addresses.iter().any(|(_, a, _)| *a == address) {
            return wrong(format!("{} has lost the address {address}", request.interface));
        }
    }
    Ok(())
}

fn open_namespace(path: &Path) -> Result<File, CniError> {
    File::open(path).map_err(|source| CniError::Namespace { path: path.display().to_string(), source })
}

fn result(
    config: &NetworkConfig,
    request: &Request,
    names: &Names,
    address: IpAddr,
    sandbox: &Path,
) -> AddResult {
    let mac = |mac: Mac| mac.0.map(|byte| format!("{byte:02x}")).join(":");
    let gateway = config.gateway().to_string();
    let (full, anywhere) = if address.is_ipv4() { (32, "0.0.0.0/0") } else { (128, "::/0") };
    AddResult {
        cni_version: CNI_VERSION,
        interfaces: vec![
            Interface { name: names.host.clone(), mac: mac(names.host_mac), sandbox: String::new() },
            Interface {
                name: request.interface.clone(),
                mac: mac(names.pod_mac),
                sandbox: sandbox.display().to_string(),
            },
        ],
        ips: vec![Ip { address: format!("{address}/{full}"), gateway: gateway.clone(), interface: 1 }],
        routes: vec![Route { dst: anywhere.into(), gw: gateway }],
        dns: serde_json::Map::new(),
    }
}
