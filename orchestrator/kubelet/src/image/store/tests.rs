//! Archives of both kinds, whole and broken.

use serde_json::json;

use super::*;

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(nix::unistd::Uid::effective().as_raw().into());
        header.set_gid(nix::unistd::Gid::effective().as_raw().into());
        tar.append_data(&mut header, path, *content).expect("an entry");
    }
    tar.into_inner().expect("a tar file")
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| archive::sha256(layer)).collect();
    json!({
        "architecture": oci_spec::image::Arch::default().to_string(),
        "os": "linux",
        "config": { "Entrypoint": ["/app"], "StopSignal": "SIGQUIT", "ExposedPorts": { "80/tcp": {} } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

/// An OCI layout; `edit` may break a layer's blob after its digest was taken.
fn oci(name: Option<&str>, layers: &[&[u8]], edit: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let config = config(layers);
    let blobs: Vec<Vec<u8>> =
        layers.iter().map(|layer| zstd::encode_all(*layer, 1).expect("a blob")).collect();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": archive::sha256(bytes), "size": bytes.len() })
    };
    let layers: Vec<_> = blobs.iter().map(|blob| descriptor("layer.v1.tar+zstd", blob)).collect();
    let manifest =
        json!({ "schemaVersion": 2, "config": descriptor("config.v1+json", &config), "layers": layers });
    let manifest = manifest.to_string().into_bytes();
    let mut named = descriptor("manifest.v1+json", &manifest);
    if let Some(name) = name {
        named["annotations"] = json!({ "io.containerd.image.name": name });
    }
    let index = json!({ "schemaVersion": 2, "manifests": [named] }).to_string().into_bytes();
    let mut files = vec![("index.json".to_owned(), index)];
    let path = |bytes: &[u8]| format!("blobs/{}", archive::sha256(bytes).replace(':', "/"));
    files.extend([(path(&config), config), (path(&manifest), manifest)]);
    files.extend(blobs.into_iter().map(|blob| (path(&blob), edit(blob))));
    tar(&files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect::<Vec<_>>())
}

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::new(directory.path());
        Self { directory, store }
    }

    fn import(&self, archive: &[u8], name: Option<&str>) -> Result<Vec<String>> {
        let file = self.directory.path().join("image.tar");
        fs::write(&file, archive).expect("the archive");
        self.store.import(&file, name)
    }

    fn count(&self, directory: &str) -> usize {
        fs::read_dir(self.store.root.join(directory)).map_or(0, Iterator::count)
    }

    /// Imports what must be refused, and returns the reason.
    fn refuse(&self, archive: &[u8]) -> String {
        let error = self.import(archive, None).expect_err("a refusal").to_string();
        assert!(error.contains("image.tar"), "the error does not name the file: {error}");
        assert_eq!(
            (self.count("layers"), self.count("tmp"), self.count("blobs/sha256")),
            (0, 0, 0),
            "{error}"
        );
        assert!(self.store.list().expect("a list").is_empty());
        error
    }
}

#[test]
fn an_oci_archive_is_imported_and_found_by_every_name() {
    let fixture = Fixture::new();
    let layer = tar(&[("app", b"program")]);
    let names = fixture.import(&oci(Some("shop:v1"), &[&layer], |blob| blob), None).expect("an import");
    assert_eq!(names, ["docker.io/library/shop:v1"]);
    let image = fixture.store.get("shop:v1").expect("the store").expect("the image");
    assert_eq!(image.config.entrypoint, ["/app"]);
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    for reference in [&image.id, &image.digest, &format!("shop@{}", image.digest)] {
        assert_eq!(fixture.store.get(reference).expect("the store").as_ref(), Some(&image), "{reference}");
    }
    for reference in ["shop", "shop:v2", &format!("other@{}", image.digest), "Not A Name"] {
        assert_eq!(fixture.store.get(reference).expect("the store"), None, "{reference}");
    }
    let (layers, lower) = fixture.store.lower_directories(&image.id).expect("the store").expect("the image");
    assert_eq!(fs::read(layers.join(&lower[0]).join("app")).expect("the file"), b"program");
}

#[test]
fn a_docker_archive_is_imported() {
    let fixture = Fixture::new();
    let (lower, upper) = (tar(&[("a", b"1")]), tar(&[("b", b"2")]));
    let config = config(&[&lower, &upper]);
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["shop:v1", "shop:v2"], "Layers": ["1/layer.tar", "2/layer.tar"] }]);
    let archive = tar(&[
        ("c.json", &config),
        ("1/layer.tar", &lower),
        ("2/layer.tar", &upper),
        ("manifest.json", manifest.to_string().as_bytes()),
    ]);
    fixture.import(&archive, None).expect("an import");
    let image = fixture.store.get("shop:v2").expect("the store").expect("the image");
    assert_eq!(image.references, ["docker.io/library/shop:v1", "docker.io/library/shop:v2"]);
    let (layers, names) = fixture.store.lower_directories(&image.id).expect("the store").expect("the image");
    assert!(layers.join(&names[0]).join("b").exists(), "the uppermost layer comes first");
}

#[test]
fn layers_are_shared_and_removed_with_the_last_image() {
    let fixture = Fixture::new();
    let (base, own) = (tar(&[("base", b"")]), tar(&[("own", b"")]));
    fixture.import(&oci(None, &[&base], |blob| blob), Some("base")).expect("an import");
    fixture.import(&oci(None, &[&base, &own], |blob| blob), Some("top")).expect("an import");
    assert_eq!(fixture.count("layers"), 2);
    fixture.store.remove("top").expect("a removal");
    assert_eq!((fixture.count("layers"), fixture.count("blobs/sha256")), (1, 2));
    fixture.store.remove("base").expect("a removal");
    assert_eq!((fixture.count("layers"), fixture.count("blobs/sha256")), (0, 0));
    assert!(matches!(fixture.store.remove("base"), Err(Error::NotFound { .. })));
}

#[test]
fn broken_archives_are_refused_and_leave_nothing() {
    let fixture = Fixture::new();
    let layer = tar(&[("file", b"content")]);
    let broken_blob = oci(Some("a:b"), &[&layer], |mut blob| {
        let last = blob.len() - 1;
        blob[last] ^= 1;
        blob
    });
    // A flipped bit shows in the blob's digest, or already while it is decompressed.
    let error = fixture.import(&broken_blob, None).expect_err("a refusal").to_string();
    assert!(error.contains("damaged") || error.contains("decompress") || error.contains("broken"), "{error}");
    assert_eq!((fixture.count("layers"), fixture.count("tmp")), (0, 0));
    let second = tar(&[("second", b"layer")]);
    let second_broken = oci(Some("a:b"), &[&layer, &second], |blob| {
        let is_second = zstd::decode_all(&blob[..]).expect("a blob") == second;
        if is_second { blob[..blob.len() / 2].to_vec() } else { blob }
    });
    fixture.import(&second_broken, None).expect_err("a refusal");
    assert_eq!(fixture.count("layers"), 0, "the first layer was whole, but belongs to no image");
    let appended = oci(Some("a:b"), &[&layer], |mut blob| {
        blob.extend(zstd::encode_all(&b"more"[..], 1).expect("a frame"));
        blob
    });
    assert!(fixture.refuse(&appended).contains("damaged"));
    assert!(fixture.refuse(b"no archive").contains("tar"));
    assert!(fixture.refuse(&tar(&[("README", b"hello")])).contains("neither index.json nor manifest.json"));
    assert!(fixture.refuse(&tar(&[("index.json", b"{")])).contains("cannot be understood"));
    assert!(fixture.refuse(&oci(None, &[&layer], |blob| blob)).contains("--name"));
    let whole = oci(Some("a:b"), &[&layer], |blob| blob);
    assert!(fixture.refuse(&whole[..whole.len() / 2]).contains("image.tar"));
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0];
    assert!(fixture.refuse(&gzip).contains("gunzip"));
}

#[test]
fn what_a_crash_left_is_cleared() {
    let fixture = Fixture::new();
    let aside = fixture.store.root.join("tmp/half");
    fs::create_dir_all(&aside).expect("a directory");
    let layer = tar(&[("file", b"content")]);
    fixture.import(&oci(Some("a:b"), &[&layer], |blob| blob), None).expect("an import");
    assert_eq!(fixture.count("tmp"), 0);
    fs::write(fixture.store.root.join("index.json"), "{ not JSON").expect("a file");
    let error = fixture.store.list().expect_err("a refusal").to_string();
    assert!(error.contains("index.json") && error.contains("import the images again"), "{error}");
}
