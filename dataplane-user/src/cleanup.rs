//! Gives the machine back: everything that the dataplane made is found by name, mark or note, and removed; or gives only
//! Services back, to whoever serves them next, and leaves pods their links.
//!
//! Works from the state on disk and in the kernel alone, after a crash as well as after an orderly end, and twice.

use std::{fs, io, path::Path};

use crate::{
    cni::{self, Ipam},
    kernel::{
        attach::{self, AttachError},
        bpffs, clsact, migrate,
    },
    netlink::{Netlink, NetlinkError},
    node,
    paths::Paths,
};

/// Something that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A program.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The pins.
    #[error(transparent)]
    Bpffs(#[from] bpffs::BpffsError),
    /// A setting.
    #[error(transparent)]
    Node(#[from] node::NodeError),
    /// A file.
    #[error("remove {path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why it stays.
        #[source]
        source: io::Error,
    },
}

/// Detaches all programs, removes all pins, pod links, routes and the node's address, and puts settings back. Goes on
/// after a failure and tells the first one.
pub async fn cleanup(run_dir: &Path) -> Result<(), CleanupError> {
    let paths = Paths::new(run_dir);
    let mut first = Ok(());
    let mut note = |result: Result<(), CleanupError>| {
        if let Err(error) = result {
            tracing::warn!(%error, "clean-up goes on without this");
            if first.is_ok() {
                first = Err(error);
            }
        }
    };
    // Programs first: what they translate must not outlive the links that it leads to.
    note(detach_programs(&paths).await);
    note(bpffs::remove(&paths).map_err(CleanupError::from));
    note(remove_links(&paths).await);
    note(node::restore(&paths).map_err(CleanupError::from));
    note(remove_dir(&paths.ipam()));
    for file in [paths.names(), paths.names().with_extension("next"), paths.reasons(), paths.attach_lock()] {
        note(remove_file(&file));
    }
    first
}

/// Where links are pinned, in the order in which they go: sockets first, while packets are still served; then XDP, while
/// TC still serves what it passes; what undoes translations of others last.
const ORDER: [&str; 6] = ["cgroup_", "xdp_uplink_", "tc_uplink_", "pod_", "tc_egress_", "podegress_"];

/// Takes all programs, pins and maps away, and what kept service addresses from leaving the node. Whatever programs
/// Services on this node by then serves every new connection; those that Weir served end. Pods keep their links,
/// addresses and routes, and the next agent serves them again. No agent may run.
pub async fn detach(run_dir: &Path) -> Result<(), CleanupError> {
    let paths = Paths::new(run_dir);
    // Before any program goes: a packet that none serves must find its way.
    Netlink::connect()?.delete_unreachable_routes().await?;
    detach_programs(&paths).await?;
    bpffs::remove(&paths)?;
    for file in [paths.names(), paths.names().with_extension("next"), paths.reasons()] {
        remove_file(&file)?;
    }
    Ok(())
}

/// Detaches what is pinned, by agents of whatever version, and filters whose pins are lost: they are the interfaces' own.
/// Goes on after a failure and tells the first one.
async fn detach_programs(paths: &Paths) -> Result<(), CleanupError> {
    let mut first = Ok(());
    for paths in migrate::all(paths) {
        let mut pins = attach::list(&paths.links())?;
        pins.sort_by_key(|pin| ORDER.iter().position(|prefix| pin.starts_with(prefix)));
        for pin in pins {
            first = first.and(attach::detach(&paths.link(&pin)).map_err(CleanupError::from));
        }
    }
    for link in Netlink::connect()?.links().await? {
        let operation = || format!("remove filters from {}", link.name);
        let removed = clsact::remove_all(link.index);
        first = first.and(removed.map_err(|source| NetlinkError { operation: operation(), source }.into()));
    }
    first
}

async fn remove_links(paths: &Paths) -> Result<(), CleanupError> {
    let netlink = Netlink::connect()?;
    for link in pod_links(paths) {
        netlink.delete_link(&link).await?;
    }
    netlink.delete_link(node::NODE_LINK).await?;
    netlink.delete_weir_routes().await?;
    Ok(())
}

/// Host ends of all pod links, from the books of every network. Other links whose names only look alike stay.
fn pod_links(paths: &Paths) -> Vec<String> {
    let Ok(files) = fs::read_dir(paths.ipam()) else { return Vec::new() };
    let networks = files.flatten().filter_map(|file| {
        file.file_name().to_str().and_then(|name| name.strip_suffix(".json")).map(ToOwned::to_owned)
    });
    let books = networks.filter_map(|network| match Ipam::open(&paths.ipam(), &network) {
        Ok(books) => Some(books),
        Err(error) => {
            tracing::warn!(%error, "pod links of this network stay");
            None
        }
    });
    books
        .flat_map(|books| {
            books.allocations().map(|(_, a)| cni::host_link_name(&a.container_id)).collect::<Vec<_>>()
        })
        .collect()
}

fn remove_file(path: &Path) -> Result<(), CleanupError> {
    gone(path, fs::remove_file(path))
}

fn remove_dir(path: &Path) -> Result<(), CleanupError> {
    gone(path, fs::remove_dir_all(path))
}

fn gone(path: &Path, result: io::Result<()>) -> Result<(), CleanupError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CleanupError::Io { path: path.display().to_string(), source })
        }
        _ => Ok(()),
    }
}
