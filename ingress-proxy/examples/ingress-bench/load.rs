//! Closed loops: every connection asks again as soon as it was answered. What they count, and what the proxy spent
//! meanwhile.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::sleep,
};

use crate::{
    backend::Body,
    certificate::{Client, HOST},
    http1::{Connection, connect, request},
    process,
    proxies::Proxy,
};

/// Connections that ask side by side.
const CONNECTIONS: usize = 64;
/// Connections that are opened side by side, where each is for one request.
const OPENING: usize = 16;
/// Before anything is counted: connections are made on both sides.
const SETTLE: Duration = Duration::from_millis(250);
/// Counts that long. CPU time comes in hundredths of a second, and so this is also how exact it is.
const WINDOW: Duration = Duration::from_secs(1);

/// What a loop came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    /// Of the proxy.
    pub(crate) cpu: Duration,
}

impl Count {
    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn cpu_us_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }

    /// The part of its core that the proxy used.
    pub(crate) fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

/// Requests on connections that are kept; with a client, over TLS.
pub(crate) async fn keepalive(proxy: &Proxy, tls: Option<Client>, body: Body) -> Result<Count> {
    let address = if tls.is_some() { proxy.https } else { proxy.http };
    let mut loops = Loops::new();
    for _ in 0..CONNECTIONS {
        let (tls, done) = (tls.clone(), Arc::clone(&loops.done));
        loops.tasks.spawn(async move {
            let stream = connect(address).await?;
            match tls {
                None => ask_forever(stream, body, &done).await,
                Some(client) => ask_forever(client.handshake(stream).await?, body, &done).await,
            }
        });
    }
    loops.count(proxy).await
}

async fn ask_forever<S>(stream: S, body: Body, done: &AtomicU64) -> Result<Infallible>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(HOST, body.path, false);
    let mut connection = Connection::new(stream);
    loop {
        connection.ask(&request, body).await?;
        done.fetch_add(1, Relaxed);
    }
}

/// A TLS connection for each request.
pub(crate) async fn connections(proxy: &Proxy, client: &Client, body: Body) -> Result<Count> {
    let address = proxy.https;
    let mut loops = Loops::new();
    for _ in 0..OPENING {
        let (client, done) = (client.clone(), Arc::clone(&loops.done));
        loops.tasks.spawn(async move {
            let request = request(HOST, body.path, true);
            loop {
                let stream = client.handshake(connect(address).await?).await?;
                let mut connection = Connection::new(stream);
                connection.ask(&request, body).await?;
                connection.closed().await?;
                done.fetch_add(1, Relaxed);
            }
        });
    }
    loops.count(proxy).await
}

/// Tasks that run until they fail, and how many requests they did.
struct Loops {
    tasks: JoinSet<Result<Infallible>>,
    done: Arc<AtomicU64>,
}

impl Loops {
    fn new() -> Self {
        Self { tasks: JoinSet::new(), done: Arc::default() }
    }

    async fn count(mut self, proxy: &Proxy) -> Result<Count> {
        let done = Arc::clone(&self.done);
        let counting = async {
            sleep(SETTLE).await;
            let (started, requests) = (Instant::now(), done.load(Relaxed));
            let cpu = process::cpu_time(&proxy.pids)?;
            sleep(WINDOW).await;
            Ok(Count {
                requests: done.load(Relaxed) - requests,
                elapsed: started.elapsed(),
                cpu: process::cpu_time(&proxy.pids)?.saturating_sub(cpu),
            })
        };
        tokio::select! {
            count = counting => count,
            Some(ended) = self.tasks.join_next() => match ended.context("a connection of the load")? {
                Ok(never) => match never {},
                Err(error) => Err(error),
            },
        }
    }
}
