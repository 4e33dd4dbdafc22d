//! What a fresh Debian machine lacks.
//!
//! The eBPF programs need a compiler with the library's source. A rustup nightly with `rust-src` does; where there is
//! none, Debian's `rustc-web` with `rust-web-src` does. `bpf-linker` is pinned, since a newer one asks for a newer LLVM
//! than those compilers carry.

use std::{path::Path, process::Command};

use anyhow::{Result, bail, ensure};

use crate::command::{self, cargo, exists};

/// The linker's version, the same that the programs' build asks for.
const BPF_LINKER: &str = "0.10.1";
/// The newest `cargo-deny` that the toolchain builds.
const CARGO_DENY: &str = "0.20.2";

/// A program and the Debian package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("cmake", "cmake"),
    ("cc", "gcc"),
    ("make", "make"),
    ("pkg-config", "pkg-config"),
    ("protoc", "protobuf-compiler"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("nsenter", "util-linux"),
    ("ethtool", "ethtool"),
    ("busybox", "busybox-static"),
    ("nft", "nftables"),
    ("iptables-legacy-restore", "iptables"),
    ("conntrack", "conntrack"),
];

/// Debian's compiler and its library source.
const DEBIAN_RUST: &[&str] = &["rustc-web", "rust-web-src"];

/// Installs what is missing; does nothing, quickly, when nothing is.
pub(crate) fn run() -> Result<()> {
    let mut packages: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    if !has_nightly_source() && !has_debian_source() {
        packages.extend(DEBIAN_RUST);
    }
    if !exists("kubectl") {
        packages.push("kubernetes-client");
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if !is_installed("bpf-linker", BPF_LINKER) {
        command::run(&mut cargo(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]))?;
    }
    ensure!(
        exists("kubectl"),
        "no kubectl: install the kubernetes-client package, or put kubectl 1.32 on the PATH"
    );
    Ok(())
}

/// Installs `cargo-deny`, which only CI needs.
pub(crate) fn deny() -> Result<()> {
    if exists("cargo-deny") {
        return Ok(());
    }
    command::run(&mut cargo(["install", "cargo-deny", "--version", CARGO_DENY, "--locked"]))
}

/// Installs what only the kernel matrix needs.
pub(crate) fn emulator() -> Result<()> {
    const PACKAGES: &[(&str, &str)] =
        &[("qemu-system-x86_64", "qemu-system-x86"), ("strip", "binutils"), ("xz", "xz-utils")];
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if !exists("apt-get") {
        bail!("missing: {}; install them with this machine's package manager", packages.join(", "));
    }
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(words).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    command::run(&mut apt(&["update"]))?;
    command::run(apt(&["install", "-y", "--no-install-recommends"]).args(packages))
}

fn is_installed(program: &str, version: &str) -> bool {
    exists(program)
        && command::output(Command::new(program).arg("--version")).is_ok_and(|line| line.contains(version))
}

fn has_nightly_source() -> bool {
    let sysroot = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && has_source(Path::new(&sysroot))
    })
}

fn has_debian_source() -> bool {
    Path::new("/usr/bin/rustc").is_file() && has_source(Path::new("/usr"))
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}
