//! A container's root file system: an overlay over the image's layers, and a look into it that cannot be led out.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{self, OFlag, OpenHow, ResolveFlag},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, mkdirat},
    unistd::chdir,
};

use super::state::make_directory;
use crate::runtime::{Error, Result, User};

/// What the kernel takes as the options of a mount.
const OPTIONS_LIMIT_BYTES: usize = 4095;
/// A larger `/etc/passwd` is none.
const ACCOUNTS_LIMIT_BYTES: u64 = 1024 * 1024;

/// Mounts the root file system. `lower` are names in `layers`, highest first.
pub(super) fn mount_overlay(layers: &Path, lower: &[String], writable: &Path, target: &Path) -> Result<()> {
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for directory in [&upper, &work, &target.to_owned()] {
        make_directory(directory)?;
    }
    // The container's user walks through its root.
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&upper, open_to_all).map_err(Error::io("change the mode of", &upper))?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    if options.len() > OPTIONS_LIMIT_BYTES {
        let problem = format!(
            "its {} layers and the data directory's path are together longer than a mount allows; use a shorter --data-dir",
            lower.len()
        );
        return Err(Error::Invalid { object: "image".into(), problem });
    }
    // Lower directories are relative, to keep the options short. A thread with a working directory of its own makes
    // that possible without moving the whole process.
    let overlay = || {
        unshare(CloneFlags::CLONE_FS).and_then(|()| chdir(layers)).map_err(Error::io("enter", layers))?;
        mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
            .map_err(Error::io("mount an overlay on", target))
    };
    thread::scope(|scope| scope.spawn(overlay).join()).unwrap_or_else(|_| {
        Err(Error::Invalid {
            object: target.display().to_string(),
            problem: "the thread that mounts it died".into(),
        })
    })
}

/// A root file system that somebody else filled: every path is resolved as the container would.
pub(super) struct Root(OwnedFd, PathBuf);

/// Who a process is, in numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = fcntl::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?;
        Ok(Self(root, path.to_owned()))
    }

    /// Makes a directory and its parents where they are missing.
    pub(super) fn make_directory(&self, path: &Path) -> Result<()> {
        let fail =
            |errno: Errno| Error::io("create", self.1.join(path.strip_prefix("/").unwrap_or(path)))(errno);
        let mut walked = PathBuf::from("/");
        for component in path.components().skip(1) {
            let parent = self.resolve(&walked, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(fail)?;
            match mkdirat(&parent, component.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => walked.push(component),
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(())
    }

    /// Looks up a user as the image's own programs would.
    pub(super) fn identity(&self, user: &User, supplemental: &[u32]) -> Result<Identity> {
        let passwd = self.accounts("etc/passwd")?;
        let group = self.accounts("etc/group")?;
        let mut identity = identify(user, &passwd, &group)?;
        identity.groups.extend(supplemental);
        identity.groups.sort_unstable();
        identity.groups.dedup();
        Ok(identity)
    }

    fn accounts(&self, file: &str) -> Result<String> {
        let fail = |e: io::Error| Error::io("read", self.1.join(file))(e);
        match self.resolve(Path::new(file), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => {
                let mut bytes = Vec::new();
                File::from(fd).take(ACCOUNTS_LIMIT_BYTES).read_to_end(&mut bytes).map_err(fail)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(String::new()),
            Err(errno) => Err(fail(errno.into())),
        }
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        fcntl::openat2(&self.0, path, how)
    }
}

fn identify(user: &User, passwd: &str, group: &str) -> Result<Identity> {
    let (name, wanted_group) = match user {
        User::Id { uid, gid } => (uid.to_string(), gid.map(|gid| gid.to_string())),
        User::Name(text) => match text.split_once(':') {
            Some((name, group)) => (name.to_owned(), Some(group.to_owned())),
            None => (text.clone(), None),
        },
    };
    let unknown = |kind: &str, name: &str| Error::Invalid {
        object: format!("{kind} \"{name}\""),
        problem: format!(
            "the image's /etc/{kind} does not have it; use a number",
            kind = if kind == "user" { "passwd" } else { "group" }
        ),
    };
    let number = name.parse::<u32>().ok();
    let account = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 4 && (fields[0] == name || number.is_some() && fields[2].parse().ok() == number)
    });
    let uid = match (&account, number) {
        (Some(fields), _) => fields[2].parse().map_err(|_| unknown("user", &name))?,
        (None, Some(number)) => number,
        (None, None) if name.is_empty() => 0,
        (None, None) => return Err(unknown("user", &name)),
    };
    let groups: Vec<Vec<&str>> = group
        .lines()
        .map(|line| line.split(':').collect())
        .filter(|fields: &Vec<_>| fields.len() >= 3)
        .collect();
    let gid = match wanted_group.filter(|group| !group.is_empty()) {
        Some(wanted) => match groups.iter().find(|fields| fields[0] == wanted) {
            Some(fields) => fields[2].parse().map_err(|_| unknown("group", &wanted))?,
            None => wanted.parse().map_err(|_| unknown("group", &wanted))?,
        },
        None => account.as_ref().and_then(|fields| fields[3].parse().ok()).unwrap_or(0),
    };
    let member_of = |fields: &&Vec<&str>| {
        account
            .as_ref()
            .is_some_and(|a| fields.get(3).is_some_and(|m| m.split(',').any(|member| member == a[0])))
    };
    let groups = groups.iter().filter(member_of).filter_map(|fields| fields[2].parse().ok()).collect();
    Ok(Identity { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:200:web,other\n";

    #[test]
    fn users_are_looked_up_as_images_spell_them() {
        let web = Identity { uid: 101, gid: 102, groups: vec![200] };
        for (user, expected) in [
            (User::Name(String::new()), Identity { uid: 0, gid: 0, groups: vec![] }),
            (User::Name("web".into()), web),
            (User::Name("web:logs".into()), Identity { uid: 101, gid: 200, groups: vec![200] }),
            (User::Name("7:8".into()), Identity { uid: 7, gid: 8, groups: vec![] }),
            (User::Id { uid: 101, gid: None }, Identity { uid: 101, gid: 102, groups: vec![200] }),
            (User::Id { uid: 5000, gid: None }, Identity { uid: 5000, gid: 0, groups: vec![] }),
            (User::Id { uid: 101, gid: Some(9) }, Identity { uid: 101, gid: 9, groups: vec![200] }),
        ] {
            assert_eq!(identify(&user, PASSWD, GROUP).expect("an identity"), expected, "{user:?}");
        }
        assert!(identify(&User::Name("nobody".into()), PASSWD, GROUP).is_err());
    }

    #[test]
    fn a_link_out_of_the_image_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("etc")).expect("etc");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("etc/passwd")).expect("a link");
        // Inside, the link points at itself.
        assert!(Root::open(directory.path()).expect("a root").accounts("etc/passwd").is_err());
    }
}
