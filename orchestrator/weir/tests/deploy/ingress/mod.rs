//! The ingress as it is shipped: the unit under a systemd of its own, the container by a container runtime. Both with the
//! shipped roles, in a network of their own.
//!
//! The test stands for the kubelet that gives a pod its service account's files.

mod container;
mod lease;
mod runtime;
mod shipped;
mod unit;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use weir_tests::{Authority, Namespace, Pair, Response, eventually, get};
use weir_tests_apiserver::Apiserver;

use super::proxy::{Proxy, Role};

/// Longer than an answer takes, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than a request can be held here.
const BEYOND_THE_DRAIN: Duration = Duration::from_mins(2);
/// From the range for measurements (RFC 2544).
const ENDPOINT: &str = "198.18.0.1";
const ENDPOINT_PORT: u16 = 8080;
/// Of the service account, as its files say it.
const NAMESPACE: &str = "weir-ingress";
const TOKEN: &str = "eyJhbGciOiJub25lIn0.e30.";

/// A network with an endpoint, an API server, and the door before it.
struct Machine {
    namespace: Namespace,
    directory: tempfile::TempDir,
    runtime: Runtime,
    server: Option<Apiserver>,
    proxy: Arc<Proxy>,
    /// The door's, on the loopback address.
    port: u16,
    backend: Backend,
}

/// For a server that asks clients for no certificate.
fn server_config(pair: &Pair) -> ServerConfig {
    let chain = vec![CertificateDer::from_pem_slice(pair.chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
}

impl Machine {
    fn new() -> Self {
        Self::with_roles(shipped::roles())
    }

    fn with_roles(roles: Vec<Role>) -> Self {
        let namespace = Namespace::new().expect("this needs root");
        namespace.ip(&format!("address add {ENDPOINT}/32 dev lo")).unwrap();
        let directory = tempfile::Builder::new().prefix("weir-deploy-").tempdir().unwrap();
        // Others than root look at what is given to them; the server's own files are below a directory that shuts them out.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (data, shared) = (directory.path().join("data"), directory.path().join("shared"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&shared).unwrap();
        // Its threads are the namespace's: they are started there.
        let runtime = namespace.inside(|| {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
        });
        let authority = Authority::new();
        let (server, proxy, port) = namespace.inside(|| {
            runtime.block_on(async {
                let server = Apiserver::start(&data, "here").await;
                let tls = TlsAcceptor::from(Arc::new(server_config(&authority.issue("127.0.0.1"))));
                let admin = server.client("admin").await;
                let (proxy, port) = Proxy::open_to_pods(roles, admin, tls, TOKEN).await;
                (server, proxy, port)
            })
        });
        let cluster = json!({
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": STANDARD.encode(&authority.pem),
        });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "weir",
            "clusters": [{"name": "weir", "cluster": cluster}],
            "users": [{"name": "weir", "user": {"token": TOKEN}}],
            "contexts": [{"name": "weir", "context": {
                "cluster": "weir", "user": "weir", "namespace": NAMESPACE,
            }}],
        });
        fs::write(shared.join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let account = shared.join("serviceaccount");
        fs::create_dir(&account).unwrap();
        for (name, text) in [("token", TOKEN), ("ca.crt", &authority.pem), ("namespace", NAMESPACE)] {
            fs::write(account.join(name), text).unwrap();
        }
        let backend = Backend::start(&namespace);
        let machine = Self { namespace, directory, runtime, server: Some(server), proxy, port, backend };
        machine.fill();
        machine
    }

    /// The Service `default/shop`, and Ingresses to it for `plain.example` and, with a certificate, `shop.example`.
    fn fill(&self) {
        self.create(&format!("namespaces//{NAMESPACE}"), json!({}));
        let class = serde_json::to_value(shipped::class()).expect("JSON");
        self.create(&format!("ingressclasses//{}", class["metadata"]["name"].as_str().unwrap()), class);
        let ports = json!([{"name": "http", "port": 80}]);
        self.create("services/default/shop", json!({"spec": {"ports": ports}}));
        let slice = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "shop"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": ENDPOINT_PORT, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ENDPOINT], "conditions": {"ready": true}}],
        });
        self.create("endpointslices/default/shop-1", slice);
        let spec = |host: &str, tls: Value| {
            let backend = json!({"service": {"name": "shop", "port": {"name": "http"}}});
            let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
            json!({"spec": {
                "ingressClassName": "weir", "tls": tls,
                "rules": [{"host": host, "http": {"paths": [path]}}],
            }})
        };
        self.create("ingresses/default/plain", spec("plain.example", json!([])));
        let tls = json!([{"hosts": ["shop.example"], "secretName": "shop-tls"}]);
        self.create("ingresses/default/shop", spec("shop.example", tls));
    }

    /// Gives the shipped Service this address, as a cloud does; makes it first if it is not there.
    fn balance(&self, address: &str) {
        let service = serde_json::to_value(shipped::service()).expect("JSON");
        let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
        let key = format!("services/{}/{}", namespace.as_str().unwrap(), name.as_str().unwrap());
        if self.server().mirror().get(&key).is_none() {
            self.create(&key, service);
        }
        let status = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
        self.namespace.inside(|| self.runtime.block_on(self.server().merge_status(&key, status)));
    }

    /// Waits until all Ingresses say that they are reached there.
    fn is_published(&self, address: &str) {
        let status = json!([{ "ip": address }]);
        self.wait_until("the status is published", |mirror| {
            mirror.list("ingresses/").iter().all(|it| it["status"]["loadBalancer"]["ingress"] == status)
        });
    }

    /// The kubeconfig and the service account's files.
    fn shared(&self) -> std::path::PathBuf {
        self.directory.path().join("shared")
    }

    fn server(&self) -> &Apiserver {
        self.server.as_ref().expect("it runs")
    }

    fn create(&self, key: &str, object: Value) {
        // What is waited for runs on the thread that waits: its sockets shall be the namespace's.
        self.namespace.inside(|| self.runtime.block_on(self.server().create(key, object)));
    }

    fn wait_until(&self, why: &str, holds: impl Fn(&weir_tests_apiserver::Mirror) -> bool) {
        self.runtime.block_on(self.server().mirror().wait_until(why, holds));
    }

    fn get(&self, port: u16, host: &str, path: &str) -> Result<Response> {
        self.namespace.run(|| get(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), host, path, PATIENCE))
    }

    /// An answer that is held back until [`say_hello`].
    fn get_held(&self, port: u16) -> Result<Response> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.namespace.run(|| get(address, "plain.example", "/held", BEYOND_THE_DRAIN))
    }

    /// Until the status at a port and path is that.
    fn answers(&self, status: u16, port: u16, host: &str, path: &str) {
        let what = format!("{status} from {host}:{port}{path}");
        eventually(&what, || {
            let answer = self.get(port, host, path)?;
            ensure!(answer.status == status, "{answer:?}");
            Ok(())
        })
        .unwrap();
    }

    /// Over TLS to `shop.example`: with a certificate of this authority, or with any.
    fn get_tls(&self, authority: Option<&Path>) -> Result<String> {
        let mut curl = self.namespace.command("curl");
        curl.args(["-sS", "--max-time", "5", "--resolve", "shop.example:443:127.0.0.1"]);
        match authority {
            Some(path) => curl.arg("--cacert").arg(path),
            None => curl.arg("--insecure"),
        };
        let output = curl.arg("https://shop.example/").output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _guard = self.runtime.enter();
        self.server = None;
    }
}

/// An endpoint that says hello. Its answer to `/held` comes when it is released.
struct Backend {
    held: Mutex<mpsc::Receiver<TcpStream>>,
}

impl Backend {
    fn start(namespace: &Namespace) -> Self {
        let (holds, held) = mpsc::channel();
        let listener = namespace.inside(|| TcpListener::bind((ENDPOINT, ENDPOINT_PORT)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let holds = holds.clone();
                thread::spawn(move || greet(stream, &holds));
            }
        });
        Self { held: Mutex::new(held) }
    }

    /// A request that has arrived and is not answered.
    fn held(&self) -> TcpStream {
        self.held.lock().expect("nobody panics with it").recv_timeout(PATIENCE).expect("it arrives")
    }
}

fn greet(mut stream: TcpStream, holds: &mpsc::Sender<TcpStream>) {
    let mut head = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend_from_slice(&bytes[..count]),
        }
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        if head.starts_with(b"GET /held ") {
            let _ = holds.send(stream);
            return;
        }
        head.clear();
        if say_hello(&mut stream).is_err() {
            return;
        }
    }
}

fn say_hello(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").context("answering")
}
