//! Files that change all at once: upstream's `AtomicWriter`, same names, same guarantees.
//!
//! ```text
//! volume/..2026_11_23_21_05_46.123456789/color    the files of one version
//! volume/..data -> ..2026_11_23_21_05_46.123456789
//! volume/color  -> ..data/color
//! ```
//! A reader that resolves `..data` once sees one version; renaming the link over the old one switches all files in one
//! step. Callers: configMap, secret, downwardAPI and projected volumes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Component, Path},
};

use bytes::Bytes;
use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Content.
    pub(crate) data: Bytes,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// The files of a version by relative path.
pub(crate) type Files = BTreeMap<String, File>;

/// Makes `dir` show exactly `files`. Does nothing, and returns false, if it already does.
/// With `group`, files belong to it and it may read them (`fsGroup`).
pub(crate) fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    for path in files.keys() {
        if !is_plain(path) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path:?} leads out of the volume"),
            ));
        }
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && is_current(&dir.join(old), files)
    {
        link_visible(dir, files)?;
        return Ok(false);
    }
    let version = format!("..{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let version_dir = dir.join(&version);
    fs::create_dir(&version_dir)?;
    fs::set_permissions(&version_dir, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        write_file(&version_dir, path, file, group)?;
    }
    // A link left by an interrupted write is in the way.
    remove_if_there(&dir.join(DATA_NEW))?;
    symlink(&version, dir.join(DATA_NEW))?;
    fs::rename(dir.join(DATA_NEW), dir.join(DATA))?;
    link_visible(dir, files)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn write_file(version_dir: &Path, path: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    let target = version_dir.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&target, &file.data)?;
    let mut mode = file.mode;
    if let Some(group) = group {
        chown(&target, None, Some(group))?;
        mode |= 0o040;
    }
    // Explicit, because the umask took bits away on creation.
    fs::set_permissions(&target, fs::Permissions::from_mode(mode))
}

/// The version on disk has these files and no others.
fn is_current(version_dir: &Path, files: &Files) -> bool {
    let mut found = BTreeSet::new();
    if collect(version_dir, "", &mut found).is_err() || !found.iter().eq(files.keys()) {
        return false;
    }
    files.iter().all(|(path, file)| fs::read(version_dir.join(path)).is_ok_and(|data| data == file.data))
}

fn collect(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}/"), found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// The names that the container sees: one link for each first path element, none for what is gone.
fn link_visible(dir: &Path, files: &Files) -> io::Result<()> {
    let visible: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &visible {
        match symlink(format!("{DATA}/{name}"), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !visible.contains(name.as_ref()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Relative, without `..`, and not hidden behind the writer's own names.
fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |data: &str| File { data: Bytes::copy_from_slice(data.as_bytes()), mode: 0o644 };
        list.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn read(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    #[test]
    fn switches_all_files_at_once_and_leaves_no_old_version() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("sub/b", "1")]), None).unwrap());
        let first = fs::read_link(dir.join(DATA)).unwrap();
        assert_eq!(read(dir, "sub/b").unwrap(), "1");
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));

        assert!(write(dir, &files(&[("a", "2"), ("c", "2")]), None).unwrap());
        assert_eq!((read(dir, "a").unwrap().as_str(), read(dir, "c").unwrap().as_str()), ("2", "2"));
        assert_eq!(read(dir, "sub/b"), None);
        assert!(!dir.join("sub").is_symlink(), "the link to what is gone is gone");
        assert!(!dir.join(first).exists(), "the old version is gone");
    }

    #[test]
    fn does_nothing_when_nothing_changed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &files(&[("a", "1")]), None).unwrap());
        let version = fs::read_link(dir.path().join(DATA)).unwrap();
        assert!(!write(dir.path(), &files(&[("a", "1")]), None).unwrap());
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), version);
    }

    #[test]
    fn sets_the_mode_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let mut payload = files(&[("key", "x")]);
        payload.get_mut("key").unwrap().mode = 0o666;
        write(dir.path(), &payload, None).unwrap();
        assert_eq!(fs::metadata(dir.path().join("key")).unwrap().permissions().mode() & 0o777, 0o666);
    }

    #[test]
    fn refuses_paths_that_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/passwd", "a/../../b", "..data", ""] {
            assert!(write(dir.path(), &files(&[(path, "x")]), None).is_err(), "{path}");
        }
    }
}
