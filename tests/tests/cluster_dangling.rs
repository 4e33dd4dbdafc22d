//! Objects that refer to what is not there, or is broken: each says so itself, with the remedy, and the remedy works. The
//! shop beside them never notices.

use std::{
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use weir_tests::{CLIENT_ADDRESS, Cluster, NODE_ADDRESS, Options, eventually, get};

const SHOP: &str = include_str!("../../examples/shop.yaml");
const INGRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 80);
/// How long a client waits.
const DEADLINE: Duration = Duration::from_secs(10);

/// The example shop, with its certificate.
struct Shop {
    cluster: Cluster,
    files: TempDir,
}

impl Shop {
    fn open() -> Result<Self> {
        let shop = Self { cluster: Cluster::start(Options::from_environment()?)?, files: TempDir::new()? };
        shop.make_certificate("shop", "DNS:shop.example,DNS:admin.shop.example")?;
        let [certificate, key] = ["crt", "key"].map(|kind| shop.file("shop", kind).display().to_string());
        let (certificate, key) = (format!("--cert={certificate}"), format!("--key={key}"));
        shop.cluster.kubectl(&["create", "secret", "tls", "shop-tls", &certificate, &key])?;
        shop.cluster.apply(SHOP)?;
        for deployment in ["deployment/catalog", "deployment/checkout"] {
            shop.cluster.kubectl(&["rollout", "status", "--timeout=60s", deployment])?;
        }
        eventually("the shop serves", || shop.serves())?;
        Ok(shop)
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.files.path().join(format!("{name}.{kind}"))
    }

    fn make_certificate(&self, name: &str, names: &str) -> Result<()> {
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
            ])
            .args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName={names}")])
            .arg("-keyout")
            .arg(self.file(name, "key"))
            .arg("-out")
            .arg(self.file(name, "crt"))
            .output()?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Both hosts answer 200, over HTTP and, with the certificate that was made for them, over HTTPS.
    fn serves(&self) -> Result<()> {
        for host in ["shop.example", "admin.shop.example"] {
            let answer = self.cluster.outside.run(|| get(INGRESS, host, "/", DEADLINE))?;
            ensure!(answer.status == 200, "http://{host}: {} {}", answer.status, answer.body);
            let trust = self.file("shop", "crt").display().to_string();
            let answer = self.https(host, &["--cacert", &trust])?;
            ensure!(answer == "200", "https://{host}: {answer}");
        }
        Ok(())
    }

    /// The status of a GET over HTTPS from outside.
    fn https(&self, host: &str, trust: &[&str]) -> Result<String> {
        let output = self
            .cluster
            .outside
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code}", "--resolve", &format!("{host}:443:{NODE_ADDRESS}")])
            .args(trust)
            .arg(format!("https://{host}/"))
            .output()?;
        ensure!(output.status.success(), "https://{host}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits for an Event on that object whose message holds all these words.
    fn event(&self, kind: &str, name: &str, reason: &str, words: &[&str]) -> Result<()> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
        eventually("an event tells", || {
            let messages = self.cluster.kubectl(&[
                "get",
                "events",
                "--field-selector",
                &selector,
                "--output=jsonpath={range .items[*]}{.message}{\"\\n\"}{end}",
            ])?;
            let told = messages.lines().any(|message| words.iter().all(|word| message.contains(word)));
            ensure!(told, "no event {reason} on {kind} {name} holds {words:?}:\n{messages}");
            Ok(())
        })
    }

    fn waits_with(&self, pod: &str, reason: &str) -> Result<()> {
        let state = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        let condition = format!("--for={state}={reason}");
        self.cluster.kubectl(&["wait", &format!("pod/{pod}"), &condition, "--timeout=20s"]).map(drop)
    }

    fn is_ready(&self, pod: &str) -> Result<()> {
        let pod = format!("pod/{pod}");
        self.cluster.kubectl(&["wait", &pod, "--for=condition=Ready", "--timeout=60s"]).map(drop)
    }
}

#[test]
fn pods_that_lack_something_say_what_and_start_once_it_is_there() -> Result<()> {
    let shop = Shop::open()?;
    let cluster = &shop.cluster;
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: imageless}
spec: {containers: [{name: a, image: 'no.such/image:v1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: keyless}
spec:
  containers:
    - name: a
      image: weir.dev/echo:latest
      env: [{name: SHOW_A, valueFrom: {secretKeyRef: {name: shop, key: absent}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: fileless}
spec:
  containers: [{name: a, image: 'weir.dev/echo:latest', volumeMounts: [{name: files, mountPath: /files}]}]
  volumes: [{name: files, configMap: {name: shop, items: [{key: absent, path: a}]}}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapless}
spec:
  containers: [{name: a, image: 'weir.dev/echo:latest', envFrom: [{configMapRef: {name: absent}}]}]
",
    )?;

    shop.event(
        "Pod",
        "imageless",
        "Failed",
        &["Failed to pull image \"no.such/image:v1\"", "weir image import FILE"],
    )?;
    shop.event("Pod", "imageless", "Failed", &["Error: ErrImagePull"])?;
    shop.waits_with("imageless", "ImagePullBackOff")?;
    shop.event("Pod", "imageless", "BackOff", &["Back-off pulling image \"no.such/image:v1\""])?;
    shop.waits_with("keyless", "CreateContainerConfigError")?;
    shop.event("Pod", "keyless", "Failed", &["couldn't find key absent in Secret default/shop"])?;
    shop.event("Pod", "fileless", "FailedMount", &["volume \"files\"", "configmap \"shop\"", "key: absent"])?;
    shop.waits_with("mapless", "CreateContainerConfigError")?;
    shop.event("Pod", "mapless", "Failed", &["configmap \"absent\" not found"])?;
    shop.serves().context("beside pods that cannot start")?;

    let options = Options::from_environment()?;
    let (data_dir, image) =
        (cluster.data_dir().display().to_string(), options.images[0].display().to_string());
    let import = ["image", "import", "--data-dir", &data_dir, "--name", "no.such/image:v1", &image];
    ensure!(cluster.weir(&import).status()?.success(), "importing the image");
    cluster.kubectl(&["patch", "secret/shop", "--patch={\"stringData\":{\"absent\":\"a\"}}"])?;
    cluster.kubectl(&["patch", "configmap/shop", "--patch={\"data\":{\"absent\":\"a\"}}"])?;
    cluster.kubectl(&["create", "configmap", "absent"])?;
    for pod in ["keyless", "fileless", "mapless", "imageless"] {
        shop.is_ready(pod)?;
    }
    shop.serves()
}

#[test]
fn an_ingress_that_refers_to_what_is_broken_says_so_and_harms_no_other() -> Result<()> {
    let shop = Shop::open()?;
    shop.make_certificate("broken", "DNS:broken.example")?;
    let certificate = std::fs::read_to_string(shop.file("broken", "crt"))?.replace('\n', "\n    ");
    let manifest = format!(
        "
apiVersion: v1
kind: Secret
metadata: {{name: broken-tls}}
type: kubernetes.io/tls
stringData:
  tls.key: this is no key
  tls.crt: |
    {certificate}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: broken, annotations: {{weir.dev/ssl-redirect: 'false'}}}}
spec:
  ingressClassName: weir
  tls:
    - {{hosts: [broken.example], secretName: broken-tls}}
    - {{hosts: [keyless.example], secretName: absent-tls}}
  rules:
    - host: broken.example
      http:
        paths:
          - {{path: /, pathType: Prefix, backend: {{service: {{name: catalog, port: {{number: 80}}}}}}}}
          - {{path: /missing, pathType: Prefix, backend: {{service: {{name: missing, port: {{number: 80}}}}}}}}
          - {{path: /portless, pathType: Prefix, backend: {{service: {{name: catalog, port: {{number: 81}}}}}}}}
"
    );
    shop.cluster.apply(&manifest)?;
    shop.event(
        "Ingress",
        "broken",
        "BadSecret",
        &[
            "Secret \"broken-tls\"",
            "tls.key holds no PEM private key",
            "kubectl create secret tls broken-tls",
        ],
    )?;
    shop.event("Ingress", "broken", "BadSecret", &["Secret \"absent-tls\"", "does not exist"])?;
    shop.event("Ingress", "broken", "BadService", &["default/missing", "does not exist", "create it"])?;
    shop.event("Ingress", "broken", "BadPort", &["default/catalog", "no port 81", "80"])?;
    for (path, status, words) in
        [("/", 200, ""), ("/missing", 503, "default/missing"), ("/portless", 503, "no port 81")]
    {
        let answer = shop.cluster.outside.run(|| get(INGRESS, "broken.example", path, DEADLINE))?;
        ensure!(
            answer.status == status && answer.body.contains(words),
            "{path}: {} {}",
            answer.status,
            answer.body
        );
    }
    // Its HTTPS goes on with a certificate that nobody trusts; everybody else keeps the right one.
    ensure!(shop.https("broken.example", &["--insecure"])? == "200");
    let trust = shop.file("broken", "crt").display().to_string();
    ensure!(
        shop.https("broken.example", &["--cacert", &trust]).is_err(),
        "a broken key serves its certificate"
    );
    shop.serves()?;

    // The remedy, as the Event gives it.
    let [certificate, key] = ["crt", "key"].map(|kind| shop.file("broken", kind).display().to_string());
    let (certificate, key) = (format!("--cert={certificate}"), format!("--key={key}"));
    shop.cluster.kubectl(&["delete", "secret/broken-tls"])?;
    shop.cluster.kubectl(&["create", "secret", "tls", "broken-tls", &certificate, &key])?;
    eventually("the right certificate", || {
        let answer = shop.https("broken.example", &["--cacert", &trust])?;
        ensure!(answer == "200", "{answer}");
        Ok(())
    })?;
    shop.serves()
}

#[test]
fn a_service_without_endpoints_refuses_at_once_and_explains_itself() -> Result<()> {
    const NODE_PORT: u16 = 30999;
    let shop = Shop::open()?;
    let cluster = &shop.cluster;
    cluster.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  type: NodePort
  selector: {app: nobody}
  ports: [{port: 80, nodePort: 30999}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: empty}
spec:
  ingressClassName: weir
  rules:
    - host: empty.example
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: empty, port: {number: 80}}}}]}
",
    )?;
    let cluster_ip = cluster.kubectl(&["get", "service/empty", "--output=jsonpath={.spec.clusterIP}"])?;
    let run_dir = cluster.run_dir().display().to_string();
    let explain = |destination: &str| -> Result<String> {
        let source = format!("{CLIENT_ADDRESS}:40000");
        let output =
            cluster.weir(&["explain", "tcp", &source, destination, "--run-dir", &run_dir]).output()?;
        ensure!(output.status.success(), "weir explain: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    eventually("the dataplane knows the service", || {
        let explained = explain(&format!("{cluster_ip}:80"))?;
        for words in ["default/empty", "refuses the connection (ECONNREFUSED)", "rejects with a TCP RST"] {
            ensure!(explained.contains(words), "no {words:?} in\n{explained}");
        }
        Ok(())
    })?;
    let explained = explain(&format!("{NODE_ADDRESS}:{NODE_PORT}"))?;
    ensure!(explained.contains("TC on the uplink: rejects with a TCP RST"), "weir explain says\n{explained}");

    let host = cluster
        .on_node("curl")
        .args(["-sS", "--max-time", "10", &format!("http://{cluster_ip}/")])
        .output()?;
    let said = String::from_utf8_lossy(&host.stderr).into_owned();
    // 7 is "could not connect", where a client that waited in vain ends with 28.
    ensure!(host.status.code() == Some(7), "ClusterIP from the host: {}: {said}", host.status);

    let drops = || -> Result<u64> {
        let output = cluster.weir(&["dataplane", "--run-dir", &run_dir, "drops"]).output()?;
        let table = String::from_utf8(output.stdout)?;
        let row = table.lines().find_map(|line| line.strip_prefix("no-backend"));
        row.and_then(|count| count.trim().parse().ok()).with_context(|| format!("no no-backend in\n{table}"))
    };
    let before = drops()?;
    let outside = SocketAddr::from((NODE_ADDRESS, NODE_PORT));
    let connected = cluster.outside.run(|| {
        Ok(TcpStream::connect_timeout(&outside, Duration::from_millis(500)).map_err(|error| error.kind()))
    });
    let refused = matches!(connected?, Err(std::io::ErrorKind::ConnectionRefused));
    ensure!(refused, "NodePort from outside is not refused");
    ensure!(drops()? > before, "the refusal is not counted");

    let answer = cluster.outside.run(|| get(INGRESS, "empty.example", "/", DEADLINE))?;
    ensure!(answer.status == 503 && answer.body.contains("empty"), "{} {}", answer.status, answer.body);
    shop.serves()
}
