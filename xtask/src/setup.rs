//! What a fresh Debian machine lacks.
//!
//! The eBPF programs need a compiler with the library's source. A rustup nightly with `rust-src` does; where there is
//! none, Debian's `rustc-web` with `rust-web-src` does. `bpf-linker` is pinned, since a newer one asks for a newer LLVM
//! than those compilers carry.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

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
    ("systemd-analyze", "systemd"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

/// Debian's compiler and its library source.
const DEBIAN_RUST: &[&str] = &["rustc-web", "rust-web-src"];

/// Installs what is missing; does nothing, quickly, when nothing is.
pub(crate) fn run() -> Result<()> {
    let mut packages = missing(PACKAGES);
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
    let missing = missing(PACKAGES);
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

/// Installs what only the ingress's tests need: programs that attack it.
pub(crate) fn attackers() -> Result<()> {
    const PACKAGES: &[(&str, &str)] = &[("slowhttptest", "slowhttptest"), ("testssl", "testssl.sh")];
    let missing = missing(PACKAGES);
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

/// Installs what only the test of the ingress's container needs: a runtime, and the filter that is the default of several.
pub(crate) fn containers() -> Result<()> {
    const PACKAGES: &[(&str, &str)] = &[
        ("crun", "crun"),
        ("/usr/share/containers/seccomp.json", "golang-github-containers-common"),
        // Nobody uses it: of what the package of the filter asks for as a network it is the smallest.
        ("/usr/lib/podman/netavark", "netavark"),
    ];
    let missing = missing(PACKAGES);
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

/// Installs what only the test of the ingress's status page needs.
pub(crate) fn browser() -> Result<()> {
    let missing = missing(&[("chromium", "chromium")]);
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

/// Installs what only the ingress's bench needs: its peers, and a client that loads HTTP/2.
pub(crate) fn proxies() -> Result<()> {
    const PACKAGES: &[(&str, &str)] =
        &[("nginx", "nginx"), ("haproxy", "haproxy"), ("h2load", "nghttp2-client")];
    /// Packages whose services have their names.
    const SERVICES: &[&str] = &["nginx", "haproxy"];
    let missing = missing(PACKAGES);
    if missing.is_empty() {
        return Ok(());
    }
    let _held = HeldServices::hold()?;
    install_packages(&missing)?;
    let services: Vec<&str> = missing.into_iter().filter(|package| SERVICES.contains(package)).collect();
    if !services.is_empty() && exists("systemctl") {
        // Nor are they to start with the machine.
        command::run(Command::new("systemctl").args(["--quiet", "disable"]).args(services))?;
    }
    Ok(())
}

/// While it is there, packages start no service: a bench wants the program of a proxy, not a proxy on port 80.
struct HeldServices {
    /// Whether the policy is ours to take away.
    ours: bool,
}

/// What `invoke-rc.d` and systemd's helpers ask before they start a service (Debian policy 9.3.3).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

impl HeldServices {
    fn hold() -> Result<Self> {
        let ours = !Path::new(SERVICE_POLICY).exists();
        if ours {
            fs::write(SERVICE_POLICY, "#!/bin/sh\nexit 101\n")
                .and_then(|()| fs::set_permissions(SERVICE_POLICY, Permissions::from_mode(0o755)))
                .with_context(|| format!("writing {SERVICE_POLICY}: this needs root"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for HeldServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!("xtask: {SERVICE_POLICY} is left behind and keeps services from starting: {error}");
        }
    }
}

/// The packages of programs that are not there.
fn missing(packages: &[(&str, &'static str)]) -> Vec<&'static str> {
    packages.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect()
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
