//! A running `weir ingress`, in front of the real API server, on loopback.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output},
};

use anyhow::ensure;
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_tests::eventually;
use weir_tests_apiserver::Apiserver;

/// The role, the server that it is a client of, and what it serves.
pub(crate) struct Ingress {
    pub(crate) server: Apiserver,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    process: Child,
    kubeconfig: PathBuf,
    _directory: TempDir,
}

impl Ingress {
    /// One with a class of its own, that of Ingresses that name none.
    pub(crate) async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let server = Apiserver::start(directory.path(), "node").await;
        let class = json!({
            "metadata": {"annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            "spec": {"controller": "weir.dev/ingress"},
        });
        server.create("ingressclasses//weir", class).await;
        let [http, https, admin] = free();
        let kubeconfig = directory.path().join("kubeconfig/ingress.kubeconfig");
        let process = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("ingress")
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--access-log", "off", "--workers", "1", "--log", "warn"])
            .args(["--http-address", &http.to_string(), "--https-address", &https.to_string()])
            .args(["--metrics-address", &admin.to_string()])
            .spawn()
            .unwrap();
        let ingress = Self { server, http, admin, process, kubeconfig, _directory: directory };
        let ready = || {
            ensure!(get(admin, "/readyz").starts_with("HTTP/1.1 200"), "it is not ready");
            Ok(())
        };
        eventually("the ingress serves", ready).unwrap();
        ingress
    }

    /// `weir` with these words, ended; its cluster is this one.
    pub(crate) fn weir(&self, words: &[&str]) -> Output {
        let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
        weir.args(words).env("KUBECONFIG", &self.kubeconfig).output().unwrap()
    }

    /// A Service `default/name` with these endpoints.
    pub(crate) async fn service(&self, name: &str, endpoints: &[SocketAddr]) {
        let ports = json!([{"name": "web", "port": 80}]);
        self.server.create(&format!("services/default/{name}"), json!({"spec": {"ports": ports}})).await;
        for (endpoint, number) in endpoints.iter().zip(0..) {
            let slice = json!({
                "metadata": {"labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "web", "port": endpoint.port(), "protocol": "TCP"}],
                "endpoints": [{"addresses": [endpoint.ip()], "conditions": {"ready": true}}],
            });
            self.server.create(&format!("endpointslices/default/{name}-{number}"), slice).await;
        }
    }

    /// An Ingress `default/name`: a host, and paths with their Services.
    pub(crate) async fn ingress(&self, name: &str, host: &str, paths: &[(&str, &str)], more: Value) {
        let path = |(path, service): &(&str, &str)| {
            let backend = json!({"service": {"name": service, "port": {"name": "web"}}});
            json!({"path": path, "pathType": "Prefix", "backend": backend})
        };
        let paths: Vec<Value> = paths.iter().map(path).collect();
        let mut spec = json!({"rules": [{"host": host, "http": {"paths": paths}}]});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        self.server.create(&format!("ingresses/default/{name}"), json!({ "spec": spec })).await;
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Addresses that are free now.
pub(crate) fn free<const N: usize>() -> [SocketAddr; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// The whole answer of an admin server; empty if there is none.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &address.to_string(), path)
}

/// The whole answer to a GET; empty if there is none.
pub(crate) fn ask(address: SocketAddr, host: &str, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    let mut answer = Vec::new();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}
