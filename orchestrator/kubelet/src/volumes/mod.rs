//! Volumes of pods: made before the first container, kept current, and taken away without a trace.
//!
//! Layout below `--data-dir`, as upstream's: `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`, single paths of volumes
//! (`subPath`) bind-mounted at `pods/<uid>/volume-subpaths/<volume>/<container>/<n>`. Secrets and tokens live on tmpfs,
//! so that they never reach a disk. What is mounted is read from the kernel when it is taken away, not remembered.
//!
//! All functions here block and are called on the blocking pool by [`crate::pods`].

pub(crate) mod atomic;
mod mount;
pub(crate) mod payload;

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};

pub(crate) use self::{
    mount::{container_mounts, unmount_below},
    payload::Tokens,
};
use crate::{
    env::{EnvContext, EnvError},
    error::{Refused, refused},
    quantity,
};

/// The result of a volume operation.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a volume cannot be made: the text of a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Which volume it is about, in upstream's words.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    SetUp {
        /// The volume.
        volume: String,
        /// What is wrong with it.
        #[source]
        source: Box<Self>,
    },
    /// An object that is not optional does not exist.
    #[error("{kind} \"{name}\" not found")]
    MissingObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object lacks a key that the volume lists.
    #[error("{kind} \"{name}\" references non-existent key: {key}")]
    MissingKey {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A downward API item.
    #[error(transparent)]
    Downward(#[from] EnvError),
    /// A downward API item names a container that is not in the pod.
    #[error("downwardAPI refers to container \"{name}\", which is not in the pod")]
    NoContainer {
        /// The container.
        name: String,
    },
    /// The apiserver gave no token.
    #[error("volume \"{volume}\" has no service account token for {path}")]
    Token {
        /// The volume.
        volume: String,
        /// The file.
        path: String,
    },
    /// `hostPath` is not what `type` says.
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPath {
        /// The path on the node.
        path: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A kind of volume that this kubelet does not have.
    #[error(
        "volume \"{volume}\": {kind} is not supported; use emptyDir, hostPath, configMap, secret, downwardAPI or projected"
    )]
    Unsupported {
        /// The volume.
        volume: String,
        /// Its kind.
        kind: &'static str,
    },
    /// A mount of the container names a volume that the pod does not have.
    #[error("volumeMount \"{name}\" of container \"{container}\" names no volume of the pod")]
    NoVolume {
        /// The volume's name.
        name: String,
        /// The container.
        container: String,
    },
    /// `subPath` leads out of the volume, or is not there and cannot be made.
    #[error("subPath {sub_path:?} of volume \"{volume}\": {source}")]
    SubPath {
        /// The volume.
        volume: String,
        /// The path in it.
        sub_path: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] Refused),
}

impl Error {
    /// [`refused`], as this error.
    fn io<S: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(S) -> Self {
        refused(operation, path)
    }
}

/// Makes all volumes of the pod in `dir` (`pods/<uid>`), or brings those that follow objects up to date. Idempotent.
pub(crate) fn set_up(dir: &Path, context: &EnvContext<'_>, tokens: &Tokens) -> Result<()> {
    for volume in context.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        set_up_one(dir, context, tokens, volume)
            .map_err(|error| Error::SetUp { volume: volume.name.clone(), source: Box::new(error) })?;
    }
    Ok(())
}

fn set_up_one(dir: &Path, context: &EnvContext<'_>, tokens: &Tokens, volume: &Volume) -> Result<()> {
    let group = fs_group(context.pod);
    if let Some(files) = payload::files(context, tokens, volume)? {
        let path = volume_path(dir, volume)?;
        make_dir(&path, 0o755)?;
        if is_sensitive(volume) {
            mount::tmpfs(&path, None)?;
        }
        // Never emptied: a volume without files is an empty directory with a `..data` link.
        atomic::write(&path, &files, group).map(drop).map_err(Error::io("write", &path))
    } else if let Some(empty) = &volume.empty_dir {
        make_empty_dir(&volume_path(dir, volume)?, empty, group)
    } else if let Some(host) = &volume.host_path {
        check_host_path(host)
    } else {
        Err(Error::Unsupported { volume: volume.name.clone(), kind: unsupported(volume) })
    }
}

/// Unmounts everything below `dir` and removes it. Idempotent.
pub(crate) fn tear_down(dir: &Path) -> Result<()> {
    unmount_below(dir)?;
    for part in ["volumes", "volume-subpaths"] {
        remove_dir(&dir.join(part))?;
    }
    Ok(())
}

/// Removes a directory with all it holds; it may be gone already.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Where the volume is on the node.
pub(crate) fn volume_path(dir: &Path, volume: &Volume) -> Result<PathBuf> {
    let kind = if let Some(host) = &volume.host_path {
        return Ok(PathBuf::from(&host.path));
    } else if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else if volume.projected.is_some() {
        "projected"
    } else if volume.empty_dir.is_some() {
        "empty-dir"
    } else {
        return Err(Error::Unsupported { volume: volume.name.clone(), kind: unsupported(volume) });
    };
    Ok(dir.join("volumes").join(format!("kubernetes.io~{kind}")).join(&volume.name))
}

/// `fsGroup` of the pod: owns what the kubelet makes, so that unprivileged processes can read it.
pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// Holds what must not be written to a disk.
fn is_sensitive(volume: &Volume) -> bool {
    let projected = volume.projected.as_ref().and_then(|projected| projected.sources.as_ref());
    volume.secret.is_some()
        || projected.is_some_and(|sources| {
            sources.iter().any(|source| source.secret.is_some() || source.service_account_token.is_some())
        })
}

fn make_empty_dir(path: &Path, empty: &EmptyDirVolumeSource, group: Option<u32>) -> Result<()> {
    let mut fresh = !path.exists();
    fs::create_dir_all(path).map_err(Error::io("make", path))?;
    if empty.medium.as_deref() == Some("Memory") {
        fresh |= mount::tmpfs(path, empty.size_limit.as_ref().and_then(quantity::units))?;
    }
    if !fresh {
        // The pod may have made it its own.
        return Ok(());
    }
    let mut mode = 0o777;
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(Error::io("change the group of", path))?;
        mode |= 0o2000;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("make", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))
}

/// Makes or checks the path by `type`, with the words that upstream uses.
fn check_host_path(host: &HostPathVolumeSource) -> Result<()> {
    let path = Path::new(&host.path);
    let expected = |expected| Error::HostPath { path: host.path.clone(), expected };
    let kind = fs::metadata(path).map(|metadata| metadata.file_type()).ok();
    let check = |ok: fn(&fs::FileType) -> bool, text| {
        if kind.as_ref().is_some_and(ok) { Ok(()) } else { Err(expected(text)) }
    };
    match host.type_.as_deref().unwrap_or("") {
        "" => Ok(()),
        "DirectoryOrCreate" if kind.is_none() => make_dir(path, 0o755),
        "Directory" | "DirectoryOrCreate" => check(fs::FileType::is_dir, "a directory"),
        "FileOrCreate" if kind.is_none() => {
            fs::File::create(path).map_err(Error::io("create", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))
                .map_err(Error::io("set the mode of", path))
        }
        "File" | "FileOrCreate" => check(fs::FileType::is_file, "a file"),
        "Socket" => check(FileTypeExt::is_socket, "a socket file"),
        "CharDevice" => check(FileTypeExt::is_char_device, "a character device"),
        "BlockDevice" => check(FileTypeExt::is_block_device, "a block device"),
        _ => Err(expected("of a known hostPath type")),
    }
}

/// The kind of a volume that is not made here, as its field is called.
fn unsupported(volume: &Volume) -> &'static str {
    let kinds = [
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("csi", volume.csi.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("image", volume.image.is_some()),
        ("nfs", volume.nfs.is_some()),
        ("iscsi", volume.iscsi.is_some()),
    ];
    kinds.iter().find(|(_, set)| *set).map_or("its kind", |(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_made_or_checked_by_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, type_: &str| HostPathVolumeSource {
            path: dir.path().join(name).to_string_lossy().into_owned(),
            type_: Some(type_.to_owned()),
        };
        check_host_path(&at("made", "DirectoryOrCreate")).unwrap();
        check_host_path(&at("file", "FileOrCreate")).unwrap();
        check_host_path(&at("made", "Directory")).unwrap();
        check_host_path(&at("nothing", "")).unwrap();
        let error = check_host_path(&at("file", "Directory")).unwrap_err().to_string();
        assert!(error.ends_with("file is not a directory"), "{error}");
        check_host_path(&at("nothing", "Socket")).unwrap_err();
    }

    #[test]
    fn an_empty_dir_survives_a_second_set_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        make_empty_dir(&path, &EmptyDirVolumeSource::default(), None).unwrap();
        fs::write(path.join("kept"), "x").unwrap();
        make_empty_dir(&path, &EmptyDirVolumeSource::default(), None).unwrap();
        assert!(path.join("kept").exists());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
    }
}
