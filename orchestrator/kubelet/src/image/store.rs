//! The images on disk.
//!
//! ```text
//! images/
//!   lock                     held by an import or a removal
//!   index.json               name -> manifest digest, and what each image consists of
//!   blobs/sha256/<hex>       manifests and configurations
//!   layers/<32 hex digits>/  an unpacked layer, named by the head of its diff id: short, because overlayfs takes
//!                            all names of a mount on one page
//!   tmp/                     what is being unpacked; whatever an import finds here, a crash left
//! ```
//! The index is replaced as a whole by a rename after everything it names is in place, and is the only truth: a file
//! that it does not name does not exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Error, Reference, Result,
    archive::{self, Archive, Found},
    layer,
    reference::digest_hex,
};
use crate::runtime::{Image, ImageConfig};

/// Overlayfs takes all lower directories on one page, which this many of our short names fill.
const LAYER_LIMIT: usize = 120;

/// The image store of one machine.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// `index.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    /// Normalised name -> manifest digest.
    references: BTreeMap<String, String>,
    /// Manifest digest -> image.
    images: BTreeMap<String, Record>,
}

/// An image in `index.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Digest of the configuration.
    config: String,
    /// Diff ids of the layers, lowest first.
    layers: Vec<String>,
    size_bytes: u64,
}

impl Store {
    /// The store below a data directory. Nothing is made before the first import.
    pub fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("images") }
    }

    /// Imports an archive and returns the names of its images. Each image is there as a whole, or not at all.
    pub fn import(&self, file: &Path, name: Option<&str>) -> Result<Vec<String>> {
        let name = name.map(Reference::parse).transpose()?;
        let archive = Archive::open(file)?;
        let images = archive.images()?;
        if name.is_some() && images.len() > 1 {
            return Err(archive.broken(format!(
                "it has {} images, so one --name cannot name them; import it without --name",
                images.len()
            )));
        }
        let _lock = self.lock()?;
        self.sweep()?;
        let imported = self.import_images(file, &archive, images, name.as_ref());
        self.sweep()?;
        imported
    }

    /// Removes a name, and the image with its layers when no other name is left.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let _lock = self.lock()?;
        let mut index = self.index()?;
        let not_found = || Error::NotFound { reference: reference.to_owned() };
        let digest = Self::find(&index, reference).ok_or_else(not_found)?;
        let by_name = Reference::parse(reference).ok().map(|r| r.to_string());
        match by_name.filter(|name| index.references.contains_key(name)) {
            Some(name) => drop(index.references.remove(&name)),
            None => index.references.retain(|_, target| *target != digest),
        }
        if index.references.values().any(|target| *target == digest) {
            return self.write_index(&index);
        }
        let record = index.images.remove(&digest).ok_or_else(not_found)?;
        let kept: BTreeSet<&String> = index.images.values().flat_map(|image| &image.layers).collect();
        let gone: Vec<String> =
            record.layers.iter().filter(|layer| !kept.contains(layer)).map(|l| layer_name(l)).collect();
        if layers_in_use(&gone)? {
            return Err(Error::InUse { reference: reference.to_owned() });
        }
        self.write_index(&index)?;
        self.sweep()
    }

    /// All images.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.index()?;
        index.images.keys().map(|digest| self.image(&index, digest)).collect()
    }

    /// The image that a name, a name with a digest, or an image id (the configuration's digest) means.
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let index = self.index()?;
        Self::find(&index, reference).map(|digest| self.image(&index, &digest)).transpose()
    }

    /// The directory of layers, and the names in it of an image's layers, highest first, as overlayfs wants them.
    pub(crate) fn lower_directories(&self, image_id: &str) -> Result<Option<(PathBuf, Vec<String>)>> {
        let index = self.index()?;
        let record = index.images.values().find(|image| image.config == image_id);
        Ok(record.map(|r| (self.layers(), r.layers.iter().rev().map(|l| layer_name(l)).collect())))
    }

    fn import_images(
        &self,
        file: &Path,
        archive: &Archive,
        images: Vec<Found>,
        name: Option<&Reference>,
    ) -> Result<Vec<String>> {
        let mut index = self.index()?;
        let mut imported = Vec::new();
        for image in images {
            let names = match name {
                Some(name) => vec![name.to_string()],
                None => image
                    .names
                    .iter()
                    .map(|name| Reference::parse(name).map(|r| r.to_string()))
                    .collect::<Result<_>>()?,
            };
            if names.is_empty() {
                return Err(Error::Unnamed { file: file.to_owned() });
            }
            let digest = archive::sha256(&image.manifest);
            let record = self.import_image(file, archive, &image)?;
            self.write_blob(&digest, &image.manifest)?;
            self.write_blob(&record.config, &image.config)?;
            index.images.insert(digest.clone(), record);
            for name in names {
                index.references.insert(name.clone(), digest.clone());
                imported.push(name);
            }
        }
        self.write_index(&index)?;
        Ok(imported)
    }

    fn import_image(&self, file: &Path, archive: &Archive, image: &Found) -> Result<Record> {
        let config: ImageConfiguration = serde_json::from_slice(&image.config)
            .map_err(|e| archive.broken(format!("its configuration cannot be understood ({e})")))?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != image.layers.len() {
            return Err(archive.broken(format!(
                "its manifest has {} layers, its configuration {}",
                image.layers.len(),
                diff_ids.len()
            )));
        }
        if diff_ids.is_empty() || diff_ids.len() > LAYER_LIMIT {
            return Err(
                archive.broken(format!("it has {} layers; 1 to {LAYER_LIMIT} are possible", diff_ids.len()))
            );
        }
        let mut size_bytes = image.config.len() as u64;
        for (diff_id, layer) in diff_ids.iter().zip(&image.layers) {
            if digest_hex(diff_id).is_none() {
                return Err(archive
                    .broken(format!("it has a layer with the diff id {diff_id}; only sha256 is known")));
            }
            size_bytes += layer.size_bytes;
            if !self.layers().join(layer_name(diff_id)).exists() {
                self.import_layer(file, archive, layer, diff_id)?;
            }
        }
        Ok(Record { config: archive::sha256(&image.config), layers: diff_ids.clone(), size_bytes })
    }

    /// Unpacks aside, checks both digests, and only then gives the layer its name.
    fn import_layer(
        &self,
        file: &Path,
        archive: &Archive,
        layer: &archive::Layer,
        diff_id: &str,
    ) -> Result<()> {
        let aside = self.root.join("tmp").join(layer_name(diff_id));
        make_directory(&aside)?;
        let mut compressed = Hashed::new(archive.reader(&layer.file)?);
        let mut plain = Hashed::new(decompress(&mut compressed).map_err(Error::io("decompress", file))?);
        layer::unpack(&mut plain, &aside, layer.digest.as_deref().unwrap_or(diff_id))?;
        // The end of a tar file comes before the end of its bytes, and the digest is of all of them.
        io::copy(&mut plain, &mut io::sink()).map_err(Error::io("decompress", file))?;
        let actual = plain.finish();
        io::copy(&mut compressed, &mut io::sink()).map_err(Error::io("read", file))?;
        let actual_compressed = compressed.finish();
        let checks = [(layer.digest.as_deref(), actual_compressed), (Some(diff_id), actual)];
        for (expected, actual) in checks {
            if let Some(expected) = expected.filter(|expected| *expected != actual) {
                let (object, expected) = (format!("layer {}", layer.file), expected.to_owned());
                return Err(Error::Digest { file: file.to_owned(), object, expected, actual });
            }
        }
        make_directory(&self.layers())?;
        let target = self.layers().join(layer_name(diff_id));
        fs::rename(&aside, &target).map_err(Error::io("create", target))
    }

    fn find(index: &Index, reference: &str) -> Option<String> {
        let by_id = |id: &str| {
            let record = index.images.iter().find(|(_, image)| image.config == id);
            record.map(|(digest, _)| digest.clone())
        };
        if digest_hex(reference).is_some() {
            return by_id(reference)
                .or_else(|| index.images.get_key_value(reference).map(|(d, _)| d.clone()));
        }
        let parsed = Reference::parse(reference).ok()?;
        match parsed.digest() {
            // Only an image that came under this name: a digest must not turn one name into another.
            Some(digest) => {
                let known = index
                    .references
                    .iter()
                    .any(|(name, target)| target == digest && same_name(name, parsed.name()));
                known.then(|| digest.to_owned())
            }
            None => index.references.get(&parsed.to_string()).cloned(),
        }
    }

    fn image(&self, index: &Index, digest: &str) -> Result<Image> {
        let record = &index.images[digest];
        let path = self.blob(&record.config);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let parsed: ImageConfiguration =
            serde_json::from_slice(&bytes).map_err(|e| self.damaged(&path, &e.to_string()))?;
        let references = index.references.iter().filter(|(_, target)| *target == digest);
        Ok(Image {
            id: record.config.clone(),
            digest: digest.to_owned(),
            references: references.map(|(name, _)| name.clone()).collect(),
            size_bytes: record.size_bytes,
            config: parsed.config().as_ref().map(image_config).unwrap_or_default(),
        })
    }

    fn index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let index: Index =
                    serde_json::from_slice(&bytes).map_err(|e| self.damaged(&path, &e.to_string()))?;
                match index.references.values().find(|digest| !index.images.contains_key(*digest)) {
                    Some(digest) => {
                        Err(self.damaged(&path, &format!("it has a name for {digest}, but not that")))
                    }
                    None => Ok(index),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    fn write_index(&self, index: &Index) -> Result<()> {
        let bytes = serde_json::to_vec(index).expect("the index has only text keys");
        write_whole(&self.root.join("index.json"), &bytes)
    }

    fn write_blob(&self, digest: &str, bytes: &[u8]) -> Result<()> {
        make_directory(&self.root.join("blobs/sha256"))?;
        write_whole(&self.blob(digest), bytes)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs").join(digest.replacen(':', "/", 1))
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn lock(&self) -> Result<Flock<File>> {
        make_directory(&self.root)?;
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::io("lock", path)(errno))
    }

    /// Removes whatever the index does not name: what a removal, a refused import or a crash left.
    fn sweep(&self) -> Result<()> {
        let index = self.index()?;
        let layers = index.images.values().flat_map(|image| &image.layers).map(|layer| layer_name(layer));
        let layers: BTreeSet<String> = layers.collect();
        let blobs = index.images.iter().flat_map(|(digest, image)| [digest, &image.config]);
        let blobs: BTreeSet<String> =
            blobs.filter_map(|digest| digest_hex(digest)).map(str::to_owned).collect();
        remove_tree(&self.root.join("tmp"))?;
        for layer in unnamed(&self.layers(), &layers)? {
            remove_tree(&layer)?;
        }
        for blob in unnamed(&self.root.join("blobs/sha256"), &blobs)? {
            fs::remove_file(&blob).map_err(Error::io("remove", blob))?;
        }
        Ok(())
    }

    fn damaged(&self, file: &Path, problem: &str) -> Error {
        Error::Store { file: file.to_owned(), directory: self.root.clone(), problem: problem.to_owned() }
    }
}

/// A reader that hashes what passes through it.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    fn finish(self) -> String {
        format!("sha256:{}", archive::hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// Looks at the first bytes rather than at a media type: archives lie, magic numbers do not.
fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(reader);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

fn layer_name(diff_id: &str) -> String {
    digest_hex(diff_id).unwrap_or(diff_id).chars().take(32).collect()
}

fn same_name(stored: &str, name: &str) -> bool {
    stored.strip_prefix(name).is_some_and(|rest| rest.starts_with([':', '@']))
}

fn image_config(config: &oci_spec::image::Config) -> ImageConfig {
    ImageConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone(),
    }
}

/// Taking a directory away from under a mounted overlay is undefined, so the mounts are asked. This sees the
/// containers of every node on this machine.
fn layers_in_use(layers: &[String]) -> Result<bool> {
    let path = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let overlays = mounts.lines().filter(|line| line.contains(" - overlay "));
    Ok(overlays.into_iter().any(|line| layers.iter().any(|layer| line.contains(layer.as_str()))))
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    let mut file = File::create(&aside).map_err(Error::io("create", &aside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", &aside))?;
    fs::rename(&aside, path).map_err(Error::io("replace", path))
}

fn make_directory(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(path).map_err(Error::io("create", path))
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The entries of a directory whose names are not among these.
fn unnamed(directory: &Path, names: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", directory))?,
    };
    let paths = entries.map(|entry| Ok(entry.map_err(Error::io("list", directory))?.path()));
    let is_unnamed =
        |path: &PathBuf| !path.file_name().and_then(|n| n.to_str()).is_some_and(|n| names.contains(n));
    paths.filter(|path| path.as_ref().map_or(true, is_unnamed)).collect()
}

#[cfg(test)]
mod tests;
