//! The proxies under test: one process each (nginx: a worker and its master), one thread that serves, no access log, and
//! connections to the backend kept for as many requests as come.
//!
//! Peers do the least that a proxy can: one backend for everything, no headers of their own. Weir is the whole role, with
//! lists and watches of a real API server, routing, metrics and forwarded headers.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Bench, backend, bare,
    certificate::HOST,
    http1::{Connection, connect, request},
    process,
    ticker::Ticker,
};

/// How often a starting proxy is asked.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// A start that takes longer has failed.
const LONGEST_START: Duration = Duration::from_secs(30);

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Weir,
    Nginx,
    Haproxy,
    /// A proxy of a dozen lines on the library that Weir is built on.
    Pingora,
    /// None at all: the backend alone, which is what the load could do at most.
    Direct,
}

impl Kind {
    /// All but none.
    pub(crate) const PROXIES: [Self; 4] = [Self::Weir, Self::Nginx, Self::Haproxy, Self::Pingora];

    /// What rows call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Pingora => "bare pingora",
            Self::Direct => "backend directly",
        }
    }
}

/// A running proxy, which has answered; killed when dropped.
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    /// Of all its processes, the first one first.
    pub(crate) pids: Vec<Pid>,
    /// From its start to its first 200.
    pub(crate) start: Duration,
    child: Option<Child>,
}

impl Proxy {
    /// Starts one on its core and waits for its first 200.
    pub(crate) async fn start(kind: Kind, bench: &Bench) -> Result<Self> {
        if kind == Kind::Direct {
            let (http, https) = (bench.backend, bench.backend);
            return Ok(Self { kind, http, https, pids: Vec::new(), start: Duration::ZERO, child: None });
        }
        let ports = Ports::choose()?;
        let mut command = command(kind, bench, &ports)?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        process::pin(bench.cores.proxy)?;
        let started = Instant::now();
        let child = command.spawn();
        process::pin(bench.cores.load)?;
        let child = child.with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let mut proxy = Self {
            kind,
            http: ports.http,
            https: ports.https,
            pids: vec![pid],
            start: Duration::ZERO,
            child: Some(child),
        };
        proxy.wait_for_200(started).await.with_context(|| format!("waiting for {}", kind.name()))?;
        proxy.start = started.elapsed();
        proxy.pids = process::family(pid);
        Ok(proxy)
    }

    async fn wait_for_200(&mut self, started: Instant) -> Result<()> {
        let ticker = Ticker::start(LOOK_AGAIN);
        loop {
            let Err(error) = ask_once(self.http).await else { return Ok(()) };
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
                bail!("it ended: {}", status?);
            }
            ensure!(started.elapsed() < LONGEST_START, "no 200 in {LONGEST_START:?}: {error:#}");
            ticker.tick().await;
        }
    }
}

async fn ask_once(address: SocketAddr) -> Result<()> {
    let mut connection = Connection::new(connect(address).await?);
    connection.ask(&request(HOST, backend::SMALL.path, false), backend::SMALL).await
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // There is nothing that an orderly end would save. A master goes before the worker that it would replace.
        for pid in &self.pids {
            // One that has ended meanwhile needs none.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Where a proxy is to listen.
struct Ports {
    http: SocketAddr,
    https: SocketAddr,
    /// Of Weir, for its metrics.
    admin: SocketAddr,
}

impl Ports {
    /// Of the loopback address, and free: nobody else is in this namespace.
    fn choose() -> Result<Self> {
        // Held until all are chosen: a port that is let go may come again at once.
        let probe = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port");
        let (http, https, admin) = (probe()?, probe()?, probe()?);
        Ok(Self { http: http.local_addr()?, https: https.local_addr()?, admin: admin.local_addr()? })
    }
}

fn command(kind: Kind, bench: &Bench, ports: &Ports) -> Result<Command> {
    let mut command = match kind {
        Kind::Weir => Command::new(&bench.weir),
        Kind::Nginx => Command::new("nginx"),
        Kind::Haproxy => Command::new("haproxy"),
        Kind::Pingora => {
            // A copy: pages of a file that it shared with this process would weigh it half.
            let own = bench.directory.join("bare-pingora");
            if !own.exists() {
                fs::copy(std::env::current_exe()?, &own).context("copying this executable")?;
            }
            Command::new(own)
        }
        Kind::Direct => bail!("the backend is there already"),
    };
    let Ports { http, https, admin } = ports;
    match kind {
        Kind::Weir => {
            command.arg("ingress").arg("--kubeconfig").arg(bench.cluster.kubeconfig());
            command.args(["--http-address", &http.to_string(), "--https-address", &https.to_string()]);
            command.args(["--metrics-address", &admin.to_string()]);
            command.args(["--workers", "1", "--access-log", "off", "--log", "warn"]);
        }
        Kind::Nginx => {
            let file = bench.directory.join("nginx.conf");
            fs::write(&file, nginx(bench, ports)).context("writing nginx.conf")?;
            // What it says before it has read its configuration goes to the same place as the rest.
            command.arg("-c").arg(file).args(["-e", "stderr"]);
        }
        Kind::Haproxy => {
            let file = bench.directory.join("haproxy.cfg");
            fs::write(&file, haproxy(bench, ports)).context("writing haproxy.cfg")?;
            command.args(["-q", "-db", "-f"]).arg(file);
        }
        Kind::Pingora => {
            command.args([bare::WORD, &http.to_string(), &https.to_string(), &bench.backend.to_string()]);
            command.args([&bench.certificate.chain_file, &bench.certificate.key_file]);
        }
        Kind::Direct => {}
    }
    Ok(command)
}

fn nginx(bench: &Bench, Ports { http, https, .. }: &Ports) -> String {
    let Bench { backend, directory, certificate, .. } = bench;
    let directory = directory.display();
    let (chain, key) = (certificate.chain_file.display(), certificate.key_file.display());
    format!(
        "
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  keepalive_requests 1000000000;
  ssl_protocols TLSv1.2 TLSv1.3;
  upstream backend {{
    server {backend};
    keepalive 1024;
    keepalive_requests 1000000000;
  }}
  server {{
    listen {http};
    listen {https} ssl http2;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
    }}
  }}
}}
"
    )
}

fn haproxy(bench: &Bench, Ports { http, https, .. }: &Ports) -> String {
    let Bench { backend, certificate, .. } = bench;
    let pair = certificate.pair_file.display();
    format!(
        "
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend bench
  bind {http}
  bind {https} ssl crt {pair} alpn h2,http/1.1
  default_backend app
backend app
  server one {backend}
"
    )
}
