//! Layers as they come, and as an attacker would make them.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
};

use tar::{Builder, Header};

use super::*;

struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry under exactly this path, however evil; the library's own methods refuse such paths.
    fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o750);
        header.set_mtime(1_700_000_000);
        // Chowning to itself needs no privilege.
        header.set_uid(Uid::effective().as_raw().into());
        header.set_gid(Gid::effective().as_raw().into());
        let fields = header.as_old_mut();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).expect("an entry");
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, path, "", content)
    }

    fn directory(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", "")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, "")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, "")
    }

    fn unpack(self, directory: &Path) -> Result<()> {
        unpack(&self.0.into_inner().expect("a tar file")[..], directory, "sha256:test")
    }
}

/// A directory to unpack into, beside one that nothing may reach.
struct Place {
    parent: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let parent = tempfile::tempdir().expect("a directory");
        fs::create_dir(parent.path().join("layer")).expect("a directory");
        fs::create_dir(parent.path().join("outside")).expect("a directory");
        fs::write(parent.path().join("outside/file"), "untouched").expect("a file");
        Self { parent }
    }

    fn layer(&self) -> PathBuf {
        self.parent.path().join("layer")
    }

    fn outside(&self) -> String {
        self.parent.path().join("outside").display().to_string()
    }

    fn assert_untouched(&self) {
        let outside = self.parent.path().join("outside");
        let names: Vec<_> =
            fs::read_dir(&outside).expect("a directory").map(|e| e.expect("an entry").path()).collect();
        assert_eq!(names, [outside.join("file")]);
        assert_eq!(fs::read_to_string(outside.join("file")).expect("the file"), "untouched");
        assert_eq!(fs::metadata(outside.join("file")).expect("the file").nlink(), 1);
        let siblings = fs::read_dir(self.parent.path()).expect("a directory").count();
        assert_eq!(siblings, 2);
    }
}

#[test]
fn files_links_and_times_arrive() {
    let place = Place::new();
    Tar::new()
        .directory("./usr/")
        .file("usr/deep/er/file", "content")
        .hard_link("usr/other", "usr/deep/er/file")
        .symlink("lib", "usr/deep")
        .file("lib/through", "a link")
        .unpack(&place.layer())
        .expect("a layer");
    let file = fs::metadata(place.layer().join("usr/deep/er/file")).expect("the file");
    assert_eq!((file.mode() & 0o7777, file.nlink(), file.mtime()), (0o750, 2, 1_700_000_000));
    assert_eq!(fs::read_to_string(place.layer().join("usr/deep/through")).expect("the file"), "a link");
    assert_eq!(fs::metadata(place.layer().join("usr")).expect("a directory").mtime(), 1_700_000_000);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    Tar::new()
        .directory("a")
        .file("a/x", "1")
        .directory("a")
        .file("b", "old")
        .file("b", "new")
        .directory("c")
        .file("c/x", "1")
        .file("c", "a file now")
        .unpack(&place.layer())
        .expect("a layer");
    assert!(place.layer().join("a/x").exists());
    assert_eq!(fs::read_to_string(place.layer().join("b")).expect("a file"), "new");
    assert_eq!(fs::read_to_string(place.layer().join("c")).expect("a file"), "a file now");
}

#[test]
fn nothing_reaches_outside() {
    let place = Place::new();
    let outside = place.outside();
    let through_absolute =
        Tar::new().symlink("way", &outside).file("way/file", "evil").file("way/new", "evil");
    // An absolute link means a path in the image, so this must not fail, and must land inside.
    through_absolute.unpack(&place.layer()).expect_err("the link's target does not exist in the layer");
    place.assert_untouched();
    for tar in [
        Tar::new().file("../outside/file", "evil"),
        Tar::new().file("a/../../outside/file", "evil"),
        Tar::new().symlink("way", "../outside").file("way/file", "evil"),
        Tar::new()
            .symlink("way", "../../../../../../../../../../..")
            .file(&format!("way{outside}/file"), "evil"),
        Tar::new().hard_link("stolen", &format!("{outside}/file")),
        Tar::new().hard_link("stolen", "../outside/file"),
        Tar::new().symlink("way", &format!("{outside}/file")).file("way", "evil"),
        Tar::new().symlink("way", &format!("{outside}/file")).hard_link("copy", "way").file("copy", "evil"),
        Tar::new().symlink("way", &outside).directory("way"),
        Tar::new().symlink("way", &outside).entry(EntryType::Regular, "way/.wh..wh..opq", "", ""),
        Tar::new().symlink("way", "/proc/self/cwd").file("way/file", "evil"),
    ] {
        fs::remove_dir_all(place.layer()).expect("an empty place");
        fs::create_dir(place.layer()).expect("an empty place");
        // Some are refused, some are harmless inside: what counts is outside.
        drop(tar.unpack(&place.layer()));
        place.assert_untouched();
    }
}

#[test]
fn a_link_that_was_there_before_is_not_followed() {
    let place = Place::new();
    symlink(place.outside(), place.layer().join("way")).expect("a link");
    Tar::new().file("way/file", "evil").unpack(&place.layer()).expect_err("the way leads nowhere inside");
    place.assert_untouched();
}

#[test]
fn errors_name_the_entry() {
    let place = Place::new();
    let error = Tar::new().file("../x", "").unpack(&place.layer()).expect_err("a refusal").to_string();
    assert!(error.contains("sha256:test") && error.contains("\"../x\""), "{error}");
    let mut truncated = Tar::new().file("file", &"x".repeat(2000)).0.into_inner().expect("a tar file");
    truncated.truncate(1500);
    let error = unpack(&truncated[..], &place.layer(), "sha256:test").expect_err("a refusal").to_string();
    assert!(error.contains("file"), "{error}");
}

#[test]
fn whiteouts_take_overlayfs_form() {
    if !Uid::effective().is_root() {
        // Device nodes and trusted attributes are root's. The container tests, which need root, cover the rest.
        return;
    }
    let place = Place::new();
    Tar::new()
        .directory("etc")
        .file("etc/.wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("kept", "here")
        .file(".wh.kept", "")
        .unpack(&place.layer())
        .expect("a layer");
    let gone = fs::symlink_metadata(place.layer().join("etc/gone")).expect("a whiteout");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = xattr::get(place.layer().join("opaque"), "trusted.overlay.opaque").expect("attributes");
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    assert_eq!(fs::read_to_string(place.layer().join("kept")).expect("a file"), "here");
}
