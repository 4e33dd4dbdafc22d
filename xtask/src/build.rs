//! The artifacts that tasks run: the executable, an example, and the echo image.
//!
//! Everything is selected with `--workspace`, as `cargo test` does: cargo then resolves every dependency's features once,
//! and builds none twice.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::{self, cargo};

/// How an artifact is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What tests run: quick to build.
    Dev,
    /// What users run and benches measure.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

/// Builds `weir` and returns its path.
pub(crate) fn weir(profile: Profile) -> Result<PathBuf> {
    executable("weir", &mut cargo(["build", "--workspace", "--bin", "weir", "--profile", profile.name()]))
}

/// Builds an example for measurements and returns its path.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    executable(name, &mut cargo(["build", "--workspace", "--example", name, "--release"]))
}

/// Builds the echo image's program as one static file and returns its path.
pub(crate) fn echo() -> Result<PathBuf> {
    // A target of its own keeps the flag away from everything else that is built.
    let target = host_target()?;
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    let mut build = cargo(["build", "--package", "weir-echo", "--release", "--target", &target]);
    executable("weir-echo", build.env(flags, "-Ctarget-feature=+crt-static"))
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let text = command::output(&mut cargo(["metadata", "--format-version=1", "--no-deps"]))?;
    Ok(serde_json::from_str::<Metadata>(&text)?.target_directory)
}

/// Runs a build and finds the executable of that name in what cargo says it made.
pub(crate) fn executable(name: &str, build: &mut Command) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let messages = command::output(build.arg("--message-format=json-render-diagnostics"))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .find(|path| path.file_stem().is_some_and(|stem| stem == name))
        .with_context(|| format!("cargo built no executable named {name}"))
}

fn host_target() -> Result<String> {
    let version = command::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}
