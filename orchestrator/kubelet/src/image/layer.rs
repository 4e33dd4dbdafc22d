//! Unpacks a layer into a directory that overlayfs takes as a lower directory.
//!
//! A layer is foreign input, unpacked by root. Nothing in it may reach outside its directory, so every path is
//! resolved by the kernel with `openat2(RESOLVE_IN_ROOT)`, where `..` and absolute symlinks end at the layer's own
//! root, and the last component is always made, never followed.
//!
//! Whiteouts change form: `.wh.name` becomes a character device 0/0, `.wh..wh..opq` becomes the attribute
//! `trusted.overlay.opaque` (OCI image specification, "Representing Changes"; kernel, `overlayfs.rst`).

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{self, AtFlags, OFlag, OpenHow, ResolveFlag},
    sys::{
        stat::{self, Mode, SFlag, UtimensatFlags},
        time::TimeSpec,
    },
    unistd::{self, Gid, LinkatFlags, Uid, UnlinkatFlags},
};
use tar::EntryType;

use super::{Error, Result};

/// Files and directories of one layer; a distribution has some hundred thousand at most.
const ENTRY_LIMIT: u64 = 2_000_000;
/// Bytes of one layer, unpacked. A small archive that unpacks without end stops here.
const UNPACKED_LIMIT_BYTES: u64 = 64 * 1024 * 1024 * 1024;

/// Unpacks the (decompressed) layer into `directory`, which exists and is empty.
pub(super) fn unpack(tar: impl Read, directory: &Path, layer: &str) -> Result<()> {
    let root = fcntl::open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(Error::io("open", directory))?;
    let mut unpacker = Unpacker { root, layer, times: Vec::new(), unpacked_bytes: 0 };
    let mut tar = tar::Archive::new(tar);
    let entries = tar.entries().map_err(|e| unpacker.fail(Path::new("/"), e.to_string()))?;
    for (count, entry) in entries.enumerate() {
        if count as u64 >= ENTRY_LIMIT {
            return Err(
                unpacker.fail(Path::new("/"), format!("the layer has more than {ENTRY_LIMIT} entries"))
            );
        }
        let entry =
            entry.map_err(|e| unpacker.fail(Path::new("/"), format!("the tar file is broken ({e})")))?;
        unpacker.entry(entry)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: OwnedFd,
    layer: &'a str,
    /// Directories get their times last: filling them changes them.
    times: Vec<(PathBuf, TimeSpec)>,
    unpacked_bytes: u64,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<()> {
        let path = entry.path().map_err(|e| self.fail(Path::new("?"), e.to_string()))?.into_owned();
        self.make(&path, &mut entry).map_err(|problem| self.fail(&path, problem.to_string()))
    }

    fn make(&mut self, path: &Path, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
        let Some((parent, name)) = split(path)? else {
            // The root itself: only what it is like matters.
            return Self::set_metadata(&self.root, OsStr::new("."), entry);
        };
        let parent_fd = self.open_directory(&parent)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return whiteout(&parent_fd, hidden);
        }
        let kind = entry.header().entry_type();
        Self::clear_the_way(&parent_fd, &name, kind)?;
        match kind {
            EntryType::Directory => {
                match stat::mkdirat(&parent_fd, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.write_file(&parent_fd, &name, entry)?;
            }
            EntryType::Symlink => {
                unistd::symlinkat(&*link_target(entry)?, &parent_fd, name.as_os_str())?;
            }
            EntryType::Link => return self.hard_link(&parent_fd, &name, &link_target(entry)?),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let device = stat::makedev(
                    header.device_major()?.unwrap_or(0).into(),
                    header.device_minor()?.unwrap_or(0).into(),
                );
                let kind = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                stat::mknodat(&parent_fd, name.as_os_str(), kind, Mode::from_bits_truncate(0o600), device)?;
            }
            // Global headers describe the archive, not a file.
            EntryType::XGlobalHeader => return Ok(()),
            other => return Err(io::Error::other(format!("entries of type {other:?} are not known"))),
        }
        Self::set_metadata(&parent_fd, &name, entry)?;
        if kind == EntryType::Directory {
            self.times.push((path.to_owned(), modified(entry)));
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> io::Result<()> {
        self.unpacked_bytes = self.unpacked_bytes.saturating_add(entry.size());
        if self.unpacked_bytes > UNPACKED_LIMIT_BYTES {
            return Err(io::Error::other(format!(
                "the layer unpacks to more than {UNPACKED_LIMIT_BYTES} bytes"
            )));
        }
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(fcntl::openat(parent, name, flags, Mode::from_bits_truncate(0o600))?);
        let expected = entry.size();
        let written = io::copy(entry, &mut file)?;
        if written == expected { Ok(()) } else { Err(io::Error::other("the layer ends in the middle of it")) }
    }

    /// The target is a path in the same layer. A symlink at its end is linked, not followed.
    fn hard_link(&self, parent: &OwnedFd, name: &OsStr, target: &Path) -> io::Result<()> {
        let (target_parent, target_name) =
            split(target)?.ok_or_else(|| io::Error::other("it is a hard link to the root"))?;
        let target_parent = self.open_directory(&target_parent)?;
        unistd::linkat(&target_parent, target_name.as_os_str(), parent, name, LinkatFlags::empty())?;
        Ok(())
    }

    /// Opens a directory of the layer, and makes what is missing on the way.
    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let open = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            fcntl::openat2(&self.root, path, how)
        };
        match open(path) {
            Err(Errno::ENOENT) => {
                let mut walked = PathBuf::new();
                for component in path.components() {
                    let parent = open(&walked)?;
                    match stat::mkdirat(&parent, component.as_os_str(), Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => walked.push(component),
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Ok(open(path)?)
            }
            result => Ok(result?),
        }
    }

    /// A later entry of one layer replaces an earlier one of the same name, except a directory by a directory.
    fn clear_the_way(parent: &OwnedFd, name: &OsStr, kind: EntryType) -> io::Result<()> {
        let existing = match stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(existing) => existing,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let is_directory = SFlag::from_bits_truncate(existing.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        match (is_directory, kind == EntryType::Directory) {
            (true, true) => Ok(()),
            (true, false) => std::fs::remove_dir_all(through(parent, name)),
            (false, _) => Ok(unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?),
        }
    }

    fn set_metadata(parent: &OwnedFd, name: &OsStr, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
        let header = entry.header();
        // Writers leave numbers out that are 0.
        let number = |field: io::Result<u64>| field.unwrap_or(0) as u32;
        let (uid, gid) = (Uid::from_raw(number(header.uid())), Gid::from_raw(number(header.gid())));
        let mode = Mode::from_bits_truncate(header.mode().unwrap_or(0o644) & 0o7777);
        let is_symlink = header.entry_type() == EntryType::Symlink;
        unistd::fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if !is_symlink {
            // The last component was made just now by this unpacker, so there is no symlink to follow.
            stat::fchmodat(parent, name, mode, stat::FchmodatFlags::FollowSymlink)?;
            Self::set_attributes(&through(parent, name), entry)?;
        }
        let time = modified(entry);
        stat::utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }

    /// Extended attributes, such as file capabilities. `trusted.overlay.*` would let a layer say to overlayfs what
    /// only Weir may say, so it is left out; a file system that has no attributes is not an error.
    fn set_attributes(path: &Path, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
        let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
        for extension in extensions {
            let extension = extension?;
            let Some(attribute) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
            if attribute.starts_with(b"trusted.") {
                continue;
            }
            match xattr::set(path, OsStr::from_bytes(attribute), extension.value_bytes()) {
                Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for (path, time) in self.times.iter().rev() {
            let Ok(Some((parent, name))) = split(path) else { continue };
            let result = self.open_directory(&parent).and_then(|parent| {
                Ok(stat::utimensat(&parent, name.as_os_str(), time, time, UtimensatFlags::NoFollowSymlink)?)
            });
            match result {
                // A later entry replaced it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(|e| self.fail(path, e.to_string()))?,
            }
        }
        Ok(())
    }

    fn fail(&self, entry: &Path, problem: String) -> Error {
        Error::Layer { layer: self.layer.to_owned(), entry: entry.display().to_string(), problem }
    }
}

/// Parent and last component of an entry's path, without `/` and `./` at its head; none for the root itself.
fn split(path: &Path) -> io::Result<Option<(PathBuf, OsString)>> {
    let mut parts = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(
                    "a path with \"..\" could leave the layer; such an image is not to be trusted",
                ));
            }
        }
    }
    let Some(name) = parts.file_name().map(OsStr::to_owned) else { return Ok(None) };
    parts.pop();
    Ok(Some((parts, name)))
}

fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden == b".wh..opq" {
        let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
        return xattr::set_deref(path, "trusted.overlay.opaque", b"y");
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(io::Error::other("it is a whiteout of nothing"));
    }
    // Other `.wh..wh.` names are aufs' own notes.
    if hidden.starts_with(b".wh.") {
        return Ok(());
    }
    match stat::mknodat(parent, OsStr::from_bytes(hidden), SFlag::S_IFCHR, Mode::empty(), 0) {
        // What the layer also adds wins over what it hides.
        Err(Errno::EEXIST) => Ok(()),
        result => Ok(result?),
    }
}

fn link_target(entry: &tar::Entry<'_, impl Read>) -> io::Result<PathBuf> {
    Ok(entry.link_name()?.ok_or_else(|| io::Error::other("it is a link without a target"))?.into_owned())
}

fn modified(entry: &tar::Entry<'_, impl Read>) -> TimeSpec {
    TimeSpec::new(entry.header().mtime().unwrap_or(0) as i64, 0)
}

/// A path to `name` in an opened directory, for calls that take only paths.
fn through(parent: &impl AsRawFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests;
