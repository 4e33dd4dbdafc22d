//! The servers behind `healthCheckNodePort`: a load balancer asks each node, and sends traffic to those that say yes.
//!
//! One listener for each service and node address, so that `--nodeport-addresses` binds them as it does node ports. The
//! answer is kube-proxy's, status, header and body (`pkg/proxy/healthcheck`), whatever the path.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderName, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::IpFreebind};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
};
use tokio_util::task::AbortOnDropHandle;

use crate::plan::{HealthCheck, model::ServiceKey};

/// Listeners of this node; a service beyond that has no health check, and its load balancer takes the node for dead.
const MAX_LISTENERS: usize = 1_024;
/// Probers of one listener at a time; more wait in its queue.
const MAX_CONNECTIONS: usize = 16;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;
/// A prober that has not sent its request by then is let go.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// What weighted load balancers read.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A health check that is not served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum HealthCheckError {
    /// Two services want one port.
    #[error("spec.healthCheckNodePort {port} is that of {owner} already; give one of the two another port")]
    Taken {
        /// The port.
        port: u16,
        /// Who has it.
        owner: ServiceKey,
    },
    /// The kernel refused.
    #[error(
        "spec.healthCheckNodePort: cannot listen on {address} ({reason}); end the process that has the port, or give another one"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// Too many.
    #[error("spec.healthCheckNodePort is not served: this node has {MAX_LISTENERS} health checks already")]
    Full,
}

/// Whether the dataplane does its work: part of every answer.
#[derive(Clone, Debug)]
pub struct Health(Arc<AtomicBool>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Health {
    /// Says it.
    pub fn set(&self, healthy: bool) {
        self.0.store(healthy, Relaxed);
    }
}

/// What one service's listeners answer with.
#[derive(Debug)]
struct Answer {
    service: ServiceKey,
    local_endpoints: AtomicUsize,
    health: Health,
}

#[derive(Debug)]
struct Served {
    port: u16,
    answer: Arc<Answer>,
    listeners: BTreeMap<IpAddr, AbortOnDropHandle<()>>,
}

/// All health checks of this node.
#[derive(Debug, Default)]
pub struct HealthChecks {
    addresses: BTreeSet<IpAddr>,
    health: Health,
    services: BTreeMap<ServiceKey, Served>,
    owners: BTreeMap<u16, ServiceKey>,
    listeners: usize,
    /// Services with a complaint that was told; their listeners are tried again by [`HealthChecks::retry`].
    failed: BTreeMap<ServiceKey, (HealthCheck, BTreeSet<HealthCheckError>)>,
}

impl HealthChecks {
    /// None yet; every answer says what `health` does.
    pub fn new(health: Health) -> Self {
        Self { health, ..Self::default() }
    }

    /// Listeners there are.
    pub fn listeners(&self) -> usize {
        self.listeners
    }

    /// Serves on these addresses from now on. Returns what is new to complain about.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Vec<(ServiceKey, HealthCheckError)> {
        let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        if addresses == self.addresses {
            return Vec::new();
        }
        self.addresses = addresses;
        let checks: Vec<_> =
            self.services.iter().map(|(key, served)| (key.clone(), served.check())).collect();
        checks.into_iter().flat_map(|(key, check)| self.set(&key, Some(check))).collect()
    }

    /// What a service wants now. Returns what is new to complain about.
    pub fn set(
        &mut self,
        key: &ServiceKey,
        wanted: Option<HealthCheck>,
    ) -> Vec<(ServiceKey, HealthCheckError)> {
        let problems = if let Some(check) = wanted {
            self.serve(key, check)
        } else {
            self.forget(key);
            BTreeSet::new()
        };
        let before = match wanted.filter(|_| !problems.is_empty()) {
            Some(check) => self.failed.insert(key.clone(), (check, problems.clone())),
            None => self.failed.remove(key),
        };
        let before = before.map(|(_, problems)| problems).unwrap_or_default();
        problems.difference(&before).map(|problem| (key.clone(), problem.clone())).collect()
    }

    /// Tries again what failed: a port may be free now.
    pub fn retry(&mut self) {
        let again: Vec<_> = self.failed.iter().map(|(key, (check, _))| (key.clone(), *check)).collect();
        for (key, check) in again {
            // Told already, or the same trouble in other words.
            self.set(&key, Some(check));
        }
    }

    fn serve(&mut self, key: &ServiceKey, check: HealthCheck) -> BTreeSet<HealthCheckError> {
        if self.services.get(key).is_some_and(|served| served.port != check.port) {
            self.forget(key);
        }
        let owner = self.owners.entry(check.port).or_insert_with(|| key.clone());
        if owner != key {
            return [HealthCheckError::Taken { port: check.port, owner: owner.clone() }].into();
        }
        let served = self.services.entry(key.clone()).or_insert_with(|| Served {
            port: check.port,
            answer: Arc::new(Answer {
                service: key.clone(),
                local_endpoints: AtomicUsize::new(0),
                health: self.health.clone(),
            }),
            listeners: BTreeMap::new(),
        });
        served.answer.local_endpoints.store(check.local_endpoints, Relaxed);
        self.listeners -= served.listeners.len();
        served.listeners.retain(|address, _| self.addresses.contains(address));
        let mut problems = BTreeSet::new();
        for address in &self.addresses {
            if served.listeners.contains_key(address) {
                continue;
            }
            if self.listeners + served.listeners.len() >= MAX_LISTENERS {
                problems.insert(HealthCheckError::Full);
                break;
            }
            let address = SocketAddr::new(*address, check.port);
            match listen(address) {
                Ok(listener) => {
                    let task = tokio::spawn(accept(listener, Arc::clone(&served.answer)));
                    served.listeners.insert(address.ip(), AbortOnDropHandle::new(task));
                }
                Err(error) => {
                    problems.insert(HealthCheckError::Listen { address, reason: error.to_string() });
                }
            }
        }
        self.listeners += served.listeners.len();
        problems
    }

    fn forget(&mut self, key: &ServiceKey) {
        if let Some(served) = self.services.remove(key) {
            self.listeners -= served.listeners.len();
            self.owners.remove(&served.port);
        }
    }
}

impl Served {
    fn check(&self) -> HealthCheck {
        HealthCheck { port: self.port, local_endpoints: self.answer.local_endpoints.load(Relaxed) }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // An IPv6 address is tentative for its first second, and cannot be bound without this.
    setsockopt(&socket, IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, answer: Arc<Answer>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the others' connections end soon.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let service = service_fn(|_| {
                let response = answer.respond();
                async { Ok::<_, Infallible>(response) }
            });
            // A prober that goes away is its own business.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

impl Answer {
    fn respond(&self) -> Response<Full<Bytes>> {
        let (count, healthy) = (self.local_endpoints.load(Relaxed), self.health.0.load(Relaxed));
        let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "service": {"namespace": &*self.service.namespace, "name": &*self.service.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        });
        Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
            .header(WEIGHT, count)
            .body(Full::new(body.to_string().into()))
            .expect("a status and valid headers make a response")
    }
}
