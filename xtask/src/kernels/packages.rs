//! Debian's own kernel packages, by apt, in a directory of ours: the machine's sources and packages stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::command;

const MIRROR: &str = "http://deb.debian.org/debian";
/// What signs every suite.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The package that always needs the newest kernel of its suite. The cloud's differs from the others in drivers, not in
/// anything that a verifier knows, and is a quarter of their size.
const NEWEST: &str = "linux-image-cloud-amd64";
/// Packages that hold a kernel: the image in one, or image and modules apart.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// What it calls itself.
    pub(super) release: String,
    /// The file to boot.
    pub(super) kernel: PathBuf,
    /// Where its modules are.
    pub(super) modules: PathBuf,
    /// Where its console's output goes.
    pub(super) console: PathBuf,
}

/// The newest kernel of a suite, below `directory/suite`. What was fetched once stays: remove the folder to get a newer.
pub(super) fn image(directory: &Path, suite: &str) -> Result<Image> {
    let place = directory.join(suite);
    let root = place.join("root");
    if let Some(found) = unpacked(&place)? {
        return Ok(found);
    }
    let apt = Apt::new(&place.join("apt"), suite)?;
    let packages = place.join("packages");
    fs::create_dir_all(&packages)?;
    let names = apt.parts()?;
    ensure!(!names.is_empty(), "{NEWEST} of {suite} depends on no kernel");
    command::run(apt.command("apt-get", &["download"]).args(&names).current_dir(&packages))?;
    let next = place.join("next");
    if next.exists() {
        fs::remove_dir_all(&next)?;
    }
    for package in fs::read_dir(&packages)? {
        command::run(Command::new("dpkg").arg("-x").arg(package?.path()).arg(&next))?;
    }
    fs::rename(&next, &root)?;
    fs::remove_dir_all(&packages)?;
    fs::remove_dir_all(place.join("apt"))?;
    unpacked(&place)?.with_context(|| format!("{} hold no vmlinuz", names.join(", ")))
}

/// The kernel that was unpacked earlier. Newer packages keep it beside the modules, older ones in `/boot`.
fn unpacked(place: &Path) -> Result<Option<Image>> {
    let root = place.join("root");
    for modules in [root.join("usr/lib/modules"), root.join("lib/modules")] {
        let Ok(mut releases) = fs::read_dir(modules) else { continue };
        let Some(entry) = releases.next() else { continue };
        let entry = entry?;
        let release = entry.file_name().to_string_lossy().into_owned();
        let places = [entry.path().join("vmlinuz"), root.join("boot").join(format!("vmlinuz-{release}"))];
        if let Some(kernel) = places.into_iter().find(|path| path.is_file()) {
            let modules = entry.path().join("kernel");
            return Ok(Some(Image { release, kernel, modules, console: place.join("console.log") }));
        }
    }
    Ok(None)
}

/// apt with everything of its own in one directory.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Reads what the suite has.
    fn new(place: &Path, suite: &str) -> Result<Self> {
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(place.join(directory))?;
        }
        let sources = place.join("sources.list");
        fs::write(&sources, format!("deb [arch=amd64 signed-by={KEYRING}] {MIRROR} {suite} main\n"))?;
        let status = place.join("status");
        fs::write(&status, "")?;
        let option = |name: &str, value: &Path| format!("-o{name}={}", value.display());
        let options = vec![
            option("Dir::Etc::sourcelist", &sources),
            option("Dir::Etc::sourceparts", Path::new("-")),
            option("Dir::State", place),
            option("Dir::State::lists", &place.join("lists")),
            option("Dir::State::status", &status),
            option("Dir::Cache", &place.join("cache")),
            "-oAcquire::Languages=none".to_owned(),
            // The directory is the user's, and apt's own user may not write there.
            "-oAPT::Sandbox::User=root".to_owned(),
        ];
        let apt = Self { options };
        command::run(&mut apt.command("apt-get", &["-q", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).args(words);
        command
    }

    /// Names of the packages that the newest kernel is in.
    fn parts(&self) -> Result<Vec<String>> {
        let text = command::output(
            &mut self.command("apt-cache", &["depends", "--recurse", "--important", NEWEST]),
        )?;
        let is_part = |name: &&str| {
            let version = PARTS.iter().find_map(|prefix| name.strip_prefix(prefix));
            version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
        };
        Ok(text.lines().filter(is_part).map(str::to_owned).collect())
    }
}
