//! Which pod has which address.
//!
//! One small JSON file per network, replaced whole by a rename while a lock is held: a plugin that is killed at any
//! point leaves either the old books or the new ones. The books lie in the run directory and so end with the boot that
//! the pods end with.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// All addresses are in use.
    #[error(
        "no free address in {range}: all {used} are in use; delete pods, or give the node a larger podCIDR"
    )]
    Exhausted {
        /// The node's pod range.
        range: Cidr,
        /// How many pods hold one.
        used: usize,
    },
    /// The books are damaged.
    #[error("read the address allocations in {path}: {source}; remove the file when no pod runs")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The books cannot be read or written.
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

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allocation {
    /// The sandbox.
    pub container_id: String,
    /// Its link.
    pub interface: String,
    /// `namespace/name` of the pod, as far as the runtime said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The link was asked for without the dataplane's program, and never gets it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
}

/// The books of one network, while their lock is held.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    books: Books,
    _lock: File,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Books {
    allocated: BTreeMap<IpAddr, Allocation>,
    /// Addresses that were given back, oldest first: they are given out again only when no fresh one is left, so
    /// that a client that still talks to the old pod seldom meets a new one.
    released: Vec<IpAddr>,
}

impl Ipam {
    /// Opens the books of `network` below `directory`, waiting for whoever has them open.
    pub fn open(directory: &Path, network: &str) -> Result<Self, IpamError> {
        let at = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| IpamError::Io { operation, path, source }
        };
        fs::create_dir_all(directory).map_err(at("make directory", directory))?;
        let lock_path = directory.join(format!("{network}.lock"));
        let lock = File::create(&lock_path).map_err(at("open", &lock_path))?;
        lock.lock().map_err(at("lock", &lock_path))?;

        let path = directory.join(format!("{network}.json"));
        let books = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| IpamError::Damaged { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Books::default(),
            Err(error) => return Err(at("read", &path)(error)),
        };
        Ok(Self { path, books, _lock: lock })
    }

    /// Addresses and sandboxes of all networks whose books are below `directory`, but for plain ones.
    pub fn all(directory: &Path) -> Result<Vec<(IpAddr, String)>, IpamError> {
        let Ok(files) = fs::read_dir(directory) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for file in files.flatten() {
            let name = file.file_name();
            let Some(network) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            let books = Self::open(directory, network)?;
            let served = books.allocations().filter(|(_, held)| !held.plain);
            all.extend(served.map(|(address, held)| (address, held.container_id.clone())));
        }
        Ok(all)
    }

    /// All allocations, by address.
    pub fn allocations(&self) -> impl Iterator<Item = (IpAddr, &Allocation)> {
        self.books.allocated.iter().map(|(address, allocation)| (*address, allocation))
    }

    /// The address of a sandbox's link.
    pub fn find(&self, container_id: &str, interface: &str) -> Option<IpAddr> {
        self.allocations()
            .find(|(_, a)| a.container_id == container_id && a.interface == interface)
            .map(|(address, _)| address)
    }

    /// Gives out an address of `range`: a fresh one while there is one, then the one that was given back longest ago.
    /// A sandbox that has an address in the range already keeps it.
    pub fn allocate(&mut self, range: Cidr, owner: Allocation) -> Result<IpAddr, IpamError> {
        if let Some(address) = self.find(&owner.container_id, &owner.interface)
            && range.contains(address)
        {
            return Ok(address);
        }
        let stale: HashSet<IpAddr> = self.books.released.iter().copied().collect();
        let fresh = range
            .pod_addresses()
            .find(|address| !stale.contains(address) && !self.books.allocated.contains_key(address));
        let again = || {
            let free = |a: &IpAddr| range.contains(*a) && !self.books.allocated.contains_key(a);
            self.books.released.iter().copied().find(free)
        };
        let used = self.books.allocated.len();
        let address = fresh.or_else(again).ok_or(IpamError::Exhausted { range, used })?;
        self.books.released.retain(|released| *released != address);
        self.books.allocated.insert(address, owner);
        self.write()?;
        Ok(address)
    }

    /// Takes back what a sandbox's link holds. Nothing held is success, so that it can be asked twice.
    pub fn release(&mut self, container_id: &str, interface: &str) -> Result<Option<IpAddr>, IpamError> {
        let Some(address) = self.find(container_id, interface) else { return Ok(None) };
        self.books.allocated.remove(&address);
        self.books.released.push(address);
        self.write()?;
        Ok(Some(address))
    }

    fn write(&self) -> Result<(), IpamError> {
        let next = self.path.with_extension("json.next");
        let text = serde_json::to_vec_pretty(&self.books).expect("plain strings serialize");
        let write = || -> io::Result<()> {
            let mut file = File::create(&next)?;
            file.write_all(&text)?;
            // The run directory may be on a disk: without this a power cut can leave an empty file behind the rename.
            file.sync_data()?;
            fs::rename(&next, &self.path)
        };
        write().map_err(|source| IpamError::Io { operation: "write", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: &str) -> Allocation {
        Allocation { container_id: id.into(), interface: "eth0".into(), pod: None, plain: false }
    }

    fn give(ipam: &mut Ipam, range: &str, id: &str) -> String {
        ipam.allocate(range.parse().unwrap(), owner(id)).unwrap().to_string()
    }

    #[test]
    fn books_outlive_the_process_and_a_half_written_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Ipam::open(dir.path(), "weir").unwrap();
        assert_eq!(give(&mut first, "10.1.0.0/24", "a"), "10.1.0.2");
        drop(first);
        fs::write(dir.path().join("weir.json.next"), "{\"alloc").unwrap();
        let mut second = Ipam::open(dir.path(), "weir").unwrap();
        assert_eq!(give(&mut second, "10.1.0.0/24", "b"), "10.1.0.3");
        assert_eq!(give(&mut second, "10.1.0.0/24", "a"), "10.1.0.2", "asked twice, the same address");
    }

    #[test]
    fn a_released_address_is_reused_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), "weir").unwrap();
        let range = "10.1.0.0/29";
        for (id, address) in [("a", "10.1.0.2"), ("b", "10.1.0.3")] {
            assert_eq!(give(&mut ipam, range, id), address);
        }
        ipam.release("b", "eth0").unwrap();
        ipam.release("a", "eth0").unwrap();
        assert_eq!(ipam.release("a", "eth0").unwrap(), None, "asked twice");
        for (id, address) in
            [("c", "10.1.0.4"), ("d", "10.1.0.5"), ("e", "10.1.0.6"), ("f", "10.1.0.3"), ("g", "10.1.0.2")]
        {
            assert_eq!(give(&mut ipam, range, id), address);
        }
        let error = ipam.allocate(range.parse().unwrap(), owner("h")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no free address in 10.1.0.0/29: all 5 are in use; delete pods, or give the node a larger podCIDR"
        );
    }

    #[test]
    fn damaged_books_are_named_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("weir.json"), "oops").unwrap();
        assert!(matches!(Ipam::open(dir.path(), "weir"), Err(IpamError::Damaged { .. })));
    }
}
