//! Child processes: said before they run, and an error when they fail.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::root;

/// Prefixes of the variables in which cargo describes the package that it runs.
const OWN_PACKAGE: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_"];

/// `cargo` with the given words, in the workspace.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // What cargo told this program about its own package is not for the next one: build scripts that ask for it would
    // run again, and everything above them be built again.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| OWN_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end; its output is the user's.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("+ {line}");
    let status = command.status().with_context(|| format!("starting {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Runs to the end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("starting {line}"))?;
    ensure!(output.status.success(), "{line}: {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("reading what {line} wrote"))
}

/// Whether a program of this name is on the `PATH`.
pub(crate) fn exists(program: &str) -> bool {
    find(program).is_some()
}

/// The first file of this name on the `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Paths of what an executable is linked with, as `ldd` tells them.
pub(crate) fn shared_libraries(executable: &Path) -> Result<Vec<PathBuf>> {
    let text = output(Command::new("ldd").arg(executable))?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
