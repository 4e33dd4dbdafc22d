//! Reads image archives: finds the images in an OCI layout or a `docker save` tar, and gives access to their blobs.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Error, Result, reference::digest_hex};

/// Manifests, configurations and indexes are small; anything larger is no image.
const DOCUMENT_LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// An index in an index in an index is a mistake or an attack.
const INDEX_DEPTH_LIMIT: usize = 3;

/// An opened archive: where each of its files lies. Nothing is unpacked or loaded.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    offset: u64,
    size: u64,
}

/// An image found in an archive.
pub(super) struct Found {
    /// The names that the archive gives it.
    pub(super) names: Vec<String>,
    /// Its manifest, as bytes: what its digest is of.
    pub(super) manifest: Vec<u8>,
    /// Its configuration, as bytes.
    pub(super) config: Vec<u8>,
    /// Its layers, lowest first.
    pub(super) layers: Vec<Layer>,
}

/// A layer's blob in the archive.
pub(super) struct Layer {
    /// Its file in the archive.
    pub(super) file: String,
    /// The digest of that file, where the archive states one.
    pub(super) digest: Option<String>,
    /// The file's size.
    pub(super) size_bytes: u64,
}

/// One element of a `docker save` archive's `manifest.json`.
#[derive(Deserialize)]
struct DockerImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

impl Archive {
    /// Opens an archive and lists its files.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let broken = |problem: String| Error::Archive { file: path.to_owned(), problem };
        let mut magic = [0u8; 4];
        let length = (&file).read(&mut magic).map_err(Error::io("read", path))?;
        match &magic[..length] {
            [0x1f, 0x8b, ..] => {
                return Err(broken("it is compressed; decompress it first with gunzip".into()));
            }
            [0x28, 0xb5, 0x2f, 0xfd] => {
                return Err(broken("it is compressed; decompress it first with unzstd".into()));
            }
            _ => {}
        }
        (&file).seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let mut entries = HashMap::new();
        let mut tar = tar::Archive::new(BufReader::new(&file));
        for entry in tar.entries_with_seek().map_err(|e| broken(e.to_string()))? {
            let entry = entry.map_err(|e| broken(format!("it is not a tar file ({e})")))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = entry.path().map_err(|e| broken(e.to_string()))?;
            let Some(name) = plain_name(&name) else { continue };
            let found = Entry { offset: entry.raw_file_position(), size: entry.size() };
            if found.offset.saturating_add(found.size) > size {
                return Err(broken(format!("it ends in the middle of \"{name}\"")));
            }
            entries.insert(name, found);
        }
        drop(tar);
        if entries.is_empty() {
            return Err(broken("there are no files in it".into()));
        }
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// The images in it.
    pub(super) fn images(&self) -> Result<Vec<Found>> {
        let images = if self.entries.contains_key("index.json") {
            self.oci_images()?
        } else if self.entries.contains_key("manifest.json") {
            self.docker_images()?
        } else {
            return Err(self.broken("there is neither index.json nor manifest.json in it"));
        };
        if images.is_empty() {
            return Err(self.broken(format!("there is no image for linux/{} in it", Arch::default())));
        }
        Ok(images)
    }

    /// A reader of a layer's blob.
    pub(super) fn reader(&self, file: &str) -> Result<impl Read + '_> {
        let entry = *self
            .entries
            .get(file)
            .ok_or_else(|| self.broken(format!("its manifest names \"{file}\", which is not in it")))?;
        (&self.file).seek(SeekFrom::Start(entry.offset)).map_err(Error::io("read", &self.path))?;
        Ok((&self.file).take(entry.size))
    }

    /// An error about this archive.
    pub(super) fn broken(&self, problem: impl Into<String>) -> Error {
        Error::Archive { file: self.path.clone(), problem: problem.into() }
    }

    fn oci_images(&self) -> Result<Vec<Found>> {
        let index: ImageIndex = self.parse("index.json", &self.document("index.json")?)?;
        // `docker save` writes both documents; the full names are in the older one.
        let docker: Vec<DockerImage> = match self.entries.get("manifest.json") {
            Some(_) => self.parse("manifest.json", &self.document("manifest.json")?)?,
            None => Vec::new(),
        };
        let mut images = Vec::new();
        for descriptor in index.manifests() {
            let Some(manifest) = self.manifest_for_this_machine(descriptor, 0)? else { continue };
            let mut image = self.oci_image(manifest)?;
            image.names = annotated_names(descriptor);
            if image.names.is_empty() {
                let blob = blob_name(&sha256(&image.config));
                image.names = docker
                    .iter()
                    .filter(|d| d.config == blob)
                    .filter_map(|d| d.tags.clone())
                    .flatten()
                    .collect();
            }
            images.push(image);
        }
        Ok(images)
    }

    fn manifest_for_this_machine(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<Vec<u8>>> {
        if descriptor.platform().as_ref().is_some_and(|platform| {
            *platform.os() != Os::default() || *platform.architecture() != Arch::default()
        }) {
            return Ok(None);
        }
        let digest = descriptor.digest().to_string();
        let bytes = self.blob("manifest", &digest)?;
        let is_index = matches!(descriptor.media_type(), MediaType::ImageIndex)
            || descriptor.media_type().to_string().ends_with("manifest.list.v2+json");
        if !is_index {
            return Ok(Some(bytes));
        }
        if depth == INDEX_DEPTH_LIMIT {
            return Err(self.broken(format!("its indexes are nested more than {INDEX_DEPTH_LIMIT} deep")));
        }
        let index: ImageIndex = self.parse(&digest, &bytes)?;
        for inner in index.manifests() {
            if let Some(manifest) = self.manifest_for_this_machine(inner, depth + 1)? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    fn oci_image(&self, manifest: Vec<u8>) -> Result<Found> {
        let parsed: ImageManifest = self.parse("the manifest", &manifest)?;
        let config = self.blob("configuration", parsed.config().digest().as_ref())?;
        let mut layers = Vec::new();
        for layer in parsed.layers() {
            let digest = layer.digest().to_string();
            if digest_hex(&digest).is_none() {
                return Err(
                    self.broken(format!("it has a layer with the digest {digest}; only sha256 is known"))
                );
            }
            let file = blob_name(&digest);
            let entry = self
                .entries
                .get(&file)
                .ok_or_else(|| self.broken(format!("its layer {digest} is not in it")))?;
            layers.push(Layer { size_bytes: entry.size, digest: Some(digest), file });
        }
        Ok(Found { names: Vec::new(), manifest, config, layers })
    }

    fn docker_images(&self) -> Result<Vec<Found>> {
        let docker: Vec<DockerImage> = self.parse("manifest.json", &self.document("manifest.json")?)?;
        docker.into_iter().map(|image| self.docker_image(image)).collect()
    }

    /// There is no manifest whose digest could name the image, so the list of its parts stands for one.
    fn docker_image(&self, image: DockerImage) -> Result<Found> {
        let config = self.document(&image.config)?;
        let mut layers = Vec::new();
        for file in image.layers {
            let entry = self
                .entries
                .get(&file)
                .ok_or_else(|| self.broken(format!("its layer \"{file}\" is not in it")))?;
            layers.push(Layer { size_bytes: entry.size, digest: None, file });
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": { "digest": sha256(&config), "size": config.len() },
        });
        let manifest = manifest.to_string().into_bytes();
        Ok(Found { names: image.tags.unwrap_or_default(), manifest, config, layers })
    }

    fn blob(&self, object: &str, digest: &str) -> Result<Vec<u8>> {
        if digest_hex(digest).is_none() {
            return Err(self.broken(format!("its {object} has the digest {digest}; only sha256 is known")));
        }
        let bytes = self.document(&blob_name(digest))?;
        let actual = sha256(&bytes);
        if actual != digest {
            let object = format!("{object} {digest}");
            return Err(Error::Digest {
                file: self.path.clone(),
                object,
                expected: digest.to_owned(),
                actual,
            });
        }
        Ok(bytes)
    }

    fn document(&self, file: &str) -> Result<Vec<u8>> {
        let size = self.entries.get(file).map_or(0, |entry| entry.size);
        if size > DOCUMENT_LIMIT_BYTES {
            return Err(self.broken(format!("\"{file}\" has {size} bytes, more than {DOCUMENT_LIMIT_BYTES}")));
        }
        let mut bytes = Vec::new();
        self.reader(file)?.read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, file: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes)
            .map_err(|e| self.broken(format!("{file} in it cannot be understood ({e})")))
    }
}

/// `sha256:` and the hash of the bytes.
pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn annotated_names(descriptor: &Descriptor) -> Vec<String> {
    let Some(annotations) = descriptor.annotations() else { return Vec::new() };
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .filter_map(|key| annotations.get(*key))
        // A bare tag, which the specification also allows, names nothing.
        .filter(|name| name.contains(['/', ':']))
        .take(1)
        .cloned()
        .collect()
}

/// The name without `./`; none if it is not a plain relative path.
fn plain_name(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(parts.join("/"))
}
