//! What the runtime's tests stand on: an image made of busybox, and a node of their own that leaves nothing behind.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;
use sha2::{Digest, Sha256};
use weir_kubelet::{
    image::Store,
    runtime::{
        ContainerId, ContainerSpec, ContainerState, ContainerStatus, Runtime, SandboxId, SandboxSpec,
        embedded::{Cni, Config, Embedded, cleanup},
    },
};
use weir_tests::Cgroup;

/// The image's name.
pub(crate) const IMAGE: &str = "docker.io/library/busybox:test";
/// The address that the tests' CNI plugin gives to every pod.
pub(crate) const ADDRESS: &str = "10.244.9.7";

/// A CNI plugin that connects nothing, and notes that it was called.
const PLUGIN: &str = r#"#!/bin/sh
cat > /dev/null
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS" >> "$(dirname "$0")/calls"
[ -e "$(dirname "$0")/refuse" ] && { echo '{"code":11,"msg":"no address is free","details":"the range is full"}'; exit 1; }
echo '{"cniVersion":"1.0.0","ips":[{"address":"10.244.9.7/32"}]}'
"#;

/// A node of its own: directories, a cgroup root, an image. Dropping it removes everything.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    cgroup: Cgroup,
}

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::new(&name).expect("a cgroup: these tests need root");
        let node = Self { directory: tempfile::tempdir().expect("a directory"), cgroup };
        let plugin = node.path("plugin");
        fs::write(&plugin, PLUGIN).expect("the plugin");
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("the plugin's mode");
        let archive = node.path("busybox.tar");
        fs::write(&archive, busybox_archive()).expect("the archive");
        Store::new(&node.path("data")).import(&archive, None).expect("the image");
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The configuration of a runtime on this node.
    pub(crate) fn config(&self) -> Config {
        let this = std::env::current_exe().expect("this program");
        Config {
            cgroup_root: Some(self.cgroup.path().to_owned()),
            shim: vec![this.into(), "shim".into()],
            cni: Cni {
                command: vec![self.path("plugin")],
                config: json!({ "cniVersion": "1.0.0", "name": "test" }),
            },
            ..Config::new(&self.path("data"), &self.path("run"))
        }
    }

    pub(crate) async fn runtime(&self) -> Embedded {
        Embedded::open(self.config()).await.expect("a runtime")
    }

    /// What the plugin was called with.
    pub(crate) fn plugin_calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// A container's group in the hierarchy of a controller.
    pub(crate) fn cgroup_of(&self, status: &ContainerStatus, controller: &str) -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        let root = if v1.exists() { v1.join(self.cgroup.name()) } else { self.cgroup.path().to_owned() };
        root.join("weir/podu-1").join(status.id.as_str())
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path("logs").join(name).join("0.log")).expect("a log")
    }

    /// A container of the image that runs a shell script.
    pub(crate) async fn script(&self, name: &str, script: &str) -> ContainerSpec {
        let image = self.runtime().await.image_status(IMAGE).await.expect("the store").expect("the image");
        ContainerSpec {
            name: name.into(),
            image: IMAGE.into(),
            image_id: image.id,
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: self.path("logs").join(name).join("0.log"),
            ..ContainerSpec::default()
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let config = self.config();
        // A drop may happen in a runtime, which cannot run another.
        std::thread::spawn(move || block_on(cleanup(&config)))
            .join()
            .expect("the thread that cleans up")
            .unwrap_or_else(|error| eprintln!("cannot clean up: {error}"));
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio").block_on(future)
}

pub(crate) fn sandbox() -> SandboxSpec {
    SandboxSpec {
        namespace: "shop".into(),
        name: "web-0".into(),
        uid: "u-1".into(),
        hostname: "web-0".into(),
        ..SandboxSpec::default()
    }
}

pub(crate) async fn status(runtime: &Embedded, id: &ContainerId) -> ContainerStatus {
    runtime.container_status(id).await.expect("a status").expect("the container")
}

/// Creates and starts a container.
pub(crate) async fn start(runtime: &Embedded, sandbox: &SandboxId, spec: &ContainerSpec) -> ContainerId {
    let id = runtime.create_container(sandbox, spec).await.expect("a container");
    runtime.start_container(&id).await.expect("a start");
    id
}

/// Waits for a container to be over.
pub(crate) async fn ended(runtime: &Embedded, id: &ContainerId) -> ContainerStatus {
    until("the container to be over", async || {
        let status = status(runtime, id).await;
        (status.state == ContainerState::Exited).then_some(status)
    })
    .await
}

/// Waits for a condition, for 20 seconds at most.
pub(crate) async fn until<T>(what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An OCI archive with one gzip layer: Debian's static busybox, and two users.
pub(crate) fn busybox_archive() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let program = fs::read("/bin/busybox").expect("/bin/busybox: apt-get install busybox-static");
    add(&mut layer, "bin/busybox", &program, 0o755);
    for name in
        ["sh", "sleep", "cat", "echo", "id", "tail", "head", "env", "hostname", "ip", "true", "kill", "ls"]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox").expect("a link");
    }
    add(&mut layer, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n", 0o644);
    add(&mut layer, "bin/broken", b"#!/no/such/interpreter\n", 0o755);
    let layer = layer.into_inner().expect("a layer");
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin", "FROM=image"], "Cmd": ["/bin/sh"], "WorkingDir": "/work" },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer).expect("a compressed layer");
    let layer = gzip.finish().expect("a compressed layer");
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar+gzip", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut named = descriptor("manifest.v1+json", &manifest);
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": IMAGE });
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    add(
        &mut archive,
        "index.json",
        json!({ "schemaVersion": 2, "manifests": [named] }).to_string().as_bytes(),
        0o644,
    );
    for blob in [&manifest, &config, &layer] {
        add(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644);
    }
    archive.into_inner().expect("an archive")
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, content).expect("an entry");
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}
