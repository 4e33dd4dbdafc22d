//! OCI archives of one program: the layout of the OCI image specification, in a tar.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{build, command};

/// Name and tag of the echo image.
pub(crate) const ECHO: &str = "weir.dev/echo:latest";
/// Name and tag of Weir's own image, as the manifests in `deploy` ask for it.
const WEIR: &str = concat!("weir.dev/weir:", env!("CARGO_PKG_VERSION"));

/// Where programs look for the authorities that they trust, on Debian and in the image.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds the image of `weir` and says where it is: the executable, the libraries that it is linked with, and authorities, since
/// an external authentication or a collector of traces may be anybody's.
pub(crate) fn weir(profile: build::Profile) -> Result<()> {
    let program = build::weir(profile)?;
    let mut files = vec![("weir".to_owned(), program.clone())];
    for file in command::shared_libraries(&program)?.into_iter().chain([AUTHORITIES.into()]) {
        let place = file.strip_prefix("/").context("ldd names whole paths")?;
        files.push((place.to_str().context("a library's path is UTF-8")?.to_owned(), file.clone()));
    }
    // Debug information is most of the executable, and nobody debugs in a container that has nothing else.
    let stripped = build::target_dir()?.join("weir-stripped");
    command::run(Command::new("strip").arg("-o").arg(&stripped).arg(&program))?;
    files[0].1 = stripped;
    let archive = build::target_dir()?.join("weir-image.tar");
    write_archive(&archive, WEIR, "weir", &files)?;
    println!("{} is {WEIR}", archive.display());
    Ok(())
}

/// Builds the echo image and returns the path of its archive.
pub(crate) fn echo() -> Result<PathBuf> {
    let program = build::echo()?;
    let archive = build::target_dir()?.join("weir-echo.tar");
    write_archive(&archive, ECHO, "echo", &[("echo".to_owned(), program)])?;
    Ok(archive)
}

/// One blob of the archive: its content and how others refer to it.
struct Blob {
    media_type: &'static str,
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        let hash = Sha256::digest(&content);
        let digest = hash.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        Self { media_type, digest, content }
    }

    fn json(media_type: &'static str, document: &Value) -> Self {
        Self::new(media_type, document.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.content.len(),
        })
    }
}

/// Writes an image whose one layer holds these files, by their places in it; `/name` is its entrypoint.
fn write_archive(archive: &Path, reference: &str, name: &str, files: &[(String, PathBuf)]) -> Result<()> {
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar", layer(files)?);
    let config = Blob::json(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": [format!("/{name}")], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
        }),
    );
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        }),
    );
    let mut entry = manifest.descriptor();
    entry["annotations"] = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference,
    });
    let index = json!({"schemaVersion": 2, "manifests": [entry]});

    let mut tar = tar::Builder::new(fs::File::create(archive)?);
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut tar, "index.json", index.to_string().as_bytes(), 0o644)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut tar, &format!("blobs/sha256/{}", blob.digest), &blob.content, 0o644)?;
    }
    tar.finish()?;
    Ok(())
}

fn layer(files: &[(String, PathBuf)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (place, file) in files {
        let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        append(&mut tar, place, &content, 0o755)?;
    }
    Ok(tar.into_inner()?)
}

/// Adds a file; its times and owner are fixed, so that the same program is the same image.
fn append(tar: &mut tar::Builder<impl Write>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, content)?;
    Ok(())
}

/// The machine's architecture by its name in the OCI specification (Go's names).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
