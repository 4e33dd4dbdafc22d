//! Mounts: tmpfs for volumes in memory, bind mounts for single paths of volumes, and how all of them go away.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
};

use super::{Error, Result, volume_path};
use crate::{
    env::expand,
    runtime::{Mount, Propagation},
};

/// The container's view of its volumes: what to mount where. `env` resolves `subPathExpr`.
pub(crate) fn container_mounts(
    dir: &Path,
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes.iter().find(|volume| volume.name == wanted.name).ok_or_else(|| {
            Error::NoVolume { name: wanted.name.clone(), container: container.name.clone() }
        })?;
        let mut host_path = volume_path(dir, volume)?;
        // The runtime binds what exists; a path of the host is made a directory, as container engines do.
        if volume.host_path.is_some() && !host_path.exists() {
            fs::create_dir_all(&host_path).map_err(Error::io("make", &host_path))?;
        }
        if let Some(sub_path) = sub_path(wanted, env) {
            let at =
                dir.join("volume-subpaths").join(&wanted.name).join(&container.name).join(index.to_string());
            bind_sub_path(&host_path, &sub_path, &at).map_err(|source| Error::SubPath {
                volume: wanted.name.clone(),
                sub_path,
                source,
            })?;
            host_path = at;
        }
        // What the kubelet writes, the container must not: its files would vanish with the next update.
        let written_here = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        mounts.push(Mount {
            host_path,
            container_path: PathBuf::from("/").join(&wanted.mount_path),
            read_only: wanted.read_only == Some(true) || written_here,
            propagation: match wanted.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

fn sub_path(wanted: &VolumeMount, env: &[(String, String)]) -> Option<String> {
    let lookup = |name: &str| env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let path = match (&wanted.sub_path_expr, &wanted.sub_path) {
        (Some(expression), _) if !expression.is_empty() => expand(expression, lookup),
        (_, Some(path)) => path.clone(),
        _ => return None,
    };
    Some(path).filter(|path| !path.is_empty())
}

/// Binds `volume/sub_path` at `at`. A process in another container may swap directories for links at any moment, so
/// the kernel resolves the path below the volume once, and what is bound is the descriptor that came out.
fn bind_sub_path(volume: &Path, sub_path: &str, at: &Path) -> io::Result<()> {
    let opened = match open_below(volume, sub_path) {
        Err(nix::Error::ENOENT) => {
            make_below(volume, sub_path)?;
            open_below(volume, sub_path)?
        }
        other => other?,
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    if is_mount_point(at)? {
        // The volume may have switched to a new version since the last start of this container.
        umount2(at, MntFlags::MNT_DETACH)?;
    }
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(at)?;
    } else {
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(at)?;
    }
    mount(Some(&source), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

fn open_below(volume: &Path, sub_path: &str) -> nix::Result<OwnedFd> {
    let root = open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, sub_path, how)
}

/// Makes the directories of `sub_path`, each one below a parent that was resolved safely.
fn make_below(volume: &Path, sub_path: &str) -> io::Result<()> {
    let mut made = PathBuf::new();
    for part in Path::new(sub_path).components() {
        let std::path::Component::Normal(part) = part else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be relative and without \"..\""));
        };
        let parent = if made.as_os_str().is_empty() { ".".into() } else { made.clone() };
        let parent = open_below(volume, &parent.to_string_lossy())?;
        match nix::sys::stat::mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        made.push(part);
    }
    Ok(())
}

/// Mounts a tmpfs at `path`, unless there is one; true if it was mounted now.
pub(super) fn tmpfs(path: &Path, size_bytes: Option<i64>) -> Result<bool> {
    if is_mount_point(path).map_err(Error::io("read the mounts at", path))? {
        return Ok(false);
    }
    let mut options = "mode=0755".to_owned();
    if let Some(size) = size_bytes.filter(|size| *size > 0) {
        options = format!("{options},size={size}");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|errno| Error::io("mount a tmpfs at", path)(errno))?;
    Ok(true)
}

/// Unmounts everything mounted at or below `dir`, the deepest first. Mounts made twice over each other go too.
pub(crate) fn unmount_below(dir: &Path) -> Result<()> {
    let mut mounts = mounts_below(dir).map_err(Error::io("read the mounts below", dir))?;
    mounts.reverse();
    for point in mounts {
        match umount2(&point, MntFlags::MNT_DETACH) {
            // EINVAL: it went away with another one.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(Error::io("unmount", &point)(errno)),
        }
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(mounts_below(&path)?.contains(&path))
}

/// Mount points at or below `dir`, in the order in which they were mounted.
fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse_mount_points(&table).into_iter().filter(|point| point.starts_with(&dir)).collect())
}

/// The fifth field of each line of mountinfo, with its octal escapes undone.
fn parse_mount_points(table: &str) -> Vec<PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal =
            |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok());
        if let (b'\\', Some(byte)) = (first, tail.get(..3).and_then(octal)) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read() {
        let table =
            "36 35 98:0 / /a\\040b rw,noatime master:1 - ext3 /dev/root rw\n37 35 0:1 / /c rw - tmpfs t rw\n";
        assert_eq!(parse_mount_points(table), [PathBuf::from("/a b"), PathBuf::from("/c")]);
    }

    #[test]
    fn a_sub_path_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("in", volume.join("link")).unwrap();
        open_below(&volume, "in").unwrap();
        open_below(&volume, "link").unwrap();
        open_below(&volume, "out/passwd").unwrap_err();
        open_below(&volume, "../x").unwrap_err();
        make_below(&volume, "../x").unwrap_err();
        make_below(&volume, "out/made").unwrap_err();
        make_below(&volume, "new/deep").unwrap();
        assert!(volume.join("new/deep").is_dir());
    }
}
