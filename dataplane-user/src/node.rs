//! The node itself: its own address in the pod network, forwarding, and routes that keep the cluster's ranges inside.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use weir_dataplane_ebpf::Uplink;

use crate::{
    cidr::Cidr,
    config::{Config, Uplinks},
    kernel::maps::{Maps, TableError},
    netlink::{Link, Netlink, NetlinkError},
    paths::Paths,
    sysctl,
};

/// An empty bridge that carries the node's own address in the pod network.
pub const NODE_LINK: &str = "weir0";
/// Forwarding between pods and the world, by family.
const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Why the node cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kernel refused a link, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A link that the configuration names is not there.
    #[error("there is no link `{name}` to use as an uplink; this machine has {present}")]
    NoSuchUplink {
        /// The name.
        name: String,
        /// The names that would do.
        present: String,
    },
    /// A machine without cgroup v2.
    #[error("no cgroup2 file system is mounted; mount one, or give --cgroup-root or --socket-lb false")]
    NoCgroup,
    /// A setting or file.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.into();
    move |source| NodeError::Io { operation, path, source }
}

/// Resolves the configured uplinks against the links that exist.
pub async fn uplinks(netlink: &Netlink, configured: &Uplinks) -> Result<Vec<Link>, NodeError> {
    let links = netlink.links().await?;
    match configured {
        Uplinks::None => Ok(Vec::new()),
        Uplinks::Auto => {
            let indexes = netlink.default_route_links().await?;
            Ok(links.into_iter().filter(|link| indexes.contains(&link.index) && !link.loopback).collect())
        }
        Uplinks::Named(names) => names
            .iter()
            .map(|name| {
                links.iter().find(|link| link.name == *name).cloned().ok_or_else(|| {
                    let names: Vec<_> =
                        links.iter().filter(|link| !link.loopback).map(|link| &*link.name).collect();
                    NodeError::NoSuchUplink { name: name.clone(), present: names.join(", ") }
                })
            })
            .collect(),
    }
}

/// The directory that socket hooks are attached to.
pub fn cgroup_root(config: &Config) -> Result<Option<PathBuf>, NodeError> {
    if !config.socket_lb {
        return Ok(None);
    }
    if let Some(root) = &config.cgroup_root {
        return Ok(Some(root.clone()));
    }
    let path = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(path).map_err(io_error("read", path))?;
    cgroup2_mount(&mounts).map(Some).ok_or(NodeError::NoCgroup)
}

/// Where a `mountinfo` says that cgroup v2 is mounted (proc(5): the type follows a lone dash).
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
    });
    mounts.next().map(PathBuf::from)
}

/// Addresses of this machine that `NodePort`s are served on.
pub async fn nodeport_addresses(netlink: &Netlink, config: &Config) -> Result<Vec<IpAddr>, NodeError> {
    let all = netlink.addresses(None).await?.into_iter().map(|(_, address, _)| address);
    let usable = all.filter(|address| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    });
    let ranges = &config.nodeport_addresses;
    Ok(usable
        .filter(|address| ranges.is_empty() || ranges.iter().any(|range| range.contains(*address)))
        .collect())
}

/// The node's own addresses on its uplinks, by interface index: the first of each family that others can answer to.
pub async fn uplink_addresses(netlink: &Netlink, uplinks: &[Link]) -> Result<Vec<(u32, Uplink)>, NodeError> {
    let mut all = Vec::with_capacity(uplinks.len());
    for link in uplinks {
        let (mut v4, mut v6) = (None, None);
        for (_, address, _) in netlink.addresses(Some(link)).await? {
            match address {
                IpAddr::V4(address) if !address.is_link_local() => drop(v4.get_or_insert(address)),
                IpAddr::V6(address) if !address.is_unicast_link_local() => drop(v6.get_or_insert(address)),
                _ => {}
            }
        }
        let value = Uplink {
            address_v4: v4.map(Into::into).unwrap_or_default(),
            address_v6: v6.map(Into::into).unwrap_or_default(),
        };
        all.push((link.index, value));
    }
    Ok(all)
}

/// Writes what [`uplink_addresses`] found, and forgets links that are no uplinks any more.
pub fn write_uplinks(maps: &Maps, found: &[(u32, Uplink)]) -> Result<(), TableError> {
    let (indexes, values): (Vec<u32>, Vec<Uplink>) = found.iter().copied().unzip();
    let known = maps.uplinks.entries()?.into_iter().map(|(index, _)| index);
    let gone: Vec<u32> = known.filter(|index| !indexes.contains(index)).collect();
    maps.uplinks.write(&indexes, &values)?;
    maps.uplinks.remove(&gone)
}

/// Switches forwarding on, and remembers what it was for [`restore`].
pub fn enable_forwarding(paths: &Paths) -> Result<(), NodeError> {
    let mut found = BTreeMap::new();
    for name in FORWARDING {
        match sysctl::read(name) {
            Ok(value) if value != "1" => drop(found.insert(name, value)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => {}
            Err(error) => return Err(io_error("read", format!("/proc/sys/{name}"))(error)),
        }
    }
    let path = paths.restore();
    // An earlier agent's note is the truer one: it was written before anything was changed.
    if !found.is_empty() && !path.exists() {
        let text = serde_json::to_vec(&found).expect("plain strings serialize");
        fs::write(&path, text).map_err(io_error("write", &path))?;
    }
    for name in found.keys() {
        sysctl::write(name, "1").map_err(io_error("write", format!("/proc/sys/{name}")))?;
    }
    Ok(())
}

/// Puts back what [`enable_forwarding`] found.
pub fn restore(paths: &Paths) -> Result<(), NodeError> {
    let path = paths.restore();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("open", &path)(error)),
    };
    let found: BTreeMap<String, String> =
        serde_json::from_reader(file).map_err(|error| io_error("read", &path)(error.into()))?;
    for (name, value) in found.iter().filter(|(name, _)| FORWARDING.contains(&name.as_str())) {
        sysctl::write(name, value).map_err(io_error("write", format!("/proc/sys/{name}")))?;
    }
    fs::remove_file(&path).map_err(io_error("remove", &path))
}

/// Packets for the cluster's ranges end here unless a longer prefix, a pod's own, knows better.
pub async fn keep_inside(netlink: &Netlink, config: &Config) -> Result<(), NodeError> {
    for range in config.pod_cidr.iter().chain(&config.service_cidr) {
        netlink.ensure_unreachable(*range).await?;
    }
    Ok(())
}

/// Gives the node its own address in each of its pod ranges, and takes away those of ranges that it had before.
pub async fn ensure_gateway(netlink: &Netlink, pod_cidrs: &[Cidr]) -> Result<Vec<IpAddr>, NodeError> {
    let gateways: Vec<IpAddr> = pod_cidrs.iter().filter_map(Cidr::node_address).collect();
    if gateways.is_empty() {
        return Ok(gateways);
    }
    let link = netlink.ensure_bridge(NODE_LINK).await?;
    let present = netlink.addresses(Some(&link)).await?;
    for gateway in &gateways {
        let full = if gateway.is_ipv4() { 32 } else { 128 };
        netlink.ensure_address(&link, *gateway, full).await?;
    }
    for (_, address, prefix) in present {
        let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if !gateways.contains(&address) && !link_local {
            netlink.remove_address(&link, address, prefix).await?;
        }
    }
    Ok(gateways)
}

/// This machine's name, as the kubelet registers it.
pub fn host_name() -> Result<String, NodeError> {
    let path = Path::new("/proc/sys/kernel/hostname");
    fs::read_to_string(path).map(|name| name.trim().to_lowercase()).map_err(io_error("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_beside_version_1() {
        let mountinfo = "\
            30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n\
            32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(cgroup2_mount(mountinfo), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("32 30 0:28 / /a rw - cgroup cgroup rw\n"), None);
    }
}
