//! Every network namespace of this machine that a process or a pod may have sockets in.
//!
//! There is no list of them in the kernel. Those of running processes are below `/proc`; those that a runtime keeps by a
//! file are in its directory, which is all that an agent sees which shares no process ids with its node.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tracing::warn;

/// Namespaces that one pass looks into: several times as many as pods on a node.
const MOST: usize = 2_048;
/// Where runtimes and `ip netns` keep theirs.
const KEPT: &str = "/run/netns";

/// Each namespace once. `own` is Weir's own directory of pod namespaces.
pub(super) fn all(own: &Path) -> Vec<File> {
    let kept = [own, Path::new(KEPT)].into_iter().flat_map(entries);
    let of_processes = entries(Path::new("/proc")).filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    });
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for path in of_processes.map(|process| process.join("ns/net")).chain(kept) {
        // A process may be gone by now.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        if found.len() == MOST {
            warn!(
                bound = MOST,
                "more network namespaces than are looked into for sockets of removed backends"
            );
            break;
        }
        found.extend(File::open(&path));
    }
    found
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
