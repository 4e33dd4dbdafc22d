//! The file system that keeps maps, programs and links while no process holds them.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::paths::Paths;

/// A bpffs that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}{remedy}")]
pub struct BpffsError {
    operation: &'static str,
    path: String,
    #[source]
    source: io::Error,
    remedy: &'static str,
}

impl BpffsError {
    fn new(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let remedy = match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "; it needs CAP_SYS_ADMIN, or a bpffs that is mounted there already"
            }
            _ => "",
        };
        Self { operation, path: path.display().to_string(), source, remedy }
    }
}

/// Makes sure that the run directory has a bpffs with the directories of this layout version.
pub fn ensure(paths: &Paths) -> Result<(), BpffsError> {
    let root = paths.bpf();
    fs::create_dir_all(&root).map_err(|error| BpffsError::new("make directory", &root, error))?;
    if !is_mounted(&root)? {
        mount(
            Some("bpf"),
            &root,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|error| BpffsError::new("mount a bpffs at", &root, error))?;
    }
    for directory in [paths.layout(), paths.maps(), paths.programs(), paths.links()] {
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BpffsError::new("make directory", &directory, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes every pin and unmounts the file system; none there is success.
pub fn remove(paths: &Paths) -> Result<(), BpffsError> {
    let root = paths.bpf();
    if !root.exists() {
        return Ok(());
    }
    // Several mounts may lie on each other when two agents raced.
    while is_mounted(&root)? {
        // Pins first: an unmount that a forgotten descriptor delays must not keep programs attached.
        for entry in fs::read_dir(&root).map_err(|error| BpffsError::new("list", &root, error))?.flatten() {
            let path = entry.path();
            // `maps.debug` and `progs.debug` are the kernel's own.
            if !path.is_dir() {
                continue;
            }
            fs::remove_dir_all(&path).map_err(|error| BpffsError::new("remove", &path, error))?;
        }
        match umount2(&root, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // Mounted by somebody else, below a mount point that is not ours to take away.
            Err(Errno::EINVAL) => return Ok(()),
            Err(error) => return Err(BpffsError::new("unmount", &root, error)),
        }
    }
    fs::remove_dir(&root).map_err(|error| BpffsError::new("remove", &root, error))
}

fn is_mounted(path: &Path) -> Result<bool, BpffsError> {
    let status = statfs(path).map_err(|error| BpffsError::new("look at", path, error))?;
    Ok(status.filesystem_type() == BPF_FS_MAGIC)
}
