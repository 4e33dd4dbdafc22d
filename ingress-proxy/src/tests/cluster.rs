//! A cluster of facts and the proxy that serves it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use k8s_openapi::api::networking::v1::IngressSpec;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::access_log::AccessLog;
use crate::compile::{
    Changes, ClassFact, Compiler, EndpointFact, IngressFact, ObjectKey, PortFact, Protocol, SecretFact,
    ServiceFact, SliceFact, Snapshot,
};
use crate::config::{Network, Timeouts};
use crate::live::{Installer, Live};
use crate::metrics::Metrics;
use crate::pages::{Pages, View};
use crate::proxy::{Ports, Proxy, Reports};
use crate::serve::{Server, bind};
use crate::tls::Certificates;
use crate::upstream::Checks;
use crate::watch::Problems;

/// Longer than anything here takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);
/// Pause between two looks at something that only looking shows.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

pub(super) struct Cluster {
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    pub(super) server: Arc<Server>,
    pub(super) default_certificate: Arc<CertifiedKey>,
    pub(super) registry: prometheus_client::registry::Registry,
    pub(super) pages: Pages,
    problems: Problems,
    state: Mutex<State>,
}

struct State {
    snapshot: Snapshot,
    compiler: Compiler,
    installer: Installer,
}

pub(super) fn quick() -> Timeouts {
    Timeouts {
        header: Duration::from_millis(400),
        connect: Duration::from_millis(500),
        read: Duration::from_secs(3),
        ..Timeouts::default()
    }
}

impl Cluster {
    pub(super) fn start() -> Self {
        Self::with(quick(), Path::new("off"))
    }

    pub(super) fn with(timeouts: Timeouts, access_log: &Path) -> Self {
        Self::trusting(&[], timeouts, access_log)
    }

    /// With proxies in front whose word counts.
    pub(super) fn trusting(trusted: &[Network], timeouts: Timeouts, access_log: &Path) -> Self {
        Self::behind(trusted, false, timeouts, access_log)
    }

    /// The same; they may speak the PROXY protocol.
    pub(super) fn behind(
        trusted: &[Network],
        proxy_protocol: bool,
        timeouts: Timeouts,
        access_log: &Path,
    ) -> Self {
        Self::reporting(trusted, proxy_protocol, timeouts, |metrics| {
            let (log, _writer) = AccessLog::open(access_log, metrics.log_dropped.clone()).unwrap();
            Reports { log, tracer: None }
        })
    }

    /// The same, saying elsewhere what becomes of requests.
    pub(super) fn reporting(
        trusted: &[Network],
        proxy_protocol: bool,
        timeouts: Timeouts,
        reports: impl FnOnce(&Metrics) -> Reports,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Metrics::register(&mut registry);
        let live = Arc::new(ArcSwap::from_pointee(Live::default()));
        let default = Arc::new(crate::tls::self_signed().unwrap());
        let certificates = Arc::new(ArcSwap::from_pointee(Certificates::new(Arc::clone(&default))));
        let (http, https) = ("127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap());
        let (http, https) = (bind(http).unwrap(), bind(https).unwrap());
        let ports = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let proxy = Proxy::new(
            Arc::clone(&live),
            Arc::clone(&certificates),
            metrics.clone(),
            reports(&metrics),
            trusted,
            timeouts.clone(),
            Ports { plain: ports.0.port(), tls: ports.1.port() },
        );
        let tls = crate::tls::server_config(Arc::clone(&certificates), None).unwrap();
        let server = Arc::new(Server::new(proxy, tls, timeouts.clone(), proxy_protocol));
        server.track(http, false, &Handle::current());
        server.track(https, true, &Handle::current());
        let (pages, problems) = (Pages::default(), Problems::default());
        let view = View {
            proxy: server.proxy(),
            certificates: Arc::clone(&certificates),
            problems: problems.clone(),
        };
        std::mem::forget(pages.show(view)); // for as long as there is who asks
        let checks = Checks::new(Handle::current(), server.draining(), metrics.health.clone());
        let installer = Installer::new(live, certificates, metrics, timeouts, Arc::clone(&default), None);
        let installer = installer.checking(checks);
        let mut snapshot = Snapshot::default();
        let class = ClassFact { controller: crate::compile::CONTROLLER.to_owned(), default: true };
        snapshot.classes.insert("weir".to_owned(), class);
        Self {
            http: ports.0,
            https: ports.1,
            server,
            default_certificate: default,
            registry,
            pages,
            problems,
            state: Mutex::new(State { snapshot, compiler: Compiler::new("weir"), installer }),
        }
    }

    /// An Ingress `n/name` with this spec, as JSON; it is compiled and live on return.
    pub(super) fn ingress(&self, name: &str, spec: serde_json::Value) {
        let key = ObjectKey::new("n", name);
        let spec: IngressSpec = serde_json::from_value(spec).unwrap();
        let fact = IngressFact {
            key: key.clone(),
            uid: name.to_owned(),
            created: 0,
            class_annotation: None,
            annotations: std::collections::BTreeMap::new(),
            spec,
            published: vec![],
        };
        let changes = Changes { ingresses: [key.clone()].into(), ..Changes::default() };
        self.change(changes, |snapshot| {
            snapshot.ingresses.insert(key, fact);
        });
    }

    /// Other annotations for an Ingress that is there, below ingress-nginx's prefix.
    pub(super) fn annotate(&self, name: &str, annotations: &[(&str, &str)]) {
        let full = |(name, value): &(&str, &str)| {
            (format!("nginx.ingress.kubernetes.io/{name}"), (*value).to_owned())
        };
        let key = ObjectKey::new("n", name);
        let changes = Changes { ingresses: [key.clone()].into(), ..Changes::default() };
        self.change(changes, |snapshot| {
            let ingress = snapshot.ingresses.get_mut(&key).unwrap();
            ingress.annotations = annotations.iter().map(full).collect();
        });
    }

    /// A rule: host, Prefix path, Service.
    pub(super) fn route(&self, host: &str, path: &str, service: &str) {
        let backend = serde_json::json!({"service": {"name": service, "port": {"number": 80}}});
        let paths = serde_json::json!([{"path": path, "pathType": "Prefix", "backend": backend}]);
        let name = format!("{service}-{host}{}", path.replace('/', "-"));
        self.ingress(&name, serde_json::json!({"rules": [{"host": host, "http": {"paths": paths}}]}));
    }

    /// A Service `n/name` with these endpoints.
    pub(super) fn service(&self, name: &str, h2c: bool, endpoints: &[SocketAddr]) {
        let protocol = h2c.then_some(Protocol::Grpc);
        let port = |number| PortFact { name: String::new(), number, protocol };
        let key = ObjectKey::new("n", name);
        let changes = Changes { services: [key.clone()].into(), ..Changes::default() };
        self.change(changes, |snapshot| {
            let fact = ServiceFact { ports: vec![port(80)], ..ServiceFact::default() };
            snapshot.services.insert(key, fact);
        });
        self.endpoints(name, endpoints);
    }

    /// Other endpoints for a Service, the way an EndpointSlice change arrives: no table is compiled.
    pub(super) fn endpoints(&self, name: &str, endpoints: &[SocketAddr]) {
        let State { snapshot, installer, .. } = &mut *self.state.lock().unwrap();
        Self::put_endpoints(snapshot, name, endpoints);
        installer.refresh(snapshot, &[ObjectKey::new("n", name)].into());
    }

    pub(super) fn secret(&self, name: &str, fact: SecretFact) {
        let key = ObjectKey::new("n", name);
        let secrets = std::collections::BTreeSet::from([key.clone()]);
        self.change(Changes { secrets: secrets.clone(), ..Changes::default() }, |snapshot| {
            snapshot.secrets.insert(key, fact);
        });
        let State { snapshot, installer, .. } = &mut *self.state.lock().unwrap();
        installer.renew(snapshot, &secrets);
    }

    fn put_endpoints(snapshot: &mut Snapshot, name: &str, endpoints: &[SocketAddr]) {
        let service = ObjectKey::new("n", name);
        let slices = endpoints.iter().map(|address| {
            let fact = SliceFact {
                service: service.clone(),
                ports: vec![PortFact { name: String::new(), number: address.port(), protocol: None }],
                endpoints: vec![EndpointFact { addresses: vec![address.ip()], ready: true, draining: false }],
            };
            (address.to_string(), fact)
        });
        snapshot.slices.insert(service.clone(), slices.collect());
    }

    fn change(&self, changes: Changes, change: impl FnOnce(&mut Snapshot)) {
        let State { snapshot, compiler, installer } = &mut *self.state.lock().unwrap();
        change(snapshot);
        let mut update = compiler.update(snapshot, &changes);
        self.problems.take_in(std::mem::take(&mut update.problems), std::mem::take(&mut update.mended));
        installer.install(snapshot, update, Instant::now());
    }

    /// What a page says; the test fails if there is none.
    pub(super) fn page(&self, path_and_query: &str) -> (u16, String) {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let page = self.pages.answer(path, query).expect(path);
        (page.status().as_u16(), page.into_body())
    }

    pub(super) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Sends bytes over plain HTTP and reads until the proxy closes.
    pub(super) async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let _ = stream.write_all(request).await;
        read_all(&mut stream).await
    }

    /// One request on a connection of its own; status and body.
    pub(super) async fn get(&self, host: &str, path: &str) -> (u16, String) {
        split(&self.ask(host, path, "").await)
    }

    /// The whole response to a GET with these fields, each `Name: value\r\n`.
    pub(super) async fn ask(&self, host: &str, path: &str, fields: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
        self.raw(request.as_bytes()).await
    }

    /// The backend's own account of a request.
    pub(super) async fn echo(&self, host: &str, path: &str) -> serde_json::Value {
        let (status, body) = self.get(host, path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// What comes of `work`, which must end; the test fails when it hangs.
pub(super) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, work).await.unwrap_or_else(|_| panic!("it hangs: {what}"))
}

/// Waits until something holds.
pub(super) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let holding = async {
        while !holds().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    in_time(what, holding).await;
}

/// What arrives until the other side ends the stream, which it must.
pub(super) async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = in_time("the stream has no end", stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A field of a response's head; empty if it is not there.
pub(super) fn field<'a>(response: &'a str, name: &str) -> &'a str {
    let head = response.split("\r\n\r\n").next().unwrap_or_default();
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

/// Status and de-chunked body of a response.
pub(super) fn split(response: &str) -> (u16, String) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut rest, mut text) = (body, String::new());
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        text.push_str(&tail[..size]);
        rest = &tail[size + 2..];
    }
    (status, text)
}
