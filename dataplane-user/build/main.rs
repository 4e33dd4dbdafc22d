//! Builds the eBPF programs from source, with whichever toolchain can: a rustup nightly that has `rust-src`, or
//! Debian's `rustc-web` with `rust-web-src`. The objects land in `OUT_DIR`; `src/programs.rs` embeds the dataplane's, and
//! `examples/dataplane-bench` the one with the programs that measure it.
//!
//! `core` has to be compiled for the BPF target, so that the compiler must come with the library's source, and cargo's
//! `-Z build-std` must be allowed. Nothing else of the workspace's toolchain choice is touched: the child cargo has its own
//! target directory (cargo holds a lock on the other) and an environment without the parent's overrides.

mod btf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

/// The package and the binaries of the programs.
const PACKAGE: &str = "weir-dataplane-ebpf";
const BINARIES: [&str; 2] = ["weir-dataplane-programs", "weir-bench-programs"];
const TARGET: &str = "bpfel-unknown-none";
/// The linker that turns LLVM bitcode into a BPF object. Later versions need an LLVM that no rustup toolchain brings.
const LINKER_VERSION: &str = "0.10.1";
/// Debian's compiler, which has the library's source beside it when `rust-web-src` is installed.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// A whole BPF object is built with these: `v3` has 32-bit arithmetic and jumps (Linux 5.1), map types need the debug
/// information as BTF, and small copies become plain loads and stores instead of calls of a byte loop.
const FLAGS: &[&str] = &[
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "-Clink-arg=--disable-expand-memcpy-in-order",
    "-Cdebuginfo=2",
    "-Ctarget-cpu=v3",
];

fn main() {
    let root =
        PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../dataplane-ebpf");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for path in ["Cargo.toml", "src"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=PATH");
    if let Err(problem) = build(&root, &out) {
        println!("cargo::error={problem}");
        exit(1);
    }
}

fn build(root: &Path, out: &Path) -> Result<(), String> {
    check_linker()?;
    let compiler = Compiler::find()?;
    let target_dir = out.join("programs");
    let output = compiler
        .cargo()
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package", PACKAGE])
        .args(BINARIES.map(|binary| ["--bin", binary]).as_flattened())
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        // One unit, optimised as a whole: what is not inlined costs a call and makes the verifier's work harder.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .output()
        .map_err(|error| format!("cannot run cargo for the eBPF programs: {error}"))?;
    if !output.status.success() {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("cargo::warning={line}");
        }
        return Err(format!("the eBPF programs do not build with {compiler}: see the warnings above"));
    }
    for binary in BINARIES {
        let object = target_dir.join(TARGET).join("release").join(binary);
        let bytes =
            fs::read(&object).map_err(|error| format!("cannot read {}: {error}", object.display()))?;
        let bytes = btf::sanitize(bytes).map_err(|error| format!("{}: {error}", object.display()))?;
        fs::write(out.join(binary), bytes).map_err(|error| format!("cannot write {binary}: {error}"))?;
    }
    Ok(())
}

/// Says in one line what is missing.
fn check_linker() -> Result<(), String> {
    let found = Command::new("bpf-linker").arg("--version").output().ok().filter(|it| it.status.success());
    match found.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()) {
        Some(version) if version == format!("bpf-linker {LINKER_VERSION}") => Ok(()),
        Some(version) => {
            Err(format!("bpf-linker {LINKER_VERSION} is needed, found `{version}`; run `cargo xtask setup`"))
        }
        None => Err(format!("bpf-linker {LINKER_VERSION} is missing; run `cargo xtask setup`")),
    }
}

/// A compiler that has the source of `core`.
enum Compiler {
    /// `rustup run nightly`, with the component `rust-src`.
    Nightly,
    /// Debian's, driven by whichever cargo started this build.
    Debian,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        if has_source(clean("rustup").args(["run", "nightly", "rustc"])) {
            Ok(Self::Nightly)
        } else if has_source(&mut clean(DEBIAN_RUSTC)) {
            Ok(Self::Debian)
        } else {
            Err("no Rust compiler with the source of `core` (rustup nightly + rust-src, or Debian's rustc-web + \
                 rust-web-src); run `cargo xtask setup`"
                .to_owned())
        }
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Nightly => {
                let mut command = clean("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Self::Debian => {
                let mut command = clean(&env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
                // What a stable compiler keeps for nightly is allowed by this, and only for this child.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup's nightly",
            Self::Debian => DEBIAN_RUSTC,
        })
    }
}

/// A command without what the outer cargo, a rustup proxy, clippy or rustdoc put into the environment.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let is_override =
            matches!(
                &*name,
                "RUSTC"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "RUSTC_LINKER"
                    | "RUSTDOC"
                    | "RUSTDOCFLAGS"
                    | "RUSTFLAGS"
                    | "RUSTUP_TOOLCHAIN"
                    | "CARGO_ENCODED_RUSTFLAGS"
                    | "CARGO_ENCODED_RUSTDOCFLAGS"
                    | "CARGO_TARGET_DIR"
                    | "CARGO_MAKEFLAGS"
                    | "MAKEFLAGS"
                    | "CLIPPY_ARGS"
            ) || ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_PKG_"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        if is_override {
            command.env_remove(&*name);
        }
    }
    command
}

/// Whether a compiler runs and its library's source is there.
fn has_source(rustc: &mut Command) -> bool {
    rustc.args(["--print", "sysroot"]).output().is_ok_and(|output| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
    })
}
